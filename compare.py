"""Compare trainings: one table, and one picture of all curves.

    python compare.py results results/*

Each folder is one that a training left: results/NAME with --name NAME, else results.
"""

import csv
import json
import statistics
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from checkpoint import OLDER
from model import Net
from plots import save_figure
from receptive_field import trace
from rules import GOAL, RECEPTIVE_FIELD, checklist, count_parameters
from utils import Parser, UserError, check_writable, run

PLACES = {"ckpt", "data_dir", "name", "out"}  # options that change no metric
# Curves that coincide can still be told apart.
DASHES = ("-", "--", "-.", ":")
MARKS = ("o", "s", "^", "D", "v", "x", "P")


class Run(NamedTuple):
    """A training, as its folder has it."""

    name: str
    options: dict
    row: dict  # of the table
    epochs: list
    accuracies: list  # of the images that chose the best epoch, 0 to 1


def read_run(folder):
    """The `Run` of a folder; UserError where it does not hold a whole training."""
    try:
        training = json.loads((folder / "run.json").read_text())
        column = f"{training['chosen_on']}_accuracy"
        epochs, accuracies = [], []
        with open(folder / "history.csv", newline="") as file:
            for row in csv.DictReader(file):
                epochs.append(int(row["epoch"]))
                accuracies.append(float(row[column]))
        reached = [e for e, value in zip(epochs, accuracies) if value >= GOAL]
        row = {
            **describe_network(training["net"]),
            "epochs": f"{len(epochs)}/{training['args']['epochs']}",
            f"at {GOAL:.0%}": f"{reached[0]}" if reached else "-",
            "best": f"{max(accuracies):.2%}",
            "last": f"{accuracies[-1]:.2%}",
            "s/epoch": f"{sum(training['seconds']) / len(epochs):.1f}",
        }
        return Run(folder.name, training["args"], row, epochs, accuracies)
    except (
        AttributeError,
        LookupError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise UserError(f"{folder} does not hold a whole training: {error}")


def describe_network(config):
    """Parameters, receptive field and multiply-adds; "?" where they are not known."""
    try:
        net = Net(**OLDER | config)
    except Exception:  # noqa: BLE001 - a class of one's own may have gone or changed
        return {"parameters": "?", "receptive field": "?", "mult-adds": "?"}
    nodes = trace(net)
    parameters = count_parameters(net)
    field = "?"
    for rule in checklist(net, nodes):
        if rule.text == RECEPTIVE_FIELD and rule.passed is not None:
            field = rule.value
    macs = sum(node.macs for node in nodes)
    return {
        "parameters": f"{parameters:,}",
        "receptive field": field,
        "mult-adds": f"{macs:,}",
    }


def differing(options):
    """The options in which some of the trainings differ."""
    names = set()
    for given in options:
        names.update(given)
    differ = []
    for name in sorted(names - PLACES):
        if len({str(given.get(name)) for given in options}) > 1:
            differ.append(name)
    return differ


def print_table(runs, differ):
    """Print one row per training, with the options in which they differ."""
    table = [["name", *runs[0].row, "options that differ"]]
    for training in runs:
        options = [f"{name} {training.options.get(name)}" for name in differ]
        table.append([training.name, *training.row.values(), ", ".join(options)])
    widths = []
    for column in zip(*table):
        widths.append(max(len(cell) for cell in column))
    for cells in table:
        padded = [f"{cells[0]:{widths[0]}}"]
        for cell, width in zip(cells[1:-1], widths[1:-1]):
            padded.append(f"{cell:>{width}}")
        print("  ".join([*padded, cells[-1]]).rstrip())


def print_spread(runs):
    """Print mean and spread of trainings that differ in their seed alone."""
    best = [max(training.accuracies) for training in runs]
    last = [training.accuracies[-1] for training in runs]
    for name, values in (("best", best), ("last", last)):
        print(
            f"{name}: mean {statistics.mean(values):.2%}, standard deviation "
            f"{statistics.stdev(values):.2%}, min {min(values):.2%}, max {max(values):.2%}"
        )


def plot(runs, path):
    """The curve of each training: accuracy by epoch."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for number, training in enumerate(runs):
        values = [100 * accuracy for accuracy in training.accuracies]
        label = f"{training.name}: best {training.row['best']}"
        axes.plot(
            training.epochs,
            values,
            color=f"C{number % 10}",
            linestyle=DASHES[number % len(DASHES)],
            marker=MARKS[number % len(MARKS)],
            alpha=0.8,
            label=label,
        )
    axes.set(xlabel="epoch", ylabel="accuracy (%)", title="Accuracy of each training")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def main(argv=None):
    parser = Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("folders", nargs="+", type=Path, help="folders of trainings")
    add("--out", type=Path, default="results/compare.png", help="the picture")
    args = parser.parse_args(argv)
    check_writable(args.out)
    # results/* holds pictures, tables and other folders as well.
    folders = [folder for folder in args.folders if (folder / "run.json").exists()]
    if not folders:
        raise UserError(
            f"no training in {', '.join(map(str, args.folders))}: train.py --name NAME "
            "leaves one in results/NAME"
        )
    runs = [read_run(folder) for folder in folders]
    differ = differing([training.options for training in runs])
    print_table(runs, differ)
    if differ == ["seed"]:
        print()
        print_spread(runs)
    plot(runs, args.out)
    others = [str(p) for p in args.folders if p not in folders and not p.is_file()]
    if others:
        print(f"\nLeft out, no training there: {', '.join(others)}")
    print(f"\nPicture: {args.out}")


if __name__ == "__main__":
    run(main)
