"""Training on a GPU: gradients, precisions, exact resuming, the compiler, and torchrun.

All other tests run on the CPU, also where there is a GPU. These need an NVIDIA one.
"""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import HAS_GPU, PATH, ROOT, TRAIN, gpu_environment, run_script

from checkpoint import load_checkpoint
from model import ARCHS, build

pytestmark = pytest.mark.skipif(not HAS_GPU, reason="there is no NVIDIA GPU here")
OPTIONS = ["--arch", "small", "--dataset", "digits", "--epochs", "8", "-b", "64"]
OPTIONS += ["--lr", "0.3", "--muon-lr", "0.03"]


def train_on_gpu(folder, *options, start=TRAIN):
    """Train on the digits in a folder of its own; returns the line `device`."""
    folder.mkdir(exist_ok=True)
    result = run_script(folder, *start, *OPTIONS, *options, path=PATH, on_gpu=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    (line,) = re.findall(r"^device .*$", result.stdout, re.MULTILINE)
    assert "cpu" not in line
    return line


def last_accuracy(folder):
    with open(folder / "results" / "history.csv") as file:
        return float(list(csv.DictReader(file))[-1]["test_accuracy"])


def compare_gradients(arch):
    """Compare scores and gradients on GPU and CPU, in double precision, as TF32 is coarse.

    It runs in a process that sees the GPU.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (16, 3, 32, 32), generator=generator)
    labels = torch.arange(16) % 10
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        net = build(arch, "dilated", "batch", dropout=0.0).double().to(device)
        scores = net(images.double().to(device))
        F.cross_entropy(scores, labels.to(device)).backward()
        gradients = [weight.grad.cpu() for weight in net.parameters()]
        found.append([scores.detach().cpu(), *gradients])
    on_cpu, on_gpu = found
    assert on_cpu[0].dtype == torch.float64
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("arch", ARCHS)
def test_gradients_are_those_of_the_cpu(tmp_path, arch):
    code = f"import test_cuda; test_cuda.compare_gradients({arch!r})"
    result = run_script(tmp_path, "-c", code, path=PATH, on_gpu=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("amp", "precision"),
    [
        ("auto", "float16"),  # or bfloat16, by the GPU
        ("off", "float32"),
        ("float16", " float16"),
    ],
)
def test_training_learns_in_each_precision(tmp_path, amp, precision):
    """Of float16, which a T4 computes in, the gradients are scaled."""
    assert precision in train_on_gpu(tmp_path, "--amp", amp)
    accuracy = last_accuracy(tmp_path)
    assert accuracy > 0.9
    for on_gpu in (True, False):  # the checkpoint is of no device
        evaluate = [ROOT / "evaluate.py", "--ckpt", "last.pt", "--json", "figures.json"]
        result = run_script(tmp_path, *evaluate, on_gpu=on_gpu)
        assert result.returncode == 0, result.stderr
        figures = json.loads((tmp_path / "figures.json").read_text())
        assert figures["accuracy"] == pytest.approx(accuracy, abs=0.02)


def test_a_cuda_graph_trains_like_single_steps(tmp_path):
    found = []
    for choice, said in (("auto", True), ("off", False)):
        folder, options = tmp_path / choice, ["--amp", "off", "--cuda-graph", choice]
        assert (", a CUDA graph a step" in train_on_gpu(folder, *options)) == said
        run = json.loads((folder / "results" / "run.json").read_text())
        assert run["made_with"]["cuda_graph"] == said  # still so after the last epoch
        with open(folder / "results" / "history.csv") as file:
            found.append(list(csv.DictReader(file)))
    for replayed, single in zip(*found, strict=True):
        loss = float(single["train_loss"])
        assert float(replayed["train_loss"]) == pytest.approx(loss, rel=0.03)
        assert replayed["lr"] == single["lr"]
    assert last_accuracy(tmp_path / "auto") > 0.9


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send Ctrl-C to one process")
def test_resume_of_a_deterministic_training_is_exact(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train_on_gpu(whole, "--deterministic")
    stopped.mkdir()
    with subprocess.Popen(
        [sys.executable, "-u", *TRAIN, *OPTIONS, "--deterministic"],
        cwd=stopped,
        stdout=subprocess.PIPE,
        text=True,
        env=gpu_environment() | {"PYTHONPATH": PATH},
    ) as process:
        for line in process.stdout:
            if line.startswith("epoch 3/8"):
                process.send_signal(signal.SIGINT)
    assert process.returncode == 130
    resume = [*TRAIN, "--resume", "last.pt"]
    result = run_script(stopped, *resume, path=PATH, on_gpu=True)
    assert result.returncode == 0, result.stderr
    before, after = (load_checkpoint(path / "last.pt") for path in (whole, stopped))
    for name, weight in before["weights"].items():
        assert torch.equal(weight, after["weights"][name]), name


@pytest.mark.skipif(not shutil.which("gcc"), reason="there is no compiler here")
def test_compiled_training_learns(tmp_path):
    assert ", compiled" in train_on_gpu(tmp_path, "--compile", "on")
    run = json.loads((tmp_path / "results" / "run.json").read_text())
    assert run["made_with"]["cuda_graph"]
    assert last_accuracy(tmp_path) > 0.9


def test_process_of_torchrun_learns(tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "start.py").write_text("import nets, train, utils; utils.run(train.main)")
    train_on_gpu(tmp_path, start=[*torchrun, folder / "start.py"])
    assert last_accuracy(tmp_path) > 0.9
