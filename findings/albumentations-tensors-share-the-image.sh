#!/usr/bin/env bash
# albumentations.pytorch.ToTensorV2 at the end of a pipeline, with images that are kept in memory.
#
# Expected: the tensor is a new one, as that of torchvision's ToTensor; what is done to it in place,
# such as normalising or erasing, leaves the data set alone.
# Seen with albumentations 2.0.8: where no step before it happened to strike, the tensor is the image
# itself, so that a step in place changes the data set for all epochs that follow, image by image,
# as often as all steps are left out. Steps that always strike can pass the image on as well: Affine
# does where it has nothing to do.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export NO_ALBUMENTATIONS_UPDATE=1  # or its import asks the network
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "albumentations==2.0.8" "opencv-python-headless==5.0.0.93" "torch==2.14.1" "numpy==2.4.6"
"$work/venv/bin/python" - <<'END'
import sys

import albumentations as A
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2

print(f"albumentations {A.__version__}, PyTorch {torch.__version__}")
images = np.full((1000, 32, 32, 3), 100, dtype=np.uint8)  # a data set
transform = A.Compose([A.HorizontalFlip(p=0.5), A.CoarseDropout(p=0.5), ToTensorV2()], seed=0)
changed = []
for epoch in range(3):
    for image in images:
        transform(image=image)["image"].zero_()  # some step in place
    changed.append(float((images == 0).mean()))
    print(f"after epoch {epoch + 1}: {100 * changed[-1]:.0f} % of the data set was overwritten")
unmoved = A.Compose([A.Affine(rotate=0, p=1)])(image=images[0])["image"]
print("Affine by 0 degrees passes the image on:", np.shares_memory(unmoved, images))
is_so = 0.2 < changed[0] < 0.3 and changed[2] > 0.5 and np.shares_memory(unmoved, images)
sys.exit(0 if is_so else 1)
END
