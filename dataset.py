"""The images: where they come from, how they are augmented, how they reach the network.

Images are uint8 tensors (N, 32, 32, 3) in memory throughout. The training images are
augmented by the loader and travel as uint8; the network itself normalises them.

    python dataset.py [--dataset folder --data-dir FOLDER]

shows what is there: counts, classes, mean and deviation, samples, and the augmentation.
"""

import atexit
import multiprocessing
import os
import random
import signal
import warnings
from hashlib import sha256
from pathlib import Path

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # or its import asks the network

import albumentations as A
import cv2
import numpy as np
import torch
from PIL import Image
from sklearn import datasets
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.datasets import CIFAR10, ImageFolder

from distributed import ALONE, cores
from plots import plot_images
from utils import Parser, UserError, check_writable, is_text, progress, run

SIDE = 32  # pixels


def augmentation(mean, flip=True, move=0.3, hole=0.15):
    """The assignment's three, for uint8 images; `mean` (0 to 1) fills the hole.

    `move` and `hole` are the shares of the images that are moved and that get a hole:
    in a short training a network this small underfits.
    """
    fill = tuple(round(255 * value) for value in mean)  # on the scale of the image
    with warnings.catch_warnings():  # it recommends Affine; the assignment names this
        warnings.filterwarnings(
            "ignore", "ShiftScaleRotate is a special case of Affine"
        )
        moves = A.ShiftScaleRotate(
            shift_limit=0.0625,
            scale_limit=0.1,
            rotate_limit=10,
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
    steps = [A.HorizontalFlip(p=0.5 * flip), moves, cut]
    transform = A.Compose(steps, strict=True, is_check_shapes=False)  # all are 32x32
    transform.strict = False  # the steps are checked; no need to check every image
    return transform


def load_cifar10(data_dir, train):
    """torchvision's CIFAR-10, downloaded where it is missing, its digests checked."""
    try:
        data = CIFAR10(data_dir, train, download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"no CIFAR-10 in {data_dir} and no download ({error}): put "
            f"{CIFAR10.filename} there, or take --dataset folder or --dataset digits"
        )
    return data.data, data.targets, data.classes


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
    samples = progress(files.samples, folder, unit=" images")
    images = np.stack([read_image(path) for path, _ in samples])
    return images, files.targets, files.classes


def read_image(path):
    """An image file as uint8 (32, 32, 3); UserError where it cannot be read."""
    try:
        with Image.open(path) as image:
            if min(image.size) < 8:
                raise ValueError(f"{image.width}x{image.height} pixels show nothing")
            if image.mode.startswith("I"):  # 16 bits, which convert() would cut off
                image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
            image = image.convert("RGB")
            if image.size != (SIDE, SIDE):
                image = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            return np.asarray(image)
    except Exception as error:  # noqa: BLE001 - decoders raise many types
        raise UserError(f"{path} cannot be read as an image: {error}")


def load_digits(data_dir, train):
    """scikit-learn's handwritten digits, grown from 8x8: 1,437 to train on, 360 to test."""
    digits = datasets.load_digits()
    images = np.stack(
        [
            cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
            for image in digits.images
        ]
    )
    images = np.clip(images * (255 / 16), 0, 255).round().astype(np.uint8)
    images = np.repeat(images[..., None], 3, axis=-1)
    parts = train_test_split(
        images, digits.target, test_size=360, stratify=digits.target, random_state=0
    )
    names = [str(name) for name in digits.target_names]
    return parts[0 if train else 1], parts[2 if train else 3], names


DATASETS = {"cifar10": load_cifar10, "folder": load_folder, "digits": load_digits}


def load(dataset, data_dir, train):
    """The training or the test part of a data set.

    Returns uint8 images (N, 32, 32, 3), int64 labels (N,), and the names of the classes.
    Raises UserError where it cannot be had.
    """
    images, labels, classes = DATASETS[dataset](data_dir, train)
    return torch.from_numpy(images), torch.tensor(labels, dtype=torch.int64), classes


def load_splits(dataset, data_dir, val_size=0):
    """The splits "train", "test" and, of `val_size` training images, "val".

    Returns {name: (images, labels)} and the names of the classes, all as from `load`.
    The held-out images are the same for every seed, so that runs can be compared.
    """
    images, labels, classes = load(dataset, data_dir, train=True)
    *test, test_classes = load(dataset, data_dir, train=False)
    if differing := sorted(set(classes) ^ set(test_classes)):
        raise UserError(f"classes not in both train and test: {', '.join(differing)}")
    splits = {"train": (images, labels), "test": tuple(test)}
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
    counts = [
        np.bincount(channel, minlength=256)
        for channel in images.reshape(-1, 3).numpy().T
    ]
    means = [float(np.average(values, weights=count)) for count in counts]
    variances = [
        float(np.average((values - mean) ** 2, weights=count))
        for mean, count in zip(means, counts)
    ]
    return means, [variance**0.5 for variance in variances]


def digest(images, labels):
    """SHA-256 of the pixels and labels, to tell data sets apart."""
    return sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()


class AugmentedImages(Dataset):
    """Batches of augmented images: key (epoch, indices) to uint8 (N, 3, 32, 32), labels.

    What is drawn for an image depends on (seed, epoch, index) alone, so it is the same
    for any number of workers, and never the same twice. (The library's own generators
    are copied into every worker and start over with every epoch.)
    """

    def __init__(self, images, labels, transform, seed):
        self.images, self.labels, self.transform = images, labels, transform
        # Philox counts, so that any place in its stream is as near as the next one.
        self.generator = np.random.Generator(np.random.Philox(key=seed))
        self.python = random.Random()
        self.state = self.generator.bit_generator.state
        self.counter = self.state["state"]["counter"]
        transform.set_random_state(self.generator, self.python)

    def __getitem__(self, key):
        epoch, indices = key
        images = np.stack([*self.augment(epoch, indices)])
        batch = torch.from_numpy(images).permute(0, 3, 1, 2)
        return batch, self.labels[indices]

    def augment(self, epoch, indices):
        """Yield augmented images, (32, 32, 3), as drawn in this epoch."""
        images, generator = self.images.numpy(), self.generator.bit_generator
        for index in indices:
            self.counter[2], self.counter[3] = index, epoch
            generator.state = self.state
            self.python.seed(generator.random_raw())
            yield self.transform(image=images[index])["image"]

    def save_samples(self, classes, path):
        """A picture of what the network sees: ten originals above augmented versions."""
        picked = torch.linspace(0, len(self.labels) - 1, 10).int().tolist()
        images = [*self.images[picked]]
        titles = [classes[self.labels[index]] for index in picked]
        for epoch in (1, 2, 3):
            images += self.augment(epoch, picked)
            titles += [f"in epoch {epoch}"] * len(picked)
        plot_images(images, titles, 10, path, "Originals, and what the network sees")


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
        for batch in order[: len(self) * self.batch_size].reshape(len(self), -1):
            yield self.epoch, self.world.share(batch.tolist())


def leave_stopping_to_parent(_):
    """In a worker: what stops the training stops the workers, by its own hand."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@atexit.register
def stop_workers():
    """Python would wait for ever for workers of a loader that is still held."""
    if hasattr(signal, "SIGCHLD"):
        # Or torch raises an error as soon as it hears of the first that is killed.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in multiprocessing.active_children():
        worker.kill()


def training_loader(images, batch_size, seed, workers, device, world=ALONE):
    """A loader of `AugmentedImages`; set `loader.sampler.epoch` before each epoch.

    With `workers` None, all cores but two augment, 8 at most; where there are only two,
    the training process does so itself, unless a GPU would wait for it.
    """
    on_gpu = device.type == "cuda"
    if workers is None:
        workers = min(8, max(int(on_gpu), cores() - 2))
    return DataLoader(
        images,
        sampler=Batches(len(images.labels), batch_size, seed, world),
        batch_size=None,  # the sampler's keys are batches already
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=leave_stopping_to_parent,
        pin_memory=on_gpu,
        generator=torch.Generator(),  # the workers' number leaves torch's own alone
    )


def plot_steps(images, transform, path):
    """Images, a row each: as they are, and after each step in turn, all of which strike."""
    transform.set_random_state(np.random.default_rng(0), random.Random(0))
    names = ["original", *(type(step).__name__ for step in transform.transforms)]
    cells = []
    for image in images.numpy():
        cells.append(image)
        for step in transform.transforms:
            image = step(image=image, force_apply=True)["image"]
            cells.append(image)
    titles = names + [""] * (len(cells) - len(names))
    plot_images(
        cells, titles, len(names), path, "The augmentation, one step after another"
    )


def main(argv=None):
    parser = Parser(description="Show a data set: counts, classes, mean, and pictures.")
    add = parser.add_argument
    add("--dataset", choices=DATASETS, default="cifar10", help="kind of images")
    add("--data-dir", default="data", help="folder they are in, or are downloaded to")
    add("--out", default="results", help="folder of the pictures")
    args = parser.parse_args(argv)
    pictures = [Path(args.out) / name for name in ("samples.png", "steps.png")]
    check_writable(*pictures)
    splits, classes = load_splits(args.dataset, args.data_dir)
    images, labels = splits["train"]
    counts = [
        torch.bincount(part[1], minlength=len(classes)) for part in splits.values()
    ]
    width = max(map(len, [*classes, "class"]))
    print(f"{'class':{width}}", *(f"{name:>8}" for name in splits))
    for name, *row in zip([*classes, "all"], *([*c, c.sum()] for c in counts)):
        print(f"{name:{width}}", *(f"{count:>8,}" for count in row))
    mean, std = mean_and_std(images)
    for name, values in (("mean", mean), ("std", std)):
        print(f"{name} of red, green, blue:", *(f"{value:.4f}" for value in values))
    picked = [
        (labels == number).nonzero().ravel()[:8] for number in range(len(classes))
    ]
    columns = max(map(len, picked))
    picked = torch.cat([rows for rows in picked if len(rows) == columns])
    titles = [classes[label] for label in labels[picked]]
    plot_images(images[picked], titles, columns, pictures[0], "Samples, a row a class")
    some = torch.linspace(0, len(labels) - 1, 6).int()
    plot_steps(images[some], augmentation(mean), pictures[1])
    print(f"Pictures: {', '.join(map(str, pictures))}")


if __name__ == "__main__":
    run(main)
