#!/usr/bin/env bash
# Training with nn.LayerNorm under torch.autocast on a CPU, in bfloat16.
#
# Expected: its weight and bias, which stay in float32, get the gradients of float32 to three
# digits, as those of all other layers do; on GPUs autocast runs layer norm in float32.
# Seen with PyTorch 2.14.1: on CPUs it runs in bfloat16, and adds up the gradients of its weight
# and bias in bfloat16, where 256 + 1 is 256. Of 65,536 rows of ones that of the bias is 256; of
# random gradients with a mean it is half too small from 8,192 rows on (a batch of 128 images of
# 64 patches). Batch, group and RMS norm are right, layer norm compiled is too. Nothing says so.
# In the same way weights in bfloat16 that are indexed, x[places], get a gradient of 256 where
# x.gather(0, places) gets 65,536; index_add stops at 256 and scatter_add does not, segment_reduce
# does, and so does histc, which only counts.
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

COUNT = 65_536
BFLOAT16 = torch.bfloat16
print(f"PyTorch {torch.__version__}")
torch.set_num_threads(1)  # each thread has a sum of its own


def bias_gradient(norm, gradient, precision):
    """That of a norm's bias, or weight where it has none, for the gradient of its output."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(gradient.shape, generator=generator).to(precision)
    with torch.autocast("cpu", BFLOAT16, enabled=precision == BFLOAT16):
        y = norm(x)
    weight = getattr(norm, "bias", None)
    (found,) = torch.autograd.grad(
        y, norm.weight if weight is None else weight, gradient.to(y.dtype)
    )
    return found


ones = torch.ones(COUNT, 16)
generator = torch.Generator().manual_seed(1)
noise = 0.02 + 0.1 * torch.randn(8_192, 16, generator=generator)
NORMS = {
    "layer norm": nn.LayerNorm(16),
    "RMS norm": nn.RMSNorm(16),
    "group norm": nn.GroupNorm(1, 16),
    "batch norm": nn.BatchNorm1d(16),
}
errors = {}
for name, norm in NORMS.items():
    exact = bias_gradient(norm, noise, torch.float32)
    found = bias_gradient(norm, noise, BFLOAT16)
    errors[name] = ((found - exact).norm() / exact.norm()).item()
    print(f"{name}: off by {100 * errors[name]:.1f} % of 8,192 rows")
stopped = bias_gradient(NORMS["layer norm"], ones, BFLOAT16)[0].item()
print(f"layer norm's bias, gradients of 1 from {COUNT:,} rows: {stopped:,.0f}")

places = torch.zeros(COUNT, dtype=torch.long)  # all are added in one place
addends = torch.ones(COUNT, dtype=BFLOAT16)


def zero():
    return torch.zeros(1, dtype=BFLOAT16, requires_grad=True)


weight, other = zero(), zero()
weight[places].sum().backward()
other.gather(0, places).sum().backward()
SHORT = {
    "gradient of indexing": weight.grad,
    "index_add": zero().index_add(0, places, addends),
    "segment_reduce": torch.segment_reduce(addends, "sum", lengths=torch.tensor([COUNT])),
    "histc": torch.histc(addends, 1, 0, 2),
}
LONG = {
    "gradient of gather": other.grad,
    "scatter_add": zero().scatter_add(0, places, addends),
}
for name, value in {**SHORT, **LONG}.items():
    print(f"{name}: {value.item():,.0f}")
is_so = errors.pop("layer norm") > 0.4 and max(errors.values()) < 0.02 and stopped == 256
is_so = is_so and all(value.item() == 256 for value in SHORT.values())
is_so = is_so and all(value.item() == COUNT for value in LONG.values())
sys.exit(0 if is_so else 1)
END
