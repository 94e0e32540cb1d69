"""The network: the tables of layers, what is built from them, and its receptive field.

    python model.py [--arch NAME] [--downsample HOW] [--norm NAME]

prints every layer with its parameters and receptive field, then the assignment's rules,
each with its value; the exit status is 1 when a rule fails or cannot be decided. To make
a variant, change rows of a table, or add a table or a class of your own to ARCHS: the
summary, the rules and the training follow.
"""

from typing import NamedTuple

import torch
from torch import nn

from body import CLASSES, TableNet, check_options, make_own
from graph import computed_macs, record, try_out
from layers import NORMS, Row
from rules import checklist, count_parameters, print_checklist
from summary import plot_network, print_summary, summarise, title_of
from utils import Parser, UserError, check_writable, line_of, number, run

# fmt: off
ARCHS = {
    # Plain kernels, since a CPU does more of their multiply-adds a second than of separable
    # ones; most of the weights at 8x8, where an image costs little.
    "default": [
        #   name      channels k  s  d  p  kind
        Row("c1.conv",    48,  3, 1, 1, 1, "plain"),
        Row("c1.down",    88,  3, 2, 2, 2, "plain"),      # 32x32 -> 16x16
        Row("c2.conv",    88,  3, 1, 1, 1, "residual"),
        Row("c2.down",    88,  3, 2, 2, 2, "plain"),      # 16x16 -> 8x8
        Row("c3.conv",    88,  3, 1, 1, 1, "residual"),
        Row("c3.conv2",   88,  3, 1, 1, 1, "residual"),
        Row("c3.down",    64,  3, 1, 2, 1, "plain"),      # 8x8 -> 6x6
        Row("c4.conv",   160,  3, 1, 1, 1, "separable"),
        Row("o.gap",       0,  0, 0, 0, 0, "gap"),
        Row("o.conv", CLASSES, 1, 1, 1, 0, "plain"),
    ],
    # For a long training: most of the work at 32x32, where a weight is used 1,024 times.
    "record": [
        Row("c1.conv",    48,  3, 1, 1, 1, "plain"),
        Row("c1.conv2",   48,  3, 1, 1, 1, "residual"),
        Row("c1.conv3",   48,  3, 1, 1, 1, "residual"),
        Row("c1.conv4",   48,  3, 1, 1, 1, "residual"),
        Row("c1.down",    80,  3, 2, 2, 2, "plain"),      # 32x32 -> 16x16
        Row("c2.conv",    80,  3, 1, 1, 1, "residual"),
        Row("c2.conv2",   80,  3, 1, 1, 1, "residual"),
        Row("c2.down",    80,  3, 2, 2, 2, "plain"),      # 16x16 -> 8x8
        Row("c3.conv",    80,  3, 1, 1, 1, "residual"),
        Row("c3.down",    72,  3, 1, 2, 1, "plain"),      # 8x8 -> 6x6
        Row("c4.conv",   144,  3, 1, 1, 1, "separable"),
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
# --kernels: half of each layer's are the mirror images of the other half, or all are free.
KERNELS = ("mirrored", "free")
FREE = {"reference"}  # the tables that want all their kernels free by default
DROPOUT = {"reference": 0.05}  # the tables that want another default than 0


class Net(nn.Module):
    """A network of ARCHS behind its normalisation: uint8 images (N, 3, H, W), or floats
    from 0 to 255, to scores (N, classes).

    `mean` and `std` are those of the training pixels, 0 to 1, one value per channel:
    normalising is part of the network, so that it is never forgotten or done twice.
    `rows` is the table, or None where ARCHS[arch] is a class. `config` keeps all arguments
    as plain types; `Net(**config)` is the same network. Checkpoints of older versions name
    no `kernels`: theirs are free.
    """

    def __init__(self, arch, rows, classes, norm, dropout, mean, std, kernels="free"):
        super().__init__()
        self.config = {
            "arch": arch,
            "rows": None if rows is None else [list(row) for row in rows],
            "classes": classes,
            "norm": norm,
            "dropout": dropout,
            "mean": list(mean),
            "std": list(std),
            "kernels": kernels,
        }
        for name, values in (("mean", mean), ("std", std)):
            values = torch.tensor(values, dtype=torch.float32).view(3, 1, 1)
            self.register_buffer(name, values, persistent=False)
        if rows is None:
            self.body = make_own(ARCHS[arch], classes, norm, dropout)
            # A class of one's own may call view(), which channels-last tensors refuse.
            self.layout = torch.contiguous_format
        else:
            rows = [Row(*row) for row in rows]
            self.body = TableNet(rows, classes, norm, dropout, kernels)
            self.layout = torch.channels_last  # the faster one, on CPUs as on GPUs
            self.to(memory_format=self.layout)

    def forward(self, images):
        x = (images / 255 - self.mean) / self.std
        x = x.contiguous(memory_format=self.layout)
        return self.body(x).flatten(1)


def build(
    arch,
    downsample,
    norm,
    dropout,
    classes=10,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    kernels=None,
):
    """The `Net` of these names; for `dropout` and `kernels` None is the table's own.

    Raises UserError where it makes no network for 32x32 images.
    """
    if callable(ARCHS[arch]):
        check_options(ARCHS[arch], arch, downsample, norm, dropout, kernels)
        rows, kernels = None, "free"
    else:
        rows = table(arch, downsample)
        if dropout is None:
            dropout = DROPOUT.get(arch, 0.0)
        if kernels is None:
            kernels = "free" if arch in FREE else "mirrored"
    try:
        net = Net(arch, rows, classes, norm, dropout, mean, std, kernels)
        scores, _ = try_out(net)
    except Exception as error:  # noqa: BLE001 - of any type, by what the class does
        place = "" if rows else f" ({line_of(error)})"
        raise UserError(f"'{arch}' makes no network: {error}{place}")
    if scores.shape != (2, classes):
        raise UserError(
            f"'{arch}' makes no network: its scores of 2 images have the shape "
            f"{tuple(scores.shape)}, not (2, {classes})"
        )
    return net


def table(arch, downsample):
    """The rows of a table, changed as --downsample says."""
    rows = {row.name: row for row in ARCHS[arch]}
    if len(rows) < len(ARCHS[arch]):
        raise UserError(f"two rows of the table '{arch}' have the same name")
    for name, (stride, dilation, padding) in DOWNSAMPLE[downsample].items():
        if name not in rows:
            raise UserError(f"'{downsample}' changes row {name}, which '{arch}' lacks")
        rows[name] = rows[name]._replace(
            stride=stride, dilation=dilation, padding=padding
        )
    return list(rows.values())


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


def trace(net, size=32):
    """The operations that run on images of size x size pixels, as a list of `graph.Node`.

    Each has its `axes`, the receptive field's arithmetic for height and width, or None and
    the reason in `unknown`. Arithmetic: Araujo, Norris, Sim, "Computing Receptive Fields of
    Convolutional Neural Networks", Distill, 2019.
    """
    nodes = record(net, size)
    nodes[0].axes = [Axis(size), Axis(size)]  # the image
    for node in nodes[1:]:
        for source in node.sources:
            node.unknown = node.unknown or source.unknown
        if node.unknown:
            continue
        try:
            node.axes = [axis_after(node, 0), axis_after(node, 1)]
        except NotImplementedError as error:
            node.unknown = str(error)
    return nodes


def axis_after(node, number):
    """The `Axis` of a node's output: number 0 is its height, 1 its width."""
    axis = node.sources[0].axes[number]
    for source in node.sources[1:]:
        axis = axis.union(source.axes[number])
    if node.window is None:
        return axis
    kernel, stride, padding, dilation = (pair[number] for pair in node.window)
    return axis.slide(node.size[number], kernel, stride, padding, dilation)


def add_network_options(parser):
    """Add the options that choose a network: the first arguments of `build`."""
    add = parser.add_argument_group("network").add_argument
    probability = number(float, 0, below=1)
    add("--arch", choices=ARCHS, default="default", help="a table or class of model.py")
    add("--downsample", choices=DOWNSAMPLE, default="dilated", help="how maps shrink")
    add("--norm", choices=NORMS, default="batch", help="normalisation")
    add(
        "--kernels",
        choices=KERNELS,
        help="mirrored: half of the kernels of each layer but the last are the mirror images "
        "of the others; free: none are (default: mirrored, but for reference and classes)",
    )
    add(
        "--dropout",
        type=probability,
        help="dropout probability (default: that of the network)",
    )


def main(argv=None):
    parser = Parser(description="Show a network and check the assignment's rules.")
    add_network_options(parser)
    parser.add_argument(
        "--plot",
        nargs="?",
        const="results/network.png",
        metavar="FILE",
        help="draw the network too, into results/network.png or another file",
    )
    args = parser.parse_args(argv)
    if args.plot:
        check_writable(args.plot)
    choice = (args.arch, args.downsample, args.norm, args.dropout)
    net = build(*choice, kernels=args.kernels)
    nodes = trace(net)
    lines = summarise(net, nodes)
    total = count_parameters(net)
    print_summary(lines, total, computed_macs(net))
    if args.plot:
        plot_network(lines, title_of(net.config, args.downsample), args.plot)
        print(f"Picture: {args.plot}")
    return 0 if print_checklist(checklist(net, nodes)) else 1


if __name__ == "__main__":
    run(main)
