"""The machine: its devices, their precision and compiler, and a training's processes.

torchrun --standalone --nproc-per-node=2 train.py ...
"""

import atexit
import contextlib
import ctypes
import math
import multiprocessing
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import weakref
from datetime import timedelta
from multiprocessing import resource_tracker
from typing import NamedTuple

import joblib
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader

from layers import Conv
from utils import UserError

# How many images a training has in all where compiling may be won back, by kind of device. On
# CUDA it is a guess: a minute, won back by a third more than 10,000 images/s, or than 50,000
# with CUDA graphs. On CPUs it takes half a minute for each size of images, and the step in
# bfloat16 then 15 % less time to 9 % more, by machine, network and recipe: it is timed. In
# float32 little is won there; on MPS nobody has tried.
COMPILE_FROM = {"cuda": 2_000_000, "cuda graph": 12_000_000, "cpu": 1_000_000}
PRECISIONS = {
    "off": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
WORKERS = weakref.WeakSet()  # the processes that loaders started


# fmt: off
def add_device_options(add):
    """Add --device and --amp, by an argument group's `add_argument`."""
    add("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto",
        help="auto: cuda where there is one, else cpu; mps has not been tried yet")
    add("--amp", choices=["auto", *PRECISIONS], default="auto",
        help="precision; auto: bfloat16 where the device computes it fast, else float16 "
        "on cuda and float32 (off) elsewhere")
# fmt: on


def pick_device(name):
    """The device of a name; "auto" is CUDA where there is one that computes, else the CPU."""
    found = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    fault = None
    if found["cuda"] and name in ("auto", "cuda"):
        fault = cuda_fault()
    if name == "auto":
        name = "cuda" if found["cuda"] and not fault else "cpu"
        if fault:
            print(f"warning   the GPU is not used, PyTorch fails on it: {fault}")
    elif not found[name]:
        raise UserError(f"there is no {name} device here: --device auto takes what is")
    elif fault:
        raise UserError(f"PyTorch fails on the GPU: {fault}; --device cpu goes without")
    return torch.device(name)


def cuda_fault():
    """What fails on this process's CUDA device, in a line; None where it computes.

    PyTorch also finds devices that it was built without kernels for, such as a P100.
    """
    count = max(1, torch.cuda.device_count())
    number = int(os.environ.get("LOCAL_RANK", "0")) % count
    try:
        torch.ones(1, device=f"cuda:{number}").item()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


def pick_precision(device, amp):
    """What the network computes in, of the choices of --amp: a torch.dtype.

    "auto" is bfloat16 where the device has units for it. Other CUDA devices, such as a
    T4, have units for float16, whose gradients `Training` scales.
    """
    if amp != "auto":
        return PRECISIONS[amp]
    if device.type == "cuda":
        is_fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if is_fast else torch.float16
    units = {}
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):  # since 2.14
        units = torch.cpu.get_capabilities()
    is_fast = units.get("avx512_bf16") or units.get("amx_bf16")
    return torch.bfloat16 if is_fast else torch.float32


def place(net, device):
    """Move a network to a device, in the memory format that suits it; returns it."""
    if device.type == "mps":  # channels last has had wrong results there
        in_layout(net, torch.contiguous_format)
    return net.to(device)


def in_layout(net, layout):
    """Move a network's weights, and from now on its maps, to a memory format; returns it."""
    net.layout = layout
    return net.to(memory_format=layout)


def keep_freed_memory(device):
    """Keep the memory that a step on the CPU frees, for the next one to use again.

    glibc gives it back to the system by itself. The system then maps and clears it page by
    page in every step, which took up to a fifth of a step's time. The numbers are those of
    M_MMAP_MAX and M_TRIM_THRESHOLD in glibc's malloc.h; see `man mallopt`.
    """
    # Elsewhere it would read Python's own file, which that of the Microsoft Store forbids.
    is_linux = sys.platform == "linux"
    if device.type != "cpu" or not is_linux or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(-4, 0)  # large blocks come from the heap, too
    libc.mallopt(-1, -1)  # and the heap never shrinks


def warn_of_unused_gpu(device):
    """Warn where an NVIDIA GPU is at hand that this PyTorch cannot use."""
    if device.type != "cpu" or torch.cuda.is_available() or not has_nvidia_gpu():
        return
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):  # hidden on purpose
        return
    if torch.version.cuda is None:
        remedy = (
            "this PyTorch is built for CPUs: install one for CUDA, as pytorch.org says"
        )
    else:
        remedy = f"this PyTorch needs a driver for CUDA {torch.version.cuda}: update it"
    print(f"warning   an NVIDIA GPU is here and not used: {remedy}")


def has_nvidia_gpu():
    """Whether NVIDIA's own tool is installed and lists a GPU."""
    if shutil.which("nvidia-smi") is None:
        return False
    try:
        command = ["nvidia-smi", "-L"]
        listed = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and "GPU 0" in listed.stdout


def is_out_of_memory(error):
    """Whether an error says that a device, or the CPU, has no memory left."""
    words = "out of memory|can't allocate memory|not enough memory"
    return bool(re.search(words, str(error), re.IGNORECASE))


def compile_where_it_pays(training, choice, image_count, batches, world):
    """Compile the network in place, so that its weights keep their names, if it pays.

    `choice` is --compile, `image_count` the number of images in all epochs; `batches` are
    images and labels to try the compiled network on, of each size that it will see. With
    "auto" a CPU has to be faster with it, too. Returns whether it is compiled.
    """
    kind = training.device.type
    way = "cuda graph" if training.replay.is_on else kind
    is_worth_it = image_count >= COMPILE_FROM.get(way, math.inf)
    if kind == "cpu":
        is_worth_it &= training.dtype == torch.bfloat16
    if choice == "off" or (choice == "auto" and not is_worth_it):
        return False
    print("compiling the network, which takes a while")
    eager, compiled = [], []  # forms, as `use` takes them
    for net in (training.net, *training.teachers):
        eager.append((net, None, net.layout))
        net.compile(dynamic=False)  # code for each size by itself is the faster one
        # On CPUs compiled kernels are faster so than in channels last.
        layout = torch.contiguous_format if kind == "cpu" else net.layout
        compiled.append((net, net._compiled_call_impl, layout))
    use(compiled)
    trouble = what_fails(training, batches)
    is_fine = not any(world.gather([trouble]))  # and no process compiles any longer
    if is_fine and choice == "auto" and kind == "cpu":
        before, after = seconds_of_step(training, batches[0], (eager, compiled))
        if after > before:
            times = f"{after:.3f} s a step, and {before:.3f} s without"
            trouble = f"note      not compiled, as that is slower here: {times}"
    troubles = [line for line in world.gather([trouble]) if line]
    if troubles:
        use(eager)
        print(troubles[0])
    return not troubles


def use(form):
    """Let networks run in a form: of each (network, what compile() made or None, layout)."""
    # There is no undoing compile() but by what it set.
    for net, code, layout in form:
        net._compiled_call_impl = code
        in_layout(net, layout)


def what_fails(training, batches):
    """A warning where a compiled network fails on one of the batches, else None."""
    try:
        for images, labels in batches:
            training.warm_up(images, labels)
    except Exception as error:  # noqa: BLE001 - of many types, by what is missing
        reason = textwrap.shorten(str(error) or type(error).__name__, 200)
        return f"warning   not compiled, as that fails here: {reason}"
    return None


def seconds_of_step(training, batch, forms):
    """The time of a batch's gradients in each form, the fastest of five.

    They take turns, so that a slow minute of the machine strikes all. The last form stays.
    """
    times = [[] for _ in forms]
    for _ in range(5):
        for form, own in zip(forms, times):
            use(form)
            training.warm_up(*batch)  # the first one after a change takes longer
            start = time.perf_counter()
            training.warm_up(*batch)
            own.append(time.perf_counter() - start)
    return [min(own) for own in times]


class Crowding:
    """Tells, once, that other programs slow a training on the CPU down.

    PyTorch's threads wait for each other at the end of each operation, so that all of them
    wait for the one whose core another program has: see docs/speed.md. It is seen by what
    this process got of its cores, and by the system's load; Windows has no such number.
    """

    def __init__(self, device, workers):
        self.threads, self.workers = torch.get_num_threads(), workers
        self.is_watched = device.type == "cpu" and self.threads > 1
        self.is_watched &= hasattr(os, "getloadavg")
        self.start = self.now()

    def now(self):
        return time.process_time(), time.perf_counter()

    def note(self):
        """Print a note if it has been so since the last call; call it after each epoch."""
        if not self.is_watched:
            return
        now = self.now()
        computed, passed = (end - start for start, end in zip(self.start, now))
        self.start = now
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        own = processes * (self.threads + self.workers)
        # How many threads wanted a core in the last minute, on average, but for our own.
        others = os.getloadavg()[0] - own
        if computed < 0.8 * self.threads * passed and others > 0.5:
            self.is_watched = False
            fewer = self.threads - 1
            print(
                "note      other programs keep the cores busy and slow this training down: "
                f"resuming it with OMP_NUM_THREADS={fewer} may be faster (docs/speed.md)"
            )


def warn_of_unsafe_layers(net, device, dtype):
    """Warn of convolutions that PyTorch trains wrongly on this CPU; those of layers.py are right.

    See `Conv` there.
    """
    if device.type != "cpu":
        return
    for name, module in net.named_modules():
        if not isinstance(module, nn.Conv2d) or isinstance(module, Conv):
            continue
        name = name.removeprefix("body.")
        channels = module.in_channels // module.groups  # that each kernel reads
        is_strided, is_dilated = max(module.stride) > 1, max(module.dilation) > 1
        is_1x1 = module.kernel_size == (1, 1)
        is_uneven = channels % 16 > 0
        if dtype == torch.bfloat16 and is_dilated and is_uneven and not is_strided:
            print(
                f"warning   {name}: the gradient of dilated kernels in bfloat16 is wrong on "
                f"some CPUs where they read {channels} channels, no multiple of 16: take Conv "
                "or Depthwise of layers.py, or --amp off"
            )
        if dtype == torch.float32 and is_1x1 and is_strided and channels < 16:
            print(
                f"warning   {name}: a strided 1x1 convolution of fewer than 16 channels may "
                "end the training on CPUs: take Conv of layers.py"
            )


def warn_of_layer_norms(nodes, device, dtype):
    """Warn of layer norms whose weights and biases PyTorch trains wrongly on CPUs.

    It adds up their gradients in the precision of the maps (seen in torch 2.14.1; compiled it
    does not): in bfloat16, from 256 addends of one size on, the sum stays as it is. `nodes`
    are those of `receptive_field.trace`. Where a norm is over all of an image there is one
    addend an image, which is few enough.
    """
    if device.type != "cpu" or dtype == torch.float32:
        return
    names = {}  # each once, in order
    for node in nodes:
        if 0 < node.norm_axes < len(node.shape):
            names[node.layer or "forward"] = None
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        print(
            f"warning   {', '.join(list(names)[:3])}{more}: on CPUs the gradients of layer "
            f"norm's weights are wrong in {str(dtype).removeprefix('torch.')}, of large batches "
            "less than half of what they should be: give --amp off"
        )


class World(NamedTuple):
    """The processes that train together, and which of them this one is."""

    rank: int = 0
    size: int = 1

    def shard(self, items):
        """What of a sequence falls to this process: every `size`-th item."""
        return items[self.rank :: self.size]

    def gather(self, own):
        """The whole sequence, in order, on every process; `own` is its share."""
        if self.size == 1:
            return own
        shares = [None] * self.size
        dist.all_gather_object(shares, own)
        whole = [None] * sum(map(len, shares))
        for rank, items in enumerate(shares):
            whole[rank :: self.size] = items
        return whole

    def sum(self, tensor):
        """The sum of a tensor over the processes, in its place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast_buffers(self, *modules):
        """Give every process the first one's buffers, such as running statistics."""
        if self.size > 1:
            for module in modules:
                for buffer in module.buffers():
                    dist.broadcast(buffer, 0)

    def first_on_its_node(self, function):
        """Call a function, on each node in one process before the others.

        What one downloads, the others find there.
        """
        waits = self.size > 1 and int(os.environ["LOCAL_RANK"]) > 0
        if waits:
            dist.barrier()
        result = function()
        if self.size > 1 and not waits:
            dist.barrier()
        return result


ALONE = World()


def cores():
    """How many CPU cores are this process's, by affinity and the container's limits."""
    return max(1, joblib.cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def threads_are_torchruns():
    """Whether it is torchrun that gives each process one thread, as it does unless told."""
    are_several = int(os.environ["LOCAL_WORLD_SIZE"]) > 1
    return are_several and os.environ.get("OMP_NUM_THREADS") == "1"


def join(device):
    """Join the processes that torchrun started, where it did.

    Returns the `World` and the device of this process: a GPU each, or all the CPU. All but
    the first print nothing from here on. Raises UserError where GPUs are too few.
    """
    if torch.get_num_threads() > cores():  # torch does not see a container's limits
        torch.set_num_threads(cores())
    if not dist.is_torchelastic_launched():
        return ALONE, device
    if device.type == "mps":
        raise UserError("torchrun takes --device cpu here: MPS knows one process alone")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if int(os.environ["LOCAL_WORLD_SIZE"]) > count:
            raise UserError(f"there are {count} GPUs here: --nproc-per-node={count}")
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    elif threads_are_torchruns():
        torch.set_num_threads(cores())
    # torchrun keeps its store when it restarts: without a prefix the new processes may
    # find the addresses of the dead there.
    store, rank, size = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"start {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        # One may wait for all of another's trainings; of one that dies torchrun knows.
        timeout=timedelta(days=7),
        device_id=device if device.type == "cuda" else None,
    )
    if rank > 0:
        text = {"encoding": "utf-8", "errors": "backslashreplace"}  # as of the first
        sys.stdout = open(os.devnull, "w", **text)  # noqa: SIM115
    return World(rank, size), device


def leave():
    """Leave the processes of `join`, if there are others."""
    if dist.is_initialized():
        dist.destroy_process_group()


def is_lost(error):
    """Whether an error is that of a connection whose other process has gone."""
    return dist.is_initialized() and bool(
        re.search("gloo|nccl", str(error), re.IGNORECASE)
    )


def run_id():
    """What torchrun calls this training, in all its restarts; None without it."""
    return os.environ.get("TORCHELASTIC_RUN_ID")


def is_restart():
    """Whether torchrun has started this training again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


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
