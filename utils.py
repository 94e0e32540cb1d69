"""What the scripts share: one-line errors, whole files, checkpoints, devices, pictures."""

import argparse
import csv
import io
import math
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

FORMAT = 1  # of checkpoints; one of another number is refused


class UserError(Exception):
    """Something the user can put right: what is wrong, and what to do about it."""


def run(main):
    """Run a script's `main` and exit with its status; 2 and one line on a `UserError`."""
    try:
        status = main()
        sys.stdout.flush()
        sys.exit(status)
    except BrokenPipeError:  # of `... | head`; the flush at exit must not fail as well
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except UserError as error:
        message = " ".join(str(error).split())
        print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


class Parser(argparse.ArgumentParser):
    """argparse, with the defaults in --help and an error in one line."""

    def __init__(self, **settings):
        settings["formatter_class"] = argparse.ArgumentDefaultsHelpFormatter
        super().__init__(**settings)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (--help shows the options)\n")


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
    """Write bytes so that at any moment the file is the old one or the new one, whole."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}")


def check_writable(*paths):
    """Raise UserError now for a file that could not be written when it is due."""
    for path in map(Path, paths):
        if path.is_dir():
            raise UserError(f"cannot write {path}: it is a folder")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}")


def write_csv(path, rows):
    """Write a list of dictionaries of the same keys as a table."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, text.getvalue().encode())


def save_checkpoint(path, checkpoint):
    """Write a dictionary of plain types and tensors."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **checkpoint}, buffer)
    write_file(path, buffer.getvalue())


def load_checkpoint(path):
    """What `save_checkpoint` wrote, on the CPU; UserError for any other file.

    Nothing but plain types and tensors is unpickled (`weights_only`).
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
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


def save_figure(figure, path):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_file(path, buffer.getvalue())


def plot_curves(history, split, path):
    """Loss and accuracy by epoch, of training and of `split`, with the best epoch."""
    epochs = [row["epoch"] for row in history]
    best = max(history, key=lambda row: row[f"{split}_accuracy"])
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for axes, name, scale in zip(figure.subplots(1, 2), ("loss", "accuracy"), (1, 100)):
        for part, label in (("train", "train (augmented)"), (split, split)):
            values = [scale * row[f"{part}_{name}"] for row in history]
            axes.plot(epochs, values, marker=".", label=label)
        value = scale * best[f"{split}_{name}"]
        label = f"best epoch, {best['epoch']}: {value:.2f}" + " %" * (scale == 100)
        axes.plot(best["epoch"], value, "k*", markersize=12, label=label)
        axes.set(xlabel="epoch", ylabel=name + " (%)" * (scale == 100))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if (
            name == "loss"
        ):  # those tested first can be large, and would flatten the rest
            axes.set_ylim(0, 1.3 * max(row["train_loss"] for row in history))
        axes.grid(alpha=0.3)
        axes.legend()
    save_figure(figure, path)


def plot_images(images, titles, columns, path, heading):
    """A grid of uint8 images (H, W, 3), each under its title."""
    rows = max(1, math.ceil(len(images) / columns))
    lines = 1 + max((title.count("\n") for title in titles), default=0)
    height = (1.5 + 0.2 * lines) * rows + 0.4  # inches
    figure = Figure(figsize=(1.5 * columns, height), layout="constrained")
    figure.suptitle(heading)
    for axes in (grid := figure.subplots(rows, columns, squeeze=False).ravel()):
        axes.axis("off")
    for axes, image, title in zip(grid, images, titles):
        axes.imshow(np.asarray(image))
        axes.set_title(title, fontsize=9)
    save_figure(figure, path)


def plot_confusion(matrix, classes, path):
    """Counts of actual (rows) against predicted classes, shaded by share of the row."""
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = 3 + 0.55 * len(classes)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    figure.colorbar(
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1),
        label="share of the actual class",
    )
    ticks = range(len(classes))
    axes.set_xticks(ticks, classes, rotation=45, ha="right")
    axes.set_yticks(ticks, classes)
    axes.set(xlabel="predicted", ylabel="actual")
    for (row, column), count in np.ndenumerate(matrix):
        colour = "white" if share[row, column] > 0.5 else "black"
        axes.text(
            column, row, count, ha="center", va="center", color=colour, fontsize=8
        )
    save_figure(figure, path)
