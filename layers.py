"""The layers that the rows of a table become, and the normalisations to choose from.

To add a kind of row, write a function like those of KINDS and name it there.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


class Row(NamedTuple):
    """One layer of a table.

    The name is block.layer: the assignment's C1 is the block c1, and so on. Every
    convolution but the last one of a table is followed by normalisation, ReLU and dropout.
    """

    name: str
    channels: int  # of its output
    kernel: int
    stride: int
    dilation: int
    padding: int
    kind: str  # one of KINDS


NORMS = {
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(math.gcd(8, channels), channels),
    "layer": lambda channels: nn.GroupNorm(1, channels),  # over C, H, W of an image
}


class Depthwise(nn.Conv2d):
    """A depthwise convolution with a square kernel, faster at stride 2 and dilation 2.

    There it reads every other pixel alone, and at stride 1 over just these the sums are
    the same. Where dilation remains, CPUs work in float32.
    """

    def __init__(self, channels, kernel, stride, padding, dilation):
        window = (kernel, stride, padding, dilation)
        super().__init__(channels, channels, *window, groups=channels, bias=False)

    def forward(self, x):
        stride, padding, dilation = self.stride[0], self.padding[0], self.dilation[0]
        if padding % stride == 0 and dilation % stride == 0:
            x = x[:, :, ::stride, ::stride]
            padding = padding // stride
            dilation = dilation // stride
            stride = 1
        window = (stride, padding, dilation)
        if dilation == 1 or x.device.type != "cpu":
            return F.conv2d(x, self.weight, None, *window, self.groups)
        # In bfloat16 its weights' gradients are wrong on CPUs that have such instructions,
        # up to infinite, where the map stays over 28 pixels wide (seen in torch 2.14.1).
        with torch.autocast("cpu", enabled=False):
            x = x.to(self.weight.dtype)
            return F.conv2d(x, self.weight, None, *window, self.groups)


class Residual(nn.Module):
    """Layers whose output is added to their input, or to what a shortcut makes of it."""

    def __init__(self, body, shortcut):
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, x):
        return self.shortcut(x) + self.body(x)


class SqueezeExcitation(nn.Module):
    """Scale every channel by a number between 0 and 1 that the whole map decides.

    Hu, Shen, Sun, "Squeeze-and-Excitation Networks", CVPR 2018.
    """

    def __init__(self, channels, squeezed):
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.excite = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x):
        gate = x.mean((2, 3), keepdim=True)  # (N, C, 1, 1)
        gate = F.relu(self.squeeze(gate))
        gate = torch.sigmoid(self.excite(gate))
        return x * gate


# The kinds of rows. Each function makes the module of a row for an input of `channels`,
# without what follows a convolution.


def plain(row, channels):
    layer = nn.Sequential()
    layer.conv = nn.Conv2d(
        channels,
        row.channels,
        row.kernel,
        row.stride,
        row.padding,
        row.dilation,
        bias=False,
    )
    return layer


def separable(row, channels):
    layer = nn.Sequential()
    layer.depthwise = Depthwise(
        channels, row.kernel, row.stride, row.padding, row.dilation
    )
    layer.pointwise = nn.Conv2d(channels, row.channels, 1, bias=False)
    return layer


def squeeze(row, channels):
    return SqueezeExcitation(channels, squeezed=row.channels)


def maxpool(row, channels):
    return nn.MaxPool2d(row.kernel, row.stride, row.padding, row.dilation)


def gap(row, channels):
    return nn.AdaptiveAvgPool2d(1)


KINDS = {
    "plain": plain,  # a convolution
    "residual": plain,  # a convolution added to its own input
    "separable": separable,  # a depthwise convolution, then a 1x1
    "squeeze": squeeze,  # squeeze-and-excitation; `channels` are those in between
    "maxpool": maxpool,
    "gap": gap,  # global average pooling
}
KEEPS_CHANNELS = ("squeeze", "maxpool", "gap")
# Of these, kernel, stride, dilation and padding say nothing.
WITHOUT_WINDOW = ("squeeze", "gap")


def make_layer(row, channels, norm, dropout, is_last):
    """The module of one row, for an input of `channels`; the last row gives scores."""
    layer = KINDS[row.kind](row, channels)
    if row.kind in KEEPS_CHANNELS or is_last:
        return layer
    layer.norm = NORMS[norm](row.channels)
    layer.relu = nn.ReLU(inplace=True)
    layer.dropout = nn.Dropout(dropout)
    if row.kind != "residual":
        return layer
    if row.channels == channels and row.stride == 1:
        return Residual(layer, nn.Identity())
    shortcut = nn.Sequential()
    shortcut.conv = nn.Conv2d(channels, row.channels, 1, row.stride, bias=False)
    shortcut.norm = NORMS[norm](row.channels)
    return Residual(layer, shortcut)


def size_after(row, size):
    """Height and width of the map after a row, in pixels; `size` is that before it.

    Raises ValueError, naming the row, where there is no such layer or map.
    """
    if row.kind not in KINDS:
        raise ValueError(f"row {row.name} is of unknown kind '{row.kind}'")
    if row.kind == "gap":
        return 1
    if row.kind in WITHOUT_WINDOW:
        return size
    if min(row.kernel, row.stride, row.dilation) < 1 or row.padding < 0:
        raise ValueError(f"row {row.name}: kernel, stride, dilation must be 1 or more")
    reach = row.dilation * (row.kernel - 1) + 1  # pixels from a kernel's end to end
    after = (size + 2 * row.padding - reach) // row.stride + 1
    if after < 1:
        raise ValueError(
            f"row {row.name}: a kernel that reaches over {reach} pixels is too large "
            f"for a map of {size}"
        )
    if row.kind == "residual" and after != math.ceil(size / row.stride):
        raise ValueError(
            f"row {row.name}: a residual row may shrink the map by its stride alone, "
            f"so its padding must be {row.dilation * (row.kernel - 1) // 2}"
        )
    return after
