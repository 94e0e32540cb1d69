#!/usr/bin/env bash
# The warm-up of timm's average of the weights.
#
# Expected: ModelEmaV3(use_warmup=True) begins with a short average that grows, so that the random
# start is forgotten, as in ModelEmaV3.update(model) of the example in its documentation.
# Seen with timm 1.0.31 and PyTorch 2.14.1: the warm-up counts by the argument `step` of update, which
# may be left out. Then there is none: after 2,000 steps with decay 0.9999 the average is 82 % the
# random start. With `step` it is at the weights of then. update_after_step is ignored likewise.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.14.1" "torchvision==0.29.2" "timm==1.0.31" "numpy==2.4.6"
"$work/venv/bin/python" -W ignore - <<'END'
import sys
from importlib.metadata import version

import torch
from timm.utils import ModelEmaV3
from torch import nn

STEPS = 2000

print(f"timm {version('timm')}, PyTorch {torch.__version__}")


def average(is_given, **settings):
    """The average after the steps: 0 are the initial weights, 1 those of all steps."""
    net = nn.Linear(1, 1, bias=False)
    net.weight.data.fill_(0.0)
    ema = ModelEmaV3(net, decay=0.9999, **settings)
    net.weight.data.fill_(1.0)
    for step in range(1, STEPS + 1):
        ema.update(net, step=step if is_given else None)
    return ema.module.weight.item()


found = {}
for is_given in (True, False):
    found[is_given] = average(is_given, use_warmup=True), average(is_given, update_after_step=STEPS // 2)
    says = "with" if is_given else "without"
    print(f"{says:7} step: warm-up {found[is_given][0]:.3f}, after half of the steps {found[is_given][1]:.3f}")
plain = average(False)
print(f"no warm-up: {plain:.3f}")
same = found[False] == (plain, plain)
sys.exit(not (same and plain < 0.2 and found[True][0] > 0.99 and found[True][1] > 0.99))
END
