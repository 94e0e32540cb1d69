#!/usr/bin/env bash
# What making an optimizer loads, in a script that compiles nothing.
#
# Expected: torch.optim.SGD of one weight is there at once, as a module or a tensor is.
# Seen with PyTorch 2.14.1: the first optimizer of a process imports torch._dynamo, with it more
# than 300 modules, and takes a second or two. A training pays for the compiler at each start.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.14.1" "numpy==2.4.6"
cat > "$work/make.py" <<'END'
import sys
import time

import torch

weight = torch.nn.Parameter(torch.zeros(1))
before = set(sys.modules)
start = time.perf_counter()
torch.optim.SGD([weight], 0.1)
first = time.perf_counter() - start
loaded = set(sys.modules) - before
start = time.perf_counter()
torch.optim.SGD([weight], 0.1)
second = time.perf_counter() - start
print(f"PyTorch {torch.__version__}: {len(loaded)} modules, torch._dynamo {'torch._dynamo' in loaded}")
print(f"the first optimizer took {first:.2f} s, the second {second:.5f} s")
sys.exit(0 if "torch._dynamo" in loaded and len(loaded) > 300 and first > 100 * second else 1)
END
"$work/venv/bin/python" "$work/make.py"  # which also writes the compiled modules
"$work/venv/bin/python" "$work/make.py"
