"""The machine: its devices, their precision and compiler, and what a run was made with."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch
from torch import nn

from layers import Depthwise
from utils import UserError

COMPILE_FROM = 200_000  # images in all: compiling takes 20 s, won back in about 100,000


def add_machine_options(add):
    """Add --device and --amp, by an argument group's `add_argument`."""
    add(
        "--device",
        choices=["auto", "cpu", "cuda", "mps"],
        default="auto",
        help="auto: the first there is of cuda, mps, cpu",
    )
    add(
        "--amp",
        choices=["auto", "off"],
        default="auto",
        help="auto: bfloat16 where the device computes it fast",
    )


def pick_device(name):
    """The device of a name; "auto" is the first there is of CUDA, MPS and the CPU."""
    found = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device in found if found[device])
    if not found[name]:
        raise UserError(f"there is no {name} device here: --device auto takes what is")
    return torch.device(name)


def pick_precision(device, amp):
    """bfloat16 where `amp` is "auto" and the device has units for it, else float32."""
    if device.type == "cuda":
        is_fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        units = torch.cpu.get_capabilities() if device.type == "cpu" else {}
        is_fast = units.get("avx512_bf16") or units.get("amx_bf16")
    return torch.bfloat16 if amp == "auto" and is_fast else torch.float32


def provenance(device, dtype):
    """What decides the figures of a run besides its options, as plain types."""
    names = ("torchvision", "albumentations", "numpy")
    folder = Path(__file__).parent
    git = ["git", "-C", folder, "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):  # no git, or not a repository
        commit = "unknown"
    is_cuda = device.type == "cuda"
    return {
        "commit": commit.strip(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # with its build, as in 2.14.1+cu130
        **{name: importlib.metadata.version(name) for name in names},
        "device": torch.cuda.get_device_name(device) if is_cuda else device.type,
        "threads": torch.get_num_threads(),
        "precision": str(dtype).removeprefix("torch."),
    }


def compile_where_it_pays(net, choice, images, device):
    """Compile the network in place, so that its weights keep their names, if it pays.

    `choice` is --compile, `images` the number of them in all epochs. Returns whether it did.
    """
    if choice == "off" or images < COMPILE_FROM or not can_compile(device):
        return False
    net.compile()
    return True


def can_compile(device):
    """Whether torch.compile finds what it needs here, which only trying tells."""
    try:
        torch.compile(torch.neg)(torch.zeros(8, device=device))
    except Exception:  # noqa: BLE001 - of many types, by what is missing
        return False
    return True


def warn_of_wrong_gradients(net, device, dtype):
    """Warn of depthwise kernels that PyTorch trains wrongly here; see `Depthwise`."""
    if device.type != "cpu" or dtype != torch.bfloat16:
        return
    for name, module in net.named_modules():
        if not isinstance(module, nn.Conv2d) or isinstance(module, Depthwise):
            continue
        if module.groups > 1 and max(module.dilation) > 1:
            print(
                f"warning   {name.removeprefix('body.')}: gradients of dilated depthwise "
                "kernels in bfloat16 are wrong on some CPUs: take Depthwise of layers.py, "
                "or --amp off"
            )
