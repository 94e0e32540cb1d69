#!/usr/bin/env bash
# Class weights together with label smoothing in PyTorch's cross entropy.
#
# Expected: a weight says how much an image of that class counts, so that the best prediction for
# images that are always of the first class is that class: 95 % of two, with smoothing 0.1.
# Seen with PyTorch 2.14.1: the smoothed part of a label is weighted by the class that it falls to,
# and not by the image's own, as follows from the documented formula for class probabilities. With weights 1 and 100 the loss of images of the first class alone is
# lowest where the second one, of which there are none, has 84 %.
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
import torch.nn.functional as F

print(f"PyTorch {torch.__version__}")
first = torch.tensor([0])  # the class of all images
weights = torch.tensor([1.0, 100.0])  # the second one is rare elsewhere
shares = torch.linspace(0.001, 0.999, 999)  # of the second class, in the prediction


def best_share(loss):
    """The share of the second class at which the loss of an image of the first is lowest."""
    losses = [loss(torch.log(torch.tensor([[1 - share, share]]))) for share in shares]
    return shares[torch.stack(losses).argmin()].item()


def by_image(scores):
    """As if the weight were the image's: one weight for all of them changes nothing."""
    return F.cross_entropy(scores, first, label_smoothing=0.1)


def by_pytorch(scores):
    return F.cross_entropy(scores, first, weight=weights, label_smoothing=0.1)


def without_smoothing(scores):
    return F.cross_entropy(scores, first, weight=weights)


found = {}
for loss in (without_smoothing, by_image, by_pytorch):
    found[loss.__name__] = best_share(loss)
    print(f"{loss.__name__}: the second class has {found[loss.__name__]:.1%}")
is_so = found["without_smoothing"] < 0.01
is_so = is_so and abs(found["by_image"] - 0.05) < 0.01
is_so = is_so and abs(found["by_pytorch"] - 0.84) < 0.01
sys.exit(0 if is_so else 1)
END
