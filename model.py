"""The network: its tables of layers, what is built from them, and its receptive field.

    python model.py [--arch NAME] [--downsample HOW] [--norm NAME] [--computed]

prints every layer with its parameters and receptive field, then the assignment's rules,
each with its value; the exit status is 1 when a rule fails or cannot be decided. To make
a variant, change rows of a table, or add a table or a class of your own to ARCHS: the
summary, the rules and the training follow.
"""

import copy
import inspect
import math
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from layers import (
    ACTIVATIONS,
    CLASSES,
    KEEPS_CHANNELS,
    NORMS,
    ONE_KERNEL,
    WITHOUT_WINDOW,
    Row,
    as_computed,
    has_foreign_kernels,
    head_row,
    make_layer,
    mirror_kernels,
    run_as_written,
    size_after,
)
from receptive_field import computed_macs, covers_map, layer_of, trace
from rules import (
    RECEPTIVE_FIELD,
    add_rules_option,
    checklist,
    count_parameters,
    is_depthwise,
    name_of,
    print_checklist,
    print_note_on_scores,
)
from utils import (
    SIDE,
    Parser,
    UserError,
    check_writable,
    in_short,
    line_of,
    number,
    run,
    times,
)

RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")  # PyTorch counts no work of theirs
TRIED = 16  # images that a new network is tried with: some norms part a batch evenly
# --kernels: half of each layer's are the mirror images of the other half, or all are free.
KERNELS = ("mirrored", "free")


class Unfit(ValueError):
    """A network, as a class of one's own may make it, that cannot be used here."""


class Arch(NamedTuple):
    """A table of ARCHS, and what it wants where no option says otherwise."""

    rows: list
    kernels: str = "free"  # one of KERNELS
    dropout: float = 0.0
    activation: str = "relu"  # one of ACTIVATIONS


# fmt: off
# The networks by name: a list of rows, an `Arch` of them, or a class of one's own.
ARCHS = {
    # Plain kernels, since a CPU does more of their multiply-adds a second than of separable
    # ones; most of the weights at 8x8, where an image costs little.
    "default": Arch([
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
    ], kernels="mirrored", activation="silu"),
    # The default's layers without mirrored kernels, and narrower: as many parameters.
    "plain": Arch([
        Row("c1.conv",    32,  3, 1, 1, 1, "plain"),
        Row("c1.down",    64,  3, 2, 2, 2, "plain"),      # 32x32 -> 16x16
        Row("c2.conv",    64,  3, 1, 1, 1, "residual"),
        Row("c2.down",    64,  3, 2, 2, 2, "plain"),      # 16x16 -> 8x8
        Row("c3.conv",    64,  3, 1, 1, 1, "residual"),
        Row("c3.conv2",   64,  3, 1, 1, 1, "residual"),
        Row("c3.down",    40,  3, 1, 2, 1, "plain"),      # 8x8 -> 6x6
        Row("c4.conv",   112,  3, 1, 1, 1, "separable"),
        Row("o.gap",       0,  0, 0, 0, 0, "gap"),
        Row("o.conv", CLASSES, 1, 1, 1, 0, "plain"),
    ], activation="silu"),
    # For a long training: most of the work at 32x32, where a weight is used 1,024 times.
    "record": Arch([
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
    ], kernels="mirrored", activation="silu"),
    # The network published for this assignment in the course EVA8.
    "reference": Arch([
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
    ], dropout=0.05),
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


def table_of(arch):
    """The `Arch` of a name, or None where it names a class of one's own."""
    entry = ARCHS[arch]
    if isinstance(entry, nn.Module):
        raise UserError(
            f"'{arch}' of ARCHS is a network: name its class instead, without (), or write "
            "lambda classes: before it"
        )
    if callable(entry):
        return None
    chosen = entry if isinstance(entry, Arch) else Arch(entry)
    if not all(isinstance(row, Row) for row in chosen.rows):
        raise UserError(f"the table '{arch}' of ARCHS is no list of Row(...)")
    return chosen


class TableNet(nn.Sequential):
    """The network of a table: images (N, 3, H, W) to scores (N, classes, 1, 1).

    It runs the rows as they are computed (`layers.as_computed`), or with `is_written` as
    the table says. Raises ValueError, naming the row, where a row makes no layer for
    images of SIDE x SIDE pixels.
    """

    def __init__(
        self,
        rows,
        classes,
        norm,
        dropout,
        kernels="free",
        activation="relu",
        is_written=False,
    ):
        super().__init__()
        channels, size, blocks = 3, SIDE, []
        as_run = rows if is_written else as_computed(rows, norm)
        head = head_row(rows)
        for row, computed in zip(rows, as_run, strict=True):
            is_head = row is head
            if row.channels == CLASSES:
                row = row._replace(channels=classes)
                computed = computed._replace(channels=classes)
            size = size_after(row, size)
            if size > 4 * SIDE:  # of a damaged file, say: it would take all memory
                raise ValueError(f"row {row.name}: a map of {size}x{size} is too large")
            block, _, name = row.name.partition(".")
            if not name:
                raise ValueError(f"row {row.name}: a name is block.layer, as c1.conv")
            if block not in blocks:
                self.add_module(block, nn.Sequential())
                blocks.append(block)
            elif block != blocks[-1]:  # `forward` runs block by block
                raise ValueError(
                    f"row {row.name}: the rows of {block} must follow one another"
                )
            kinds = (norm, activation, dropout)
            layer = make_layer(row, computed, channels, *kinds, is_head)
            if kernels == "mirrored" and not is_head:
                mirror_kernels(layer)
            self.get_submodule(block).add_module(name, layer)
            if row.kind not in KEEPS_CHANNELS:
                channels = row.channels
        if is_written:
            run_as_written(self)


def make_own(make, classes, norm, dropout, activation):
    """Call a class of one's own with those of the options that its signature names.

    What is None is not passed on: the default of the class holds.
    """
    options = {"classes": classes, "num_classes": classes}  # under either name
    options |= {"norm": norm, "dropout": dropout, "activation": activation}
    named = inspect.signature(make).parameters
    given = {}
    for name, value in options.items():
        if name in named and value is not None:
            given[name] = value
    return make(**given)


def check_options(arch, downsample, norm, dropout, kernels, activation):
    """Raise UserError for an option that a class of one's own would not heed."""
    named = inspect.signature(ARCHS[arch]).parameters
    if downsample != "dilated":
        raise UserError(f"--downsample changes rows of a table; '{arch}' is none")
    if kernels == "mirrored":
        raise UserError(f"--kernels mirrored is for tables; '{arch}' is none")
    options = {"norm": norm, "dropout": dropout, "activation": activation}
    for name, value in options.items():
        if value is not None and name not in named:
            raise UserError(f"'{arch}' takes no {name}: leave out --{name}")


class Net(nn.Module):
    """A network of ARCHS behind its normalisation: uint8 images (N, 3, H, W), or floats
    from 0 to 255, to scores (N, classes).

    `mean` and `std` are those of the training pixels, 0 to 1, one value per channel:
    normalising is part of the network, so that it is never forgotten or done twice.
    `rows` is the table, or None where ARCHS[arch] is a class. `config` keeps all arguments
    as plain types; `Net(**config)` is the same network.
    """

    def __init__(
        self,
        arch,
        rows,
        classes,
        norm,
        dropout,
        mean,
        std,
        kernels,
        activation,
        side=SIDE,
    ):
        super().__init__()
        if side != SIDE:
            raise Unfit(
                f"it is for images of {side}x{side} pixels: set SIDE of utils.py to {side}"
            )
        self.config = {
            "arch": arch,
            "rows": None if rows is None else [list(row) for row in rows],
            "classes": classes,
            "norm": norm,
            "dropout": dropout,
            "mean": list(mean),
            "std": list(std),
            "kernels": kernels,
            "activation": activation,
            "side": side,
        }
        for name, values in (("mean", mean), ("std", std)):
            values = torch.tensor(values, dtype=torch.float32).view(3, 1, 1)
            self.register_buffer(name, values, persistent=False)
        self.rows = None
        if rows is None:
            self.body = make_own(ARCHS[arch], classes, norm, dropout, activation)
            if any(map(is_lazy, [*self.body.parameters(), *self.body.buffers()])):
                with torch.no_grad():  # lazy layers have weights once they have run
                    self.body.eval()(torch.zeros(2, 3, SIDE, SIDE))
                self.body.train()
            # A class of one's own may call view(), which channels-last tensors refuse.
            self.layout = torch.contiguous_format
        else:
            self.rows = [Row(*row) for row in rows]
            self.settings = (classes, norm, dropout, kernels, activation)
            self.body = TableNet(self.rows, *self.settings)
            self.layout = torch.channels_last  # the faster one, on CPUs as on GPUs
            self.to(memory_format=self.layout)

    def forward(self, images):
        x = (images / 255 - self.mean) / self.std
        x = x.contiguous(memory_format=self.layout)
        scores = self.body(x)
        if not isinstance(scores, torch.Tensor):
            when = "training" if self.training else "evaluation"
            kind = type(scores).__name__
            raise Unfit(f"in {when} it returns a {kind}, not a tensor of scores")
        if scores.ndim < 2:
            raise Unfit(
                f"of {len(images)} images it returns scores of the shape "
                f"{tuple(scores.shape)}, not ({len(images)}, classes)"
            )
        return scores.flatten(1)

    def as_written(self):
        """A copy on the CPU that runs as the table says, each convolution in one piece.

        It is what the summary and the rules look at. A class always runs as it is written.
        """
        copied = copy.deepcopy(self).cpu()
        if self.rows is not None:
            with torch.random.fork_rng(devices=[]):  # whose draws are the training's
                copied.body = TableNet(self.rows, *self.settings, is_written=True)
            copied.load_state_dict(self.state_dict())
        run_as_written(copied)
        return copied.train(self.training)


def build(
    arch,
    downsample,
    norm,
    dropout,
    classes=10,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    kernels=None,
    activation=None,
):
    """The `Net` of these names; None is the default of the table or of the class.

    Raises UserError where it makes no network for images of SIDE x SIDE pixels.
    """
    chosen = table_of(arch)
    if chosen is None:
        check_options(arch, downsample, norm, dropout, kernels, activation)
        rows, kernels = None, "free"
    else:
        rows = table(arch, downsample)
        norm, activation = norm or "batch", activation or chosen.activation
        dropout = chosen.dropout if dropout is None else dropout
        kernels = kernels or chosen.kernels
    try:
        net = Net(arch, rows, classes, norm, dropout, mean, std, kernels, activation)
        check_scores(net)
    except Exception as error:  # noqa: BLE001 - of any type, by what the class does
        place = "" if rows else f" ({place_of(error, arch)})"
        raise UserError(f"'{arch}' makes no network: {error}{place}")
    if rows:
        check_rows(net)
    return net


def place_of(error, arch):
    """Where the code of a class of one's own stands that an error comes from."""
    forward = getattr(ARCHS[arch], "forward", None)
    if not isinstance(error, Unfit) or forward is None:
        return line_of(error)
    code = inspect.unwrap(forward).__code__
    name = f"{ARCHS[arch].__name__}.forward"
    return f"{name}, {Path(code.co_filename).name}, line {code.co_firstlineno}"


def takes(net, side):
    """Whether a network takes images of side x side pixels too, such as by a global pooling."""
    try:
        check_scores(net, side)
    except Exception:  # noqa: BLE001 - of any type, by what the network does
        return False
    return True


def check_scores(net, side=SIDE):
    """Raise Unfit where a network does not give a score for each class and image.

    It runs as it will: for one image and for several, in training and in evaluation.
    """
    copied = copy.deepcopy(net)  # whose statistics may change
    # Dropout draws here too: a training's own draws stay as they are.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for count, in_training in ((2, False), (1, False), (TRIED, True)):
            images = random_images(count, net.mean.device, side)
            scores = copied.train(in_training)(images)
            when = f"in {'training' if in_training else 'evaluation'}"
            wanted = (count, net.config["classes"])
            if scores.shape != wanted:
                raise Unfit(
                    f"its scores of {count} images {when} have the shape "
                    f"{tuple(scores.shape)}, not {wanted}{untold(net.config)}"
                )
            if not scores.isfinite().all():
                raise Unfit(f"its scores of random images {when} are not finite")


def untold(config):
    """What to do, if a network of one's own is never told how many classes there are."""
    if config["rows"] is not None:
        return ""
    named = inspect.signature(ARCHS[config["arch"]]).parameters
    if "classes" in named or "num_classes" in named:
        return ""
    return (
        "; it is not told the number of classes: let its arguments have classes or "
        "num_classes, or ARCHS have lambda classes: of it"
    )


def is_close(scores, others, tolerance=0.01):
    """Whether scores are those of one network, on machines that round otherwise.

    `tolerance` is the share of their standard deviation by which they may differ: far above
    rounding, far below another network.
    """
    return (scores - others).abs().max() <= tolerance * others.std()


def random_images(count, device="cpu", side=SIDE):
    """Images of noise, always the same, to try out a network: uint8 (N, 3, side, side)."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, side, side)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return images.to(device)


def check_rows(net):
    """Raise UserError where the kinds of rows no longer do what is taken for granted.

    An edit of a kind may have added what cannot be mirrored, or what looks at more than
    single pixels, so that the rows as computed are another network than the table's.
    """
    for row in net.rows:
        is_mirrored = net.config["kernels"] == "mirrored"
        is_free = row.kind in KEEPS_CHANNELS or row is head_row(net.rows)
        layer = net.body.get_submodule(row.name)
        if is_mirrored and not is_free and has_foreign_kernels(layer):
            raise UserError(
                f"row {row.name}: a plain nn.Conv2d has no mirrored kernels: take Conv of "
                "layers.py, or --kernels free"
            )
    if as_computed(net.rows, net.config["norm"]) == net.rows:
        return
    images = random_images(2)
    with torch.no_grad():
        computed, written = (one.eval()(images) for one in (net, net.as_written()))
    net.train()
    if not is_close(computed, written):
        raise UserError(
            "the rows as computed give other scores than the table: leave the kind that you "
            "changed out of ONE_KERNEL of layers.py"
        )


def table(arch, downsample):
    """The rows of a table, changed as --downsample says."""
    given = table_of(arch).rows
    rows = {row.name: row for row in given}
    if len(rows) < len(given):
        raise UserError(f"two rows of the table '{arch}' have the same name")
    for name, (stride, dilation, padding) in DOWNSAMPLE[downsample].items():
        if name not in rows:
            raise UserError(
                f"'{downsample}' of DOWNSAMPLE changes row {name}, which '{arch}' lacks"
            )
        rows[name] = rows[name]._replace(
            stride=stride, dilation=dilation, padding=padding
        )
    return list(rows.values())


def try_out(net):
    """Scores (2, classes) of two random images, and the layer that gives them.

    That layer is the last convolution or linear layer that runs; None where there is none.
    """
    ran = []

    def note(layer, inputs, output):
        ran.append(layer)

    hooks = []
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            hooks.append(module.register_forward_hook(note))
    was_training = net.training
    with torch.no_grad():
        scores = net.eval()(random_images(2, net.mean.device))
    net.train(was_training)
    for hook in hooks:
        hook.remove()
    return scores, ran[-1] if ran else None


def find_head(net):
    """The layer that gives the scores, and the names of other weights of as many classes.

    The layer is the last convolution or linear layer that runs. It is None where there is
    none, or where only other weights have a shape that depends on the number of classes, as
    in a class of one's own with a layer of its own kind.
    """
    _, head = try_out(net)
    if head is None:
        return None, []
    config = {**net.config, "classes": net.config["classes"] + 1}
    try:
        with torch.random.fork_rng(devices=[]):  # whose draws are the training's
            wider = Net(**config).state_dict()
    except Exception:  # noqa: BLE001 - of any type: a class may be for some classes alone
        return head, []
    of_classes = []
    for name, weight in net.state_dict(keep_vars=True).items():
        if name in wider and wider[name].shape != weight.shape:
            of_classes.append((name, id(weight)))
    own = {id(weight) for weight in head.parameters()}
    others = [name for name, weight in of_classes if weight not in own]
    if others and len(others) == len(of_classes):
        head = None
    return head, others


def head_alone(net, option):
    """The layer that gives the scores; UserError, with the `option`, where others do as well."""
    head, others = find_head(net)
    if head is None:
        raise UserError(f"{option}: no layer of this network gives the scores")
    if others:
        classes = net.config["classes"]
        raise UserError(
            f"{option}: {others[0]} depends on the {classes} classes too, not only the last "
            "layer"
        )
    return head


def receptive_fields(rows):
    """The receptive field after each row of a table, and the jump: {name: (field, jump)}.

    A unit of a map sees `field` pixels of the image in height and in width, and the unit
    beside it the same, `jump` pixels further on. A kernel of k makes k - 1 steps of
    `dilation` units each; a stride makes the jumps of all later rows longer. Shortcuts see
    less than the rows they go around, and gates do not count, as is usual.

    It ends before a row of a kind that is not known here: then see `receptive_field.trace`,
    which looks at what runs.
    """
    fields, field, jump, size = {}, 1, 1, SIDE
    for row in rows:
        kernel, stride, dilation = row.kernel, row.stride, row.dilation
        if row.kind == "gap":  # a kernel as large as the map
            kernel, stride, dilation = size, size, 1
        elif row.kind == "squeeze":
            kernel, stride, dilation = 1, 1, 1
        elif row.kind not in (*ONE_KERNEL, "maxpool"):
            break
        field += (kernel - 1) * dilation * jump
        jump *= stride
        size = size_after(row, size)
        fields[row.name] = (field, jump)
    return fields


class Line(NamedTuple):
    """A line of the summary: a row of the network's table, or a layer of a class."""

    name: str
    kind: str
    shape: tuple  # of its output: channels, height and width; the number of values
    parameters: str  # "?" where they are not known
    macs: int  # multiply-adds an image
    kernel: tuple  # this and the next two of height and of width
    stride: tuple
    dilation: tuple
    receptive_field: tuple | None  # in pixels, (H, W); None where it is not known
    jump: tuple | None  # pixels of the image from one unit to the next


def summarise(net, nodes):
    """The `Line`s of a network, in the order in which they run.

    `nodes` are those of `trace`.
    """
    groups = []
    for name, members in groupby(nodes, key=lambda node: name_of(net, node)):
        members = list(members)
        if any(node.window for node in members):
            groups.append((name, members))
    modules = {layer_of(path): module for path, module in net.named_modules()}
    names = {name for name, _ in groups}
    return [line_of_summary(modules, names, *group) for group in groups]


def line_of_summary(modules, names, name, members):
    """The `Line` of the nodes that run in one row or layer.

    `modules` are all, by name; `names` are those of all lines.
    """
    windows = [node for node in members if node.window]
    main = max(windows, key=lambda node: (max(node.window.kernel), node.macs))
    last = members[-1]
    parameters = "?" if any(node.learns for node in members) else "0"
    if parameters == "?" and name in modules:
        own = set(modules[name].parameters())
        # Without those of the layers in it that have a line of their own.
        for other in names:
            if other.startswith(f"{name}."):
                own -= set(modules[other].parameters())
        parameters = f"{sum(weight.numel() for weight in own):,}"
    return Line(
        name=name,
        kind=kind_of(members, windows, main),
        shape=channels_first(last),
        parameters=parameters,
        macs=sum(node.macs for node in members),
        kernel=main.window.kernel,
        stride=main.window.stride,
        dilation=main.window.dilation,
        receptive_field=last.fields,
        jump=tuple(axis.jump for axis in last.axes) if last.axes else None,
    )


def channels_first(node):
    """The shape of a node's output as (C, H, W), however it lies in memory."""
    if len(node.shape) != 3:
        return node.shape or (1,)  # of a number, such as a mean of all
    height, width = node.size
    return (math.prod(node.shape) // (height * width), height, width)


def kind_of(members, windows, main):
    """What a row or layer is, in words: of its nodes, those with a window, the largest."""
    last = members[-1]
    if last.operation == "mul" and covers_map(main):
        return "gate"
    kind = main.operation
    if any(is_depthwise(node) for node in members):
        weights = [node for node in windows if node.weight]
        kind = "separable" if len(weights) > 1 else "depthwise"
    if last.operation == "add" and len(last.sources) > 1:
        has_shortcut = any(".shortcut" in node.layer for node in windows)
        kind += " + shortcut" if has_shortcut else " + input"
    return kind


def figures_of(net, nodes):
    """What a network comes to, in words, "?" where it is not known, and what runs, as a digest.

    `nodes` are those of `trace`. By the digest it is seen that a class was edited.
    """
    field = "?"
    for rule in checklist(net, nodes):
        if rule.text == RECEPTIVE_FIELD and rule.passed is not None:
            field = rule.value
    macs = max(sum(node.macs for node in nodes), computed_macs(net))
    ran = [(n.operation, n.shape, n.window, n.weight, n.groups) for n in nodes]
    return {
        "parameters": f"{count_parameters(net):,}",
        "receptive field": field,
        "mult-adds": f"{macs:,}",
        "code": sha256(repr(ran).encode()).hexdigest()[:8],
    }


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
            f"{in_short(line.stride):>7}{in_short(line.dilation):>9}"
            f"{in_short(line.receptive_field):>16}{in_short(line.jump):>5}"
        )
    macs = sum(line.macs for line in lines)
    print(f"{total:,} parameters, {macs:,} multiply-adds an image")
    if computed < macs:
        print(f"{computed:,} of them are computed: no layer reads what the others give")
    elif computed > macs:
        print(f"{computed - macs:,} more are computed in what is not listed")


def print_difference(lines, fields):
    """Print where the arithmetic of a table's rows, `fields`, is not what was traced."""
    for line in lines:
        field = fields.get(line.name, [None])[0]
        if field and line.receptive_field != (field, field):
            print(
                f"note: by its row alone the receptive field of {line.name} would be "
                f"{field}: its kind does more than the row says"
            )
            return


def title_of(config, downsample):
    """A network in words, by its `Net.config`."""
    if config["rows"] is None:
        return f"{config['arch']}, a class"
    words = [config["arch"], downsample, f"{config['norm']} norm"]
    if config["activation"] != "relu":
        words.append(config["activation"])
    if config["dropout"]:
        words.append(f"dropout {config['dropout']:g}")
    return ", ".join([*words, f"{config['kernels']} kernels"])


def print_computed(net):
    """Print the rows of a table as they run."""
    print("\nThe rows as they run; in brackets what the table says, where that differs")
    if net.rows is None:
        print("a class runs as it is written")
        return
    print(
        f"{'row':12}{'type':12}{'map':>8}{'kernel':>8}{'stride':>8}{'dilation':>10}"
        f"{'padding':>9}"
    )
    size = SIDE
    for row, computed in zip(net.rows, as_computed(net.rows, net.config["norm"])):
        size = size_after(computed, size)
        cells = []
        for name in ("stride", "dilation", "padding"):
            ran, said = getattr(computed, name), getattr(row, name)
            cells.append(f"{ran}" if ran == said else f"{ran} ({said})")
        kernel, (stride, dilation, padding) = times((row.kernel, row.kernel)), cells
        if row.kind in WITHOUT_WINDOW:
            kernel = stride = dilation = padding = "-"
        print(
            f"{row.name:12}{row.kind:12}{times((size, size)):>8}"
            f"{kernel:>8}{stride:>8}{dilation:>10}{padding:>9}"
        )


# The options that choose a network, by the names of `build`'s arguments.
NETWORK = ("arch", "downsample", "norm", "activation", "dropout", "kernels")


# fmt: off
def add_network_options(parser):
    """Add the options of NETWORK."""
    add = parser.add_argument_group("network").add_argument
    add("--arch", choices=ARCHS, default="default", help="a table or class of model.py")
    add("--downsample", choices=DOWNSAMPLE, default="dilated", help="how maps shrink")
    add("--norm", choices=NORMS, help="normalisation (default: batch; of a class, its own)")
    add("--kernels", choices=KERNELS,
        help="mirrored: half of the kernels of each layer but the last are the mirror images "
        "of the others; free: none are (default: what ARCHS says; mirrored for default and "
        "record)")
    add("--activation", choices=ACTIVATIONS,
        help="activation (default: what ARCHS says, or relu; of a class, its own)")
    add("--dropout", type=number(float, 0, below=1),
        help="dropout probability (default: that of the network)")
# fmt: on


def main(argv=None):
    parser = Parser(description="Show a network and check the assignment's rules.")
    add_network_options(parser)
    add = parser.add_argument
    drawn = "draw the network too, into results/network.png or another file"
    add("--plot", nargs="?", const="results/network.png", metavar="FILE", help=drawn)
    add("--computed", action="store_true", help="print the rows as they run, too")
    add_rules_option(add)
    args = parser.parse_args(argv)
    if args.plot:
        check_writable(args.plot)
    net = build(**{name: getattr(args, name) for name in NETWORK})
    nodes = trace(net)
    lines = summarise(net, nodes)
    print_summary(lines, count_parameters(net), computed_macs(net))
    print_difference(lines, receptive_fields(net.rows or []))
    uncounted = {node.operation for node in nodes} & set(RECURRENT)
    if uncounted:
        print(f"those of {', '.join(sorted(uncounted))} are not counted")
    if args.computed:
        print_computed(net)
    if args.plot and not lines:
        print("note      no layer is known that could be drawn")
    elif args.plot:
        from plots import plot_network  # here, as it takes seconds to load

        plot_network(lines, title_of(net.config, args.downsample), args.plot)
        print(f"Picture: {args.plot}")
    is_complete = args.rules == "off" or print_checklist(checklist(net, nodes))
    print_note_on_scores(try_out(net)[0], nodes)
    return 0 if is_complete else 1


if __name__ == "__main__":
    run(main)
