"""Checkpoints: what they hold, written whole, read with distrust, and made networks again.

Beside them stand the history, the other files of a training, and how one goes on.
"""

import copy
import hashlib
import importlib.metadata
import io
import json
import platform
import shutil
import subprocess
import uuid
import zipfile
from pathlib import Path

import cv2
import torch

import utils
from machine import is_restart, run_id
from model import (
    ARCHS,
    TRIED,
    Net,
    Unfit,
    check_scores,
    head_alone,
    is_close,
    place_of,
    random_images,
    try_out,
)
from utils import UserError, check_regular_file, is_text, write_file

FORMAT = 2  # of checkpoints; one of another number is refused
# What a checkpoint holds, and of which type it is. `describe` and `result_of` make it.
CONTENTS = {
    "args": dict,  # the options of train.py, but for `NOT_KEPT` there
    "args.arch": str,
    "args.data_dir": str,
    "args.dataset": str,
    "args.downsample": str,
    "args.epochs": int,
    "args.seed": int,
    "net": dict,  # the `Net.config`
    "net.arch": str,
    "classes": list,  # their names
    "chosen_on": str,  # the split that chooses the best epoch
    "made_with": dict,  # versions, machine, images
    "epoch": int,
    "accuracy": float,
    "weights": dict,  # the averaged ones
}
# What a last.pt holds besides, in "resume": `Files.save_epoch` adds it.
STATE = {
    "resume.net": dict,  # this and the next three are what `Training.state_dict` returns
    "resume.optimizers": list,
    "resume.schedules": list,
    "resume.averaged": int,
    "resume.history": list,
    "resume.seconds": list,
    "resume.best_weights": dict,
}
# What evaluation leaves in --out.
OF_EVALUATION = ("confusion_matrix.png", "misclassified.png", "gradcam.png")
# What the `Net.config` of older versions lacks, and what it was then.
OLDER_CONFIG = {"kernels": "free", "activation": "relu", "side": 32}
OLDER_OPTIONS = {"mirror": None, "peak": 0.3, "small": 0.0}  # and their options


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
        others = sorted(map(str, Path("results").glob("*/*.pt")))
        there = f" (there is {', '.join(others[:5])})" if others else ""
        raise UserError(
            f"no checkpoint {path}: 'make train' makes one, {named_by} names one{there}"
        )
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}")
    except Exception:  # noqa: BLE001 - of many types, by what is broken
        raise UserError(
            f"{path} is damaged or no checkpoint: train again, or {named_by} FILE"
        )
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this version: train it again")
    check_contents(checkpoint, CONTENTS, path)
    if not all(is_text(name) for name in checkpoint["classes"]):
        raise UserError(f"{path} is damaged: no names of classes in it")
    for name, weight in checkpoint["weights"].items():
        if not isinstance(weight, torch.Tensor) or not weight.isfinite().all():
            raise UserError(f"{path} is damaged: {name} is not finite")
    checkpoint["net"] = OLDER_CONFIG | checkpoint["net"]
    return checkpoint


def check_contents(checkpoint, contents, path):
    """Raise UserError where something is missing or not of the type it should be."""
    for keys, kind in contents.items():
        value = checkpoint
        for key in keys.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, kind) or (kind is str and not is_text(value)):
            raise UserError(f"{path} is damaged: no {keys} in it")


def load_resumable(path, named_by="--ckpt"):
    """As `load_checkpoint`; UserError also for one that a training cannot go on from."""
    checkpoint = load_checkpoint(path, named_by)
    if not isinstance(checkpoint.get("resume"), dict):
        raise UserError(f"{path} cannot be resumed, only a last.pt can")
    check_contents(checkpoint, STATE, path)
    for name, value in checkpoint["args"].items():
        if not isinstance(name, str) or isinstance(value, torch.Tensor):
            raise UserError(f"{path} is damaged: no options in it")
    numbers = list(checkpoint["resume"]["seconds"])
    for row in checkpoint["resume"]["history"]:
        is_whole = isinstance(row, dict) and isinstance(row.get("epoch"), int)
        numbers += row.values() if is_whole else [None]
    if not numbers or not all(isinstance(value, (int, float)) for value in numbers):
        raise UserError(f"{path} is damaged: no history of numbers in it")
    return checkpoint


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
        saved = checkpoint.get("answers", scores)  # older versions kept none
        if not is_close(scores, saved):
            print(
                f"note      the code of {name} was changed: with the same weights its network "
                "gives other scores than when it was saved"
            )
    except Exception as error:  # noqa: BLE001 - of many types, by what is damaged
        place = "" if is_table else f" ({place_of(error, arch)})"
        raise UserError(
            f"the network of {name}, '{arch}', cannot be built: {error}{place}"
        )
    return net


def check_restorable(net):
    """Raise UserError where a checkpoint of a class of one's own could not be read again.

    Now, since a training that can be neither resumed nor evaluated would be lost.
    """
    if net.config["rows"] is not None:
        return
    expected, _ = try_out(net)
    again, _ = try_out(net)
    arch, weights = net.config["arch"], net.state_dict()
    try:
        for name, weight in weights.items():
            if not isinstance(weight, torch.Tensor):
                raise Unfit(f"{name} is no tensor")
            if not weight.isfinite().all():
                raise Unfit(f"{name} is not finite")
        check_state(net)
        with torch.random.fork_rng(devices=[]):  # whose draws are the training's
            restored = Net(**net.config)
        check_fit(restored, weights)
        restored.load_state_dict(weights)
        found, _ = try_out(restored)
    except Exception as error:  # noqa: BLE001 - of any type, by what the class does
        raise UserError(
            f"no checkpoint of '{arch}' could be read again: {error} "
            f"({place_of(error, arch)})"
        )
    if not is_close(again, expected):
        print(
            f"note      '{arch}' gives other scores each time, in evaluation too: dropout "
            "by a function needs training=self.training"
        )
    elif not is_close(found, expected, 1e-4):
        raise UserError(
            f"'{arch}' gives other scores when it is built again with the same weights: "
            "random values drawn in __init__ must be parameters or buffers"
        )


def check_state(net):
    """Raise Unfit where training makes, reshapes or changes state that no checkpoint restores.

    Print a note where it changes plain attributes: whether they matter is not known.
    """
    trained = copy.deepcopy(net).train()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        trained(random_images(TRIED))
    before = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    after = {name: tuple(value.shape) for name, value in trained.state_dict().items()}
    for name in before | after:
        if before.get(name) != after.get(name):
            raise Unfit(f"{name} is made, or changes its shape, in training")
    attributes = []
    for (path, module), (_, other) in zip(net.named_modules(), trained.named_modules()):
        for name in module._non_persistent_buffers_set:
            buffer, changed = module._buffers[name], other._buffers[name]
            if buffer is not None and not torch.equal(buffer, changed):
                raise Unfit(
                    f"the buffer {path}.{name} changes in training, but is not persistent"
                )
        for name, value in vars(module).items():
            if isinstance(value, (int, float, torch.Tensor)) and name != "training":
                changed = vars(other).get(name, value)
                if not torch.equal(torch.as_tensor(value), torch.as_tensor(changed)):
                    attributes.append(f"{path}.{name}".removeprefix("body."))
    if attributes:
        print(
            f"note      training changes {', '.join(attributes)}, which no checkpoint keeps: "
            "a resumed training may be another; a buffer is kept"
        )


def check_fit(net, weights):
    """Raise Unfit where weights are not those of a network, by name and shape."""
    expected = net.state_dict()
    for name, value in expected.items():
        if name not in weights:
            raise Unfit(f"its weights lack {name}")
        found, wanted = tuple(weights[name].shape), tuple(value.shape)
        if found != wanted:
            raise Unfit(f"{name} is of shape {found} in its weights, not {wanted}")
    if extra := sorted(weights.keys() - expected.keys()):
        raise Unfit(f"its weights have {extra[0]}, which it lacks")


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
    try:
        check_scores(net)
    except Exception as error:  # noqa: BLE001 - of any type, by what a class does
        raise UserError(f"--init {path}, for {len(classes)} classes: {error}")
    head = head_alone(net, f"--init {path}")
    new = {id(weight) for weight in head.parameters()}
    weights = trained.state_dict()
    for name, weight in net.state_dict(keep_vars=True).items():
        if id(weight) not in new:
            weight.data.copy_(weights[name])
    return net


class History:
    """One row of metrics per finished epoch, and the seconds each one took.

    `split` names the images that choose the best epoch: "test", or "val" for held-out ones.
    """

    def __init__(self, split, rows=(), seconds=()):
        self.split = split
        self.rows = list(rows)
        self.seconds = list(seconds)

    def plus(self, row, seconds):
        """The history with one more epoch; this one stays as it is.

        What a metric is, such as a tensor of one number, becomes a plain number: no file takes
        another.
        """
        row = {
            key: value if type(value) is int else float(value)
            for key, value in row.items()
        }
        return History(self.split, [*self.rows, row], [*self.seconds, seconds])

    @property
    def best(self):
        """The row of the highest accuracy, the first of several."""
        return max(self.rows, key=lambda row: row[f"{self.split}_accuracy"])


class Files:
    """The files of a training; only the first process writes, and no dry run does."""

    def __init__(self, args, world, resumed=None):
        out = Path(args.out)
        self.best = Path(args.ckpt)
        self.last = self.best.parent / "last.pt"
        self.history = out / "history.csv"
        self.run = out / "run.json"
        self.curves = out / "curves.png"
        self.augmented = out / "augmented.png"
        self.range_test = out / "lr_finder.png"
        self.are_written = world.rank == 0 and not args.dry_run and not args.find_lr
        self.writer = uuid.uuid4().hex  # in run.json, where another one's is noticed
        self.best_weights = self.best_answers = None  # those of best.pt
        others = (self.last, self.history, self.run, self.curves, self.augmented)
        self.of_training = (self.best, *others)
        if self.best in others:
            raise UserError(
                f"{self.best} is another file's name: give --ckpt another one"
            )
        if args.find_lr and not args.dry_run:
            utils.check_writable(self.range_test)
        if self.are_written:
            self.check_spared(args.init, *(args.teacher or []))
            if resumed:
                self.check_own(args, resumed["args"])
            utils.check_writable(*self.of_training)

    def check_spared(self, *sources):
        """Raise UserError where a checkpoint that is learned from would be overwritten."""
        for source in sources:
            if not source or not Path(source).exists():
                continue
            for path in (self.best, self.last):
                if path.exists() and path.samefile(source):
                    raise UserError(
                        f"this training would overwrite {source}, which it learns from: "
                        "give it a --name"
                    )

    def check_own(self, args, kept):
        """Raise UserError where going on would overwrite the files of another training.

        `kept` are the options of the last.pt that `args.resume` names. Where it lies in its
        own place, the files beside it are its own. So are those that torchrun's processes
        left before they were started again.
        """
        is_there = self.last.exists() and not self.last.is_symlink()
        is_kept = (args.ckpt, args.out) == (kept.get("ckpt"), kept.get("out"))
        if is_kept and is_there and self.last.samefile(args.resume):
            return
        if is_there and is_restart():
            left = load_resumable(self.last)
            if left["resume"].get("run_id") == run_id():
                return
        for path in (self.best, self.last, self.history, self.run):
            if path.exists():
                raise UserError(
                    f"to go on from {args.resume} would overwrite {path}: move that away, "
                    "or give --name"
                )

    def check_shared(self, ckpt):
        """Raise UserError where --out holds what a training of another --ckpt left since."""
        try:
            other = json.loads(self.run.read_text(encoding="utf-8"))["args"]["ckpt"]
        except (OSError, ValueError, LookupError, TypeError):
            return  # it is not there, or damaged
        if other != ckpt:
            raise UserError(
                f"to go on would overwrite {self.run}, which is of {other}: "
                f"--resume {self.last} --name NAME"
            )

    def check_alone(self):
        """Raise UserError where another training has begun to write the same files."""
        try:
            found = json.loads(self.run.read_text(encoding="utf-8"))
            writer = found.get("writer", self.writer)
        except (OSError, ValueError, AttributeError):
            return
        if writer != self.writer:
            raise UserError(
                f"another training writes to {self.run.parent} now: give one a --name"
            )

    def save_tables(self, run, history):
        """Write the history, and what made it; last.pt holds both, too."""
        utils.write_csv(self.history, history.rows)
        marks = {"seconds": history.seconds, "writer": self.writer}
        utils.write_json(self.run, run | marks)

    def set_aside(self):
        """Move the files of an earlier training out of the way, before a new one begins."""
        of_evaluation = [self.run.parent / name for name in OF_EVALUATION]
        left = [path for path in (*self.of_training, *of_evaluation) if path.is_file()]
        if not any(path in left for path in (self.best, self.last, self.run)):
            return
        number = 1
        while (folder := self.history.parent / f"earlier-{number}").exists():
            number += 1
        folder.mkdir(parents=True)
        for path in left:
            try:
                shutil.move(path, folder / path.name)
            except OSError as error:
                raise UserError(f"cannot move {path} to {folder}: {error.strerror}")
        print(f"note      the files of the training before are in {folder} now")

    def save_epoch(self, run, history, training):
        """Save what the last epoch of the history left; `run` says what made it."""
        self.check_alone()
        row = history.rows[-1]
        weights = training.ema.net.state_dict()
        # Copies, on the CPU, that further training leaves alone.
        weights = {name: weight.cpu().clone() for name, weight in weights.items()}
        # On the CPU, as `restore` compares them there: newer GPUs round what convolutions
        # read to ten bits (TF32), which would be taken for other code.
        answers, _ = try_out(copy.deepcopy(training.ema.net).cpu())
        result = result_of(row, history.split, weights, answers)
        if history.best is row:
            self.best_weights, self.best_answers = weights, answers
            save_checkpoint(self.best, run | result)
        try:
            self.save_tables(run, history)
        except UserError as error:  # of a table that is open in Excel, say
            print(f"warning   {error}: last.pt keeps it, and --resume writes it")
        # Written last: with it the epoch counts as finished, and all its other files are there.
        state = training.state_dict()
        state["history"] = history.rows
        state["seconds"] = history.seconds
        state["best_weights"] = self.best_weights
        state["best_answers"] = self.best_answers
        state["run_id"] = run_id()
        save_checkpoint(self.last, run | result | {"resume": state})

    def restore(self, checkpoint, run, history):
        """Write what a last.pt keeps of the other files, as they may have been parted.

        They were made with what it was made with, and not with what goes on now.
        """
        # New objects, as in `describe`.
        run = json.loads(json.dumps(run | {"made_with": checkpoint["made_with"]}))
        self.best_weights = checkpoint["resume"]["best_weights"]
        self.best_answers = checkpoint["resume"].get("best_answers")
        if not self.are_written:
            return
        best = (self.best_weights, self.best_answers)
        result = result_of(history.best, history.split, *best)
        save_checkpoint(self.best, run | result)
        self.save_tables(run, history)
        if not self.last.exists():
            save_checkpoint(self.last, checkpoint | run)


def result_of(row, split, weights, answers):
    """What a checkpoint holds of an epoch: `row` is that of the history.

    `answers` are the network's scores of the images of `try_out`, by which it is known that
    its code still does the same; of older versions None.
    """
    result = {
        "epoch": row["epoch"],
        "accuracy": row[f"{split}_accuracy"],
        "weights": weights,
    }
    return result if answers is None else result | {"answers": answers}


def describe(options, images, training, on_device):
    """All that decides the metrics of this training, as plain types.

    `options` are those of train.py to keep, `images` the `train.Images`.
    """
    made_with = provenance(training.device, training.dtype)
    made_with["augmentation"] = "on the device" if on_device else "on the CPU"
    made_with["cuda_graph"] = training.replay.is_on
    made_with["processes"] = training.world.size
    sizes = {name: len(labels) for name, (_, labels) in images.splits.items()}
    made_with["images"] = sizes
    made_with["sha256"] = images.sha256
    made_with["test_sha256"] = images.test_sha256
    if options["init"]:
        made_with["init"] = f"weights of {options['init']}"
        made_with["init_sha256"] = file_digest(options["init"])
    if options["teacher"]:
        made_with["teachers"] = [file_digest(path) for path in options["teacher"]]
    run = {
        "args": options,
        "net": training.net.config,
        "classes": images.classes,
        "chosen_on": images.chooser,
        "made_with": made_with,
    }
    # New objects: which of them are one and the same, which a resumed training cannot
    # restore, would show in the bytes of the checkpoints.
    return json.loads(json.dumps(run))


def file_digest(path):
    """The SHA-256 of a file; None where there is none, as of an --init at --resume."""
    if not Path(path).is_file():
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def left_behind(files, run, is_continued):
    """The last.pt of this very training, to go on from; None where there is none.

    It is looked for with --continue, which is `is_continued`, and where torchrun has
    started the training again. Raises UserError where --continue finds another training's.
    """
    if not files.last.exists() or not (is_continued or is_restart()):
        return None
    checkpoint = load_resumable(files.last)
    given, kept = run["args"], OLDER_OPTIONS | checkpoint["args"]
    # Images and teachers may have moved: their digests say whether they are the same.
    names = sorted((given.keys() | kept.keys()) - {"data_dir", "teacher"})
    differing = [
        f"{name} {kept.get(name)} and not {given.get(name)}"
        for name in names
        if given.get(name) != kept.get(name)
    ]
    if run["made_with"]["sha256"] != checkpoint["made_with"].get("sha256"):
        # And so are the mean and deviation in the network.
        differing.append("its images are others")
    elif run["net"] != checkpoint["net"]:
        differing.append("its network was edited")
    started_from = run["made_with"].get("init_sha256")
    # Older versions did not keep it.
    if checkpoint["made_with"].get("init_sha256", started_from) != started_from:
        differing.append("its --init is not the checkpoint it was")
    if is_continued and differing:
        raise UserError(
            f"--continue: {files.last} is of another training ({', '.join(differing)}): "
            "give its options, or another --name"
        )
    is_same_run = run_id() == checkpoint["resume"].get("run_id")
    if not is_continued and (differing or not is_same_run):
        return None
    restore(checkpoint, str(files.last))  # which says where its code was changed
    return checkpoint


def go_on(checkpoint, run, training, files):
    """Put training and files back to where a last.pt left them; returns its history."""
    before, state = checkpoint["made_with"], checkpoint["resume"]
    if run["made_with"]["sha256"] != before.get("sha256"):
        raise UserError("the training images are not those of the training to resume")
    test = run["made_with"]["test_sha256"]
    if test != before.get("test_sha256", test):  # older versions did not keep it
        raise UserError("the test images are not those of the training to resume")
    if run["made_with"].get("teachers") != before.get("teachers"):
        raise UserError(
            "a --teacher is not the checkpoint it was: put that back, or train anew"
        )
    if "init_sha256" in before:  # it began from that one, whatever is there now
        run["made_with"]["init_sha256"] = before["init_sha256"]
    for name, value in run["made_with"].items():
        if name == "cuda_graph":  # it may turn out that there can be none
            continue
        if value != before.get(name, value):  # older versions kept fewer
            print(f"note      {name} was {before[name]}: weights may differ a little")
    if files.are_written:
        files.check_shared(run["args"]["ckpt"])
    try:
        training.load_state_dict(state, checkpoint["weights"])
        history = History(run["chosen_on"], state["history"], state["seconds"])
        check_fit(training.ema.net, state["best_weights"])
        files.restore(checkpoint, run, history)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"the state of the training is damaged, or of other code: {error}"
        )
    return history


def provenance(device, dtype):
    """What decides the metrics of a run besides its options, as plain types."""
    names = ("torchvision", "albumentations", "numpy")
    git = ["git", "-C", utils.PROJECT, "describe", "--always", "--dirty", "--abbrev=40"]
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
        "opencv": cv2.__version__,  # 5 gives other augmented pixels than 4
        "device": torch.cuda.get_device_name(device) if is_cuda else device.type,
        "threads": torch.get_num_threads(),
        "precision": str(dtype).removeprefix("torch."),
    }
