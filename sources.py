"""Where the images come from: one row of `DATASETS` per data set.

To add one, write a function like those below and give it a row of the table at the end.
It takes the folder of the data and whether the training or the test part is wanted, and
returns uint8 images (N, 32, 32, 3), their labels (N,) from 0, and the classes' names.
"""

import os
import warnings
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps
from sklearn import datasets
from sklearn.model_selection import train_test_split
from torchvision.datasets import CIFAR10, CIFAR100, MNIST, ImageFolder

from utils import UserError, check_regular_file, is_text, progress

SIDE = 32  # pixels


class NoImages(UserError):
    """A data set is neither there nor to be downloaded."""


class DataSet(NamedTuple):
    """How a data set is loaded, and whether an image may be mirrored."""

    load: Callable  # of (data_dir, train)
    mirror: bool  # whether a mirror image is of the same class


def from_torchvision(source, data_dir, train, remedy):
    """A data set of one of torchvision's classes, downloaded where it is missing.

    Of CIFAR torchvision checks the digests of what it reads. Raises NoImages, which ends in
    `remedy`, where the data set is neither there, whole, nor to be downloaded.
    """
    try:
        return source(data_dir, train, download=True)
    except Exception as error:  # noqa: BLE001 - of many types, by what is broken
        reason = " ".join(str(error).split()) or type(error).__name__
        raise NoImages(
            f"no intact {source.__name__} in {data_dir} and no download ({reason}): "
            f"{remedy}, or take --dataset folder; 'make demo' needs no images"
        )


def load_cifar(source, data_dir, train):
    """The images of `source`, which is CIFAR10 or CIFAR100."""
    remedy = f"put {source.filename} there"
    data = from_torchvision(source, data_dir, train, remedy)
    return data.data, data.targets, data.classes


def load_cifar10(data_dir, train):
    """50,000 photos to train on and 10,000 to test, of 10 classes."""
    return load_cifar(CIFAR10, data_dir, train)


def load_cifar100(data_dir, train):
    """50,000 photos to train on and 10,000 to test, of 100 classes."""
    return load_cifar(CIFAR100, data_dir, train)


def load_mnist(data_dir, train):
    """60,000 handwritten digits to train on and 10,000 to test, with a black margin."""
    # torchvision checks the archives when it unpacks them, and never reads them again:
    # an unpacked file that is damaged has to go before an archive can take its place.
    archives = ", ".join(name for name, _ in MNIST.resources)
    folder = os.path.join(data_dir, "MNIST", "raw")
    remedy = f"put {archives} into {folder}, and nothing else"
    data = from_torchvision(MNIST, data_dir, train, remedy)
    grey = data.data.numpy()  # (N, 28, 28)
    margin = (SIDE - 28) // 2
    grey = np.pad(grey, ((0, 0), (margin, margin), (margin, margin)))
    classes = [str(digit) for digit in range(10)]
    return grey_to_rgb(grey), data.targets.tolist(), classes


def load_folder(data_dir, train):
    """Images in <data_dir>/train/<class>/ and <data_dir>/test/<class>/."""
    folder = os.path.join(data_dir, "train" if train else "test")
    try:
        files = ImageFolder(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"no images in {folder}: {error}")
    if not all(map(is_text, files.classes)):
        raise UserError(f"{folder} has a class whose name does not print: rename it")
    if len(files.classes) < 2:
        raise UserError(f"{folder} holds one class; a classifier needs two or more")
    # One after another: images this small keep threads waiting for Python's lock.
    images = []
    for path, _ in progress(files.samples, folder, unit=" images"):
        images.append(read_image(path))
    return np.stack(images), files.targets, files.classes


def load_digits(data_dir, train):
    """scikit-learn's handwritten digits, grown from 8x8: 1,437 to train on, 360 to test."""
    digits = datasets.load_digits()
    grown = []
    for image in digits.images:  # floats from 0 to 16
        grown.append(cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC))
    grey = np.stack(grown) * (255 / 16)
    grey = np.clip(grey, 0, 255).round().astype(np.uint8)  # cubic curves overshoot
    train_images, test_images, train_labels, test_labels = train_test_split(
        grey_to_rgb(grey),
        digits.target,
        test_size=360,
        stratify=digits.target,
        random_state=0,
    )
    classes = [str(name) for name in digits.target_names]
    if train:
        return train_images, train_labels, classes
    return test_images, test_labels, classes


def grey_to_rgb(images):
    """Grey images (N, H, W) as (N, H, W, 3), all three channels the same."""
    return np.repeat(images[..., np.newaxis], 3, axis=-1)


def read_image(path):
    """An image file as uint8 (32, 32, 3), upright, the middle of it if it is not square.

    An upright RGB image of 32x32 is returned as it is. Raises UserError for what is not
    a regular file, is no image, or is smaller than 8 pixels.
    """
    check_regular_file(path)
    try:
        with Image.open(path) as file:
            image = turn_upright(file)
            if min(image.size) < 8:
                raise ValueError(f"{image.width}x{image.height} pixels show nothing")
            if image.mode.startswith("I"):  # 16 bits, which convert() would cut off
                image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
            image = image.convert("RGB")
            if image.size != (SIDE, SIDE):
                image = ImageOps.fit(image, (SIDE, SIDE), Image.Resampling.BICUBIC)
            return np.asarray(image)
    except Exception as error:  # noqa: BLE001 - decoders raise many types
        raise UserError(f"{path} cannot be read as an image: {error}")


def turn_upright(image):
    """An image as viewers show it: turned by what the camera noted in its EXIF data."""
    image.load()  # here, so that what is wrong with the pixels is raised
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged EXIF data
            return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001 - of many types; the pixels are fine without it
        return image


DATASETS = {
    "cifar10": DataSet(load_cifar10, mirror=True),
    "cifar100": DataSet(load_cifar100, mirror=True),
    "mnist": DataSet(load_mnist, mirror=False),
    "folder": DataSet(load_folder, mirror=True),
    "digits": DataSet(load_digits, mirror=False),
}
