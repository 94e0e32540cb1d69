#!/usr/bin/env bash
# The layer RandomSaturation of Keras, for images of 0 to 255, which is its default value_range.
#
# Expected: colours between grey and full saturation, in the range of the images.
# Seen with Keras 3.15.1 on PyTorch 2.14.1: the saturation, 0 to 1 whatever the pixels are, is cut
# off at 255. So each factor over 0.5 makes negative pixels: of random colours 23 % of the values by
# 0.6, 60 % by 0.9, down to -2,040. Up to 0.5, and of images of 0 to 1 with value_range=(0, 1), all
# is right. RandomColorJitter has it too.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export KERAS_BACKEND=torch
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "keras==3.15.1" "torch==2.14.1" "numpy==2.4.6"
"$work/venv/bin/python" -W ignore - <<'END'
import colorsys
import sys

import keras
import numpy as np

print("Keras", keras.__version__)
images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3)).astype("float32")


def by_layer(factor, images, **settings):
    layer = keras.layers.RandomSaturation((factor, factor), seed=0, **settings)
    return keras.ops.convert_to_numpy(layer(images, training=True))


def by_definition(image, factor):
    """The saturation of HSV times factor / (1 - factor), at most 1."""

    def saturate(pixel):
        h, s, v = colorsys.rgb_to_hsv(*(pixel / 255))
        return colorsys.hsv_to_rgb(h, min(s * factor / (1 - factor), 1), v)

    return 255 * np.apply_along_axis(saturate, -1, image)


is_so = True
for factor in (0.4, 0.5, 0.6, 0.9):
    result = by_layer(factor, images)
    scaled = 255 * by_layer(factor, images / 255, value_range=(0, 1))
    right = by_definition(images[0], factor)
    off, off_scaled = (np.abs(one[0] - right).max() for one in (result, scaled))
    share = (result < -0.5).mean()
    print(f"factor {factor}: lowest value {result.min():.0f}, {share:.0%} negative; off by up to")
    print(f"    {off:.1f} levels, of images of 0 to 1 by {off_scaled:.3f}")
    is_right = off < 0.1 and share == 0
    is_so = is_so and off_scaled < 0.1 and is_right == (factor <= 0.5)
    is_so = is_so and (factor <= 0.5 or (share > 0.2 and off > 100))
sys.exit(0 if is_so else 1)
END
