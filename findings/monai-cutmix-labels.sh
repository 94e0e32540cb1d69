#!/usr/bin/env bash
# The labels that MONAI's CutMix gives.
#
# Expected: auglabels of `augimg, auglabels = CutMix(...)(images, labels)` are mixed by the share of
# the pixels, as the name of its method apply_on_labels says.
# Seen with MONAI 1.6.1 and PyTorch 2.14.1: labels in one-hot form are cut like images. They have no
# height and width, so that the whole row is taken: an image that keeps 76 to 100 % of its pixels has
# nothing left of its own label. CutMixd(keys="image") changes nothing at all where label_keys is
# left out.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.14.1" "monai==1.6.1" "numpy==2.4.6"
"$work/venv/bin/python" -W ignore - <<'END'
import sys
from importlib.metadata import version

import torch
from monai.transforms import CutMix, CutMixd

IMAGES = 6

print(f"MONAI {version('monai')}, PyTorch {torch.__version__}")
images = torch.arange(1.0, IMAGES + 1).view(IMAGES, 1, 1, 1).repeat(1, 3, 32, 32)
labels = torch.eye(IMAGES)
cut = CutMix(batch_size=IMAGES)
cut.set_random_state(1)
mixed, mixed_labels = cut(images, labels)
kept = (mixed == images).float().mean((1, 2, 3))
own = mixed_labels.diagonal()
paired = [number for number in range(IMAGES) if kept[number] < 1]
print("pixels of its own", *(f"{share:.2f}" for share in kept))
print("label of its own ", *(f"{share:.2f}" for share in own))
lost = len(paired) > 2 and all(own[number] == 0 and kept[number] > 0.7 for number in paired)

result = CutMixd(keys="image", batch_size=IMAGES)({"image": images.clone()})["image"]
changed = int((result != images).sum())
print("CutMixd without label_keys changes", changed, "values")
sys.exit(not (lost and changed == 0))
END
