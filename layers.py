"""Layers of the tables that PyTorch lacks, or has slower on CPUs."""

import torch
import torch.nn.functional as F
from torch import nn


class Depthwise(nn.Conv2d):
    """A depthwise convolution of a square kernel, quick at stride 2 and dilation 2.

    There it reads every other pixel alone, and at stride 1 over just these the sums are
    the same; CPUs then train `--arch reference` 1.2 to 1.7 times faster. Where dilation
    remains, CPUs work in float32.
    """

    def __init__(self, channels, kernel, stride, padding, dilation):
        window = kernel, stride, padding, dilation
        super().__init__(channels, channels, *window, groups=channels, bias=False)

    def forward(self, x):
        stride, padding, dilation = self.stride[0], self.padding[0], self.dilation[0]
        if padding % stride == dilation % stride == 0:
            x = x[:, :, ::stride, ::stride]
            stride, padding, dilation = 1, padding // stride, dilation // stride
        window = stride, padding, dilation
        if dilation == 1 or x.device.type != "cpu":
            return F.conv2d(x, self.weight, None, *window, self.groups)
        # In bfloat16 its weights' gradients are wrong on CPUs that have such instructions,
        # up to infinite, where the map stays over 28 pixels wide (seen in torch 2.14.1).
        with torch.autocast("cpu", enabled=False):
            x = x.to(self.weight.dtype)
            return F.conv2d(x, self.weight, None, *window, self.groups)


class Dropout(nn.Dropout):
    """PyTorch's, quicker on CPUs: of each random number of 64 bits four units are drawn.

    The probability is p to the nearest 1/65,536. CPUs then train `--arch reference` 1.2
    times faster.
    """

    def forward(self, x):
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        numbers = torch.randint(-(2**63), 2**63 - 1, (-(-x.numel() // 4),))
        bits = numbers.view(torch.int16)[: x.numel()]
        kept = bits.as_strided(x.shape, x.stride()) >= round(2**16 * self.p) - 2**15
        return x * kept.to(x.dtype).div_(1 - self.p)


class Residual(nn.Sequential):
    """Layers whose output is added to their input."""

    def forward(self, x):
        return x + super().forward(x)
