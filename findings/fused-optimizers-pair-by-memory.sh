#!/usr/bin/env bash
# Optimizers with fused=True on a CPU, where weights, gradients and momentum lie differently.
#
# Expected: the same steps as without the option, which is said to be faster and no more. (On CUDA
# tensors that lie differently are an error.)
# Seen with PyTorch 2.14.1: numbers are paired by their place in memory. Where the gradients come of
# torch.autograd.grad and the images are channels last, or a checkpoint goes on in a network that
# was turned to channels last, so that its momentum is contiguous, each kernel is moved by
# the numbers of other places, without a word. After twenty steps SGD is as far as a fifth to two
# fifths of its way from where it should be, and Adam and AdamW are off too. foreach=True is right.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.14.1" "numpy==2.4.6"
"$work/venv/bin/python" - <<'END'
import copy
import sys

import torch
import torch.nn.functional as F
from torch import nn

print("PyTorch", torch.__version__)
generator = torch.Generator().manual_seed(0)
IMAGES = torch.randn(20, 8, 3, 16, 16, generator=generator)
LABELS = torch.randint(10, (20, 8), generator=generator)


def make(kind, **form):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 12 * 12, 10),
    )
    settings = {"lr": 0.02, "momentum": 0.9} if kind is torch.optim.SGD else {"lr": 1e-3}
    return net, kind(net.parameters(), **settings, **form)


def weights_of(net):
    return torch.cat([weight.detach().flatten() for weight in net.parameters()])


def given_gradients(kind, **form):
    """Gradients of torch.autograd.grad, as SAM and PCGrad take them; images channels last."""
    net, optimizer = make(kind, **form)
    weights = list(net.parameters())
    for images, labels in zip(IMAGES, LABELS):
        scores = net(images.to(memory_format=torch.channels_last))
        gradients = torch.autograd.grad(F.cross_entropy(scores, labels), weights)
        for weight, gradient in zip(weights, gradients):
            weight.grad = gradient
        optimizer.step()
    return weights_of(net)


def resumed(kind, **form):
    """In the middle both are loaded anew, the network in channels last."""
    net, optimizer = make(kind, **form)
    for number, (images, labels) in enumerate(zip(IMAGES, LABELS)):
        if number == 10:
            saved = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
            net, optimizer = make(kind, **form)
            net.to(memory_format=torch.channels_last).load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()
    return weights_of(net)


start = weights_of(make(torch.optim.SGD)[0])
is_so = True
for train in (given_gradients, resumed):
    for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        plain = train(kind, foreach=False)
        off = []
        for form in ({"foreach": True}, {"fused": True}):
            distance = (train(kind, **form) - plain).norm() / (plain - start).norm()
            off.append(distance.item())
        name = f"{train.__name__}, {kind.__name__}"
        print(f"{name}: foreach off by {off[0]:.1%} of the way, fused by {off[1]:.1%}")
        is_so = is_so and off[0] < 0.01 < 0.05 < off[1]
sys.exit(0 if is_so else 1)
END
