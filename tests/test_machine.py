"""What is decided by the machine: device, precision, compiling; and float16's scaling.

Of the decisions about GPUs only these can be tested without one.
"""

import copy
import math
import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, run_script
from test_optim import IMAGES, LABELS, start
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import engine
import machine
import train
from checkpoint import load_checkpoint
from engine import Replay, Training
from layers import Conv
from machine import ALONE
from model import ARCHS, Net, build
from receptive_field import trace
from utils import UserError
from whole_batch import augment_on_device

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))
DIGITS = ["--dataset", "digits", "--arch", "small", "-j", "0", "--epochs", "1"]


FAULTS = """
import resource
import sys

import torch
from machine import keep_freed_memory

if "keep" in sys.argv:
    keep_freed_memory(torch.device("cpu"))


def fill_and_free(times):
    for _ in range(times):
        torch.ones(10_000_000)  # 40 MB: glibc by itself maps so large a block anew


fill_and_free(20)  # by then the heap has grown to what it takes
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
fill_and_free(10)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc",
    reason="it is glibc that frees",
)
def test_freed_memory_is_kept():
    """The system counts the pages that it had to map anew: page faults."""
    faults = {}
    # Without what Colab preloads, which keeps memory by itself.
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    for choice in ("keep", "free"):
        command = [sys.executable, "-c", FAULTS, choice]
        counted = subprocess.check_output(command, cwd=ROOT, env=environment)
        faults[choice] = int(counted)
    if faults["free"] == 0:
        pytest.skip("this system, such as gVisor, counts no page faults")
    assert faults["keep"] < 1000  # of ten times some 9,766 pages, of 4 KiB each
    assert faults["free"] > faults["keep"] + 100  # pages may be larger, and fewer


def test_the_c_library_is_asked_for_on_linux_alone(monkeypatch):
    """On Windows that reads Python's file, which an app of the Microsoft Store forbids."""
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(machine.platform, "libc_ver", pytest.fail)
    machine.keep_freed_memory(CPU)


def test_only_a_training_on_the_cpu_keeps_memory(monkeypatch):
    monkeypatch.setattr(machine.ctypes, "CDLL", pytest.fail)
    machine.keep_freed_memory(CUDA)
    monkeypatch.setattr(machine.platform, "libc_ver", lambda: ("", ""))  # musl, macOS
    machine.keep_freed_memory(CPU)


@pytest.mark.parametrize(
    ("cuda", "mps", "picked"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "cpu")],
)
def test_device(monkeypatch, cuda, mps, picked):
    """MPS is chosen by its name alone, until someone has run it there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(machine, "cuda_fault", lambda: None)
    assert machine.pick_device("auto").type == picked
    if mps:
        assert machine.pick_device("mps").type == "mps"


def test_gpu_without_kernels_is_said(monkeypatch, capsys):
    """PyTorch finds it, and fails with the first thing that it computes there."""

    def fail(*_, **__):
        raise RuntimeError("CUDA error: no kernel image\nCUDA kernel errors might be")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", fail)
    assert machine.pick_device("auto").type == "cpu"
    said = "fails on it: CUDA error: no kernel image\n"
    assert capsys.readouterr().out.endswith(said)
    assert machine.pick_device("cpu").type == "cpu"
    with pytest.raises(UserError, match="no kernel image; --device cpu goes without"):
        machine.pick_device("cuda")


def test_processes_of_different_precisions_are_refused(call, monkeypatch):
    """Their gradients would be scaled by different factors."""

    def gather(world, own):
        return [*own, torch.float16]  # of a second process, on an older GPU

    monkeypatch.setattr(machine.World, "gather", gather)
    status, _, errors = call(train.main, *DIGITS, "--dry-run")
    assert status == 2
    assert "different precisions: give --amp" in errors


@pytest.mark.parametrize(
    ("device", "has_units", "precision"),
    [
        (CPU, True, torch.bfloat16),
        (CPU, False, torch.float32),
        (CUDA, True, torch.bfloat16),
        (CUDA, False, torch.float16),  # a T4
        (MPS, False, torch.float32),
    ],
)
def test_precision(monkeypatch, device, has_units, precision):
    units = {"avx512_bf16": has_units}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)

    def is_bf16_supported(including_emulation=True):
        return has_units or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    assert machine.pick_precision(device, "auto") == precision
    assert machine.pick_precision(device, "off") == torch.float32
    assert machine.pick_precision(device, "bfloat16") == torch.bfloat16
    assert machine.pick_precision(device, "float16") == torch.float16


def test_memory_format_by_device(monkeypatch):
    """Channels last, but on MPS."""
    for device, expected in ((CPU, True), (CUDA, True), (MPS, False)):
        net = build("small", "dilated", "batch", None)
        monkeypatch.setattr(Net, "to", lambda net, *a, **kw: move(net, **kw))
        assert machine.place(net, device) is net
        monkeypatch.undo()
        weight = net.body.c1.down.conv.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == expected
        assert (net.layout == torch.channels_last) == expected


def move(net, memory_format=None):
    """`Net.to` without the device, which is not here."""
    if memory_format:
        torch.nn.Module.to(net, memory_format=memory_format)
    return net


def small_training(*options, dtype=torch.float32):
    """A `Training` of the small table, and a batch to step on."""
    own = start(*options)
    return Training(own.net, own.net.body.o.conv.conv, own.args, 100, dtype)


class Rehearsed:
    """In the place of a `Training`: says whether and on what it was tried."""

    def __init__(self, device, dtype=torch.float32, error=None):
        self.device, self.dtype = device, dtype
        self.error, self.tried = error, []
        self.net = build("small", "dilated", "batch", None)
        self.teachers = [copy.deepcopy(self.net)]
        self.replay = Replay(is_on=False)

    def warm_up(self, images, labels):
        self.tried.append((images, labels))
        if self.error:
            raise self.error


@pytest.mark.parametrize(
    ("device", "dtype", "images", "choice", "compiled"),
    [
        ("graph", torch.bfloat16, 11_999_999, "auto", False),
        ("graph", torch.bfloat16, 12_000_000, "auto", True),
        (CPU, torch.float32, 10**9, "auto", False),
        (CPU, torch.float32, 1, "on", True),
        (CPU, torch.float16, 10**9, "auto", False),
        (CUDA, torch.float32, 2_000_000, "auto", True),
        (CPU, torch.bfloat16, 999_999, "auto", False),
        (CPU, torch.bfloat16, 1_000_000, "auto", True),
        (CUDA, torch.float16, 10**9, "off", False),
        (CUDA, torch.float16, 1_999_999, "auto", False),
        (CUDA, torch.bfloat16, 2_000_000, "auto", True),
        (MPS, torch.float16, 10**9, "auto", False),
    ],
)
def test_compiled_where_it_is_won_back(
    monkeypatch, device, dtype, images, choice, compiled
):
    Clock(monkeypatch)  # by which all steps are as fast
    own = Rehearsed(CUDA if device == "graph" else device, dtype)
    own.replay.is_on = device == "graph"
    batch = IMAGES, LABELS
    done = machine.compile_where_it_pays(own, choice, images, [batch, batch], ALONE)
    assert done == compiled
    assert own.tried[-2:] == [batch, batch] * compiled
    is_contiguous = compiled and device == CPU
    for net in (own.net, *own.teachers):
        assert (net._compiled_call_impl is not None) == compiled
        assert (net.layout == torch.contiguous_format) == is_contiguous
        weight = net.body.c2.conv.body.conv.weight
        assert weight.is_contiguous() == is_contiguous


class Many:
    """In the place of a `World`: another process reports trouble, or none."""

    def __init__(self, trouble):
        self.trouble = trouble

    def gather(self, own):
        return [*own, self.trouble]


@pytest.mark.parametrize("where", ["here", "in another process"])
def test_compiler_that_fails_at_the_first_step(capsys, where):
    """All processes then train uncompiled: their graphs must not differ."""
    error = RuntimeError("no compiler\n\n" + 100 * "and much more ")
    own = Rehearsed(CPU, error=error if where == "here" else None)
    theirs = "warning   not compiled, as that fails here: no compiler"
    world = ALONE if where == "here" else Many(theirs)
    batch = IMAGES, LABELS
    assert not machine.compile_where_it_pays(own, "on", 1, [batch], world)
    (warning,) = capsys.readouterr().out.splitlines()[1:]
    assert warning.startswith("warning   not compiled, as that fails here: no compiler")
    assert len(warning) < 300
    for net in (own.net, *own.teachers):
        assert net._compiled_call_impl is None
        assert net.layout == torch.channels_last
        net(IMAGES)


@pytest.mark.parametrize(
    ("choice", "seconds", "is_kept"),
    [("auto", 0.9, True), ("auto", 1.1, False), ("on", 1.1, True)],
)
def test_a_slower_compiled_step_is_undone(
    monkeypatch, capsys, choice, seconds, is_kept
):
    own = Rehearsed(CPU, torch.bfloat16)
    clock = Clock(monkeypatch)

    def warm_up(images, labels):
        is_compiled = own.net._compiled_call_impl is not None
        clock.passed += seconds if is_compiled else 1.0

    own.warm_up = warm_up
    batch = IMAGES, LABELS
    done = machine.compile_where_it_pays(own, choice, 10**9, [batch], ALONE)
    assert done == is_kept
    assert (own.net._compiled_call_impl is not None) == is_kept
    note = "note      not compiled, as that is slower here: 1.100 s a step, and 1.000 s"
    assert (note in capsys.readouterr().out) == (not is_kept)


def test_compiler_that_fails_ends_no_training(call, monkeypatch):
    """With the real error of a backend, in the first real step."""

    given = []

    def compile_badly(net, **settings):
        given.append(settings)

        def fail(graph, inputs):
            raise RuntimeError("no code for this device")

        torch.nn.Module.compile(net, backend=fail)

    monkeypatch.setattr(Net, "compile", compile_badly)
    status, output, errors = call(train.main, *DIGITS, "--compile", "on")
    assert status == 0, errors
    assert "no code for this device" in output
    assert ", not compiled\n" in output
    assert given == [{"dynamic": False}]


@pytest.mark.parametrize("freeze", [False, True])
def test_a_rehearsal_changes_nothing(freeze):
    own = small_training("--dropout", 0.1)
    if freeze:
        own.net.body.c1.requires_grad_(False)
    before = copy.deepcopy(own.net.state_dict())
    state = copy.deepcopy(own.state_dict())
    own.warm_up(IMAGES, LABELS)
    for name, value in own.net.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(weight.grad is None for weight in own.net.parameters())
    assert own.state_dict()["optimizers"] == state["optimizers"]
    assert own.ema.updates == 0


@pytest.mark.parametrize(
    ("listed", "cuda", "warning"),
    [
        ("GPU 0: Tesla T4 (UUID: x)", None, "built for CPUs"),
        ("GPU 0: Tesla T4 (UUID: x)", "13.0", "a driver for CUDA 13.0"),
        ("No devices found.", None, ""),
        (None, None, ""),
    ],
)
def test_gpu_that_is_not_used_is_said(monkeypatch, capsys, listed, cuda, warning):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr("shutil.which", lambda name: name if listed else None)
    result = subprocess.CompletedProcess([], 0, stdout=listed)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: result)
    machine.warn_of_unused_gpu(CPU)
    output = capsys.readouterr().out
    assert warning in output
    assert output.count("\n") == bool(warning)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")  # hidden on purpose
    machine.warn_of_unused_gpu(CPU)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # --device cpu
    machine.warn_of_unused_gpu(CPU)
    assert capsys.readouterr().out == ""


class Clock:
    """Minutes of the clock, of which a training computes on some cores, beside a load."""

    def __init__(self, monkeypatch):
        self.passed = self.computed = self.load = 0
        monkeypatch.setattr(machine.time, "perf_counter", lambda: self.passed)
        monkeypatch.setattr(machine.time, "process_time", lambda: self.computed)
        monkeypatch.setattr(os, "getloadavg", lambda: (self.load, 0, 0), raising=False)

    def minute(self, cores, load):
        self.passed += 60
        self.computed += 60 * cores
        self.load = load


@pytest.mark.parametrize(
    ("cores", "load", "device", "threads", "is_said"),
    [
        (1.3, 3.0, CPU, 2, True),  # one other program
        (1.8, 2.0, CPU, 2, False),  # alone
        (1.3, 2.0, CPU, 2, False),  # it waits for itself
        (1.9, 3.0, CPU, 2, False),  # the other program was there earlier
        (0.9, 3.0, CPU, 1, False),  # fewer threads there are not
        (1.3, 3.0, CUDA, 2, False),
    ],
)
def test_a_training_beside_other_programs_is_told_so(
    monkeypatch, capsys, cores, load, device, threads, is_said
):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    clock = Clock(monkeypatch)
    crowding = machine.Crowding(device, workers=0)
    clock.minute(threads, threads)
    crowding.note()
    assert capsys.readouterr().out == ""
    for _ in range(2):  # it is said once
        clock.minute(cores, load)
        crowding.note()
    assert capsys.readouterr().out.count("OMP_NUM_THREADS=1 ") == is_said


@pytest.mark.parametrize(("processes", "workers"), [("2", 0), ("1", 2)])
def test_its_own_processes_are_no_other_programs(
    monkeypatch, capsys, processes, workers
):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    clock = Clock(monkeypatch)
    crowding = machine.Crowding(CPU, workers=workers)
    clock.minute(1.3, 4.0)
    crowding.note()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("rank", "order"), [(0, ["loaded", "barrier"]), (1, ["barrier", "loaded"])]
)
def test_one_process_of_a_node_loads_before_the_others(monkeypatch, rank, order):
    done = []
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setattr(machine.dist, "barrier", lambda: done.append("barrier"))
    machine.World(rank, 2).first_on_its_node(lambda: done.append("loaded"))
    assert done == order


@pytest.mark.parametrize(("processes", "is_its"), [("1", False), ("2", True)])
def test_whose_wish_a_single_thread_is(monkeypatch, processes, is_its):
    """torchrun sets it for several processes, unless it is set; of one it is the user's."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert machine.threads_are_torchruns() == is_its


def test_windows_has_no_load_and_no_note(monkeypatch):
    monkeypatch.delattr(os, "getloadavg", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    machine.Crowding(CPU, workers=0).note()


@pytest.mark.parametrize(
    ("device", "dtype", "warned"),
    [
        (CPU, torch.float32, ["narrow"]),
        (CPU, torch.bfloat16, ["depthwise", "odd"]),
        (CUDA, torch.float32, []),
    ],
)
def test_layers_that_are_unsafe_on_cpus_are_named(capsys, device, dtype, warned):
    net = torch.nn.ModuleDict()
    net["narrow"] = torch.nn.Conv2d(8, 16, 1, 2)
    net["wide"] = torch.nn.Conv2d(16, 16, 1, 2)
    net["whole"] = torch.nn.Conv2d(8, 16, 1)
    net["depthwise"] = torch.nn.Conv2d(16, 16, 3, dilation=2, groups=16)
    net["odd"] = torch.nn.Conv2d(24, 16, 3, dilation=2)
    net["even"] = torch.nn.Conv2d(32, 24, 3, dilation=2)
    net["strided"] = torch.nn.Conv2d(24, 16, 3, 2, dilation=2)
    net["ours"] = Conv(8, 16, 1, 2, 0, 1)
    machine.warn_of_unsafe_layers(net, device, dtype)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == [f"{name}:" for name in warned]


class LayerNorms(nn.Module):
    """Three over the channels of each pixel; of others the gradients are right.

    These are over all of a map, as a layer and as a function, of numbers, or have no weights.
    """

    def __init__(self, classes=10):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, 8)
        self.whole = nn.LayerNorm((8, 4, 4))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.free = nn.LayerNorm(8, elementwise_affine=False)
        self.frozen = nn.LayerNorm(8).requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(8))
        self.scales = nn.Parameter(torch.ones(8, 4, 4))
        self.last = nn.LayerNorm(8)
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        x = F.layer_norm(self.whole(self.patches(x)), (8, 4, 4), self.scales)
        x = self.block(x.flatten(2).transpose(1, 2))  # (N, pixels, channels)
        x = self.frozen(self.free(x))
        x = F.layer_norm(x, (8,), self.scale)
        return self.head(self.last(x.mean(1)))


@pytest.mark.parametrize(
    ("amp", "warned"),
    [("bfloat16", True), ("float16", True), ("off", False)],
)
def test_layer_norms_of_pixels_are_named(call, monkeypatch, amp, warned):
    monkeypatch.setitem(ARCHS, "norms", LayerNorms)
    options = ["--arch", "norms", "--amp", amp, "--dry-run"]
    status, output, errors = call(train.main, *DIGITS, *options)
    assert status == 0, errors
    names = "block.norm1, block.norm2, forward: on CPUs the gradients of layer norm's"
    assert (names in output) == warned
    assert ("layer norm" in output) == warned


def test_layer_norms_are_right_elsewhere(call, capsys, monkeypatch):
    nodes = trace(LayerNorms())
    machine.warn_of_layer_norms(nodes, CUDA, torch.bfloat16)
    assert capsys.readouterr().out == ""
    monkeypatch.setitem(ARCHS, "norms", LayerNorms)
    monkeypatch.setattr(train, "compile_where_it_pays", lambda *_: True)
    options = ["--arch", "norms", "--amp", "bfloat16", "--dry-run"]
    status, output, _ = call(train.main, *DIGITS, *options)
    assert status == 0
    assert "layer norm" not in output


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: not enough memory: you tried"
        ),
    ],
)
def test_too_little_memory(fails, monkeypatch, error, rank):
    """Said by whichever process meets it, as the others do not."""
    monkeypatch.setenv("LOCAL_RANK", rank)

    def step(*_):
        raise error

    monkeypatch.setattr(Training, "step", step)
    errors = fails(train.main, *DIGITS, "--dry-run", "-b", 96)
    assert "--batch-size" in errors
    assert "than 96" in errors


def test_too_little_shared_memory(fails, monkeypatch):
    """As in a container of Docker, whose loader's processes are then killed."""

    def step(*_):
        cause = RuntimeError("Bus error. Your workers are out of shared memory.")
        raise RuntimeError("DataLoader worker (pid 7) exited unexpectedly") from cause

    monkeypatch.setattr(Training, "step", step)
    assert "give --workers 0" in fails(train.main, *DIGITS, "--dry-run")


def test_an_operation_without_a_deterministic_form_ends_in_a_line(fails, monkeypatch):
    def step(*_):
        raise RuntimeError(
            "adaptive_max_pool2d_backward_cuda does not have a deterministic "
            "implementation, but you set 'torch.use_deterministic_algorithms(True)'."
        )

    monkeypatch.setattr(Training, "step", step)
    errors = fails(train.main, *DIGITS, "--dry-run", "--deterministic")
    assert "--deterministic: adaptive_max_pool2d_backward_cuda of this net" in errors
    torch.use_deterministic_algorithms(False)


def test_the_next_training_of_a_notebook_need_not_be_deterministic(call):
    for options, expected in ((["--deterministic"], True), ([], False)):
        assert call(train.main, *DIGITS, "--dry-run", *options)[0] == 0
        assert torch.are_deterministic_algorithms_enabled() == expected


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_lost_process_is_told_by_the_others(fails, monkeypatch, rank):
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr(train, "is_lost", lambda _: True)

    def step(*_):
        raise RuntimeError("gloo: Connection closed by peer")

    monkeypatch.setattr(Training, "step", step)
    errors = fails(train.main, *DIGITS, "--dry-run")
    assert "another process ended" in errors


def test_lost_process_keeps_its_cause(fails, monkeypatch):
    def step(*_):
        raise RuntimeError("NCCL Error 2: unhandled system error\nand much more")

    monkeypatch.setattr(train, "train_one_epoch", step)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    errors = fails(train.main, *DIGITS, "--dry-run", "-b", 96)
    assert "--resume" in errors
    assert "NCCL Error 2: unhandled system error)" in errors


def test_a_training_asks_for_what_the_machine_needs(call, monkeypatch):
    """Each is tested by itself; here, that it is asked at all."""
    asked = []
    names = ["keep_freed_memory", "note", "warn_of_layer_norms"]
    names += ["warn_of_unsafe_layers", "warn_of_unused_gpu"]
    for name in set(names) - {"note"}:
        monkeypatch.setattr(train, name, lambda *_, name=name: asked.append(name))
    monkeypatch.setattr(machine.Crowding, "note", lambda _: asked.append("note"))
    assert call(train.main, *DIGITS, "--dry-run")[0] == 0
    assert sorted(asked) == names


def test_processes_on_a_cpu_share_its_cores(monkeypatch, tmp_path):
    environment = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    environment |= {"TORCHELASTIC_RESTART_COUNT": "0"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    dist, threads = torch.distributed, []
    monkeypatch.setattr(dist, "is_torchelastic_launched", lambda: True)
    store = dist.FileStore(str(tmp_path / "store"), 2)  # Windows has no HashStore
    monkeypatch.setattr(dist, "rendezvous", lambda _: iter([(store, 0, 2)]))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: None)
    monkeypatch.setattr(machine.joblib, "cpu_count", lambda: 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    machine.join(CPU)
    assert threads == [4]


def test_processes_on_cuda_name_their_device(monkeypatch, tmp_path):
    """Else NCCL guesses which GPU is whose at the first barrier."""
    settings = {}
    environment = {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    environment |= {"TORCHELASTIC_RESTART_COUNT": "0"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    dist = torch.distributed
    monkeypatch.setattr(dist, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    store = dist.FileStore(str(tmp_path / "store"), 2)
    monkeypatch.setattr(dist, "rendezvous", lambda _: iter([(store, 1, 2)]))
    monkeypatch.setattr(
        dist, "init_process_group", lambda backend, **kw: settings.update(kw)
    )
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # which all but the first close
    world, device = machine.join(CUDA)
    sys.stdout.close()
    assert (world.rank, world.size) == (1, 2)
    assert settings["device_id"] == device == torch.device("cuda", 1)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux alone has it")
def test_cores_are_those_this_process_may_use(tmp_path):
    one = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, [{one}])\n"
        "import torch, machine\n"
        "torch.set_num_threads(4)\n"  # as torch counts the cores of a container's host
        "machine.join(torch.device('cpu'))\n"
        "print(machine.cores(), torch.get_num_threads())"
    )
    result = run_script(tmp_path, "-c", code, path=ROOT)
    assert result.stdout == "1 1\n", result.stderr


def test_sync_bn_goes_on_in_one_process(tmp_path, call, monkeypatch):
    """The weights of synchronised batch norm are those of batch norm."""
    assert call(train.main, *DIGITS, "--epochs", 2, "--norm", "batch")[0] == 0
    checkpoint = load_checkpoint("last.pt")
    checkpoint["args"]["sync_bn"] = True
    torch.save(checkpoint, "sync.pt")
    status, _, errors = call(train.main, "--resume", "sync.pt", "--name", "on", "-j", 0)
    assert status == 0, errors


class Calls(TorchDispatchMode):
    """Notes every operation that runs."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, arguments=(), settings=None):
        settings = settings or {}
        self.names.append(function._schema.name)
        if function._schema.name == "aten::_to_copy" and "device" in settings:
            self.names.append("to another device")
        return function(*arguments, **settings)


# What makes the CPU wait for a GPU: a value that is read (`item`, `bool`, `if`), a shape
# that depends on values, and a copy from one device to the other.
WAITS = {
    "aten::_local_scalar_dense",
    "aten::is_nonzero",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "to another device",
}


@pytest.mark.parametrize("optimizer", ["muon", "sgd"])
def test_a_step_waits_for_nothing(optimizer):
    """Counted are the operations of torch's `set_sync_debug_mode`, which needs a GPU.

    AdamW keeps its step numbers on the CPU, where reading them waits for no GPU.
    """
    own = start("--optimizer", optimizer, "--l1", 1e-5)
    own.start_epoch()
    own.step(IMAGES, LABELS)  # the first one makes the optimizers' states
    with Calls() as calls:
        own.step(IMAGES, LABELS)
    assert len(calls.names) > 100
    assert not WAITS & set(calls.names)


def test_pixels_made_on_a_device_wait_for_nothing():
    """A number of Python's that is made a tensor there is copied, and waited for."""
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    sources = torch.eye(3)[:2].expand(4, 2, 3).contiguous()
    holes = torch.tensor([[4, 4, 20, 20]]).expand(4, 1, 4)
    fill = torch.full((3, 1, 1), 7.0)
    with Calls() as calls:
        result = augment_on_device(images, sources, holes, fill)
    assert (result[:, :, 4:20, 4:20] == 7).all()
    assert not (WAITS | {"aten::lift_fresh"}) & set(calls.names)
    with Calls() as calls:
        torch.tensor(7.0)
    assert "aten::lift_fresh" in calls.names


def test_small_images_are_made_where_the_batch_is(monkeypatch):
    """Of a pinned batch the CPU would make one that is not."""
    own, devices = start("--small", 1, "--epochs", 3), []
    own.device = torch.device("meta")
    monkeypatch.setattr(
        engine, "shrink", lambda images: devices.append(images.device.type) or images
    )
    own.step = lambda images, labels: (torch.zeros(1), torch.zeros(1))
    loader = FewBatches([(IMAGES, LABELS)] * 2)
    engine.train_one_epoch(own, loader, 3)
    assert devices == ["meta", "meta"]
    assert loader.sampler.epoch == 3  # or each would be drawn as the first


class FewBatches(list):
    """What `train_one_epoch` needs of a loader."""

    pin_memory = False
    sampler = SimpleNamespace()


def test_what_waits_is_noticed():
    with Calls() as calls:
        if torch.ones(2).sum() > 1:
            torch.ones(2).to("meta")
    assert {"aten::_local_scalar_dense", "to another device"} <= set(calls.names)


def weights_of(net):
    return {name: weight.clone() for name, weight in net.named_parameters()}


OPTIMIZERS = ["muon", "sgd", "adam", "adamw"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "poisoned", ["body.c1.conv.conv.weight", "body.c4.conv.norm.bias"]
)
def test_float16_skips_a_poisoned_step_for_all_weights(optimizer, poisoned):
    """Of a kernel that Muon has, and of a vector that SGD has."""
    own = small_training("--optimizer", optimizer, dtype=torch.float16)
    own.start_epoch()
    own.step(IMAGES, LABELS)
    before, scale = weights_of(own.net), own.scaler.get_scale()
    weight = own.net.get_parameter(poisoned)
    hook = weight.register_hook(lambda gradient: gradient * math.inf)
    own.step(IMAGES, LABELS)
    for name, value in own.net.named_parameters():
        assert torch.equal(value, before[name]), name
    assert own.scaler.get_scale() < scale
    hook.remove()
    own.step(IMAGES, LABELS)
    for name, value in own.net.named_parameters():
        assert value.isfinite().all()
        assert not torch.equal(value, before[name]), name


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_float16_unscales_gradients_once(optimizer):
    """What a step is made of is as in float32, up to rounding, whatever the scale."""
    gradients = []
    for dtype, scale in (
        (torch.float32, 1),
        (torch.float16, 16),
        (torch.float16, 1024),
    ):
        torch.manual_seed(0)
        own = small_training("--optimizer", optimizer, dtype=dtype)
        if dtype == torch.float16:
            own.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        own.start_epoch()
        own.step(IMAGES, LABELS)
        gradients.append(torch.cat([w.grad.ravel() for w in own.net.parameters()]))
    exact, *scaled = gradients
    for found in scaled:
        assert torch.cosine_similarity(found, exact, dim=0) > 0.9
        assert found.norm().item() == pytest.approx(exact.norm().item(), rel=0.05)


@pytest.mark.slow
def test_float16_learns(call):
    # Few images, as some CPUs take ten times as long in float16.
    options = ["--dataset", "digits", "--arch", "small", "-j", 0, "-b", 32]
    options += ["--val-size", 1200, "--epochs", 6, "--small", 0]
    options += ["--lr", 0.4, "--muon-lr", 0.055]
    status, output, errors = call(train.main, *options, "--amp", "float16")
    assert status == 0, errors
    assert errors == ""
    assert "float16" in output
    assert load_checkpoint("best.pt")["accuracy"] > 0.9
