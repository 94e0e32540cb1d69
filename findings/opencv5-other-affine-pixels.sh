#!/usr/bin/env bash
# The same cv2.warpAffine, on the same picture, by OpenCV 4 and by OpenCV 5.
#
# Expected: the same pixels, or a rounding apart, as between releases of OpenCV 4.
# Seen with opencv-python-headless 4.13.0.92 and 5.0.0.93: a rotation by 5 degrees of noise with
# cubic interpolation differs in more than half of the values, by 6 levels and more; of a smooth
# picture in a tenth, by 1. So one seed of an augmentation gives two data sets.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/rotate.py" <<'END'
import sys

import cv2
import numpy as np

noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
smooth = cv2.blur(noise, (5, 5))
matrix = cv2.getRotationMatrix2D((31.5, 31.5), 5, 1)
results = {}
for name, picture in (("noise", noise), ("smooth", smooth)):
    for method in ("LINEAR", "CUBIC"):
        flags = getattr(cv2, f"INTER_{method}")
        results[f"{name}, {method.lower()}"] = cv2.warpAffine(
            picture, matrix, (64, 64), flags=flags, borderMode=cv2.BORDER_REFLECT_101
        )
np.savez(sys.argv[1], **results)
print(f"OpenCV {cv2.__version__}, NumPy {np.__version__}")
END
for version in 4.13.0.92 5.0.0.93; do
    python3 -m venv "$work/$version"
    "$work/$version/bin/pip" install --quiet "opencv-python-headless==$version" "numpy==2.4.6"
    "$work/$version/bin/python" "$work/rotate.py" "$work/$version.npz"
done
"$work/5.0.0.93/bin/python" - "$work/4.13.0.92.npz" "$work/5.0.0.93.npz" <<'END'
import sys

import numpy as np

four, five = map(np.load, sys.argv[1:])
found = {}
for name in four.files:
    off = np.abs(four[name].astype(int) - five[name])
    found[name] = (off > 0).mean(), off.max()
    print(f"{name}: {found[name][0]:.0%} of the values differ, by up to {found[name][1]} levels")
share, most = found["noise, cubic"]
is_so = share > 0.5 and most >= 6 and found["smooth, cubic"][1] == 1
sys.exit(0 if is_so else 1)
END
