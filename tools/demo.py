"""Train and evaluate on scikit-learn's handwritten digits, which need no download.

    python tools/demo.py [options of train.py]

Everything goes into results/demo.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import evaluate
import train
import utils

OUT = "results/demo"
# What evaluates it, as options of evaluate.py.
EVALUATION = ["--ckpt", f"{OUT}/best.pt", "--out", OUT]


def main(argv=None):
    options = sys.argv[1:] if argv is None else argv
    digits = ["--dataset", "digits", "--epochs", "10", "--name", "demo"]
    return train.main([*digits, *options]) or evaluate.main(EVALUATION)


if __name__ == "__main__":
    utils.run(main)
