#!/usr/bin/env bash
# The glass blur of albumentations, which corrupts test images as CIFAR-10-C does.
#
# Expected: between its two blurs neighbouring pixels change places, no further than max_delta
# apart, so that each is there once before and after.
# Seen with albumentations 2.0.8, of an image of 256 different pixels, almost without blur and with
# max_delta=1: in the default mode "fast" 44 of them are lost and others are there twice or more.
# In mode "exact" none of a grey image is lost, but some move by 6 pixels; of a colour image 70 are
# lost, more than by "fast": what is exchanged are views of the image, and the first is overwritten
# before the second is read.
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
import numpy as np

SIDE = 16
grey = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE)  # each value tells its place
rows, columns = np.indices(grey.shape)
IMAGES = {"grey": grey, "colour": np.stack([grey] * 3, -1)}
print(f"albumentations {A.__version__}, NumPy {np.__version__}")
lost, farthest = {}, {}
for name, image in IMAGES.items():
    for mode in ("fast", "exact"):
        step = A.GlassBlur(sigma=0.01, max_delta=1, iterations=1, mode=mode, p=1)
        result = A.Compose([step], seed=0)(image=image)["image"]
        result = result.reshape(SIDE, SIDE, -1)[..., 0].astype(int)
        from_row, from_column = np.divmod(result, SIDE)
        key = f"{name}, {mode}"
        lost[key] = grey.size - len(np.unique(result))
        farthest[key] = max(abs(from_row - rows).max(), abs(from_column - columns).max())
        print(f"{key}: {lost[key]} of 256 lost, moved by {farthest[key]} pixels at most")
is_so = list(lost.values()) == [44, 0, 44, 70] and farthest["grey, exact"] == 6
sys.exit(0 if is_so else 1)
END
