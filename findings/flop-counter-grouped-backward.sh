#!/usr/bin/env bash
# torch.utils.flop_counter.FlopCounterMode around a training step with grouped convolutions.
#
# Expected: a backward pass costs twice its forward pass, one part for the input's gradient and
# one for the weights', whatever the number of groups: a depthwise layer is cheap in both.
# Seen with PyTorch 2.14.1: the forward pass is counted rightly. The part of the weights'
# gradient is counted as if there were one group, and so as many times as there are groups too high:
# for a depthwise layer of 64 channels the backward pass is said to cost 65 forward passes.
#
# The second count is by hand: a gradient of one weight is a sum over all images and places.
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
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

IMAGES, CHANNELS, SIDE = 2, 64, 16
print(f"PyTorch {torch.__version__}")
is_so = True
for groups in (1, 4, CHANNELS):
    layer = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=groups, bias=False)
    images = torch.randn(IMAGES, CHANNELS, SIDE, SIDE, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        result = layer(images)
    with FlopCounterMode(display=False) as backward:
        result.sum().backward()
    counted = forward.get_total_flops(), backward.get_total_flops()
    by_hand = 2 * layer.weight.numel() * IMAGES * SIDE * SIDE  # products and sums
    print(
        f"{groups} groups: forward {counted[0]:,} (by hand {by_hand:,}), "
        f"backward {counted[1]:,} (by hand {2 * by_hand:,})"
    )
    is_so &= counted == (by_hand, by_hand * (1 + groups))
sys.exit(0 if is_so else 1)
END
