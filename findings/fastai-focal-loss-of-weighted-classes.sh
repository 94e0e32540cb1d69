#!/usr/bin/env bash
# FocalLoss of fastai with weights of classes.
#
# Expected: alpha (1 - p)^gamma (-log p), of which its documentation says that alpha can be given as
# PyTorch's weight.
# Seen with fastai 2.8.12 and PyTorch 2.14.1: p is taken from the loss that is weighted already, and
# so is the probability to the power of the weight. An image of a class of weight 10 that gets 90 %
# costs 42 times what it should, one of a class of weight 0.1 that gets 10 % a twentieth: easy
# images of rare classes are looked at, and hard ones of frequent classes are not.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "fastai==2.8.12" "torch==2.14.1" "torchvision==0.29.2" \
    "numpy==2.4.6"
"$work/venv/bin/python" -W ignore - <<'END'
import sys

import fastai
import torch
from fastai.losses import FocalLossFlat

print("fastai", fastai.__version__, "PyTorch", torch.__version__)
torch.manual_seed(0)
scores, labels = torch.randn(512, 2), torch.randint(2, (512,))
weights = torch.tensor([0.1, 10.0])
alpha = weights[labels]
p = scores.softmax(1).gather(1, labels[:, None])[:, 0]  # of the right class
loss = FocalLossFlat(gamma=2.0, weight=weights, reduction="none")(scores, labels)
expected = alpha * (1 - p) ** 2 * -p.log()  # Lin et al., 2017, equation 5
powered = alpha * (1 - p**alpha) ** 2 * -p.log()
off, off_powered = ((loss - other).abs().max().item() for other in (expected, powered))
print(f"off alpha (1 - p)^2 (-log p) by up to {off:.3f}")
print(f"off alpha (1 - p^alpha)^2 (-log p) by up to {off_powered:.6f}")
plain = FocalLossFlat(gamma=2.0, reduction="none")(scores, labels)
off_plain = (plain - (1 - p) ** 2 * -p.log()).abs().max().item()
print(f"without weights, off its formula by up to {off_plain:.6f}")
ratios = []
for weight, share in ((10.0, 0.9), (0.1, 0.1)):
    one = torch.tensor([[share, 1 - share]]).log()
    loss = FocalLossFlat(gamma=2.0, weight=torch.tensor([weight, 1.0]))(one, torch.tensor([0]))
    ratios.append(float(loss / (weight * (1 - share) ** 2 * -one[0, 0])))
    print(f"weight {weight:g}, probability {share:.0%}: {ratios[-1]:.2f} times what it should be")
is_so = off > 1 and off_powered < 1e-4 and off_plain < 1e-4
sys.exit(0 if is_so and ratios[0] > 40 and ratios[1] < 0.1 else 1)
END
