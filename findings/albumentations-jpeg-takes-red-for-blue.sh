#!/usr/bin/env bash
# albumentations' ImageCompression, of pipelines that augment or measure robustness, on an RGB image,
# which all of its steps want.
#
# Expected: the pixels of a JPEG of that quality, as any other program writes and reads it.
# Seen with albumentations 2.0.8, OpenCV 5.0.0 and Pillow 13.0.0: the channels are handed to OpenCV
# as they are, which takes them for BGR. So red counts as blue in the luminance (0.114 in place of
# 0.299) and in the two channels that are halved. It is, to the bit, Pillow's JPEG of the image with
# red and blue exchanged, exchanged back; from that of the image itself it is levels away.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "albumentations==2.0.8" "opencv-python-headless==5.0.0.93" \
    "numpy==2.4.6" "pillow==13.0.0"
export NO_ALBUMENTATIONS_UPDATE=1
"$work/venv/bin/python" - <<'END'
import io
import sys

import albumentations as A
import cv2
import numpy as np
import PIL
from PIL import Image

QUALITY = 20


def jpeg(pixels):
    """An image written as JPEG of quality 20 and chroma 4:2:0, and read again."""
    file = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.save(file, "JPEG", quality=QUALITY, subsampling="4:2:0")
    return np.asarray(Image.open(file))


print(f"albumentations {A.__version__}, OpenCV {cv2.__version__}, Pillow {PIL.__version__}")
# Red, green and blue waves across, down and both.
down, across = np.mgrid[:64, :64] / 10
waves = np.stack([np.sin(across), np.sin(down), np.sin(across + down)], -1)
image = np.rint(127.5 + 127.5 * waves).astype(np.uint8)
compress = A.Compose([A.ImageCompression("jpeg", (QUALITY, QUALITY), p=1)])
found = compress(image=image)["image"].astype(int)
exchanged = jpeg(image[..., ::-1])[..., ::-1]
from_own = np.abs(found - jpeg(image)).mean()
from_exchanged = np.abs(found - exchanged).max()
print(f"from Pillow's JPEG of the image: {from_own:.1f} levels on average")
print(f"from that with red and blue exchanged: {from_exchanged} at most")
sys.exit(0 if from_exchanged == 0 and from_own > 2 else 1)
END
