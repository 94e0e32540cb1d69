#!/usr/bin/env bash
# albumentations.SafeRotate, which rotates and then shrinks until the whole image fits.
#
# Expected: a rotation by 0 degrees is the image itself, and one by 90 degrees of a square image
# np.rot90 of it, as A.Rotate, A.Affine and A.ShiftScaleRotate give.
# Seen with albumentations 2.0.8: every result is shifted by half a pixel to the right and down.
# That blurs it, even at 0 degrees, and mixes the border's colour into the first row and column.
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
import numpy as np

SIDE = 32
print(f"albumentations {A.__version__}, NumPy {np.__version__}")
ramp = np.tile(np.arange(SIDE, dtype=np.float32), (SIDE, 1))  # each value tells its column
noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def rotated(kind, image, degrees):
    return kind((degrees, degrees), p=1)(image=image)["image"]


is_so = True
for kind in (A.Rotate, A.SafeRotate):
    for degrees in (0, 90):
        exact = np.rot90(noise, degrees // 90)
        differing = (rotated(kind, noise, degrees) != exact).mean()
        print(f"{kind.__name__} by {degrees} degrees: {100 * differing:.0f} % of noise differs")
        is_so &= differing == 0 if kind is A.Rotate else differing > 0.9
row = rotated(A.SafeRotate, ramp, 0)[SIDE // 2]
print("columns 0 to 31 in SafeRotate by 0 degrees:", *row[:4], "...", *row[-2:])
is_so &= bool(np.allclose(row[1:], np.arange(1, SIDE) - 0.5))
sys.exit(0 if is_so else 1)
END
