#!/usr/bin/env bash
# Weights in bfloat16 that are looked up on a CPU: the gradient of what is looked up often.
#
# Expected: the sum of the gradients of all places that read it, to the three digits of bfloat16,
# as of a bias or by gather. Sums are added up in float32 and rounded once.
# Seen with PyTorch 2.14.1: nn.Embedding and x[places] add them up in bfloat16, where 256 + 1 is 256:
# of a row that is read 65,536 times, with a gradient of 1 each, it is 256. x.gather(0, places) gives
# 65,536. In the same way index_add stops at 256 and scatter_add does not; segment_reduce and histc,
# which only counts, stop too. Nothing says so.
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
print(f"PyTorch {torch.__version__}")
torch.set_num_threads(1)
places = torch.zeros(COUNT, dtype=torch.long)  # all read, or add to, one place
ones = torch.ones(COUNT, dtype=torch.bfloat16)


def gradient(read):
    """That of a weight of which `read` makes COUNT numbers, each with a gradient of 1."""
    weight = torch.zeros(1, dtype=torch.bfloat16, requires_grad=True)
    read(weight).backward(ones)
    return weight.grad.item()


def looked_up(weight):
    return nn.functional.embedding(places, weight[:, None])[:, 0]


def zero():
    return torch.zeros(1, dtype=torch.bfloat16)


LENGTHS = torch.tensor([COUNT])
found = {
    "gradient of an embedding": gradient(looked_up),
    "gradient of x[places]": gradient(lambda weight: weight[places]),
    "index_add": zero().index_add(0, places, ones).item(),
    "segment_reduce": torch.segment_reduce(ones, "sum", lengths=LENGTHS).item(),
    "histc": torch.histc(ones, 1, 0, 2).item(),
    "gradient of gather": gradient(lambda weight: weight.gather(0, places)),
    "gradient of expand": gradient(lambda weight: weight.expand(COUNT)),
    "scatter_add": zero().scatter_add(0, places, ones).item(),
    "sum": ones.sum().item(),
}
for name, value in found.items():
    print(f"{name}: {value:,.0f}")
sys.exit(0 if list(found.values()) == 5 * [256] + 4 * [COUNT] else 1)
END
