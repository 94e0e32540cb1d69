"""A network layer by layer: as a table, and as a picture."""

import math
from itertools import groupby
from typing import NamedTuple

from matplotlib.figure import Figure

from plots import save_figure
from rules import AVERAGES, FIELD_TO_EXCEED, count_parameters, is_depthwise, name_of


class Line(NamedTuple):
    """A line of the summary: a row of the network's table, or a layer of a class."""

    name: str
    kind: str
    shape: tuple  # of its output, without the batch
    parameters: str  # "?" where they are not known
    macs: int  # multiply-adds an image
    kernel: tuple  # height and width
    stride: int
    dilation: int
    receptive_field: int | None  # in pixels; None where it is not known
    jump: int | None  # pixels of the image from one unit to the next


def summarise(net, nodes):
    """The `Line`s of a network, in the order in which they run.

    `nodes` are those of `model.trace`.
    """
    modules = dict(net.named_modules())
    lines = []
    for name, members in groupby(nodes, key=lambda node: name_of(net, node)):
        members = list(members)
        if any(node.window for node in members):
            lines.append(line_of_summary(modules, name, members))
    return lines


def line_of_summary(modules, name, members):
    """The `Line` of the nodes that run in one row or layer; `modules` are all, by name."""
    windows = [node for node in members if node.window]
    main = max(windows, key=lambda node: (max(node.window.kernel), node.macs))
    last = members[-1]
    parameters = "?" if any(node.weight for node in members) else "0"
    for path in (f"body.{name}", name):
        if path in modules:
            parameters = f"{count_parameters(modules[path]):,}"
            break
    return Line(
        name=name,
        kind=kind_of(members, windows, main),
        shape=last.shape,
        parameters=parameters,
        macs=sum(node.macs for node in members),
        kernel=main.window.kernel,
        stride=main.window.stride[0],
        dilation=main.window.dilation[0],
        receptive_field=last.receptive_field,
        jump=last.axes[0].jump if last.axes else None,
    )


def kind_of(members, windows, main):
    """What a row or layer is, in words: of its nodes, those with a window, the largest."""
    last = members[-1]
    if last.operation == "mul":
        return "gate"
    kind = main.operation
    if any(is_depthwise(node) for node in members):
        kind = "separable" if len(windows) > 1 else "depthwise"
    if last.operation == "add" and len(last.sources) > 1:
        has_shortcut = any(".shortcut" in node.layer for node in windows)
        kind += " + shortcut" if has_shortcut else " + input"
    return kind


def print_summary(lines, total, computed):
    """Print the `Line`s of a network, its `total` parameters and its multiply-adds.

    `computed` are the multiply-adds without those of outputs that are never read.
    """
    width = 2 + max([7, *(len(line.name) for line in lines)])
    print(
        f"{'layer':{width}}{'type':21}{'output':>11}{'params':>11}{'mult-adds':>12}"
        f"{'kernel':>8}{'stride':>7}{'dilation':>9}{'receptive field':>16}{'jump':>5}"
    )
    for line in lines:
        print(
            f"{line.name:{width}}{line.kind:21}{times(line.shape):>11}"
            f"{line.parameters:>11}{line.macs:>12,}{times(line.kernel):>8}"
            f"{line.stride:>7}{line.dilation:>9}{line.receptive_field or '?':>16}"
            f"{line.jump or '?':>5}"
        )
    macs = sum(line.macs for line in lines)
    print(f"{total:,} parameters, {macs:,} multiply-adds an image")
    if computed < macs:
        print(f"{computed:,} of them are computed: no layer reads what the others give")


def title_of(config, downsample):
    """A network in words, by its `Net.config`."""
    if config["rows"] is None:
        return f"{config['arch']}, a class"
    norm, kernels = config["norm"], config["kernels"]
    return f"{config['arch']}, {downsample}, {norm} norm, {kernels} kernels"


def times(sizes):
    """Such as 3x3."""
    return "x".join(map(str, sizes))


def plot_network(lines, title, path):
    """Draw the `Line`s of a network: each one's map, and below it its receptive field."""
    width = max(6, 0.6 + 0.95 * len(lines))  # inches
    figure = Figure(figsize=(width, 5), layout="constrained")
    figure.suptitle(title)
    maps, fields = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    blocks = list(dict.fromkeys(line.name.partition(".")[0] for line in lines))
    largest = max(max(line.shape[1:], default=1) for line in lines)
    for place, line in enumerate(lines):
        block = blocks.index(line.name.partition(".")[0])
        colour = f"C{block % 10}"
        height = max(line.shape[1:], default=1)
        maps.bar(place, height, 0.8, -height / 2, color=colour)
        above = largest / 2 + 2
        maps.text(place, above, drawn_kind(line), ha="center", va="bottom", fontsize=9)
        below = f"{times(line.shape[1:]) or '1x1'}\n{line.shape[0]} channels"
        maps.text(place, -above, below, ha="center", va="top", fontsize=8)
        if line.receptive_field:
            bar = fields.bar(place, line.receptive_field, 0.8, color=colour)
            fields.bar_label(bar, fontsize=9)
    maps.set(ylim=(-0.9 * largest, 1.1 * largest), yticks=[], ylabel="map")
    maps.tick_params("x", length=0)
    label = f"to exceed: {FIELD_TO_EXCEED}"
    fields.axhline(
        FIELD_TO_EXCEED, color="black", linestyle="--", linewidth=1, label=label
    )
    fields.set(ylabel="receptive field (pixels)")
    fields.set_xticks(range(len(lines)), [line.name for line in lines], fontsize=9)
    fields.margins(y=0.15)
    fields.legend(loc="upper left")
    maps.spines[:].set_visible(False)
    fields.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def drawn_kind(line):
    """The kind of a layer, its kernel, and its stride and dilation where they are not 1."""
    if line.kind in AVERAGES and math.prod(line.shape[1:]) == 1:
        return "global\naverage\npooling"
    words = [line.kind.replace(" + ", "\n+ "), times(line.kernel)]
    if line.stride > 1:
        words.append(f"stride {line.stride}")
    if line.dilation > 1:
        words.append(f"dilation {line.dilation}")
    return "\n".join(words)
