#!/usr/bin/env bash
# A second optimizer that takes over the state of a first one by load_state_dict.
#
# Expected: as with load_state_dict of a module, the values are copied, and the two optimizers
# go on independently of each other.
# Seen with PyTorch 2.14.1 on Python 3.11: where type and device agree, SGD, Adam and Muon hold
# the very same tensors afterwards. A step of either moves the momentum of both, so that the
# second one arrives at other weights than it does with a copy of the state.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.14.1" "numpy==2.4.6"
"$work/venv/bin/python" - <<'END'
import copy
import platform
import sys

import torch

STEPS = 3
KINDS = {
    "SGD": (lambda weights: torch.optim.SGD(weights, 0.1, momentum=0.9), "momentum_buffer"),
    "Adam": (lambda weights: torch.optim.Adam(weights, 0.1), "exp_avg"),
    "Muon": (lambda weights: torch.optim.Muon(weights, 0.1), "momentum_buffer"),
}


def step(weight, optimizer, number):
    weight.grad = torch.randn(2, 3, generator=torch.Generator().manual_seed(number))
    optimizer.step()


def taken_over(make, name, of):
    """The second weight, after a first optimizer and a second one took turns.

    Also whether they hold one tensor. `of` makes what is loaded of the first one's state.
    """
    first, second = torch.ones(2, 3, requires_grad=True), torch.ones(2, 3, requires_grad=True)
    ours, theirs = make([first]), make([second])
    step(first, ours, 0)
    theirs.load_state_dict(of(ours.state_dict()))
    for number in range(1, 1 + STEPS):
        step(first, ours, number)
        step(second, theirs, number)
    return second.detach(), ours.state[first][name] is theirs.state[second][name]


print(f"PyTorch {torch.__version__}, Python {platform.python_version()}")
seen = []
for kind, (make, name) in KINDS.items():
    found, is_shared = taken_over(make, name, lambda state: state)
    expected, _ = taken_over(make, name, copy.deepcopy)
    off = (found - expected).abs().max().item()
    print(f"{kind}: one tensor {is_shared}, weights off by {off:.3g}")
    seen += [is_shared, off > 0.01]

source, copied = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
copied.load_state_dict(source.state_dict())
with torch.no_grad():
    source.weight += 1
print("modules share:", torch.equal(source.weight, copied.weight))
seen.append(not torch.equal(source.weight, copied.weight))
sys.exit(0 if all(seen) else 1)
END
