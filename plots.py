"""Pictures: curves, grids of images, the confusion matrix."""

import io
import math

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import ConfusionMatrixDisplay

from utils import write_file

matplotlib.rcParams["text.parse_math"] = False  # a class may be called $5


def save_figure(figure, path):
    """Write a figure as a PNG file, whole or not at all; UserError where that fails."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_file(path, buffer.getvalue())


def show(figures, prefix=""):
    """Figures on a line: of a loss its value, of all else a percentage."""
    parts = []
    for name, value in figures.items():
        if name.startswith(prefix):
            name = name.removeprefix(prefix)
            is_loss = name.endswith("loss")
            parts.append(f"{name} {value:.4f}" if is_loss else f"{name} {value:.2%}")
    return " ".join(parts)


def plot_curves(rows, split, best, path):
    """Each figure by epoch, of training and of `split`, with the best epoch."""
    names = []
    for column in rows[-1]:
        if column.startswith(f"{split}_"):
            names.append(column.removeprefix(f"{split}_"))
    width = 5.5 * len(names)  # inches
    figure = Figure(figsize=(width, 4.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names):
        is_loss = name.endswith("loss")
        unit, scale = ("", 1) if is_loss else (" %", 100)
        for part, label in (("train", "train (augmented)"), (split, split)):
            column = f"{part}_{name}"
            points = [(row["epoch"], row[column]) for row in rows if column in row]
            if points:
                epochs, values = zip(*points)
                scaled = [scale * value for value in values]
                axes.plot(epochs, scaled, marker=".", label=label)
        if f"{split}_{name}" in best:
            value = scale * best[f"{split}_{name}"]
            label = f"best epoch, {best['epoch']}: {value:.2f}{unit}"
            axes.plot(best["epoch"], value, "k*", markersize=12, label=label)
        axes.set(xlabel="epoch", ylabel=name if is_loss else f"{name} (%)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if name == "loss":  # the first ones can be large, and would flatten the rest
            axes.set_ylim(0, 1.3 * max(row["train_loss"] for row in rows))
        axes.grid(alpha=0.3)
        axes.legend()
    save_figure(figure, path)


def plot_images(images, titles, columns, path, heading):
    """A grid of uint8 images (H, W, 3), each under its title.

    They are drawn into one pair of axes, whose unit is the inch: a pair for each image
    would take seconds.
    """
    rows = max(1, math.ceil(len(images) / columns))
    lines = 1 + max((title.count("\n") for title in titles), default=0)
    side, gap, top = 1.4, 0.1, 0.4
    above = 0.05 + 0.16 * lines  # of an image, for its title
    width = (side + gap) * columns + gap
    height = top + (above + side + gap) * rows
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.text(width / 2, top / 2, heading, fontsize=12, ha="center", va="center")
    for number, (image, title) in enumerate(zip(images, titles)):
        row, column = divmod(number, columns)
        left = gap + (side + gap) * column
        upper = top + (above + side + gap) * row + above
        place = (left, left + side, upper + side, upper)
        axes.imshow(np.asarray(image), extent=place, interpolation="nearest")
        center = left + side / 2
        axes.text(center, upper - 0.03, title, fontsize=9, ha="center", va="bottom")
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    save_figure(figure, path)


def plot_confusion(matrix, classes, path):
    """Counts of actual (rows) against predicted classes."""
    side = 3 + 0.55 * len(classes)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    display = ConfusionMatrixDisplay(matrix, display_labels=classes)
    display.plot(ax=axes, cmap="Blues", values_format="d")
    axes.set(xlabel="predicted", ylabel="actual")
    axes.tick_params("x", labelrotation=45, labelrotation_mode="xtick")
    save_figure(figure, path)
