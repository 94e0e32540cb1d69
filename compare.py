"""Compare trainings: one table, and one picture of all curves.

    python compare.py results results/*

Each folder is one that a training left: results/NAME with --name NAME, else results.
"""

import csv
import hashlib
import json
import math
import statistics
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from checkpoint import OLDER_CONFIG, OLDER_OPTIONS
from model import Net, figures_of
from plots import finish_curves, save_figure
from receptive_field import trace
from rules import GOAL
from utils import Parser, UserError, check_writable, matching, run

# Options that say something with these schedules alone.
OF_SCHEDULES = {
    "step_epochs": {"step"},
    "gamma": {"step", "plateau"},
    "patience": {"plateau"},
    "peak": {"onecycle"},
}
PLACES = {"ckpt", "data_dir", "name", "out"}  # options that change no metric
# What says why networks differ; of images they have the mean and the deviation.
OF_NETWORKS = {
    "arch", "downsample", "norm", "activation", "dropout", "kernels", "images", "init"
}  # fmt: skip
FIGURES = ("parameters", "receptive field", "mult-adds")  # of a network
# What is raised by a folder that lacks something.
DAMAGED = (AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
# What the training loss may have besides plain labels, by the options.
BESIDES = {"l1": "L1", "label_smoothing": "smoothed labels", "teacher": "teachers"}
# Curves that coincide can still be told apart.
DASHES = ("-", "--", "-.", ":")
MARKS = ("o", "s", "^", "D", "v", "x", "P")


class Run(NamedTuple):
    """A training, as its folder has it."""

    name: str
    options: dict  # those of train.py, and what none of them says: see `unsaid`
    row: dict  # of the table
    chosen_on: str  # the images that chose the best epoch, "test" or "val"
    history: list  # of each epoch its metrics, by name
    accuracies: list  # of each epoch, 0 to 1: by these the best one is chosen


def read_run(folder):
    """The `Run` of a folder; UserError where it does not hold a whole training."""
    try:
        training = json.loads((folder / "run.json").read_text())
        history = []
        with open(folder / "history.csv", newline="") as file:
            for cells in csv.DictReader(file):  # a metric may begin or end on the way
                history.append(
                    {key: float(cell) for key, cell in cells.items() if cell}
                )
        options = OLDER_OPTIONS | training["args"] | unsaid(training)
        chosen_on = training["chosen_on"]
        accuracies = [row[f"{chosen_on}_accuracy"] for row in history]
        reached = [e for e, value in enumerate(accuracies, 1) if value >= GOAL]
        figures = network_of(training)
        row = {
            **{name: figures[name] for name in FIGURES},
            "epochs": f"{len(history)}/{options['epochs']}",
            f"at {100 * GOAL:g}%": f"{reached[0]}" if reached else "-",
            "best": f"{max(accuracies):.2%}",
            "last": f"{accuracies[-1]:.2%}",
            "s/epoch": f"{sum(training['seconds']) / len(history):.1f}",
        }
        return Run(folder.name, options, row, chosen_on, history, accuracies)
    except DAMAGED as error:
        raise UserError(f"{folder} does not hold a whole training: {error}")


def unsaid(training):
    """Of a run.json what no option says, as short digests: network, images, weights."""
    network = json.dumps(OLDER_CONFIG | training["net"], sort_keys=True)
    found = {"network": hashlib.sha256(network.encode()).hexdigest()[:8]}
    # A class of one's own may be another one under the same name.
    found["code"] = training.get("network", {}).get("code", "?")
    made_with = training["made_with"]
    for name, key in (("images", "sha256"), ("test images", "test_sha256")):
        found[name] = made_with.get(key, "?")[:8]
    found["weights of init"] = (made_with.get("init_sha256") or "?")[:8]
    teachers = [digest[:8] for digest in made_with.get("teachers", [])]
    found["weights of teachers"] = " and ".join(teachers)
    return found


def network_of(training):
    """The figures of a network as the training noted them; older ones noted none."""
    if "network" in training:
        return training["network"]
    try:
        net = Net(**OLDER_CONFIG | training["net"])
    except Exception:  # noqa: BLE001 - a class of one's own may have gone or changed
        return dict.fromkeys(FIGURES, "?")
    return figures_of(net, trace(net))


def differing(options):
    """The options in which some of the trainings differ, and which say something.

    "network" and "code" are among them where no other one says why the networks differ.
    """
    names = set().union(*options)
    schedules = {given.get("schedule") for given in options}
    for name, kinds in OF_SCHEDULES.items():
        if not schedules & kinds:
            names.discard(name)
    differ = []
    for name in sorted(names - PLACES):
        if len({str(given.get(name)) for given in options}) > 1:
            differ.append(name)
    said = set()
    if OF_NETWORKS.intersection(differ):
        said = {"network", "code"}
    elif "network" in differ:
        said = {"code"}
    return [name for name in differ if name not in said]


def print_table(runs, differ):
    """Print one row per training, with the options in which they differ."""
    table = [["name", *runs[0].row, "options that differ"]]
    for training in runs:
        options = [f"{name} {training.options.get(name)}" for name in differ]
        table.append([training.name, *training.row.values(), ", ".join(options)])
    widths = [max(map(len, column)) for column in zip(*table)]
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


def with_seeds(given):
    """The paths, where one that holds no training but seeds of one stands for these."""
    found = []
    for path in given:
        seeds = [] if (path / "run.json").exists() else sorted(path.glob("seed-*"))
        found += [seed for seed in seeds if seed not in given] or [path]
    return found


def print_spreads(runs, differ):
    """As `print_spread`, a row for trainings that differ in their seed alone."""
    names = [name for name in differ if name != "seed"]
    groups = {}
    for one in runs:
        words = ", ".join(f"{name} {one.options.get(name)}" for name in names)
        groups.setdefault(words, {}).setdefault(one.options.get("seed"), one)
    groups = {words: group for words, group in groups.items() if len(group) > 1}
    if not groups:
        return
    print(f"\n{'seeds':>5}{'best: mean':>14}{'sd':>8}{'last: mean':>14}{'sd':>8}")
    for words, group in groups.items():
        cells = [f"{len(group):>5}"]
        for choose in (max, lambda accuracies: accuracies[-1]):
            values = [choose(one.accuracies) for one in group.values()]
            mean, deviation = statistics.mean(values), statistics.stdev(values)
            cells.append(f"{mean:>14.2%}{deviation:>8.2%}")
        print(f"{''.join(cells)}  {words}")


def plot(runs, path):
    """The curves of each training by epoch: each metric in training, and as evaluated."""
    names = [name for training in runs for name in training.history[-1] if "_" in name]
    metrics = dict.fromkeys(name.partition("_")[2] for name in names)  # each once
    size = (5.5 * len(metrics), 8)
    figure = Figure(figsize=size, layout="constrained")
    rows = figure.subplots(2, len(metrics), squeeze=False)
    besides = []
    for name, words in BESIDES.items():
        if any(training.options.get(name) for training in runs):
            besides.append(words)
    for metric, column in zip(metrics, rows.T):
        is_loss = metric.endswith("loss")
        for axes, is_training in zip(column, (True, False)):
            for number, training in enumerate(runs):
                part = "train" if is_training else training.chosen_on
                draw_curve(axes, training, f"{part}_{metric}", number, is_loss)
            where = "as evaluated"
            if is_training:
                added = f", with {' and '.join(besides)}" if is_loss and besides else ""
                where = f"in training (augmented{added})"
            axes.set_title(f"{metric} {where}")
            finish_curves(axes, metric)
    handles, labels = rows[1, 0].get_legend_handles_labels()
    columns = math.ceil(len(runs) / 6)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)
    save_figure(figure, path)


def draw_curve(axes, training, name, number, is_loss):
    """One metric of a training, in the colour of its number, where the training has it."""
    rows = [row for row in training.history if name in row]
    scale = 1 if is_loss else 100
    epochs = [row["epoch"] for row in rows]
    values = [scale * row[name] for row in rows]
    mark, dashes = MARKS[number % len(MARKS)], DASHES[number % len(DASHES)]
    style = f"{mark}{dashes}C{number % 10}"
    label = f"{training.name}: best {training.row['best']}"
    axes.plot(epochs, values, style, markersize=4, alpha=0.8, label=label)


def main(argv=None):
    parser = Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("folders", nargs="+", type=Path, help="folders of trainings")
    add("--out", type=Path, default="results/compare.png", help="the picture")
    args = parser.parse_args(argv)
    check_writable(args.out)
    given = [path for folder in args.folders for path in matching(folder)]
    given = with_seeds(given)
    # results/* holds pictures, tables and other folders as well.
    folders = [folder for folder in given if (folder / "run.json").exists()]
    if not folders:
        raise UserError(
            f"no training in {', '.join(map(str, args.folders))}: train.py --name NAME "
            "leaves one in results/NAME"
        )
    runs = [read_run(folder) for folder in folders]
    if len({training.name for training in runs}) < len(runs):  # a/seed-0 and b/seed-0
        pairs = zip(runs, map(str, folders))
        runs = [training._replace(name=folder) for training, folder in pairs]
    differ = differing([training.options for training in runs])
    print_table(runs, differ)
    if held_out := [one.name for one in runs if one.chosen_on == "val"]:
        print(f"note      accuracies of held-out images: {', '.join(held_out)}")
    if differ == ["seed"]:
        print()
        by_seed = {one.options["seed"]: one for one in reversed(runs)}
        if len(by_seed) < len(runs):
            print("note      of a seed that is there twice the first counts alone")
        print_spread(by_seed.values())
        short = [one.name for one in runs if len(one.history) < one.options["epochs"]]
        if short:
            print(f"note      {', '.join(short)}: not all of the epochs are trained")
    elif "seed" in differ:
        print_spreads(runs, differ)
    plot(runs, args.out)
    others = [str(p) for p in given if p not in folders and not p.is_file()]
    if others:
        print(f"\nLeft out, no training there: {', '.join(others)}")
    print(f"\nPicture: {args.out}")


if __name__ == "__main__":
    run(main)
