#!/usr/bin/env bash
# How many multiply-adds five tools count in a convolution whose kernels are made anew in each
# pass (mirror images, weight standardisation, ...), and in which mode they leave a network.
#
# Expected: what runs is counted, and the network is left as it was.
# Seen with torchinfo 1.8.0, thop 0.1.1, ptflops 0.7.5, fvcore 0.1.5 and PyTorch 2.14.1: a module
# that calls torch.nn.functional.conv2d with such kernels has 0 multiply-adds in thop, and in
# torchinfo as many as it has weights, 216 of 442,368. PyTorch's own FlopCounterMode, fvcore and
# ptflops' "aten" backend count it.
# A batch norm that was frozen by eval() is in training after torchinfo and thop, and ptflops
# leaves the whole network in evaluation.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.14.1" "torchinfo==1.8.0" "thop==0.1.1.post2209072238" \
    "ptflops==0.7.5" "fvcore==0.1.5.post20221221" "numpy==2.4.6" "setuptools==80.9.0"
"$work/venv/bin/python" -W ignore - <<'END'
import contextlib
import io
import sys
from importlib.metadata import version

import fvcore.nn
import ptflops
import thop
import torch
import torch.nn.functional as F
import torchinfo
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


class Mirrored(nn.Module):
    """A 3x3 convolution of which half of the kernels are mirror images of the other half."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 3, 3, 3))

    def forward(self, x):
        return F.conv2d(x, torch.cat([self.weight, self.weight.flip(3)]), padding=1)


def network():
    net = nn.Sequential(Mirrored(), nn.BatchNorm2d(16))
    net.train()
    net[1].eval()  # frozen
    return net


def by_torchinfo(net):
    return torchinfo.summary(net, SHAPE, verbose=0).total_mult_adds - norm_of_torchinfo()


def norm_of_torchinfo():
    """What it counts for the batch norm, which is left out here."""
    return torchinfo.summary(nn.BatchNorm2d(16), (1, 16, 32, 32), verbose=0).total_mult_adds


def by_thop(net):
    return thop.profile(net, (torch.randn(SHAPE),), verbose=False)[0] - thop.profile(
        nn.BatchNorm2d(16).eval(), (torch.randn(1, 16, 32, 32),), verbose=False
    )[0]


def by_ptflops(net, backend="aten"):
    macs, _ = ptflops.get_model_complexity_info(
        net, SHAPE[1:], as_strings=False, print_per_layer_stat=False, backend=backend
    )
    return macs


def by_fvcore(net):
    counted = fvcore.nn.FlopCountAnalysis(net, torch.randn(SHAPE))
    return counted.unsupported_ops_warnings(False).by_operator()["conv"]


def by_pytorch(net):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.randn(SHAPE))
    return counter.get_total_flops() // 2


SHAPE = (1, 3, 32, 32)
RIGHT = 16 * 3 * 9 * 32 * 32
TOOLS = {
    "torchinfo": by_torchinfo,
    "thop": by_thop,
    "ptflops (aten)": by_ptflops,
    "fvcore": by_fvcore,
    "PyTorch": by_pytorch,
}
versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchinfo", "thop", "ptflops", "fvcore"))
print(f"{versions}; right: {RIGHT:,}")
macs, modes = {}, {}
for name, count in TOOLS.items():
    net = network()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        macs[name] = int(count(net))
    modes[name] = net.training, net[1].training
    print(f"{name:15} {macs[name]:9,}   network in training: {modes[name][0]}, its norm: {modes[name][1]}")
wrong = {name: value for name, value in macs.items() if value != RIGHT}
changed = [name for name, mode in modes.items() if mode != (True, False)]
print("wrong:", wrong, " change the mode:", changed)
same = wrong == {"torchinfo": 216, "thop": 0}
sys.exit(not (same and changed == ["torchinfo", "thop", "ptflops (aten)"]))
END
