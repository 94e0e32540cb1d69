#!/usr/bin/env bash
# Geometric augmentations of albumentations at strength 0: a rotation by 0 degrees, a distortion of 0.
#
# Expected: the image itself, as Rotate, Affine, ShiftScaleRotate, ElasticTransform, Perspective and
# ThinPlateSpline give, so that a small strength is a small change.
# Seen with albumentations 2.0.8, on 32x32 pixels; larger strengths come on top of it:
# - SafeRotate moves the image by half a pixel to the right and down, and so blurs it;
# - OpticalDistortion (mode "camera", its default) moves it by half a pixel to the left and up, and
#   half of the last row and column is black;
# - GridDistortion stretches each of its cells by up to 0.8 pixels; the last row and column are black;
# - PiecewiseAffine stretches the borders: at a scale of a millionth each edge shows what was 4
#   pixels further in; at a scale of 0 it returns an image of 1x2 pixels.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export NO_ALBUMENTATIONS_UPDATE=1  # or its import asks the network
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
UNIT = 6  # levels from one column, or row, to the next
places = np.uint8(60 + UNIT * np.arange(SIDE))
across, down = np.tile(places, (SIDE, 1)), np.tile(places[:, None], (1, SIDE))
image = np.stack([across, down, across], -1)
shown = {}
for name, step in STEPS.items():
    result = A.Compose([step], seed=0)(image=image)["image"].astype(float)
    # How many pixels further right, and further down, that was which is shown in the middle.
    shown[name] = [(result[16, :, 0] - places) / UNIT, (result[:, 16, 1] - places) / UNIT]
    for axis, values in zip(("right", "down"), shown[name]):
        print(f"{name}, further {axis} by", *np.round(values, 1)[[0, 1, 15, 16, -2, -1]])
shape = A.Compose([A.PiecewiseAffine((0, 0), p=1)], seed=0)(image=image)["image"].shape
print(f"PiecewiseAffine of scale 0: an image of {shape[0]}x{shape[1]}")
still = ["Rotate", "Affine", "ElasticTransform", "Perspective", "ThinPlateSpline"]
is_so = shape[:2] == (1, 2)
for name, axes in shown.items():
    for values in axes:
        if name in still:
            is_so &= abs(values).max() < 0.2
        elif name == "SafeRotate":
            is_so &= abs(values[5:-5] + 0.5).max() < 0.2
        elif name == "OpticalDistortion":
            is_so &= abs(values[5:-5] - 0.5).max() < 0.2
        elif name == "GridDistortion":
            is_so &= 0.5 < abs(values[:-1]).max() < 1.2
        elif name == "PiecewiseAffine":
            is_so &= values[0] > 3 and values[-1] < -3
sys.exit(0 if is_so else 1)
END
