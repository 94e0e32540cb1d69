#!/usr/bin/env bash
# A picture shifted by more than its own width, with borders that reflect or wrap around: what
# cv2.warpAffine and cv2.remap give with cubic interpolation.
#
# Expected: the reflected or repeated picture, as with nearest and linear interpolation. For a
# shift by whole pixels all three have to agree.
# Seen with OpenCV 5.0.0 (opencv-python-headless 5.0.0.93): cubic interpolation repeats one and
# the same column wherever a place lies more than a width outside, for BORDER_REFLECT,
# BORDER_REFLECT_101 and BORDER_WRAP. BORDER_REPLICATE, nearest and linear are right. OpenCV
# 4.13.0 is right throughout.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/shift.py" <<'END'
import sys

import cv2
import numpy as np

SIDE = 32
picture = np.tile(np.arange(SIDE, dtype=np.uint8), (SIDE, 1))  # each column its own number
METHODS = {"nearest": cv2.INTER_NEAREST, "linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC}
BORDERS = {
    "reflect": (cv2.BORDER_REFLECT, "symmetric"),
    "reflect 101": (cv2.BORDER_REFLECT_101, "reflect"),
    "wrap": (cv2.BORDER_WRAP, "wrap"),
    "replicate": (cv2.BORDER_REPLICATE, "edge"),
}


def differing(border, padding, method, shift):
    """Columns in which warpAffine, and remap, differ from NumPy's own padding."""
    padded = np.pad(picture, ((0, 0), (shift, 0)), mode=padding)
    expected = padded[0, :SIDE]
    matrix = np.array([[1.0, 0, shift], [0, 1, 0]])
    warped = cv2.warpAffine(picture, matrix, (SIDE, SIDE), flags=method, borderMode=border)
    x, y = np.meshgrid(np.arange(SIDE, dtype=np.float32), np.arange(SIDE, dtype=np.float32))
    mapped = cv2.remap(picture, x - shift, y, method, borderMode=border)
    return int((warped[0] != expected).sum()), int((mapped[0] != expected).sum())


print(f"OpenCV {cv2.__version__}, NumPy {np.__version__}")
wrong = set()
for name, (border, padding) in BORDERS.items():
    for method, number in METHODS.items():
        for shift in (20, 40, 70):
            counts = differing(border, padding, number, shift)
            if counts != (0, 0):
                wrong.add((name, method, shift))
                print(f"{name}, {method}, shift {shift}: {counts[0]} and {counts[1]} of 32 columns")
print("wrong:", ", ".join(f"{name} {method} {shift}" for name, method, shift in sorted(wrong)) or "nothing")
expected = {(name, "cubic", shift) for name in ("reflect", "reflect 101", "wrap") for shift in (40, 70)}
if sys.argv[1] == "right":
    expected = set()
sys.exit(0 if wrong == expected else 1)
END
status=0
for version in 4.13.0.92=right 5.0.0.93=wrong; do
    python3 -m venv "$work/${version%=*}"
    "$work/${version%=*}/bin/pip" install --quiet "opencv-python-headless==${version%=*}" "numpy==2.4.6"
    "$work/${version%=*}/bin/python" "$work/shift.py" "${version#*=}" || status=1
done
exit "$status"
