#!/usr/bin/env bash
# RandAugment of Keras, whose factor is the strength of the augmentation, 0 to 1.
#
# Expected: shifts to all sides, turns both ways by up to 30 degrees, brighter and darker images, as
# in the paper (Cubuk et al., 2020), and less change by a smaller factor.
# Seen with Keras 3.15.1 on PyTorch 2.14.1: the strength is handed on as a pair (0, factor), from
# which each step draws: images only get brighter, only move down and right, and only turn
# counter-clockwise, by 0.5, the default, up to 172 of 180 degrees. A smaller factor keeps fewer
# bits: by 0.3 posterizing leaves two levels of 256, by 0.5 two to eight.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export KERAS_BACKEND=torch
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "keras==3.15.1" "torch==2.14.1" "numpy==2.4.6"
"$work/venv/bin/python" -W ignore - <<'END'
import sys

import keras
import numpy as np

print("Keras", keras.__version__)
COUNT, SIDE = 40, 65


def black():
    return np.zeros((COUNT, SIDE, SIDE, 3), "float32")


def centres(images):
    """Where the light of each image is, from its middle: down and right, in pixels."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] - SIDE // 2
    shares = images[..., 0] / images[..., 0].sum((1, 2), keepdims=True)
    return (shares * y).sum((1, 2)), (shares * x).sum((1, 2))


def run(step, images):
    return keras.ops.convert_to_numpy(step(images, training=True))


grey, middle, right = np.full_like(black(), 128), black(), black()
middle[:, 31:34, 31:34] = 255
right[:, 31:34, 47:50] = 255
ramp = np.arange(256, dtype="float32").reshape(1, 16, 16, 1).repeat(COUNT, 0).repeat(3, -1)
is_so, steepest = True, {}
for factor in (0.3, 0.5):
    layer = keras.layers.RandAugment(factor=factor, seed=0)
    for step in (layer.random_translation, layer.random_rotation):
        step.fill_mode = "constant"  # so that there is one light
    brighter = run(layer.random_brightness, grey)[:, 0, 0, 0] - 128
    down, across = centres(run(layer.random_translation, middle))
    y, x = centres(run(layer.random_rotation, right))
    turned = np.degrees(np.arctan2(-y, x)).round()
    levels = [len(np.unique(one[..., 0])) for one in run(layer.random_posterization, ramp)]
    print(f"factor {factor}, from the least to the most of {COUNT}:")
    for name, values in (
        ("brighter by", brighter),
        ("down by", down),
        ("right by", across),
        ("turned by", turned),
        ("levels", levels),
    ):
        print(f"    {name} {min(values):.0f} to {max(values):.0f}")
    lowest = min(brighter.min(), down.min(), across.min(), turned.min())
    is_so = is_so and lowest > -0.5
    steepest[factor] = turned.max(), max(levels)
is_so = is_so and steepest[0.5][0] > 150 and steepest[0.3][1] < steepest[0.5][1]
sys.exit(0 if is_so else 1)
END
