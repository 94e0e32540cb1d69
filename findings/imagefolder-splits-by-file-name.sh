#!/usr/bin/env bash
# Hugging Face datasets, load_dataset("imagefolder") of a folder of classes, of which one picture
# or one class has a word such as "test" in its name.
#
# Expected: that picture may be a split of its own, as the documentation has it of words in names; the
# other 99 are there to train on, and all have labels.
# Seen with datasets 5.2.0: a single cat/test-3.png makes a data set of one picture, in a split
# "test" and without a label; the other 99 are left out without a word. So does "my cat eval.png".
# Of the classes "cat" and "crash test" only the second one's pictures are there, without labels.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "datasets==5.2.0" "pillow==13.0.0" "numpy==2.4.6"
cd "$work"
HF_HOME="$work/cache" HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'END'
import sys
from pathlib import Path

import datasets
from PIL import Image

datasets.disable_progress_bars()
print(f"datasets {datasets.__version__}")


def found(place, names):
    """The splits, and how many pictures each has, of 50 pictures of each class.

    `names` are classes, and the names of single pictures that another one gets.
    """
    for label in names["classes"]:
        folder = Path(place, label)
        folder.mkdir(parents=True)
        for number in range(50):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    for before, after in names.get("renamed", {}).items():
        Path(place, before).rename(Path(place, after))
    loaded = datasets.load_dataset("imagefolder", data_dir=place)
    counts = {split: len(images) for split, images in loaded.items()}
    labels = {split: "label" in images.features for split, images in loaded.items()}
    print(f"{place}: {counts}, with labels {labels}")
    return counts, labels


pair = ["cat", "dog"]
plain = found("plain", {"classes": pair})
test = found("one", {"classes": pair, "renamed": {"cat/3.png": "cat/test-3.png"}})
words = found("words", {"classes": pair, "renamed": {"cat/3.png": "cat/my cat eval.png"}})
label = found("class", {"classes": ["cat", "crash test"]})
is_so = plain == ({"train": 100}, {"train": True})
is_so = is_so and test == words == ({"test": 1}, {"test": False})
is_so = is_so and label == ({"test": 50}, {"test": False})
sys.exit(0 if is_so else 1)
END
