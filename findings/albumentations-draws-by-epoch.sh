#!/usr/bin/env bash
# albumentations in a DataLoader's workers, with a seed, over several epochs.
#
# Expected: a seed makes the whole training repeatable, and each epoch another one: the second
# time an image is asked for, it is changed in another way.
# Seen with albumentations 2.0.8 and PyTorch 2.14.1: with A.Compose(..., seed=...) every epoch
# that starts its workers anew repeats the draws of the first, value for value. With a single
# process or with persistent_workers it does not.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "albumentations==2.0.8" "opencv-python-headless==5.0.0.93" "torch==2.14.1" "numpy==2.4.6"
cat > "$work/epochs.py" <<'END'
import sys

import albumentations as A
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset


class Images(Dataset):
    def __init__(self):
        self.change = A.Compose([A.RandomBrightnessContrast((-0.4, 0.4), p=1)], seed=7)

    def __len__(self):
        return 32

    def __getitem__(self, index):
        image = np.full((8, 8, 3), 128, np.uint8)
        return int(self.change(image=image)["image"][0, 0, 0])


def repeats(**settings):
    """Whether two epochs of a loader, in the same order, are the same."""
    torch.manual_seed(0)
    loader = DataLoader(Images(), batch_size=8, **settings)
    first, second = (torch.cat(list(loader)) for _ in range(2))
    return torch.equal(first, second)


if __name__ == "__main__":
    print(f"albumentations {A.__version__}, PyTorch {torch.__version__}")
    found = {
        "no workers": repeats(),
        "two workers, anew each epoch": repeats(num_workers=2),
        "two workers that stay": repeats(num_workers=2, persistent_workers=True),
    }
    for name, is_repeated in found.items():
        print(f"{name}: the second epoch {'repeats' if is_repeated else 'differs from'} the first")
    sys.exit(0 if list(found.values()) == [False, True, False] else 1)
END
"$work/venv/bin/python" "$work/epochs.py"
