"""What the scripts share: one-line errors, whole files, checkpoints, devices."""

import argparse
import csv
import errno
import importlib.metadata
import io
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import unicodedata
import zipfile
from pathlib import Path

import torch
from tqdm import tqdm

FORMAT = 1  # of checkpoints; one of another number is refused
SCHEMA = {  # what evaluation reads of a checkpoint
    "args.arch": str,
    "args.data_dir": str,
    "args.dataset": str,
    "args.downsample": str,
    "args.epochs": int,
    "args.norm": str,
    "args.seed": int,
    "accuracy": float,
    "chosen_on": str,
    "classes": list,
    "epoch": int,
    "made_with": dict,
    "net": dict,
    "weights": dict,
}
NEEDED = 20_000_000  # bytes of disk for a training's files, twice what they come to


class UserError(Exception):
    """Something the user can put right: what is wrong, and what to do about it."""


def run(main):
    """Run a script's `main` and exit with its status; 2 and one line on a `UserError`."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        status = main()
        sys.stdout.flush()
        sys.exit(status)
    except BrokenPipeError:  # of `... | head`; the flush at exit must not fail as well
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except UserError as error:
        complain(f"{Path(sys.argv[0]).name}: error: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        complain("interrupted")
        sys.exit(130)


def complain(message):
    """Print one line on stderr; of the processes torchrun started, one a node does."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(" ".join(message.split()), file=sys.stderr)


def progress(items, name, **settings):
    """A bar, on a terminal alone, and in one process of those that torchrun started."""
    return tqdm(items, name, leave=False, disable=None, file=sys.stdout, **settings)


class Parser(argparse.ArgumentParser):
    """argparse, with the defaults in --help and an error in one line."""

    def __init__(self, **settings):
        settings["formatter_class"] = argparse.ArgumentDefaultsHelpFormatter
        super().__init__(**settings)

    def error(self, message):
        complain(f"{self.prog}: error: {message} (--help shows the options)")
        self.exit(2)


def number(kind, low, high=math.inf):
    """An argparse type: a finite int or float from `low` to `high`."""

    def parse(text):
        value = kind(text)
        if not (low <= value <= high and math.isfinite(value)):
            span = f"{low} or more" if high == math.inf else f"{low} to {high}"
            raise argparse.ArgumentTypeError(f"{text} is not {span}")
        return value

    parse.__name__ = kind.__name__  # how argparse calls it where `kind` fails
    return parse


def write_file(path, data):
    """Write bytes so that the file is at any moment the old or the new one, whole.

    They are on the disk before they take the old one's place. What a kill leaves of the
    temporary file is overwritten by the next write.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}")


def check_writable(*paths):
    """Raise UserError now for a file that could not be written when it is due.

    What a kill may have left of an earlier write is removed.
    """
    for path in map(Path, paths):
        if path.is_dir():
            raise UserError(f"cannot write {path}: it is a folder")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
            if shutil.disk_usage(folder).free < NEEDED:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            path.with_name(path.name + ".tmp").unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}")


def write_csv(path, rows):
    """Write a list of dictionaries of the same keys as a table."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, text.getvalue().encode())


def write_json(path, content):
    write_file(path, (json.dumps(content, indent=2) + "\n").encode())


def is_text(value):
    """Whether a value is a string that prints: no control characters, no stray bytes."""
    categories = {unicodedata.category(character) for character in str(value)}
    return isinstance(value, str) and not categories & {"Cc", "Cs"}


def save_checkpoint(path, checkpoint):
    """Write a dictionary of plain types and tensors, as `load_checkpoint` wants it."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **checkpoint}, buffer)
    write_file(path, buffer.getvalue())


def load_checkpoint(path):
    """What `save_checkpoint` wrote, on the CPU; UserError for any other file.

    Nothing but plain types and tensors is unpickled (`weights_only`), and what is there
    is of the types it should be, texts printable, weights finite.
    """
    try:
        data = io.BytesIO(Path(path).read_bytes())
        if damaged := zipfile.ZipFile(data).testzip():  # torch does not check
            raise ValueError(damaged)
        data.seek(0)
        checkpoint = torch.load(data, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(
            f"no checkpoint {path}: 'make train' makes one, --ckpt names one"
        )
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}")
    except Exception:  # noqa: BLE001 - of many types, by what is broken
        raise UserError(
            f"{path} is damaged or no checkpoint: train again, or --ckpt FILE"
        )
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this version: train it again")
    for keys, kind in SCHEMA.items():
        value = checkpoint
        for key in keys.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, kind) or (kind is str and not is_text(value)):
            raise UserError(f"{path} is damaged: no {keys} in it")
    if not all(map(is_text, checkpoint["classes"])):
        raise UserError(f"{path} is damaged: no names of classes in it")
    for name, weight in checkpoint["weights"].items():
        if not isinstance(weight, torch.Tensor) or not weight.isfinite().all():
            raise UserError(f"{path} is damaged: {name} is not finite")
    return checkpoint


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


def best_epoch(history, split):
    """The row of the highest accuracy, the first of several."""
    return max(history, key=lambda row: row[f"{split}_accuracy"])
