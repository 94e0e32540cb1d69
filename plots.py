"""Pictures: curves, grids of images, the confusion matrix, a network layer by layer."""

import io
import math
import textwrap
import unicodedata

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from rules import AVERAGES, FIELD_TO_EXCEED
from utils import in_short, times, write_file

DRAWN = 25  # layers in a row of the picture of a network
COUNTED = 30  # classes at most whose confusions are shown as counts
NAME = 13  # characters of the name of a class above an image, wide ones counted twice
matplotlib.rcParams["text.parse_math"] = False  # a class may be called $5
# For names in Chinese, Japanese or Korean: the usual fonts of Linux, Windows and macOS.
FONTS = (
    "Noto Sans CJK JP", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Hiragino Sans GB",
    "Hiragino Sans", "Apple SD Gothic Neo",
)  # fmt: skip
INSTALLED = [name for name in FONTS if name in font_manager.get_font_names()]
matplotlib.rcParams["font.family"] = ["DejaVu Sans", *INSTALLED]


def save_figure(figure, path):
    """Write a figure as a PNG file, whole or not at all; UserError where that fails."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_file(path, buffer.getvalue())


def metrics_in_words(metrics, prefix=""):
    """Metrics on a line: of a loss its value, of all else a percentage."""
    parts = []
    for name, value in metrics.items():
        if name.startswith(prefix):
            name = name.removeprefix(prefix)
            is_loss = name.endswith("loss")
            parts.append(f"{name} {value:.4f}" if is_loss else f"{name} {value:.2%}")
    return " ".join(parts)


def plot_curves(history, title, targets, goal, path):
    """Each metric by epoch, of training and of the images that choose the best epoch.

    `history` is a `checkpoint.History`; `targets` says what the training loss has in place of
    the plain labels, or besides, "" for nothing else; `goal` is the accuracy to reach, 0 to 1,
    or None.
    """
    split, rows, best = history.split, history.rows, history.best
    names = []
    for column in rows[-1]:
        if column.startswith(f"{split}_"):
            names.append(column.removeprefix(f"{split}_"))
    width = 4.5 * len(names)  # inches
    figure = Figure(figsize=(width, 4), layout="constrained")
    figure.suptitle(title)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names):
        is_loss = name.endswith("loss")
        unit, scale = ("", 1) if is_loss else (" %", 100)
        training = "train (augmented)"
        if is_loss and targets:
            training = f"train (augmented,\n{targets})"  # narrow, to hide no line
        for part, label in (("train", training), (split, split)):
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
        if name == "accuracy" and goal is not None:
            label = f"{100 * goal:g} % of the assignment"
            axes.axhline(100 * goal, color="grey", linestyle="--", label=label)
        finish_curves(axes, name)
        axes.legend(fontsize="small")
    save_figure(figure, path)


def finish_curves(axes, metric):
    """Name the axes of a metric by epoch, and show all but the worst of the first epochs.

    The first values are far off, and would flatten the rest.
    """
    is_loss = metric.endswith("loss")
    axes.set(xlabel="epoch", ylabel=metric if is_loss else f"{metric} (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    later = []
    for line in axes.lines:
        heights = list(line.get_ydata())
        later += heights[len(heights) // 5 :]
    if later:  # there may be nothing of this metric
        finite = [value for value in later if math.isfinite(value)] or [0.0]
        lowest, highest = min(finite), max(finite)
        margin = 0.08 * (highest - lowest) or 0.1
        top = math.inf if is_loss else 100
        axes.set_ylim(max(0, lowest - margin), min(top, highest + margin))


def plot_images(images, titles, columns, path, heading):
    """A grid of uint8 images (H, W, 3), each under its title; None is a blank.

    They are drawn into one pair of axes, whose unit is the inch: a pair for each image
    would take seconds.
    """
    rows = max(1, math.ceil(len(images) / columns))
    lines = 1 + max((title.count("\n") for title in titles), default=0)
    side, gap = 1.4, 0.1
    above = 0.05 + 0.16 * lines  # of an image, for its title
    width = (side + gap) * columns + gap
    heading = textwrap.fill(heading, int(width / 0.09))  # inches, of a letter
    top = 0.2 + 0.2 * (1 + heading.count("\n"))
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
        if image is not None:
            axes.imshow(np.asarray(image), extent=place, interpolation="nearest")
        center = left + side / 2
        axes.text(center, upper - 0.03, title, fontsize=9, ha="center", va="bottom")
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    save_figure(figure, path)


def plot_mistakes(images, labels, probabilities, classes, path, count):
    """The most confident mistakes, `count` at most."""
    confidence, predicted = probabilities.max(1)
    titles = []
    wrong = most_confident(confidence, predicted != labels, count)
    for number in wrong:
        actual = shortened(classes[labels[number]])
        guess = shortened(classes[predicted[number]])
        titles.append(f"{actual}\n→ {guess} {confidence[number]:.0%}")
    total = int((predicted != labels).sum())
    heading = (
        f"The most confident {len(wrong)} of {total:,} mistakes: actual → predicted "
        "(some labels are arguable)"
    )
    if len(wrong) == 0:
        heading = "No mistakes"
    columns = 5 if count % 5 == 0 else 6
    plot_images(images[wrong], titles, columns, path, heading)


def shortened(name):
    """The name of a class as there is room for it above an image."""
    room = NAME
    for place, character in enumerate(name):
        room -= 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if room < 0:
            return f"{name[: place - 1]}…"
    return name


def most_confident(confidence, mask, count):
    """The numbers of the images of a mask, the most confident first, `count` at most."""
    order = confidence.argsort(descending=True)
    return order[mask[order]][:count]


def plot_confusion(matrix, classes, path):
    """Counts of actual (rows) against predicted classes, with each class's accuracy.

    The colours are those of the mistakes alone: the right answers would drown them. With
    many classes the ten pairs confused most stand in place of the counts.
    """
    mistakes = matrix.copy()
    np.fill_diagonal(mistakes, 0)
    if len(classes) > COUNTED:
        plot_confused_pairs(mistakes, classes, path)
        return
    side = 3 + 0.55 * len(classes)
    figure = Figure(figsize=(side + 1.6, side), layout="compressed")
    axes = figure.subplots()
    labels = []
    for number, name in enumerate(classes):
        share = matrix[number, number] / max(1, matrix[number].sum())
        labels.append(f"{name}  {share:.1%}")
    from sklearn.metrics import ConfusionMatrixDisplay  # here, as it takes a second

    display = ConfusionMatrixDisplay(mistakes, display_labels=classes)
    display.plot(ax=axes, cmap="Oranges", values_format="d", im_kw=limits_of(mistakes))
    display.figure_.axes[-1].set_ylabel("mistakes")
    for number in range(len(classes)):
        right = Rectangle((number - 0.5, number - 0.5), 1, 1, facecolor="0.85")
        axes.add_patch(right)
        display.text_[number, number].set(text=matrix[number, number], color="black")
    axes.set(xlabel="predicted", ylabel="actual, with the share that is right")
    axes.set_yticklabels(labels)
    title = "Confusion matrix: right answers in grey, mistakes in colour"
    axes.set_title(textwrap.fill(title, int(11 * side)))
    axes.set_xticklabels(classes, rotation=45, ha="right", rotation_mode="anchor")
    save_figure(figure, path)


def limits_of(mistakes):
    """The limits of their colours; where there are none, that of 0 is still white."""
    return {"vmin": 0, "vmax": max(1, mistakes.max())}


def plot_confused_pairs(mistakes, classes, path):
    """The mistakes of many classes in colour, and the ten pairs confused most in words."""
    figure = Figure(figsize=(14, 8), layout="constrained")
    axes, words = figure.subplots(1, 2, width_ratios=(3, 1))
    settings = {"cmap": "Oranges", "interpolation": "nearest"} | limits_of(mistakes)
    picture = axes.imshow(mistakes, **settings)
    figure.colorbar(picture, ax=axes, label="mistakes")
    axes.set(
        xlabel="number of the predicted class", ylabel="number of the actual class"
    )
    axes.set_title("Confusion matrix, the right answers left out")
    lines = ["confused most: actual → predicted", ""]
    for place in mistakes.argsort(axis=None)[::-1][:10]:
        actual, predicted = np.unravel_index(place, mistakes.shape)
        count = mistakes[actual, predicted]
        if count:
            lines.append(f"{count:>5}  {classes[actual]} → {classes[predicted]}")
    words.axis("off")
    words.text(0, 0.9, "\n".join(lines), va="top", fontsize=10)
    save_figure(figure, path)


def plot_range_test(rates, losses, smooth, suggested, path):
    """Draw the loss of each step of a range test, smoothed too, over its learning rate.

    `suggested` is the learning rate to mark.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.semilogx(rates, losses, color="0.8", label="loss of each step")
    axes.semilogx(rates, smooth, color="C0", label="smoothed")
    label = f"suggestion: {suggested:.2g}"
    axes.axvline(suggested, color="C3", linestyle="--", label=label)
    axes.set(xlabel="learning rate (--lr)", ylabel="training loss")
    axes.set(
        title="Learning-rate range test", ylim=(0.9 * min(smooth), 1.6 * smooth[0])
    )
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def plot_network(lines, title, path):
    """Draw the `model.Line`s of a network: each one's map, and below it its receptive field.

    Of many layers there are several rows.
    """
    rows = [lines[start : start + DRAWN] for start in range(0, len(lines), DRAWN)]
    size = (max(6, 0.6 + 0.95 * len(rows[0])), 5 * len(rows))  # inches
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(2 * len(rows), 1, height_ratios=(3, 2) * len(rows))
    blocks = list(dict.fromkeys(line.name.partition(".")[0] for line in lines))
    largest = max(max(line.shape[1:], default=1) for line in lines)
    for row, maps, fields in zip(rows, axes[::2], axes[1::2]):
        colours = []
        for line in row:
            block = blocks.index(line.name.partition(".")[0])
            colours.append(f"C{block % 10}")
        draw_maps(row, colours, largest, maps)
        draw_fields(row, colours, fields)
        for ax in (maps, fields):
            ax.set_xlim(-0.6, len(rows[0]) - 0.4)
    axes[1].legend(loc="upper left")
    save_figure(figure, path)


def draw_maps(lines, colours, largest, ax):
    """Bars as high as the maps; `largest` is the height of the largest of all."""
    for place, (line, colour) in enumerate(zip(lines, colours)):
        height = max(line.shape[1:], default=1)
        ax.bar(place, height, 0.8, -height / 2, color=colour)
        above = largest / 2 + 2
        ax.text(place, above, drawn_kind(line), ha="center", va="bottom", fontsize=9)
        below = f"{times(line.shape[1:]) or '1x1'}\n{line.shape[0]} channels"
        ax.text(place, -above, below, ha="center", va="top", fontsize=8)
    ax.set(ylim=(-0.9 * largest, 1.1 * largest), xticks=[], yticks=[], ylabel="map")
    ax.spines[:].set_visible(False)


def draw_fields(lines, colours, ax):
    """Bars as high as the receptive fields, where these are known."""
    for place, (line, colour) in enumerate(zip(lines, colours)):
        if line.receptive_field:
            bar = ax.bar(place, min(line.receptive_field), 0.8, color=colour)
            ax.bar_label(bar, fontsize=9)
    label = f"to exceed: {FIELD_TO_EXCEED}"
    ax.axhline(FIELD_TO_EXCEED, color="black", linestyle="--", linewidth=1, label=label)
    ax.set(ylabel="receptive field (pixels)")
    names = [line.name for line in lines]
    ax.set_xticks(range(len(names)), names, fontsize=9)
    if max(map(len, names)) > 10:  # or they would lie one over another
        for name in ax.get_xticklabels():
            name.set(rotation=40, ha="right", rotation_mode="anchor")
    ax.margins(y=0.15)
    ax.spines[["top", "right"]].set_visible(False)


def drawn_kind(line):
    """The kind of a layer, its kernel, and its stride and dilation where they are not 1."""
    if line.kind in AVERAGES and math.prod(line.shape[1:]) == 1:
        return "global\naverage\npooling"
    words = [line.kind.replace(" + ", "\n+ "), times(line.kernel)]
    if max(line.stride) > 1:
        words.append(f"stride {in_short(line.stride)}")
    if max(line.dilation) > 1:
        words.append(f"dilation {in_short(line.dilation)}")
    return "\n".join(words)
