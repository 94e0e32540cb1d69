#!/usr/bin/env bash
# The gradient through batch norm for a single image whose strides come from a transpose.
#
# Expected: a gradient depends on values alone, and in evaluation an image has the same gradient by
# itself as in a batch. The forward pass does.
# Seen with PyTorch 2.14.1 on a CPU: behind a patch embedding such as LeViT's or XCiT's (a
# convolution, batch norm, flatten(2).transpose(1, 2), layer norm) the gradient of one image differs
# from that of the same image twice by more than its own length, in training and in evaluation, and
# so do those of the weights. The same for a picture that was permuted from rows, columns, channels
# and given a batch axis by [None]. gradcheck in float64 fails. Two images, or contiguous ones, are
# right. Batch norm reads memory of channels last as if it were contiguous: of one image either
# order of the strides counts as such.
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

print("PyTorch", torch.__version__)
torch.manual_seed(0)


class Tokens(nn.Module):
    """Maps (N, C, H, W) as tokens (N, H W, C)."""

    def forward(self, x):
        return x.flatten(2).transpose(1, 2)


def gradients(net, images):
    """Those of the first score to the first image, and to all weights."""
    images = images.detach().requires_grad_()
    net.zero_grad()
    net(images)[:, 0].mean().backward()
    to_weights = torch.cat([weight.grad.flatten() for weight in net.parameters()])
    return len(images) * images.grad[0], to_weights


def errors(name, net, image):
    """Of the gradients of an image alone, beside those of a batch that has it twice."""
    alone, twice = gradients(net, image), gradients(net, torch.cat([image, image]))
    found = [((a - b).norm() / b.norm()).item() for a, b in zip(alone, twice)]
    print(f"{name}: to the image {found[0]:.1%}, to the weights {found[1]:.1%}")
    return found


patches = nn.Sequential(nn.Conv2d(3, 64, 4, 4), nn.BatchNorm2d(64))
tokens = nn.Sequential(patches, Tokens(), nn.LayerNorm(64), nn.Flatten(), nn.Linear(4096, 10))
plain = nn.Sequential(patches, nn.Flatten(), nn.Linear(4096, 10))
first = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3072, 10))
image, picture = torch.rand(1, 3, 32, 32), torch.rand(32, 32, 3)
permuted = picture.permute(2, 0, 1)[None]
wrong, right = [], []
for is_training in (False, True):
    mode = "in training" if is_training else "in evaluation"
    for net in (tokens, plain, first):
        net.train(is_training)
    wrong.append(errors(f"{mode}, tokens behind batch norm", tokens, image))
    right.append(errors(f"{mode}, a linear layer behind batch norm", plain, image))
    wrong.append(errors(f"{mode}, a permuted picture", first, permuted))
    right.append(errors(f"{mode}, the same, contiguous", first, permuted.contiguous()))
norm = nn.BatchNorm2d(3).double().eval()
small = torch.rand(4, 4, 3).double().permute(2, 0, 1)[None].requires_grad_()
passes = torch.autograd.gradcheck(norm, small, raise_exception=False)
print("gradcheck of a permuted picture:", passes)
is_so = all(found[0] > 1 and found[1] > 0.01 for found in wrong) and not passes
sys.exit(0 if is_so and all(max(found) < 1e-3 for found in right) else 1)
END
