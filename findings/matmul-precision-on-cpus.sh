#!/usr/bin/env bash
# torch.set_float32_matmul_precision("medium"), as scripts for GPUs have it at their top, on a CPU
# with AMX.
#
# Expected: it is about the tensor cores of GPUs, as its documentation says (CUDA is the only device
# type that it names); float32 on a CPU stays float32. Or, if it does reach CPUs, that all layers are
# treated alike.
# Seen with PyTorch 2.14.1 on an Intel Xeon with AMX: linear layers and 1x1 convolutions are computed
# in bfloat16, a thousand times less exact and more, and nothing says so; 3x3 convolutions stay
# exact.
# With "high" all stay exact. On a CPU without AMX, such as an AMD EPYC with AVX512-BF16 alone,
# nothing changes: the script then says so and ends with 0.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.14.1" "numpy==2.4.6"
"$work/venv/bin/python" - <<'END'
import copy
import sys

import torch
from torch import nn

units = torch.cpu.get_capabilities()
print(f"PyTorch {torch.__version__}, AMX {units.get('amx_bf16')}, AVX512-BF16 {units.get('avx512_bf16')}")
if not units.get("amx_bf16"):
    print("no AMX: nothing to see here")
    sys.exit(0)

torch.manual_seed(0)
LAYERS = {
    "linear": (nn.Linear(256, 256), torch.randn(256, 256)),
    "1x1 convolution": (nn.Conv2d(256, 256, 1), torch.randn(4, 256, 16, 16)),
    "3x3 convolution": (nn.Conv2d(64, 64, 3), torch.randn(4, 64, 16, 16)),
}
errors = {}
for precision in ("highest", "high", "medium"):
    torch.set_float32_matmul_precision(precision)
    for name, (layer, image) in LAYERS.items():
        with torch.no_grad():
            exact = copy.deepcopy(layer).double()(image.double())
            error = (layer(image) - exact).norm() / exact.norm()
        errors[precision, name] = error.item()
        print(f"{precision}, {name}: relative error {error:.2g}")
coarse = {key for key, error in errors.items() if error > 1e-4}
sys.exit(0 if coarse == {("medium", "linear"), ("medium", "1x1 convolution")} else 1)
END
