#!/usr/bin/env bash
# Geometric augmentations of albumentations at strength 0: a rotation by 0 degrees, a distortion of 0.
#
# Expected: the image itself, as Rotate, Affine, ShiftScaleRotate, ElasticTransform, Perspective and
# ThinPlateSpline give, so that a small strength is a small change.
# Seen with albumentations 2.0.8, on 32x32 pixels; larger strengths come on top of it:
# - SafeRotate moves the image by half a pixel to the right and down, and so blurs it;
# - OpticalDistortion (mode "camera", its default) moves it by half a pixel to the left and up, and
#   half of the last row and column is black;
# - GridDistortion stretches each of its cells by up to a pixel; the last row and column are black;
# - PiecewiseAffine stretches the borders: at a scale of a millionth each edge shows what was 4
#   pixels further in; at a scale of 0 it returns an image of 1x2 pixels.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "albumentations==2.0.8" "opencv-python-headless==5.0.0.93" "numpy==2.4.6"
"$work/venv/bin/python" - <<'END'
import sys

import albumentations as A
import cv2
import numpy as np

SIDE = 32
STEPS = {
    "Rotate": A.Rotate((0, 0), p=1),
    "Affine": A.Affine(rotate=0, scale=1, p=1),
    "ElasticTransform": A.ElasticTransform(0, 4, p=1),
    "Perspective": A.Perspective((0, 0), p=1),
    "ThinPlateSpline": A.ThinPlateSpline((1e-6, 1e-6), p=1),
    "SafeRotate": A.SafeRotate((0, 0), p=1),
    "OpticalDistortion": A.OpticalDistortion((0, 0), p=1),
    "GridDistortion": A.GridDistortion(5, (0, 0), p=1),
    "PiecewiseAffine": A.PiecewiseAffine((1e-6, 1e-6), p=1),
}
print(f"albumentations {A.__version__}, OpenCV {cv2.__version__}, NumPy {np.__version__}")
ramp = np.tile(np.arange(SIDE, dtype=np.float32), (SIDE, 1))  # each value tells its column
moved = {}
for name, step in STEPS.items():
    shifts = A.Compose([step], seed=0)(image=ramp)["image"][SIDE // 2] - ramp[0]
    moved[name] = abs(shifts).max()
    print(f"{name}: the columns show what was further right by", *np.round(shifts, 2)[[0, 1, 2, 15, 16, -3, -2, -1]])
shape = A.Compose([A.PiecewiseAffine((0, 0), p=1)], seed=0)(image=ramp)["image"].shape
print(f"PiecewiseAffine of scale 0: an image of {shape[0]}x{shape[1]}")
still = ["Rotate", "Affine", "ElasticTransform", "Perspective", "ThinPlateSpline"]
is_so = all((moved[name] < 0.01) == (name in still) for name in STEPS)
sys.exit(0 if is_so and moved["PiecewiseAffine"] > 3 and shape == (1, 2) else 1)
END
