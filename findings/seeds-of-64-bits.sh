#!/usr/bin/env bash
# Seeds of more than 32 bits, such as the hash of an experiment's name.
#
# Expected: torch.manual_seed takes 64 bits, its documentation asks for seeds with many bits, and
# initial_seed() gives all of them back: other seeds make other random numbers.
# Seen with PyTorch 2.14.1: the generator of CPUs begins with the lower 32 bits alone. The seeds
# 1, 2**32 + 1 and 2**40 + 1 give the same weights and the same order of a DataLoader. The seeds
# k * 2**32 are all the seed 0. NumPy's generators use all bits.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.14.1" "numpy==2.4.6"
"$work/venv/bin/python" - <<'END'
import sys

import numpy as np
import torch
from torch.utils.data import DataLoader

SEEDS = (1, 2**32 + 1, 2**40 + 1)


def weights(seed):
    torch.manual_seed(seed)
    return torch.nn.Conv2d(3, 8, 3).weight.detach()


def order(seed):
    generator = torch.Generator().manual_seed(seed)
    assert generator.initial_seed() == seed  # it knows all the bits
    return [batch.item() for batch in DataLoader(range(100), shuffle=True, generator=generator)]


print(f"PyTorch {torch.__version__}, NumPy {np.__version__}")
same = []
for seed in SEEDS[1:]:
    equal = torch.equal(weights(seed), weights(SEEDS[0])), order(seed) == order(SEEDS[0])
    print(f"as seed {SEEDS[0]}: weights of seed {seed} {equal[0]}, its order {equal[1]}")
    same += equal
zeros = [torch.equal(weights(k << 32), weights(0)) for k in (1, 2, 2**31)]
print("as seed 0: those of k * 2**32", all(zeros))
next_differs = not torch.equal(weights(2), weights(1))
print("seed 2 differs from seed 1:", next_differs)
by_numpy = {float(np.random.default_rng(seed).random()) for seed in SEEDS}
print("NumPy tells them apart:", len(by_numpy) == len(SEEDS))
sys.exit(not (all(same) and all(zeros) and next_differs and len(by_numpy) == len(SEEDS)))
END
