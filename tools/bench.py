"""Measure how fast the parts of a training run here, and a published loop beside them.

    python tools/bench.py

The images are noise, which takes as long as any. Close what else computes: rates of a busy
machine say little.
"""

import copy
import functools
import os
import statistics
import sys
from collections import deque
from itertools import pairwise, product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.benchmark import timer
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # or the next import asks the network

import albumentations as A
from albumentations.pytorch import ToTensorV2

import train
import utils
from dataset import HOLE, MOVE, AugmentedImages, augmentation, training_loader
from engine import Training, train_one_epoch
from layers import Depthwise
from machine import (
    ALONE,
    add_device_options,
    compile_where_it_pays,
    cores,
    in_layout,
    keep_freed_memory,
    pick_device,
    pick_precision,
)
from model import build, try_out
from utils import SIDE
from whole_batch import augments_on_device

try:
    import resource
except ImportError:  # Windows has none
    resource = None

COUNT = 1280  # images in an epoch here
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class PublishedImages(Dataset):
    """Images augmented, normalised and made tensors one at a time."""

    def __init__(self, images, labels):
        steps = [
            *augmentation(MEAN, True, MOVE, HOLE).transforms,
            A.Normalize(MEAN, STD),
            ToTensorV2(),
        ]
        self.images, self.labels, self.transform = images, labels, A.Compose(steps)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = self.transform(image=self.images[index].numpy())["image"]
        return image, self.labels[index]


def plain_depthwise(layer):
    """PyTorch's own convolution in the place of a `Depthwise`."""
    window = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    channels = layer.in_channels
    return nn.Conv2d(channels, channels, *window, groups=channels, bias=False)


class PublishedLoop:
    """The loop the reference network was published with: float32, batches of 64, SGD with
    an L1 penalty over all parameters, the loss read back every batch."""

    def __init__(self, data, device):
        net = build("reference", "dilated", "batch", None, std=(1 / 255,) * 3)
        for parent in list(net.modules()):
            for name, layer in parent.named_children():
                if isinstance(layer, Depthwise):  # as published: PyTorch's own
                    setattr(parent, name, plain_depthwise(layer))
        self.net = in_layout(net, torch.contiguous_format).to(device)
        self.loader = DataLoader(
            data, 64, shuffle=True, num_workers=1, persistent_workers=True
        )
        self.optimizer, self.device = torch.optim.SGD(net.parameters(), 0.01), device

    def epoch(self):
        losses = []
        for images, labels in self.loader:
            images, labels = images.to(self.device), labels.to(self.device)
            self.optimizer.zero_grad()
            penalty = sum(weight.abs().sum() for weight in self.net.parameters())
            loss = F.cross_entropy(self.net(images), labels) + 2.5e-5 * penalty
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())


class PyTorchsMuon(torch.optim.Muon):
    """It takes matrices: views of the kernels, and of their gradients at each step."""

    def __init__(self, muon):
        self.kernels = muon.param_groups[0]["params"]
        matrices = [nn.Parameter(as_matrix(kernel.detach())) for kernel in self.kernels]
        super().__init__(matrices, lr=muon.defaults["lr"])

    def step(self, closure=None):
        for matrix, kernel in zip(self.param_groups[0]["params"], self.kernels):
            matrix.grad = as_matrix(kernel.grad)
        return super().step(closure)


def as_matrix(kernel):
    """A kernel (N, C, rows, columns) as (N, C * rows * columns), by its order in memory."""
    return kernel.movedim(1, -1).view(len(kernel), -1)


class OurLoop:
    """The loop of train.py, with its defaults but for what is given here."""

    def __init__(self, data, device, arch, amp, compiled=False, channels_last=True):
        args, _ = train.parse_arguments(["--arch", arch, "--small", "0"])
        self.device, self.dtype = device, pick_precision(device, amp)
        choice = (args.arch, args.downsample, args.norm, args.dropout)
        net = build(*choice, 10, MEAN, STD, args.kernels, args.activation)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        net = in_layout(net, layout).to(device)
        _, head = try_out(net)
        self.training = Training(net, head, args, 10_000, self.dtype)
        self.training.start_epoch()
        images, labels = data[0, range(args.batch_size)]
        self.is_compiled = False
        if compiled:
            torch.compiler.reset()  # or the variants before count as its recompilations
            self.is_compiled = compile_where_it_pays(
                self.training, "on", COUNT, [(images, labels)], ALONE
            )
            in_layout(net, layout)
        # Pixels made one by one are the CPU's.
        on_device = data.is_known and augments_on_device("auto", data, device)
        self.loader = training_loader(
            data, args.batch_size, 0, args.workers, device, on_device=on_device
        )
        self.batch = images.to(device, memory_format=layout), labels.to(device)

    def steps(self):
        """As many steps as in an epoch, on a batch that is there already."""
        for _ in range(len(self.loader)):
            self.training.step(*self.batch)

    def epoch(self):
        train_one_epoch(self.training, self.loader, 1)


def seconds(*functions, rounds=3):
    """How long a call of each takes: the median of some rounds, in seconds.

    They take turns, so that a slow minute of the machine strikes them all.
    """
    times = []
    for _ in range(rounds + 1):
        marks = [timer()]  # timer() waits for the device
        for function in functions:
            function()
            marks.append(timer())
        times.append([after - before for before, after in pairwise(marks)])
    columns = zip(*times[1:])  # the first round compiles, and starts the workers
    return [statistics.median(column) for column in columns]


def show(name, value, note=""):
    print(f"  {name:40}{value:>9,.{0 if value >= 10 else 2}f}   {note}", flush=True)


def one_by_one(data):
    """The same augmented images, the pixels made by albumentations."""
    copied = copy.copy(data)
    copied.is_known = False
    return copied


def bench_augmentation(data):
    """Print the time of each step; returns ours as a share of the published one's."""
    images = [image.numpy() for image in data.images]

    def each(transform):
        return lambda: [transform(image=image) for image in images]

    def ours():
        return data.augment(1, range(COUNT))

    theirs = functools.partial(one_by_one(data).augment, 1, range(COUNT))
    whole = PublishedImages(data.images, data.labels).transform
    times = seconds(*map(each, [*whole.transforms, whole]), theirs, ours)
    *parts, published, singly, drawn = (1e6 * time / COUNT for time in times)
    print("\nAugmentation: microseconds an image, on one core")
    for step, microseconds in zip(whole.transforms, parts):
        show(type(step).__name__, microseconds)
    show("published: all five, an image at a time", published)
    show("the first three, seeded, an image at a time", singly)
    faster = f"{singly / drawn:.2f} times as fast"
    show("ours: the same pixels, a batch at a time", drawn, faster)
    return drawn / published


def bench_muon(loop):
    """Print the time of a step of Muon and of PyTorch's; `loop` is an `OurLoop`."""
    loop.training.backward(*loop.batch)
    ours = loop.training.optimizers[1]
    time, pytorchs = seconds(ours.step, PyTorchsMuon(ours).step, rounds=20)
    print("\nMuon: microseconds a step")
    show("PyTorch's", 1e6 * pytorchs)
    show("ours", 1e6 * time, f"{pytorchs / time:.2f} times as fast")


def bench_loader(data, device):
    args, _ = train.parse_arguments([])
    print("\nLoader: images a second")
    for workers in range(cores() + 1)[:5]:
        loader = training_loader(data, args.batch_size, 0, workers, device)
        (time,) = seconds(functools.partial(deque, loader, 0))  # takes and forgets
        show(f"{workers} workers", COUNT / time)


def bench_steps(data, device, precision):
    """Print the rate of the default network's step in each form; returns the fastest."""
    print("\nTraining step on a batch that is there: images a second")
    best, fastest = 0, None
    choices = ["off"]
    if pick_precision(device, precision) != torch.float32:
        choices.append(precision)
    for amp, compiled, channels_last in product(choices, (False, True), (False, True)):
        loop = OurLoop(data, device, "default", amp, compiled, channels_last)
        if compiled and not loop.is_compiled:
            continue
        (time,) = seconds(loop.steps)
        name = str(loop.dtype).removeprefix("torch.")
        name += ", compiled" if compiled else ", eager"
        name += ", channels last" if channels_last else ", contiguous"
        show(name, COUNT / time)
        if COUNT / time > best:
            best, fastest = COUNT / time, loop
    return fastest


def main(argv=None):
    parser = utils.Parser(description=__doc__.splitlines()[0])
    add_device_options(parser.add_argument)
    args = parser.parse_args(argv)
    device = pick_device(args.device)
    keep_freed_memory(device)  # as train.py does
    labels = torch.randint(10, (COUNT,))
    images = torch.randint(256, (COUNT, SIDE, SIDE, 3), dtype=torch.uint8)
    data = AugmentedImages(images, labels, augmentation(MEAN, True, MOVE, HOLE), 0)
    share = bench_augmentation(data)
    bench_muon(OurLoop(data, device, "default", args.amp))
    bench_loader(data, device)
    fastest = bench_steps(data, device, args.amp)

    print(
        "\nTraining, from the image in memory to the updated weights: images a second"
    )
    published = PublishedLoop(PublishedImages(images, labels), device)
    reference = OurLoop(data, device, "reference", args.amp)
    ours = OurLoop(data, device, "default", args.amp)
    plain = OurLoop(one_by_one(data), device, "default", args.amp)
    plain.training.optimizers[1] = PyTorchsMuon(plain.training.optimizers[1])
    plain.training.replay.is_on = False  # a CUDA graph is not for PyTorch's
    del plain.training.schedules[1]  # that of the one before
    loops = published.epoch, reference.epoch, plain.epoch, ours.epoch, fastest.steps
    rates = [COUNT / time for time in seconds(*loops, rounds=5)]
    published, reference, plain, ours, steps = rates
    show("published loop, reference network", published)
    named = {
        "this loop, reference network": reference,
        "default, both made by the libraries": plain,
        "this loop, default network": ours,
    }
    for name, rate in named.items():
        show(name, rate, f"{rate / published:.2f} times")
    show(
        "the fastest step above, measured again", steps, f"training: {ours / steps:.2f}"
    )
    print(f"\nAugmentation, ours to published: {share:.2f}")
    if memory := peak_memory(device):
        print(f"Peak memory: {memory / 2**20:,.0f} MiB")


def peak_memory(device):
    """The most memory this process has held so far, in bytes; None where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    if not resource:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    utils.run(main)
