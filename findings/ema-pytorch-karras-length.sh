#!/usr/bin/env bash
# The length of a post-hoc EMA, by how often it is updated.
#
# Expected: update_every is "how often to actually update, to save on compute": the average spans
# the same part of a training, its relative width sigma_rel, with 1 and with 100 (the default).
# Seen with ema-pytorch 0.8.3 and PyTorch 2.14.1: the decay of a step is applied once in so many
# steps. Of 2,000 steps KarrasEMA with sigma_rel=0.05 should be the mean over weights of around
# 95 % of the training. It is so with 1; with 10 it is at 64 %, with 100 at 15 %, which is close
# to the start. What PostHocEMA puts together is off in the same way.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.14.1" "ema-pytorch==0.8.3" "numpy==2.4.6"
"$work/venv/bin/python" -W ignore - <<'END'
import sys
import tempfile
from importlib.metadata import version

import torch
from ema_pytorch import KarrasEMA, PostHocEMA

STEPS = 2000
RIGHT = {0.05: 0.947, 0.15: 0.820}  # the centres of the averages of these widths

print(f"ema-pytorch {version('ema-pytorch')}, PyTorch {torch.__version__}")
found = {}
for every in (1, 10, 100):
    net = torch.nn.Linear(1, 1, bias=False)
    ema = KarrasEMA(net, sigma_rel=0.05, update_every=every)
    with tempfile.TemporaryDirectory() as folder:
        post_hoc = PostHocEMA(
            net,
            sigma_rels=(0.05, 0.28),
            update_every=every,
            checkpoint_every_num_steps=200,
            checkpoint_folder=folder,
            checkpoint_dtype=torch.float32,
        )
        for step in range(1, STEPS + 1):
            net.weight.data.fill_(step / STEPS)  # the weight is the time, 0 to 1
            ema.update()
            post_hoc.update()
        made = post_hoc.synthesize_ema_model(sigma_rel=0.15)
    found[every] = ema.ema_model.weight.item(), made.ema_model.weight.item()
    print(
        f"update_every={every:<3} of width 0.05: at {found[every][0]:.3f} (right: {RIGHT[0.05]}); "
        f"put together of width 0.15: at {found[every][1]:.3f} (right: {RIGHT[0.15]})"
    )
right = abs(found[1][0] - RIGHT[0.05]) < 0.01 and abs(found[1][1] - RIGHT[0.15]) < 0.01
sys.exit(not (right and found[10][0] < 0.7 and found[100][0] < 0.2 and found[100][1] < 0.1))
END
