"""The images: where they come from, how they are augmented, how they reach the network.

Images are uint8 tensors (N, SIDE, SIDE, 3) in memory throughout. The training images are
augmented by the loader and travel as uint8; the network itself normalises them.

    python dataset.py [--dataset folder --data-dir FOLDER]

shows what is there: counts, classes, mean and deviation, samples, and the augmentation. To
add a data set, write a function like `load_folder` and give it a row of `DATASETS`.
"""

import atexit
import contextlib
import copy
import errno
import multiprocessing
import os
import random
import signal
import sys
import warnings
import weakref
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # or its import asks the network

import albumentations as A
import cv2
import numpy as np
import torch
from PIL import Image, ImageOps
from sklearn import datasets
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.datasets import CIFAR10, CIFAR100, MNIST, ImageFolder

from machine import ALONE, cores
from plots import plot_images
from utils import (
    SIDE,
    Parser,
    UserError,
    check_regular_file,
    check_writable,
    is_text,
    progress,
    run,
)

cv2.setNumThreads(0)  # on images this small, OpenCV's threads only keep cores busy
MOVE = 0.7  # probability that an image is shifted, scaled and rotated
HOLE = 0.15  # probability that it gets a hole: low, as a network this small underfits
SHOWN = 20  # classes at most in the picture of samples
WORKERS = weakref.WeakSet()  # the processes that loaders started


def augmentation(mean, mirror, move, hole):
    """The assignment's three steps, for uint8 images; `mean` (0 to 1) fills the hole.

    `mirror` says whether images may be mirrored: a digit in the mirror is no digit.
    `move` and `hole` are the probabilities of the second and the third step, in training
    those of --move and --hole.
    """
    fill = tuple(round(255 * value) for value in mean)  # on the scale of the image
    with warnings.catch_warnings():  # it recommends Affine; the assignment names this
        warnings.filterwarnings(
            "ignore", "ShiftScaleRotate is a special case of Affine"
        )
        moves = A.ShiftScaleRotate(
            shift_limit=0.0625,
            scale_limit=0.05,
            rotate_limit=5,  # degrees
            interpolation=cv2.INTER_CUBIC,  # blurs less than the linear one
            border_mode=cv2.BORDER_REFLECT_101,
            p=move,
        )
    cut = A.CoarseDropout(
        num_holes_range=(1, 1),
        hole_height_range=(16, 16),
        hole_width_range=(16, 16),
        fill=fill,
        p=hole,
    )
    flip = A.HorizontalFlip(p=0.5 if mirror else 0.0)
    steps = [flip, moves, cut]
    transform = A.Compose(steps, strict=True, is_check_shapes=False)  # all are alike
    transform.strict = False  # the steps are checked; no need to check every image
    return transform


class NoImages(UserError):
    """A data set is neither there nor to be downloaded."""


class DataSet(NamedTuple):
    """How a data set is loaded, and whether an image may be mirrored.

    `load` takes the folder of the data and whether the training or the test part is wanted.
    It returns uint8 images (N, SIDE, SIDE, 3), their labels (N,) from 0, and the names of
    the classes.
    """

    load: Callable  # of (data_dir, train)
    mirror: bool  # whether a mirror image is of the same class


def from_torchvision(source, data_dir, train, remedy):
    """A data set of one of torchvision's classes, downloaded where it is missing.

    Of CIFAR torchvision checks the digests of what it reads. Raises NoImages, which ends in
    `remedy`, where the data set is neither there, whole, nor to be downloaded, and UserError
    where the folder itself is at fault.
    """
    try:
        return source(data_dir, train, download=True)
    except Exception as error:  # noqa: BLE001 - of many types, by what is broken
        reason = " ".join(str(error).split()) or type(error).__name__
        # Those of the network are an OSError as well, and name no file of the disk.
        is_of_disk = isinstance(error, OSError) and not isinstance(error, URLError)
        if is_of_disk and (error.filename or error.errno == errno.ENOSPC):
            raise UserError(f"{source.__name__} cannot be kept in {data_dir}: {reason}")
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
    """An image file as uint8 (SIDE, SIDE, 3), upright, the middle of it if it is not square.

    An upright RGB image of that size is returned as it is. Raises UserError for what is not
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


def load(dataset, data_dir, train):
    """The training or the test part of a data set.

    Returns uint8 images (N, SIDE, SIDE, 3), int64 labels (N,), and the names of the classes.
    Raises UserError where it cannot be had.
    """
    images, labels, classes = DATASETS[dataset].load(data_dir, train)
    if images.shape[1:] != (SIDE, SIDE, 3):
        raise UserError(
            f"the images of {dataset} are of the shape {images.shape[1:]}, and not "
            f"({SIDE}, {SIDE}, 3), by SIDE of utils.py"
        )
    return torch.from_numpy(images), torch.tensor(labels, dtype=torch.int64), classes


def load_splits(dataset, data_dir, val_size=0):
    """The splits "train", "test" and, of `val_size` training images, "val".

    Returns {name: (images, labels)} and the names of the classes, all as from `load`.
    The held-out images are the same for every seed, so that runs can be compared. Raises
    UserError where train and test have different classes, or `val_size` is impossible.
    """
    images, labels, classes = load(dataset, data_dir, train=True)
    test_images, test_labels, test_classes = load(dataset, data_dir, train=False)
    if differing := sorted(set(classes) ^ set(test_classes)):
        raise UserError(f"classes not in both train and test: {', '.join(differing)}")
    splits = {"train": (images, labels), "test": (test_images, test_labels)}
    if val_size:
        try:
            kept, held_out = train_test_split(
                range(len(labels)), test_size=val_size, stratify=labels, random_state=0
            )
        except ValueError as error:
            raise UserError(f"--val-size {val_size} is impossible: {error}")
        splits["train"] = images[kept], labels[kept]
        splits["val"] = images[held_out], labels[held_out]
    return splits, classes


def mean_and_std(images):
    """The mean and standard deviation of each channel, pixels taken as 0 to 1."""
    values = np.arange(256) / 255
    means, deviations = [], []
    for channel in images.reshape(-1, 3).numpy().T:
        # Of 256 counts, and so exact and fast for any number of pixels.
        counts = np.bincount(channel, minlength=256)
        mean = float(np.average(values, weights=counts))
        variance = float(np.average((values - mean) ** 2, weights=counts))
        means.append(mean)
        deviations.append(variance**0.5)
    return means, deviations


def digest(images, labels):
    """SHA-256 of the pixels and labels, to tell data sets apart."""
    return sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()


class AugmentedImages(Dataset):
    """Batches of augmented images: key (epoch, indices) to uint8 (N, 3, H, W), labels.

    What is drawn for an image depends on (seed, epoch, index) alone, so it is the same
    for any number of workers, and never the same twice. (The library's own generators
    are copied into every worker and start over with every epoch.)
    """

    def __init__(self, images, labels, transform, seed):
        self.images, self.labels, self.transform = images, labels, transform
        # A Philox generator's draws follow from a key and a counter of four words, so
        # that any place in its stream is as near as the next one.
        self.generator = np.random.Generator(np.random.Philox(key=seed))
        self.start = self.generator.bit_generator.state
        self.python = random.Random()  # albumentations draws from both
        transform.set_random_state(self.generator, self.python)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, key):
        epoch, indices = key
        images = np.stack(list(self.augment(epoch, indices)))
        batch = torch.from_numpy(images).permute(0, 3, 1, 2)
        return batch, self.labels[indices]

    def set_generators(self, epoch, index):
        """Bring both generators to the place that belongs to an image in an epoch."""
        # The two low words are left to count the draws of this one image.
        counter = [0, 0, index, epoch]
        place = {"key": self.start["state"]["key"], "counter": counter}
        self.generator.bit_generator.state = {**self.start, "state": place}
        self.python.seed(self.generator.bit_generator.random_raw())

    def augment(self, epoch, indices):
        """Yield augmented images, uint8 (H, W, 3), as drawn in this epoch."""
        images = self.images.numpy()
        for index in indices:
            self.set_generators(epoch, index)
            yield self.transform(image=images[index])["image"]


class Batches(Sampler):
    """The keys of an epoch's batches, shuffled; images short of a batch are left out.

    Of several processes each takes its part of every batch.
    """

    def __init__(self, length, batch_size, seed, world=ALONE):
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.world, self.epoch = world, 0

    def __len__(self):
        return self.length // self.batch_size

    def __iter__(self):
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        whole_batches = order[: len(self) * self.batch_size]
        for batch in whole_batches.reshape(len(self), self.batch_size):
            yield self.epoch, self.world.shard(batch.tolist())


def training_loader(images, batch_size, seed, workers, device, world=ALONE):
    """A loader of `AugmentedImages`; set `loader.sampler.epoch` before each epoch.

    With `workers` None, all cores but two augment, 8 at most; where there are only two,
    the training process does so itself, unless a GPU would wait for it: then two do. Its
    batches are uint8 (N, 3, H, W) and int64 labels (N,), `batch_size` images over all
    processes.
    """
    on_gpu = device.type == "cuda"
    if workers is None:
        fewest = min(2, cores()) if on_gpu else 0
        workers = min(8, max(fewest, cores() - 2))
    return Loader(
        images,
        sampler=Batches(len(images.labels), batch_size, seed, world),
        batch_size=None,  # the sampler's keys are batches already
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=on_gpu,
        generator=torch.Generator(),  # the workers' number leaves torch's own alone
    )


class Loader(DataLoader):
    """A DataLoader whose worker processes end with the script, however that ends."""

    def __init__(self, *args, **settings):
        super().__init__(*args, worker_init_fn=ignore_lost_connections, **settings)

    def __iter__(self):
        if self.num_workers == 0:
            return super().__iter__()
        atexit.unregister(stop_workers)  # one call serves any number of loaders
        atexit.register(stop_workers)
        others = set(multiprocessing.active_children())
        try:
            with stopped_by_parent():
                return super().__iter__()
        finally:  # also where Ctrl-C comes while they start
            WORKERS.update(set(multiprocessing.active_children()) - others)


def ignore_lost_connections(_):
    """In a worker: print no traceback where the training ends while it hands on a batch."""

    def show(kind, *rest):
        if not issubclass(kind, ConnectionError):
            sys.__excepthook__(kind, *rest)

    sys.excepthook = (
        show  # of a thread of multiprocessing; the worker's own errors travel
    )


@contextlib.contextmanager
def stopped_by_parent():
    """Let the processes that start here never hear of Ctrl-C and SIGTERM.

    They inherit that these signals are blocked. What stops the training comes to all its
    processes at once, and it stops its workers itself.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def stop_workers():
    """End the worker processes that still run, and no other process.

    They do not hear the signal by which Python ends its child processes at exit: Python
    would wait for ever for those of a loader that is still held.
    """
    running = [child for child in multiprocessing.active_children() if child in WORKERS]
    if running and hasattr(signal, "SIGCHLD"):
        # Or torch raises an error as soon as it hears of the first that is killed.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in running:
        worker.kill()


def print_counts(splits, classes):
    """Print how many images there are: one row per class, one column per split."""
    counts = []
    for _, labels in splits.values():
        counts.append(torch.bincount(labels, minlength=len(classes)))
    width = max(len(name) for name in [*classes, "class"])
    print(f"{'class':{width}}", *(f"{split:>8}" for split in splits))
    for number, name in enumerate(classes):
        print(f"{name:{width}}", *(f"{count[number]:>8,}" for count in counts))
    print(f"{'all':{width}}", *(f"{count.sum():>8,}" for count in counts))


def plot_samples(images, labels, classes, path):
    """Images of the first classes as they are, eight at most: one row per class."""
    rows = []
    for number in range(min(len(classes), SHOWN)):
        rows.append((labels == number).nonzero().ravel()[:8])
    columns = max(len(row) for row in rows)
    # A class with fewer images is left out, or the rows below it would move up.
    indices = torch.cat([row for row in rows if len(row) == columns])
    titles = [classes[label] for label in labels[indices]]
    plot_images(images[indices], titles, columns, path, "Samples, one row per class")


def plot_steps(images, transform, path):
    """Three of the images, a row each: as it is, and after each step in turn.

    Every step strikes, but for those whose probability is 0, which are left out.
    """
    transform = copy.deepcopy(transform)  # a training's own draws stay as they are
    # With this seed the moves of all three can be seen at a glance.
    transform.set_random_state(np.random.default_rng(52), random.Random(52))
    steps = [step for step in transform.transforms if step.p > 0]
    names = ["original"] + [type(step).__name__ for step in steps]
    cells = []
    spread = torch.linspace(0, len(images) - 1, 3).int()  # from the first to the last
    for image in images[spread].numpy():
        cells.append(image)
        for step in steps:
            image = step(image=image, force_apply=True)["image"]
            cells.append(image)
    titles = names + [""] * (len(cells) - len(names))  # above the first row alone
    heading = "The augmentation, one step after another, each always applied"
    plot_images(cells, titles, len(names), path, heading)


def main(argv=None):
    parser = Parser(description="Show a data set: counts, classes, mean, and pictures.")
    add = parser.add_argument
    add("--dataset", choices=DATASETS, default="cifar10", help="kind of images")
    add("--data-dir", default="data", help="folder they are in, or are downloaded to")
    add("--out", default="results", help="folder of the pictures")
    args = parser.parse_args(argv)
    samples_path = Path(args.out) / "samples.png"
    steps_path = Path(args.out) / "steps.png"
    check_writable(samples_path, steps_path)

    splits, classes = load_splits(args.dataset, args.data_dir)
    images, labels = splits["train"]
    print_counts(splits, classes)
    mean, std = mean_and_std(images)
    for name, values in (("mean", mean), ("std", std)):
        print(f"{name} of red, green, blue:", *(f"{value:.4f}" for value in values))

    plot_samples(images, labels, classes, samples_path)
    transform = augmentation(mean, DATASETS[args.dataset].mirror, MOVE, HOLE)
    plot_steps(images, transform, steps_path)
    print(f"Pictures: {samples_path}, {steps_path}")


if __name__ == "__main__":
    run(main)
