#!/usr/bin/env bash
# A training whose loop is inside torch.autocast, in place of each forward pass.
#
# Expected: as around each forward pass, but shorter to write. (PyTorch's documentation says that it
# should be around forward passes alone, but not what happens otherwise.)
# Seen with PyTorch 2.14.1 on a CPU: autocast keeps the weights that it has cast until it is left.
# Inside, every step after the first computes with the first weights: the loss of a fixed batch
# stays what it was, while the optimizer goes on moving weights that nobody reads. A block with
# enabled=False around enabled ones does the same.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.14.1" "numpy==2.4.6"
"$work/venv/bin/python" - <<'END'
import contextlib
import sys

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
images, labels = torch.randn(32, 8), torch.arange(32) % 4


def losses(around, each):
    """The losses of five steps, with one context around them and one around each forward."""
    torch.manual_seed(0)
    net = nn.Linear(8, 4)
    optimizer = torch.optim.SGD(net.parameters(), 0.5)
    found = []
    with around:
        for _ in range(5):
            with each():
                loss = F.cross_entropy(net(images).float(), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(round(loss.item(), 4))
    return found


def on():
    return torch.autocast("cpu", torch.bfloat16)


off = torch.autocast("cpu", torch.bfloat16, enabled=False)
print(f"PyTorch {torch.__version__}")
found = {
    "around each forward pass": losses(contextlib.nullcontext(), on),
    "around the loop": losses(on(), contextlib.nullcontext),
    "disabled around enabled ones": losses(off, on),
}
for name, values in found.items():
    print(f"{name}: {values}")
each, whole, nested = (len(set(values)) for values in found.values())
sys.exit(0 if each == 5 and whole == 1 and nested == 1 else 1)
END
