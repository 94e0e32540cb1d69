"""Train and evaluate on scikit-learn's handwritten digits, which need no download.

    python tools/demo.py [options of train.py]

Everything goes into results/demo, whatever the options say.
"""

import argparse
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
    # --name says where all goes; argparse would refuse these beside it.
    dropped = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("--ckpt", "--out", "--name"):
        dropped.add_argument(option)
    _, options = dropped.parse_known_args(argv)
    digits = ["--dataset", "digits", "--epochs", "10"]
    status = train.main([*digits, *options, "--name", "demo"])
    is_trained = "--dry-run" not in options and "--find-lr" not in options
    return evaluate.main(EVALUATION) if is_trained and status == 0 else status


if __name__ == "__main__":
    utils.run(main)
