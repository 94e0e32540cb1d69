"""Checkpoints: written whole, read with distrust, and made into networks again."""

import io
import zipfile
from pathlib import Path

import torch

from graph import try_out
from model import ARCHS, Net
from utils import UserError, check_regular_file, is_text, line_of, write_file

FORMAT = 2  # of checkpoints; one of another number is refused
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
    "net.arch": str,
    "weights": dict,
}


def save_checkpoint(path, checkpoint):
    """Write a dictionary of plain types and tensors, as `load_checkpoint` wants it."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **checkpoint}, buffer)
    write_file(path, buffer.getvalue())


def load_checkpoint(path, named_by="--ckpt"):
    """What `save_checkpoint` wrote, on the CPU; UserError for any other file.

    `named_by` is the option that says which one to read, for the errors.
    Nothing but plain types and tensors is unpickled (`weights_only`), and what is there
    is of the types it should be, texts printable, weights finite.
    """
    check_regular_file(path)
    try:
        data = io.BytesIO(Path(path).read_bytes())
        if damaged := zipfile.ZipFile(data).testzip():  # torch does not check
            raise ValueError(damaged)
        data.seek(0)
        checkpoint = torch.load(data, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(
            f"no checkpoint {path}: 'make train' makes one, {named_by} names one"
        )
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}")
    except Exception:  # noqa: BLE001 - of many types, by what is broken
        raise UserError(
            f"{path} is damaged or no checkpoint: train again, or {named_by} FILE"
        )
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this version: train it again")
    check_contents(checkpoint, path)
    checkpoint["net"].setdefault("kernels", "free")  # older ones name none
    return checkpoint


def check_contents(checkpoint, path):
    """Raise UserError where something is missing or not of the type it should be."""
    for keys, kind in SCHEMA.items():
        value = checkpoint
        for key in keys.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, kind) or (kind is str and not is_text(value)):
            raise UserError(f"{path} is damaged: no {keys} in it")
    if not all(is_text(name) for name in checkpoint["classes"]):
        raise UserError(f"{path} is damaged: no names of classes in it")
    for name, weight in checkpoint["weights"].items():
        if not isinstance(weight, torch.Tensor) or not weight.isfinite().all():
            raise UserError(f"{path} is damaged: {name} is not finite")


def check_resumable(checkpoint, path):
    """Raise UserError for a checkpoint that a training cannot go on from."""
    if not isinstance(checkpoint.get("resume"), dict):
        raise UserError(f"{path} cannot be resumed, only a last.pt can")


def restore(checkpoint, name="the checkpoint"):
    """The `Net` of a loaded checkpoint, with its weights; UserError if it has none.

    A table is in the checkpoint. A class of one's own has to be in ARCHS still, under the
    same name, and to fit the weights. `name` is what the error calls the checkpoint.
    """
    config, weights = checkpoint["net"], checkpoint["weights"]
    arch = config["arch"]
    is_table = config.get("rows") is not None
    if not is_table and not callable(ARCHS.get(arch)):
        raise UserError(
            f"the network of {name}, the class '{arch}', is not in ARCHS of "
            "model.py: put it back there"
        )
    try:
        if config["classes"] != len(checkpoint["classes"]):
            raise ValueError("its scores are not those of its classes")
        if is_table:  # first without memory, as a damaged table may ask for too much
            with torch.device("meta"):
                check_fit(Net(**config), weights)
        net = Net(**config)
        check_fit(net, weights)
        net.load_state_dict(weights)
        scores, _ = try_out(net)  # some damage only shows when it runs
        if not scores.isfinite().all():
            raise ValueError("its scores are not finite")
    except Exception as error:  # noqa: BLE001 - of many types, by what is damaged
        place = "" if is_table else f" ({line_of(error)})"
        raise UserError(
            f"the network of {name}, '{arch}', cannot be built: {error}{place}"
        )
    return net


def check_fit(net, weights):
    """Raise ValueError where weights are not those of a network, by name and shape."""
    expected = {name: value.shape for name, value in net.state_dict().items()}
    found = {name: value.shape for name, value in weights.items()}
    if expected == found:
        return
    for name, shape in expected.items():
        if name not in found:
            raise ValueError(f"its weights lack {name}")
        if found[name] != shape:
            raise ValueError(
                f"{name} is of shape {tuple(found[name])} in its weights, not {tuple(shape)}"
            )
    extra = sorted(set(found) - set(expected))
    raise ValueError(f"its weights have {extra[0]}, which it lacks")


def start_from(checkpoint, classes, path):
    """The network of a checkpoint, with its weights and normalisation, for other classes.

    `classes` are the names of the new ones. Unless they are the checkpoint's own, the
    layer that gives the scores is new, and all other weights are the checkpoint's. Raises
    UserError, with the checkpoint's `path`, where they do not fit.
    """
    trained = restore(checkpoint, path)
    if list(classes) == checkpoint["classes"]:
        return trained
    net = Net(**{**trained.config, "classes": len(classes)})
    _, head = try_out(net)
    if head is None:
        raise UserError("--init: no layer of this network gives the scores")
    new = {id(weight) for weight in head.parameters()}
    weights = trained.state_dict()
    for name, weight in net.state_dict(keep_vars=True).items():
        if id(weight) in new:
            continue
        if weight.shape != weights[name].shape:
            raise UserError(
                f"--init {path}: {name} has {len(checkpoint['classes'])} classes as well, "
                f"not {len(classes)}: only the layer that gives the scores can be new"
            )
        weight.data.copy_(weights[name])
    return net
