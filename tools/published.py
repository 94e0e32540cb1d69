"""Train the network of the best published solution of this assignment by its own recipe.

    python tools/published.py --dataset folder --data-dir FOLDER --epochs 60 ...

takes the options of train.py but --optimizer, --schedule, --init and --resume: --continue goes
on. The network is stride-free: 197,858 parameters and 200 million multiply-adds an image;
published are 92.00 % after 58 epochs on the original files
(Sagar063/week7_ERAV4_CIFAR_10_Model_Experiments). It trains in the loop of train.py, in its
precision, and compiled by the same rule, so that the minutes compare networks and recipes alone.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # or the next import asks the network

import albumentations as A
from torch import nn

import dataset
import engine
import train
import utils
from model import ARCHS, CLASSES, Row, TableNet
from optim import make_schedules
from utils import UserError

ROWS = [
    Row("c1.conv1",   24,  3, 1, 1, 1, "plain"),
    Row("c1.conv2",   32,  3, 1, 1, 1, "plain"),
    Row("c2.conv1",   48,  3, 1, 2, 2, "separable"),
    Row("c2.conv2",   48,  1, 1, 1, 0, "plain"),
    Row("c2.conv3",   64,  3, 1, 2, 2, "plain"),
    Row("c3.conv1",   80,  1, 1, 1, 0, "plain"),
    Row("c3.conv2",   80,  3, 1, 4, 4, "plain"),
    Row("c3.conv3",   96,  3, 1, 4, 4, "plain"),
    Row("c4.conv1",  112,  3, 1, 8, 8, "separable"),
    Row("c4.conv2",  112,  1, 1, 1, 0, "plain"),
    Row("o.gap",       0,  0, 0, 0, 0, "gap"),
    Row("o.conv", CLASSES, 1, 1, 1, 0, "plain"),
]  # fmt: skip


class PublishedNet(TableNet):
    """The published table; its last layer has a bias."""

    def __init__(self, classes):
        super().__init__(ROWS, classes, norm="batch", dropout=0.0)
        self.o.conv.conv = nn.Conv2d(112, classes, 1)


def published_augmentation(mean, mirror, move, hole):
    """The published one, with the hole in the mean colour."""
    affine = A.Affine(rotate=(-15, 15), scale=(0.9, 1.1), p=move)
    flip, *_, cut = dataset.augmentation(mean, mirror, move, hole).transforms
    return A.Compose([flip, affine, cut], strict=True)


def published_schedules(optimizers, args, steps):
    """From a tenth of the highest rate to it, then to a hundredth."""
    if (args.optimizer, args.schedule) != ("sgd", "onecycle"):
        raise UserError(
            "the published recipe is SGD's One Cycle: leave out --optimizer and --schedule"
        )
    return make_schedules(optimizers, args, steps, final_div_factor=10)


def command_to_go_on(last, args):
    """How to resume a last.pt: train.py alone has neither the network nor the recipe."""
    return f"the same command with --continue, which finds {last}"


def main(argv=None):
    ARCHS["published"] = PublishedNet
    train.augmentation = published_augmentation
    train.command_to_go_on = command_to_go_on
    engine.make_schedules = published_schedules
    recipe = ["--arch=published", "--optimizer=sgd", "--lr=0.1", "--weight-decay=5e-4"]
    recipe += ["--label-smoothing=0", "--ema=0", "--batch-size=128", "--small=0"]
    recipe += ["--peak=0.15", "--move=0.5", "--hole=0.5"]
    return train.main([*recipe, *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    utils.run(main)
