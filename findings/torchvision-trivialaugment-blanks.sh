#!/usr/bin/env bash
# torchvision's TrivialAugmentWide, which wants no setting, on images of 32x32 pixels.
#
# Expected: its shifts are for the size of the image, as those of RandAugment and AutoAugment are.
# Seen with torchvision 0.29.2 and PyTorch 2.14.1: they are of up to 32 pixels, whatever the size.
# Of 32x32 pixels 7 % of all images lose half or more, and one in about 215 all of them: it is
# black, and keeps its label. RandAugment at its highest strength shifts the same image by 14
# pixels at most.
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

COUNT = 10_000
print(f"torchvision {torchvision.__version__}, PyTorch {torch.__version__}")
torch.set_num_threads(1)
torch.manual_seed(0)
image = torch.full((3, 32, 32), 100, dtype=torch.uint8)  # what leaves it becomes black


def black_shares(augment):
    """Of each of so many augmented images, the share of its pixels that are black."""
    shares = []
    for _ in range(COUNT):
        shares.append((augment(image) == 0).all(0).float().mean())
    return torch.stack(shares)


trivial = black_shares(v2.TrivialAugmentWide())
strongest = black_shares(v2.RandAugment(num_ops=1, magnitude=30))
for name, shares in (("TrivialAugmentWide", trivial), ("RandAugment", strongest)):
    print(
        f"{name}: {100 * (shares >= 0.5).float().mean():.2f} % lose half or more, "
        f"{100 * (shares == 1).float().mean():.2f} % all; most lost {shares.max():.0%}"
    )
is_so = (trivial == 1).sum() > 20 and (trivial >= 0.5).sum() > 500
sys.exit(0 if is_so and abs(strongest.max() - 14 / 32) < 0.02 else 1)
END
