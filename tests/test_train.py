"""Training and evaluation through the commands, on the digits and small folders."""

import csv
import errno
import itertools
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, run_script, run_train
from matplotlib.figure import Figure
from nets import OwnNet
from PIL import Image
from test_dataset import three_steps
from torch import nn

import compare
import engine
import evaluate
import train
import utils
from checkpoint import load_checkpoint, restore, save_checkpoint
from dataset import load
from machine import ALONE, World
from model import ARCHS, build
from optim import make_schedules, mixing_kernels
from receptive_field import computed_macs
from rules import GOAL, count_parameters

sys.path.insert(0, str(ROOT / "tools"))

import bench
import plot_cost
import published

RECIPE = ["--optimizer", "muon", "--lr", "0.3", "--muon-lr", "0.03", "--ema", "0.02"]
DIGITS = ["--dataset", "digits", "--arch", "small", "-j", "0", *RECIPE]
QUICK = [*DIGITS, "--epochs", "2"]


def flat(checkpoint):
    return torch.cat([w.double().ravel() for w in checkpoint["weights"].values()])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with what a training on the digits leaves, and what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    options = ["--dataset", "digits", "--epochs", "8", "-b", "64", *RECIPE]
    result = run_train(folder, *options)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return folder, result.stdout


def test_training_learns_and_says_what_it_does(trained):
    _, output = trained
    net = restore(load_checkpoint(trained[0] / "best.pt"))
    parameters = sum(weight.numel() for weight in net.parameters())
    for word in (f"{parameters:,} with 10 classes", "receptive field 51"):
        assert word in output
    for word in ("1,437 train", "360 test"):
        assert word in output
    versions = (torch.__version__, f"opencv {cv2.__version__}")
    for word in (*versions, "seed 0", "cpu", "chosen on the test images"):
        assert word in output
    kernels = mixing_kernels(net, net.body.o.conv.conv)
    muon = sum(kernel.numel() for kernel in kernels)
    (line,) = [line for line in output.splitlines() if line.startswith("weights")]
    assert f"{muon:,} weights in {len(kernels)} tensors by Muon" in line
    assert f"{parameters - muon:,} weights in " in line
    lines = [line for line in output.splitlines() if line.startswith("epoch")]
    assert len(lines) == 8
    accuracies = [float(re.findall(r"([\d.]+)%", line)[1]) for line in lines]
    assert max(accuracies) > 95
    best = 0
    for line, accuracy in zip(lines, accuracies):
        assert line.endswith("best") == (accuracy > best)
        best = max(best, accuracy)
    assert f"test accuracy {max(accuracies):.2f}% in best.pt" in output
    assert f"test accuracy {accuracies[-1]:.2f}% in last.pt" in output


def test_training_leaves_its_files(trained):
    folder, output = trained
    with open(folder / "results" / "history.csv") as file:
        history = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in history] == list(range(1, 9))
    for row in history:
        assert f"test loss {float(row['test_loss']):.4f}" in output
    with open(folder / "results" / "run.json") as file:
        assert len(json.load(file)["seconds"]) == 8
    for name in ("curves.png", "augmented.png"):
        assert (folder / "results" / name).read_bytes().startswith(b"\x89PNG")
    checkpoint = torch.load(folder / "best.pt", weights_only=True)
    best = max(history, key=lambda row: float(row["test_accuracy"]))
    assert checkpoint["epoch"] == int(best["epoch"])
    assert checkpoint["accuracy"] == float(best["test_accuracy"])
    assert checkpoint["args"]["dataset"] == "digits"
    pixels = load("digits", None, train=True)[0].double() / 255
    mean, std = pixels.mean((0, 1, 2)), pixels.std((0, 1, 2), correction=0)
    assert checkpoint["net"]["mean"] == pytest.approx(mean.tolist())
    assert checkpoint["net"]["std"] == pytest.approx(std.tolist())
    assert torch.load(folder / "last.pt", weights_only=True)["epoch"] == 8
    left = {path.name for path in folder.rglob("*")}
    pictures = {"history.csv", "run.json", "curves.png", "augmented.png"}
    assert left == {"best.pt", "last.pt", "results"} | pictures


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="closes streams by a shell of Unix")
@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_training_does_without_a_stream(tmp_path, closed):
    command = (
        f'"{sys.executable}" "{ROOT}/train.py" --dataset digits --dry-run {closed}'
    )
    result = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert ("nothing was written" in result.stdout) == (closed == "2>&-")


def test_the_pixels_of_a_training_may_be_made_on_the_device(call, monkeypatch):
    """With the same draws, in workers too: the first epochs differ by rounding alone."""
    monkeypatch.setattr(train, "augmentation", three_steps)
    losses = {}
    for name, options in (
        ("cpu", ["--augment", "cpu"]),
        ("device", ["--augment", "device"]),
        ("workers", ["--augment", "device", "-j", "2"]),
    ):
        status, output, _ = call(train.main, *QUICK, "--name", name, *options)
        assert status == 0
        assert (", augments there\n" in output) == (name != "cpu")
        with open(f"results/{name}/history.csv") as file:
            losses[name] = [float(row["train_loss"]) for row in csv.DictReader(file)]
    assert losses["device"] == losses["workers"] != losses["cpu"]
    assert losses["device"] == pytest.approx(losses["cpu"], rel=0.02)
    status, output, _ = call(
        train.main, "--resume", "results/cpu/last.pt", "--augment", "device"
    )
    assert status == 0
    assert "augmentation was on the CPU: weights may differ a little" in output


def test_evaluation_reports_the_same_figures(trained, call):
    folder, _ = trained
    status, output, _ = call(
        evaluate.main, "--ckpt", folder / "best.pt", "--json", "figures.json"
    )
    checkpoint = load_checkpoint(folder / "best.pt")
    with open("figures.json") as file:
        figures = json.load(file)
    assert status == 0
    assert figures["accuracy"] == checkpoint["accuracy"]
    accuracy = f"{checkpoint['accuracy']:.2%}"
    assert re.search(f" accuracy {accuracy}.*, on the 360", output)
    assert f"{accuracy} on digits" in output  # in the rule
    said = f"epoch {checkpoint['epoch']} of 8, seed 0; its best epoch is chosen on the test"
    assert said in output
    matrix = torch.tensor(figures["confusion_matrix"])
    _, labels, classes = load("digits", None, train=False)
    assert matrix.sum(1).tolist() == labels.bincount(minlength=10).tolist()
    for name, row, right in zip(classes, matrix, matrix.diag()):
        recall = figures["report"][name]["recall"]
        assert recall == pytest.approx((right / row.sum()).item())
    assert matrix.trace() / 360 == pytest.approx(checkpoint["accuracy"])
    assert figures["report"]["accuracy"] == pytest.approx(checkpoint["accuracy"])
    for word in ("precision", "macro avg", "Confusion matrix", "test accuracy of "):
        assert word in output
    for name in ("confusion_matrix.png", "misclassified.png"):
        with open(os.path.join("results", name), "rb") as file:
            assert file.read(4) == b"\x89PNG"


def test_evaluation_agrees_with_a_plain_loop(trained):
    folder, _ = trained
    checkpoint = load_checkpoint(folder / "best.pt")
    net = restore(checkpoint).eval()
    images, labels, _ = load("digits", None, train=False)
    right, loss = 0, 0.0
    with torch.no_grad():
        for image, label in zip(images, labels):
            scores = net(image.permute(2, 0, 1)[None].float())[0]
            right += int(scores.argmax() == label)
            loss -= math.log(scores.softmax(0)[label])
    scores = evaluate.predict(
        net, images, torch.device("cpu"), torch.float32, batch_size=77
    )
    figures = evaluate.measure(scores, labels)
    assert figures["accuracy"] == right / 360
    assert figures["loss"] == pytest.approx(loss / 360, rel=1e-4)


def test_the_average_is_what_is_tested_and_saved(call, monkeypatch):
    """Of the weights after each of five steps, by the formula: a fifth of each later one."""
    name, seen, step = "body.c1.conv.conv.weight", [], engine.Training.step

    def watched(training, images, labels):
        result = step(training, images, labels)
        seen.append(training.net.state_dict()[name].clone())
        return result

    monkeypatch.setattr(engine.Training, "step", watched)
    options = ["--epochs", 1, "-b", 256, "--ema", 1, "--amp", "off"]
    # The statistics of batch norm would blur what was learned.
    options += ["--norm", "group"]
    assert call(train.main, *DIGITS, *options)[0] == 0
    assert len(seen) == 5
    average = seen[0]
    for weight in seen[1:]:
        average = average + (weight - average) / 5
    for file in ("best.pt", "last.pt"):
        weights = load_checkpoint(file)["weights"]
        assert torch.allclose(weights[name], average, atol=1e-6)
    assert not torch.allclose(seen[-1], average, atol=1e-3)
    row, loss, _ = evaluated_by_hand(is_train=False)
    assert float(row["test_loss"]) == pytest.approx(loss, rel=1e-5)


def evaluated_by_hand(is_train):
    """Of a training of one epoch the row, and what last.pt's network loses and gets right."""
    images, labels, _ = load("digits", None, train=is_train)
    net = restore(load_checkpoint("last.pt")).eval()
    with torch.no_grad():
        scores = net(images.permute(0, 3, 1, 2))
    with open("results/history.csv") as file:
        (row,) = csv.DictReader(file)
    loss = nn.functional.cross_entropy(scores, labels).item()
    return row, loss, (scores.argmax(1) == labels).double().mean().item()


def test_training_metrics_are_those_of_a_plain_loop(call):
    """At rates of 0, without augmentation and batch statistics; 1,437 are 3 x 479 images."""
    options = ["--lr", 0, "--muon-lr", 0, "--move", 0, "--hole", 0, "--norm", "group"]
    options += ["--label-smoothing", 0, "--amp", "off", "--epochs", 1, "-b", 479]
    assert call(train.main, *DIGITS, *options)[0] == 0
    row, loss, right = evaluated_by_hand(is_train=True)
    assert float(row["train_loss"]) == pytest.approx(loss, rel=1e-4)
    assert float(row["train_accuracy"]) == pytest.approx(right, abs=0.002)


def test_the_options_of_the_augmentation_reach_it(call, monkeypatch):
    given = []

    def noted(*values):
        given.append(values)
        return three_steps(*values)

    monkeypatch.setattr(train, "augmentation", noted)
    options = ["--move", 0.3, "--hole", 0.2, "--mirror", "--dry-run", "-b", 128]
    assert call(train.main, *DIGITS, *options)[0] == 0
    ((mean, *rest),) = given
    assert rest == [True, 0.3, 0.2]
    pixels = load("digits", None, train=True)[0][:128].double() / 255  # of a dry run
    assert mean == pytest.approx(pixels.mean((0, 1, 2)).tolist())


def test_the_seed_is_that_of_order_augmentation_and_weights(call, monkeypatch):
    found, workers = [], []

    def look(training, loader, images, history, run, files):
        _, order = next(iter(loader.sampler))
        weight = next(training.net.parameters()).detach().numpy()
        augmented = loader.dataset.augment(1, range(64))
        found.append([np.array(order), augmented, weight])
        workers.append(loader.num_workers)
        return history, 0

    monkeypatch.setattr(train, "augmentation", three_steps)
    monkeypatch.setattr(train, "train_epochs", look)
    for seed in (0, 0, 1):
        options = ["--dry-run", "--seed", seed, "-j", seed]
        assert call(train.main, *DIGITS, *options)[0] == 0
    assert workers == [0, 0, 1]
    for one, again, other in zip(*found):
        assert np.array_equal(one, again)
        assert not np.array_equal(one, other)


def test_validation_chooses_without_the_test_set(call, monkeypatch):
    seen = []

    def predict(net, images, *rest, **settings):
        seen.append(len(images))
        return evaluate.predict(net, images, *rest, **settings)

    monkeypatch.setattr(train, "predict", predict)
    status, output, _ = call(train.main, *QUICK, "--val-size", 200)
    assert status == 0
    assert seen == [200, 200, 360]  # the test images once, after the last epoch
    assert "1,237 train, 360 test, 200 val" in output
    assert "chosen on the held-out images" in output
    assert "seen by nothing before" in output
    assert load_checkpoint("best.pt")["chosen_on"] == "val"


def test_dry_run_writes_nothing(call, tmp_path):
    status, output, _ = call(train.main, *QUICK, "--dry-run")
    assert status == 0
    assert "epoch 1/1" in output
    assert not list(tmp_path.iterdir())


def test_folder_of_other_classes(call, image_folder):
    options = ["--dataset", "folder", "--data-dir", image_folder, "-b", 16, "-j", 0]
    options += ["--arch", "small", "--epochs", 8, "--move", 0, "--hole", 0, *RECIPE]
    status, output, _ = call(train.main, *options)
    assert status == 0
    status, output, _ = call(evaluate.main)
    assert status == 0
    assert "chat gâté" in output
    assert re.search("accuracy 100.00%.*, on the 32", output)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["small", "own"])
def test_compiled_weights_keep_their_names(call, arch):
    options = [*QUICK, "--epochs", 1, "--arch", arch, "--compile", "on"]
    status, output, _ = call(train.main, *options)
    assert status == 0
    if "warning   not compiled" in output:
        pytest.skip("torch.compile finds no compiler here")
    assert "float32, compiled" in output or "bfloat16, compiled" in output
    names = restore(load_checkpoint("last.pt")).state_dict().keys()
    assert not any("_orig_mod" in name for name in names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "0"], "1 or more"),
        (["--epochs", "many"], "invalid int value"),
        (["-b", "0"], "1 or more"),
        (["-b", "2000"], "1437 images"),
        (["--lr", "-1"], "0 or more"),
        (["--lr", "nan"], "0 or more"),
        (["--label-smoothing", "2"], "0 to 1"),
        (["--dropout", "1"], "below 1"),
        (["-j", "-1"], "0 or more"),
        (["--seed", "4294967296"], "0 to 4294967295"),
        (["--seed", "4294967295", "--seeds", "2"], "0 to 4294967295"),
        (["--seeds", "2", "--find-lr"], "leave out --seeds"),
        (["--find-lr", "--lr", "0"], "give an --lr over 0"),
        (["--sync-bn"], "several processes on CUDA"),
        (["--val-size", "1437"], "--val-size"),
        (["--dataset", "imagenet"], "cifar10"),
        (["--arch", "resnet"], "reference"),
        (["--ckpt", "last.pt"], "last.pt"),
        (["--ckpt", "."], "folder"),
        (["--speed", "3"], "unrecognized"),
        (["--schedule", "linear"], "onecycle"),
        (["--init", "none.pt"], "no checkpoint"),
        (["--teacher", "none.pt"], "no checkpoint"),
        (["--name", "a", "--ckpt", "b.pt"], "leave out --ckpt"),
        (["--name", "a", "--out", "b"], "leave out --out"),
        (["--seeds", "2", "--ckpt", "b.pt"], "leave out --ckpt"),
        (["--freeze"], "name them with --init"),
    ],
)
def test_impossible_options(fails, options, message):
    assert message in fails(train.main, "--dataset", "digits", "-j", "0", *options)


def test_the_range_test_is_for_one_process(fails, monkeypatch):
    two = World(rank=0, size=2)
    monkeypatch.setattr(train, "join", lambda device: (two, device))
    assert "leave out torchrun" in fails(train.main, *QUICK, "--find-lr")


def test_missing_device(fails, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no cuda device" in fails(train.main, *QUICK, "--device", "cuda")
    assert "no cuda device" in fails(evaluate.main, "--device", "cuda")


def test_output_that_cannot_be_written(fails, tmp_path):
    (tmp_path / "file").write_text("")
    for option in ("--out", "--ckpt"):
        path = "file/below/best.pt"
        assert "cannot write" in fails(train.main, *QUICK, option, path)


def test_a_folder_that_may_not_be_looked_into(fails, monkeypatch):
    is_dir = Path.is_dir

    def of_python_before_3_14(path):
        if "locked" in path.parts:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", of_python_before_3_14)
    errors = fails(train.main, *QUICK, "--out", "locked")
    assert "no permission for locked" in errors


def test_full_disk_is_noticed_before_training(fails, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    assert "No space left" in fails(train.main, *QUICK)


def test_unusable_checkpoints(fails, trained, tmp_path):
    folder, _ = trained
    assert "no checkpoint nothing.pt" in fails(evaluate.main, "--ckpt", "nothing.pt")
    broken = tmp_path / "broken.pt"
    whole = (folder / "best.pt").read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2], whole[:-1]):
        broken.write_bytes(content)
        assert "broken.pt" in fails(evaluate.main, "--ckpt", broken)
    torch.save([1, 2], broken)
    assert "not a checkpoint of this version" in fails(evaluate.main, "--ckpt", broken)
    checkpoint = load_checkpoint(folder / "best.pt")
    save_checkpoint(broken, {**checkpoint, "weights": {}})
    assert "cannot be built" in fails(evaluate.main, "--ckpt", broken)
    assert "is a folder" in fails(evaluate.main, "--ckpt", tmp_path)


def test_checkpoint_of_other_classes(fails, trained, image_folder):
    folder, _ = trained
    data = ["--dataset", "folder", "--data-dir", image_folder]
    assert "dog" in fails(evaluate.main, "--ckpt", folder / "best.pt", *data)


def test_a_process_leaves_alone_what_another_one_writes(tmp_path):
    path = tmp_path / "best.pt"
    running = tmp_path / f"best.pt.{os.getpid()}.tmp"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = tmp_path / f"best.pt.{ended.pid}.tmp"
    foreign = [tmp_path / f"best.pt.{name}.tmp" for name in ("x", "²", 10**20)]
    for file in (running, left, *foreign):
        file.touch()
    utils.check_writable(path)
    kept = [left] * (os.name == "nt")  # where to ask for a process would end it
    assert sorted(tmp_path.iterdir()) == sorted([running, *foreign, *kept])


def test_two_writers_of_one_name_disturb_neither(tmp_path):
    script = (
        "import sys, utils\n"
        "for _ in range(300): utils.write_file('file', bytes(sys.argv[1], 'ascii') * 9999)"
    )
    command = [sys.executable, "-c", script]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    writers = [
        subprocess.Popen([*command, letter], cwd=tmp_path, env=environment)
        for letter in "ab"
    ]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(set((tmp_path / "file").read_bytes())) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    utils.write_file(path, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(utils.UserError, match="No space left"):
        utils.write_file(path, b"new")
    assert path.read_bytes() == b"old"
    monkeypatch.undo()
    utils.write_file(path, b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_scripts_report_errors_in_one_line(tmp_path):
    result = run_script(tmp_path, ROOT / "evaluate.py", "--ckpt", "none.pt")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("evaluate.py: error: no checkpoint none.pt")
    assert result.stderr.count("\n") == 1


@pytest.mark.slow
def test_bench_measures_every_part(call, monkeypatch):
    """On few images and uncompiled, where the figures mean nothing."""
    monkeypatch.setattr(bench, "COUNT", 256)
    monkeypatch.setattr(bench, "compile_where_it_pays", lambda *_: False)
    measured = bench.seconds
    once = lambda *functions, rounds=1: measured(*functions, rounds=1)
    monkeypatch.setattr(bench, "seconds", once)
    status, output, _ = call(bench.main)
    assert status == 0
    for name in (
        "ShiftScaleRotate",
        "the first three, seeded, an image at a time",
        "ours: the same pixels, a batch at a time",
        "1 workers",
        "float32, eager, contiguous",
        "published loop, reference network",
        "this loop, default network",
        "the fastest step above, measured again",
    ):
        (figure,) = re.findall(re.escape(name) + r"\W+([\d.,]+)", output)
        assert float(figure.replace(",", "")) > 0


def test_training_of_a_class_of_ones_own(call):
    """Trained, resumed, evaluated, explained and compared, by the name of its class."""
    options = [*QUICK, "--epochs", 8, "-b", 64, "--arch", "own", "--name", "own"]
    status, output, errors = call(train.main, *options)
    assert status == 0, errors
    assert "own, a class" in output
    checkpoint = load_checkpoint("results/own/best.pt")
    assert checkpoint["net"]["rows"] is None
    assert checkpoint["accuracy"] > 0.9
    assert call(train.main, "--resume", "results/own/last.pt")[0] == 0
    status, output, errors = call(evaluate.main, "--ckpt", "results/own/best.pt")
    assert status == 0, errors
    accuracy = f"{checkpoint['accuracy']:.2%}"
    assert re.search(f" accuracy {accuracy}.*, on the 360", output)
    assert os.path.exists("results/gradcam.png")
    status, output, errors = call(compare.main, "results/own")
    assert status == 0, errors
    assert f"{checkpoint['accuracy']:.2%}" in output


def test_folder_of_images_whose_name_does_not_print(fails):
    """The checkpoint keeps it, and would be refused for it."""
    assert "rename it" in fails(train.main, "--data-dir", "new\nline")


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_every_optimizer_learns(call, optimizer):
    options = ["--dataset", "digits", "--arch", "small", "-j", 0, "-b", 64]
    options += ["--epochs", 6, "--optimizer", optimizer, "--schedule", "cosine"]
    status, _, errors = call(train.main, *options)
    assert status == 0, errors
    assert load_checkpoint("best.pt")["accuracy"] > 0.85


def test_plateau_is_told_the_held_out_loss_or_else_the_training_loss(call, monkeypatch):
    told = []
    end_epoch = engine.Training.end_epoch

    def listen(self, loss):
        told.append(loss)
        end_epoch(self, loss)

    monkeypatch.setattr(engine.Training, "end_epoch", listen)
    for held_out, column in ((0, "train_loss"), (300, "val_loss")):
        told.clear()
        options = [*QUICK, "--schedule", "plateau", "--val-size", held_out]
        assert call(train.main, *options)[0] == 0
        with open("results/history.csv") as file:
            rows = list(csv.DictReader(file))
        assert told == [float(row[column]) for row in rows]


def test_one_more_figure_an_epoch_is_everywhere(call, monkeypatch):
    def measure(scores, labels):
        likeliest = scores.topk(3).indices
        top3 = (likeliest == labels[:, None]).any(1).float().mean().item()
        return evaluate.measure(scores, labels) | {"top3": top3}

    monkeypatch.setattr(train, "measure", measure)
    status, output, errors = call(train.main, *QUICK)
    assert status == 0, errors
    with open("results/history.csv") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert f"top3 {float(row['test_top3']):.2%}" in output
        assert float(row["test_top3"]) >= float(row["test_accuracy"])


def test_metrics_may_be_tensors_or_of_numpy(call, monkeypatch):
    """As students write them, without .item(): all files hold plain numbers."""
    measure = evaluate.measure

    def careless(scores, labels):
        found = measure(scores, labels)
        found["accuracy"] = np.float64(found["accuracy"])
        return found | {"half": torch.tensor(0.5)}

    monkeypatch.setattr(train, "measure", careless)
    monkeypatch.setattr(evaluate, "measure", careless)
    assert call(train.main, *QUICK)[0] == 0
    assert call(train.main, "--resume", "last.pt", "-j", 0)[0] == 0
    assert call(compare.main, "results")[0] == 0
    assert call(evaluate.main, "--json", "found.json")[0] == 0
    assert json.loads(Path("found.json").read_text())["half"] == 0.5


def test_a_class_for_some_classes_alone_starts_no_others(
    call, fails, monkeypatch, image_folder
):
    class Fixed(OwnNet):
        def __init__(self):
            super().__init__(10)

    monkeypatch.setitem(ARCHS, "fixed", Fixed)
    assert call(train.main, *DIGITS, "--epochs", 1, "--arch", "fixed")[0] == 0
    options = ["--data-dir", image_folder, "-b", 16, "--init", "best.pt"]
    errors = fails(train.main, *options, "--name", "own")
    assert "for 2 classes: its scores of 2 images" in errors


def test_start_from_trained_weights(trained, call, image_folder, fails):
    """On other classes all weights but the last layer's are those of the checkpoint, and
    with --freeze they stay so, running statistics included."""
    folder, _ = trained
    data = ["--dataset", "folder", "--data-dir", image_folder, "-b", 16, "-j", 0]
    options = [*data, "--init", folder / "best.pt", "--epochs", 3]
    status, output, errors = call(train.main, *options, "--freeze")
    assert status == 0, errors
    assert f"weights of {folder / 'best.pt'}" in output
    assert "all weights but those of the last layer" in output
    assert "of Muon" not in output
    before = load_checkpoint(folder / "best.pt")
    after = load_checkpoint("last.pt")
    assert after["net"]["mean"] == before["net"]["mean"]
    assert after["classes"] == ["chat gâté", "dog"]
    assert str(folder / "best.pt") in after["made_with"]["init"]
    for name, weight in after["weights"].items():
        if name == "body.o.conv.conv.weight":
            assert len(weight) == 2
        else:
            assert torch.equal(weight, before["weights"][name]), name
    status, output, _ = call(train.main, *options)
    assert status == 0
    moved = load_checkpoint("last.pt")["weights"]["body.c1.conv.conv.weight"]
    assert not torch.equal(moved, before["weights"]["body.c1.conv.conv.weight"])
    assert "leave out --arch" in fails(train.main, *options, "--arch", "own")
    image_folder.rename(image_folder.parent / "moved")
    errors = fails(evaluate.main, "--ckpt", "last.pt")
    assert f"there is no folder {image_folder}" in errors


def test_a_teacher_has_the_classes_of_the_images(
    trained, call, fails, image_folder, monkeypatch
):
    drawn = []
    monkeypatch.setattr(train, "plot_curves", lambda *given: drawn.append(given))
    teacher = ["--teacher", trained[0] / "best.pt"]
    data = ["--dataset", "folder", "--data-dir", image_folder, "-b", 16, "-j", 0]
    assert "are not those of the images" in fails(train.main, *data, *teacher)
    status, output, errors = call(train.main, *QUICK, *teacher, "--l1", 1e-5)
    assert status == 0, errors
    assert f"teacher   {teacher[1]}" in output
    ((_, _, targets, _, _),) = drawn
    assert targets == "L1 1e-05, label smoothing 0.1, soft labels"


def test_batch_norm_of_a_single_number_ends_in_a_line(fails, monkeypatch):
    """Known only by the batch size: a network is tried with several images."""
    monkeypatch.setitem(ARCHS, "two heads", TwoHeads)
    options = ["--dataset", "digits", "-j", 0, "--arch", "two heads", "-b", 1]
    assert "a larger --batch-size" in fails(train.main, *options, "--dry-run")


@pytest.mark.parametrize("option", ["--init", "--teacher"])
def test_images_that_a_source_may_have_seen_are_noted(trained, call, option):
    """They cannot choose an epoch; and the test images were looked at before."""
    whole = trained[0] / "best.pt"
    options = [*DIGITS, "--epochs", 1, "--val-size", 300]
    if option == "--init":
        options = ["--dataset", "digits", "-j", 0, *options[-4:]]
    _, output, _ = call(train.main, *options, option, whole, "--name", "next")
    assert "if they include some of the val images here" in output
    assert "test accuracy of the best epoch: " in output
    source = "results/next/best.pt"
    status, output, _ = call(train.main, *options, option, source, "--name", "third")
    assert status == 0
    assert "if they include" not in output


@pytest.mark.parametrize("option", ["--init", "--teacher"])
@pytest.mark.parametrize("name", ["best.pt", "last.pt"])
def test_what_a_training_learns_from_is_not_overwritten(trained, fails, option, name):
    for file in ("best.pt", "last.pt"):
        shutil.copy(trained[0] / file, file)
    data = ["--dataset", "digits", "-j", 0]
    errors = fails(train.main, *data, option, name)
    assert f"would overwrite {name}, which it learns from" in errors


class Drawing(nn.Sequential):
    """Draws in Python, which no CUDA graph would repeat."""

    def forward(self, x):
        return super().forward(x * random.random())


def test_what_a_cuda_graph_turned_out_to_be_is_kept(call, monkeypatch):
    """As on a GPU: it is on until the first step has been seen."""
    layers = nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1)
    monkeypatch.setitem(ARCHS, "drawing", lambda classes: Drawing(*layers))
    monkeypatch.setattr(engine, "can_replay", lambda training: True)
    options = [*QUICK, "--arch", "drawing", "--small", 0]
    status, output, errors = call(train.main, *options)
    assert status == 0, errors
    assert ", a CUDA graph a step\n" in output
    assert "note      no CUDA graph" in output
    run = json.loads(Path("results/run.json").read_text())
    assert run["made_with"]["cuda_graph"] is False
    _, output, _ = call(train.main, "--resume", "last.pt")
    assert "cuda_graph was" not in output


class TwoHeads(nn.Module):
    """Scores that are normalised once more: two layers have as many channels as classes."""

    def __init__(self, classes):
        super().__init__()
        self.conv = nn.Conv2d(3, classes, 32)
        self.norm = nn.BatchNorm1d(classes)

    def forward(self, images):
        return self.norm(self.conv(images).flatten(1))


def test_start_on_other_classes_with_two_layers_of_them(
    call, fails, monkeypatch, image_folder
):
    monkeypatch.setitem(ARCHS, "two heads", TwoHeads)
    data = ["--dataset", "digits", "-j", 0, "--epochs", 1]
    assert call(train.main, *data, "--arch", "two heads", "--name", "ten")[0] == 0
    data = ["--dataset", "folder", "--data-dir", image_folder, "-b", 16, "-j", 0]
    errors = fails(train.main, *data, "--init", "results/ten/best.pt")
    assert "body.norm.weight depends on the 2 classes too" in errors


def test_checkpoint_of_before_there_were_mirrored_kernels(call):
    """It names no kernels: all of them are free."""
    options = [*QUICK, "--epochs", 1, "--kernels", "free"]
    assert call(train.main, *options)[0] == 0
    checkpoint = load_checkpoint("last.pt")
    del checkpoint["net"]["kernels"], checkpoint["format"]
    save_checkpoint("older.pt", checkpoint)
    status, output, errors = call(evaluate.main, "--ckpt", "older.pt")
    assert status == 0, errors
    assert "batch norm, free kernels" in output
    assert f"accuracy {checkpoint['accuracy']:.2%}" in output


def test_cost_is_drawn_while_its_class_is_there(call, fails, monkeypatch):
    monkeypatch.setitem(ARCHS, "published", None)
    options = [*QUICK, "--epochs", 1, "--arch", "own", "--name", "own"]
    assert call(train.main, *options)[0] == 0
    figures = []
    monkeypatch.setattr(
        plot_cost, "save_figure", lambda figure, _: figures.append(figure)
    )
    options = ["results/own", "--images", "squares"]
    assert call(plot_cost.main, *options)[0] == 0
    own, published, _ = (line.get_label() for line in figures[0].axes[0].lines)
    accuracy = load_checkpoint("results/own/last.pt")["accuracy"]
    assert own == f"own, squares: {100 * accuracy:.2f} % after 1 epochs"
    assert published.endswith("original files: 91.91 % after 60 epochs")
    monkeypatch.delitem(ARCHS, "own")
    errors = fails(plot_cost.main, "results/own", "--out", "cost.png")
    assert f"the class 'own' of {Path('results/own')} is not in ARCHS" in errors


def test_cost_is_of_test_images(trained, fails, tmp_path):
    shutil.copytree(trained[0] / "results", tmp_path / "held-out")
    for name, old, new in (
        ("run.json", '"chosen_on": "test"', '"chosen_on": "val"'),
        ("history.csv", "test_", "val_"),
    ):
        path = tmp_path / "held-out" / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
    errors = fails(plot_cost.main, "held-out")
    assert "are of held-out images" in errors


def test_cost_counts_the_pixels_of_each_epoch():
    net = nn.Sequential(nn.Conv2d(3, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    axes = Figure().subplots()
    plot_cost.plot(axes, [0.7, 0.8, 0.9], net, "", images=50_000, small=2)
    spent = axes.lines[0].get_xdata()
    macs = 30 * 24**2, 2 * 30 * 24**2, 2 * 30 * 24**2 + 30 * 32**2  # of one image
    assert list(spent) == pytest.approx([50_000 * number / 1e12 for number in macs])


def test_table_of_another_model_py_teaches(call, monkeypatch):
    """Its checkpoint needs no edit of model.py, to be evaluated or to teach."""
    monkeypatch.setitem(ARCHS, "teacher", ARCHS["small"])
    status, _, errors = call(
        train.main, *QUICK, "--arch", "teacher", "--name", "teacher"
    )
    assert status == 0, errors
    monkeypatch.delitem(ARCHS, "teacher")
    last = "results/teacher/last.pt"
    assert call(evaluate.main, "--ckpt", last)[0] == 0
    status, output, errors = call(train.main, *QUICK, "--dry-run", "--teacher", last)
    assert status == 0, errors
    assert f"teacher   {last}" in output


def test_teachers_teach_as_in_evaluation(trained):
    """Without statistics of the batch, and without dropout."""
    path = trained[0] / "last.pt"
    images, _, classes = load("digits", None, train=False)
    known = SimpleNamespace(classes=classes, chooser="test", test_sha256="")
    (net,) = train.load_teachers([path], known, torch.device("cpu"))
    alone = restore(load_checkpoint(path)).eval()
    pixels = images[:64].permute(0, 3, 1, 2)
    with torch.no_grad():
        assert torch.equal(net(pixels), alone(pixels))


@pytest.mark.parametrize(
    ("chooser", "key"), [("test", "test_sha256"), ("val", "sha256")]
)
def test_a_source_is_noted_by_the_images_that_choose(capsys, chooser, key):
    made = {"sha256": "a", "test_sha256": "b"}
    images = SimpleNamespace(classes=["cat", "dog"], chooser=chooser, **made)
    for other in made:
        seen = {"classes": ["cat", "dog"], "made_with": made | {other: "c"}}
        train.note_on_source(seen, "best.pt", images)
        is_noted = f"some of the {chooser} images here" in capsys.readouterr().out
        assert is_noted == (other == key)


def test_resuming_elsewhere_counts_for_more_than_the_name(trained, tmp_path):
    checkpoint = load_checkpoint(trained[0] / "last.pt")
    checkpoint["args"]["name"] = "own"
    save_checkpoint(tmp_path / "last.pt", checkpoint)
    resume = ["--resume", str(tmp_path / "last.pt")]
    assert train.parse_arguments(resume)[0].out == "results/own"  # on Windows too
    elsewhere = ["--out", "there", "--ckpt", "there/best.pt"]
    args, _ = train.parse_arguments([*resume, *elsewhere])
    assert (args.out, args.ckpt) == ("there", "there/best.pt")


def test_start_on_the_same_classes_keeps_the_last_layer(trained, call):
    folder, _ = trained
    options = [*DIGITS[:2], "-j", 0, "--init", folder / "best.pt", "--lr", 0]
    options += ["--muon-lr", 0, "--epochs", 1, "--freeze"]
    status, output, errors = call(train.main, *options)
    assert status == 0, errors
    accuracy = load_checkpoint(folder / "best.pt")["accuracy"]
    assert f"test accuracy {accuracy:.2%} in best.pt" in output


def test_dry_run_counts_the_images_it_took(call, monkeypatch):
    # A second goes by from look to look.
    monkeypatch.setattr(train.time, "perf_counter", itertools.count().__next__)
    _, output, _ = call(train.main, *QUICK, "--dry-run", "-b", 32)
    (line,) = [line for line in output.splitlines() if line.startswith("epoch")]
    seconds, rate = re.findall(r"([\d.]+) s  ([\d,]+) images/s", line)[0]
    assert float(rate) * float(seconds) == pytest.approx(32, abs=2)


def test_file_that_cannot_be_set_aside_ends_in_a_line(call, monkeypatch):
    call(train.main, *DIGITS, "--epochs", 1)

    def refused(source, _):
        raise PermissionError(13, "Permission denied", str(source))

    monkeypatch.setattr(shutil, "move", refused)
    status, _, errors = call(train.main, *DIGITS, "--epochs", 1)
    assert status == 2
    assert "cannot move best.pt to" in errors
    assert load_checkpoint("best.pt")["epoch"] == 1


def test_a_new_training_sets_the_files_of_the_one_before_aside(call):
    options = [*DIGITS, "--epochs", 1, "--out", "results/own", "--ckpt", "own.pt"]
    _, output, _ = call(train.main, *options)
    assert "earlier" not in output
    call(evaluate.main, "--ckpt", "own.pt", "--out", "results/own")
    before = {}
    for path in [Path("own.pt"), Path("last.pt"), *Path("results/own").iterdir()]:
        before[path.name] = path.read_bytes()
    for number in (1, 2):
        _, output, _ = call(train.main, *options, "--seed", number)
        folder = Path("results/own", f"earlier-{number}")
        assert f"the files of the training before are in {folder} now" in output
    first = Path("results/own/earlier-1")
    kept = {path.name: path.read_bytes() for path in first.iterdir()}
    assert kept == before
    assert "curves.png" in kept
    assert "confusion_matrix.png" in kept
    assert load_checkpoint("own.pt")["args"]["seed"] == 2
    _, output, _ = call(compare.main, "results/own", "results/own/earlier-1")
    assert "earlier-1" in output
    status, output, _ = call(train.main, *options, "--seed", 2, "--continue")
    assert status == 0
    assert "earlier" not in output


def test_a_training_that_is_ended_early_by_an_edit_has_succeeded(call, monkeypatch):
    """As early stopping does: a break out of the loop."""

    def short(*numbers):  # that of the epochs has a start
        return range(*numbers)[: 1 if len(numbers) == 2 else None]

    monkeypatch.setattr(train, "range", short, raising=False)
    status, output, _ = call(train.main, *DIGITS, "--epochs", 3)
    assert status == 0
    assert "last epoch 1" in output


def test_the_missing_checkpoint_of_a_training_with_a_name_is_found(fails, call):
    call(train.main, *DIGITS, "--epochs", 1, "--name", "own")
    files = ", ".join(str(Path("results/own", name)) for name in ("best.pt", "last.pt"))
    assert f"(there is {files})" in fails(evaluate.main)


def test_few_steps_an_epoch_are_noted(call):
    options = [*DIGITS, "-b", "256", "--dry-run"]
    assert "an epoch has 5 steps" in call(train.main, *options)[1]
    status, output, _ = call(train.main, *DIGITS, "-b", 32, "--dry-run")
    assert status == 0
    assert "an epoch has" not in output


@pytest.mark.parametrize(("choice", "goal"), [("on", GOAL), ("off", None)])
def test_the_goal_is_drawn_where_the_rules_count(call, monkeypatch, choice, goal):
    seen = []
    monkeypatch.setattr(train, "plot_curves", lambda *given: seen.append(given[3]))
    assert call(train.main, *QUICK, "--epochs", 1, "--rules", choice)[0] == 0
    assert seen == [goal]


def test_the_header_says_what_the_loss_is(call):
    options = ["--dry-run", "--l1", "1e-5", "--label-smoothing", 0, "--ema", 0]
    _, output, _ = call(train.main, *QUICK, *options)
    assert "\nloss      cross-entropy, L1 1e-05\n" in output
    assert "\ntested    the weights of the last step\n" in output
    _, output, _ = call(train.main, *QUICK, "--dry-run")
    assert "\nloss      cross-entropy, label smoothing 0.1\n" in output
    assert "\ntested    weights averaged over 0.02 of the steps\n" in output


def test_rules_may_be_left_aside(call):
    own = [*DIGITS[:2], "--arch", "own", "--dry-run"]
    assert "a rule of the assignment is broken" in call(train.main, *own)[1]
    status, output, _ = call(train.main, *own, "--rules", "off")
    assert status == 0
    assert "rule" not in output


def sizes_of(call, monkeypatch, *options):
    """The heights of the images that a training steps on, each epoch; and what it prints."""
    heights, step = [], engine.Training.step

    def watched(training, images, labels):
        heights.append(images.shape[2])
        return step(training, images, labels)

    with monkeypatch.context() as patch:
        patch.setattr(engine.Training, "step", watched)
        status, output, errors = call(train.main, *DIGITS, "-b", "1000", *options)
    assert status == 0, errors
    return heights, output  # a step an epoch


def test_the_first_epochs_are_on_small_images(call, monkeypatch):
    options = ["--epochs", "5", "--small", "0.4"]
    heights, output = sizes_of(call, monkeypatch, *options)
    assert heights == [24, 24, 32, 32, 32]
    assert "5 epochs, the first 2 on 24x24 pixels, batches of 1000" in output
    heights, output = sizes_of(call, monkeypatch, "--epochs", "2", "--small", "0")
    assert heights == [32, 32]
    assert "24x24" not in output


def test_the_compiler_is_tried_on_both_sizes(call, monkeypatch):
    heights, counts = [], []

    def watched(training, choice, count, batches, world):
        heights.extend(images.shape[2] for images, _ in batches)
        counts.append(count)
        return False

    monkeypatch.setattr(train, "compile_where_it_pays", watched)
    assert call(train.main, *DIGITS, "--epochs", "3", "--small", "0.4")[0] == 0
    assert heights == [32, 24]
    assert counts == [3 * 1437]  # images in all epochs, by which it is won back


@pytest.mark.parametrize("compiled", [True, False])
def test_a_training_goes_on_compiled_as_it_began(compiled):
    """By auto, where it goes on here: another choice would give other bits."""
    here = {"device": "cpu", "precision": "bfloat16"}
    before = {"made_with": {**here, "compiled": compiled}}
    as_before = "on" if compiled else "off"
    for choice, there, expected in (
        ("auto", {}, as_before),
        ("auto", {"device": "NVIDIA H200"}, "auto"),
        ("auto", {"precision": "float32"}, "auto"),
        ("off", {}, "off"),
        ("on", {}, "on"),
    ):
        given = (choice, before, here | there, ALONE)
        assert train.compile_as_before(*given) == expected
    assert train.compile_as_before("auto", None, here, ALONE) == "auto"
    world = SimpleNamespace(gather=lambda own: [as_before, *own])  # of another GPU here
    given = ("auto", before, here | {"device": "another"}, world)
    assert train.compile_as_before(*given) == as_before


def test_small_images_are_those_of_pillow():
    """In channels-last order as from the loader, and to one grey level."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 32, 32, 3), generator=generator).byte()
    small = engine.shrink(images.permute(0, 3, 1, 2))
    assert small.dtype == torch.uint8
    for image, result in zip(images, small, strict=True):
        pillow = Image.fromarray(image.numpy()).resize((24, 24), Image.BICUBIC)
        expected = torch.from_numpy(np.array(pillow)).permute(2, 0, 1)
        assert (result.int() - expected.int()).abs().max() <= 1


class FlatNet(nn.Module):
    """Its linear layer takes the map of 32x32 pixels, and no other."""

    def __init__(self, classes=10):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.fc = nn.Linear(4 * 16 * 16, classes)

    def forward(self, x):
        return self.fc(self.stem(x).relu().flatten(1))


def test_a_network_of_one_size_trains_on_it(call, monkeypatch):
    monkeypatch.setitem(ARCHS, "flat", FlatNet)
    options = ["--arch", "flat", "--epochs", "3", "--small", "0.4"]
    heights, output = sizes_of(call, monkeypatch, *options)
    assert heights == [32, 32, 32]
    assert "takes no images of 24x24 pixels: --small is 0" in output
    assert load_checkpoint("last.pt")["args"]["small"] == 0


def test_a_training_of_before_there_were_small_images_has_none(trained, tmp_path):
    checkpoint = load_checkpoint(trained[0] / "last.pt")
    assert checkpoint["args"].pop("small") > 0
    save_checkpoint(tmp_path / "older.pt", checkpoint)
    args, _ = train.parse_arguments(["--resume", str(tmp_path / "older.pt")])
    assert args.small == 0


def test_the_peak_is_where_it_is_said_to_be(call):
    options = ["-b", 60, "--epochs", 5, "--peak", 0.2, "--move", 0]
    options += ["--weight-decay", 0.001, "--muon-decay", 0.02]
    _, output, _ = call(train.main, *DIGITS, *options)
    said = "rates     lr 0.3, weight decay 0.001; of Muon lr 0.03, decay 0.02; "
    assert f"{said}highest after 1 epochs\n" in output
    with open("results/history.csv") as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file)]
    assert max(rates) == rates[1] == pytest.approx(0.3, rel=0.02)


@pytest.mark.parametrize("steps", [2, 4, 10])
def test_the_peak_may_be_the_first_step(steps):
    args, _ = train.parse_arguments(["--peak", str(1 / steps), "--lr", "0.3"])
    optimizers = [torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=args.lr)]
    (schedule,) = make_schedules(optimizers, args, steps)
    rates = []
    for _ in range(steps):
        rates += schedule.get_last_lr()
        optimizers[0].step()
        if len(rates) < steps:
            schedule.step()
    assert rates == sorted(rates, reverse=True)
    assert 0.1 < rates[0] <= 0.3


def test_plateau_has_to_lower_the_rates(fails):
    options = [*QUICK, "--schedule", "plateau", "--gamma", 1]
    assert "give a --gamma under 1" in fails(train.main, *options)


@pytest.mark.parametrize("name", ["last.pt", "run.json", "history.csv"])
def test_best_checkpoint_has_a_name_of_its_own(fails, name):
    options = ["--ckpt", f"results/{name}", "--out", "results"]
    assert "another file's name" in fails(train.main, *QUICK, *options)


def test_published_recipe_is_one(call, fails, monkeypatch):
    """What would be ignored in it is refused, and what is taken is obeyed."""
    for module, name in (
        (train, "augmentation"),
        (train, "command_to_go_on"),
        (engine, "make_schedules"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setitem(ARCHS, "published", None)
    options = ["--dataset", "digits", "--dry-run", "-j", 0]
    for other in (["--optimizer", "muon"], ["--schedule", "plateau"]):
        message = "leave out --optimizer and --schedule"
        assert message in fails(published.main, *options, *other)
    steps = published.published_augmentation((0.5, 0.5, 0.5), True, 0.2, 0.1)
    assert [step.p for step in steps.transforms] == [0.5, 0.2, 0.1]
    args = train.parse_arguments(["--optimizer", "sgd", "--peak", "0.5"])[0]
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    (schedule,) = published.published_schedules([sgd], args, 4)
    rates = [sgd.param_groups[0]["lr"]]
    for _ in range(3):
        sgd.step()
        schedule.step()
        rates.append(sgd.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == rates[1] == pytest.approx(0.1)
    assert rates[-1] == pytest.approx(0.001)
    net = published.PublishedNet(10)
    size = f"{count_parameters(net):,} parameters"
    work = f"{computed_macs(net) / 1e6:.0f} million multiply-adds"
    assert f"{size} and {work} an image" in " ".join(published.__doc__.split())
    monkeypatch.setattr(train, "main", train.parse_arguments)
    args, _ = published.main(["--dataset", "digits"])
    recipe = (args.arch, args.optimizer, args.lr, args.weight_decay, args.peak)
    assert recipe == ("published", "sgd", 0.1, 5e-4, 0.15)
    rest = (args.label_smoothing, args.ema, args.small, args.move, args.hole)
    assert (*rest, args.batch_size) == (0, 0, 0, 0.5, 0.5, 128)
    published.published_schedules([sgd], args, 1)  # whose peak is its first step
    assert "--continue" in train.command_to_go_on("last.pt", args)


class Squeezing(OwnNet):
    """Of one image it returns scores without a batch."""

    def forward(self, x):
        return super().forward(x).squeeze()


class Auxiliary(OwnNet):
    """A second head, in training alone."""

    def forward(self, x):
        scores = super().forward(x)
        return (scores, scores) if self.training else scores


class Named(OwnNet):
    def forward(self, x):
        return {"scores": super().forward(x)}


class Masked(OwnNet):
    """A buffer as attention has it, which no checkpoint may hold."""

    def __init__(self, classes=10):
        super().__init__(classes)
        self.register_buffer("mask", torch.tensor([0, -torch.inf]))


class Shuffled(OwnNet):
    """An order that is drawn, and kept nowhere."""

    def __init__(self, classes=10):
        super().__init__(classes)
        self.order = torch.randperm(1024)

    def forward(self, x):
        return super().forward(x.flatten(2)[..., self.order].view(x.shape))


class Late(OwnNet):
    """A layer that is made in the first pass."""

    def forward(self, x):
        if not hasattr(self, "more"):
            self.more = nn.Conv2d(3, 3, 1)
        return super().forward(self.more(x))


class Hidden(OwnNet):
    """A mean that is kept, but in no checkpoint."""

    def __init__(self, classes=10):
        super().__init__(classes)
        self.register_buffer("seen", torch.zeros(3, 1, 1), persistent=False)

    def forward(self, x):
        if self.training:
            self.seen.mul_(0.9).add_(0.1 * x.detach().mean((0, 2, 3)).view(3, 1, 1))
        return super().forward(x - self.seen)


class Bank(OwnNet):
    """A buffer that grows."""

    def __init__(self, classes=10):
        super().__init__(classes)
        self.register_buffer("bank", torch.zeros(0, 3))

    def forward(self, x):
        if self.training:
            self.bank = torch.cat([self.bank, x.detach().mean((2, 3))])[-512:]
        return super().forward(x)


class Filled(OwnNet):
    """A buffer that the first batch makes."""

    def __init__(self, classes=10):
        super().__init__(classes)
        self.register_buffer("first", None)

    def forward(self, x):
        if self.training and self.first is None:
            self.first = x.detach().mean((0, 2, 3)).view(-1, 1, 1)
        return super().forward(x)


class Counting(OwnNet):
    """State that is no tensor."""

    def get_extra_state(self):
        return {"images": 0}

    def set_extra_state(self, state):
        pass


REFUSED = {
    Counting: "body._extra_state is no tensor",
    Hidden: "the buffer body.seen changes in training, but is not persistent",
    Bank: "body.bank is made, or changes its shape, in training (Bank.forward, test_train",
    Filled: "body.first is made, or changes its shape, in training",
    Squeezing: "of 1 images it returns scores of the shape (10,)",
    Auxiliary: "in training it returns a tuple, not a tensor of scores (Auxiliary.forward",
    Named: "in evaluation it returns a dict, not a tensor of scores (Named.forward",
    Masked: "body.mask is not finite",
    Shuffled: "gives other scores when it is built again",
    Late: "lacks",
}


@pytest.mark.parametrize("own", REFUSED)
def test_what_evaluation_would_refuse_is_refused_at_once(fails, monkeypatch, own):
    monkeypatch.setitem(ARCHS, "mine", own)
    assert REFUSED[own] in fails(train.main, *DIGITS, "--arch", "mine")
    assert not Path("last.pt").exists()


class Lazy(OwnNet):
    def __init__(self, num_classes=10):  # the other usual name
        super().__init__(num_classes)
        self.fc = nn.LazyLinear(num_classes)


class Standardised(OwnNet):
    """Not finite for an image of one colour, of which there is none here."""

    def forward(self, x):
        return super().forward(x / x.std((1, 2, 3), keepdim=True))


@pytest.mark.parametrize("own", [Lazy, Standardised])
def test_a_class_that_is_trained_can_be_evaluated(call, monkeypatch, own):
    monkeypatch.setitem(ARCHS, "mine", own)
    assert call(train.main, *DIGITS, "--arch", "mine", "--epochs", 1)[0] == 0
    assert call(evaluate.main)[0] == 0
    assert call(compare.main, "results")[0] == 0


def test_scores_that_differ_each_time_are_noted(call, monkeypatch):
    class Dropping(OwnNet):
        def forward(self, x):
            return nn.functional.dropout(super().forward(x), 0.5)

    monkeypatch.setitem(ARCHS, "mine", Dropping)
    _, output, _ = call(train.main, *DIGITS, "--arch", "mine", "--dry-run")
    assert "gives other scores each time" in output


def test_what_no_checkpoint_keeps_is_noted(call, monkeypatch):
    class Scheduled(OwnNet):
        def __init__(self, classes=10):
            super().__init__(classes)
            self.steps, self.mean, self.fixed = 0, torch.zeros(3), 7

        def forward(self, x):
            if self.training:
                self.steps += 1
                self.mean = 0.9 * self.mean + 0.1
            return super().forward(x)

    monkeypatch.setitem(ARCHS, "mine", Scheduled)
    _, output, _ = call(train.main, *DIGITS, "--arch", "mine", "--dry-run")
    assert "training changes steps, mean, which no checkpoint keeps" in output


def test_a_class_keeps_its_own_norm(call, monkeypatch):
    seen = []

    class Grouped(OwnNet):
        def __init__(self, classes=10, norm="group"):
            seen.append(norm)
            super().__init__(classes)

    monkeypatch.setitem(ARCHS, "mine", Grouped)
    call(train.main, *DIGITS, "--arch", "mine", "--dry-run")
    assert set(seen) == {"group"}
    call(train.main, *DIGITS, "--arch", "mine", "--dry-run", "--norm", "layer")
    assert seen[-1] == "layer"


def test_the_header_says_what_mirrored_kernels_save(call, monkeypatch):
    _, output, _ = call(train.main, *DIGITS, "--arch", "small", "--dry-run")
    total = count_parameters(build("small", "dilated", "batch", None, kernels="free"))
    kept = count_parameters(build("small", "dilated", "batch", None))
    assert f"mirrored kernels (saving {total - kept:,}): {kept:,} " in output
    monkeypatch.setitem(ARCHS, "listed", ARCHS["small"].rows)  # a list says nothing
    _, output, _ = call(train.main, *DIGITS, "--arch", "listed", "--dry-run")
    assert f"free kernels: {total:,} " in output
