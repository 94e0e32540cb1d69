"""Draw accuracy against multiply-adds spent, beside the best published solution's own log.

    python tools/plot_cost.py results/NAME ... --images "JPEG q75" --out docs/cost.png

Each folder is one that `python train.py --name NAME` left. Not counted are a teacher's work and
what --init brought. The log is that of
Sagar063/week7_ERAV4_CIFAR_10_Model_Experiments (results/dilated_model/train_log.csv), which
trained on the original files of CIFAR-10.
"""

import csv
import json
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from published import PublishedNet

from checkpoint import OLDER_CONFIG
from compare import read_run
from engine import SMALL, small_epochs
from model import ARCHS, Net, Unfit
from plots import save_figure
from receptive_field import computed_macs
from rules import GOAL
from utils import SIDE, Parser, UserError, check_writable, run

PUBLISHED_IMAGES = 50_000  # in an epoch
LOG = ROOT / "docs" / "published_log.csv"


def main(argv=None):
    parser = Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("folders", nargs="+", type=Path, help="folders of trainings")
    add("--images", help="what the legend calls their images (default: by --dataset)")
    add("--out", type=Path, default="results/cost.png", help="the picture")
    args = parser.parse_args(argv)
    check_writable(args.out)

    ARCHS["published"] = PublishedNet  # a training of it can be drawn, too
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.subplots()
    for folder in args.folders:
        training = read_run(folder)
        if training.chosen_on != "test":
            raise UserError(f"the accuracies of {folder} are of held-out images")
        described = json.loads((folder / "run.json").read_text())
        config, options = described["net"], Namespace(**training.options)
        if config["rows"] is None and config["arch"] not in ARCHS:
            raise UserError(f"the class '{config['arch']}' of {folder} is not in ARCHS")
        try:
            net = Net(**OLDER_CONFIG | config)
        except Unfit as error:
            raise UserError(f"the network of {folder} cannot be made: {error}")
        steps = described["made_with"]["images"]["train"] // options.batch_size
        images, small = steps * options.batch_size, small_epochs(options)
        label = f"{config['arch']}, {args.images or options.dataset}"
        plot(axes, training.accuracies, net, label, images, small)
    with open(LOG, newline="") as file:
        published = [float(row["accuracy"]) for row in csv.DictReader(file)]
    label = "published by Sagar063, original files"
    plot(axes, published, PublishedNet(classes=10), label, PUBLISHED_IMAGES)

    goal = f"{100 * GOAL:.0f} % of the assignment"
    axes.axhline(100 * GOAL, color="grey", linestyle="--", label=goal)
    axes.set(
        title="Test accuracy against the multiply-adds spent",
        xlabel="multiply-adds of its forward passes so far, in trillions (1e12)",
        ylabel="test accuracy (%)",
        xscale="log",
        ylim=(70, None),
    )
    axes.grid(alpha=0.3)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend(loc="upper left", fontsize="small")
    save_figure(figure, args.out)
    print(f"Picture: {args.out}")


def plot(axes, accuracies, net, label, images, small=0):
    """Draw a training's accuracy by the multiply-adds of its epochs so far.

    An epoch has so many `images`; in the first `small` epochs they were of SMALL x SMALL pixels.
    """
    sides = [SMALL if epoch < small else SIDE for epoch in range(len(accuracies))]
    cost = {side: computed_macs(net, side) for side in set(sides)}
    spent = np.cumsum([cost[side] * images / 1e12 for side in sides])
    values = [100 * accuracy for accuracy in accuracies]
    label = f"{label}: {values[-1]:.2f} % after {len(values)} epochs"
    axes.plot(spent, values, marker=".", label=label)


if __name__ == "__main__":
    run(main)
