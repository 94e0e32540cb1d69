#!/usr/bin/env bash
# Grad-CAM, by the library grad-cam, of a normalisation that an in-place ReLU follows.
#
# Expected: the same picture as with nn.ReLU(): the networks compute the same.
# Seen with grad-cam 1.5.5 and PyTorch 2.14.1: the scores are the same to the bit, the maps, from 0 to
# 1, are not: the library's hook keeps the layer's output, which the ReLU then overwrites, so that
# the negative evidence is gone.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.14.1" "torchvision==0.29.2" "grad-cam==1.5.5" "numpy==2.4.6"
"$work/venv/bin/python" -W ignore - <<'END'
import sys
from importlib.metadata import version

import numpy as np
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn


def heat(inplace):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(inplace=inplace),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    ).eval()
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with GradCAM(net, [net[1]]) as cam:
        return cam(image, [ClassifierOutputTarget(3)])[0], net(image)


print(f"grad-cam {version('grad-cam')}, PyTorch {torch.__version__}")
(apart, scores), (inplace, same) = heat(False), heat(True)
off = np.abs(apart - inplace).max()
print(f"scores alike: {torch.equal(scores, same)}; heat maps, 0 to 1, differ by up to {off:.2f}")
sys.exit(0 if torch.equal(scores, same) and off > 0.05 else 1)
END
