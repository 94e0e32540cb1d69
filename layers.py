"""The layers that the rows of a table become, and the normalisations to choose from.

To add a kind of row, write a function like those of KINDS and name it there.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

CLASSES = "classes"  # as a row's channels: as many as the data set has


class Row(NamedTuple):
    """One layer of a table.

    The name is block.layer: the assignment's C1 is the block c1, and so on. Every row of
    convolutions but the last one of a table ends in normalisation, activation and dropout.
    """

    name: str
    channels: int  # of its output
    kernel: int
    stride: int
    dilation: int
    padding: int
    kind: str  # one of KINDS

    @property
    def window(self):
        """What PyTorch's convolutions and pools take of it, in their order."""
        return self.kernel, self.stride, self.padding, self.dilation


def groups_of(channels):
    """How many groups group norm makes: 8, or the most below that part the channels evenly."""
    return max(groups for groups in range(1, 9) if channels % groups == 0)


NORMS = {
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(groups_of(channels), channels),
    "layer": lambda channels: nn.GroupNorm(1, channels),  # over C, H, W of an image
}
# In place where the gradient is made of the output: of an input that it needs PyTorch would
# keep a copy, which takes longer than a new map.
ACTIVATIONS = {
    "relu": lambda: nn.ReLU(inplace=True),
    "leaky-relu": lambda: nn.LeakyReLU(inplace=True),
    "elu": lambda: nn.ELU(inplace=True),
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
}
# Norms that treat each pixel by itself in evaluation; others look at the whole map.
PIXELWISE_NORMS = (nn.BatchNorm2d, nn.Identity)


class Conv(nn.Conv2d):
    """A convolution without bias and with a square kernel.

    Where it `is_mirrored`, its weight holds the first half of its kernels, and the others
    are their mirror images. See `mirror_kernels`.
    """

    is_mirrored = False

    def __init__(
        self, channels, out_channels, kernel, stride, padding, dilation, groups=1
    ):
        window = (kernel, stride, padding, dilation)
        super().__init__(channels, out_channels, *window, groups=groups, bias=False)

    def kernels(self):
        """All kernels of the layer: (channels out, channels in, rows, columns)."""
        return with_mirror_images(self.weight) if self.is_mirrored else self.weight

    def convolve(self, x, stride, padding, dilation):
        kernels = self.kernels()
        window = (stride, padding, dilation, self.groups)
        if not self.needs_float32(x, padding, dilation):
            return F.conv2d(x, kernels, None, *window)
        with torch.autocast("cpu", enabled=False):
            return F.conv2d(x.to(kernels.dtype), kernels, None, *window)

    def needs_float32(self, x, padding, dilation):
        """Whether the gradient of the weights may be wrong in bfloat16 on this device.

        On CPUs with instructions for it, oneDNN's is, up to infinite, where dilated kernels
        read a number of channels that is no multiple of 16, on wide maps in channels last
        (seen in torch 2.14.1).
        """
        width = x.shape[-1] + 2 * padding
        is_uneven = self.in_channels // self.groups % 16 > 0
        return x.device.type == "cpu" and dilation > 1 and is_uneven and width > 28

    def as_written(self, x):
        """The same convolution in one piece."""
        return self.convolve(x, self.stride[0], self.padding[0], self.dilation[0])

    def forward(self, x):
        stride, padding = self.stride[0], self.padding[0]
        if self.kernel_size == (1, 1) and stride > 1:
            # On CPUs, oneDNN's gradient of a strided 1x1 kernel that reads few channels
            # writes past its memory (uxlfoundation/oneDNN 6035): it is never asked for one.
            x = F.pad(x, 4 * [padding]) if padding else x
            return self.convolve(every_nth(x, stride), 1, 0, 1)
        return self.convolve(x, stride, padding, self.dilation[0])


class Depthwise(Conv):
    """A depthwise convolution, faster at stride 2: it leaves out what it does not read."""

    def __init__(self, channels, kernel, stride, padding, dilation):
        window = (kernel, stride, padding, dilation)
        super().__init__(channels, channels, *window, groups=channels)

    def forward(self, x):
        if self.kernel_size == (1, 1):
            return super().forward(x)
        window = (self.stride[0], self.padding[0], self.dilation[0])
        every = reads_one_in(self.kernel_size[0], *window)
        if every > 1:
            x = every_nth(x, every)
            window = window_on_what_is_read(*window)
        return self.convolve(x, *window)


def reads_one_in(kernel, stride, padding, dilation):
    """How many rows (and columns) of its input there are for each one that a kernel reads."""
    if kernel == 1 and padding == 0:
        return stride
    keeps_to_them = padding % stride == 0 and dilation % stride == 0
    return stride if keeps_to_them else 1


def window_on_what_is_read(stride, padding, dilation):
    """Stride, padding and dilation of the same kernel on the pixels that it reads alone."""
    return 1, padding // stride, max(1, dilation // stride)


def with_mirror_images(kernels):
    """Kernels (N, C, rows, columns), followed by their mirror images: (2N, C, ...).

    The mirror image of an image then gives the mirror image of the map, with the two halves
    of its channels exchanged. A kernel that reads such a map has its halves exchanged in its
    mirror image, too; the three channels of an image and the one of a depthwise kernel are
    no pairs.
    """
    images = kernels.flip(3)
    channels = kernels.shape[1]
    if channels % 2 == 0:
        images = images.roll(channels // 2, 1)
    return torch.cat([kernels, images])


def every_nth(x, n):
    """Every n-th row and column of a map, as x[:, :, ::n, ::n] but trained faster.

    The gradient of pooling over single pixels keeps the memory format; a slice's does not.
    """
    return F.avg_pool2d(x, 1, n)


class Residual(nn.Module):
    """Layers whose output is added to their input, or to what a shortcut makes of it."""

    def __init__(self, body, shortcut):
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, x):
        return self.shortcut(x) + self.body(x)


class GlobalAverage(nn.Module):
    """The mean of each channel: (N, C, H, W) to (N, C, 1, 1).

    As nn.AdaptiveAvgPool2d(1), whose gradient has a memory format that is slow to train.
    """

    def forward(self, x):
        return F.avg_pool2d(x, x.shape[2:])


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


# The kinds of rows. Each function makes the module of a row for an input of `channels`. One
# of convolutions is an nn.Sequential, to which `make_layer` adds norm, activation, dropout.


def plain(row, channels):
    layer = nn.Sequential()
    layer.conv = Conv(channels, row.channels, *row.window)
    return layer


def separable(row, channels):
    layer = nn.Sequential()
    layer.depthwise = Depthwise(channels, *row.window)
    layer.pointwise = Conv(channels, row.channels, 1, 1, 0, 1)
    return layer


KINDS = {
    "plain": plain,  # a convolution
    "residual": plain,  # a convolution added to its own input
    "separable": separable,  # a depthwise convolution, then a 1x1
    # Squeeze-and-excitation; the row's channels are those in between.
    "squeeze": lambda row, channels: SqueezeExcitation(channels, row.channels),
    "maxpool": lambda row, channels: nn.MaxPool2d(*row.window),
    "gap": lambda row, channels: GlobalAverage(),  # global average pooling
}
KEEPS_CHANNELS = ("squeeze", "maxpool", "gap")
# Of these, kernel, stride, dilation and padding say nothing.
WITHOUT_WINDOW = ("squeeze", "gap")
# Of these, one kernel of the row's window reads the input, and all else keeps to single
# pixels: the rows may be changed as they are computed, see `as_computed`.
ONE_KERNEL = ("plain", "residual", "separable")


def head_row(rows):
    """The row of a table that gives the scores: the last one that gives channels at all."""
    giving = [row for row in rows if row.kind not in KEEPS_CHANNELS]
    return (giving or rows)[-1]


def as_computed(rows, norm):
    """The rows of a table as they run, so that nothing is computed that no row reads.

    A kernel of stride 2 whose dilation and padding are even reads every other row and
    column: of four outputs of the row before, three are never used. That row takes the
    stride, and the kernel runs undilated over what is left. Weights and evaluation are the
    same. In training batch norm's statistics are those of the outputs that are used. Norms
    that look at the whole map do so in evaluation too, so that with them the rows stay.
    """
    rows, head = list(rows), head_row(rows)
    normed = [row for row in rows if row.kind in ONE_KERNEL and row is not head]
    norms = [NORMS[norm](row.channels) for row in normed if row.channels != CLASSES]
    if not all(isinstance(made, PIXELWISE_NORMS) for made in norms):
        return rows
    for number in range(len(rows) - 1, 0, -1):
        before, row = rows[number - 1], rows[number]
        if before.kind not in ONE_KERNEL or row.kind not in ONE_KERNEL:
            continue
        window = (row.stride, row.padding, row.dilation)
        every = reads_one_in(row.kernel, *window)
        if every > 1:
            stride, padding, dilation = window_on_what_is_read(*window)
            rows[number] = row._replace(
                stride=stride, padding=padding, dilation=dilation
            )
            rows[number - 1] = before._replace(stride=before.stride * every)
    return rows


def run_as_written(net):
    """Let each convolution of a network run in one piece, as its row says; for tracing."""
    for module in net.modules():
        if isinstance(module, Conv):
            module.forward = module.as_written


def make_layer(row, computed, channels, norm, activation, dropout, is_head):
    """The module of a row, for an input of `channels`; the head gives scores.

    `computed` is the row as it runs. Raises TypeError, naming the row, where its kind
    makes no nn.Sequential.
    """
    layer = KINDS[row.kind](computed, channels)
    if row.kind in KEEPS_CHANNELS or is_head:
        return layer
    if not isinstance(layer, nn.Sequential):
        raise TypeError(
            f"row {row.name}: what makes the kind '{row.kind}' has to return an "
            "nn.Sequential, to which norm, activation and dropout are added"
        )
    layer.norm = NORMS[norm](row.channels)
    layer.activation = ACTIVATIONS[activation]()
    layer.dropout = nn.Dropout(dropout)
    if row.kind != "residual":
        return layer
    if row.channels == channels and row.stride == 1:
        every = computed.stride  # over 1 where it takes over that of the next row
        return Residual(layer, nn.AvgPool2d(1, every) if every > 1 else nn.Identity())
    shortcut = nn.Sequential()
    shortcut.conv = Conv(channels, row.channels, 1, computed.stride, 0, 1)
    shortcut.norm = NORMS[norm](row.channels)
    return Residual(layer, shortcut)


def mirror_kernels(layer):
    """Let half of the kernels of a row be the mirror images of the other half.

    An image and its mirror image show the same thing, so that a network needs most of its
    kernels in both forms. Learned once for the two, they take half the parameters. It is
    group convolution by reflections: Cohen, Welling, "Group Equivariant Convolutional
    Networks", ICML 2016. Here it is not exact: normalisation has a weight for each channel,
    and of an even number of pixels a stride of 2 reads others from the left than from the
    right. An odd number of kernels stays as it is.
    """
    for module in layer.modules():
        if isinstance(module, Conv) and len(module.weight) % 2 == 0:
            half = module.weight[: len(module.weight) // 2]
            module.weight = nn.Parameter(half.detach().clone())
            module.is_mirrored = True


def mirrored(net):
    """The layers of a network that have the mirror images of their kernels, too."""
    layers = [module for module in net.modules() if isinstance(module, Conv)]
    return [layer for layer in layers if layer.is_mirrored]


def saved_by_mirroring(net):
    """How many parameters more a network would have without mirrored kernels."""
    return sum(layer.weight.numel() for layer in mirrored(net))


def has_foreign_kernels(layer):
    """Whether a row has kernels that cannot be mirrored, those of gates left out."""
    if isinstance(layer, SqueezeExcitation):
        return False
    if isinstance(layer, nn.Conv2d):
        return not isinstance(layer, Conv)
    return any(map(has_foreign_kernels, layer.children()))


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
    if min(row.kernel, row.stride, row.dilation) < 1:
        raise ValueError(f"row {row.name}: kernel, stride, dilation must be 1 or more")
    if row.padding < 0:
        raise ValueError(f"row {row.name}: padding must be 0 or more")
    reach = row.dilation * (row.kernel - 1) + 1  # pixels from a kernel's end to end
    after = (size + 2 * row.padding - reach) // row.stride + 1
    if after < 1:
        raise ValueError(
            f"row {row.name}: a kernel that reaches over {reach} pixels is too large "
            f"for a map of {size}"
        )
    if row.kind == "residual" and after != math.ceil(size / row.stride):
        padding, odd = divmod(row.dilation * (row.kernel - 1), 2)
        remedy = (
            "so its kernel must be odd" if odd else f"so its padding must be {padding}"
        )
        raise ValueError(
            f"row {row.name}: a residual row may shrink the map by its stride alone, {remedy}"
        )
    return after
