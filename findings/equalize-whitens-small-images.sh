#!/usr/bin/env bash
# Histogram equalisation of a small image, a step of AutoAugment, RandAugment and TrivialAugment.
#
# Expected: the levels are spread evenly. As little becomes white as was the brightest level.
# Seen with Pillow 13.0.0, torchvision 0.29.2 and OpenCV 5.0.0: Pillow and torchvision round the
# number of pixels of a level down to a whole one. Of a ramp of 32x32 pixels this is 3 for 3.98, so
# that all levels are reached too early and a quarter of the image is white; of 20x20 pixels 36 %;
# of 16x16 nothing is changed at all. Of 224x224 it is right. OpenCV's equalizeHist is right for
# all of them.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.14.1" "torchvision==0.29.2" "Pillow==13.0.0" "opencv-python-headless==5.0.0.93" "numpy==2.4.6"
"$work/venv/bin/python" -W ignore - <<'END'
import sys

import cv2
import numpy as np
import PIL
import torch
import torchvision
from PIL import Image, ImageOps
from torchvision.transforms.v2.functional import equalize

print(f"Pillow {PIL.__version__}, torchvision {torchvision.__version__}, OpenCV {cv2.__version__}")
white, unchanged = {}, {}
for side in (16, 20, 24, 32, 64, 224):
    count = side * side
    ramp = (np.arange(count) * 128 // count).astype(np.uint8).reshape(side, side)  # levels 0 to 127
    results = {
        "Pillow": np.asarray(ImageOps.equalize(Image.fromarray(ramp))),
        "torchvision": equalize(torch.from_numpy(ramp)[None])[0].numpy(),
        "OpenCV": cv2.equalizeHist(ramp),
    }
    for name, result in results.items():
        white[name, side] = (result == 255).mean()
        unchanged[name, side] = bool((result == ramp).all())
    shares = ", ".join(f"{name} {white[name, side]:.1%}" for name in results)
    note = "; Pillow changes nothing" if unchanged["Pillow", side] else ""
    print(f"{side}x{side}: the brightest level has {(ramp == 127).mean():.1%}; white are {shares}{note}")

too_white = all(white[name, 32] > 0.2 and white[name, 20] > 0.3 for name in ("Pillow", "torchvision"))
as_it_was = unchanged["Pillow", 16] and unchanged["torchvision", 16]
right = max(white["OpenCV", side] for side in (16, 20, 24, 32, 64, 224)) < 0.02
large = max(white[name, 224] for name in ("Pillow", "torchvision")) < 0.02
sys.exit(not (too_white and as_it_was and right and large))
END
