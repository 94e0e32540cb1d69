"""People's own images: a folder for each class, which files count, and how each is read.

`list_part` lists the files before a pixel is read. `read_listing` reads them, and the pixels
of a large folder are kept in the system's cache; `read_image` reads one. Files are not
trusted: where one is broken or unclear, an error says what is wrong.
"""

import contextlib
import functools
import io
import json
import os
import re
import shutil
import sys
import time
import unicodedata
import warnings
from collections import Counter
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from utils import SIDE, UserError, check_regular_file, is_text, progress, write_file

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
APPLE = {".heic", ".heif"}  # suffixes of photos that Pillow does not read
KEPT_FROM = 1000  # images of a folder: so many are kept in the cache
KEPT = 4  # files there at most: the parts of two data sets
# Where that is: by system the variable that may say so, and the usual place at home.
CACHES = {"win32": ("LOCALAPPDATA", "AppData/Local"), "darwin": ("", "Library/Caches")}
# What Pillow opens and then does not draw, or has another program draw.
NOT_DRAWN = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
LEAST_WHITE = 1 << 14  # of the brightest pixel of an image of 16 bits
PHOTOMETRIC = 262  # the tag of a TIFF that says what its values mean
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
TURNS = {  # by the number of the EXIF standard
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class NoImage(UserError):
    """A file cannot be read as an image."""

    def __init__(self, path, reason):
        super().__init__(f"{path} cannot be read as an image: {reason}")
        self.path, self.reason = path, str(reason)


class Listing(NamedTuple):
    """Image files by class, before any pixel is read."""

    folder: Path
    paths: list
    labels: list  # of each path
    classes: list  # their names
    skipped: Counter  # files left out, by the reason
    whole: int = 0  # images of a folder of which this is the part held out, or the rest
    unread: tuple = ()  # names of the folders beside it that are not read


def list_part(data_dir, part):
    """The `Listing` of the training or the test images of a folder."""
    data_dir = Path(data_dir)
    folders, whole = find_parts(data_dir, part), find_part(data_dir, "train")
    instead = f"--data-dir {whole} holds a fifth of it out as the test"
    if folders:
        if part == "test" and whole and not holds_classes(folders[0]):
            raise UserError(
                f"no folder for each class in {folders[0]}: make them there, or {instead}"
            )
        unread = folders[1:]
        if part == "train":  # and what is of neither part
            known = [*folders, *find_parts(data_dir, "test")]
            unread += [path for path in folders_in(data_dir) if path not in known]
        return list_images(folders[0])._replace(unread=[path.name for path in unread])
    if whole or find_part(data_dir, "test"):
        names = " or ".join(f"{name}/" for name in PARTS[part])
        remedy = f"; {instead}" if part == "test" else ""
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
        share = max(1, round(len(members) / 5))
        held_out.update(path for _, path in sorted(members)[:share])
    return held_out


def find_part(data_dir, part):
    """The folder of a part, or None: the first that holds classes, of which it takes two.

    (In competitions test/ often holds images without a class, and val/ those with one.)
    """
    return next(iter(find_parts(data_dir, part)), None)


def find_parts(data_dir, part):
    """All folders that may be of a part; the first is taken."""

    def order(path):
        return not holds_classes(path), PARTS[part].index(path.name.lower()), path

    named = [path for path in data_dir.glob("*") if path.name.lower() in PARTS[part]]
    return sorted(filter(Path.is_dir, named), key=order)


def holds_classes(folder):
    """Whether there are folders in it for two classes or more."""
    return len(folders_in(folder)) > 1


def check_place(data_dir):
    """Raise UserError where the images are beside or below the folder that was named."""
    if not data_dir.is_dir():
        raise UserError(
            f"no images in {data_dir / 'train'}: there is no folder {data_dir}"
        )
    parent = data_dir.absolute().parent
    names = (*PARTS["train"], *PARTS["test"])
    parts = [find_part(parent, part) for part in PARTS]
    # Where the test part has no classes, a fifth of train/ is held out in its place.
    are_whole = all(part and holds_classes(part) for part in parts)
    if data_dir.absolute().name.lower() in names and are_whole:
        raise UserError(f"{data_dir} is a part of the images: --data-dir {parent}")
    below = [path for path in folders_in(data_dir) if find_part(path, "train")]
    if below:
        raise UserError(f"no images in {data_dir / 'train'}: --data-dir {below[0]}")


def folders_in(folder):
    """The folders in a folder, without those that systems leave behind, in order."""
    try:
        # Not one by one: it would ask the system about each of 50,000 images.
        with os.scandir(folder) as inside:
            names = [entry.name for entry in inside if is_folder(entry)]
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}")
    # In one order, however a system writes the names.
    names.sort(key=as_nfc)
    return [folder / name for name in names if not is_left_behind(name)]


def is_folder(entry):
    """Whether an entry of `os.scandir` is a folder, or a link to one."""
    if entry.is_symlink():  # which may lead in a circle
        return os.path.isdir(entry.path)
    return entry.is_dir()


def is_file(entry):
    """Whether an entry of `os.scandir` is a file, or a link to one."""
    return os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file()


def as_nfc(name):
    """A name in one of the ways to write it: macOS may write accents apart."""
    return unicodedata.normalize("NFC", name)


def is_left_behind(name):
    """Whether a name is hidden, or a system's."""
    return name.startswith(".") or name.lower() in LEFT_BEHIND


def contents_of(folder):
    """The first names in a folder, in words."""
    names = sorted(path.name for path in Path(folder).glob("*"))
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
    """Raise UserError where folders taken for classes are parts, or hold the classes again.

    They are parts where they are called so, as seg_train and seg_test, or where all hold the
    same folders: then it is those that are the classes.
    """
    taken = [as_nfc(path.name) for path in folders]
    remedy = "rename those that are parts to train and test"
    stems = [{stem_of(name, part) for name in taken} - {None} for part in PARTS]
    if set.intersection(*stems):
        raise UserError(
            f"in {folder} {', '.join(taken)} are called parts, not classes: {remedy}"
        )
    inside = []
    for path in folders:
        with os.scandir(path) as entries:
            files = [entry.name for entry in entries if is_file(entry)]
        names = tuple(as_nfc(one.name) for one in folders_in(path))
        again = [name for name in names if name in taken]
        if len(again) > 1:
            raise UserError(
                f"{path} holds {', '.join(again)} again, which are classes beside it: move it "
                "away, or rename what is in it"
            )
        has_files = not all(map(is_left_behind, files))
        inside.append(None if has_files or len(names) < 2 else names)
    if len(inside) > 1 and inside[0] and len(set(inside)) == 1:
        raise UserError(
            f"in {folder} all of {', '.join(taken)} hold the folders "
            f"{', '.join(inside[0])}: {remedy}"
        )


def stem_of(name, part):
    """The words of a name but the one for a part, as ("seg",) of seg_train; None without one."""
    words = re.split(r"[\W_]+", name.lower())
    rest = tuple(word for word in words if word not in PARTS[part])
    return rest if len(rest) < len(words) else None


def walk(folder, skipped):
    """Yield a folder and the names of the files in it, of it and of all below it.

    A link that leads back to where it is would do so for ever: it is counted in `skipped`.
    """

    def fail(error):
        raise UserError(f"cannot read {error.filename}: {error.strerror}")

    passed = {str(folder): [Path(os.path.realpath(folder))]}  # to each folder
    for root, folders, names in os.walk(folder, followlinks=True, onerror=fail):
        for name in list(folders):
            path = os.path.join(root, name)
            target = Path(os.path.realpath(path))
            if any(one.is_relative_to(target) for one in passed[root]):
                folders.remove(name)
                skipped["link that leads back"] += 1
            else:
                passed[path] = [*passed[root], target]
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


def has_images(folder):
    """Whether one of the first thousand files in a folder and those below it is an image."""
    files = (
        os.path.join(root, name)
        for root, names in walk(folder, Counter())
        for name in names
    )
    with contextlib.suppress(UserError):  # of a folder that cannot be read
        kinds = map(reason_to_skip, islice(files, 1000))
        return any(kind is None or kind in APPLE for kind in kinds)
    return False


def read_listing(listing):
    """The images, labels and classes of a `Listing`, as a `DataSource.load` returns them.

    Prints what was read. Those of a large folder are kept in the system's cache, as decoding
    them takes seconds. Raises UserError that names the broken ones.
    """
    cache = kept = None
    if len(listing.paths) >= KEPT_FROM:
        # There may be a broken link, of which reading says which it is, or no home.
        with contextlib.suppress(OSError, RuntimeError):
            state, last_change = state_of(listing)
            cache = cache_folder() / f"{state}.npz"
            kept = kept_images(cache)
    started = time.time()
    images, notes = kept or read_images(listing)
    # A file that is written while it is read could have any of two states.
    if cache and not kept and last_change < started - 2:
        keep_images(cache, images, notes)
    values = images.reshape(len(images), -1)  # of one colour: each as that three before
    notes["of one colour"] = int((values[:, 3:] == values[:, :-3]).all(1).sum())
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
        times = found.st_mtime_ns, found.st_ctime_ns
        last_change = max(last_change, *times)
        name = str(path).removeprefix(str(listing.folder))  # which may move as a whole
        state.update(repr((name, *times, found.st_ino, found.st_size)).encode())
    return state.hexdigest(), last_change / 1e9


def cache_folder():
    """Where the system keeps what can be made again."""
    variable, usual = CACHES.get(sys.platform, ("XDG_CACHE_HOME", ".cache"))
    parent = os.environ.get(variable, "")
    if not os.path.isabs(parent):  # as the XDG specification has it
        parent = Path.home() / usual
    return Path(parent) / "cifar10-under-200k"


def kept_images(cache):
    """The images and notes that `keep_images` kept; None where there are none, or damage."""
    try:
        with np.load(cache) as kept:
            images, notes = kept["images"], str(kept["notes"])
            if kept["sum"] != sum_of(images, notes):
                return None
    except Exception:  # noqa: BLE001 - of many types, by what is damaged
        return None
    with contextlib.suppress(OSError):
        os.utime(cache)  # it was of use, so others are removed before it
    return images, Counter(json.loads(notes))


def sum_of(images, notes):
    """A check sum of what is kept: a damaged header may hide damage from that of NumPy."""
    found = sha256(f"{images.shape} {images.dtype} {notes}".encode())
    found.update(np.ascontiguousarray(images))
    return found.hexdigest()


def keep_images(cache, images, notes):
    """Keep what was read in the cache, if there is room; the oldest there make some."""
    with contextlib.suppress(OSError, MemoryError, UserError):  # it is not needed
        cache.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if shutil.disk_usage(cache.parent).free < 10 * images.nbytes:
            return
        content, notes = io.BytesIO(), json.dumps(notes)
        np.savez(content, images=images, notes=notes, sum=sum_of(images, notes))
        write_file(cache, content.getbuffer())
        kept = sorted(cache.parent.iterdir(), key=lambda path: path.stat().st_mtime)
        for path in kept[:-KEPT]:  # and what a kill left
            path.unlink()


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
        # Of what is drawn in black on a clear ground, the transparency says enough.
        is_drawn = "A" in image.getbands() and image.getextrema()[-1] == (0, 255)
        if highest < LEAST_WHITE // 256 and not is_drawn:
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
    known = Image.registered_extensions().items()
    return formats, {suffix for suffix, kind in known if kind in formats}


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
