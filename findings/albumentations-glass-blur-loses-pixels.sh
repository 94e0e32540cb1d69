#!/usr/bin/env bash
# The glass blur of albumentations, which corrupts test images as CIFAR-10-C does.
#
# Expected: between its two blurs neighbouring pixels change places, no further than max_delta
# apart, so that each is there once before and after.
# Seen with albumentations 2.0.8, of an image of 256 different values, almost without blur: in
# the default mode "fast" all pixels change places at once, so that 44 of 256 values are lost and
# others are there twice or more, for max_delta=1. In mode "exact" they do so one after another:
# none is lost, but one that is exchanged again moves on, by up to 6 pixels for max_delta=1.
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

SIDE = 16
image = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE)  # each value tells its place
rows, columns = np.indices(image.shape)
print(f"albumentations {A.__version__}, NumPy {np.__version__}")
lost, farthest = {}, {}
for mode in ("fast", "exact"):
    blur = A.Compose([A.GlassBlur(sigma=0.01, max_delta=1, iterations=1, mode=mode, p=1)], seed=0)
    result = blur(image=image)["image"]
    from_row, from_column = np.divmod(result.astype(int), SIDE)
    lost[mode] = image.size - len(np.unique(result))
    farthest[mode] = max(abs(from_row - rows).max(), abs(from_column - columns).max())
    print(f"{mode}: {lost[mode]} of 256 values lost, moved by {farthest[mode]} pixels at most")
is_so = lost["fast"] > 20 and lost["exact"] == 0 and farthest["exact"] > 2
sys.exit(0 if is_so else 1)
END
