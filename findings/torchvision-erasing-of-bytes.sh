#!/usr/bin/env bash
# torchvision's v2.RandomErasing(value="random") on images of bytes, which it accepts and which
# v2's pipelines recommend to keep as long as possible.
#
# Expected: the erased rectangle is noise over the range of the image, 0 to 255.
# Seen with torchvision 0.29.2 and PyTorch 2.14.1: it is drawn from the normal distribution of mean 0
# and deviation 1, meant for images that are normalised, and cut to bytes: two thirds of it are 0,
# the rest 1 to 4, or 252 to 255, as negative numbers wrap around. Nothing says so.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.14.1" "torchvision==0.29.2" "numpy==2.4.6"
"$work/venv/bin/python" - <<'END'
import sys

import torch
import torchvision
from torchvision.transforms import v2

GREY = 100
print(f"torchvision {torchvision.__version__}, PyTorch {torch.__version__}")
torch.manual_seed(0)
erase = v2.RandomErasing(p=1, scale=(0.25, 0.25), ratio=(1, 1), value="random")
image = torch.full((3, 64, 64), GREY, dtype=torch.uint8)
result = erase(image)
erased = result[result != GREY]
values, counts = erased.unique(return_counts=True)
for value, count in zip(values.tolist(), counts.tolist()):
    print(f"value {value}: {100 * count / len(erased):.1f} % of what was erased")
share_of_0 = (erased == 0).float().mean()
is_so = len(erased) > 2000 and bool(((values < 6) | (values > 250)).all())
is_so = is_so and 0.6 < share_of_0 < 0.75 and bool((values > 250).any())
sys.exit(0 if is_so else 1)
END
