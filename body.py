"""The body of a network: the layers of a table, or a class of one's own."""

import inspect

from torch import nn

from layers import KEEPS_CHANNELS, make_layer, mirror_kernels, size_after
from skipping import skip_unread
from utils import UserError

SIDE = 32  # pixels: height and width of the images
CLASSES = "classes"  # as a row's channels: as many as the data set has


class TableNet(nn.Module):
    """The network of a table: images (N, 3, H, W) to scores (N, classes, 1, 1).

    Raises ValueError, naming the row, where a row makes no layer for 32x32 images.
    """

    def __init__(self, rows, classes, norm, dropout, kernels="free"):
        super().__init__()
        channels, size, layers, blocks = 3, SIDE, [], []
        for row in rows:
            is_last = row is rows[-1]
            if row.channels == CLASSES:
                row = row._replace(channels=classes)
            size = size_after(row, size)
            if size > 4 * SIDE:  # of a damaged file, say: it would take all memory
                raise ValueError(f"row {row.name}: a map of {size}x{size} is too large")
            block, _, name = row.name.partition(".")
            if block not in blocks:
                self.add_module(block, nn.Sequential())
                blocks.append(block)
            elif block != blocks[-1]:  # `forward` runs block by block
                raise ValueError(
                    f"row {row.name}: the rows of {block} must follow one another"
                )
            layer = make_layer(row, channels, norm, dropout, is_last)
            if kernels == "mirrored" and not is_last:
                mirror_kernels(layer)
            self.get_submodule(block).add_module(name, layer)
            layers.append(layer)
            if row.kind not in KEEPS_CHANNELS:
                channels = row.channels
        skip_unread(layers)

    def forward(self, x):
        for block in self.children():
            x = block(x)
        return x


def make_own(make, classes, norm, dropout):
    """Call a class of one's own with those of the options that its signature names.

    A `dropout` of None is not passed on: the default of the class holds.
    """
    options = {"classes": classes, "norm": norm, "dropout": dropout}
    if dropout is None:
        del options["dropout"]
    named = inspect.signature(make).parameters
    return make(**{name: value for name, value in options.items() if name in named})


def check_options(make, arch, downsample, norm, dropout, kernels):
    """Raise UserError for an option that a class of one's own would not heed.

    `make` is the class, `arch` its name.
    """
    named = inspect.signature(make).parameters
    if downsample != "dilated":
        raise UserError(f"--downsample changes rows of a table; '{arch}' is none")
    if kernels == "mirrored":
        raise UserError(f"--kernels mirrored is for tables; '{arch}' is none")
    if norm != "batch" and "norm" not in named:
        raise UserError(f"'{arch}' takes no norm: leave out --norm")
    if dropout is not None and "dropout" not in named:
        raise UserError(f"'{arch}' takes no dropout: leave out --dropout")
