#!/usr/bin/env bash
# The size of the hole that albumentations' CoarseDropout cuts, given as shares of the image.
#
# Expected: hole_height_range=(0.5, 1.0) is half of the image to all of it, since (0.5, 0.9) is
# half to nine tenths.
# Seen with albumentations 2.0.8: a range whose end is 1.0 is taken for pixels. The hole has 0 or
# 1 of them, and no warning says so: of 1,000 images of 32x32 none has a hole of two pixels.
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
import warnings

import albumentations as A
import numpy as np

image = np.full((32, 32, 3), 255, np.uint8)


def sizes(high):
    """How many pixels the hole has, of 1,000 images; and the warnings."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        step = A.CoarseDropout((1, 1), (0.5, high), (0.5, high), fill=0, p=1)
        cut = A.Compose([step], seed=0)
        return [int((cut(image=image)["image"] == 0).sum()) // 3 for _ in range(1000)], said


print(f"albumentations {A.__version__}, NumPy {np.__version__}")
shares, _ = sizes(0.9)
ones, said = sizes(1.0)
print(f"0.5 to 0.9: {min(shares)} to {max(shares)} of 1,024 pixels")
print(f"0.5 to 1.0: {min(ones)} to {max(ones)} of 1,024 pixels, {len(said)} warnings")
sys.exit(0 if min(shares) >= 256 and max(ones) <= 1 and not said else 1)
END
