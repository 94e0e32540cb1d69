#!/usr/bin/env bash
# Random numbers from one seed, in tensors of two memory formats.
#
# Expected: the memory format decides where values lie, and not what they are.
# Seen with PyTorch 2.14.1 on a CPU: random numbers are drawn in the order of the memory. From one
# seed, dropout of a map in channels last strikes other places than that of the same map
# contiguous, and a convolution that is initialised in channels last has other weights, all of
# them.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.14.1" "numpy==2.4.6"
"$work/venv/bin/python" - <<'END'
import sys

import torch
import torch.nn.functional as F
from torch import nn

FORMATS = torch.contiguous_format, torch.channels_last


def dropped(layout):
    torch.manual_seed(0)
    ones = torch.ones(2, 8, 16, 16).contiguous(memory_format=layout)
    return F.dropout(ones, 0.5).contiguous()


def initialised(layout):
    layer = nn.Conv2d(8, 8, 3).to(memory_format=layout)
    torch.manual_seed(0)
    nn.init.kaiming_normal_(layer.weight)
    return layer.weight.detach().contiguous()


print(f"PyTorch {torch.__version__}")
found = []
for what in (dropped, initialised):
    first, second = map(what, FORMATS)
    found.append((first != second).float().mean().item())
    print(f"{what.__name__}: {found[-1]:.0%} of the values differ")
sys.exit(0 if found[0] > 0.3 and found[1] > 0.9 else 1)
END
