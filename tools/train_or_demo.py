"""What `make train` runs: train.py, or the demonstration where there are no images.

    python tools/train_or_demo.py [options of train.py]

So one command shows the whole path on any machine. train.py itself ends with an error.
"""

import sys
import textwrap
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import demo

import train
import utils
from dataset import NoImages

WIDTH = 78


def print_box(*paragraphs):
    """Print paragraphs in a box that no one overlooks."""
    edge = "+" + "-" * (WIDTH - 2) + "+"
    print(f"\n{edge}")
    for paragraph in paragraphs:
        for line in textwrap.wrap(paragraph, WIDTH - 4):
            print(f"| {line:{WIDTH - 4}} |")
    print(f"{edge}\n", flush=True)


def main(argv=None):
    options = sys.argv[1:] if argv is None else argv
    try:
        return train.main(options)
    except NoImages as error:
        trouble = f"NOT TRAINED: {utils.printable(error)}."
    print_box(
        trouble,
        "What follows is a demonstration on handwritten digits, in results/demo. "
        "No checkpoint of yours is touched.",
    )
    status = demo.main([])
    print_box(
        trouble,
        "What you saw was a demonstration on handwritten digits. This repeats its "
        "evaluation:",
        f'  make evaluate ARGS="{" ".join(demo.EVALUATION)}"',
    )
    return status


if __name__ == "__main__":
    utils.run(main)
