#!/usr/bin/env bash
# How much of a map DropBlock drops, beside how much it was asked to.
#
# Expected: drop_prob is about the share that is dropped, as the paper's rate of block centres is
# made for (Ghiasi, Lin, Le, "DropBlock", NeurIPS 2018). Overlaps make it a little less.
# Seen with timm 1.0.31, torchvision 0.29.2 and PyTorch 2.14.1: timm divides by the number of
# centres whose block fits into the map, but draws them over the whole map. With its defaults, a
# tenth in blocks of 7x7, it drops 13 % of maps of 32x32, 21 % of 14x14, and 62 % of 8x8. What is
# left is scaled up, so that the mean does not show it. torchvision drops 9 to 10 % of each.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.14.1" "torchvision==0.29.2" "timm==1.0.31" "numpy==2.4.6"
"$work/venv/bin/python" - <<'END'
import sys
from importlib.metadata import version

import torch
from timm.layers import DropBlock2d
from torchvision.ops import DropBlock2d as Torchvisions

SIZE = 7  # timm's default
ASKED = 0.1  # timm's default

print(", ".join(f"{name} {version(name)}" for name in ("timm", "torchvision", "torch")))
print(f"asked for {ASKED:.0%}, in blocks of {SIZE}x{SIZE}")
dropped = {}
for side in (32, 14, 8):
    maps = torch.ones(500, 8, side, side)
    for name, layer in (("timm", DropBlock2d()), ("torchvision", Torchvisions(ASKED, SIZE))):
        torch.manual_seed(0)
        result = layer.train()(maps)
        dropped[name, side] = (result == 0).float().mean().item()
        print(f"{side}x{side:<3} {name:12} drops {dropped[name, side]:.1%}, mean {result.mean():.2f}")

too_many = dropped["timm", 8] > 0.5 and dropped["timm", 14] > 0.18
as_asked = all(0.07 < dropped["torchvision", side] < 0.11 for side in (32, 14, 8))
sys.exit(not (too_many and as_asked))
END
