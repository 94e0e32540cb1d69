"""What the tests share: the scripts called as a user does, and small data sets."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import nets  # noqa: F401 - adds the tests' own networks to ARCHS

import utils
from machine import has_nvidia_gpu

GPUS = os.environ.get("CUDA_VISIBLE_DEVICES")  # for the tests that want one
HAS_GPU = has_nvidia_gpu() and torch.version.cuda is not None and GPUS not in ("", "-1")


def pytest_configure(config):
    # What the tests expect of a CPU, to the bit, they find on a machine with a GPU too.
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # Windows takes an empty one for none
    config.addinivalue_line("markers", "slow: left to `make test-all`")
    # Networks this small train as fast on one core, and much faster where others are busy:
    # here and in the processes that the tests start.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.pop("MAKELEVEL", None)  # what make runs says how to go on by make
    os.environ["PYTHON_COLORS"] = "0"  # or FORCE_COLOR paints help and tracebacks
    os.environ["no_proxy"] = "127.0.0.1"  # where the tests look for a server in vain


def pytest_collection_finish():
    # Each trace of a network looks for tensors among all objects: fewer are faster.
    gc.collect()
    gc.freeze()


def run_script(folder, *command, path="", timeout=600, on_gpu=False):
    """Run Python in a folder, in a process of its own, and wait for it."""
    return subprocess.run(
        [sys.executable, *map(str, command)],
        check=False,
        timeout=timeout,
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        env={
            **(gpu_environment() if on_gpu else os.environ),
            "PYTHONPATH": str(path),
            "PYTHONIOENCODING": "utf-8",
        },
    )


def gpu_environment():
    """The environment in which a process sees the GPUs, as the tests themselves do not."""
    environment = dict(os.environ)
    del environment["CUDA_VISIBLE_DEVICES"]
    if GPUS is not None:
        environment["CUDA_VISIBLE_DEVICES"] = GPUS
    return environment


# train.py with the tests' own networks, as the arguments of `run_script`.
TRAIN = ("-c", "import nets, train, utils; utils.run(train.main)")
PATH = os.pathsep.join([str(ROOT), str(ROOT / "tests")])


def run_train(folder, *options):
    """Run train.py in a folder, in a process of its own, with --arch small."""
    return run_script(folder, *TRAIN, "--arch", "small", *options, path=PATH)


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """Calls a script's main in an empty folder: (status, standard output, errors)."""
    monkeypatch.chdir(tmp_path)

    def call(main, *arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            utils.run(lambda: main([str(argument) for argument in arguments]))
        output = capsys.readouterr()
        return exit_info.value.code or 0, output.out, output.err

    return call


@pytest.fixture
def fails(call):
    """Calls a script that must end in status 2, one line of error and no new file."""

    def fails(main, *arguments):
        before = set(Path.cwd().rglob("*"))
        status, _, errors = call(main, *arguments)
        assert status == 2
        assert errors.count("\n") == 1
        assert errors.endswith("\n")
        assert "Traceback" not in errors
        assert set(Path.cwd().rglob("*")) == before
        return errors

    return fails


def draw_class(label, generator):
    """A 32x32 image that a network tells from other labels' within an epoch or two."""
    image = generator.integers(0, 80, (32, 32, 3), dtype=np.uint8)
    image[8 * (label % 4) : 8 * (label % 4) + 8, :, label % 3] += 150
    return image


@pytest.fixture
def image_folder(tmp_path):
    """train/ and test/ with two classes, a name with a space and an accent among them."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "images"
    for part, count in (("train", 48), ("test", 16)):
        for label, name in enumerate(["chat gâté", "dog"]):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                suffix = ("png", "jpg")[number % 2]
                image = Image.fromarray(draw_class(label, generator))
                image.save(folder / part / name / f"{number:03}.{suffix}")
    return folder
