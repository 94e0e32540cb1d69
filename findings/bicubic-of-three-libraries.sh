#!/usr/bin/env bash
# Small pictures enlarged with "bicubic" interpolation by Pillow, torchvision and OpenCV.
#
# Expected: the same pixels up to rounding: all three name the same method.
# Seen with Pillow 13.0.0, torchvision 0.29.2 (with antialias) and opencv-python-headless
# 5.0.0.93: the curve of Pillow and torchvision has a = -0.5, that of OpenCV -0.75. From 24 to 32
# pixels the first two are a level apart, OpenCV up to 17 levels and more.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "pillow==13.0.0" "torchvision==0.29.2" "opencv-python-headless==5.0.0.93" "numpy==2.4.6"
"$work/venv/bin/python" - <<'END'
import sys

import cv2
import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode, functional

print(f"Pillow {PIL.__version__}, torchvision {torchvision.__version__}, OpenCV {cv2.__version__}")
picture = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
by_pillow = np.asarray(Image.fromarray(picture).resize((32, 32), Image.BICUBIC)).astype(int)
tensor = torch.from_numpy(picture).permute(2, 0, 1)
by_torchvision = functional.resize(tensor, [32, 32], InterpolationMode.BICUBIC, antialias=True)
by_torchvision = by_torchvision.permute(1, 2, 0).numpy().astype(int)
by_opencv = cv2.resize(picture, (32, 32), interpolation=cv2.INTER_CUBIC).astype(int)
near = np.abs(by_pillow - by_torchvision).max()
far = np.abs(by_pillow - by_opencv).max()
print(f"Pillow and torchvision: up to {near} levels apart; Pillow and OpenCV: up to {far}")
sys.exit(0 if near <= 1 and far >= 17 else 1)
END
