"""The images: where they come from, how they are augmented, how they reach the network.

Images are uint8 tensors (N, SIDE, SIDE, 3) in memory throughout. The training images are
augmented by the loader and travel as uint8; the network itself normalises them.

    python dataset.py [--dataset folder --data-dir FOLDER]

shows what is there: counts, classes, mean and deviation, samples, and the augmentation. To
add a data set, write a function like `load_folder` and give it a row of `DATASETS`.
"""

import copy
import errno
import inspect
import os
import random
import socket
import sys
import warnings
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # or its import asks the network

import albumentations as A
import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from folders import contents_of, find_part, has_images, list_part, read_listing
from machine import ALONE, Loader, cores
from plots import plot_images, shortened
from utils import SIDE, Parser, UserError, check_writable, is_text, line_of, run
from whole_batch import OnDevice, augment_batch, is_known

cv2.setNumThreads(0)  # on images this small, OpenCV's threads only keep cores busy
MOVE = 0.7  # probability that an image is shifted, scaled and rotated
HOLE = 0.15  # probability that it gets a hole: more gain nothing in short trainings
LEAST_STD = 1 / 255  # of a channel of the images
DATA_DIR = "data"  # where the images are, or are downloaded to
SHOWN = 20  # classes at most in the picture of samples
DATASET_HELP = (
    "kind of images (default: folder, where --data-dir holds images; else cifar10)"
)


def augmentation(mean, mirror, move, hole):
    """The assignment's three steps, for uint8 images; `mean` (0 to 1) fills the hole.

    `mirror` says whether images may be mirrored: a digit in the mirror is no digit.
    `move` and `hole` are the probabilities of the second and the third step, in training
    those of --move and --hole.
    """
    check_albumentations()
    flip = A.HorizontalFlip(p=0.5 if mirror else 0.0)
    with warnings.catch_warnings():  # it recommends Affine; the assignment names this
        warnings.filterwarnings("ignore", "ShiftScaleRotate is a special case")
        moves = A.ShiftScaleRotate(
            shift_limit=0.0625,  # 2 of 32 pixels, cut to whole ones towards 0: -1, 0 or 1
            scale_limit=0.05,
            rotate_limit=5,  # degrees
            interpolation=cv2.INTER_CUBIC,  # blurs less than the linear one
            border_mode=cv2.BORDER_REFLECT_101,
            p=move,
        )
    fill = tuple(round(255 * value) for value in mean)  # on the scale of the image
    cut = A.CoarseDropout(
        num_holes_range=(1, 1),
        hole_height_range=(16, 16),
        hole_width_range=(16, 16),
        fill=fill,
        p=hole,
    )
    steps = [flip, moves, cut]
    transform = A.Compose(steps, strict=True, is_check_shapes=False)  # all are alike
    transform.strict = False  # the steps are checked; no need to check every image
    return transform


def check_augmentation(transform, image):
    """Raise UserError where the steps do not give uint8 images of the same size.

    `image` is one of the training images, uint8 (SIDE, SIDE, 3); each step is applied.
    """
    result, names = image, []
    for step in transform.transforms:
        names.append(type(step).__name__)
        try:
            result = step(image=result, force_apply=True)["image"]
        except Exception as error:  # noqa: BLE001 - of any type, by what the step does
            raise UserError(f"augmentation: {names[-1]} fails: {error}")
        if not isinstance(result, np.ndarray) or result.dtype != np.uint8:
            raise UserError(
                f"augmentation: {names[-1]} gives no uint8 image; leave it out: the loader "
                "makes tensors, and the network normalises"
            )
    if result.shape != image.shape:
        raise UserError(
            f"augmentation: {', '.join(names)} make {result.shape} of an image "
            f"{image.shape}: add what brings it back to that size, such as A.RandomCrop"
        )


def check_albumentations():
    """Raise UserError where another library lies under the name of albumentations."""
    if "shift_limit" not in inspect.signature(A.ShiftScaleRotate.__init__).parameters:
        raise UserError(
            "albumentationsx is installed over albumentations, under the same name: it ignores "
            "the options of the steps here. pip uninstall albumentationsx, then pip install "
            "--force-reinstall albumentations==2.0.8"
        )


class AugmentedImages(Dataset):
    """Batches of augmented images: key (epoch, indices) to uint8 (N, 3, H, W), labels.

    What is drawn for an image depends on (seed, epoch, index) alone, so it is the same
    for any number of workers, and never the same twice. (The library's own generators
    are copied into every worker and start over with every epoch.)
    """

    def __init__(self, images, labels, transform, seed):
        self.images, self.labels, self.transform = images, labels, transform
        # Philox: its state is a key and a counter, so that it can begin anywhere.
        self.generator = np.random.Generator(np.random.Philox(key=seed))
        self.state = self.generator.bit_generator.state
        self.python = random.Random()  # albumentations draws from both
        transform.set_random_state(self.generator, self.python)
        self.is_known = is_known(transform)
        check_augmentation(transform, images[0].numpy())

    def __len__(self):
        return len(self.images)

    def __getitem__(self, key):
        epoch, indices = key
        batch = torch.from_numpy(self.augment(epoch, indices)).permute(0, 3, 1, 2)
        return batch, self.labels[indices]

    def augment(self, epoch, indices):
        """The images of these indices, augmented as drawn in this epoch: uint8 (N, H, W, 3)."""
        images = self.images.numpy()[indices]  # a copy
        places = self.places(epoch, indices)
        if self.is_known:
            augment_batch(self.transform, images, places)
        else:
            for place in places:
                images[place] = self.transform(image=images[place])["image"]
        return images

    def places(self, epoch, indices):
        """Yield each image's place in the batch, when the generators are set for its draws."""
        for place, index in enumerate(indices):
            self.set_generators(epoch, index)
            yield place

    def set_generators(self, epoch, index):
        """Set both generators to where the draws of an image in an epoch begin."""
        # The two low words of the counter, left at 0, count the draws of this image.
        self.state["state"]["counter"][2:] = index, epoch
        self.generator.bit_generator.state = self.state
        self.python.seed(self.generator.bit_generator.random_raw())


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


def training_loader(
    images, batch_size, seed, workers, device, world=ALONE, on_device=False
):
    """A loader of `AugmentedImages`; set `loader.sampler.epoch` before each epoch.

    With `workers` None, all cores but two augment, 8 at most; where there are only two,
    the training process does so itself, unless a GPU would wait for it: then two do. Its
    batches are uint8 (N, 3, H, W) and int64 labels (N,), `batch_size` images over all
    processes. With `on_device` the device makes their pixels, see `augments_on_device`.
    """
    on_gpu = device.type == "cuda"
    if workers is None:
        fewest = min(2, cores()) if on_gpu else 0
        workers = min(8, max(fewest, cores() - 2))
    # Other ways to start them copy the images to shared memory, of which containers have
    # little.
    may_fork = workers > 0 and sys.platform == "linux"
    settings = {
        "sampler": Batches(len(images), batch_size, seed, world),
        "batch_size": None,  # the sampler's keys are batches already
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "pin_memory": on_gpu,
        "multiprocessing_context": "fork" if may_fork else None,
        "generator": torch.Generator(),  # the workers' number leaves torch's own alone
    }
    if on_device:
        return OnDevice(images, device, **settings)
    return Loader(images, **settings)


class NoImages(UserError):
    """A data set is neither there nor to be downloaded."""


class DataSource(NamedTuple):
    """How a data set is loaded, and what its images are like.

    `load` takes the folder of the data and whether the training or the test part is wanted.
    It returns uint8 images (N, SIDE, SIDE, 3), their labels (N,) from 0, and the names of
    the classes.
    """

    load: Callable  # of (data_dir, train)
    mirror: bool  # whether a mirror image is of the same class
    dark_ground: bool = False  # whether its images are light strokes on a dark ground


def pick_dataset(name, data_dir):
    """The data set that --dataset names; where it is left out, what is plainly there.

    That is "folder" for a folder with train/ or with images at any depth, else "cifar10".
    Raises UserError where both are there, or the folder is not: a slip of the pen is no
    place to download to.
    """
    if name is not None:
        return name
    data_dir = Path(data_dir)
    if not data_dir.exists() and data_dir != Path(DATA_DIR):
        raise UserError(
            f"there is no folder {data_dir}; with --dataset cifar10 it is made, and CIFAR-10 "
            "downloaded into it"
        )
    has_train = find_part(data_dir, "train") is not None
    has_cifar = any(data_dir.glob("cifar-10-*"))
    if has_train and has_cifar:
        raise UserError(
            f"{data_dir} holds both train/ and CIFAR-10: --dataset folder or cifar10"
        )
    if has_train or (not has_cifar and has_images(data_dir)):
        return "folder"
    return "cifar10"


def load_cifar(name, data_dir, train):
    """50,000 photos to train on and 10,000 to test; `name` is CIFAR10 or CIFAR100."""
    from torchvision import datasets  # here, as it takes seconds

    source = getattr(datasets, name)
    if os.path.basename(os.path.normpath(data_dir)) == source.base_folder:
        data_dir = Path(data_dir).absolute().parent  # it is itself the data set
    remedy = f"put {source.filename} there, of just this name, or {source.base_folder}/"
    data = from_torchvision(source, data_dir, train, remedy)
    return in_size(data.data), data.targets, data.classes


def load_mnist(data_dir, train):
    """60,000 handwritten digits to train on and 10,000 to test, with a black margin."""
    from torchvision.datasets import MNIST  # here, as it takes seconds

    # torchvision checks the archives when it unpacks them, and never reads them again:
    # an unpacked file that is damaged has to go before an archive can take its place.
    archives = ", ".join(name for name, _ in MNIST.resources)
    folder = os.path.join(data_dir, "MNIST", "raw")
    remedy = f"put {archives} into {folder}, and nothing else"
    data = from_torchvision(MNIST, data_dir, train, remedy)
    grey = data.data.numpy()  # (N, 28, 28)
    grey = in_size(np.pad(grey, ((0, 0), (2, 2), (2, 2))))  # from 32x32
    classes = [str(digit) for digit in range(10)]
    return grey_to_rgb(grey), data.targets.tolist(), classes


def load_digits(data_dir, train):
    """scikit-learn's handwritten digits, grown from 8x8: 1,437 to train on, 360 to test."""
    from sklearn import datasets  # here, as it takes a second

    digits = datasets.load_digits()
    grey = in_size(digits.images) * (255 / 16)  # of floats from 0 to 16
    grey = np.clip(grey, 0, 255).round().astype(np.uint8)  # cubic curves overshoot
    labels = digits.target
    rest, held_out = hold_out(labels, 360)
    pixels = grey_to_rgb(grey)
    classes = [str(name) for name in digits.target_names]
    chosen = rest if train else held_out
    return pixels[chosen], labels[chosen], classes


def grey_to_rgb(images):
    """Grey images (N, H, W) as (N, H, W, 3), all three channels the same."""
    return np.repeat(images[..., np.newaxis], 3, axis=-1)


def load_folder(data_dir, train):
    """Images in <data_dir>/train/<class>/ and <data_dir>/test/<class>/.

    Where there are folders of classes alone, a fifth of each class is the test part, which
    `hold_out_files` chooses.
    """
    return read_listing(list_part(data_dir, "train" if train else "test"))


def from_torchvision(source, data_dir, train, remedy):
    """A data set of one of torchvision's classes, downloaded where it is missing.

    Of CIFAR torchvision checks the digests of what it reads. Raises NoImages, which ends in
    `remedy`, where the data set is neither there, whole, nor to be downloaded, and UserError
    where the folder itself is at fault.
    """
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(60)  # seconds without an answer; without it, for ever
    try:
        return source(data_dir, train, download=True)
    except Exception as error:  # noqa: BLE001 - of many types, by what is broken
        reason = " ".join(str(error).split()) or type(error).__name__
        if sys.platform == "darwin" and "CERTIFICATE_VERIFY_FAILED" in reason:
            remedy = (
                "run 'Install Certificates.command' in the folder of Python in Applications, "
                f"or {remedy}"
            )
        # Those of the network are an OSError as well, and name no file of the disk.
        is_of_disk = isinstance(error, OSError) and not isinstance(error, URLError)
        if is_of_disk and (error.filename or error.errno == errno.ENOSPC):
            raise UserError(
                f"{source.__name__} cannot be kept in {data_dir}: {reason}; choose another "
                "folder with --data-dir"
            )
        raise NoImages(
            f"no intact {source.__name__} in {data_dir}, which holds "
            f"{contents_of(data_dir)}, and no download ({reason}): {remedy}, or take "
            "--dataset folder; 'make demo' needs no images"
        )
    finally:
        socket.setdefaulttimeout(patience)


def in_size(images):
    """Images (N, H, W, ...) in the size SIDE x SIDE."""
    if images.shape[1:3] == (SIDE, SIDE):
        return images
    size, cubic = (SIDE, SIDE), cv2.INTER_CUBIC
    return np.stack([cv2.resize(image, size, interpolation=cubic) for image in images])


DATASETS = {
    "cifar10": DataSource(partial(load_cifar, "CIFAR10"), mirror=True),
    "cifar100": DataSource(partial(load_cifar, "CIFAR100"), mirror=True),
    "mnist": DataSource(load_mnist, mirror=False, dark_ground=True),
    "folder": DataSource(load_folder, mirror=True),
    "digits": DataSource(load_digits, mirror=False, dark_ground=True),
}


def load(dataset, data_dir, train):
    """The training or the test part of a data set.

    Returns uint8 images (N, SIDE, SIDE, 3), int64 labels (N,), and the names of the classes.
    Raises UserError where it cannot be had.
    """
    load = DATASETS[dataset].load
    try:
        images, labels, classes = load(data_dir, train)
        # Copies where torch cannot take them: in the opposite order, say, or read-only.
        images, labels = (np.require(a, requirements="CW") for a in (images, labels))
        classes = list(classes)
        check_loaded(images, labels, classes)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - of any type, by what the function does
        function = getattr(load, "func", load)  # of a `partial`
        name = getattr(function, "__name__", dataset)
        raise UserError(
            f"{name}, which loads '{dataset}' ({line_of(error)}): "
            f"{type(error).__name__}: {error}"
        )
    return as_tensors(images, labels, classes)


def load_splits(dataset, data_dir, val_size=0, batch_size=1):
    """The splits "train", "test" and, of `val_size` training images, "val".

    Returns {name: (images, labels)} and the names of the classes, all as from `load`.
    The held-out images are the same for every seed, so that runs can be compared. Raises
    UserError where train and test have different classes, `val_size` is impossible, or the
    training images are fewer than `batch_size`; for a folder before a pixel is read.
    """
    if dataset == "folder":
        parts = load_folder_splits(data_dir, val_size, batch_size)
    else:
        parts = [load(dataset, data_dir, train) for train in (True, False)]
    (images, labels, classes), (test_images, test_labels, test_classes) = parts
    check_classes(classes, test_classes)
    check_sizes(len(labels), val_size, batch_size)
    splits = {"train": (images, labels), "test": (test_images, test_labels)}
    if val_size:
        try:
            kept, held_out = hold_out(labels, val_size)
        except ValueError as error:
            raise UserError(f"--val-size {val_size} is impossible: {error}")
        splits["train"] = images[kept], labels[kept]
        splits["val"] = images[held_out], labels[held_out]
    return splits, classes


def load_folder_splits(data_dir, val_size, batch_size):
    """Both parts of a folder, as from `load`; what shows before a pixel is read is checked."""
    listings = [list_part(data_dir, part) for part in ("train", "test")]
    check_classes(*(listing.classes for listing in listings))
    check_sizes(len(listings[0].paths), val_size, batch_size)
    parts, troubles = [], []
    for listing in listings:
        try:
            parts.append(as_tensors(*read_listing(listing)))
        except UserError as error:
            troubles.append(str(error))
    if troubles:
        raise UserError("; ".join(troubles))
    return parts


def check_classes(classes, test_classes):
    """Raise UserError where the two parts have different classes."""
    if differing := sorted(set(classes) ^ set(test_classes)):
        raise UserError(f"classes not in both train and test: {', '.join(differing)}")
    if classes != test_classes:
        raise UserError(
            f"the classes of train and test are in another order: {', '.join(classes)}; "
            f"{', '.join(test_classes)}"
        )


def as_tensors(images, labels, classes):
    return torch.from_numpy(images), torch.tensor(labels, dtype=torch.int64), classes


def check_loaded(images, labels, classes):
    """Raise ValueError where these are not what a `DataSource.load` has to return."""
    if images.ndim != 4 or images.shape[1:] != (SIDE, SIDE, 3):
        raise ValueError(
            f"its images are of the shape {images.shape}, and not (N, {SIDE}, {SIDE}, 3)"
        )
    if images.dtype != np.uint8:
        raise ValueError(f"its images are {images.dtype}, and not uint8 from 0 to 255")
    if labels.shape != (len(images),):
        raise ValueError(f"it has {len(images)} images and labels of {labels.shape}")
    if len(images) == 0:
        raise ValueError("it has no images")
    are_whole = labels.dtype.kind in "iu"
    if not are_whole or labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(
            f"its labels are {labels.dtype} from {labels.min()} to {labels.max()}, and not "
            f"whole numbers from 0 to {len(classes) - 1}, for {len(classes)} classes"
        )
    if len(classes) < 2:
        raise ValueError(
            f"it has {len(classes)} classes: two at least are to be told apart"
        )
    if not all(is_text(name) for name in classes):
        raise ValueError("the names of its classes are not all texts that print")
    if len(set(classes)) < len(classes):
        raise ValueError(f"two of its classes have the same name: {', '.join(classes)}")


def hold_out(labels, size):
    """The numbers of the images kept and of those held out, the same share of each class.

    `size` is how many are held out, always the same ones. Raises ValueError where it is
    impossible.
    """
    from sklearn.model_selection import train_test_split  # here, as it takes a second

    numbers = range(len(labels))
    return train_test_split(numbers, test_size=size, stratify=labels, random_state=0)


def check_sizes(count, val_size, batch_size):
    """Raise UserError where, of so many training images, too few are left for a batch."""
    left = count - val_size
    if left < 1:
        raise UserError(
            f"--val-size {val_size} is impossible: there are {count} images"
        )
    if left < batch_size:
        raise UserError(
            f"--batch-size {batch_size}: there are {left} images; take a smaller one"
        )


def note_oddities(splits):
    """Print which channel is the same in all training images, and which others are seen.

    That is how many of the held-out and test images are training images too, pixel by pixel.
    """
    channels = splits["train"][0].reshape(-1, 3).numpy().T
    for name, values in zip(("red", "green", "blue"), channels):
        if values.min() == values.max():
            print(f"note      {name} is {values[0]} in all of the training images")
    seen = {image.tobytes() for image in splits["train"][0].numpy()}
    for name, (images, _) in splits.items():
        if name == "train":
            continue
        if count := sum(image.tobytes() in seen for image in images.numpy()):
            print(
                f"note      {count:,} of the {len(images):,} {name} images are training "
                "images too: that accuracy says nothing about new images"
            )


def mean_and_std(images):
    """The mean and standard deviation of each channel, pixels taken as 0 to 1.

    The deviation is at least that of a grey level: a channel may be constant.
    """
    values = np.arange(256) / 255
    means, deviations = [], []
    for channel in images.reshape(-1, 3).numpy().T:
        # Of 256 counts, and so exact and fast for any number of pixels.
        counts = np.bincount(channel, minlength=256)
        mean = float(np.average(values, weights=counts))
        variance = float(np.average((values - mean) ** 2, weights=counts))
        means.append(mean)
        deviations.append(max(variance**0.5, LEAST_STD))
    return means, deviations


def digest(images, labels):
    """SHA-256 of the pixels and labels, to tell data sets apart."""
    found = sha256(np.ascontiguousarray(images))
    found.update(np.ascontiguousarray(labels))
    return found.hexdigest()


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
    cells, titles = [], []
    for number, name in enumerate(classes[:SHOWN]):
        row = (labels == number).nonzero().ravel().tolist()[:8]
        cells += [images[index] for index in row] + [None] * (8 - len(row))
        named = max(1, len(row))  # a class without images has its name too
        titles += [shortened(name)] * named + [""] * (8 - named)
    plot_images(cells, titles, 8, path, "Samples, one row per class")


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
    add("--dataset", choices=DATASETS, help=DATASET_HELP)
    add(
        "--data-dir", default=DATA_DIR, help="folder of the images, or to download into"
    )
    add("--out", default="results", help="folder of the pictures")
    args = parser.parse_args(argv)
    args.dataset = pick_dataset(args.dataset, args.data_dir)
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
