"""Several processes under torchrun, against one."""

import contextlib
import csv
import os
import signal
import socket
import statistics
import subprocess
import sys
import time

import pytest
import torch
from conftest import PATH

import train
from checkpoint import load_checkpoint, restore
from dataset import load_splits
from evaluate import measure, predict

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals"),
]

# At rates this low, training does not blow up the rounding of sums in another order.
RECIPE = ["--dataset", "digits", "--val-size", "1100", "-b", "64", "--amp", "off"]
RECIPE += ["--optimizer", "muon", "--schedule", "onecycle", "--ema", "0.2"]
RECIPE += ["--lr", "0.01", "--muon-lr", "0.0003", "--epochs", "3"]
# Group norm sees an image at a time, so that processes change the order of sums alone.
SMALL = ["--arch", "small", "--norm", "group", "--dropout", "0", *RECIPE]
GROUPED = ["--arch", "grouped", *RECIPE]
TOLERANCE = 1e-4

# train.py with the tests' own networks, and a class whose norm sees an image at a time.
SCRIPT = """
import nets, train, utils
from torch import nn

class Grouped(nets.OwnNet):
    def __init__(self, classes):
        super().__init__(classes, dropout=0.0)
        self.bn1, self.bn2 = nn.GroupNorm(4, 8), nn.GroupNorm(4, 24)
        self.unused = nn.Linear(2, 2)  # as they are left over after an edit

nets.ARCHS["grouped"] = Grouped
if __name__ == "__main__":
    utils.run(train.main)
"""


def torchrun(folder, *launch, arguments=SMALL):
    """A started torchrun, in a folder of its own."""
    folder.mkdir(exist_ok=True)
    script = folder.parent / f"{folder.name}-train.py"
    script.write_text(SCRIPT)
    launcher = [sys.executable, "-u", "-m", "torch.distributed.run", *launch]
    return subprocess.Popen(
        [*map(str, launcher), str(script), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": PATH},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def two(folder, *launch, **settings):
    return torchrun(folder, "--standalone", "--nproc-per-node=2", *launch, **settings)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of the same training in one process."""
    folder = tmp_path_factory.mktemp("alone")
    with contextlib.chdir(folder):
        assert train.main(SMALL) == 0
    return folder


def assert_same_weights(one, other, tolerance=TOLERANCE):
    """Of two folders: averaged weights and the net's own, as a share of their length."""
    one, other = (torch.load(folder / "last.pt") for folder in (one, other))
    for ours, theirs in (
        (one["weights"], other["weights"]),
        (one["resume"]["net"], other["resume"]["net"]),
    ):
        ours, theirs = (
            torch.cat([*map(torch.ravel, weights.values())])
            for weights in (ours, theirs)
        )
        assert (ours - theirs).norm() < tolerance * ours.norm()


def read_history(folder):
    with open(folder / "results" / "history.csv") as file:
        return [*csv.DictReader(file)]


def kill_one(process, after, which=-1):
    """Kill a process of a torchrun, the last one, once a line is printed; returns the lines."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(after):
            break
    children = f"/proc/{process.pid}/task/{process.pid}/children"
    with open(children) as file:
        os.kill(int(file.read().split()[which]), signal.SIGKILL)
    return lines


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def test_two_processes_are_one(alone, tmp_path):
    output, errors = two(tmp_path).communicate(timeout=120)
    assert output.count("epoch 1/3") == 1, errors
    assert "Warning" not in errors
    assert_same_weights(alone, tmp_path)

    # Each of 1,100 images counts once: three batches, of which one process took two.
    checkpoint = load_checkpoint(tmp_path / "last.pt")
    splits, _ = load_splits("digits", "", 1100)
    scores = predict(
        restore(checkpoint), splits["val"][0], torch.device("cpu"), torch.float32
    )
    figures = measure(scores, splits["val"][1])
    accuracy, loss = figures["accuracy"], figures["loss"]
    assert checkpoint["accuracy"] == accuracy
    last, lasts = read_history(tmp_path)[-1], read_history(alone)[-1]
    assert float(last["val_accuracy"]) == accuracy
    assert float(last["val_loss"]) == pytest.approx(loss, rel=1e-5)
    assert float(last["train_loss"]) == pytest.approx(
        float(lasts["train_loss"]), rel=1e-4
    )
    assert last["train_accuracy"] == lasts["train_accuracy"]


def test_two_processes_are_one_in_float16(tmp_path):
    """Their scales grow and shrink together; what differs is the rounding of float16."""
    options = [*SMALL, "--amp", "float16", "--epochs", "1"]  # some CPUs are slow at it
    (tmp_path / "alone").mkdir()
    with contextlib.chdir(tmp_path / "alone"):
        assert train.main(options) == 0
    _, errors = two(tmp_path / "two", arguments=options).communicate(timeout=200)
    assert "Traceback" not in errors
    assert_same_weights(tmp_path / "alone", tmp_path / "two", tolerance=1e-3)
    scales = []
    for name in ("alone", "two"):
        state = torch.load(tmp_path / name / "last.pt")["resume"]["scaler"]
        scales.append((state["scale"], state["_growth_tracker"]))
    assert scales[0] == scales[1]


def test_running_averages_are_those_of_the_first(tmp_path):
    """With them all processes test, and with them the network is saved."""
    arguments = [*RECIPE, "--arch", "small", "--norm", "batch", "--epochs", "8"]
    arguments += ["--lr", "0.3", "--muon-lr", "0.04"]  # so that something is learned
    _, errors = two(tmp_path, arguments=arguments).communicate(timeout=120)
    row = read_history(tmp_path)[-1]
    images, labels = load_splits("digits", "", 1100)[0]["val"]
    net = restore(load_checkpoint(tmp_path / "last.pt")).eval()
    with torch.no_grad():
        scores = net(images.permute(0, 3, 1, 2))
    loss = torch.nn.functional.cross_entropy(scores, labels).item()
    assert float(row["val_loss"]) == pytest.approx(loss, rel=1e-5), errors


@linux
@pytest.mark.parametrize(
    ("which", "epoch"),
    [(-1, 1), (0, 2)],  # the first one prints an epoch before it has saved it
)
def test_one_killed_ends_all_and_one_process_resumes(
    alone, call, tmp_path, which, epoch
):
    process = two(tmp_path)
    kill_one(process, f"epoch {epoch}/3", which)
    killed = time.monotonic()
    output, errors = process.communicate(timeout=60)
    assert time.monotonic() - killed < 30
    assert process.returncode != 0
    assert 'train.py", line' not in errors  # no traceback but torchrun's own
    if which:  # of the others torchrun may end one before it prints why
        assert "--resume" in output + errors, errors
    load_checkpoint(tmp_path / "best.pt")
    assert len(read_history(tmp_path)) < 3
    status, output, errors = call(train.main, "--resume", "last.pt")
    # The first one may have been killed inside a save; the next start clears that up.
    assert not list(tmp_path.rglob("*.tmp"))
    assert status == 0, errors
    assert "processes was 2" in output
    assert_same_weights(alone, tmp_path)


@linux
def test_restarted_by_torchrun_it_goes_on(alone, tmp_path):
    (tmp_path / "last.pt").write_text("of another training, not to go on with")
    process = two(tmp_path, "--max-restarts=1")
    before = kill_one(process, "epoch 1/3")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    whole = "".join(before) + output
    assert [whole.count(f"epoch {epoch}/3") for epoch in (1, 2, 3)] == [1, 1, 1]
    assert_same_weights(alone, tmp_path)


def test_two_nodes(alone, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    launch = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"]
    launch += [f"--rdzv-endpoint={endpoint}", "--rdzv-id=1"]
    nodes = []
    for rank, address in enumerate(("127.0.0.1", "127.0.0.2")):
        own = [f"--local-addr={address}"] if sys.platform.startswith("linux") else []
        nodes.append(
            torchrun(tmp_path / str(rank), *launch, f"--node-rank={rank}", *own)
        )
    outputs = [node.communicate(timeout=120) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    folders = tmp_path / "0", tmp_path / "1"
    first, second = sorted(folders, key=lambda folder: -len(list(folder.iterdir())))
    assert not list(second.iterdir())
    assert sum("epoch 1/3" in output for output, _ in outputs) == 1
    assert_same_weights(alone, first)


def test_seeds(alone, tmp_path):
    process = two(tmp_path, arguments=[*SMALL, "--seeds", "2"])
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    seeds = [tmp_path / "results" / f"seed-{seed}" for seed in (0, 1)]
    assert_same_weights(alone, seeds[0])
    with pytest.raises(AssertionError):
        assert_same_weights(*seeds)
    accuracies = []
    for folder in seeds:
        with open(folder / "history.csv") as file:
            accuracies.append([float(r["val_accuracy"]) for r in csv.DictReader(file)])
    last = [row[-1] for row in accuracies]
    mean, deviation = statistics.mean(last), abs(last[0] - last[1]) / 2**0.5
    line = f"last: mean {mean:.2%}, standard deviation {deviation:.2%}, "
    assert f"{line}min {min(last):.2%}, max {max(last):.2%}" in output
    assert (tmp_path / "results" / "compare.png").exists()


def test_seeds_one_after_another(call, tmp_path, monkeypatch):
    read = []
    load = lambda *given: read.append(given) or load_splits(*given)
    monkeypatch.setattr(train, "load_splits", load)
    options = [*SMALL, "--epochs", "1", "--seeds", "2", "--seed", "5", "--name", "two"]
    status, output, errors = call(train.main, *options)
    assert status == 0, errors
    assert sorted(path.name for path in (tmp_path / "results/two").iterdir()) == [
        "compare.png", "seed-5", "seed-6",
    ]  # fmt: skip
    assert "standard deviation" in output
    assert len(read) == 1  # the images, once for both


def test_two_processes_train_a_class_of_ones_own(tmp_path):
    """As one process does, whose weights are those up to rounding."""
    for name, count in (("one", 1), ("two", 2)):
        launch = ("--standalone", f"--nproc-per-node={count}")
        process = torchrun(tmp_path / name, *launch, arguments=GROUPED)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert_same_weights(tmp_path / "one", tmp_path / "two")


def test_l1_of_a_layer_that_is_not_used(tmp_path):
    """DistributedDataParallel, if told of such layers, expects no gradient of theirs."""
    process = two(tmp_path, arguments=[*GROUPED, "--l1", "1e-5", "--epochs", "1"])
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


def test_errors_are_said_once(tmp_path):
    process = two(tmp_path, arguments=[*SMALL, "-b", "63"])
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert errors.count("choose one they can share evenly") == 1, errors
    assert "UserError" not in errors  # as a traceback would name it
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_of_a_node_says_what_is_wrong(call, monkeypatch, rank):
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    status, _, errors = call(train.main, "--lr", "x")
    assert status == 2
    assert ("--help shows the options" in errors) == (rank == 0)
    assert errors.count("\n") == 1 - rank
