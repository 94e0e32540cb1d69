"""Pictures: curves, grids of images, the confusion matrix."""

import io
import math

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import ConfusionMatrixDisplay

from utils import best_epoch, write_file

matplotlib.rcParams["text.parse_math"] = False  # a class may be called $5


def save_figure(figure, path):
    """Write a figure as a PNG file, whole or not at all; UserError where that fails."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_file(path, buffer.getvalue())


def plot_curves(history, split, path):
    """Loss and accuracy by epoch, of training and of `split`, with the best epoch."""
    epochs = [row["epoch"] for row in history]
    best = best_epoch(history, split)
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for axes, name, scale in zip(figure.subplots(1, 2), ("loss", "accuracy"), (1, 100)):
        for part, label in (("train", "train (augmented)"), (split, split)):
            values = [scale * row[f"{part}_{name}"] for row in history]
            axes.plot(epochs, values, marker=".", label=label)
        value = scale * best[f"{split}_{name}"]
        label = f"best epoch, {best['epoch']}: {value:.2f}" + " %" * (scale == 100)
        axes.plot(best["epoch"], value, "k*", markersize=12, label=label)
        axes.set(xlabel="epoch", ylabel=name + " (%)" * (scale == 100))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if name == "loss":  # the first ones can be large, and would flatten the rest
            axes.set_ylim(0, 1.3 * max(row["train_loss"] for row in history))
        axes.grid(alpha=0.3)
        axes.legend()
    save_figure(figure, path)


def plot_images(images, titles, columns, path, heading):
    """A grid of uint8 images (H, W, 3), each under its title."""
    rows = max(1, math.ceil(len(images) / columns))
    lines = 1 + max((title.count("\n") for title in titles), default=0)
    height = (1.5 + 0.2 * lines) * rows + 0.4  # inches
    figure = Figure(figsize=(1.5 * columns, height), layout="constrained")
    figure.suptitle(heading)
    for axes in (grid := figure.subplots(rows, columns, squeeze=False).ravel()):
        axes.axis("off")
    for axes, image, title in zip(grid, images, titles):
        axes.imshow(np.asarray(image))
        axes.set_title(title, fontsize=9)
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
