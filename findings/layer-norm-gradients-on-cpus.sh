#!/usr/bin/env bash
# Training with nn.LayerNorm under torch.autocast on a CPU, in bfloat16.
#
# Expected: its weight and bias, which stay in float32, get the gradients of float32 to three
# digits, as those of all other layers do; on GPUs autocast runs layer norm in float32.
# Seen with PyTorch 2.14.1: on CPUs it runs in bfloat16, and adds up the gradients of its weight
# and bias in bfloat16, where 256 + 1 is 256. With one thread, of 65,536 rows of ones that of the bias
# is 256. Of random gradients with a mean it is half too small at 8,192 rows (a batch of 128 images
# of 64 patches) and 95 % at 131,072 (of 32x32 pixels), where that of the weight is 40 % off. More
# threads have a sum each. Batch, group and RMS norm are right. Nothing says so.
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


def gradients(norm, gradient, precision):
    """Those of a norm's weight and bias, where it has one, for the gradient of its output."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(gradient.shape, generator=generator).to(precision)
    with torch.autocast("cpu", BFLOAT16, enabled=precision == BFLOAT16):
        y = norm(x)
    return torch.autograd.grad(y, list(norm.parameters()), gradient.to(y.dtype))


ones = torch.ones(COUNT, 16)
generator = torch.Generator().manual_seed(1)
noise = 0.02 + 0.1 * torch.randn(2 * COUNT, 16, generator=generator)
NORMS = {
    "layer norm": nn.LayerNorm(16),
    "RMS norm": nn.RMSNorm(16),
    "group norm": nn.GroupNorm(1, 16),
    "batch norm": nn.BatchNorm1d(16),
}
errors = {}
for name, norm in NORMS.items():
    for rows in (8_192, 2 * COUNT):
        exact = gradients(norm, noise[:rows], torch.float32)
        found = gradients(norm, noise[:rows], BFLOAT16)
        off = [((a - b).norm() / b.norm()).item() for a, b in zip(found, exact)]
        errors[name, rows] = off
        print(f"{name}, {rows:,} rows: off by", *(f"{100 * value:.1f} %" for value in off))
stopped = gradients(NORMS["layer norm"], ones, BFLOAT16)[1][0].item()
print(f"layer norm's bias, gradients of 1 from {COUNT:,} rows: {stopped:,.0f}")
(_, few), (weight, many) = errors.pop(("layer norm", 8_192)), errors.pop(("layer norm", 2 * COUNT))
is_so = few > 0.4 and many > 0.9 and weight > 0.2 and stopped == 256
sys.exit(0 if is_so and max(map(max, errors.values())) < 0.02 else 1)
END
