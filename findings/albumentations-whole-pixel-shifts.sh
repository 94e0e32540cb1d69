#!/usr/bin/env bash
# Small images that albumentations shifts by a share of their size, with rotation and scale off.
#
# Expected: shift_limit=0.0625 on 32 pixels shifts by up to 2 pixels and by parts of one, as the
# interpolation of the same step suggests.
# Seen with albumentations 2.0.8: ShiftScaleRotate(shift_limit=...) and Affine(translate_percent=...)
# cut every shift to whole pixels towards 0. Of 2,000 shifts half are 0, a quarter each are -1
# and 1, none is -2 or 2. A quarter of the images do not move in either direction.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export NO_ALBUMENTATIONS_UPDATE=1  # or its import asks the network
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "albumentations==2.0.8" "opencv-python-headless==5.0.0.93" "numpy==2.4.6"
"$work/venv/bin/python" -W ignore - <<'END'
import sys
from collections import Counter

import albumentations as A
import cv2
import numpy as np

SIDE, LIMIT, COUNT = 32, 0.0625, 2_000
ramp = np.zeros((SIDE, SIDE, 3), np.uint8)
ramp[..., 0] = 8 * np.arange(SIDE)  # tells the shift along a row
ramp[..., 1] = 8 * np.arange(SIDE)[:, None]  # and along a column
LINEAR = {"interpolation": cv2.INTER_LINEAR, "border_mode": cv2.BORDER_REPLICATE, "p": 1}
STEPS = {
    "ShiftScaleRotate": A.ShiftScaleRotate(LIMIT, 0, 0, **LINEAR),
    "Affine": A.Affine(translate_percent=(-LIMIT, LIMIT), **LINEAR),
}

print(f"albumentations {A.__version__}, OpenCV {cv2.__version__}, NumPy {np.__version__}")
is_so = True
for name, step in STEPS.items():
    shift = A.Compose([step], seed=0)
    middle = [shift(image=ramp)["image"][SIDE // 2, SIDE // 2] for _ in range(COUNT)]
    # A shift by a pixel changes the ramp by 8 levels, one by an eighth by 1.
    moved = [tuple((8 * (SIDE // 2) - pixel[:2].astype(int)) / 8) for pixel in middle]
    unmoved = sum(pair == (0, 0) for pair in moved) / COUNT
    is_so &= 0.2 < unmoved < 0.3
    for direction, along in zip(("across", "down"), zip(*moved)):
        counts = Counter(map(float, along))
        print(f"{name}, {direction}: {dict(sorted(counts.items()))}")
        is_so &= set(counts) == {-1, 0, 1} and 0.45 < counts[0] / COUNT < 0.55
    print(f"{name}: not moved at all {unmoved:.0%}")
sys.exit(0 if is_so else 1)
END
