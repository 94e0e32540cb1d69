"""Train the large network from which the last training of `make record` learns.

    python tools/teacher.py [--epochs N] ...

takes the options of train.py but --init and --resume; `python train.py --resume` goes on. The
network has 2,627,552 parameters where the assignment allows 200,000, so it is a source of labels,
and no solution. It is close to ResNet-9 (Page, "How to train your ResNet", 2018), with strides in
place of max pooling.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import train
import utils
from model import ARCHS, CLASSES, Arch, Row

ROWS = [
    Row("c1.conv",    64,  3, 1, 1, 1, "plain"),
    Row("c1.down",   128,  3, 2, 1, 1, "plain"),      # 32x32 -> 16x16
    Row("c2.conv",   128,  3, 1, 1, 1, "residual"),
    Row("c2.down",   256,  3, 2, 1, 1, "plain"),      # 16x16 -> 8x8
    Row("c3.conv",   256,  3, 1, 1, 1, "residual"),
    Row("c3.conv2",  256,  3, 1, 1, 1, "residual"),
    Row("c3.down",   512,  3, 2, 1, 1, "plain"),      # 8x8 -> 4x4
    Row("c4.conv",   512,  3, 1, 1, 1, "residual"),
    Row("o.gap",       0,  0, 0, 0, 0, "gap"),
    Row("o.conv", CLASSES, 1, 1, 1, 0, "plain"),
]  # fmt: skip


def main(argv=None):
    ARCHS["teacher"] = Arch(ROWS, kernels="mirrored", activation="silu")
    given = sys.argv[1:] if argv is None else argv
    return train.main(["--arch=teacher", *given])


if __name__ == "__main__":
    utils.run(main)
