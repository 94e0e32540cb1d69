#!/usr/bin/env bash
# The labels of images that timm's Mixup mixes, where these are bytes.
#
# Expected: CutMix labels an image by the share of its own pixels, of whatever type they are.
# Seen with timm 1.0.31 and PyTorch 2.14.1: with mode="elem" or "pair" the weights are made in the
# type of the images. Of uint8 each becomes 0: the pixels are mixed as they should be, but every
# image that was mixed has the label of its partner alone, with 26 to 92 % of its own pixels.
# Of float32 both are right, and so is mode="batch".
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.14.1" "torchvision==0.29.2" "timm==1.0.31" "numpy==2.4.6"
"$work/venv/bin/python" -W ignore - <<'END'
import sys
from importlib.metadata import version

import numpy as np
import torch
from timm.data.mixup import Mixup

IMAGES, CLASSES = 8, 8

print(f"timm {version('timm')}, PyTorch {torch.__version__}")


def mixed(mode, dtype):
    """Of each image the share of its own pixels that it keeps, and its own label's."""
    np.random.seed(0)
    images = torch.arange(1, IMAGES + 1, dtype=dtype).view(IMAGES, 1, 1, 1).repeat(1, 3, 32, 32)
    own = images.clone()
    mixup = Mixup(mixup_alpha=0, cutmix_alpha=1, mode=mode, label_smoothing=0, num_classes=CLASSES)
    result, targets = mixup(images, torch.arange(IMAGES))
    kept = (result == own).float().mean((1, 2, 3))
    return kept, targets.diagonal()


off = {}
for mode in ("batch", "elem", "pair"):
    for dtype in (torch.float32, torch.uint8):
        kept, labels = mixed(mode, dtype)
        off[mode, dtype] = (kept - labels).abs().max().item()
        print(f"{mode:5} {str(dtype):13} pixels", *(f"{share:.2f}" for share in kept))
        print(f"{'':19} labels", *(f"{share:.2f}" for share in labels))
wrong = {key for key, value in off.items() if value > 0.1}
print("wrong:", wrong)
sys.exit(wrong != {("elem", torch.uint8), ("pair", torch.uint8)})
END
