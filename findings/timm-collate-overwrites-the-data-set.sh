#!/usr/bin/env bash
# A data set in memory whose batches timm's FastCollateMixup makes.
#
# Expected: a collate function makes new batches of the images, and leaves these as they are, as
# with mode="batch" and "elem".
# Seen with timm 1.0.31 and PyTorch 2.14.1: with mode="pair" and "half", CutMix writes into the very
# images of the data set. Of 64 images in a TensorDataset, after five epochs, all ("pair") and
# most ("half") have pieces of others, and keep their own labels.
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

import torch
from timm.data.mixup import FastCollateMixup
from torch.utils.data import DataLoader, TensorDataset

print(f"timm {version('timm')}, PyTorch {torch.__version__}")
changed = {}
for mode in ("batch", "elem", "pair", "half"):
    torch.manual_seed(0)
    images = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8)
    before = images.clone()
    collate = FastCollateMixup(mixup_alpha=0, cutmix_alpha=1, mode=mode, num_classes=10)
    data = TensorDataset(images, torch.arange(64) % 10)
    for _ in range(5):
        for _ in DataLoader(data, 16, shuffle=True, collate_fn=collate):
            pass
    changed[mode] = (images != before).flatten(1).any(1).float().mean().item()
    pixels = (images != before).float().mean().item()
    print(f"{mode:5} {changed[mode]:.0%} of the images of the data set are others, {pixels:.0%} of their pixels")
same = changed["batch"] == changed["elem"] == 0
sys.exit(not (same and changed["pair"] > 0.9 and changed["half"] > 0.8))
END
