#!/usr/bin/env bash
# ISONoise of albumentations, which is to be the noise of a camera's sensor.
#
# Expected: as documented, random shifts of the hue, of which a color_shift of 1 stands for 360
# degrees, and noise of the luminance in all channels.
# Seen with albumentations 2.0.8: by default 99 of 100 pixels stay as they were, the others become
# brighter, none darker, and the hue turns by hundredths of a degree: with the strongest
# setting by half a degree, where the documentation makes 180. An image of one colour never
# changes. The deviation is drawn for hues of 0 to 1, and added to degrees.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export NO_ALBUMENTATIONS_UPDATE=1
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "albumentations==2.0.8" "opencv-python-headless==5.0.0.93" \
    "numpy==2.4.6"
"$work/venv/bin/python" - <<'END'
import sys

import albumentations as A
import cv2
import numpy as np

print("albumentations", A.__version__, "OpenCV", cv2.__version__)
rows, columns = np.mgrid[0:64, 0:64] / 63
channels = [60 + 120 * columns, 40 + 120 * rows, 200 - 100 * rows * columns]
image = np.stack(channels, -1).round().astype(np.uint8)
flat = np.full((64, 64, 3), (200, 100, 50), np.uint8)


def noisy(image, **settings):
    """The image with noise by each of 20 seeds: (20, H, W, 3)."""
    results = []
    for seed in range(20):
        step = A.Compose([A.ISONoise(p=1, **settings)], seed=seed)
        results.append(step(image=image)["image"])
    return np.stack(results)


def hue(image):
    return cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[..., 0]  # of floats in degrees


change = noisy(image).astype(int) - image
same, darker = (change == 0).all(-1).mean(), (change.sum(-1) < 0).mean()
print(f"by default {same:.1%} of the pixels stay as they were, {darker:.1%} become darker")
is_still = bool((noisy(flat, intensity=(0.5, 0.5)) == flat).all())
print("an image of one colour, intensity 0.5, stays as it was:", is_still)
floats = (image / 255).astype(np.float32)
turned = []
for result in noisy(floats, color_shift=(1.0, 1.0), intensity=(0.5, 0.5)):
    # Without the pixels that the noise of the luminance struck.
    is_dim = np.abs(result.max(-1) - floats.max(-1)) < 0.02
    turned.append(((hue(result) - hue(floats) + 180) % 360 - 180)[is_dim])
deviation = np.concatenate(turned).std()
print(f"color_shift 1, intensity 0.5: hue turned by a deviation of {deviation:.3f} degrees, not 180")
sys.exit(0 if same > 0.98 and darker == 0 and is_still and deviation < 1 else 1)
END
