#!/usr/bin/env bash
# The gradient of a dilated depthwise convolution's weights, in bfloat16 on a CPU with AMX or
# AVX512-BF16.
#
# Expected: that of float32, to the three digits of bfloat16.
# Seen with PyTorch 2.14.1 on an Intel Xeon with AMX: right on maps of up to 28 pixels a side, and
# wrong on wider ones, by more than the gradient itself and at times infinite. Without dilation, and
# of the input, all are right. On a CPU without such units nothing is wrong: the script then says
# so and ends with 0.
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


def errors(side, dilation):
    """Relative errors of the gradients of weights and input; infinite ones count as such."""
    torch.manual_seed(0)
    layer = nn.Conv2d(32, 32, 3, padding=dilation, dilation=dilation, groups=32, bias=False)
    image = torch.randn(16, 32, side, side).contiguous(memory_format=torch.channels_last)
    layer = layer.to(memory_format=torch.channels_last)
    found = []
    for enabled in (False, True):
        image.grad, layer.weight.grad = None, None
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            result = layer(image.requires_grad_()).float()
        (result * torch.linspace(-1, 1, result.numel()).reshape(result.shape)).sum().backward()
        found.append((layer.weight.grad.clone(), image.grad.clone()))
    return [((b - a).norm() / a.norm()).item() for a, b in zip(*found)]


wrong = {}
for side in (16, 28, 29, 32, 48):
    for dilation in (1, 2):
        of_weights, of_input = errors(side, dilation)
        wrong[side, dilation] = not of_weights < 0.05
        print(f"{side} pixels, dilation {dilation}: weights {of_weights:.3g}, input {of_input:.3g}")
is_so = {key for key, value in wrong.items() if value} == {(29, 2), (32, 2), (48, 2)}
sys.exit(0 if is_so else 1)
END
