#!/usr/bin/env bash
# albumentations in a DataLoader's workers, with a seed and without, over several epochs.
#
# Expected: a seed makes the whole training repeatable, and each epoch another one: the second
# time an image is asked for, it is changed in another way.
# Seen with albumentations 2.0.8 and PyTorch 2.14.1: every epoch that starts its workers anew repeats
# the draws of the first, value for value, with A.Compose(..., seed=7) and without a seed too: the
# workers get copies of the generators of the main process, which nobody moves on. With a single
# process or with persistent_workers it is not so.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export NO_ALBUMENTATIONS_UPDATE=1  # or its import asks the network
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "albumentations==2.0.8" "opencv-python-headless==5.0.0.93" "torch==2.14.1" "numpy==2.4.6"
cat > "$work/epochs.py" <<'END'
import sys

import albumentations as A
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset


class Images(Dataset):
    def __init__(self, seed):
        self.change = A.Compose([A.RandomBrightnessContrast((-0.4, 0.4), p=1)], seed=seed)

    def __len__(self):
        return 32

    def __getitem__(self, index):
        image = np.full((8, 8, 3), 128, np.uint8)
        return int(self.change(image=image)["image"][0, 0, 0])


def repeats(seed, **settings):
    """Whether two epochs of a loader, in the same order, are the same."""
    torch.manual_seed(0)
    loader = DataLoader(Images(seed), batch_size=8, **settings)
    first, second = (torch.cat(list(loader)) for _ in range(2))
    return torch.equal(first, second)


if __name__ == "__main__":
    print(f"albumentations {A.__version__}, PyTorch {torch.__version__}")
    found = []
    for seed in (7, None):
        trials = {
            "no workers": repeats(seed),
            "two workers, anew each epoch": repeats(seed, num_workers=2),
            "two workers that stay": repeats(seed, num_workers=2, persistent_workers=True),
        }
        for name, is_repeated in trials.items():
            verb = "repeats" if is_repeated else "differs from"
            print(f"seed {seed}, {name}: the second epoch {verb} the first")
        found += trials.values()
    sys.exit(0 if found == 2 * [False, True, False] else 1)
END
"$work/venv/bin/python" "$work/epochs.py"
