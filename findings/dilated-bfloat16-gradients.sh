#!/usr/bin/env bash
# The gradient of a dilated convolution's weights, in bfloat16, channels last, on a CPU with AMX or
# AVX512-BF16.
#
# Expected: that of float32, to the three digits of bfloat16.
# Seen with PyTorch 2.14.1: right on maps of up to 28 pixels a side, and of depthwise kernels wrong
# on wider ones, by more than the gradient itself, at times infinite. So it is on an Intel Xeon
# with AMX and on an AMD EPYC with AVX512-BF16 alone. There it is so of all kernels that read a
# number of channels that is no multiple of 16, such as 24 or 88. Without dilation, and of the
# input, all are right. On a CPU without such units nothing is wrong: the script then says so and
# ends with 0.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.14.1" "numpy==2.4.6"
"$work/venv/bin/python" - <<'END'
import sys

import torch
from torch import nn

units = torch.cpu.get_capabilities()
print(f"PyTorch {torch.__version__}, AMX {units.get('amx_bf16')}, AVX512-BF16 {units.get('avx512_bf16')}")
if not (units.get("amx_bf16") or units.get("avx512_bf16")):
    print("no units for bfloat16: nothing to see here")
    sys.exit(0)


def errors(side, dilation, channels=32, groups=32):
    """Relative errors of the gradients of weights and input; infinite ones count as such."""
    torch.manual_seed(0)
    window = {"padding": dilation, "dilation": dilation}
    layer = nn.Conv2d(channels, 32, 3, **window, groups=groups, bias=False)
    image = torch.randn(16, channels, side, side).contiguous(memory_format=torch.channels_last)
    layer = layer.to(memory_format=torch.channels_last)
    found = []
    for enabled in (False, True):
        image.grad, layer.weight.grad = None, None
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            result = layer(image.requires_grad_()).float()
        (result * torch.linspace(-1, 1, result.numel()).reshape(result.shape)).sum().backward()
        found.append((layer.weight.grad.clone(), image.grad.clone()))
    return [((b - a).norm() / a.norm()).item() for a, b in zip(*found)]


wrong, largest, input_is_right = set(), 0, True
for side in (16, 28, 29, 32, 48):
    for dilation in (1, 2):
        of_weights, of_input = errors(side, dilation)
        input_is_right &= of_input < 0.05
        if not of_weights < 0.05:
            wrong.add((side, dilation))
            # Not a number, where infinite ones meet, counts as infinite.
            largest = max(largest, of_weights if of_weights < float("inf") else float("inf"))
        print(f"{side} pixels, dilation {dilation}: weights {of_weights:.3g}, input {of_input:.3g}")
is_so = wrong == {(29, 2), (32, 2), (48, 2)} and largest > 1
wrong = []
for channels in (24, 32, 80, 88):
    of_weights, of_input = errors(32, 2, channels, groups=1)
    input_is_right &= of_input < 0.05
    if not of_weights < 0.05:
        wrong.append(channels)
    print(f"{channels} channels read by each kernel: weights {of_weights:.3g}, input {of_input:.3g}")
is_so = is_so and wrong == ([] if units.get("amx_bf16") else [24, 88])
sys.exit(0 if is_so and input_is_right else 1)
END
