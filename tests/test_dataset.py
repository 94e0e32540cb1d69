"""Images from every source, and what the augmentation does to them."""

import errno
import gzip
import inspect
import os
import pickle
import re
import shutil
import signal
import socket
import struct
import sys
import tarfile
import time
import unicodedata
import zlib
from collections import Counter
from hashlib import md5, sha256
from pathlib import Path
from urllib.error import HTTPError, URLError

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.io
from conftest import ROOT, run_script
from PIL import Image, ImageCms, ImageOps
from sklearn.datasets import load_digits
from torch.utils.data import Dataset
from torchvision.datasets import CIFAR10, CIFAR100, MNIST
from torchvision.transforms import v2

import dataset
import evaluate
import folders
import train
from checkpoint import load_checkpoint
from dataset import (
    DATASETS,
    AugmentedImages,
    Batches,
    augmentation,
    load,
    load_splits,
    mean_and_std,
    training_loader,
)
from folders import read_image
from utils import UserError
from whole_batch import augments_on_device, is_known, is_known_on_device

sys.path.insert(0, str(ROOT / "tools"))

import demo
import train_or_demo

FILL = (125, 123, 114)
PRETRAINED = ROOT / "pretrained" / "default.pt"


def noise(count):
    generator = torch.Generator().manual_seed(0)
    shape = (count, 32, 32, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def steps_of_our_own(move=0.3, hole=0.3):
    """A flip, a turn and a hole, whatever `augmentation` has been edited to."""
    flip = A.HorizontalFlip(p=0.5)
    turn = A.Affine(
        rotate=(-10, 10),
        translate_percent=(-0.06, 0.06),
        border_mode=cv2.BORDER_REFLECT_101,
        p=move,
    )
    cut = A.CoarseDropout((1, 1), (16, 16), (16, 16), fill=FILL, p=hole)
    return A.Compose([flip, turn, cut])


def augmented(count=32, seed=0):
    """A data set of noise, in which most augmented images differ."""
    return AugmentedImages(noise(count), torch.arange(count), steps_of_our_own(), seed)


@pytest.mark.slow
def test_import_is_silent_and_asks_no_network():
    script = (
        "import socket\n"
        "def refuse(*_): raise SystemExit('asked the network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "import dataset; dataset.augmentation((0.5, 0.5, 0.5), True, 1, 1)\n"
    )
    result = run_script(ROOT, "-c", script)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.slow
def test_import_registers_nothing():
    script = (
        "import torch, torchvision, sklearn.datasets, matplotlib.figure\n"
        "import albumentations, cv2, numpy, sklearn.model_selection, sklearn.metrics\n"
        "import atexit, signal\n"
        "def refuse(*_): raise SystemExit('registered something')\n"
        "atexit.register = signal.signal = refuse\n"
        "import dataset\n"
    )
    result = run_script(ROOT, "-c", script)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_loader_without_workers_registers_nothing(monkeypatch):
    monkeypatch.setattr("atexit.register", lambda _: pytest.fail("registered"))
    for _ in training_loader(augmented(), 8, 0, 0, torch.device("cpu")):
        pass


def test_each_step_strikes_by_itself():
    """Shared generators make steps strike together; here each pair is independent."""
    ramp = np.zeros((32, 32, 3), np.uint8)
    ramp[:, :16] = 200  # dark and light: a flip swaps the halves
    images = torch.from_numpy(ramp).expand(2000, 32, 32, 3)
    data = AugmentedImages(images, None, steps_of_our_own(hole=0.3), 0)
    results = list(data.augment(1, range(2000)))
    flipped = np.array([r[[0, -1], -1].mean() > r[[0, -1], 0].mean() for r in results])
    holed = np.array([(r == FILL).all(-1).sum() > 200 for r in results])
    assert abs(flipped.mean() - 0.5) < 0.05
    assert abs(holed.mean() - 0.3) < 0.05
    assert abs((flipped & holed).mean() - 0.15) < 0.03


def run_epoch(data, epoch, workers, context=None):
    loader = training_loader(data, 8, 0, workers, torch.device("cpu"))
    loader.multiprocessing_context = context if workers else None
    loader.sampler.epoch = epoch
    images, labels = zip(*loader)
    return torch.cat(images), torch.cat(labels)


@pytest.mark.parametrize(
    ("workers", "context"),
    [(1, "fork"), (2, "fork"), pytest.param(2, "spawn", marks=pytest.mark.slow)],
)
def test_workers_change_nothing(workers, context):
    if context == "fork" and sys.platform != "linux":
        pytest.skip("a training forks on Linux alone")
    images, labels = run_epoch(augmented(), 1, 0)
    again, again_labels = run_epoch(augmented(), 1, workers, context)
    assert torch.equal(images, again)
    assert torch.equal(labels, again_labels)
    assert images.shape == (32, 3, 32, 32)
    assert images.dtype == torch.uint8


@pytest.mark.parametrize(
    ("cores", "processes", "device", "workers"),
    [
        (1, 1, "cpu", 0),
        (2, 1, "cpu", 0),
        (4, 1, "cpu", 2),
        (16, 4, "cpu", 2),
        (2, 8, "cpu", 0),
        (1, 1, "cuda", 1),
        (2, 1, "cuda", 2),
        (64, 1, "cuda", 8),
        (64, 8, "cuda", 6),
    ],
)
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_by_cores(monkeypatch, cores, processes, device, workers):
    monkeypatch.setattr("joblib.cpu_count", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    loader = training_loader(augmented(), 8, 0, None, torch.device(device))
    assert loader.num_workers == workers
    assert loader.pin_memory == (device == "cuda")
    assert loader.persistent_workers == (workers > 0)


@pytest.mark.slow
def test_workers_do_not_outlive_a_script_that_holds_its_loader():
    script = (
        "import multiprocessing.process as p, time, torch; from test_dataset import *\n"
        "kill = p.BaseProcess.kill\n"  # slow, so that the death of one is heard first
        "p.BaseProcess.kill = lambda self: (kill(self), time.sleep(0.3))\n"
        "loader = training_loader(augmented(), 8, 0, 2, torch.device('cpu'))\n"
        "held = iter(loader); next(held); print(*(w.pid for w in held._workers))\n"
    )
    # On one core torch warns that two workers are many.
    command = ("-W", "ignore:This DataLoader will create", "-c", script)
    result = run_script(ROOT, *command, path=ROOT / "tests")
    assert (result.returncode, result.stderr) == (0, "")
    for pid in result.stdout.split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


@pytest.mark.skipif(sys.platform != "linux", reason="a training forks there alone")
def test_workers_hear_nothing_of_what_stops_a_training():
    """Not even as they start: the parent stops them, and they print no traceback."""
    script = (
        "import os, signal, torch; from test_dataset import *\n"
        "signal.signal(signal.SIGTERM, signal.default_int_handler)\n"  # as utils.run
        "for stop in (signal.SIGINT, signal.SIGTERM):\n"
        "    raised = lambda stop=stop: os.kill(os.getpid(), stop)\n"
        "    os.register_at_fork(after_in_child=raised)\n"
        "loader = training_loader(augmented(), 8, 0, 1, torch.device('cpu'))\n"
        "loader.multiprocessing_context = 'fork'\n"
        "print(len(list(loader)), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"  # the script itself still hears it
    )
    result = run_script(ROOT, "-c", script, path=ROOT / "tests")
    assert result.stdout == "4\n", result.stderr
    assert result.stderr.count("Traceback") == 1
    assert result.stderr.rstrip().endswith("KeyboardInterrupt")


class Blocked(Dataset):
    """The numbers of the signals that the process which reads it does not hear."""

    def __getitem__(self, _):
        return torch.tensor(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot block signals")
def test_spawned_workers_hear_nothing_either():
    """As on macOS. With the first of them a process starts that lets signals through."""
    script = (
        "from machine import Loader; from test_dataset import Blocked\n"
        "if __name__ == '__main__':\n"
        "    loader = Loader(Blocked(), sampler=[0], batch_size=None, num_workers=1)\n"
        "    loader.multiprocessing_context = 'spawn'\n"
        "    print(*next(iter(loader)).tolist())\n"
    )
    result = run_script(ROOT, "-c", script, path=ROOT / "tests", timeout=120)
    assert result.stdout.split() == ["2", "15"], result.stderr
    assert (signal.SIGINT, signal.SIGTERM) == (2, 15)


@pytest.mark.slow
def test_a_child_that_is_no_worker_is_left_alone():
    """It ends by itself, after the script's own work, and is waited for."""
    script = (
        "import multiprocessing, time, torch; from test_dataset import *\n"
        "def child(): time.sleep(2); print('finished', flush=True)\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('fork')\n"
        "    context.Process(target=child).start()\n"
        "    loader = training_loader(augmented(), 8, 0, 1, torch.device('cpu'))\n"
        "    held = iter(loader); next(held); print('held', flush=True)\n"
    )
    if sys.platform == "win32":
        pytest.skip("Windows cannot fork")
    result = run_script(ROOT, "-c", script, path=ROOT / "tests")
    assert (result.returncode, result.stderr) == (0, "")
    assert sorted(result.stdout.split()) == ["finished", "held"]


def test_epochs_and_seeds_differ_and_persistent_workers_know_the_epoch():
    loader = training_loader(augmented(), 8, 0, 2, torch.device("cpu"))
    epochs = {}
    for epoch in (1, 2):
        loader.sampler.epoch = epoch
        images, labels = (torch.cat(part) for part in zip(*loader))
        epochs[epoch] = images[labels.argsort()]
        assert sorted(labels.tolist()) == list(range(32))
        assert torch.equal(images, run_epoch(augmented(), epoch, 0)[0])
    other, labels = run_epoch(augmented(seed=1), 1, 0)
    same = [
        torch.equal(a, b)
        for pair in ((epochs[1], epochs[2]), (epochs[1], other[labels.argsort()]))
        for a, b in zip(*pair)
    ]
    # An eighth or so are not changed at all by any step, and so may agree.
    assert np.mean(same) < 0.3


def test_no_two_images_are_augmented_alike():
    images = noise(1).expand(500, 32, 32, 3)
    data = AugmentedImages(images, None, steps_of_our_own(move=0.5), 0)
    moved = [*data.augment(1, range(500)), *data.augment(2, range(500))]
    # Half are shifted and turned, each by its own amounts; the others are one of two
    # flips, with or without one of 17 x 17 holes.
    assert len({image.tobytes() for image in moved}) > 500


def test_draws_do_not_depend_on_what_was_drawn_before():
    data = augmented(seed=3)
    in_order = list(data.augment(2, range(32)))
    list(data.augment(5, [4, 4, 4]))
    for index in (31, 0, 17):
        alone = data.augment(2, [index])[0]
        assert np.array_equal(alone, in_order[index])


def random_step(generator):
    """One of the three steps, or their parent Affine, with settings drawn at random."""
    kind = generator.integers(4)
    p = generator.choice([0.0, 0.3, 0.8, 1.0])
    if kind == 0:
        return A.HorizontalFlip(p=p)
    if kind == 1:
        longest = generator.choice([4, 16, 32, 40])
        sizes = (int(longest) // 2, int(longest))
        if generator.integers(2):
            sizes = (0.1, 0.6)
        return A.CoarseDropout((1, 3), sizes, sizes, fill=FILL if p < 1 else 9, p=p)
    settings = {
        "interpolation": int(generator.choice([0, 1, 2, 4])),
        "border_mode": int(generator.choice([0, 1, 2, 4])),
        "fill": [FILL, 200.0, (7,)][generator.integers(3)],
        "p": p,
    }
    limit = generator.random()
    if kind == 2:
        limits = {"shift_limit": limit, "rotate_limit": 180 * limit}
        return A.ShiftScaleRotate(**limits, scale_limit=limit, **settings)
    return A.Affine(
        scale=(0.7, 1.5),
        translate_px=(-3, 5) if generator.integers(2) else None,
        rotate=(-30, 90),
        shear=(-20, 10),
        keep_ratio=bool(generator.integers(2)),
        balanced_scale=bool(generator.integers(2)),
        **settings,
    )


@pytest.mark.filterwarnings("ignore:ShiftScaleRotate")
def test_a_whole_batch_has_the_pixels_of_albumentations():
    """2,000 draws of 100 augmentations whose steps and settings are drawn at random."""
    generator = np.random.default_rng(0)
    images, changed = noise(20), 0
    for number in range(100):
        steps = [random_step(generator) for _ in range(generator.integers(1, 5))]
        transform = A.Compose(steps, p=generator.choice([0.5, 1.0]))
        data = AugmentedImages(images, torch.arange(20), transform, number)
        assert data.is_known, transform
        for index, image in enumerate(data.augment(3, range(20))):
            data.set_generators(3, index)
            expected = transform(image=images[index].numpy())["image"]
            assert np.array_equal(image, expected), transform
            changed += not np.array_equal(image, images[index])
    assert changed > 1000


CUBIC = {"interpolation": cv2.INTER_CUBIC, "border_mode": cv2.BORDER_REFLECT_101}


@pytest.mark.filterwarnings("ignore:ShiftScaleRotate")
@pytest.mark.parametrize("seed", range(8))
def test_a_device_makes_the_pixels_of_albumentations(seed):
    """To one grey level, which few of them are off: of settings drawn at random."""
    generator = np.random.default_rng(seed)
    blurred = F.avg_pool2d(noise(100).permute(0, 3, 1, 2).float(), 5, 1, 2)
    images = blurred.byte().permute(0, 2, 3, 1).contiguous()
    limit = 0.4 * generator.random()  # far outside, OpenCV's own pixels are wrong
    move = A.ShiftScaleRotate(limit, limit / 2, 180 * limit, **CUBIC, p=0.8)
    if seed % 2:
        move = A.Affine(shear=(-20, 20), rotate=(-90, 9), **CUBIC, p=0.8)
    steps = [A.HorizontalFlip(p=0.5), move]
    if seed % 3:
        steps.reverse()
    if seed < 6:
        fill = FILL if seed % 2 else 7
        steps.append(A.CoarseDropout((1, 3), (3, 9), (2, 20), fill=fill, p=0.5))
    data = AugmentedImages(images, torch.arange(100), A.Compose(steps), seed)
    cpu = torch.device("cpu")
    here = training_loader(data, 50, seed, 0, cpu)
    there = training_loader(data, 50, seed, 0, cpu, on_device=True)
    assert len(here) == len(there) == 2
    here.sampler.epoch = there.sampler.epoch = 4
    for (expected, labels), (found, their_labels) in zip(here, there, strict=True):
        assert torch.equal(labels, their_labels)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert (
            found.stride() == expected.stride()
        )  # or a compiled network compiles anew
        off = (expected.int() - found.int()).abs()
        assert off.max() <= 1
        assert (off > 0).float().mean() < 1e-3


# torchvision recommends TorchCodec.
@pytest.mark.filterwarnings("ignore:The image decoding")
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
def test_jpeg_files_have_the_same_pixels_in_three_libraries(tmp_path, subsampling):
    generator = np.random.default_rng(0)
    for number in range(5):
        pixels = cv2.blur(generator.integers(0, 256, (32, 32, 3), np.uint8), (3, 3))
        path = tmp_path / f"{number}.jpg"
        Image.fromarray(pixels).save(path, quality=75, subsampling=subsampling)
        image = read_image(path)
        data = np.frombuffer(path.read_bytes(), np.uint8)
        by_opencv = cv2.cvtColor(
            cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB
        )
        by_torchvision = torchvision.io.decode_image(str(path)).permute(1, 2, 0)
        assert np.array_equal(image, by_opencv)
        assert np.array_equal(image, by_torchvision.numpy())


def test_the_successor_of_albumentations_is_refused(monkeypatch):
    """albumentationsx has its import name, but ignores shift_limit: 45 degrees for 5."""

    class ShiftScaleRotate:
        def __init__(
            self, shift_range=(-0.0625, 0.0625), rotate_range=(-45, 45), p=0.5
        ):
            pass

    monkeypatch.setattr(A, "ShiftScaleRotate", ShiftScaleRotate)
    with pytest.raises(UserError, match="albumentationsx is installed over"):
        augmentation((0.5,) * 3, True, 0.7, 0.15)


def three_steps(mean, mirror, move, hole):
    """A flip, a move and a hole, which devices know, whatever `augmentation` makes."""
    size = {"hole_height_range": (16, 16), "hole_width_range": (16, 16)}
    steps = [
        A.HorizontalFlip(p=0.5 * mirror),
        A.Affine(translate_px=(-1, 1), rotate=(-5, 5), **CUBIC, p=move),
        A.CoarseDropout(**size, fill=[255 * value for value in mean], p=hole),
    ]
    return A.Compose(steps)


def test_the_three_steps_are_known_to_be_fast():
    transform = augmentation((0.5,) * 3, True, 0.7, 0.15)
    steps = [type(step) for step in transform.transforms]
    if steps != [A.HorizontalFlip, A.ShiftScaleRotate, A.CoarseDropout]:
        pytest.skip("dataset.py has another augmentation")
    assert is_known(transform)
    assert is_known_on_device(transform)


def test_where_the_pixels_are_made(monkeypatch):
    steps = three_steps((0.5,) * 3, True, 0.7, 0.15)
    data = AugmentedImages(noise(8), torch.arange(8), steps, 0)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    room = {"free": 4 * data.images.nbytes + 8}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (room["free"], 0))
    assert augments_on_device("auto", data, cuda)
    room["free"] = 8
    assert not augments_on_device("auto", data, cuda)
    assert not augments_on_device("auto", data, cpu)
    assert augments_on_device("device", data, cpu)
    assert not augments_on_device("cpu", data, cuda)
    steps = {
        "another step": [A.ColorJitter()],
        "a hole that is moved": [A.CoarseDropout(), A.HorizontalFlip()],
        "linear": [A.Affine(border_mode=cv2.BORDER_REFLECT_101)],
        "a scale of 0": [A.Affine(scale=(0, 1), **CUBIC)],
        "black borders": [A.Affine(interpolation=cv2.INTER_CUBIC)],
    }
    for own in steps.values():
        data = AugmentedImages(noise(8), torch.arange(8), A.Compose(own), 0)
        assert not augments_on_device("auto", data, cuda)
        with pytest.raises(UserError, match="--augment device knows flips"):
            augments_on_device("device", data, cpu)


UNKNOWN = {
    "another step": A.Compose([A.HorizontalFlip(), A.ColorJitter()]),
    "noise in the hole": A.Compose([A.CoarseDropout(fill="random", p=1)]),
    "a size of its own": A.Compose([A.Affine(fit_output=True, p=1), A.Resize(32, 32)]),
    "steps in a step": A.Compose([A.OneOf([A.HorizontalFlip(), A.Affine()])]),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_goes_through_albumentations(name):
    transform, images = UNKNOWN[name], noise(8)
    data = AugmentedImages(images, torch.arange(8), transform, 0)
    assert not data.is_known
    for index, image in enumerate(data.augment(1, range(8))):
        data.set_generators(1, index)
        assert np.array_equal(image, transform(image=images[index].numpy())["image"])


def test_another_version_of_albumentations_is_not_known(monkeypatch):
    transform = steps_of_our_own()
    assert is_known(transform)
    monkeypatch.setattr(A, "__version__", "2.0.9")
    assert not is_known(transform)


STEPS = {
    "Normalize": ([A.Normalize((0.5,) * 3, (0.2,) * 3)], "Normalize gives no uint8"),
    "a padding without a crop": ([A.PadIfNeeded(40, 40)], "(40, 40, 3) of an image"),
    "a crop": ([A.CenterCrop(24, 24)], "(24, 24, 3) of an image"),
    "a tensor": ([A.ToTensorV2()], "ToTensorV2 gives no uint8"),
    "one that is rare": ([A.Normalize(p=0.01)], "Normalize gives no uint8"),
    "a padding and a crop": ([A.PadIfNeeded(40, 40), A.RandomCrop(32, 32)], None),
}


@pytest.mark.parametrize("name", STEPS)
def test_steps_that_the_network_does_not_expect_are_refused(name):
    """As they stand in nearly every published solution."""
    steps, message = STEPS[name]
    transform = A.Compose([A.HorizontalFlip(), *steps])
    if message is None:
        data = AugmentedImages(noise(4), torch.arange(4), transform, 0)
        assert data[0, [0, 1]][0].shape == (2, 3, 32, 32)
        return
    with pytest.raises(UserError, match=re.escape(message)):
        AugmentedImages(noise(4), torch.arange(4), transform, 0)


@pytest.mark.parametrize("name", DATASETS)
def test_what_means_something_else_in_the_mirror_is_not_mirrored(name):
    """With the other steps switched off, an image is itself or its mirror image."""
    mirror = DATASETS[name].mirror
    assert mirror == (name not in ("mnist", "digits"))
    assert DATASETS[name].dark_ground == (name in ("mnist", "digits"))
    if mirror:
        return
    image = noise(1)
    transform = augmentation((0.5, 0.5, 0.5), mirror, 0, 0)
    for step in transform.transforms:
        if not isinstance(step, A.HorizontalFlip):
            step.p = 0  # one that a student added, too
    data = AugmentedImages(image.expand(100, 32, 32, 3), None, transform, 0)
    for result in data.augment(1, range(100)):
        assert np.array_equal(result, image[0])


def test_picture_of_the_steps_shows_one_after_another(monkeypatch):
    """Also of steps that hardly ever strike."""
    shown = []
    monkeypatch.setattr(dataset, "plot_images", lambda *plot: shown.append(plot))
    images = noise(5)
    dataset.plot_steps(images, steps_of_our_own(move=0.01, hole=0.01), "steps.png")
    ((cells, _, columns, *_),) = shown
    assert (columns, len(cells)) == (4, 12)
    for row, number in enumerate((0, 2, 4)):  # from the first to the last
        image, flipped, turned, cut = cells[4 * row : 4 * row + 4]
        assert np.array_equal(image, images[number].numpy())
        assert np.array_equal(flipped, image[:, ::-1])
        assert not np.array_equal(turned, flipped)
        hole = (cut == FILL).all(-1)
        assert hole.sum() >= 256
        assert np.array_equal(cut[~hole], turned[~hole])


def test_opencv_starts_no_threads():
    assert cv2.getNumThreads() == 1


def test_the_digest_is_of_pixels_and_labels():
    images, labels = noise(4), torch.arange(4)
    content = images.numpy().tobytes() + labels.numpy().tobytes()
    assert dataset.digest(images, labels) == sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("error", "is_of_network"),
    [
        (HTTPError("http://there", 503, "Service Unavailable", {}, None), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
    ],
)
def test_a_server_that_fails_is_no_fault_of_the_disk(error, is_of_network):
    def download(*_, **__):
        raise error

    with pytest.raises(UserError) as found:
        dataset.from_torchvision(download, "data", True, "put it there")
    assert isinstance(found.value, dataset.NoImages) == is_of_network
    assert ("cannot be kept" in str(found.value)) != is_of_network


def test_a_folder_that_has_moved_holds_out_the_same_images(image_folder):
    """Also where a system writes the accents of its names apart."""

    def held_out(folder):
        paths = folders.list_part(folder, "test").paths
        names = [os.path.relpath(path, folder) for path in paths]
        return [unicodedata.normalize("NFC", name) for name in names]

    one = (image_folder / "train").rename(image_folder.parent / "one")
    before = held_out(one)
    other = image_folder.parent / "else" / "other"
    other.parent.mkdir()
    one.rename(other)
    apart = unicodedata.normalize("NFD", "chat gâté")
    (other / "chat gâté").rename(other / apart)
    assert len(before) == 20
    assert held_out(other) == before


def test_of_several_test_parts_the_first_name_is_taken(image_folder):
    for name in ("dev", "val", "Testing"):
        shutil.copytree(image_folder / "test", image_folder / name)
    listing = folders.list_part(image_folder, "test")
    assert listing.folder == image_folder / "test"
    assert listing.unread == ["Testing", "val", "dev"]
    assert folders.list_part(image_folder, "train").unread == []


def test_picture_of_the_steps_leaves_out_what_never_happens(monkeypatch, call):
    shown = []
    monkeypatch.setattr(dataset, "plot_images", lambda *plot: shown.append(plot))
    assert call(dataset.main, "--dataset", "digits")[0] == 0
    _, titles, columns, path, _ = shown[1]
    assert path.name == "steps.png"
    assert titles[0] == "original"
    assert "HorizontalFlip" not in titles
    assert columns == len([title for title in titles if title])


def save_by_opencv(path, pixels):
    """In two steps: on Windows it opens no path that is not ASCII."""
    path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())


def save_images(folder, names, mode="RGB"):
    """Small pictures of these names, each of another colour."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        image = Image.new("RGB", (40, 40), (9 * number % 256, 99, 3))
        kind = Image.registered_extensions().get(Path(name).suffix.lower(), "PNG")
        image.convert(mode).save(folder / name, kind)


def test_all_that_can_be_read_is_read_and_the_rest_is_counted(tmp_path, call):
    names = ["a.jpg", "b.JPE", "c.jfif", "d.gif", "e.avif", "f.webp", "g.qoi", "plain"]
    for part in ("train", "test"):
        for number, name in enumerate(("cat", "dog")):
            save_images(tmp_path / part / name, names[number:])
        for folder in (".ipynb_checkpoints", "__MACOSX", "@eaDir"):
            save_images(tmp_path / part / folder, names)
    cat = tmp_path / "train" / "cat"
    save_images(cat / "@eaDir", ["small.jpg"])
    for name in (
        "._a.jpg",
        "Thumbs.db",
        "notes.txt",
        "labels.csv",
        "more.csv",
        "README",
    ):
        (cat / name).write_text("no image")
    status, output, _ = call(dataset.main, "--data-dir", tmp_path)
    assert status == 0
    assert "read      15 images of 2 classes (cat 8, dog 7) from" in output
    line = "; skipped 10: 6 hidden, 2 .csv, 1 .txt, 1 without suffix\n"
    assert line in output
    status, output, _ = call(evaluate.main, "--ckpt", PRETRAINED, "--images", cat)
    assert "8 images read; skipped 7: " in output
    assert "1 folder" in output


@pytest.mark.parametrize("train_name", ["train", "Training"])
@pytest.mark.parametrize("test_name", ["TEST", "val", "validation", "testing"])
def test_usual_names_of_the_parts(tmp_path, train_name, test_name):
    for part in (train_name, test_name):
        for name in ("cat", "dog"):
            save_images(tmp_path / part / name, [f"{part}.png"])
    splits, classes = load_splits("folder", tmp_path)
    assert classes == ["cat", "dog"]
    assert [len(labels) for _, labels in splits.values()] == [2, 2]


@pytest.mark.skipif(os.name == "nt", reason="links take a right there")
def test_what_is_plainly_there_is_taken(image_folder, tmp_path, monkeypatch):
    pick = dataset.pick_dataset
    assert pick(None, image_folder) == "folder"
    assert pick(None, image_folder / "train") == "folder"  # of classes alone
    assert pick(None, image_folder.parent) == "folder"  # a level above
    assert pick("digits", image_folder) == "digits"
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in (image_folder / "train").iterdir():
        (linked / path.name).symlink_to(path)
    assert pick(None, linked) == "folder"
    photos = tmp_path / "photos" / "cat"
    photos.mkdir(parents=True)
    (photos / "1.HEIC").touch()
    assert pick(None, photos.parent) == "folder"
    options = ["--data-dir", str(image_folder)]
    assert train.parse_arguments(options)[0].dataset == "folder"
    (image_folder / CIFAR10.base_folder).mkdir()
    with pytest.raises(UserError, match="holds both train/ and CIFAR-10"):
        pick(None, image_folder)
    (image_folder / "train").rename(image_folder / "else")
    assert pick(None, image_folder) == "cifar10"
    assert pick(None, "data") == "cifar10"  # to download to
    with pytest.raises(UserError, match="there is no folder"):
        pick(None, tmp_path / "a slip")


@pytest.mark.skipif(os.name == "nt", reason="links take a right there")
def test_links_that_lead_back_are_left_out(image_folder, call):
    (image_folder / "train" / "dog" / "again").symlink_to(".")
    (image_folder / "train" / "dog" / "all").symlink_to("..")
    _, output, _ = call(dataset.main, "--data-dir", image_folder)
    assert "dog 48) from" in output
    assert "skipped 2: 2 link that leads back\n" in output


@pytest.mark.skipif(os.name == "nt", reason="links take a right there")
def test_links_that_lead_back_by_way_of_each_other_are_left_out(image_folder, call):
    for here, there in (("chat gâté", "dog"), ("dog", "chat gâté")):
        (image_folder / "train" / here / "other").symlink_to(Path("..", there))
    _, output, _ = call(dataset.main, "--data-dir", image_folder)
    assert "(chat gâté 96, dog 96) from" in output  # each with those of the other
    assert "skipped 2: 2 link that leads back\n" in output


def test_pictures_of_one_colour_are_counted(image_folder, call):
    for number in range(3):
        path = image_folder / "train" / "dog" / f"{number:03}.png"
        Image.new("RGB", (32, 32), (10, 200, 30)).save(path)
    _, output, _ = call(dataset.main, "--data-dir", image_folder)
    assert f"from {image_folder / 'train'}, 3 of one colour\n" in output


def test_folders_that_are_no_classes_are_told_apart(image_folder, fails, call):
    """Parts by names of their own; a second folder of a part; one that is none."""
    other = image_folder / "other"
    other.mkdir()
    for part in ("train", "test"):
        (image_folder / part).rename(other / f"own_{part}")
    (other / "own_train" / ".DS_Store").touch()  # as the Finder leaves it
    assert "rename those that are parts to train and test" in fails(
        dataset.main, "--dataset", "folder", "--data-dir", other
    )
    for part in ("train", "test"):
        (other / f"own_{part}").rename(image_folder / part)
    (image_folder / "Train").mkdir(exist_ok=True)
    _, output, _ = call(dataset.main, "--data-dir", image_folder)
    assert "; other/ is not read" in output
    if len(list(image_folder.glob("[Tt]rain"))) == 2:  # where case counts
        assert "; Train/ is not read" in output


@pytest.mark.skipif(os.name == "nt", reason="links take rights on Windows")
def test_links_that_lead_nowhere_make_no_class(image_folder, fails):
    other = image_folder / "other"
    other.mkdir()
    for part, name in (("train", "one"), ("test", "two")):
        (image_folder / part).rename(other / name)
        for link, target in (("gone", "nowhere"), ("circle", "circle")):
            (other / name / link).symlink_to(target)
    errors = fails(dataset.main, "--dataset", "folder", "--data-dir", other)
    assert "all of one, two hold the folders" in errors


@pytest.mark.parametrize(
    "names",
    [
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("alphabet_training/more", "alphabet_test"),
        ("Train Data", "Validation-Data"),
    ],
)
def test_parts_of_other_names_are_no_classes(image_folder, fails, names):
    """As data sets are often packed: one folder more, or a part without classes."""
    other = image_folder / "other"
    for part, name in zip(("train", "test"), names):
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (image_folder / part).rename(other / name)
    shutil.copytree(other / names[0] / "dog", other / "seg_pred")
    errors = fails(dataset.main, "--dataset", "folder", "--data-dir", other)
    assert "are called parts, not classes: rename those that are parts" in errors


def test_a_test_part_without_classes_is_not_taken(tmp_path, fails):
    """As Tiny ImageNet comes, and after the pictures of val/ are put in order."""
    root = tmp_path / "tiny"
    for name in ("n1", "n2"):
        save_images(root / "train" / name / "images", [f"{n}.JPEG" for n in range(10)])
    for part in ("val", "test"):
        save_images(root / part / "images", ["0.JPEG", "1.JPEG"])
    errors = fails(dataset.main, "--dataset", "folder", "--data-dir", root)
    assert f"{root / 'train'} holds a fifth of it out as the test" in errors
    assert len(folders.list_part(root / "train", "test").paths) == 4
    for number, name in enumerate(("n1", "n2")):
        (root / "val" / name).mkdir()
        path = root / "val" / "images" / f"{number}.JPEG"
        path.rename(root / "val" / name / "0.JPEG")
    (root / "val" / "images").rmdir()
    assert folders.list_part(root, "test").folder == root / "val"
    with pytest.raises(UserError, match="is a part of the images"):
        folders.list_part(root / "train", "test")


def test_classes_that_are_there_twice_are_refused(image_folder, fails, call):
    train_part = image_folder / "train"
    shutil.copytree(train_part, image_folder / "copy")
    (image_folder / "copy").rename(train_part / "copy")
    errors = fails(dataset.main, "--data-dir", image_folder)
    assert "copy holds chat gâté, dog again, which are classes beside it" in errors
    shutil.rmtree(train_part / "copy" / "dog")
    for part in ("train", "test"):  # one of the same name is a class's own affair
        (image_folder / part / "copy").mkdir(exist_ok=True)
        shutil.copy(train_part / "dog" / "000.png", image_folder / part / "copy")
    assert call(dataset.main, "--data-dir", image_folder)[0] == 0


def test_broken_files_of_both_parts_are_named(image_folder, fails):
    for part in ("train", "test"):
        (image_folder / part / "dog" / f"{part}.jpg").write_bytes(b"no image")
    errors = fails(train.main, "--data-dir", image_folder, "-b", 16)
    for part in ("train", "test"):
        assert os.path.join("dog", f"{part}.jpg") in errors


@pytest.mark.skipif(sys.platform != "linux", reason="names are text there")
def test_names_of_images_need_not_be_text(image_folder, call):
    whole = image_folder / "train"
    (image_folder / "test").rename(image_folder.parent / "other")
    name = os.fsdecode(b"caf\xe9.png")
    (whole / "dog" / "000.png").rename(whole / "dog" / name)
    options = ["--data-dir", whole, "--arch", "small", "-b", 32, "--epochs", 1, "-j", 0]
    assert call(train.main, *options)[0] == 0
    options = ["--images", whole / "dog", "--predictions", "dogs.csv"]
    assert call(evaluate.main, *options)[0] == 0
    assert "caf\\udce9.png" in Path("dogs.csv").read_text(encoding="utf-8")


def test_a_folder_without_a_test_part_holds_out_the_same_images(image_folder, call):
    """In training and in evaluation, which says how good it is at what it never saw."""
    whole = image_folder / "train"
    (image_folder / "test").rename(image_folder.parent / "other")
    splits, _ = load_splits("folder", whole)
    parts = [
        {image.numpy().tobytes() for image in images} for images, _ in splits.values()
    ]
    assert [len(part) for part in parts] == [76, 20]  # of 96
    assert not parts[0] & parts[1]
    assert splits["test"][1].bincount().tolist() == [10, 10]
    options = ["--data-dir", whole, "-b", 19, "-j", 0, "--epochs", 1, "--arch", "small"]
    status, output, errors = call(train.main, *options)
    assert status == 0, errors
    assert "which has no test/: a fifth of its 96 is held out as it" in output
    accuracy = load_checkpoint("best.pt")["accuracy"]
    status, output, _ = call(evaluate.main)
    assert status == 0
    assert re.search(rf"accuracy {accuracy:.2%}.*, on the 20 images", output)
    assert "not those of the training" not in output
    (whole / "dog" / "000.png").rename(whole / "chat gâté" / "more.png")
    _, output, _ = call(evaluate.main)
    assert "the test images are not those of the training: a fifth of" in output


def test_pictures_that_are_added_leave_most_where_they_are(tmp_path, capsys):
    """Else a network is evaluated on those it was trained on."""

    def held_out(count, classes):
        for name, size in classes.items():
            (tmp_path / name).mkdir(exist_ok=True)
            for number in range(size * count // 100):
                path = tmp_path / name / f"{number:03}.png"
                Image.new("L", (8, 8), number).save(path)
        kept = {*folders.list_part(tmp_path, "train").paths}
        return kept, {*folders.list_part(tmp_path, "test").paths}

    classes = {"a": 100, "b": 2, "c": 100, "d": 4}
    kept, tested = held_out(100, classes)
    assert (len(kept), len(tested)) == (206 - 42, 42)
    load("folder", tmp_path, train=False)
    assert "of 4 classes (a 20, b 1, c 20, d 1)" in capsys.readouterr().out
    _, tested_later = held_out(110, classes)
    assert len(tested_later) == 46
    assert len(kept & tested_later) <= 4
    (tmp_path / "b" / "001.png").unlink()
    with pytest.raises(UserError, match="too small .*: b has a single image"):
        folders.list_part(tmp_path, "train")


def test_errors_say_which_folder_is_meant(image_folder, fails, monkeypatch):
    """Before any pixel is read."""
    monkeypatch.setattr(folders, "read_image", lambda *_: pytest.fail("read"))
    options = ["--dataset", "folder", "--data-dir"]
    above = image_folder.parent
    assert f"--data-dir {image_folder}" in fails(dataset.main, *options, above)
    part = image_folder / "test"
    assert f"--data-dir {image_folder}\n" in fails(dataset.main, *options, part)
    assert "there are 96 images" in fails(train.main, *options, image_folder, "-b", 97)
    (image_folder / "test").rename(above / "elsewhere")
    errors = fails(dataset.main, *options, image_folder)
    assert "holds train, and no test/ or testing/ or test_set/ or val/" in errors
    assert f"--data-dir {image_folder / 'train'} holds a fifth" in errors


def test_broken_files_are_all_named(image_folder, fails):
    names = [f"broken{number:02}.jpg" for number in range(23)]
    for name in names:
        (image_folder / "train" / "dog" / name).write_bytes(b"no image")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0"
    (image_folder / "train" / "cat.png").write_text(pointer)
    options = ["--dataset", "folder", "--data-dir", image_folder, "-b", 16]
    errors = fails(train.main, *options)
    assert "23 of 119 images in" in errors
    assert all(name in errors for name in names[:20])
    assert errors.count("of no format that Pillow draws") == 1  # a reason stands once
    assert "; and 3 more" in errors
    errors = refusal(image_folder / "train" / "cat.png")
    assert "a pointer of Git LFS" in errors


@pytest.mark.parametrize(
    "content, kind",
    [
        (b"<!DOCTYPE html><title>404</title>", "a web page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "save it as PNG"),
        (b"%PDF-1.7", "a PDF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "save it as JPEG"),
    ],
)
def test_what_is_taken_for_a_picture_is_named(tmp_path, content, kind):
    (tmp_path / "a.jpg").write_bytes(content)
    assert kind in refusal(tmp_path / "a.jpg")


def test_a_folder_as_competitions_have_it(image_folder, call):
    """Its test/ has no classes, its photos are of a telephone."""
    (image_folder / "test").rename(image_folder / "valid")
    save_images(image_folder / "test", ["1.jpg", "2.jpg"])
    (image_folder / "train" / "dog" / "more.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    _, output, _ = call(dataset.main, "--data-dir", image_folder)
    assert "skipped 1: 1 .heic (save them as JPEG)\n" in output
    assert f"from {image_folder / 'valid'}; test/ is not read\n" in output


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_white_is_zero_in_some_tiffs(tmp_path, kind):
    path = tmp_path / "a.tif"
    ramp = np.linspace(0, 1, 1024).reshape(32, 32) * (65535 if kind == np.uint16 else 1)
    Image.fromarray(ramp.astype(kind)).save(path)
    black_is_zero = struct.pack("<HHIH", 262, 3, 1, 1)  # PhotometricInterpretation
    data = path.read_bytes()
    assert data.count(black_is_zero) == 1
    positive = read_image(path)
    path.write_bytes(data.replace(black_is_zero, struct.pack("<HHIH", 262, 3, 1, 0)))
    assert np.array_equal(read_image(path), 255 - positive)


def test_sixteen_bits_that_a_viewer_shows_black_are_refused(tmp_path):
    ramp = np.linspace(0, 1, 1600).reshape(40, 40, 1).repeat(3, 2)
    for suffix in (".png", ".tif", ".ppm"):
        path = tmp_path / f"a{suffix}"
        save_by_opencv(path, (ramp * 4095).astype(np.uint16))
        assert "few of their 16 bits" in refusal(path)
        save_by_opencv(path, (ramp * 65535).astype(np.uint16))
        assert read_image(path).max() > 250


def test_a_place_in_the_file_is_no_number_of_bits(tmp_path):
    """Where the pixels begin is among what Pillow notes beside their layout."""
    Image.new("RGB", (40, 40), (9, 9, 9)).save(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as file:
        for settings in (("RGB", False, 165535), ("RGB", 65535, 1)):
            file.tile = [file.tile[0]._replace(args=settings)]
            assert folders.layout_of(file) == ("RGB", False)
    assert read_image(tmp_path / "a.tif").max() == 9


def test_orientation_is_read_among_damaged_data(tmp_path):
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:20] = 255
    width = struct.pack("<HHI4s", 0x100, 2, 4, b"abc")  # a text, and no width
    orientation = struct.pack("<HHIHxx", 0x112, 3, 1, 6)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + width + orientation + bytes(4)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    turned = read_image(tmp_path / "a.png")[..., 0]  # 90 degrees clockwise
    assert turned[:, :14].max() == 0
    assert turned[:, 18:].min() == 255


def grey_png(bits, clear):
    """A picture of the value 1 at this depth, which is, or is not, the transparent one."""
    size = 16
    row = {4: b"\x11" * 8, 16: b"\x80\x01" * 16}[bits]
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", size, size, bits, 0, 0, 0, 0)),
        (b"tRNS", struct.pack(">H", clear)),
        (b"IDAT", zlib.compress((b"\0" + row) * size)),
        (b"IEND", b""),
    ]
    data = b"\x89PNG\r\n\x1a\n"
    for name, content in chunks:
        check = struct.pack(">I", zlib.crc32(name + content))
        data += struct.pack(">I", len(content)) + name + content + check
    return data


@pytest.mark.parametrize("bits, clear, other", [(4, 1, 2), (16, 0x8001, 2)])
def test_transparent_value_of_grey_images(tmp_path, bits, clear, other):
    (tmp_path / "clear.png").write_bytes(grey_png(bits, clear))
    (tmp_path / "dark.png").write_bytes(grey_png(bits, other))
    assert read_image(tmp_path / "clear.png").min() == 255
    assert read_image(tmp_path / "dark.png").max() <= 128


def test_pages_behind_the_first_are_noted(tmp_path):
    page = Image.new("L", (40, 40), 50)
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page])
    notes = Counter()
    assert read_image(tmp_path / "a.tif", notes)[0, 0, 0] == 50
    assert notes == {"of several pictures, the first taken": 1}


def test_strokes_on_the_other_ground_are_noted(tmp_path, call):
    """A network of digits has only seen light ones on a dark ground."""
    options = ["--dataset", "digits", "--arch", "small", "-j", 0, "--epochs", 1]
    assert call(train.main, *options)[0] == 0
    for name, ground in (("light", 255), ("dark", 0)):
        image = Image.new("L", (40, 40), ground)
        image.paste(255 - ground, (18, 5, 22, 35))
        image.save(tmp_path / f"{name}.png")
    paths = [tmp_path / "light.png", tmp_path / "dark.png"]
    assert "1 of them have a light ground" in call(evaluate.main, "--images", *paths)[1]
    assert "ground" not in call(evaluate.main, "--images", paths[1])[1]


def test_test_images_that_are_training_images_are_counted(image_folder, call):
    options = ["--dataset", "folder", "--data-dir", image_folder, "-b", 16, "-j", 0]
    _, output, _ = call(train.main, *options, "--arch", "small", "--dry-run")
    assert "training images too" not in output
    for number in range(3):
        name = f"{2 * number:03}.png"
        test = image_folder / "test" / "dog" / name
        test.write_bytes((image_folder / "train" / "dog" / name).read_bytes())
    _, output, _ = call(train.main, *options, "--arch", "small", "--dry-run")
    assert "note      3 of the 32 test images are training images too" in output
    first = image_folder / "train" / "dog" / "000.png"
    for path in (image_folder / "train").glob("*/*"):
        path.write_bytes(first.read_bytes())
    held_out = ("--arch", "small", "--dry-run", "--val-size", 20)
    _, output, _ = call(train.main, *options, *held_out)
    assert "note      20 of the 20 val images are training images too" in output


def test_a_constant_channel_trains(image_folder, call):
    for path in image_folder.rglob("*.*g"):
        pixels = np.array(Image.open(path))
        pixels[..., 2] = 7
        Image.fromarray(pixels).save(path.with_suffix(".png"))
        if path.suffix == ".jpg":
            path.unlink()
    options = ["--data-dir", image_folder, "-b", 16, "-j", 0, "--epochs", 1]
    status, output, errors = call(train.main, *options, "--arch", "small")
    assert status == 0, errors
    assert "note      blue is 7 in all of the training images\n" in output
    assert load_checkpoint("best.pt")["net"]["std"][2] == 1 / 255


RAMP = np.arange(1024, dtype=np.float64).reshape(32, 32) / 1023  # black to white


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA", "RGBa", "La"])
def test_transparent_images_are_laid_on_white(tmp_path, mode):
    """Black strokes on a transparent ground: what a viewer shows, and a person means."""
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[8:16, :, 3] = 255
    image = Image.fromarray(pixels)
    if mode in ("P", "PA"):
        image = image.quantize(4)
    image = image.convert(mode) if mode != "P" else image
    kind = "TIFF" if mode in ("PA", "RGBa", "La") else "PNG"
    path = tmp_path / f"image.{kind.lower()}"
    try:
        image.save(path)
    except OSError:
        pytest.skip(f"Pillow writes no file of mode {mode}")
    notes = Counter()
    result = read_image(path, notes)
    assert result[10].max() == 0
    assert result[[0, 20]].min() == 255
    assert notes == {"transparent and laid on white": 1}


def test_black_on_a_clear_ground_may_have_16_bits(tmp_path):
    pixels = np.zeros((32, 32, 4), np.uint16)
    pixels[8:16, :, 3] = 65535
    save_by_opencv(tmp_path / "image.png", pixels)
    result = read_image(tmp_path / "image.png")
    assert result[10].max() == 0
    assert result[[0, 20]].min() == 255


@pytest.mark.parametrize(
    ("values", "is_read"),
    [
        ((RAMP * 65535).astype(np.uint16), True),
        ((RAMP * 4095).astype(np.uint16), False),  # 12 bits: a viewer shows black
        ((RAMP * 255).astype(np.uint16), False),
        ((RAMP * 255).astype(np.int32), True),
        ((RAMP * 65535).astype(np.int32), True),
        ((RAMP * 1e6).astype(np.int32), False),
        (RAMP.astype(np.float32), True),
        ((RAMP * 255).astype(np.float32), True),
        ((RAMP * 1.01).astype(np.float32), False),
        ((RAMP > 0.5).astype(np.int32), False),  # a mask
        ((RAMP - 0.5).astype(np.float32), False),
        ((RAMP * np.nan).astype(np.float32), False),
    ],
)
def test_values_of_other_ranges_are_scaled_or_refused(tmp_path, values, is_read):
    path = tmp_path / "image.tif"
    Image.fromarray(values).save(path)
    if is_read:
        error = np.abs(read_image(path)[..., 0] - 255 * RAMP)
        assert error.max() <= 1
    else:
        assert "scale them to 0 to 255" in refusal(path)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB"])
def test_every_mode_of_a_file_is_read_as_it_looks(tmp_path, mode):
    pixels = np.stack([255 * RAMP, 255 * RAMP.T, 255 - 255 * RAMP], -1).astype(np.uint8)
    image = Image.fromarray(pixels)
    if mode == "LAB":
        profiles = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
        to_lab = ImageCms.buildTransform(*profiles, "RGB", "LAB")
        ImageCms.applyTransform(image, to_lab).save(tmp_path / "image.tif")
        error = np.abs(read_image(tmp_path / "image.tif").astype(int) - pixels)
        assert error.mean() < 3
        return
    image = image.convert(mode)
    image.save(tmp_path / "image.tif")
    expected = np.asarray(image.convert("RGB"), int)
    assert np.abs(read_image(tmp_path / "image.tif") - expected).max() <= 2


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_large_photo_is_read_at_a_fraction_of_its_size(tmp_path, monkeypatch, mode):
    small = Image.fromarray(noise(1)[0].numpy()).resize(
        (64, 48), Image.Resampling.BICUBIC
    )
    photo = small.resize((2048, 1536), Image.Resampling.BICUBIC).convert(mode)
    photo.save(tmp_path / "photo.jpg", quality=95)
    photo.save(tmp_path / "photo.tif")  # read whole
    decoded, upright = [], folders.turn_upright

    def note(file):
        decoded.append(file.size)
        return upright(file)

    monkeypatch.setattr(folders, "turn_upright", note)
    read, whole = (read_image(tmp_path / f"photo.{kind}") for kind in ("jpg", "tif"))
    assert np.abs(read.astype(int) - whole).mean() < 2
    assert decoded == [(256, 192), (2048, 1536)]


def test_one_name_of_a_class_written_in_two_ways(tmp_path):
    for part, form in (("train", "NFC"), ("test", "NFD")):
        for number, name in enumerate(
            ("gb", "g\u00e2t\u00e9")
        ):  # apart, it comes first
            folder = tmp_path / part / unicodedata.normalize(form, name)
            save_images(folder, ["a.png"] * (number + 1))
    splits, classes = load_splits("folder", tmp_path)
    assert classes == ["gb", "g\u00e2t\u00e9"]
    for images, labels in splits.values():
        assert images[:, 0, 0, 0].tolist() == [0, 9]
        assert labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda x, y, c: (x, y + 1, c),
            "from 1 to 10, and not whole numbers from 0 to 9",
        ),
        (lambda x, y, c: (x.transpose(0, 3, 1, 2), y, c), "(1437, 3, 32, 32)"),
        (lambda x, y, c: (x[..., 0], y, c), "(1437, 32, 32)"),
        (lambda x, y, c: (x / 255, y, c), "float64, and not uint8"),
        (lambda x, y, c: (x, y[:-1], c), "1437 images and labels of (1436,)"),
        (lambda x, y, c: (x[:0], y[:0], c), "no images"),
        (lambda x, y, c: (x, y * 0.5, c), "float64"),
        (lambda x, y, c: (x, 0 * y, c[:1]), "it has 1 classes"),
        (lambda x, y, c: (x, y, range(10)), "not all texts"),
        (lambda x, y, c: x, "too many values"),
        (lambda x, y, c: (x, y, ["a"] * 10), "the same name"),
        (lambda x, y, c: (x, y, c["names"]), "TypeError"),
        (lambda x, y, c: os.listdir("/nothing there"), "FileNotFoundError"),
    ],
)
def test_what_a_function_of_ones_own_returns_is_checked(
    fails, monkeypatch, change, message
):
    def load_mine(data_dir, train):
        return change(*dataset.load_digits(data_dir, train))

    monkeypatch.setitem(DATASETS, "digits", DATASETS["digits"]._replace(load=load_mine))
    errors = fails(dataset.main, "--dataset", "digits")
    assert "load_mine" in errors
    assert message in errors


def test_the_classes_of_train_and_test_have_one_order(fails, monkeypatch):
    def load_mine(data_dir, train):
        images, labels, classes = dataset.load_digits(data_dir, train)
        return images, labels, classes if train else classes[::-1]

    monkeypatch.setitem(DATASETS, "digits", DATASETS["digits"]._replace(load=load_mine))
    errors = fails(dataset.main, "--dataset", "digits")
    assert "in another order: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9; 9, 8" in errors


def test_a_function_of_ones_own_may_return_a_view(monkeypatch):
    """Such as an array in the opposite order, which torch does not take."""

    def load_mine(data_dir, train):
        images, labels, classes = dataset.load_digits(data_dir, train)
        return images[::-1], labels[::-1], classes

    images, _, _ = load("digits", "data", True)
    monkeypatch.setitem(DATASETS, "digits", DATASETS["digits"]._replace(load=load_mine))
    assert torch.equal(load("digits", "data", True)[0].flip(0), images)


def test_a_server_that_never_answers_is_given_up(monkeypatch):
    waited = []

    def download(*_, **__):
        waited.append(socket.getdefaulttimeout())
        raise TimeoutError("timed out")

    with pytest.raises(UserError, match="timed out"):
        dataset.from_torchvision(download, "data", True, "put it there")
    assert waited == [60]
    assert socket.getdefaulttimeout() is None


def test_the_extracted_folder_itself_is_cifar10(archive):
    load("cifar10", archive.parent, train=True)
    inside = archive.parent / CIFAR10.base_folder
    assert load("cifar10", inside, train=False)[0].shape == (40, 32, 32, 3)
    assert not (inside / CIFAR10.base_folder).exists()


def test_cifar10_that_is_there_evaluates_what_its_copy_in_folders_trained(
    archive, call
):
    status, output, errors = call(evaluate.main, "--ckpt", PRETRAINED)
    assert status == 0, errors
    assert "on the 40 images of cifar10" in output


def test_patterns_are_expanded_where_the_shell_does_not(tmp_path):
    save_images(tmp_path, ["a.png", "b.png", "c.jpg"])
    files, _ = evaluate.find_images([tmp_path / "*.png"])
    assert [file.name for file in files] == ["a.png", "b.png"]
    save_images(tmp_path, ["d[1].png"])  # as browsers name a second download
    files, _ = evaluate.find_images([tmp_path / "d[1].png"])
    assert [file.name for file in files] == ["d[1].png"]


def test_picture_of_the_samples_has_one_row_per_class(monkeypatch):
    shown = []
    monkeypatch.setattr(dataset, "plot_images", lambda *plot: shown.append(plot))
    labels = torch.arange(300) % 30
    labels[labels == 3] = 4  # a class without images
    labels[labels == 5][:7] = 6
    names = [f"class {number}" for number in range(30)]
    dataset.plot_samples(noise(300), labels, names, "samples.png")
    images, titles, columns, _, _ = shown[0]
    assert columns == 8
    assert len(images) == len(titles) == 8 * 20  # twenty classes at most
    for row in range(20):
        cells, names_of_row = (part[8 * row : 8 * row + 8] for part in (images, titles))
        count = min(8, int((labels == row).sum()))
        assert [cell is None for cell in cells] == [False] * count + [True] * (
            8 - count
        )
        assert names_of_row[: max(1, count)] == [f"class {row}"] * max(1, count)


@pytest.mark.skipif(sys.platform != "linux", reason="others do not fork")
def test_workers_share_the_images():
    """Python 3.14 would start them anew, with a copy of the images in shared memory."""
    cpu = torch.device("cpu")
    loader = training_loader(augmented(), 8, 0, 1, cpu)
    assert loader.multiprocessing_context.get_start_method() == "fork"
    assert training_loader(augmented(), 8, 0, 0, cpu).multiprocessing_context is None


def test_batches_shuffle_and_leave_out_the_rest():
    batches = Batches(21, 8, seed=0)
    batches.epoch = 1
    (epoch, first), (_, second) = batches
    assert epoch == 1
    assert len(batches) == 2
    assert len({*first, *second}) == 16
    batches.epoch = 2
    assert next(iter(batches))[1] != first


def test_mean_and_std_are_exact():
    images = noise(50)
    mean, std = mean_and_std(images)
    pixels = images.numpy().reshape(-1, 3) / 255
    assert mean == pytest.approx(pixels.mean(0))
    assert std == pytest.approx(pixels.std(0))


def test_digits():
    images, labels, classes = load("digits", None, train=True)
    test_images, test_labels, _ = load("digits", None, train=False)
    assert images.shape == (1437, 32, 32, 3)
    assert test_images.shape == (360, 32, 32, 3)
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert classes == [str(digit) for digit in range(10)]
    assert test_labels.bincount().min() >= 35
    assert torch.equal(load("digits", None, train=True)[0], images)


def test_digits_are_those_of_scikit_learn():
    original = load_digits()
    parts = [load("digits", None, train) for train in (True, False)]
    images, labels = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    small = F.avg_pool2d(images[..., 0].double(), 4)
    for digit in range(10):
        ours = small[labels == digit].mean(0).ravel()
        theirs = original.images[original.target == digit].mean(0).ravel()
        assert np.corrcoef(ours, theirs)[0, 1] > 0.99


def test_folder(image_folder):
    splits, classes = load_splits("folder", image_folder)
    assert classes == ["chat gâté", "dog"]
    assert splits["train"][0].shape == (96, 32, 32, 3)
    assert splits["test"][1].tolist() == [0] * 16 + [1] * 16
    first = np.asarray(Image.open(image_folder / "train" / "dog" / "000.png"))
    assert np.array_equal(splits["train"][0][48], first)


def test_folder_resizes(image_folder):
    path = image_folder / "test" / "dog" / "000.png"
    Image.new("RGB", (200, 100), (10, 200, 30)).save(path)
    images, _, _ = load("folder", image_folder, train=False)
    assert images[16].reshape(-1, 3).unique(dim=0).tolist() == [[10, 200, 30]]


def test_a_photo_is_turned_upright(tmp_path):
    """Orientation 6: a camera held so that its picture has to be turned clockwise."""
    pixels = np.kron(noise(1)[0, :5, :4].numpy(), np.ones((8, 8, 1), np.uint8))
    taken = Image.fromarray(pixels)  # 32 wide, 40 high
    upright = Image.fromarray(np.rot90(pixels, -1))
    exif = Image.Exif()
    exif[0x0112] = 6
    taken.save(tmp_path / "taken.jpeg", exif=exif)
    upright.save(tmp_path / "upright.jpeg")
    turned = read_image(tmp_path / "taken.jpeg").astype(int)
    expected = read_image(tmp_path / "upright.jpeg")
    assert np.abs(turned - expected).mean() < 5  # JPEG is lossy


@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_is_turned_as_pillow_turns_it(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "taken.png"
    Image.fromarray(noise(1)[0].numpy()).save(path, exif=exif)
    with Image.open(path) as taken:
        expected = np.asarray(ImageOps.exif_transpose(taken))
    assert np.array_equal(read_image(path), expected)


def test_image_with_damaged_exif_data_is_read(tmp_path, recwarn):
    image = Image.fromarray(noise(1)[0].numpy())
    for number, exif in enumerate([b"no such thing", b"II*\0\xff\xff\xff\xff"]):
        path = tmp_path / f"{number}.png"
        image.save(path, exif=b"Exif\0\0" + exif)
        assert np.array_equal(read_image(path), image)
    assert not recwarn.list


@pytest.mark.parametrize("turned", [False, True])
def test_image_is_cropped_around_its_middle(tmp_path, turned):
    pixels = np.zeros((32, 60, 3), np.uint8)
    pixels[:] = (200, 0, 0)
    pixels[:, 14:46] = noise(1)[0]
    middle = noise(1)[0].numpy()
    if turned:
        pixels, middle = np.rot90(pixels), np.rot90(middle)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    assert np.array_equal(read_image(tmp_path / "image.png"), middle)


def test_nothing_of_a_square_image_is_cropped(tmp_path):
    image = Image.fromarray(noise(1)[0].numpy()).resize((97, 97))
    image.save(tmp_path / "image.png")
    expected = image.resize((32, 32), Image.Resampling.BICUBIC)
    assert np.array_equal(read_image(tmp_path / "image.png"), expected)


def test_larger_images_keep_their_detail(tmp_path):
    """Shrunk by read_image they are nearer to what they were grown from than by bilinear."""
    generator = np.random.default_rng(0)
    rough = generator.normal(0, 60, (40, 40, 3))
    pixels = cv2.GaussianBlur(rough, (0, 0), 0.7)[4:-4, 4:-4] + 128
    small = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    large = small.resize((256, 256), Image.Resampling.LANCZOS)
    large.save(tmp_path / "image.png")
    resize = v2.Resize((32, 32))  # as it comes: bilinear, with antialias
    bilinear = resize(v2.functional.pil_to_tensor(large)).permute(1, 2, 0).numpy()
    errors = []
    for shrunk in (read_image(tmp_path / "image.png"), bilinear):
        errors.append(np.square(shrunk.astype(float) - small).mean() ** 0.5)
    assert errors[0] < 0.7 * errors[1], errors


def refusal(path):
    """The error of a path that is no image, which must come at once."""
    folders.readable()  # imports Pillow's plugins, once
    start = time.process_time()  # whatever other programs do
    with pytest.raises(UserError) as error:
        read_image(path)
    assert time.process_time() - start < 1
    return str(error.value)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such pipes")
def test_pipe_and_device_are_refused_without_opening_them(tmp_path, monkeypatch):
    """Opening a pipe waits until another process writes to it."""
    monkeypatch.setattr(Image, "open", lambda path: pytest.fail(f"opened {path}"))
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", tmp_path / "link.png", Path("/dev/null")):
        message = refusal(path)
        assert str(path) in message
        assert "pipe or device" in message


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such pipes")
def test_pipe_among_the_images_of_a_folder_is_refused(
    call, fails, image_folder, monkeypatch
):
    os.mkfifo(image_folder / "train" / "dog" / "pipe.png")
    image = Image.new("RGB", (32, 32))
    monkeypatch.setattr(
        Image, "open", lambda *_, **__: image.copy()
    )  # or it might hang
    options = ["--dataset", "folder", "--data-dir", image_folder]
    assert "pipe.png" in fails(dataset.main, *options)
    (image_folder / "train" / "dog" / "pipe.png").unlink()
    os.mkfifo(image_folder / "train" / "dog" / "pipe")
    assert call(dataset.main, *options)[1].count("skipped 1: 1 no file") == 1


def test_folder_and_missing_file_are_refused(tmp_path):
    assert "is a folder" in refusal(tmp_path)
    assert "nothing.png" in refusal(tmp_path / "nothing.png")
    assert "null" in refusal("a\0b.png")


def test_validation_images_are_held_out(image_folder):
    splits, _ = load_splits("folder", image_folder, val_size=24)
    assert splits["val"][1].bincount().tolist() == [12, 12]
    assert len(splits["train"][1]) == 72
    everything = load("folder", image_folder, train=True)[0]
    parts = torch.cat([splits["train"][0], splits["val"][0]])
    assert sorted(map(hash, map(bytes, parts.numpy()))) == sorted(
        map(hash, map(bytes, everything.numpy()))
    )


@pytest.mark.parametrize("size", [1, 96, 1000])
def test_impossible_validation_size(image_folder, size):
    with pytest.raises(UserError, match="--val-size"):
        load_splits("folder", image_folder, val_size=size)


def test_folder_errors_name_what_is_wrong(fails, image_folder):
    options = ["-b", 16, "--dataset", "folder", "--data-dir"]
    assert "nowhere" in fails(train.main, *options, "nowhere")
    (image_folder.parent / "empty" / "train").mkdir(parents=True)
    assert "empty" in fails(train.main, *options, "empty")
    test = image_folder / "test"
    (test / "dog").rename(test / "wolf")
    errors = fails(train.main, *options, image_folder)
    assert "dog, wolf" in errors
    (test / "wolf").rename(test / "dog")

    broken = image_folder / "train" / "dog" / "broken.jpg"
    broken.write_bytes((image_folder / "train" / "dog" / "001.jpg").read_bytes()[:400])
    assert "broken.jpg" in fails(train.main, *options, image_folder)
    broken.write_bytes(b"no image")
    assert "broken.jpg" in fails(train.main, *options, image_folder)
    broken.unlink()

    (image_folder / "train" / "empty").mkdir()
    assert "empty" in fails(train.main, *options, image_folder)
    (image_folder / "train" / "empty").rmdir()

    if sys.platform == "linux":  # where a name may be any bytes
        (image_folder / "train" / "dog").rename(image_folder / "train" / "d\udce9")
        assert "does not print" in fails(train.main, *options, image_folder)
        (image_folder / "train" / "d\udce9").rename(image_folder / "train" / "dog")

    (image_folder / "train" / "dog").rename(image_folder / "dogs")
    assert "one class" in fails(train.main, *options, image_folder)


CIFAR_NAMES = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]


def write_pickle(path, content):
    """Pickle into a file, and return its digest."""
    path.write_bytes(pickle.dumps(content))
    return md5(path.read_bytes()).hexdigest()


def make_archive(source, tmp_path, monkeypatch, label_key, names):
    """A small archive in the format of a torchvision class, its digests put in place.

    Each image is of its label's grey, so that order and layout can be checked.
    """
    monkeypatch.setattr(source, "url", f"http://127.0.0.1:9/{source.filename}")
    folder = tmp_path / "source" / source.base_folder
    folder.mkdir(parents=True)
    labels = np.repeat(np.arange(len(names)), 4).tolist()
    pixels = np.repeat(np.array(labels, np.uint8)[:, np.newaxis] * 2, 3072, axis=1)
    pixels[:, 1024:2048] += 1  # green
    batch = {"data": pixels, label_key: labels}
    for part in ("train_list", "test_list"):
        files = []
        for name, _ in getattr(source, part):
            files.append([name, write_pickle(folder / name, batch)])
        monkeypatch.setattr(source, part, files)
    content = {source.meta["key"]: names}
    digest = write_pickle(folder / source.meta["filename"], content)
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": digest})
    path = tmp_path / "data" / source.filename
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, source.base_folder)
    monkeypatch.setattr(source, "tgz_md5", md5(path.read_bytes()).hexdigest())
    return path


@pytest.fixture
def archive(tmp_path, monkeypatch):
    return make_archive(CIFAR10, tmp_path, monkeypatch, "labels", CIFAR_NAMES)


def test_cifar10_in_torchvisions_format(archive, call):
    images, labels, classes = load("cifar10", archive.parent, train=True)
    assert classes == CIFAR_NAMES
    assert images.shape == (200, 32, 32, 3)
    assert torch.equal(images[:, 5, 7, 0], (labels * 2).byte())
    assert torch.equal(images[:, 5, 7, 1], (labels * 2 + 1).byte())
    status, output, _ = call(train.main, "--epochs", 1, "-b", 50, "-j", 0)
    assert status == 0
    assert "cifar10: 200 train, 40 test images" in output


def test_cifar10_with_a_wrong_digest_is_not_read(archive, fails):
    archive.write_bytes(archive.read_bytes()[:-100])
    assert CIFAR10.filename in fails(train.main)


def test_cifar10_without_network(monkeypatch, fails):
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    Path("data").mkdir()  # torchvision would
    (Path("data") / "cifar-10-python (1).tar.gz").touch()
    errors = fails(train.main)
    assert "data, which holds cifar-10-python (1).tar.gz, and" in errors
    remedy = (
        "put cifar-10-python.tar.gz there, of just this name, or cifar-10-batches-py/"
    )
    for words in (remedy, "--dataset folder", "make demo"):
        assert words in errors


def test_a_mac_without_certificates_is_told_what_to_run(monkeypatch):
    def source(*_, **__):
        raise URLError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")

    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(
        UserError, match="run 'Install Certificates.command' .*, or put"
    ):
        dataset.from_torchvision(source, "data", True, "put it there")


def test_make_train_without_network_shows_the_demonstration(monkeypatch, call):
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    run_demo = demo.main
    options = ["--arch", "small", "--epochs", "1", "-j", "0"]
    monkeypatch.setattr(demo, "main", lambda _: run_demo(options))
    Path("best.pt").write_text("of another training")
    status, output, errors = call(train_or_demo.main, "--epochs", 40)
    assert status == 0
    assert errors == ""
    boxes = [line for line in output.splitlines() if line.startswith("+--")]
    assert len(boxes) == 4
    assert output.lstrip().startswith(boxes[0])
    assert output.rstrip().endswith(boxes[0])
    assert output.count("NOT TRAINED: no intact CIFAR10 in data") == 2
    assert Path("best.pt").read_text() == "of another training"
    assert not Path("last.pt").exists()
    command = output.split('make evaluate ARGS="')[1].split('"')[0]
    status, output, _ = call(evaluate.main, *command.split())
    assert status == 0
    assert "on the 360 images of digits" in output


def test_demonstration_evaluates_what_it_trained(monkeypatch, call):
    monkeypatch.setattr(demo, "evaluate", None)  # nothing to evaluate
    for option in (["--dry-run"], ["--dry"], ["--seeds", 2, "--dry-run"]):
        assert call(demo.main, *option, "--arch", "small", "-j", 0)[0] == 0
    monkeypatch.setattr(demo.train, "main", lambda _: 0)
    assert call(demo.main, "--seeds", 2)[0] == 0  # each seed has a folder of its own


def test_demonstration_may_have_another_name(monkeypatch, call):
    given = []
    monkeypatch.setattr(demo.train, "main", lambda _: 0)
    monkeypatch.setattr(
        demo.evaluate, "main", lambda options: given.append(options) or 0
    )
    for name in ([], ["--name", "mine"]):
        assert call(demo.main, *name)[0] == 0
    for name, options in zip(("demo", "mine"), given, strict=True):
        folder = f"results/{name}"  # on Windows too
        assert options[:4] == ["--ckpt", f"{folder}/best.pt", "--out", folder]


def test_demonstration_evaluates_as_it_trained(monkeypatch, call):
    given = []
    monkeypatch.setattr(demo.train, "main", lambda _: 0)
    monkeypatch.setattr(demo.evaluate, "main", given.extend)
    options = ["--device", "cpu", "--amp", "off", "--rules", "off"]
    call(demo.main, *options)
    assert {"--device=cpu", "--amp=off", "--rules=off"} <= set(given)


def test_seeds_without_network_show_the_demonstration_too(monkeypatch, call):
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    monkeypatch.setattr(demo, "main", lambda _: 0)
    status, output, _ = call(train_or_demo.main, "--seeds", 2)
    assert status == 0
    assert output.count("NOT TRAINED: no intact CIFAR10 in data") == 2


def test_make_train_hides_no_other_error(fails):
    assert "no images in" in fails(train_or_demo.main, "--dataset", "folder")
    Path("file").touch()
    errors = fails(train_or_demo.main, "--data-dir", "file")
    assert "CIFAR10 cannot be kept in file" in errors


def test_the_augmentation_has_its_defaults_in_one_place():
    parameters = inspect.signature(augmentation).parameters.values()
    assert all(one.default is inspect.Parameter.empty for one in parameters)
    args, _ = train.parse_arguments([])
    assert (args.move, args.hole) == (dataset.MOVE, dataset.HOLE)


@pytest.mark.skipif(os.name == "nt", reason="Windows has one place for it")
@pytest.mark.parametrize(
    ("platform", "given", "parent"),
    [
        ("linux", "/somewhere", "/somewhere"),
        ("linux", "not/absolute", "~/.cache"),  # which the XDG specification ignores
        ("linux", "", "~/.cache"),
        ("darwin", "/somewhere", "~/Library/Caches"),
    ],
)
def test_the_cache_is_where_the_system_keeps_it(monkeypatch, platform, given, parent):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv("XDG_CACHE_HOME", given)
    assert folders.cache_folder().parent == Path(parent).expanduser()


@pytest.fixture
def reading(tmp_path, monkeypatch, capsys):
    """Reads a folder of six pictures as if it were a large one; of each: its first pixel.

    Gives a function that returns the pixels, and whether they came from the cache.
    """
    monkeypatch.setattr(folders, "KEPT_FROM", 6)
    monkeypatch.setattr(folders, "cache_folder", lambda: tmp_path / "cache")
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 10)  # long after their change
    for number in range(6):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (number, 0, 0)).save(path)

    def reading(folder=tmp_path / "images"):
        capsys.readouterr()
        images, _, _ = folders.read_listing(folders.list_images(folder))
        return images[
            :, 0, 0, 0
        ].tolist(), "as decoded before" in capsys.readouterr().out

    return reading


def test_a_large_folder_is_decoded_once(reading, monkeypatch):
    first = reading()
    assert first == ([0, 2, 4, 1, 3, 5], False)
    monkeypatch.setattr(folders, "read_image", lambda *_: pytest.fail("decoded again"))
    assert reading() == (first[0], True)


def recolour(folder):
    """Another picture of the same size and time of change, in the place of one."""
    path = folder / "a" / "2.bmp"
    times = path.stat()
    time.sleep(0.02)  # for the time of change of its entry, which is of whole ticks
    Image.new("RGB", (32, 32), (9, 0, 0)).save(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


CHANGES = {
    "another picture": (recolour, [0, 9, 4, 1, 3, 5]),
    "a name": (
        lambda f: (f / "a" / "0.bmp").rename(f / "a" / "7.bmp"),
        [2, 4, 0, 1, 3, 5],
    ),
    "one more": (
        lambda f: shutil.copy(f / "a" / "0.bmp", f / "b"),
        [0, 2, 4, 0, 1, 3, 5],
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_cache_is_never_stale(reading, tmp_path, change):
    if change == "another picture" and os.name == "nt":
        pytest.skip("Windows keeps no time at which a file's entry changed")
    reading()
    make, expected = CHANGES[change]
    make(tmp_path / "images")
    assert reading() == (expected, False)
    assert reading() == (expected, True)


def test_the_cache_is_of_this_code(reading, tmp_path, monkeypatch):
    before, _ = reading()
    edited = tmp_path / "folders.py"
    edited.write_bytes(Path(folders.__file__).read_bytes() + b"# edited")
    monkeypatch.setattr(folders, "__file__", str(edited))
    assert reading() == (before, False)
    monkeypatch.setattr(folders, "SIDE", 16)
    assert reading() == (before, False)
    monkeypatch.setattr(Image, "__version__", "another")
    assert reading() == (before, False)


DAMAGES = {
    "cut": lambda content: content[:-900],
    "empty": lambda content: b"",
    "pixel": lambda content: content[:9000] + b"\x55" + content[9001:],
    # One byte of its header: NumPy would read other pixels and check no sum.
    "shape": lambda content: content.replace(b"(6, 32, 32, 3)", b"(6, 32, 32, 2)"),
    "start": lambda content: content.replace(b"NUMPY\x01\x00v", b"NUMPY\x01\x00r"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_none(reading, tmp_path, damage):
    before, _ = reading()
    (cache,) = (tmp_path / "cache").iterdir()
    content = cache.read_bytes()
    assert DAMAGES[damage](content) != content
    cache.write_bytes(DAMAGES[damage](content))
    assert reading() == (before, False)
    assert reading() == (before, True)


def test_what_just_changed_is_not_kept(reading, monkeypatch):
    """Another change may come within the same tick of the clock."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 10)
    assert not reading()[1]
    assert not reading()[1]


def test_the_cache_keeps_few_files_and_may_not_be_there(reading, tmp_path, monkeypatch):
    for number in range(6):
        image = Image.new("RGB", (32, 32), (50 + number, 0, 0))
        time.sleep(0.02)  # the times of files go by ticks
        image.save(tmp_path / "images" / "a" / "2.bmp")
        reading()
        (tmp_path / "cache" / f"{number}.npz.999999.tmp").touch()  # as of a kill
    assert len(list((tmp_path / "cache").iterdir())) == folders.KEPT + 1 == 5
    assert len(list((tmp_path / "cache").glob("*.npz"))) > 1
    monkeypatch.setattr(folders, "cache_folder", lambda: tmp_path / "images/a/2.bmp")
    assert reading() == ([0, 55, 4, 1, 3, 5], False)


def test_cifar100_in_torchvisions_format(tmp_path, monkeypatch, fails):
    names = [f"fine {number}" for number in range(100)]
    path = make_archive(CIFAR100, tmp_path, monkeypatch, "fine_labels", names)
    splits, classes = load_splits("cifar100", path.parent)
    assert classes == names
    for images, labels in splits.values():
        assert images.shape == (400, 32, 32, 3)
        assert labels.bincount().tolist() == [4] * 100
        assert torch.equal(images[:, 5, 7, 0], (labels * 2).byte())
        assert torch.equal(images[:, 5, 7, 1], (labels * 2 + 1).byte())

    (path.parent / CIFAR100.base_folder / "train").unlink()
    path.write_bytes(path.read_bytes()[:-100])
    errors = fails(dataset.main, "--dataset", "cifar100")
    assert "no intact CIFAR100" in errors
    assert CIFAR100.filename in errors


def write_idx(path, values):
    """Bytes of any shape, in the format of MNIST's files, compressed."""
    header = bytes([0, 0, 8, values.ndim])  # 8: unsigned bytes
    for length in values.shape:
        header += length.to_bytes(4, "big")
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))
    return path.name, md5(path.read_bytes()).hexdigest()


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    """The folder of MNIST's four archives, small; and no mirror to have others from."""
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    folder = tmp_path / "data" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    files = []
    for part, count in (("train", 60), ("t10k", 20)):
        images = noise(count)[:, :28, :28, 0].numpy()
        labels = np.arange(count) % 10
        images[:, 0, 0] = labels
        files.append(write_idx(folder / f"{part}-images-idx3-ubyte.gz", images))
        files.append(write_idx(folder / f"{part}-labels-idx1-ubyte.gz", labels))
    monkeypatch.setattr(MNIST, "resources", files)
    return folder


def test_mnist_in_torchvisions_format(mnist, call):
    splits, classes = load_splits("mnist", mnist.parent.parent)
    assert classes == list("0123456789")
    for name, count in (("train", 60), ("test", 20)):
        images, labels = splits[name]
        assert images.shape == (count, 32, 32, 3)
        assert images.dtype == torch.uint8
        assert labels.dtype == torch.int64
        assert labels.tolist() == [number % 10 for number in range(count)]
        inside = images[:, 2:30, 2:30]
        assert torch.equal(inside[:, 0, 0, 0], labels.byte())
        assert torch.equal(inside[:, 1:, 1:, 0], noise(count)[:, 1:28, 1:28, 0])
        assert torch.equal(images[..., 0], images[..., 1])
        assert torch.equal(images[..., 0], images[..., 2])
        assert images.long().sum() == inside.long().sum()  # the margin is black
    status, output, _ = call(dataset.main, "--dataset", "mnist")
    assert status == 0
    assert ["all", "60", "20"] in [line.split() for line in output.splitlines()]


@pytest.mark.parametrize("number", range(4))
def test_mnist_with_a_damaged_archive_is_not_read(mnist, number):
    name = MNIST.resources[number][0]
    content = bytearray((mnist / name).read_bytes())
    content[len(content) // 2] ^= 1
    (mnist / name).write_bytes(content)
    with pytest.raises(UserError, match="no intact MNIST") as error:
        load("mnist", mnist.parent.parent, train=True)
    assert f"Error downloading {name}" in str(error.value)  # it was not taken
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [0, 3, 10, 20])
def test_mnist_with_a_damaged_unpacked_file_is_one_error(mnist, fails, size):
    load("mnist", mnist.parent.parent, train=True)
    path = mnist / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:size])
    errors = fails(dataset.main, "--dataset", "mnist")
    assert "no intact MNIST" in errors
    assert "train-images-idx3-ubyte.gz" in errors


def test_mnist_without_network(monkeypatch, fails):
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    Path("data/MNIST/raw").mkdir(parents=True)  # torchvision would
    errors = fails(dataset.main, "--dataset", "mnist")
    assert "t10k-labels-idx1-ubyte.gz" in errors
    assert "make demo" in errors
