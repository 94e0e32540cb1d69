#!/usr/bin/env bash
# The layer Equalization of Keras, for images in a batch.
#
# Expected: each image is equalized by its own histogram, as the documentation has it, also at
# inference.
# Seen with Keras 3.15.1 on PyTorch 2.14.1: the histogram is that of the whole batch. A dark image
# alone becomes 0 to 255; beside a bright one it stays in the lower half, up to 129 levels away, and
# so what a network sees of it depends on its neighbours.
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
generator = np.random.default_rng(0)
dark = generator.integers(0, 60, (32, 32, 3))
bright = generator.integers(190, 256, (32, 32, 3))
layer = keras.layers.Equalization()


def by_layer(*images):
    return keras.ops.convert_to_numpy(layer(np.stack(images).astype("float32")))


def by_own_histogram(image):
    result = np.empty(image.shape)
    for channel in range(3):
        sums = np.bincount(image[..., channel].ravel(), minlength=256).cumsum()
        lowest = sums[sums > 0][0]
        levels = np.round((sums - lowest) * 255 / (sums[-1] - lowest)).clip(0, 255)
        result[..., channel] = levels[image[..., channel]]
    return result


off = {}
for name, image, result in (
    ("dark alone", dark, by_layer(dark)[0]),
    ("bright alone", bright, by_layer(bright)[0]),
    ("dark beside bright", dark, by_layer(dark, bright)[0]),
    ("bright beside dark", bright, by_layer(dark, bright)[1]),
):
    off[name] = np.abs(result - by_own_histogram(image)).max()
    print(f"{name}: {result.min():.0f} to {result.max():.0f}, off by up to {off[name]:.0f} levels")
alone = max(off["dark alone"], off["bright alone"])
beside = min(off["dark beside bright"], off["bright beside dark"])
sys.exit(0 if alone <= 1 and beside > 100 else 1)
END
