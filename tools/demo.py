"""Train and evaluate on scikit-learn's handwritten digits, which need no download.

    python tools/demo.py [options of train.py]

Everything goes into results/demo, or by --name NAME into results/NAME.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import evaluate
import train
import utils

# What evaluates it, as options of evaluate.py.
EVALUATION = ["--ckpt", "results/demo/best.pt", "--out", "results/demo"]


def main(argv=None):
    given = sys.argv[1:] if argv is None else argv
    options = ["--dataset", "digits", "--epochs", "10", "--name", "demo", *given]
    args, _ = train.parse_arguments(options)
    leaves_best = not (args.dry_run or args.find_lr or args.seeds > 1)
    status = train.main(options)
    if status or not leaves_best:
        return status
    alike = [f"--{name}={getattr(args, name)}" for name in ("device", "amp", "rules")]
    return evaluate.main(["--ckpt", args.ckpt, "--out", args.out, *alike])


if __name__ == "__main__":
    utils.run(main)
