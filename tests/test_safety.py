"""Kills, resumes, reproducibility, and files that are damaged or hostile."""

import argparse
import contextlib
import csv
import errno
import io
import json
import math
import ntpath
import os
import pickle
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import PATH, ROOT, TRAIN, run_script, run_train
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from nets import OwnNet
from PIL import Image
from torch import nn
from torchvision.datasets import CIFAR10

import checkpoint
import engine
import evaluate
import layers
import train
import utils
from checkpoint import FORMAT, load_checkpoint, restore, save_checkpoint
from dataset import load
from folders import read_image
from machine import pick_precision
from model import ARCHS, Net
from utils import UserError

KILLS = int(os.environ.get("KILLS", "5"))
KILLS_EACH = min(KILLS, 100)  # of one training; more kills are more trainings
FUZZ = int(os.environ.get("FUZZ", "300"))

# What says all that counts here, so that other defaults change no test.
RECIPE = ["--optimizer", "muon", "--lr", "0.2", "--muon-lr", "0.03"]
# Of an EMA of so many steps that it is not the network itself.
RECIPE += ["--schedule", "onecycle", "--ema", "0.2", "--amp", "off"]
# Small enough for a second or so, with dropout, so that random numbers count.
DIGITS = ["--dataset", "digits", "--val-size", "1100", "-b", "32", *RECIPE]
SMALL = ["--arch", "small", "--dropout", "0.1", *DIGITS]

# Trains in forks of a process that has imported everything, a tenth of the time of a new
# one. Arguments: the kills of each folder as JSON, what seeds their moments, then the
# training's. A negative number -n of kills is one, at the n-th flush of a file to the disk,
# inside a save.
HARNESS = """
import csv, json, os, random, signal, sys, time
from PIL import Image
import checkpoint, nets, train, utils
# What is imported late: else each fork does so, for seconds, in which a kill finds no training.
import sklearn.datasets, sklearn.model_selection, torch._dynamo, torchvision.transforms.v2

folders, seed, arguments = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
pictures = "results/augmented.png", "results/curves.png"

def fork(task):
    # All that computes runs in forks: one whose parent has threads would hang.
    pid = os.fork()
    if pid:
        return pid
    os.dup2(os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    status = 99
    try:
        utils.run(task)
    except SystemExit as exit:
        status = exit.code or 0
    finally:
        os._exit(status)

def start():
    resume = ["--resume", "last.pt"] if os.path.exists("last.pt") else arguments
    return fork(lambda: train.main(resume))

def check():
    for path in filter(os.path.exists, ("best.pt", "last.pt")):
        checkpoint.load_checkpoint(path)
    for path in filter(os.path.exists, ("results/history.csv",)):
        rows = list(csv.reader(open(path)))
        assert len({len(row) for row in rows}) == 1
    for path in filter(os.path.exists, pictures):
        Image.open(path).load()

def check_files():
    assert os.waitpid(fork(check), 0)[1] == 0, "a damaged file"

def kill_at_flush(number):
    flushes, fsync = 0, os.fsync
    def kill_inside(descriptor):
        nonlocal flushes
        flushes += 1
        if flushes == number:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)
    os.fsync = kill_inside
    assert os.waitpid(start(), 0)[1] == signal.SIGKILL
    os.fsync = fsync
    check_files()

def epochs():
    return open("log").read().count("\\nepoch ") if os.path.exists("log") else 0

def kill_at_random(kills):
    for _ in range(kills):
        enough, limit = epochs() + random.randint(0, 6), time.monotonic() + 100
        pid = start()
        while epochs() < enough:  # 0: as it starts
            assert time.monotonic() < limit, open("log").read()
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.2))
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL, "it ended before it was killed"
        check_files()
    # A single one may come as it starts.
    assert kills < 2 or epochs() > 0, "no kill found it training"

random.seed(seed)
for folder, kills in folders.items():
    os.makedirs(folder)
    os.chdir(folder)
    if kills < 0:
        kill_at_flush(-kills)
    else:
        kill_at_random(kills)
    assert os.waitpid(start(), 0)[1] == 0, open("log").read()
"""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")


def train_with_kills(kills, *arguments, seed=0):
    """The same training in each of some new folders, with kills as `HARNESS` takes them."""
    folders = json.dumps({str(folder): count for folder, count in kills.items()})
    result = run_script(".", "-c", HARNESS, folders, seed, *arguments, path=PATH)
    assert result.returncode == 0, result.stderr


def assert_same_training(one, other):
    for name in ("best.pt", "results/history.csv", "results/curves.png"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    states = [torch.load(folder / "last.pt") for folder in (one, other)]
    for state in states:
        seconds = state["resume"].pop("seconds")  # of a clock
        assert len(seconds) == len(state["resume"]["history"])
    assert to_plain(states[0]) == to_plain(states[1])
    assert not list(other.rglob("*.tmp"))


def to_plain(value):
    """Tensors as bytes, so that only equal bits are equal."""
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, torch.Tensor):
        return value.contiguous().numpy().tobytes()
    return repr(value)


# Enough epochs that the last kill finds it training: one takes 0.2 s or more.
TO_KILL = [*SMALL, "-b", "64", "--amp", "auto", "--epochs", str(12 * KILLS_EACH)]


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills") / "whole"
    train_with_kills({folder: 0}, *TO_KILL)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(math.ceil(KILLS / KILLS_EACH)))
def test_killed_at_random_moments(never_killed, tmp_path, seed):
    kills = min(KILLS_EACH, KILLS - seed * KILLS_EACH)
    train_with_kills({tmp_path / "killed": kills}, *TO_KILL, seed=seed)
    assert_same_training(never_killed, tmp_path / "killed")


# Flushed are the augmented images, then best.pt, history, run and last.pt of each epoch,
# best.pt if it is better: it need not be in the second. Then the curves.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("amp", "threads", "flushes"),
    [("auto", "1", [2, 3, 5, 7, 8, 9]), ("off", "2", [5, 8])],
)
def test_killed_inside_a_save(tmp_path, monkeypatch, amp, threads, flushes):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    options = [*SMALL, "-b", "64", "--amp", amp, "--label-smoothing", "0"]
    options += ["--epochs", "2"]
    options += ["--deterministic"] * (amp == "off")  # as a flag, it takes no value
    kills = {tmp_path / str(flush): -flush for flush in flushes}
    train_with_kills({tmp_path / "whole": 0, **kills}, *options)
    for killed in kills:
        assert_same_training(tmp_path / "whole", killed)


@pytest.mark.slow
def test_same_seed_gives_identical_files(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # the other tests have one thread
    for workers in "02":
        (tmp_path / workers).mkdir()
        options = [*SMALL, "--epochs", "2", "-j", workers]
        result = run_train(tmp_path / workers, *options)
        assert result.returncode == 0, result.stderr
    names = ["best.pt", "results/history.csv"]
    names += ["results/curves.png", "results/augmented.png"]
    for name in names:
        one, other = ((tmp_path / workers / name).read_bytes() for workers in "02")
        assert one == other, name


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_stopped_training_says_how_to_resume(tmp_path, stop):
    quiet = ["-W", "ignore:This DataLoader will create"]  # on one core
    command = [sys.executable, "-u", *quiet, *TRAIN, *SMALL, "--epochs", "200"]
    command += ["-j", "2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": PATH},
        start_new_session=True,
        # A shell's background jobs, of which this may be one, ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        **pipes,
    )
    for line in process.stdout:
        if line.startswith("epoch   2/200"):
            break
    time.sleep(0.3)
    os.killpg(process.pid, stop)  # as a terminal does, the workers included
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == ""
    assert "to go on: python train.py --resume last.pt" in output
    epochs = int(output.split("interrupted: ")[1].split()[0])
    assert load_checkpoint(tmp_path / "last.pt")["epoch"] == epochs >= 2
    with open(tmp_path / "results" / "history.csv") as file:
        assert len(list(csv.DictReader(file))) == epochs
    assert (tmp_path / "results" / "curves.png").exists()
    assert not list(tmp_path.rglob("*.tmp"))


def train_here(folder, *options, stop_in=None):
    """Train in a folder, in this process; with a Ctrl-C at the end of an epoch.

    Returns the exit status.
    """
    folder.mkdir(exist_ok=True)
    # A shell's background jobs, of which this may be one, ignore Ctrl-C.
    on_interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    train_one_epoch = train.train_one_epoch

    def interrupted(training, loader, epoch, *rest):
        figures = train_one_epoch(training, loader, epoch, *rest)
        if epoch == stop_in:
            raise KeyboardInterrupt
        return figures

    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "train_one_epoch", interrupted)
        try:
            status = train.main([*map(str, options)])
            # As it was, or a second one would end a notebook's kernel.
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            return status
        finally:
            signal.signal(signal.SIGINT, on_interrupt)


THREE = ["--epochs", "3", "-j", "0"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with what three epochs leave."""
    folder = tmp_path_factory.mktemp("trained")
    assert train_here(folder, *SMALL, *THREE) == 0
    return folder


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """What the same training leaves that is interrupted in the last epoch; not to change."""
    folder = tmp_path_factory.mktemp("interrupted")
    assert train_here(folder, *SMALL, *THREE, stop_in=3) == 130
    assert load_checkpoint(folder / "last.pt")["epoch"] == 2
    return folder


@pytest.fixture
def stopped(interrupted, tmp_path):
    """A copy of the folder `interrupted`, to go on in."""
    return shutil.copytree(interrupted, tmp_path / "stopped")


def resume(folder):
    assert train_here(folder, "--resume", "last.pt", "-j", "0") == 0


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", ["best.pt", "history.csv", "run.json", "last.pt"])
def test_a_signal_inside_a_save_lets_it_end(tmp_path, capsys, monkeypatch, name, kind):
    """All files are then of the epoch that was being saved, and so is what is printed."""
    replace = os.replace

    def interrupted(temporary, path):
        if path.name == name:
            signal.raise_signal(kind)
        replace(temporary, path)

    monkeypatch.setattr(os, "replace", interrupted)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as a script
    try:
        assert train_here(tmp_path, *SMALL, *THREE) == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "interrupted: 1 of 3 epochs" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "best.pt")["epoch"] == 1
    assert load_checkpoint(tmp_path / "last.pt")["epoch"] == 1
    with open(tmp_path / "results" / "history.csv") as file:
        assert len(list(csv.DictReader(file))) == 1
    with open(tmp_path / "results" / "run.json") as file:
        assert len(json.load(file)["seconds"]) == 1


def test_file_that_windows_holds_for_a_while_is_written(tmp_path, monkeypatch):
    """One that is never let go ends in a line, and is whole."""
    refusals, real = [], os.replace

    def refused(source, path):
        refusals.append(path)
        if len(refusals) <= held:
            raise PermissionError(errno.EACCES, "Permission denied")
        real(source, path)

    monkeypatch.setattr(utils.sys, "platform", "win32")
    monkeypatch.setattr(utils.time, "sleep", lambda _: None)
    monkeypatch.setattr(os, "replace", refused)
    file = tmp_path / "file"
    held = 3
    utils.write_file(file, b"first")
    held = 1000
    with pytest.raises(UserError, match="cannot write .*file: Permission denied"):
        utils.write_file(file, b"second")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"first"]


def test_resume_is_exact(trained, stopped):
    resume(stopped)
    assert_same_training(trained, stopped)


def test_resume_of_a_moved_last_pt_brings_the_best_epoch(interrupted, tmp_path, capsys):
    """Also where no later epoch is better: then best.pt is not written anew."""
    checkpoint = load_checkpoint(interrupted / "last.pt")
    history = checkpoint["resume"]["history"]
    history[0]["val_accuracy"] = 1.0
    weights = {name: weight + 1 for name, weight in checkpoint["weights"].items()}
    checkpoint["resume"]["best_weights"] = weights
    (tmp_path / "moved").mkdir()
    save_checkpoint(tmp_path / "moved" / "last.pt", checkpoint)
    resume(tmp_path / "moved")
    best = load_checkpoint(tmp_path / "moved" / "best.pt")
    assert (best["epoch"], best["accuracy"]) == (1, 1.0)
    assert same_weights(best["weights"], weights)
    images, labels, _ = load("digits", None, train=False)
    with torch.no_grad():
        scores = restore(best).eval()(images.permute(0, 3, 1, 2))
    accuracy = (scores.argmax(1) == labels).float().mean().item()
    said = capsys.readouterr().out
    assert f"test accuracy of the best epoch: {accuracy:.2%}" in said
    last = load_checkpoint(tmp_path / "moved" / "last.pt")
    assert last["epoch"] == 3
    assert same_weights(last["resume"]["best_weights"], weights)


def same_weights(one, other):
    """Whether two state dicts are equal, bit for bit."""
    if one.keys() != other.keys():
        return False
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_reader_that_goes_away_ends_a_script_quietly():
    """As in `python evaluate.py | head -1`."""
    script = "import utils; utils.run(lambda: [print(n) for n in range(99_999)] and 0)"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
    assert (process.returncode, errors) == (1, b"")


def test_ctrl_c_ends_any_script_in_a_word(call):
    def stopped(_):
        raise KeyboardInterrupt

    assert call(stopped) == (130, "", "interrupted\n")


def test_the_best_weights_stay_those_of_the_best_epoch(tmp_path, monkeypatch):
    """Further training leaves them as they are, in last.pt too, for --resume."""
    accuracies = iter([0.9, 0.2, 0.2])  # of two epochs, then of the test images

    def measure(scores, labels):
        return evaluate.measure(scores, labels) | {"accuracy": next(accuracies)}

    monkeypatch.setattr(train, "measure", measure)
    options = ["-b", "64", "--epochs", "2", "-j", "0"]
    assert train_here(tmp_path, *SMALL, *options) == 0
    best, last = (load_checkpoint(tmp_path / name) for name in ("best.pt", "last.pt"))
    assert (best["epoch"], last["epoch"]) == (1, 2)
    assert same_weights(last["resume"]["best_weights"], best["weights"])
    assert not same_weights(last["weights"], best["weights"])


def test_continue_begins_goes_on_and_ends(trained, tmp_path, capsys):
    """The same command, three times: interrupted, continued, and finished already."""
    folder = tmp_path / "continued"
    options = [*SMALL, *THREE, "--continue"]
    assert train_here(folder, *options, stop_in=3) == 130
    assert epochs_in(capsys.readouterr().out) == ["1/3", "2/3"]
    assert train_here(folder, *options) == 0
    assert epochs_in(capsys.readouterr().out) == ["3/3"]
    assert_same_training(trained, folder)
    assert train_here(folder, *options) == 0
    assert epochs_in(capsys.readouterr().out) == []
    assert_same_training(trained, folder)


def test_interrupted_seeds_say_how_to_go_on(tmp_path, capsys):
    options = [
        *SMALL,
        "--epochs",
        "2",
        "-j",
        "0",
        "--seeds",
        "2",
        "--name",
        "two words",
    ]
    assert train_here(tmp_path, *options, stop_in=2) == 130
    output = capsys.readouterr().out
    first = os.path.join("results", "two words", "seed-0", "last.pt")
    assert f"to go on: python train.py --resume '{first}'\n" in output
    assert "to go on with all seeds: the same command with --continue" in output
    assert train_here(tmp_path, *options, "--continue") == 0
    assert epochs_in(capsys.readouterr().out) == ["2/2", "1/2", "2/2"]


def test_an_option_of_a_student_that_is_off_stays_off(trained, tmp_path, monkeypatch):
    """It is on by default, and says so in either way of argparse."""
    checkpoint = load_checkpoint(trained / "last.pt")
    add_output_options = train.add_output_options

    def add_more(add):
        add_output_options(add)
        add("--colour", action=argparse.BooleanOptionalAction, default=True)
        add("--no-turns", action="store_false", dest="turns")
        add("--grey", action="store_true")

    monkeypatch.setattr(train, "add_output_options", add_more)
    path = tmp_path / "last.pt"
    for is_on in (False, True):
        switches = {"colour": is_on, "turns": is_on, "grey": is_on}
        save_checkpoint(path, checkpoint | {"args": checkpoint["args"] | switches})
        args, _ = train.parse_arguments(["--resume", str(path)])
        assert vars(args) == vars(args) | switches


def test_going_on_overwrites_no_other_training(
    trained, interrupted, tmp_path, fails, call, monkeypatch
):
    for name in ("best.pt", "last.pt"):
        shutil.copy(trained / name, tmp_path / name)
    before = (tmp_path / "last.pt").read_bytes()
    options = ["--resume", interrupted / "last.pt", "-j", 0]
    assert "would overwrite best.pt" in fails(train.main, *options)
    (tmp_path / "best.pt").unlink()
    assert "would overwrite last.pt" in fails(train.main, *options)
    (tmp_path / "results").mkdir()
    shutil.copy(trained / "results" / "history.csv", tmp_path / "results")
    errors = fails(train.main, *options, "--ckpt", "other/best.pt")
    assert "history.csv" in errors
    with monkeypatch.context() as patch:  # as torchrun does after a refusal
        patch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
        patch.setattr("checkpoint.run_id", lambda: "another")
        assert "would overwrite last.pt" in fails(train.main, *options)
    assert call(train.main, *options, "--name", "friend")[0] == 0
    assert load_checkpoint("results/friend/last.pt")["epoch"] == 3
    assert (tmp_path / "last.pt").read_bytes() == before


def test_a_finished_training_says_what_made_it(trained, tmp_path, monkeypatch):
    """Going on with it trains nothing: its students find the best.pt that they know."""
    folder = shutil.copytree(trained, tmp_path / "again")
    best, made_with = (folder / "best.pt").read_bytes(), made_of(folder)
    provenance = checkpoint.provenance
    monkeypatch.setattr(
        checkpoint, "provenance", lambda *a: provenance(*a) | {"commit": "another"}
    )
    resume(folder)
    assert (folder / "best.pt").read_bytes() == best
    assert made_of(folder) == made_with


def test_what_is_trained_after_an_edit_says_so(stopped, monkeypatch):
    provenance = checkpoint.provenance
    monkeypatch.setattr(
        checkpoint, "provenance", lambda *a: provenance(*a) | {"commit": "another"}
    )
    resume(stopped)
    assert made_of(stopped)["commit"] == "another"


def made_of(folder):
    """What made a training, as its run.json says."""
    return json.loads((folder / "results" / "run.json").read_text())["made_with"]


def test_going_on_leaves_what_took_its_tables_place(tmp_path):
    first = [*SMALL, *THREE, "--ckpt", "a/best.pt"]
    assert train_here(tmp_path, *first, stop_in=2) == 130
    assert train_here(tmp_path, *SMALL, *THREE, "--ckpt", "b/best.pt") == 0
    before = (tmp_path / "results" / "run.json").read_bytes()
    for options in (["--resume", "a/last.pt", "-j", "0"], [*first, "--continue"]):
        with pytest.raises(UserError, match="would overwrite .* of b/best.pt"):
            train_here(tmp_path, *options)
    assert (tmp_path / "results" / "run.json").read_bytes() == before


def test_two_trainings_at_once_in_a_folder_are_noticed(tmp_path, monkeypatch):
    train_one_epoch = train.train_one_epoch

    def beside_another(training, loader, epoch):
        if epoch == 2:
            path = Path("results", "run.json")
            mark = {"writer": "another"}
            path.write_text(json.dumps(json.loads(path.read_text()) | mark))
        return train_one_epoch(training, loader, epoch)

    monkeypatch.setattr(train, "train_one_epoch", beside_another)
    with pytest.raises(UserError, match="another training writes to results now"):
        train_here(tmp_path, *SMALL, *THREE)
    assert load_checkpoint(tmp_path / "last.pt")["epoch"] == 1


def test_a_table_that_cannot_be_replaced_ends_no_training(
    tmp_path, capsys, monkeypatch
):
    """As on Windows, where Excel has it open."""
    write_csv = utils.write_csv

    def held(path, rows):
        if len(rows) == 2:
            raise UserError(f"cannot write {path}: Permission denied")
        write_csv(path, rows)

    monkeypatch.setattr(utils, "write_csv", held)
    assert train_here(tmp_path, *SMALL, *THREE) == 0
    assert capsys.readouterr().out.count("warning   cannot write") == 1
    with open(tmp_path / "results" / "history.csv") as file:
        assert len(list(csv.DictReader(file))) == 3


@pytest.mark.parametrize(
    ("level", "system", "command"),
    [
        ("1", "posix", 'make train ARGS="--resume results/quick/last.pt"'),
        (
            None,
            "posix",
            "python 'my cifar/train.py' --resume 'results\\quick\\last.pt'",
        ),
        (None, "nt", 'python "my cifar/train.py" --resume results\\quick\\last.pt'),
    ],
)
def test_how_to_go_on_is_a_command_that_works(monkeypatch, level, system, command):
    """From another folder, and by a make of Windows, which is a Unix shell's."""
    monkeypatch.delenv("MAKELEVEL", raising=False)
    if level:
        monkeypatch.setenv("MAKELEVEL", level)
    monkeypatch.setattr(sys, "argv", ["my cifar/train.py"])
    monkeypatch.setattr(train, "os", SimpleNamespace(environ=os.environ, name=system))
    args = SimpleNamespace(device="auto", augment="auto", cuda_graph="auto")
    last = PureWindowsPath("results", "quick", "last.pt")
    assert train.command_to_go_on(last, args) == command


def test_places_are_kept_as_all_systems_write_them(monkeypatch):
    windows = SimpleNamespace(path=ntpath, environ=os.environ, name="nt")
    monkeypatch.setattr(train, "os", windows)
    args, _ = train.parse_arguments(["--name", "a", "--dataset", "digits"])
    assert (args.out, args.ckpt) == ("results/a", "results/a/best.pt")


def test_a_drive_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda *_, **__: False)
    with pytest.raises(UserError, match="cannot write .*: there is no "):
        utils.check_writable("runs/best.pt")


def test_scripts_run_where_the_output_is_no_file(monkeypatch):
    """As in a notebook, by %run, and in IDLE."""
    output = io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as end:
            utils.run(lambda: print("done"))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not end.value.code
    assert output.getvalue() == "done\n"


def test_answers_are_those_of_the_cpu(tmp_path, monkeypatch):
    """With which they are compared: newer GPUs round what convolutions read (TF32)."""
    on_cpu, tried = [], []
    cpu, try_out = Net.cpu, checkpoint.try_out
    monkeypatch.setattr(Net, "cpu", lambda net: on_cpu.append(net) or cpu(net))
    monkeypatch.setattr(
        checkpoint, "try_out", lambda net: tried.append(net) or try_out(net)
    )
    assert train_here(tmp_path, *SMALL, "--epochs", "1", "-j", "0") == 0
    assert tried[0] in on_cpu


def test_how_to_go_on_names_the_device(tmp_path, capsys):
    options = [*SMALL, *THREE, "--device", "cpu", "--augment", "device"]
    assert train_here(tmp_path, *options, stop_in=2) == 130
    command = "python train.py --resume last.pt --device cpu --augment device\n"
    assert f"to go on: {command}" in capsys.readouterr().out


def test_too_little_memory_to_go_on(stopped, monkeypatch):
    """What then has to be changed, no resumed training takes."""

    def step(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(engine.Training, "step", step)
    with pytest.raises(UserError, match="memory: train anew: try a smaller --batch"):
        resume(stopped)


def test_resume_finds_images_that_have_moved(image_folder, call, fails, tmp_path):
    options = ["--data-dir", image_folder, "-b", 16, "-j", 0, "--epochs", 1]
    assert call(train.main, *options, "--arch", "small", *RECIPE)[0] == 0
    moved = image_folder.rename(tmp_path / "moved")
    resume = ["--resume", "last.pt", "-j", 0]
    assert "there is no folder" in fails(train.main, *resume)
    assert call(train.main, *resume, "--data-dir", moved)[0] == 0


def test_a_finished_training_resumed_elsewhere_leaves_all_files(trained, call):
    options = ["--resume", trained / "last.pt", "-j", 0, "--name", "moved"]
    assert call(train.main, *options)[0] == 0
    for name in ("best.pt", "last.pt", "history.csv", "run.json", "curves.png"):
        assert Path("results/moved", name).exists(), name
    assert load_checkpoint("results/moved/last.pt")["args"]["name"] == "moved"


def test_test_images_are_said_to_be_unseen_once(tmp_path, capsys):
    assert train_here(tmp_path, *SMALL, *THREE, stop_in=3) == 130
    assert "test accuracy of the best epoch" not in capsys.readouterr().out
    resume(tmp_path)
    output = capsys.readouterr().out
    assert "test accuracy of the best epoch: " in output
    assert "seen by nothing before" not in output


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
def test_what_make_runs_goes_on_by_make(tmp_path, capsys, monkeypatch):
    """Its Python is not on the path."""
    monkeypatch.setenv("MAKELEVEL", "1")
    options = [*SMALL, *THREE, "--name", "two words"]
    assert train_here(tmp_path, *options, stop_in=2) == 130
    line = capsys.readouterr().out.split("to go on: ")[1].splitlines()[0]
    assert line == "make train ARGS=\"--resume 'results/two words/last.pt'\""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements.txt").touch()
    command = [
        "make",
        "--no-print-directory",
        "-n",
        "-o",
        ".venv/ready",
        *shlex.split(line)[1:],
    ]
    shown = subprocess.check_output(command, cwd=tmp_path, text=True)
    assert shlex.split(shown)[-2:] == ["--resume", "results/two words/last.pt"]


def epochs_in(output):
    """The epochs that were trained, as a training prints them."""
    return re.findall(r"^epoch (\S+)", output, re.MULTILINE)


def test_continue_refuses_what_cannot_be_resumed(interrupted, tmp_path, fails):
    shutil.copy(interrupted / "best.pt", tmp_path / "last.pt")
    errors = fails(train.main, *SMALL, *THREE, "--continue")
    assert "last.pt cannot be resumed, only a last.pt can" in errors


def test_continue_refuses_another_training(stopped, monkeypatch):
    options = [*SMALL, "-j", "0", "--continue", "--epochs"]
    before = (stopped / "last.pt").read_bytes()
    with pytest.raises(UserError, match=r"another training \(epochs 3 and not 4\)"):
        train_here(stopped, *options, 4)
    small = ARCHS["small"]
    edited = [small.rows[0]._replace(channels=24), *small.rows[1:]]
    monkeypatch.setitem(ARCHS, "small", small._replace(rows=edited))
    with pytest.raises(UserError, match="its network was edited"):
        train_here(stopped, *options, 3)
    monkeypatch.setitem(ARCHS, "small", small)
    with monkeypatch.context() as patch:
        patch.setattr(train, "digest", lambda *_: "of other images")
        with pytest.raises(UserError, match="its images are others"):
            train_here(stopped, *options, 3)
    # As --init from a file that was replaced would change it.
    monkeypatch.setattr(train, "mean_and_std", lambda _: ([0.1] * 3, [0.2] * 3))
    with pytest.raises(UserError, match="its network was edited"):
        train_here(stopped, *options, 3)
    assert (stopped / "last.pt").read_bytes() == before


def test_continue_notices_another_init(trained, stopped, fails, call):
    """Of the same network and statistics; --resume needs it no more."""
    options = ["--init", stopped / "best.pt", *DIGITS, "-j", 0, "--epochs", 1]
    options += ["--name", "begun"]
    assert call(train.main, *options)[0] == 0
    assert call(train.main, *options, "--continue")[0] == 0
    digest = load_checkpoint("results/begun/last.pt")["made_with"]["init_sha256"]
    shutil.copy(trained / "best.pt", stopped / "best.pt")
    message = "its --init is not the checkpoint it was"
    assert message in fails(train.main, *options, "--continue")
    (stopped / "best.pt").unlink()
    last = "results/begun/last.pt"
    status, output, _ = call(train.main, "--resume", last, "-j", 0)
    assert status == 0
    assert "init_sha256" not in output
    assert load_checkpoint(last)["made_with"]["init_sha256"] == digest


def test_resume_after_the_table_has_gone(trained, stopped, monkeypatch):
    """A student renames it: the checkpoint holds it whole."""
    monkeypatch.delitem(ARCHS, "small")
    resume(stopped)
    assert_same_training(trained, stopped)


def assert_resume_is_exact(tmp_path, *options):
    """Three epochs in one go, and with a Ctrl-C in the last, leave the same files."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train_here(whole, *options, *THREE) == 0
    assert train_here(stopped, *options, *THREE, stop_in=3) == 130
    resume(stopped)
    assert_same_training(whole, stopped)


class Drawing(OwnNet):
    """It draws from Python's generator and from NumPy's, as stochastic depth may."""

    def forward(self, x):
        if self.training:
            x = x * random.choice([1, 1.5]) + float(np.random.rand())
        return super().forward(x)


ARCHS["drawing"] = Drawing

# One recipe for each state that a training has to keep.
RECIPES = {
    "muon cosine": ["--schedule", "cosine"],
    "sgd step": ["--optimizer", "sgd", "--schedule", "step", "--step-epochs", "2"],
    # It waits for no epoch, so that the best loss so far decides what the next rate is.
    "adamw plateau": ["--optimizer", "adamw", "--lr", "0.003", "--schedule", "plateau"]
    + ["--patience", "0", "--gamma", "0.5"],
    "class of one's own": ["--arch", "own"],
    "a class that draws numbers": ["--arch", "drawing"],
    "float16": ["--amp", "float16"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_resume_of_other_recipes_is_exact(tmp_path, name):
    assert_resume_is_exact(tmp_path, *SMALL, *RECIPES[name])


@pytest.mark.slow
@pytest.mark.parametrize("freeze", [[], ["--freeze"]])
def test_resume_of_a_training_begun_with_init_is_exact(
    trained, tmp_path, image_folder, freeze
):
    """Of other classes, so that the layer of the scores is not the checkpoint's."""
    options = ["--init", trained / "best.pt", *freeze, *RECIPE, "-b", "16"]
    options += ["--dataset", "folder", "--data-dir", image_folder]
    assert_resume_is_exact(tmp_path, *options)
    kept = [
        load_checkpoint(folder / "best.pt")["weights"]["body.c1.conv.conv.weight"]
        for folder in (trained, tmp_path / "stopped")
    ]
    assert torch.equal(*kept) == bool(freeze)


@pytest.mark.slow
@pytest.mark.parametrize("others", [[], ["best.pt"]])
def test_resume_of_a_training_with_a_teacher_is_exact(
    trained, tmp_path, call, fails, others
):
    teacher = tmp_path / "teacher.pt"
    shutil.copy(trained / "best.pt", teacher)
    options = ["--teacher", teacher]
    for other in others:
        options += ["--teacher", trained / other]
    assert_resume_is_exact(tmp_path, *SMALL, *options)
    taught, untaught = (
        load_checkpoint(tmp_path / "whole" / "last.pt"),
        trained / "last.pt",
    )
    assert not same_weights(taught["weights"], load_checkpoint(untaught)["weights"])
    shutil.copy(trained / "last.pt", teacher)
    last = tmp_path / "stopped" / "last.pt"
    assert "not the checkpoint it was" in fails(train.main, "--resume", last)
    teacher.unlink()
    assert "no checkpoint" in fails(train.main, "--resume", last)
    moved = []
    for name in ["best.pt", *others]:
        moved += ["--teacher", trained / name]
    assert call(train.main, "--resume", last, *moved)[0] == 0


def test_resume_with_one_more_figure(stopped, monkeypatch):
    """A student adds a figure to `measure`, and goes on with an older training."""
    (stopped / "results" / "curves.png").unlink()

    def measure(scores, labels):
        among_five = (scores.topk(5).indices == labels[:, None]).any(1).float().mean()
        return evaluate.measure(scores, labels) | {"among_five": among_five.item()}

    monkeypatch.setattr(train, "measure", measure)
    resume(stopped)
    with open(stopped / "results" / "history.csv") as file:
        first, second, third = csv.DictReader(file)
    assert first["val_among_five"] == second["val_among_five"] == ""
    assert float(third["val_accuracy"]) <= float(third["val_among_five"]) <= 1
    with Image.open(stopped / "results" / "curves.png") as curves:
        curves.load()


# An average would hardly have learned yet, and answer much the same to anything.
OWN = [*DIGITS, "--arch", "own", "--epochs", "2", "-j", "0", "--ema", "0"]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with best.pt and last.pt of a class, of the first of two epochs."""
    folder = tmp_path_factory.mktemp("own")
    assert train_here(folder, *OWN, stop_in=2) == 130
    return folder


class Wider(OwnNet):
    """The class after an edit: other sizes."""

    def __init__(self, classes=10, norm="batch", dropout=0.05):
        super().__init__(classes, norm, dropout)
        self.hidden = nn.Linear(32, 48)
        self.fc = nn.Linear(48, classes)


class Broken(OwnNet):
    """The class after an edit: it fails, with an error of several lines."""

    def forward(self, x):
        raise RuntimeError("sizes\n  do not\n  match")


EDITS = {
    "other sizes": (Wider, "body.hidden.weight is of shape (32, 32)"),
    "an error": (Broken, "cannot be built: sizes do not match (test_safety.py, line"),
    "now a table": (ARCHS["small"], "is not in ARCHS"),
    "gone": (None, "the class 'own', is not in ARCHS"),
}


@pytest.mark.parametrize("name", EDITS)
def test_checkpoint_of_a_class_that_has_changed(own, fails, monkeypatch, name):
    changed, message = EDITS[name]
    if changed is None:
        monkeypatch.delitem(ARCHS, "own")
    else:
        monkeypatch.setitem(ARCHS, "own", changed)
    assert message in fails(evaluate.main, "--ckpt", own / "best.pt")
    assert message in fails(train.main, "--resume", own / "last.pt", "-j", 0)
    init = ["--init", own / "best.pt", *DIGITS]
    assert message in fails(train.main, *init, "-j", 0)


def test_code_that_gives_other_scores_is_noticed(
    own, stopped, call, monkeypatch, capsys
):
    """An edit that leaves all weights as they are: of a class, and of what rows become."""

    class Smoother(OwnNet):
        def forward(self, x):
            return super().forward(nn.functional.silu(x))

    note = "was changed: with the same weights its network gives other scores"
    for folder in (own, stopped):
        checkpoint = folder / "best.pt"
        assert note not in call(evaluate.main, "--ckpt", checkpoint)[1]
    monkeypatch.setitem(ARCHS, "own", Smoother)
    assert note in call(evaluate.main, "--ckpt", own / "best.pt")[1]
    folder = shutil.copytree(own, stopped.parent / "own")
    assert train_here(folder, *OWN, "--continue") == 0
    assert note in capsys.readouterr().out
    monkeypatch.setattr(layers.nn, "ReLU", lambda inplace: nn.GELU())
    assert note in call(evaluate.main, "--ckpt", stopped / "best.pt")[1]
    assert note in call(train.main, "--resume", stopped / "last.pt", "-j", 0)[1]
    older = load_checkpoint(stopped / "best.pt")
    del older["answers"]  # as checkpoints were before
    save_checkpoint(stopped / "best.pt", older)
    assert note not in call(evaluate.main, "--ckpt", stopped / "best.pt")[1]


@pytest.fixture
def few_pictures(monkeypatch):
    """Leaves out those of evaluate.py that take a second to draw."""
    monkeypatch.setattr(evaluate, "plot_evidence", lambda *_: None)


@pytest.mark.usefixtures("few_pictures")
def test_checkpoint_says_what_it_was_made_with(trained, call):
    made_with = load_checkpoint(trained / "best.pt")["made_with"]
    assert made_with["torch"] == torch.__version__
    assert made_with["numpy"] == np.__version__
    assert len(made_with["sha256"]) == 64
    assert made_with["images"] == {"train": 337, "test": 360, "val": 1100}
    _, output, _ = call(evaluate.main, "--ckpt", trained / "best.pt")
    for value in (made_with["sha256"], made_with["commit"], torch.__version__):
        assert value in output
    epoch = load_checkpoint(trained / "best.pt")["epoch"]
    said = (
        f"epoch {epoch} of 3, seed 0; its best epoch is chosen on the held-out images"
    )
    assert said in output
    if shutil.which("git"):
        git = ["git", "-C", ROOT, "describe", "--always", "--abbrev=40"]
        commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout
        expected = commit.strip() or "unknown"
        assert made_with["commit"].removesuffix("-dirty") == expected


def test_resume_takes_no_other_recipe(trained, fails):
    last = ["--resume", trained / "last.pt"]
    assert "--epochs" in fails(train.main, *last, "--epochs", "25")
    assert "--lr" in fails(train.main, *last, "--lr", "0.3")
    best = ["--resume", trained / "best.pt"]
    assert "only a last.pt can" in fails(train.main, *best)
    errors = fails(train.main, "--resume", "nothing.pt")
    assert "no checkpoint nothing.pt" in errors
    assert "--resume names one" in errors
    for option in ("--continue", "--dry-run"):
        errors = fails(train.main, *last, option)
        assert f"--resume and {option} do not go together" in errors


def test_resume_wants_the_same_images(tmp_path, image_folder, call, fails):
    options = ["--dataset", "folder", "--data-dir", image_folder, "-b", 16, "-j", 0]
    options += ["--arch", "small", *RECIPE]
    assert call(train.main, *options, "--epochs", 1)[0] == 0
    for part, said in (("test", "the test images"), ("train", "the training images")):
        image = image_folder / part / "dog" / "000.png"
        Image.open(image).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(image)
        errors = fails(train.main, "--resume", "last.pt", "-j", 0)
        assert f"{said} are not those" in errors


def test_loss_that_explodes_stops_the_training(call, tmp_path):
    options = [*SMALL, "-j", "0", "--lr", "1e30", "--epochs", "3"]
    status, _, errors = call(train.main, *options)
    assert status == 2
    assert errors.count("\n") == 1
    for word in ("nan", "epoch", "batch", "learning rate"):
        assert word in errors
    for path in tmp_path.glob("*.pt"):
        load_checkpoint(path)  # finite


def test_evaluation_that_explodes_stops_the_training(call, monkeypatch):
    def exploded(net, images, *settings, **named):
        return torch.full((len(images), 10), math.inf)

    monkeypatch.setattr(train, "predict", exploded)
    status, _, errors = call(train.main, *SMALL, "-j", "0")
    assert status == 2
    assert "the val loss became nan in epoch 1" in errors
    assert not Path("last.pt").exists()


def damage(trained, tmp_path, change):
    """A copy of the checkpoint with a changed entry."""
    checkpoint = load_checkpoint(trained / "best.pt")
    change(checkpoint)
    save_checkpoint(tmp_path / "damaged.pt", checkpoint)
    return tmp_path / "damaged.pt"


def set_nan(checkpoint):
    checkpoint["weights"]["body.c1.conv.conv.weight"][0] = float("nan")


def set_huge(checkpoint):
    checkpoint["net"]["rows"][0][5] = 60_000


DAMAGES = {
    "nan weights": (set_nan, "not finite"),
    "other version": (lambda c: c.update(format=FORMAT + 1), "this version"),
    "no version": (lambda c: c.update(format=None), "this version"),
    "no weights": (lambda c: c.update(weights={}), "its weights lack"),
    "more weights": (lambda c: c["weights"].update(x=torch.ones(1)), "which it lacks"),
    "no network": (lambda c: c.pop("net"), "no net in it"),
    "no name of it": (lambda c: c["net"].pop("arch"), "no net.arch in it"),
    "no table": (lambda c: c["net"].pop("rows"), "not in ARCHS"),
    "table of text": (lambda c: c["net"].update(rows="c1"), "cannot be built"),
    "deviation 0": (lambda c: c["net"].update(std=[0.0] * 3), "are not finite"),
    "nan mean": (lambda c: c["net"].update(mean=[float("nan")] * 3), "are not finite"),
    "no deviation": (lambda c: c["net"].pop("std"), "cannot be built"),
    "huge padding": (set_huge, "is too large"),
    "wide row": (lambda c: c["net"]["rows"][1].__setitem__(1, 10**9), "is of shape"),
    "no norm": (lambda c: c["net"].update(norm="none"), "cannot be built"),
    "no classes": (lambda c: c.update(classes=[None] * 10), "names of classes"),
    "fewer classes": (lambda c: c["classes"].pop(), "cannot be built"),
    "control characters": (lambda c: c.update(classes=["\x1b[2J"]), "names of classes"),
    "other data set": (lambda c: c["args"].update(dataset="imagenet"), "data set"),
    "epoch of text": (lambda c: c.update(epoch="seven"), "no epoch in it"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_checkpoints(trained, tmp_path, fails, name):
    change, message = DAMAGES[name]
    damage(trained, tmp_path, change)
    assert message in fails(evaluate.main, "--ckpt", "damaged.pt")


@pytest.mark.parametrize("value", [None, "text", [1], {"a": 1}])
@pytest.mark.parametrize(
    "place", ["row", "train_loss", "epoch", "seconds", "schedules"]
)
def test_damaged_states_of_a_training(trained, tmp_path, fails, place, value):
    checkpoint = load_checkpoint(trained / "last.pt")
    state = checkpoint["resume"]
    if place == "row":
        state["history"][0] = value
    elif place == "seconds":
        state["seconds"][0] = value
    elif place == "schedules":
        state["schedules"] = value
    else:
        state["history"][0][place] = value
    save_checkpoint(tmp_path / "last.pt", checkpoint)
    assert "damaged" in fails(train.main, "--resume", "last.pt", "-j", 0)


@pytest.mark.parametrize("option", [(5, 1), ("lr", torch.ones(2))])
def test_damaged_options_of_a_training(trained, tmp_path, fails, option):
    checkpoint = load_checkpoint(trained / "last.pt")
    name, value = option
    checkpoint["args"][name] = value
    save_checkpoint(tmp_path / "last.pt", checkpoint)
    assert "no options in it" in fails(train.main, "--resume", "last.pt", "-j", 0)


def test_truncated_checkpoints(trained, tmp_path):
    whole = (trained / "last.pt").read_bytes()
    path = tmp_path / "truncated.pt"
    for length in [0, 1, 2, 3, 4, *range(5, len(whole), 9973), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="damaged"):
            load_checkpoint(path)


def test_a_changed_bit_of_a_weight_is_noticed(trained, tmp_path):
    content = bytearray((trained / "best.pt").read_bytes())
    weight = load_checkpoint(trained / "best.pt")["weights"]["body.o.conv.conv.weight"]
    position = content.find(weight.contiguous().numpy().tobytes()[:64])
    assert position > 0
    content[position] ^= 1
    (tmp_path / "changed.pt").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(tmp_path / "changed.pt")


# The ways to name a checkpoint.
PATHS = [(evaluate.main, "--ckpt"), (train.main, "--resume"), (train.main, "--init")]


class Hostile:
    """Unpickled, it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_checkpoint_that_would_run_code(tmp_path, fails):
    torch.save({"format": FORMAT, "weights": Hostile(tmp_path / "ran")}, "hostile.pt")
    with open("plain.pt", "wb") as file:
        pickle.dump(Hostile(tmp_path / "ran"), file)
    for name in ("hostile.pt", "plain.pt"):
        for main, option in PATHS:
            assert "damaged" in fails(main, option, name)
    assert not (tmp_path / "ran").exists()


def test_cifar10_batch_that_would_run_code(tmp_path, fails, monkeypatch):
    """torchvision unpickles batches, but only those whose digest is CIFAR-10's."""
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    folder = tmp_path / "data" / CIFAR10.base_folder
    folder.mkdir(parents=True)
    names = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
    for name in [*names, "batches.meta"]:
        (folder / name).write_bytes(pickle.dumps(Hostile(tmp_path / "ran")))
    options = ["--dataset", "cifar10", "--data-dir", "data", "--arch", "small"]
    assert "no intact CIFAR10" in fails(train.main, *options)
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def alarm():
    """Fails a test that waits for ever."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits"))
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("alarm")
def test_named_pipe_is_refused_at_once(fails):
    """Opening it would wait for another process to write."""
    os.mkfifo("pipe.pt")
    for main, option in PATHS:
        assert "a pipe or device" in fails(main, option, "pipe.pt")


# A line of its own, what clears a terminal, and a byte that is no UTF-8.
STRANGE = ["new\nline.pt", "clear\x1b[2J.pt", os.fsdecode(b"caf\xe9.pt")]


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.parametrize("content", [None, "damaged", "pipe"])
def test_name_of_a_file_prints_on_one_line(fails, name, content):
    try:
        if content == "damaged":
            Path(name).write_text("no checkpoint")
        elif content == "pipe":
            os.mkfifo(name)
    except OSError:
        pytest.skip("this disk takes no such name")
    for main, option in PATHS:
        errors = fails(main, option, name)
        assert errors.removesuffix("\n").isprintable()


def test_any_name_of_a_file_can_be_printed(call):
    status, output, _ = call(lambda _: print(os.fsdecode(b"caf\xe9.pt")))
    assert status == 0
    assert output == "caf\\udce9.pt\n"


@pytest.mark.usefixtures("few_pictures")
def test_checkpoint_from_cuda_loads_on_a_cpu(trained, tmp_path, monkeypatch, call):
    checkpoint = load_checkpoint(trained / "best.pt")
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda _: "cuda:0")
        save_checkpoint(tmp_path / "cuda.pt", checkpoint)
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(tmp_path / "cuda.pt")  # it does say that it is from there
    status, output, _ = call(evaluate.main, "--ckpt", tmp_path / "cuda.pt")
    assert status == 0
    accuracy = evaluate_accuracy(trained)
    assert re.search(rf"accuracy {accuracy:.2%}.*, on the 360 images", output)


def evaluate_accuracy(trained):
    images, labels, _ = load("digits", None, train=False)
    net = restore(load_checkpoint(trained / "best.pt"))
    device = torch.device("cpu")
    dtype = pick_precision(device, "auto")  # as evaluate.py does
    scores = evaluate.predict(net, images, device, dtype)
    return evaluate.measure(scores, labels)["accuracy"]


GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(GREY), GREY),
        (Image.fromarray(GREY.astype(np.uint16) * 257), GREY),
        (Image.fromarray(GREY).convert("P"), GREY),
        (Image.fromarray(GREY).convert("RGBA"), GREY),
        (Image.fromarray(GREY).convert("LA"), GREY),
        (Image.fromarray(GREY > 127), (GREY > 127) * 255),
    ],
)
def test_modes_of_images(tmp_path, image, expected):
    path = tmp_path / "image.png"
    image.resize((32, 32), Image.Resampling.NEAREST).save(path)
    pixels = read_image(path)
    assert pixels.shape == (32, 32, 3)
    assert np.array_equal(pixels[::2, ::2, 1], expected)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_images_that_are_none(tmp_path, content):
    path = tmp_path / "image.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"image\.png"):
        read_image(path)


def test_an_image_of_one_pixel_is_refused(tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "image.png")
    with pytest.raises(UserError, match="1x1"):
        read_image(tmp_path / "image.png")


def changed(whole, changes):
    content = bytearray(whole)
    for position, value in changes:
        content[position % len(content)] = value
    return bytes(content)


fuzz = settings(
    max_examples=FUZZ,
    deadline=5_000,  # ms: a hang
    suppress_health_check=list(HealthCheck),
    derandomize=FUZZ < 1000,
)
bytes_changed = st.lists(
    st.tuples(st.integers(0, 10**7), st.integers(0, 255)), min_size=1, max_size=8
)


@pytest.mark.slow
@fuzz
@given(bytes_changed)
@example([(0, 80)])
def test_fuzzed_checkpoints(trained, tmp_path_factory, changes):
    path = tmp_path_factory.getbasetemp() / "fuzzed.pt"
    path.write_bytes(changed((trained / "best.pt").read_bytes(), changes))
    try:
        net = restore(load_checkpoint(path))
        assert net.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    except UserError:
        pass


@pytest.mark.slow
@fuzz
@given(bytes_changed)
def test_fuzzed_pickles(trained, tmp_path_factory, changes):
    """As above, with checksums that fit, so that the changes are really read."""
    path = tmp_path_factory.getbasetemp() / "fuzzed.pt"
    with (
        zipfile.ZipFile(trained / "best.pt") as whole,
        zipfile.ZipFile(path, "w") as file,
    ):
        for name in whole.namelist():
            content = whole.read(name)
            is_pickle = name.endswith("data.pkl")
            file.writestr(name, changed(content, changes) if is_pickle else content)
    try:
        net = restore(load_checkpoint(path))
        assert net.eval()(torch.zeros(1, 3, 32, 32)).ndim == 2
    except UserError:
        pass


@pytest.mark.slow
@fuzz
@given(st.sampled_from(["png", "jpeg", "webp", "gif"]), bytes_changed)
def test_fuzzed_images(tmp_path_factory, kind, changes):
    path = tmp_path_factory.getbasetemp() / f"fuzzed.{kind}"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(changed(path.read_bytes(), changes))
    try:
        assert read_image(path).shape == (32, 32, 3)
    except UserError:
        pass
