"""The network: its table of layers, what is built from it, and what that amounts to.

    python model.py [--arch NAME] [--downsample HOW] [--norm NAME]

prints every layer with its parameters and receptive field, then the assignment's rules,
each with its figure; the exit status is 1 when a rule fails. To make a variant, change
rows of a table below or add a table to ARCHS: the summary and the checks follow.
"""

import copy
import functools
import math
from collections import namedtuple
from itertools import groupby, pairwise
from typing import NamedTuple

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from layers import Depthwise, Dropout, Residual
from utils import Parser, UserError, number, run

CLASSES = "classes"  # as a row's channels: as many as the data set has

# One layer, named block.layer: the assignment's C1 is the block c1, and so on. Kinds:
# plain (a convolution), residual (a convolution added to its own input), separable (a
# depthwise convolution, then a 1x1), maxpool and gap (global average pooling), which keep
# the channels. Every convolution but the last is followed by norm, ReLU and dropout.
Row = namedtuple("Row", "name channels kernel stride dilation padding kind")

# fmt: off
ARCHS = {
    # Ours: plain kernels, since a CPU does more of their multiply-adds a second than of
    # separable ones, and most of the work at 16x16, where a weight is used 256 times.
    "residual": [
        #   name      channels k  s  d  p  kind
        Row("c1.conv",    16,  3, 1, 1, 1, "plain"),
        Row("c1.down",    64,  3, 2, 2, 2, "plain"),      # 32x32 -> 16x16
        Row("c2.conv",    64,  3, 1, 1, 1, "residual"),
        Row("c2.conv2",   64,  3, 1, 1, 1, "residual"),
        Row("c2.down",    64,  3, 2, 2, 2, "plain"),      # 16x16 -> 8x8
        Row("c3.conv",    64,  3, 1, 1, 1, "residual"),
        Row("c3.down",    56,  3, 1, 2, 1, "plain"),      # 8x8 -> 6x6
        Row("c4.conv",   112,  3, 1, 1, 1, "separable"),
        Row("o.gap",       0,  0, 0, 0, 0, "gap"),
        Row("o.conv", CLASSES, 1, 1, 1, 0, "plain"),
    ],
    # For a long training: most of the work at 32x32, where a weight is used 1,024 times.
    "record": [
        Row("c1.conv",    32,  3, 1, 1, 1, "plain"),
        Row("c1.conv2",   32,  3, 1, 1, 1, "residual"),
        Row("c1.conv3",   32,  3, 1, 1, 1, "residual"),
        Row("c1.conv4",   32,  3, 1, 1, 1, "residual"),
        Row("c1.down",    56,  3, 2, 2, 2, "plain"),      # 32x32 -> 16x16
        Row("c2.conv",    56,  3, 1, 1, 1, "residual"),
        Row("c2.conv2",   56,  3, 1, 1, 1, "residual"),
        Row("c2.down",    56,  3, 2, 2, 2, "plain"),      # 16x16 -> 8x8
        Row("c3.conv",    56,  3, 1, 1, 1, "residual"),
        Row("c3.down",    64,  3, 1, 2, 1, "plain"),      # 8x8 -> 6x6
        Row("c4.conv",   112,  3, 1, 1, 1, "separable"),
        Row("o.gap",       0,  0, 0, 0, 0, "gap"),
        Row("o.conv", CLASSES, 1, 1, 1, 0, "plain"),
    ],
    # The network published for this assignment in the course EVA8.
    "reference": [
        Row("c1.conv",    64,  3, 1, 1, 1, "separable"),
        Row("c1.down",   128,  3, 2, 2, 2, "separable"),  # 32x32 -> 16x16
        Row("t1.conv",    64,  1, 1, 1, 0, "separable"),
        Row("c2.conv",   128,  3, 1, 1, 1, "separable"),
        Row("c2.down",   128,  3, 2, 2, 2, "separable"),  # 16x16 -> 8x8
        Row("t2.conv",    64,  1, 1, 1, 0, "separable"),
        Row("c3.conv",   128,  3, 1, 1, 1, "separable"),
        Row("c3.down",   128,  3, 1, 2, 1, "separable"),  # 8x8 -> 6x6
        Row("t3.conv",    64,  1, 1, 1, 0, "separable"),
        Row("c4.conv",   128,  3, 1, 1, 1, "separable"),
        Row("o.gap",       0,  0, 0, 0, 0, "gap"),
        Row("o.conv", CLASSES, 1, 1, 1, 0, "separable"),
    ],
}
# --downsample: the rows it changes, each with its new (stride, dilation, padding).
DOWNSAMPLE = {
    # The tables as they stand: dilated kernels in the place of max pooling.
    "dilated": {},
    # The assignment's base form; the dilated layer it also asks for moves to C4.
    "strided": {
        "c1.down": (2, 1, 1), "c2.down": (2, 1, 1), "c3.down": (2, 1, 1),
        "c4.conv": (1, 2, 2),
    },
    # No stride at all: unpadded kernels of dilation d take 2d pixels off a side,
    # 32 -> 22 -> 12 -> 6, and padded ones widen the view without shrinking the map.
    "stride-free": {
        "c1.down": (1, 5, 0), "c2.down": (1, 5, 0), "c3.down": (1, 3, 0),
        "c2.conv": (1, 2, 2), "c3.conv": (1, 3, 3), "c4.conv": (1, 3, 3),
    },
}
# fmt: on
NORMS = {
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(math.gcd(8, channels), channels),
    "layer": lambda channels: nn.GroupNorm(1, channels),  # over C, H, W of an image
}
DROPOUT = {"reference": 0.05}  # where none is given, and another one than 0


class Net(nn.Module):
    """The network of a table: uint8 images (N, 3, H, W) to logits (N, classes).

    `mean` and `std` are those of the training pixels, 0..1, a value a channel:
    normalising is part of the network, so that it is never forgotten or done twice.
    `config` keeps all arguments as plain types; `Net(**config)` is the same network.
    """

    def __init__(self, rows, classes, norm, dropout, mean, std):
        super().__init__()
        self.config = {"rows": [list(row) for row in rows], "classes": classes}
        self.config |= {"norm": norm, "dropout": dropout, "mean": mean, "std": std}
        for name, values in (("mean", mean), ("std", std)):
            values = torch.tensor(values, dtype=torch.float32).view(3, 1, 1)
            self.register_buffer(name, values, persistent=False)
        channels = 3
        for row in map(Row._make, rows):
            if row.channels == CLASSES:
                row = row._replace(channels=classes)
            elif row.kind in ("gap", "maxpool"):
                row = row._replace(channels=channels)
            is_last = row.name == rows[-1][0]
            block, _, name = row.name.partition(".")
            if block not in self._modules:
                self.add_module(block, nn.Sequential())
            layer = make_layer(row, channels, norm, dropout, is_last)
            self.get_submodule(block).add_module(name, layer)
            channels = row.channels
        self.to(memory_format=torch.channels_last)  # the faster one, on CPUs as on GPUs

    def forward(self, images):
        x = (images / 255 - self.mean) / self.std
        for block in self.children():
            x = block(x)
        return x.flatten(1)


def make_layer(row, channels, norm, dropout, is_last):
    """The modules of one row, for an input of `channels`; the last row gives logits."""
    if row.kind == "gap":
        return nn.AdaptiveAvgPool2d(1)
    window = (row.kernel, row.stride, row.padding, row.dilation)
    if min(row.kernel, row.stride, row.dilation) < 1 or row.padding < 0:
        raise ValueError(
            f"row {row.name}: kernel, stride, dilation of 1 or more, please"
        )
    if row.kind == "maxpool":
        return nn.MaxPool2d(*window)
    layer = Residual() if row.kind == "residual" else nn.Sequential()
    if row.kind == "separable":
        layer.depthwise = Depthwise(channels, *window)
        layer.pointwise = nn.Conv2d(channels, row.channels, 1, bias=False)
    elif row.kind in ("plain", "residual"):
        layer.conv = nn.Conv2d(channels, row.channels, *window, bias=False)
    else:
        raise ValueError(f"row {row.name} is of unknown kind '{row.kind}'")
    if not is_last:
        layer.norm = NORMS[norm](row.channels)
        layer.relu = nn.ReLU(inplace=True)
        layer.dropout = Dropout(dropout)
    return layer


def build(arch, downsample, norm, dropout, classes=10, mean=(0.0,) * 3, std=(1.0,) * 3):
    """The `Net` of these names; `dropout` None is the table's own.

    Raises UserError where the table makes no network for 32x32 images.
    """
    dropout = DROPOUT.get(arch, 0.0) if dropout is None else dropout
    rows = {row.name: row for row in ARCHS[arch]}
    if len(rows) < len(ARCHS[arch]):
        raise UserError(f"two rows of the table '{arch}' have the same name")
    for name, (stride, dilation, padding) in DOWNSAMPLE[downsample].items():
        if name not in rows:
            raise UserError(f"'{downsample}' changes row {name}, which '{arch}' lacks")
        changes = {"stride": stride, "dilation": dilation, "padding": padding}
        rows[name] = rows[name]._replace(**changes)
    try:
        net = Net([*rows.values()], classes, norm, dropout, [*mean], [*std])
        trace(net)
    except (KeyError, NotImplementedError, RuntimeError, ValueError) as error:
        raise UserError(f"the table '{arch}' makes no network: {error}")
    return net


def restore(checkpoint):
    """The `Net` of a loaded checkpoint, with its weights; UserError if it has none.

    It is built without memory first, so that a damaged table cannot ask for too much.
    """
    config, weights = checkpoint["net"], checkpoint["weights"]
    try:
        with torch.device("meta"):
            sketch = Net(**config)
        expected = {name: value.shape for name, value in sketch.state_dict().items()}
        if expected != {name: weight.shape for name, weight in weights.items()}:
            raise ValueError("its weights are not those of its table")
        if max(max(op.shape[1:], default=1) for op in trace(sketch)) > 128:
            raise ValueError("its maps are larger than four times the image")
        net = Net(**config)
        net.load_state_dict(weights)
        with torch.no_grad():  # some damage only shows when it runs
            net.eval()(torch.zeros(1, 3, 32, 32))
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        NotImplementedError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise UserError(f"the network of the checkpoint cannot be built: {error}")
    return net


class Axis(NamedTuple):
    """One axis of a feature map: unit i depends on the input pixels from
    `first + i * jump` to `last + i * jump`."""

    size: int
    jump: int = 1
    first: int = 0
    last: int = 0

    @property
    def field(self):
        """The receptive field, in pixels."""
        return self.last - self.first + 1

    @property
    def start(self):
        """The start offset: where the receptive field of unit 0 is centred."""
        return (self.first + self.last) / 2

    def slide(self, size, kernel, stride, padding, dilation):
        """The axis after a convolution or pool with this window."""
        first = self.first - padding * self.jump
        last = self.last + (dilation * (kernel - 1) - padding) * self.jump
        return Axis(size, self.jump * stride, first, last)

    def union(self, other):
        """The axis of a sum or concatenation: what is seen through either branch."""
        if (self.size, self.jump) != (other.size, other.jump):
            raise NotImplementedError("branches of different size or stride meet")
        first, last = min(self.first, other.first), max(self.last, other.last)
        return Axis(self.size, self.jump, first, last)


class Op(NamedTuple):
    """One operation of the network that runs."""

    row: str  # the name of the row it belongs to
    name: str  # such as "conv2d" or "add"
    module: nn.Module | None
    window: tuple | None  # (kernel, stride, padding, dilation), a pair (H, W) each
    shape: tuple  # of its output, (C, H, W)
    axes: list  # of its output, an `Axis` for H and one for W

    @property
    def receptive_field(self):
        """In pixels, the larger of height's and width's."""
        return max(axis.field for axis in self.axes)

    @property
    def macs(self):
        """Multiply-adds an image, those of convolutions and linear layers."""
        if self.name not in ("conv2d", "linear"):
            return 0
        return self.module.weight.numel() * math.prod(self.shape[1:])


class Tracer(fx.Tracer):
    """Takes Depthwise as one operation, as it does PyTorch's own convolutions."""

    def is_leaf_module(self, module, name):
        return isinstance(module, nn.Conv2d) or super().is_leaf_module(module, name)


def trace(net, size=32):
    """The operations that run on images of size x size pixels, in order: a list of `Op`.

    Read off the network by torch.fx. Known are convolutions, pools, global average
    pooling, sums and concatenations; whatever else keeps the size of the map is taken
    to work pixel by pixel. Raises NotImplementedError for anything beyond.
    Arithmetic: Araujo, Norris, Sim, "Computing Receptive Fields of Convolutional Neural
    Networks", Distill, 2019.
    """
    net = copy.deepcopy(net).to("meta").eval()  # only shapes count
    images = torch.zeros(1, 3, size, size, device="meta")
    graph = fx.GraphModule(net, Tracer().trace(net))
    with torch.no_grad():
        net(images)  # if layers do not fit, it says so; ShapeProp prints a traceback
        ShapeProp(graph).propagate(images)
    ops, axes = [], {}
    for node in graph.graph.nodes:
        branches = [axes[source] for source in node.all_input_nodes if source in axes]
        if node.op == "placeholder":
            axes[node] = [Axis(size), Axis(size)]
        if not branches or node.op == "output" or "tensor_meta" not in node.meta:
            continue  # the input, a constant, a number
        name = getattr(node.target, "__name__", str(node.target))
        module, settings = None, {}
        if node.op == "call_module":
            module = graph.get_submodule(node.target)
            is_conv = isinstance(module, nn.Conv2d)
            name = "conv2d" if is_conv else type(module).__name__
            settings = vars(module)
        elif "pool" in name:
            arguments = node.normalized_arguments(
                graph, normalize_to_only_use_kwargs=True
            )
            settings = arguments.kwargs
        name = name.lower().replace("_", "")
        shape = tuple(node.meta["tensor_meta"].shape[1:])
        axes[node] = [functools.reduce(Axis.union, axis) for axis in zip(*branches)]
        window = window_of(name, settings, axes[node], shape[1:])
        if window:
            slides = zip(shape[1:] or (1, 1), *window)
            axes[node] = [axis.slide(*s) for axis, s in zip(axes[node], slides)]
        path = [*node.meta.get("nn_module_stack", [name])][-1]
        row = ".".join(path.split(".")[:2])
        ops.append(Op(row, name, module, window, shape, axes[node]))
    return ops


def window_of(name, settings, axes, size):
    """The kernel, stride, padding and dilation of an operation that has a window.

    `axes` are those of its input, `size` the height and width of its output.
    """
    before = tuple(axis.size for axis in axes)
    if name in ("conv2d", "maxpool2d", "avgpool2d") and "kernel_size" in settings:
        kernel = pair(settings["kernel_size"])
        dilation = pair(settings.get("dilation", 1))
        padding = settings["padding"]
        if isinstance(padding, str):  # "same" or "valid"
            same = padding == "same"
            padding = [same * d * (k - 1) // 2 for k, d in zip(kernel, dilation)]
        return kernel, pair(settings["stride"] or kernel), pair(padding), dilation
    if len(size) < 2 or (name.startswith("adaptive") and size == (1, 1)):
        return before, before, (0, 0), (1, 1)  # flattened or averaged: the whole map
    if "conv" in name or size != before:
        raise NotImplementedError(f"the receptive field of '{name}' is not known")
    return None


def pair(value):
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def checklist(net, accuracy=None):
    """The assignment's rules, read off the network: a list of (rule, figure, passed).

    The receptive field is the one before global average pooling. An `accuracy` (0 to 1)
    adds the rule on it.
    """
    ops = [op for op in trace(net) if op.window]
    maps = [op for op in ops if op.shape[1:] > (1, 1)]
    rest = [op for op in ops if op not in maps]
    pooled = [op for op in rest if op.macs or op.window[0] > (1, 1)]  # no bare flatten
    convs = [op for op in ops if op.name == "conv2d"]
    threes = [op for op in convs if op.window[0] == (3, 3)]
    blocks = {op.row.split(".")[0] for op in threes}
    shrinking = [
        b for a, b in pairwise(maps) if b in threes and b.shape[1:] < a.shape[1:]
    ]
    pools = [op for op in ops if "maxpool" in op.name]
    separable = [a for a, b in pairwise(convs) if is_depthwise(a) and is_1x1(b)]
    dilated = [op for op in convs if max(op.window[3]) > 1]
    averages = ("adaptiveavgpool2d", "avgpool2d", "mean")
    ends = [op.name in averages for op in pooled[:1]] + [*map(is_1x1, pooled[1:])]
    total = sum(weight.numel() for weight in net.parameters())
    field = maps[-1].receptive_field

    def rows(ops):
        return ", ".join(dict.fromkeys(op.row for op in ops)) or "none"

    rules = [
        ("under 200,000 parameters", f"{total:,}", total < 200_000),
        ("receptive field over 44", f"{field}", field > 44),
        ("3x3 in C1 C2 C3 C4", rows(threes), {"c1", "c2", "c3", "c4"} <= blocks),
        ("three shrinking 3x3 layers", rows(shrinking), len(shrinking) >= 3),
        ("no max pooling", rows(pools), not pools),
        ("depthwise-separable layer", rows(separable), bool(separable)),
        ("dilated layer", rows(dilated), bool(dilated)),
        ("GAP, then 1x1 or linear", rows(pooled), len(ends) > 1 and all(ends)),
    ]
    if accuracy is not None:
        rules.append(("test accuracy of 85 %", f"{accuracy:.2%}", accuracy >= 0.85))
    return rules


def is_depthwise(op):
    """Whether a convolution filters each channel by itself, over more than a pixel."""
    return op.window[0] > (1, 1) and op.module.groups == op.module.in_channels > 1


def is_1x1(op):
    return op.name in ("conv2d", "linear") and op.window[0] == (1, 1)


def print_checklist(rules):
    """Print the rules, one a line, and return whether all of them passed."""
    print("\nThe assignment's rules")
    for text, figure, passed in rules:
        print(f"  {'pass' if passed else 'FAIL'}  {text:28}{figure}")
    return all(passed for _, _, passed in rules)


def print_summary(net):
    """Print the network, a row a line, and its totals."""
    line = "{:9}{:21}{:>11}{:>8}{:>12}{:>8}{:>7}{:>9}{:>7}{:>6}".format
    titles = "layer type output params mult-adds kernel stride dilation field jump"
    print(line(*titles.split()))
    ops = [op for op in trace(net) if "." in op.row]
    for row, group in groupby(ops, key=lambda op: op.row):
        group = list(group)
        first, last, macs = group[0], group[-1], [op.macs for op in group if op.macs]
        kind = "separable" if len(macs) > 1 else first.name
        kind += " + input" if last.name == "add" else ""
        parameters = sum(p.numel() for p in net.get_submodule(row).parameters())
        kernel, stride, _, dilation = first.window
        size = "x".join(map(str, last.shape)), f"{parameters:,}", f"{sum(macs):,}"
        window = "x".join(map(str, kernel)), stride[0], dilation[0]
        view = last.receptive_field, last.axes[0].jump
        print(line(row, kind, *size, *window, *view))
    total = sum(weight.numel() for weight in net.parameters())
    macs = sum(op.macs for op in ops)
    print(f"{total:,} parameters, {macs:,} multiply-adds an image")


def add_network_options(parser):
    """Add the options that choose a network: the first arguments of `build`."""
    add = parser.add_argument_group("network").add_argument
    share = number(float, 0, 1)
    add("--arch", choices=ARCHS, default="residual", help="a table of model.py")
    add("--downsample", choices=DOWNSAMPLE, default="dilated", help="how maps shrink")
    add("--norm", choices=NORMS, default="batch", help="normalisation")
    add("--dropout", type=share, help="probability; None: the table's own")


def main(argv=None):
    parser = Parser(description="Show a network and check the assignment's rules.")
    add_network_options(parser)
    net = build(**vars(parser.parse_args(argv)))
    print_summary(net)
    return 0 if print_checklist(checklist(net)) else 1


if __name__ == "__main__":
    run(main)
