#!/usr/bin/env bash
# AblationCAM of the library grad-cam, beside its definition (Desai, Ramaswamy, WACV 2020).
#
# Expected: a channel counts by the share of the score that is lost where it is set to 0, and the
# size of the batches in which that is tried only changes the time.
# Seen with grad-cam 1.5.7 and PyTorch 2.14.1: behind a ReLU it is so. Where a layer gives negative
# values (SiLU, GELU) channels are set to ten million below the lowest value, counted from what the
# channel before them in the batch was set to: maps of one network by batch sizes of 1, 8 and 32
# differ, and correlate with the right one by 0.6 to 0.8. Behind a ReLU a constant taken from all
# scores, which changes no probability, turns the map into another.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TQDM_DISABLE=1
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.14.1" "torchvision==0.29.2" "grad-cam==1.5.7" \
    "numpy==2.4.6"
"$work/venv/bin/python" -W ignore - <<'END'
import sys
from importlib.metadata import version

import numpy as np
import torch
from pytorch_grad_cam import AblationCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

print("grad-cam", version("grad-cam"), "PyTorch", torch.__version__)
image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, activation):
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, 64, 3, padding=1)
        self.activation = activation
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.activation(self.conv(x)).mean((2, 3)))


def by_library(net, target, batch_size):
    with AblationCAM(net, [net.activation], batch_size=batch_size) as cam:
        return cam(image, [ClassifierOutputTarget(target)])[0]


@torch.no_grad()
def by_definition(net, target):
    maps = net.activation(net.conv(image))
    score = net.head(maps.mean((2, 3)))[0, target]
    shares = []
    for channel in range(64):
        ablated = maps.clone()
        ablated[:, channel] = 0
        shares.append((score - net.head(ablated.mean((2, 3)))[0, target]) / score)
    cam = (maps * torch.stack(shares).view(1, 64, 1, 1)).sum(1)[0].relu()
    return ((cam - cam.min()) / (cam.max() - cam.min())).numpy()


def correlation(one, other):
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


found = {}
for activation in (nn.ReLU(), nn.SiLU(), nn.GELU()):
    net, name = Net(activation).eval(), type(activation).__name__
    target = int(net(image).argmax())
    right = by_definition(net, target)
    found[name] = [correlation(by_library(net, target, size), right) for size in (1, 8, 32)]
    words = ", ".join(f"{one:.2f}" for one in found[name])
    print(f"{name}: correlation with the definition {words}, by batches of 1, 8, 32")
net = Net(nn.ReLU()).eval()
target = int(net(image).argmax())
before = by_library(net, target, 32)
net.head.bias.data -= 1  # of all classes: no probability changes
shifted = correlation(before, by_library(net, target, 32))
print(f"ReLU, 1 taken from all scores: correlation with the map before {shifted:.2f}")
is_so = min(found["ReLU"]) > 0.999 and max(found["SiLU"] + found["GELU"]) < 0.9
is_so = is_so and all(max(found[name]) - min(found[name]) > 0.05 for name in ("SiLU", "GELU"))
sys.exit(0 if is_so and shifted < 0.5 else 1)
END
