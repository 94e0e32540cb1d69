"""Train the network of the best published solution of this assignment by its own recipe.

    python tests/peer.py --data-dir FOLDER --epochs N

FOLDER is one of `--dataset folder`. The network is stride-free: 197,858 parameters and 200
million multiply-adds an image; published are 92.00 % after 60 epochs on the original files
(Sagar063/week7_ERAV4_CIFAR_10_Model_Experiments). It trains in the loop of train.py, in its
precision and compiled where that is, so that the minutes compare networks and recipes alone.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import albumentations as A
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

import optim
import train
import utils
from dataset import (
    AugmentedImages,
    augmentation,
    load_splits,
    mean_and_std,
    training_loader,
)
from evaluate import loss_and_accuracy, predict
from model import CLASSES, Net, Row, print_summary

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


def published_augmentation(mean):
    """The published one, with the hole in the mean colour."""
    affine = A.Affine(rotate=(-15, 15), scale=(0.9, 1.1), p=0.5)
    flip, _, hole = augmentation(mean).transforms
    hole.p = 0.5
    return A.Compose([flip, affine, hole], strict=True)


def main(argv=None):
    parser = utils.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--epochs", type=utils.number(int, 1), required=True)
    own = parser.parse_args(argv)
    start = time.perf_counter()
    options = ["--optimizer=sgd", "--lr=0.1", "--label-smoothing=0", "--ema=0"]
    args, _ = train.parse_arguments(options)
    device = utils.pick_device("auto")
    dtype = utils.pick_precision(device, "auto")
    torch.manual_seed(0)
    splits, classes = load_splits("folder", own.data_dir)
    mean, std = mean_and_std(splits["train"][0])
    data = AugmentedImages(*splits["train"], published_augmentation(mean), 0)
    loader = training_loader(data, 128, 0, args.workers, device)
    net = Net(ROWS, len(classes), "batch", 0.0, mean, std).to(device)
    net.o.conv.conv.bias = nn.Parameter(torch.zeros(len(classes), device=device))
    print_summary(net)
    steps = own.epochs * len(loader)
    training = optim.Training(net, args, steps)
    # From a tenth of the peak to it over 0.15 of the steps, then to a hundredth.
    ends = {"pct_start": 0.15, "div_factor": 10, "final_div_factor": 10}
    (sgd,) = training.optimizers
    training.schedulers = [OneCycleLR(sgd, 0.1, steps, cycle_momentum=False, **ends)]
    if train.can_compile(device):
        net.compile()
    for epoch in range(1, own.epochs + 1):
        loader.sampler.epoch = epoch
        batches = utils.progress(loader, f"epoch {epoch}")
        result = train.train_one_epoch(training, batches, epoch, device, dtype)
        logits = predict(training.ema.module, splits["test"][0], device, dtype)
        _, accuracy = loss_and_accuracy(logits, splits["test"][1])
        print(
            f"epoch {epoch}/{own.epochs}  train {result[0]:.4f} {result[1]:.2%}  "
            f"test {accuracy:.2%}  {time.perf_counter() - start:.0f} s since the start",
            flush=True,
        )


if __name__ == "__main__":
    utils.run(main)
