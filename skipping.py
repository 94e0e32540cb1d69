"""Outputs that no layer reads, and how the layers of a table leave them out."""

from itertools import pairwise

from torch import nn

from layers import Conv, Residual, Same

# What a layer may hold besides its kernel and still skip pixels; others skip none.
PIXELWISE = (nn.BatchNorm2d, nn.ReLU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Dropout, Same)


def skip_unread(layers):
    """Let each layer of a table compute only what the next one reads of it.

    A kernel of stride 2 whose dilation and padding are even reads every other row and
    column: of four outputs of the layer before, three are never used. That layer takes the
    stride, and the kernel runs undilated over what is left. Evaluation is the same.
    In training batch norm's statistics are those of the outputs that are used. Group and
    layer norm take theirs in evaluation too, so that their layers skip nothing.
    """
    for before, layer in reversed(list(pairwise(layers))):
        if not reading(before) or not reading(layer) or not keeps_to_pixels(before):
            continue
        every = reading(layer)[0].reads_one_in()
        for module in reading(layer):
            module.is_thinned = every > 1
        for module in reading(before):
            module.step = every


def compute_unread(net):
    """Undo `skip_unread`, and let each convolution run as it is written in the table."""
    for module in net.modules():
        if isinstance(module, Conv):
            module.forward = module.as_written
        if isinstance(module, Same):
            module.step = 1
            module.is_thinned = False


def reading(layer):
    """The modules of a row that read its input, its kernel first; none if it has none."""
    if type(layer) is Residual:
        shortcut = getattr(layer.shortcut, "conv", layer.shortcut)
        return [layer.body.conv, shortcut]
    if type(layer) is nn.Sequential and isinstance(layer[0], Conv):
        return [layer[0]]
    return []


def keeps_to_pixels(layer):
    """Whether all of a layer but its kernel does the same to each pixel in evaluation."""
    is_residual = isinstance(layer, Residual)
    for part in [layer.body, layer.shortcut] if is_residual else [layer]:
        for module in list(part.children())[1:]:
            if not isinstance(module, PIXELWISE) and not is_pointwise(module):
                return False
    return True


def is_pointwise(module):
    """Whether a module is a 1x1 convolution of every pixel."""
    if not isinstance(module, nn.Conv2d):
        return False
    window = (module.kernel_size, module.stride, module.padding)
    return window == ((1, 1), (1, 1), (0, 0))
