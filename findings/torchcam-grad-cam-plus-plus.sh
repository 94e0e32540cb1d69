#!/usr/bin/env bash
# Grad-CAM++ of torchcam, beside the formula that its documentation gives.
#
# Expected: the weight of a channel is the sum of alpha * relu(gradient), with
# alpha = gradient^2 / (2 gradient^2 + sum(map * gradient^3)).
# Seen with torchcam 0.5.0 and PyTorch 2.14.1: the division is done to a copy and lost, so that alpha
# is gradient^2. Two equal squares, seen by channels of which one counts three times as much, should
# be 1 and 0.354; they are 1 and 0.037, a 27th. Grad-CAM and LayerCAM give their 1 and 0.333.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.14.1" "torchvision==0.29.2" "torchcam==0.5.0" "numpy==2.4.6"
"$work/venv/bin/python" -W ignore - <<'END'
import sys
from importlib.metadata import version

import torch
from torch import nn
from torchcam.methods import GradCAM, GradCAMpp, LayerCAM


class Net(nn.Module):
    """Two channels, the image's own; class 0 is three times the first and once the second."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(2, 2, 1, bias=False)
        self.fc = nn.Linear(2, 2, bias=False)
        self.features.weight.data = torch.eye(2)[..., None, None]
        self.fc.weight.data = torch.tensor([[3.0, 1.0], [0.0, 0.0]])

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))


net = Net().eval()
image = torch.zeros(1, 2, 8, 8)
image[0, 0, 1:3, 1:3] = 1
image[0, 1, 5:7, 5:7] = 1
gradient = torch.tensor([3.0, 1.0]).view(2, 1, 1).expand(2, 8, 8) / 64
cubes = (image[0] * gradient**3).sum((1, 2), keepdim=True)
alpha = gradient**2 / (2 * gradient**2 + cubes)
weights = (alpha * gradient.relu()).sum((1, 2))
formula = (weights[1] / weights[0]).item()

print(f"torchcam {version('torchcam')}, PyTorch {torch.__version__}")
found = {}
for method in (GradCAM, LayerCAM, GradCAMpp):
    with method(net, "features") as cam:
        (found_map,) = cam(0, net(image))[0]
    found[method.__name__] = (found_map[6, 6] / found_map[1, 1]).item()
    print(f"{method.__name__:10} the weaker square is {found[method.__name__]:.3f} of the stronger one")
print(f"by the formula of Grad-CAM++ it is {formula:.3f}")
lost = abs(found["GradCAMpp"] - 1 / 27) < 1e-3 and abs(formula - 0.354) < 1e-3
others = all(abs(found[name] - 1 / 3) < 1e-3 for name in ("GradCAM", "LayerCAM"))
sys.exit(not (lost and others))
END
