"""Measure how far a trained network's scores can be trusted.

    python tools/trust.py --ckpt best.pt [--data-dir FOLDER]

First whether its confidence is its accuracy: the expected calibration error of Guo et al., "On
Calibration of Modern Neural Networks", ICML 2017, before and after their one temperature. Then
the accuracy on corrupted images, at three severities. The corruptions are those of CIFAR-10-C
(Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019) as albumentations makes them: with its numbers 1, 3 and 5 where both
count the same thing, and about as strong to the eye elsewhere. It has no frost, but spatter;
its shot noise is that of linear light, stronger in dark pixels and weaker in bright ones, and its
impulse noise hits whole pixels. Compare with others only what this script measures.
"""

import os
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # or the next import asks the network

import albumentations as A

import utils
from checkpoint import load_checkpoint, restore
from dataset import DATASETS
from evaluate import measure, predict, test_images
from machine import add_device_options, pick_device, pick_precision, place
from plots import metrics_in_words


class Jpeg(A.ImageCompression):
    """JPEG, whose colours albumentations takes in the order blue, green, red."""

    def apply(self, image, *settings, **named):
        exchanged = np.ascontiguousarray(image[..., ::-1])
        return super().apply(exchanged, *settings, **named)[..., ::-1]


BLOCKS = {"downscale": cv2.INTER_AREA, "upscale": cv2.INTER_NEAREST_EXACT}
MIRRORED = cv2.BORDER_REFLECT_101
# Each with three severities, the mildest first.
CORRUPTIONS = {
    "Gaussian noise": [A.GaussNoise((std, std)) for std in (0.04, 0.08, 0.10)],
    "shot noise": [A.ShotNoise((1 / n, 1 / n)) for n in (500, 100, 50)],
    "impulse noise": [A.SaltAndPepper((n, n), (0.5, 0.5)) for n in (0.01, 0.03, 0.07)],
    "defocus": [A.Defocus((1, 1), (alias, alias)) for alias in (0.3, 0.5, 0.8)],
    "glass": [A.GlassBlur(s, 1, n, mode="exact") for s, n in ((0.05, 1), (0.4, 1), (0.4, 2))],
    "motion": [A.MotionBlur((side, side)) for side in (3, 5, 7)],
    "zoom": [A.ZoomBlur((n, n), (0.01, 0.01)) for n in (1.06, 1.16, 1.26)],
    "snow": [A.RandomSnow(n, (0.1, 0.1)) for n in (1.2, 1.6, 2)],
    "spatter": [A.Spatter(intensity=(n, n)) for n in (0.2, 0.4, 0.6)],
    "fog": [A.RandomFog(n, (1, 1)) for n in (0.02, 0.05, 0.1)],
    "brightness": [A.RandomBrightnessContrast((n, n), (0, 0)) for n in (0.05, 0.15, 0.3)],
    "contrast": [A.ColorJitter((1, 1), (n, n), (1, 1), (0, 0)) for n in (0.75, 0.4, 0.15)],
    "elastic": [A.ElasticTransform(n, 4, border_mode=MIRRORED) for n in (10, 20, 30)],
    "pixelate": [A.Downscale((n, n), BLOCKS) for n in (0.95, 0.85, 0.65)],
    "JPEG": [Jpeg("jpeg", (n, n)) for n in (80, 58, 40)],
}  # fmt: skip


def corrupted(images, step):
    """Images (N, SIDE, SIDE, 3), uint8, each of them corrupted; the same every time."""
    transform = A.Compose([step], seed=0)
    step.p = 1.0
    results = [transform(image=image)["image"] for image in images.numpy()]
    return torch.from_numpy(np.stack(results))


def calibration_error(probabilities, labels, bins=15):
    """The mean gap between confidence and accuracy, 0 to 1, over bins of the confidence.

    `probabilities` are (N, classes). A bin counts by its share of the images.
    """
    confidence, predicted = probabilities.max(1)
    right = (predicted == labels).float()
    number = (bins * confidence).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins).index_add(0, number, right - confidence)
    return gaps.abs().sum().item() / len(labels)


def temperature(scores, labels):
    """What to divide scores (N, classes) by, so that the labels become the likeliest."""
    log = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([log], max_iter=100, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = F.cross_entropy(scores / log.exp(), labels)
        value.backward()
        return value

    optimizer.step(loss)
    return log.exp().item()


def print_calibration(scores, labels):
    """Print the calibration errors; the temperature of each half is chosen on the other."""
    before = calibration_error(scores.softmax(1), labels)
    cooled, found = scores.clone(), []
    halves = slice(0, None, 2), slice(1, None, 2)
    for half, other in zip(halves, reversed(halves)):
        found.append(temperature(scores[other], labels[other]))
        cooled[half] /= found[-1]
    after = calibration_error(cooled.softmax(1), labels)
    print(
        f"calibration error: {before:.2%}; {after:.2%} with the scores divided by "
        f"{found[0]:.3f} and {found[1]:.3f}, each chosen on the other half of the images"
    )


def main(argv=None):
    parser = utils.Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--ckpt", default="best.pt", help="the trained network")
    add("--dataset", choices=DATASETS, help="default: that of the training")
    add("--data-dir", help="folder of the images")
    add_device_options(add)
    args = parser.parse_args(argv)
    device = pick_device(args.device)
    precision = pick_precision(device, args.amp)
    checkpoint = load_checkpoint(args.ckpt)
    net = place(restore(checkpoint, args.ckpt), device)
    _, images, labels, _ = test_images(args, checkpoint)

    scores = predict(net, images, device, precision)
    print(f"Test {metrics_in_words(measure(scores, labels))}")
    print_calibration(scores, labels)
    print("\nAccuracy on corrupted images, % by severity\n")
    rows = []
    for name, steps in CORRUPTIONS.items():
        row = []
        for step in steps:
            scores = predict(net, corrupted(images, step), device, precision)
            row.append(100 * measure(scores, labels)["accuracy"])
        print_row(name, row)
        rows.append(row)
    print_row("mean", np.mean(rows, 0))


def print_row(name, values):
    print(f"{name:15}", *(f"{value:7.2f}" for value in values), flush=True)


if __name__ == "__main__":
    utils.run(main)
