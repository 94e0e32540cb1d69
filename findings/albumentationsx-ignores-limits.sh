#!/usr/bin/env bash
# The same three lines with albumentations, and with its successor albumentationsx, which is
# imported by the same name.
#
# Expected: the same augmentation, or an error that says what has another name now.
# Seen with albumentations 2.0.8 and albumentationsx 2.5.1: the successor takes shift_range,
# scale_range and rotate_range, and ignores shift_limit, scale_limit and rotate_limit with a
# warning. Images that should turn by up to 5 degrees turn by up to 45. A.Compose(strict=True)
# raises ValueError.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/turn.py" <<'END'
import sys
import warnings

import albumentations as A
import cv2
import numpy as np

bar = np.zeros((101, 101, 3), np.uint8)
bar[48:53] = 255  # whose direction tells by how much the image was turned


def angle(image):
    rows, columns = np.nonzero(image[..., 0] > 127)
    cloud = np.stack([columns - columns.mean(), rows - rows.mean()])
    x, y = np.linalg.eigh(cloud @ cloud.T)[1][:, -1]
    return abs(np.degrees(np.arctan2(y, x) + np.pi / 2) % 180 - 90)


with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    step = A.ShiftScaleRotate(shift_limit=0, scale_limit=0, rotate_limit=5, p=1)
turn = A.Compose([step], seed=0)
most = max(angle(turn(image=bar)["image"]) for _ in range(300))
try:
    A.Compose([step], strict=True)
    strict = "nothing"
except ValueError as error:
    strict = str(error)
print(f"{sys.argv[1]} {A.__version__}, OpenCV {cv2.__version__}: up to {most:.1f} degrees")
print("warnings:", [str(one.message) for one in said], " strict says:", strict)
is_ignored = most > 30 and "shift_limit" in strict
sys.exit(0 if is_ignored == (sys.argv[1] == "albumentationsx") else 1)
END
status=0
for package in albumentations==2.0.8 albumentationsx==2.5.1; do
    name=${package%==*}
    python3 -m venv "$work/$name"
    "$work/$name/bin/pip" install --quiet "$package" "torch==2.14.1" "opencv-python-headless==5.0.0.93" "numpy==2.4.6"
    "$work/$name/bin/python" "$work/turn.py" "$name" || status=1
done
exit "$status"
