#!/usr/bin/env bash
# nn.SiLU(inplace=True) and other activations in place, in training.
#
# Expected: in place, a layer needs one map less and no more time, as nn.ReLU(inplace=True) does:
# networks such as EfficientNet ask for nn.SiLU(inplace=True) everywhere.
# Seen with PyTorch 2.14.1: of SiLU, Mish and Hardswish autograd keeps a copy of the input, made
# before it is overwritten, so that nothing is saved and a map is copied. ReLU, LeakyReLU and ELU
# keep their output, which is there anyway.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.14.1" "numpy==2.4.6"
cat > "$work/kept.py" <<'END'
import sys

import torch
from torch import nn

LAYERS = {
    "ReLU": nn.ReLU(inplace=True),
    "LeakyReLU": nn.LeakyReLU(inplace=True),
    "ELU": nn.ELU(inplace=True),
    "SiLU": nn.SiLU(inplace=True),
    "Mish": nn.Mish(inplace=True),
    "Hardswish": nn.Hardswish(inplace=True),
}


def keeps_a_copy(layer):
    """Whether the backward pass holds a map that is neither the input's memory nor the output's."""
    kept = []

    def keep(tensor):
        kept.append(tensor.data_ptr())
        return tensor

    leaf = torch.randn(2, 8, 4, 4, requires_grad=True)
    x = leaf * 1.0  # in place of a convolution's output
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = layer(x)
    assert y.data_ptr() == x.data_ptr()  # it did work in place
    return any(place != y.data_ptr() for place in kept)


print(f"PyTorch {torch.__version__}")
found = {name: keeps_a_copy(layer) for name, layer in LAYERS.items()}
for name, is_copied in found.items():
    print(f"{name} in place: {'keeps a copy of its input' if is_copied else 'keeps its output'}")
copied = [name for name, is_copied in found.items() if is_copied]
sys.exit(0 if copied == ["SiLU", "Mish", "Hardswish"] else 1)
END
"$work/venv/bin/python" "$work/kept.py"
