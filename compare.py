"""Compare trainings: one table, and one picture of all curves.

    python compare.py results/*

Each folder is one that `python train.py --name NAME` left.
"""

import csv
import json
import operator
import statistics
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from model import Net, checklist, trace
from plots import save_figure
from utils import Parser, UserError, check_writable, run

PLACES = {"ckpt", "data_dir", "name", "out"}  # options that change no figure
GOAL = 0.85


def read_run(folder):
    """The row of the table, and the history, of a training's folder."""
    try:
        training = json.loads((folder / "run.json").read_text())
        with open(folder / "history.csv", newline="") as file:
            history = [
                {name: float(value) for name, value in row.items()}
                for row in csv.DictReader(file)
            ]
        net = Net(**training["net"])
        (_, parameters, _), (_, field, _), *_ = checklist(net)
        split = training["chosen_on"]
        accuracies = [row[f"{split}_accuracy"] for row in history]
        reached = [row["epoch"] for row in history if row[f"{split}_accuracy"] >= GOAL]
        figures = {
            "parameters": parameters,
            "field": field,
            "mult-adds": f"{sum(op.macs for op in trace(net)):,}",
            "epochs": f"{len(history)}/{training['args']['epochs']}",
            f"at {GOAL:.0%}": f"{reached[0]:.0f}" if reached else "-",
            "best": f"{max(accuracies):.2%}",
            "last": f"{accuracies[-1]:.2%}",
            "s/epoch": f"{sum(training['seconds']) / len(history):.1f}",
        }
        return training["args"], figures, split, history
    except (
        AttributeError,
        LookupError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise UserError(f"{folder} does not hold a whole training: {error}")


def differing(options):
    """The options in which some of the trainings differ."""
    names = sorted(set().union(*options) - PLACES)
    return [n for n in names if len({str(given.get(n)) for given in options}) > 1]


def print_spread(runs):
    """Print mean and spread of trainings that differ in their seed alone."""
    accuracies = [
        [row[f"{split}_accuracy"] for row in history] for _, _, split, history in runs
    ]
    for name, pick in ("best", max), ("last", operator.itemgetter(-1)):
        values = [*map(pick, accuracies)]
        print(
            f"{name}: mean {statistics.mean(values):.2%}, standard deviation "
            f"{statistics.stdev(values):.2%}, min {min(values):.2%}, max {max(values):.2%}"
        )


def plot(runs, labels, path):
    """The curve of each training: accuracy by epoch."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for (_, figures, split, history), label in zip(runs, labels):
        values = [100 * row[f"{split}_accuracy"] for row in history]
        epochs = [row["epoch"] for row in history]
        axes.plot(epochs, values, marker=".", label=f"{label}: best {figures['best']}")
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
    names = [folder.name for folder in folders]
    options = [given for given, *_ in runs]
    differ = differing(options)
    texts = [", ".join(f"{n} {given.get(n)}" for n in differ) for given in options]
    table = [["name", *runs[0][1], "options that differ"]]
    for name, (_, figures, *_), text in zip(names, runs, texts):
        table.append([name, *figures.values(), text])
    widths = [max(map(len, column)) for column in zip(*table)]
    for name, *cells, text in table:
        middle = [f"{cell:>{width}}" for cell, width in zip(cells, widths[1:])]
        print(f"{name:{widths[0]}}", *middle, text, sep="  ")
    if differ == ["seed"]:
        print()
        print_spread(runs)
    plot(runs, names, args.out)
    others = [str(p) for p in args.folders if p not in folders and not p.is_file()]
    print(f"\nLeft out, no training there: {', '.join(others)}" if others else "")
    print(f"Picture: {args.out}")


if __name__ == "__main__":
    run(main)
