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
    given = sys.argv[1:] if argv is None else argv
    options = ["--dataset", "digits", "--epochs", "10", *given, "--name", "demo"]
    args, _ = train.parse_arguments(options)
    leaves_best = not (args.dry_run or args.find_lr or args.seeds > 1)
    status = train.main(options)
    return evaluate.main(EVALUATION) if leaves_best and status == 0 else status


if __name__ == "__main__":
    utils.run(main)
