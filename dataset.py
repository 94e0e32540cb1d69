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
import functools
import inspect
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import time
import unicodedata
import warnings
import weakref
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from multiprocessing import resource_tracker
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # or its import asks the network

import albumentations as A
import cv2
import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset, Sampler

from machine import ALONE, cores
from plots import plot_images, shortened
from utils import (
    SIDE,
    Parser,
    UserError,
    check_regular_file,
    check_writable,
    is_text,
    line_of,
    progress,
    run,
    write_file,
)
from whole_batch import (
    augment_batch,
    augment_on_device,
    draw_for_device,
    is_known,
    is_known_on_device,
)

cv2.setNumThreads(0)  # on images this small, OpenCV's threads only keep cores busy
MOVE = 0.7  # probability that an image is shifted, scaled and rotated
HOLE = 0.15  # probability that it gets a hole: low, as a network this small underfits
LEAST_STD = 1 / 255  # of a channel of the images
DATA_DIR = "data"  # where the images are, or are downloaded to
SHOWN = 20  # classes at most in the picture of samples
KEPT_FROM = 1000  # images of a folder: so many are kept in the cache
KEPT = 4  # files there at most: the parts of two data sets
WORKERS = weakref.WeakSet()  # the processes that loaders started


def augmentation(mean, mirror, move, hole):
    """The assignment's three steps, for uint8 images; `mean` (0 to 1) fills the hole.

    `mirror` says whether images may be mirrored: a digit in the mirror is no digit.
    `move` and `hole` are the probabilities of the second and the third step, in training
    those of --move and --hole.
    """
    if "shift_limit" not in inspect.signature(A.ShiftScaleRotate.__init__).parameters:
        raise UserError(
            "albumentationsx is installed over albumentations, under the same name: it ignores "
            "the options of the steps here. pip uninstall albumentationsx, then pip install "
            "--force-reinstall albumentations==2.0.8"
        )
    fill = tuple(round(255 * value) for value in mean)  # on the scale of the image
    with warnings.catch_warnings():  # it recommends Affine; the assignment names this
        warnings.filterwarnings(
            "ignore", "ShiftScaleRotate is a special case of Affine"
        )
        moves = A.ShiftScaleRotate(
            shift_limit=0.0625,  # 2 of 32 pixels, cut to whole ones towards 0: -1, 0 or 1
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


# Names of the folders of the two parts, in any case; the first that is there is taken.
PARTS = {
    "train": ("train", "training", "train_set", "training_set"),
    "test": ("test", "testing", "test_set", "val", "valid", "validation", "dev"),
}
# What systems leave among people's files, besides hidden ones.
LEFT_BEHIND = {
    "__macosx", "@eadir", "thumbs.db", "desktop.ini", "$recycle.bin", "lost+found",
    "system volume information",
}  # fmt: skip
# What Pillow opens and then does not draw, or has another program draw.
NOT_DRAWN = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
LEAST_WHITE = 1 << 14  # of the brightest pixel of an image of 16 bits
PHOTOMETRIC = 262  # the tag of a TIFF that says what its values mean
APPLE = {".heic", ".heif"}  # suffixes of photos that Pillow does not read
# What is taken for a picture and is none: where it shows in the file, and what it is.
NO_PICTURES = (
    (0, b"version https://git-lfs", "a pointer of Git LFS, 'git lfs pull' fetches it"),
    (0, b"<!doctype html", "a web page"),
    (0, b"<html", "a web page"),
    (0, b"<svg", "a drawing of lines: save it as PNG"),
    (0, b"%pdf", "a PDF: save its pages as PNG"),
    (4, b"ftyphe", "HEIC: save it as JPEG"),
    (4, b"ftypmif1", "HEIC: save it as JPEG"),
)
DATASET_HELP = (
    "kind of images (default: folder, where --data-dir holds images; else cifar10)"
)
HELD_OUT = 0.2  # of the images of a folder without a test part


class NoImages(UserError):
    """A data set is neither there nor to be downloaded."""


class NoImage(UserError):
    """A file cannot be read as an image."""

    def __init__(self, path, reason):
        super().__init__(f"{path} cannot be read as an image: {reason}")
        self.path, self.reason = path, str(reason)


class DataSet(NamedTuple):
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
    inside = []
    with contextlib.suppress(OSError):
        inside = [path.name for path in data_dir.iterdir()]
    has_train = find_part(data_dir, "train") is not None
    has_cifar = any(name.startswith("cifar-10-") for name in inside)
    if has_train and has_cifar:
        raise UserError(
            f"{data_dir} holds both train/ and CIFAR-10: --dataset folder or cifar10"
        )
    if has_train or (not has_cifar and has_images(data_dir)):
        return "folder"
    return "cifar10"


def has_images(folder):
    """Whether one of the first thousand files in a folder and those below it is an image."""
    looked_at = 0
    with contextlib.suppress(UserError):
        for root, names in walk(folder, Counter()):
            for name in names:
                is_photo = os.path.splitext(name)[1].lower() in APPLE
                if is_photo or reason_to_skip(os.path.join(root, name)) is None:
                    return True
                looked_at += 1
                if looked_at == 1000:
                    return False
    return False


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


def load_cifar(source, data_dir, train):
    """The images of `source`, which is CIFAR10 or CIFAR100."""
    if os.path.basename(os.path.normpath(data_dir)) == source.base_folder:
        data_dir = Path(data_dir).absolute().parent  # it is itself the data set
    remedy = f"put {source.filename} there, of just this name, or {source.base_folder}/"
    data = from_torchvision(source, data_dir, train, remedy)
    return in_size(data.data), data.targets, data.classes


def in_size(images):
    """Images (N, H, W, ...) in the size SIDE x SIDE."""
    if images.shape[1:3] == (SIDE, SIDE):
        return images
    resized = []
    for image in images:
        resized.append(cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC))
    return np.stack(resized)


def load_cifar10(data_dir, train):
    """50,000 photos to train on and 10,000 to test, of 10 classes."""
    from torchvision.datasets import CIFAR10  # here, as it takes seconds

    return load_cifar(CIFAR10, data_dir, train)


def load_cifar100(data_dir, train):
    """50,000 photos to train on and 10,000 to test, of 100 classes."""
    from torchvision.datasets import CIFAR100  # here, as it takes seconds

    return load_cifar(CIFAR100, data_dir, train)


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


class Listing(NamedTuple):
    """Image files by class, before any pixel is read."""

    folder: Path
    paths: list
    labels: list  # of each path
    classes: list  # their names
    skipped: Counter  # files left out, by the reason
    whole: int = 0  # images of a folder of which this is the part held out, or the rest
    unread: tuple = ()  # names of the folders beside it that are not read


def load_folder(data_dir, train):
    """Images in <data_dir>/train/<class>/ and <data_dir>/test/<class>/.

    Where there are folders of classes alone, a fifth of each class is the test part, which
    `hold_out_files` chooses.
    """
    return read_listing(list_part(data_dir, "train" if train else "test"))


def read_listing(listing):
    """The images, labels and classes of a `Listing`, as a `DataSet.load` returns them.

    Prints what was read. Those of a large folder are kept in the system's cache, as decoding
    them takes seconds. Raises UserError that names the broken ones.
    """
    cache = kept = None
    if len(listing.paths) >= KEPT_FROM:
        # There may be a broken link, of which reading says which it is, or no home.
        with contextlib.suppress(OSError, RuntimeError):
            state, last_change = state_of(listing)
            cache = cache_folder() / f"{state}.npz"
            kept = kept_images(cache, len(listing.paths))
    started = time.time()
    images, notes = kept or read_images(listing)
    # A file that is written while it is read could have any of two states.
    if cache and not kept and last_change < started - 2:
        keep_images(cache, images, notes)
    pixels = images.reshape(len(images), -1)
    notes["of one colour"] = int((pixels.min(1) == pixels.max(1)).sum())
    again = f"; as decoded before, in {cache}" if kept else ""
    print(f"read      {in_words(listing, notes)}{again}")
    return images, listing.labels, listing.classes


def read_images(listing):
    """The images of a `Listing`, uint8 (N, SIDE, SIDE, 3), and a Counter of notes."""
    # One after another: images this small keep threads waiting for Python's lock.
    images, broken, notes = [], [], Counter()
    for path in progress(listing.paths, str(listing.folder), unit=" images"):
        try:
            images.append(read_image(path, notes))
        except NoImage as error:
            broken.append(error)
    if broken:
        raise UserError(
            f"{len(broken)} of {len(listing.paths)} images in {listing.folder} cannot be "
            f"read, mend them or move them away: {by_reason(broken, listing.folder)}"
        )
    return np.stack(images), notes


def state_of(listing):
    """What the pixels of a `Listing` depend on, as a digest; and when a file last changed.

    That is the name, size and times of each file, and the code that reads them.
    """
    state = sha256(f"{Image.__version__} {SIDE}".encode())
    state.update(Path(__file__).read_bytes())
    last_change = 0
    for path in listing.paths:
        found = os.stat(path)
        changed = max(found.st_mtime_ns, found.st_ctime_ns)
        last_change = max(last_change, changed)
        name = str(path).removeprefix(str(listing.folder))  # which may move as a whole
        times = (found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size)
        state.update(repr((name, *times)).encode())
    return state.hexdigest(), last_change / 1e9


def cache_folder():
    """Where the system keeps what can be made again."""
    if os.name == "nt":
        parent = os.environ.get("LOCALAPPDATA", "")
        usual = Path("AppData", "Local")
    elif sys.platform == "darwin":
        parent, usual = "", Path("Library", "Caches")
    else:
        parent, usual = os.environ.get("XDG_CACHE_HOME", ""), Path(".cache")
    if not os.path.isabs(parent):  # as the XDG specification has it
        parent = Path.home() / usual
    return Path(parent) / "cifar10-under-200k"


def kept_images(cache, count):
    """What `keep_images` kept of so many images; None where there is none, or damage."""
    try:
        check_regular_file(cache)
        with np.load(cache) as kept:
            images, notes, sum_kept = (
                kept[name] for name in ("images", "notes", "sum")
            )
        if sum_of(images, str(notes)) != sum_kept or len(images) != count:
            return None
        notes = Counter(json.loads(str(notes)))
    except Exception:  # noqa: BLE001 - of many types, by what is damaged
        return None
    with contextlib.suppress(OSError):
        os.utime(cache)  # it was of use
    return images, notes


def sum_of(images, notes):
    """A check sum of what is kept: a damaged header may hide damage from that of NumPy."""
    found = sha256(f"{images.shape} {images.dtype} {notes}".encode())
    found.update(np.ascontiguousarray(images))
    return found.hexdigest()


def keep_images(cache, images, notes):
    """Keep what was read in the cache, if there is room; the oldest there make some."""
    try:
        cache.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if shutil.disk_usage(cache.parent).free < 10 * images.nbytes:
            return
        content, notes = io.BytesIO(), json.dumps(notes)
        np.savez(content, images=images, notes=notes, sum=sum_of(images, notes))
        write_file(cache, content.getbuffer())
        kept = sorted(cache.parent.iterdir(), key=lambda path: path.stat().st_mtime)
        for path in kept[:-KEPT]:  # and what a kill left
            path.unlink()
    except (OSError, MemoryError, UserError):  # it is not needed
        return


def by_reason(broken, folder):
    """The files of `NoImage` errors, the first twenty, each reason named once."""
    files = {}
    for error in broken[:20]:
        files.setdefault(error.reason, []).append(os.path.relpath(error.path, folder))
    words = [f"{', '.join(paths)} ({reason})" for reason, paths in files.items()]
    if len(broken) > 20:
        words.append(f"and {len(broken) - 20} more")
    return "; ".join(words)


def in_words(listing, notes):
    """What was read of a folder, and what was not."""
    counts = np.bincount(listing.labels, minlength=len(listing.classes)).tolist()
    if len(counts) > 10:
        few, many = min(counts), max(counts)
        each = f"{few:,} to {many:,} each" if few < many else f"{few:,} each"
    else:
        named = zip(listing.classes, counts)
        each = ", ".join(f"{name} {count:,}" for name, count in named)
    words = f"{len(listing.paths):,} images of {len(counts)} classes ({each})"
    words += f" from {listing.folder}{notes_in_words(notes)}"
    if listing.whole:
        words += (
            f", which has no test/: a fifth of its {listing.whole:,} is held out as it"
        )
    for name in listing.unread:
        words += f"; {name}/ is not read"
    return words + skipped_in_words(listing.skipped)


def notes_in_words(notes):
    """How many of the images that were read have what `read_image` notes."""
    return "".join(f", {count:,} {reason}" for reason, count in notes.items() if count)


def skipped_in_words(skipped):
    """How many files were left out, and why."""
    skipped = +skipped  # without those of which there are none
    if not skipped:
        return ""
    reasons = []
    for reason, count in sorted(skipped.items(), key=lambda item: (-item[1], item[0])):
        remedy = " (save them as JPEG)" if reason in APPLE else ""
        reasons.append(f"{count:,} {reason}{remedy}")
    return f"; skipped {skipped.total():,}: {', '.join(reasons)}"


def load_folder_splits(data_dir, val_size, batch_size):
    """Both parts of a folder, as from `load`; what shows before a pixel is read is checked."""
    listings = [list_part(data_dir, part) for part in PARTS]
    check_classes(*(listing.classes for listing in listings))
    count = len(listings[0].paths)
    if val_size >= count:
        raise UserError(
            f"--val-size {val_size} is impossible: there are {count} images"
        )
    check_batch(batch_size, count - val_size)
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
    if list(classes) != list(test_classes):
        raise UserError(
            f"the classes of train and test are in another order: {', '.join(classes)}; "
            f"{', '.join(test_classes)}"
        )


def list_part(data_dir, part):
    """The `Listing` of the training or the test images of a folder."""
    data_dir = Path(data_dir)
    folders = find_parts(data_dir, part)
    if folders:
        unread = folders[1:]
        if part == "train":  # and what is of neither part
            known = [*folders, *find_parts(data_dir, "test")]
            unread += [path for path in folders_in(data_dir) if path not in known]
        return list_images(folders[0])._replace(unread=[path.name for path in unread])
    if find_part(data_dir, "train") or find_part(data_dir, "test"):
        names = " or ".join(f"{name}/" for name in PARTS[part])
        remedy = ""
        if part == "test":
            whole = find_part(data_dir, "train")
            remedy = f"; --data-dir {whole} holds a fifth of it out as the test"
        raise UserError(
            f"no images in {data_dir / part}: {data_dir} holds {contents_of(data_dir)}, "
            f"and no {names}{remedy}"
        )
    check_place(data_dir)
    whole = list_images(data_dir)
    held_out, paths, labels = hold_out_files(whole), [], []
    for path, label in zip(whole.paths, whole.labels):
        if (path in held_out) == (part == "test"):
            paths.append(path)
            labels.append(label)
    return whole._replace(paths=paths, labels=labels, whole=len(whole.paths))


def hold_out_files(listing):
    """The paths of a folder's images that are its test part: a fifth of each class, or one.

    The digests of their names are the lowest, so that most of the others stay training
    images when pictures are added. Raises UserError for a class of one image.
    """
    of_class = {}
    for path, label in zip(listing.paths, listing.labels):
        name = as_nfc(Path(path).relative_to(listing.folder).as_posix())
        # What a name has for bytes that are no text cannot be encoded otherwise.
        key = sha256(name.encode(errors="surrogatepass")).digest()
        of_class.setdefault(label, []).append((key, path))
    held_out = set()
    for label, members in of_class.items():
        if len(members) < 2:
            raise UserError(
                f"{listing.folder} is too small to hold out a test part: "
                f"{listing.classes[label]} has a single image"
            )
        share = max(1, round(HELD_OUT * len(members)))
        held_out.update(path for _, path in sorted(members)[:share])
    return held_out


def find_part(data_dir, part):
    """The folder of a part, or None: the first with folders in it, as for the classes.

    (In competitions test/ often holds images without a class, and val/ those with one.)
    """
    return next(iter(find_parts(data_dir, part)), None)


def find_parts(data_dir, part):
    """All folders that may be of a part; the first is taken."""
    inside = []
    with contextlib.suppress(OSError):
        inside = sorted(data_dir.iterdir())
    found = []
    for name in PARTS[part]:
        found += [
            path for path in inside if path.name.lower() == name and path.is_dir()
        ]
    return sorted(found, key=lambda path: not folders_in(path))


def check_place(data_dir):
    """Raise UserError where the images are beside or below the folder that was named."""
    if not data_dir.is_dir():
        raise UserError(
            f"no images in {data_dir / 'train'}: there is no folder {data_dir}"
        )
    parent = data_dir.absolute().parent
    names = (*PARTS["train"], *PARTS["test"])
    is_part = data_dir.absolute().name.lower() in names
    if is_part and find_part(parent, "train") and find_part(parent, "test"):
        raise UserError(f"{data_dir} is a part of the images: --data-dir {parent}")
    below = [path for path in folders_in(data_dir) if find_part(path, "train")]
    if below:
        raise UserError(f"no images in {data_dir / 'train'}: --data-dir {below[0]}")


def folders_in(folder):
    """The folders in a folder, without those that systems leave behind, in order."""
    try:
        # In one order, however a system writes the names.
        inside = sorted(folder.iterdir(), key=lambda path: as_nfc(path.name))
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}")
    return [path for path in inside if path.is_dir() and not is_left_behind(path.name)]


def as_nfc(name):
    """A name in one of the ways to write it: macOS may write accents apart."""
    return unicodedata.normalize("NFC", name)


def is_left_behind(name):
    """Whether a name is hidden, or a system's."""
    return name.startswith(".") or name.lower() in LEFT_BEHIND


def contents_of(folder):
    """The first names in a folder, in words."""
    names = []
    with contextlib.suppress(OSError):
        names = sorted(path.name for path in Path(folder).iterdir())
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (", ".join(names[:5]) or "nothing") + more


def list_images(folder):
    """The `Listing` of a folder with a folder for each class; others in these count too.

    Raises UserError where there are not two classes with images.
    """
    folders, skipped = folders_in(folder), Counter()
    for path in folder.iterdir():
        if path not in folders:
            skipped[reason_to_skip(path) or "beside the classes"] += 1
    paths, labels, classes = [], [], []
    for inside in folders:
        name = as_nfc(inside.name)
        if not is_text(name):
            raise UserError(
                f"{folder} has a class whose name does not print: rename it"
            )
        before = skipped.copy()
        found = images_in(inside, skipped)
        if not found:
            left_out = skipped_in_words(skipped - before)
            raise UserError(
                f"no images in {inside}{left_out}; move it away if it is no class"
            )
        if name in classes:
            raise UserError(f"{folder} has two folders of the name {name}: join them")
        classes.append(name)
        paths += found
        labels += [len(classes) - 1] * len(found)
    check_no_parts(folder, folders)
    if not classes:
        raise UserError(
            f"no images in {folder}: a folder for each class is wanted, and it holds "
            f"{contents_of(folder)}"
        )
    if len(classes) < 2:
        inside = folders_in(folder / classes[0])
        remedy = f": those in {folder / classes[0]}, maybe" if len(inside) > 1 else ""
        raise UserError(
            f"{folder} holds one class, {classes[0]}; a classifier needs two or more{remedy}"
        )
    return Listing(folder, paths, labels, classes, skipped)


def check_no_parts(folder, folders):
    """Raise UserError where folders taken for classes all hold the same folders.

    Then it is those that are the classes, and the others are parts of another name.
    """
    inside = []
    for path in folders:
        is_empty = not any(file.is_file() for file in path.iterdir())
        names = tuple(as_nfc(one.name) for one in folders_in(path))
        inside.append(names if is_empty and len(names) > 1 else None)
    if len(inside) > 1 and inside[0] and len(set(inside)) == 1:
        names = ", ".join(path.name for path in folders)
        raise UserError(
            f"in {folder} all of {names} hold the folders {', '.join(inside[0])}: rename "
            "those that are parts to train and test"
        )


def walk(folder, skipped):
    """Yield a folder and the names of the files in it, of it and of all below it.

    A link that leads back to where it is would do so for ever: it is counted in `skipped`.
    """

    def fail(error):
        raise UserError(f"cannot read {error.filename}: {error.strerror}")

    for root, folders, names in os.walk(folder, followlinks=True, onerror=fail):
        here = os.path.join(os.path.realpath(root), "")
        for name in list(folders):
            path = os.path.join(root, name)
            target = os.path.join(os.path.realpath(path), "")
            if os.path.islink(path) and here.startswith(target):
                folders.remove(name)
                skipped["link that leads back"] += 1
        yield root, names


def images_in(folder, skipped):
    """The paths of the images in a folder and those below it; others are counted."""
    found = []
    for root, names in sorted(walk(folder, skipped)):
        inside = os.path.relpath(root, folder).split(os.sep)
        if any(is_left_behind(part) for part in inside if part != os.curdir):
            skipped["hidden"] += len(names)
            continue
        for name in sorted(names):
            path = os.path.join(root, name)
            reason = reason_to_skip(path)
            if reason:
                skipped[reason] += 1
            else:
                found.append(path)
    return found


def reason_to_skip(path):
    """Why a file is no image to read, in a word or two; None for one that is.

    It counts what is in it, and its suffix where that is of an image: one that is broken is
    not passed over.
    """
    name = os.path.basename(path)
    if is_left_behind(name):
        return "hidden"
    suffix = os.path.splitext(name)[1].lower()
    formats, suffixes = readable()
    if suffix in suffixes:
        return None
    if not os.path.isfile(path):  # to open a pipe would wait for ever
        return "no file"
    try:
        with Image.open(path, formats=formats):
            return None
    except (Image.DecompressionBombError, PermissionError):
        return None  # reading it says what is wrong
    except Exception:  # noqa: BLE001 - of many types, by what it is
        return suffix or "without suffix"


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


def read_image(path, notes=None):
    """An image file as uint8 (SIDE, SIDE, 3), upright, the middle of it if it is not square.

    It is what a viewer shows on white. An upright RGB image of that size is returned as it
    is; a JPEG that is far larger is decoded at a fraction of its size. What had to be
    changed is counted in `notes`, a Counter. Raises NoImage for what is no file or no
    image, shows nothing, or has values of no clear meaning.
    """
    notes = Counter() if notes is None else notes
    formats, _ = readable()
    try:
        check_regular_file(path)
        with Image.open(path, formats=formats) as file:
            if min(file.size) >= 8 * SIDE:
                file.draft(None, (4 * SIDE, 4 * SIDE))  # a JPEG, to no less than this
            if getattr(file, "is_animated", False):
                notes["of several pictures, the first taken"] += 1
            layout, is_negative = layout_of(file)
            image = turn_upright(file)
        if min(image.size) < 8:
            raise ValueError(f"{image.width}x{image.height} pixels show nothing")
        image = to_rgb(image, layout, is_negative, notes)
        if image.size != (SIDE, SIDE):
            image = ImageOps.fit(image, (SIDE, SIDE), Image.Resampling.BICUBIC)
        return np.asarray(image)
    except Exception as error:  # noqa: BLE001 - decoders raise many types
        if isinstance(error, UnidentifiedImageError):
            error = "of no format that Pillow draws"  # its message repeats the path
        raise NoImage(path, what_it_is(path) or error)


def what_it_is(path):
    """What a file is that is taken for a picture, of `NO_PICTURES`, or None."""
    if not os.path.isfile(path):  # to open a pipe would wait for ever
        return None
    head = b""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        head = file.read(64).lower()
    for start, mark, kind in NO_PICTURES:
        if head[start:].startswith(mark):
            return kind
    return None


def layout_of(file):
    """How the pixels lie in a file, such as "RGB;16B" and "" where that is not known; and
    whether large values are dark, in a TIFF whose values Pillow leaves as they are."""
    tiles = getattr(file, "tile", [])  # of some formats there are none
    settings = tiles[0].args if tiles else ""
    if not isinstance(settings, tuple):
        settings = (settings,)
    layout = str(settings[0]) if settings else ""
    if file.format == "PPM" and 65535 in settings:  # the largest value
        layout += ";16"
    is_negative = file.mode[0] in "IF" and file.format == "TIFF"
    return layout, is_negative and file.tag_v2.get(PHOTOMETRIC) == 0


def to_rgb(image, layout, is_negative, notes):
    """An image of any mode in RGB, laid on white where it is transparent.

    `layout` and `is_negative` are as from `layout_of`.
    """
    clear = image.info.get("transparency")
    if image.mode[0] in "IF":
        values = np.asarray(image)
        grey = to_8_bits(values, image.mode)
        image = Image.fromarray(255 - grey if is_negative else grey)
        if clear is not None:
            opaque = np.where(values == clear, 0, 255).astype(np.uint8)
            image.putalpha(Image.fromarray(opaque))
    elif ";16" in layout:  # Pillow took the upper half of each value
        highest = max(high for _, high in image.convert("RGB").getextrema())
        if highest < LEAST_WHITE // 256:
            raise ValueError(
                "its values use few of their 16 bits: scale them to 0 to 255 and save it "
                "with 8 bits"
            )
    elif image.mode == "L" and clear is not None:
        # Of 2 and 4 bits, Pillow 13 makes grey of 8, but leaves the transparent one.
        steps = {"L;2": 85, "L;4": 17}.get(layout, 1)
        image.info["transparency"] = clear * steps
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getextrema()[3][0] < 255:
            notes["transparent and laid on white"] += 1
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def to_8_bits(values, mode):
    """The values of a grey image of the mode I, F or I;16, from 0 to 255.

    Raises ValueError where that would be a guess: of 16 bits of which 14 or less are used,
    a viewer shows next to nothing.
    """
    low, high = values.min(), values.max()
    if mode == "F" and low >= 0 and high <= 1:
        return (255 * values).round().astype(np.uint8)
    if mode in "IF" and low >= 0 and (high == 0 or 16 <= high <= 255):
        return values.round().astype(np.uint8)
    if mode != "F" and low >= 0 and (high == 0 or LEAST_WHITE <= high < 65536):
        return (values // 256).astype(np.uint8)
    used = f"are from {low:g} to {high:g}"
    if mode != "F" and low >= 0:
        used = f"use {int(high).bit_length()} bits"
    raise ValueError(
        f"its values {used}: scale them to 0 to 255 and save it with 8 bits"
    )


@functools.cache
def readable():
    """The formats that Pillow draws by itself, and the suffixes of their files."""
    Image.init()
    # Of pictures above 89 million pixels; from twice as many on it refuses them.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    formats = ["JPEG", "PNG"]  # the first to be tried
    formats += sorted(set(Image.OPEN) - NOT_DRAWN - set(formats))
    suffixes = set()
    for suffix, kind in Image.registered_extensions().items():
        if kind in formats:
            suffixes.add(suffix)
    return formats, suffixes


def turn_upright(image):
    """An image as viewers show it: turned by what the camera noted in its EXIF data."""
    image.load()  # here, so that what is wrong with the pixels is raised
    # ImageOps.exif_transpose turns nothing where any other entry of the data is damaged.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged EXIF data
            orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001 - of many types; the pixels are fine without it
        orientation = None
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


TURNS = {  # by the number of the EXIF standard
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
DATASETS = {
    "cifar10": DataSet(load_cifar10, mirror=True),
    "cifar100": DataSet(load_cifar100, mirror=True),
    "mnist": DataSet(load_mnist, mirror=False, dark_ground=True),
    "folder": DataSet(load_folder, mirror=True),
    "digits": DataSet(load_digits, mirror=False, dark_ground=True),
}


def load(dataset, data_dir, train):
    """The training or the test part of a data set.

    Returns uint8 images (N, SIDE, SIDE, 3), int64 labels (N,), and the names of the classes.
    Raises UserError where it cannot be had.
    """
    load = DATASETS[dataset].load
    try:
        images, labels, classes = load(data_dir, train)
        # Copies where torch cannot take them, in the opposite order, say.
        images, labels = np.ascontiguousarray(images), np.ascontiguousarray(labels)
        classes = list(classes)
        check_loaded(images, labels, classes)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - of any type, by what the function does
        name = getattr(load, "__name__", dataset)
        raise UserError(
            f"{name}, which loads '{dataset}' ({line_of(error)}): "
            f"{type(error).__name__}: {error}"
        )
    return as_tensors(images, labels, classes)


def as_tensors(images, labels, classes):
    return torch.from_numpy(images), torch.tensor(labels, dtype=torch.int64), classes


def check_loaded(images, labels, classes):
    """Raise ValueError where these are not what a `DataSet.load` has to return."""
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
    if (
        labels.dtype.kind not in "iu"
        or labels.min() < 0
        or labels.max() >= len(classes)
    ):
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
    splits = {"train": (images, labels), "test": (test_images, test_labels)}
    if val_size:
        try:
            kept, held_out = hold_out(labels, val_size)
        except ValueError as error:
            raise UserError(f"--val-size {val_size} is impossible: {error}")
        splits["train"] = images[kept], labels[kept]
        splits["val"] = images[held_out], labels[held_out]
    check_batch(batch_size, len(splits["train"][1]))
    return splits, classes


def hold_out(labels, size):
    """The numbers of the images kept and of those held out, the same share of each class.

    `size` is their number or their share. They are always the same. Raises ValueError where
    it is impossible.
    """
    from sklearn.model_selection import train_test_split  # here, as it takes a second

    numbers = range(len(labels))
    return train_test_split(numbers, test_size=size, stratify=labels, random_state=0)


def check_batch(batch_size, count):
    """Raise UserError where there are fewer training images than in a batch."""
    if count < batch_size:
        raise UserError(
            f"--batch-size {batch_size}: there are {count} images; take a smaller one"
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
        # Of the counter, the two low words are left to count the draws of one image.
        self.counter = [0, 0, 0, 0]
        start = self.generator.bit_generator.state
        place = {"key": start["state"]["key"], "counter": self.counter}
        self.place = {**start, "state": place}
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

    def draw(self, epoch, indices):
        """What `augment_on_device` needs for the images of these indices: two tensors."""

        def begin(place):
            self.set_generators(epoch, indices[place])

        shape = self.images.shape[1:]
        return draw_for_device(self.transform, len(indices), shape, begin)

    def set_generators(self, epoch, index):
        """Bring both generators to the place that belongs to an image in an epoch."""
        self.counter[2:] = index, epoch
        self.generator.bit_generator.state = self.place
        self.python.seed(self.generator.bit_generator.random_raw())

    def augment(self, epoch, indices):
        """The images of these indices, augmented as drawn in this epoch: uint8 (N, H, W, 3)."""
        indices = list(indices)

        def begin(place):
            self.set_generators(epoch, indices[place])

        images = self.images.numpy()[indices]  # a copy
        if self.is_known:
            augment_batch(self.transform, images, begin)
            return images
        augmented = []
        for place, image in enumerate(images):
            begin(place)
            augmented.append(self.transform(image=image)["image"])
        return np.stack(augmented)


class Draws(Dataset):
    """What is drawn for batches of `AugmentedImages`, whose keys it takes."""

    def __init__(self, data):
        self.data = data

    def __getitem__(self, key):
        epoch, indices = key
        places = torch.tensor(indices)
        return (places, *self.data.draw(epoch, indices)), self.data.labels[places]


class OnDevice:
    """A loader of `Draws` as one of images: the device has them, and makes the pixels."""

    def __init__(self, loader, device):
        data = loader.dataset.data
        self.loader, self.transform, self.device = loader, data.transform, device
        self.images = data.images.permute(0, 3, 1, 2).contiguous().to(device)
        self.sampler, self.pin_memory = loader.sampler, loader.pin_memory
        self.num_workers = loader.num_workers

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        for drawn, labels in self.loader:
            places, *drawn = (
                one.to(self.device, non_blocking=self.pin_memory) for one in drawn
            )
            yield augment_on_device(self.transform, self.images[places], *drawn), labels


def augments_on_device(choice, data, device):
    """Whether the device makes the pixels of `AugmentedImages`, of the choices of --augment.

    Raises UserError where it is asked to and cannot.
    """
    is_known = is_known_on_device(data.transform)
    if choice == "device" and not is_known:
        raise UserError(
            "--augment device knows flips, then one move, cubic and reflected at the "
            "borders, then holes of one colour: leave it out"
        )
    if choice != "auto" or device.type != "cuda" or not is_known:
        return choice == "device"
    free, _ = torch.cuda.mem_get_info(device)
    return data.images.nbytes < free / 4


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
    loader = Loader(
        Draws(images) if on_device else images,
        sampler=Batches(len(images.labels), batch_size, seed, world),
        batch_size=None,  # the sampler's keys are batches already
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=on_gpu,
        # Other ways to start them copy the images to shared memory, of which containers
        # have little.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        generator=torch.Generator(),  # the workers' number leaves torch's own alone
    )
    return OnDevice(loader, device) if on_device else loader


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

    # That of a thread of multiprocessing; the worker's own errors travel.
    sys.excepthook = show


@contextlib.contextmanager
def stopped_by_parent():
    """Let the processes that start here never hear of Ctrl-C and SIGTERM.

    They inherit that these signals are blocked. What stops the training comes to all its
    processes at once, and it stops its workers itself.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # where it starts, it lets both signals through
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
    cells, titles = [], []
    for number, name in enumerate(classes[:SHOWN]):
        row = (labels == number).nonzero().ravel().tolist()[:8]
        blank = [None] * (8 - len(row))
        cells += [images[index] for index in row] + blank
        titles += [shortened(name)] * max(1, len(row)) + blank[: 8 - max(1, len(row))]
    titles = [title or "" for title in titles]
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
