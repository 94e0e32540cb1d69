"""Images from every source, and what the augmentation does to them."""

import os
import pickle
import sys
import tarfile
from hashlib import md5
from pathlib import Path

import albumentations as A
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, run_script
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10

import train
from dataset import (
    AugmentedImages,
    Batches,
    augmentation,
    load,
    load_splits,
    mean_and_std,
    training_loader,
)
from utils import UserError

MEAN = (0.4914, 0.4822, 0.4465)
FILL = (125, 123, 114)  # MEAN on the scale of the image


def noise(count):
    generator = torch.Generator().manual_seed(0)
    shape = (count, 32, 32, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def augmented(count=32, seed=0):
    """A data set of noise, in which any two augmented images differ."""
    return AugmentedImages(noise(count), torch.arange(count), augmentation(MEAN), seed)


def test_import_is_silent_and_asks_no_network():
    script = (
        "import socket\n"
        "def refuse(*_): raise SystemExit('asked the network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "import dataset; dataset.augmentation((0.5, 0.5, 0.5))\n"
    )
    result = run_script(ROOT, "-c", script)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_augmentation_is_the_assignments():
    flip, moves, hole = augmentation(MEAN).transforms
    assert isinstance(flip, A.HorizontalFlip)
    assert isinstance(moves, A.ShiftScaleRotate)
    assert isinstance(hole, A.CoarseDropout)
    assert hole.num_holes_range == (1, 1)
    assert hole.hole_height_range == hole.hole_width_range == (16, 16)
    assert hole.fill == FILL
    assert augmentation(MEAN, flip=False).transforms[0].p == 0


def test_hole_is_one_block_of_the_mean():
    images = np.full((200, 32, 32, 3), 255, np.uint8)
    steps = augmentation(MEAN, hole=0.3)
    data = AugmentedImages(torch.from_numpy(images), None, steps, 0)
    holes = 0
    for image in data.augment(1, range(200)):
        is_hole = (image != 255).any(-1)  # white stays white under the other two
        if is_hole.any():
            holes += 1
            rows, columns = is_hole.any(1).nonzero()[0], is_hole.any(0).nonzero()[0]
            assert rows[-1] - rows[0] == columns[-1] - columns[0] == 15
            assert is_hole.sum() == 256
            assert (image[is_hole] == FILL).all()
    assert 30 < holes < 90  # of 200, one in 0.3


def test_each_step_strikes_by_itself():
    """Shared generators make steps strike together; here each pair is independent."""
    ramp = np.zeros((32, 32, 3), np.uint8)
    ramp[:, :16] = 200  # dark and light: a flip swaps the halves
    images = torch.from_numpy(ramp).expand(2000, 32, 32, 3)
    data = AugmentedImages(images, None, augmentation(MEAN, hole=0.3), 0)
    results = [*data.augment(1, range(2000))]
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
    ("workers", "context"), [(1, "fork"), (2, "fork"), (2, "spawn")]
)
def test_workers_change_nothing(workers, context):
    if context == "fork" and sys.platform == "win32":
        pytest.skip("Windows cannot fork")
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
        (2, 1, "cuda", 1),
        (64, 1, "cuda", 8),
        (64, 8, "cuda", 6),
    ],
)
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_by_cores(monkeypatch, cores, processes, device, workers):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    loader = training_loader(augmented(), 8, 0, None, torch.device(device))
    assert loader.num_workers == workers
    assert loader.pin_memory == (device == "cuda")


def test_workers_do_not_outlive_a_script_that_holds_its_loader():
    script = (
        "import multiprocessing.process as p, time, torch; from test_dataset import *\n"
        "kill = p.BaseProcess.kill\n"  # slow, so that the death of one is heard first
        "p.BaseProcess.kill = lambda self: (kill(self), time.sleep(0.3))\n"
        "loader = training_loader(augmented(), 8, 0, 2, torch.device('cpu'))\n"
        "held = iter(loader); next(held); print(*(w.pid for w in held._workers))\n"
    )
    result = run_script(ROOT, "-c", script, path=ROOT / "tests", timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    for pid in result.stdout.split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


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
    data = AugmentedImages(images, None, augmentation(MEAN, move=0.5), 0)
    moved = [*data.augment(1, range(500)), *data.augment(2, range(500))]
    # Half are shifted, scaled and turned, each by its own amounts; the others are
    # one of two flips, with or without one of 17 x 17 holes.
    assert len({image.tobytes() for image in moved}) > 500


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
    options = ["--dataset", "folder", "--data-dir"]
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


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A small archive in CIFAR-10's own format, with its digests put in place.

    Each image is of its label's grey, so that order and layout can be checked.
    """
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    source = tmp_path / "source" / CIFAR10.base_folder
    source.mkdir(parents=True)

    def write(name, content):
        (source / name).write_bytes(pickle.dumps(content))
        return md5((source / name).read_bytes()).hexdigest()

    labels = [label for label in range(10) for _ in range(4)]
    pixels = np.repeat(np.array(labels, np.uint8)[:, None] * 25, 3072, axis=1)
    pixels[:, 1024:2048] += 1  # green
    batch = {"data": pixels, "labels": labels}
    names = [f"data_batch_{number}" for number in range(1, 6)]
    lists = {
        "train_list": [[name, write(name, batch)] for name in names],
        "test_list": [["test_batch", write("test_batch", batch)]],
        "meta": {
            **CIFAR10.meta,
            "md5": write("batches.meta", {"label_names": CIFAR_NAMES}),
        },
    }
    path = tmp_path / "data" / CIFAR10.filename
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as tar:
        tar.add(source, CIFAR10.base_folder)
    lists["tgz_md5"] = md5(path.read_bytes()).hexdigest()
    for name, value in lists.items():
        monkeypatch.setattr(CIFAR10, name, value)
    return path


def test_cifar10_in_torchvisions_format(archive, call):
    images, labels, classes = load("cifar10", archive.parent, train=True)
    assert classes == CIFAR_NAMES
    assert images.shape == (200, 32, 32, 3)
    assert torch.equal(images[:, 5, 7, 0], (labels * 25).byte())
    assert torch.equal(images[:, 5, 7, 1], (labels * 25 + 1).byte())
    status, output, _ = call(train.main, "--epochs", 1, "-b", 50, "-j", 0)
    assert status == 0
    assert "cifar10: 200 train, 40 test images" in output


def test_cifar10_with_a_wrong_digest_is_not_read(archive, fails):
    archive.write_bytes(archive.read_bytes()[:-100])
    assert CIFAR10.filename in fails(train.main)


def test_cifar10_without_network(monkeypatch, fails):
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    Path("data").mkdir()  # torchvision would
    errors = fails(train.main)
    for word in ("cifar-10-python.tar.gz", "--dataset folder", "--dataset digits"):
        assert word in errors
