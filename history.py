"""What a training leaves behind, goes on from, and prints."""

import hashlib
import json
from pathlib import Path

import distributed
import utils
from checkpoint import check_fit, check_resumable, load_checkpoint, save_checkpoint
from dataset import digest
from machine import provenance
from options import kept_options
from plots import plot_curves, show
from rules import GOAL, PARAMETERS, RECEPTIVE_FIELD, print_broken_rules
from utils import UserError


class History:
    """One row of metrics per finished epoch, and the seconds each one took.

    `split` names the images that choose the best epoch: "test", or "val" for held-out ones.
    """

    def __init__(self, split, rows=(), seconds=()):
        self.split = split
        self.rows = list(rows)
        self.seconds = list(seconds)

    def plus(self, row, seconds):
        """The history with one more epoch; this one stays as it is."""
        return History(self.split, [*self.rows, row], [*self.seconds, seconds])

    @property
    def best(self):
        """The row of the highest accuracy, the first of several."""
        return max(self.rows, key=lambda row: row[f"{self.split}_accuracy"])


class Files:
    """The files of a training; only the first process writes, and no dry run does."""

    def __init__(self, args, world):
        out = Path(args.out)
        self.best = Path(args.ckpt)
        self.last = self.best.parent / "last.pt"
        self.history = out / "history.csv"
        self.run = out / "run.json"
        self.curves = out / "curves.png"
        self.augmented = out / "augmented.png"
        self.range_test = out / "lr_finder.png"
        self.are_written = world.rank == 0 and not args.dry_run and not args.find_lr
        self.best_weights = None  # those of best.pt
        if self.best == self.last:
            raise UserError("last.pt is the last epoch's: give --ckpt another name")
        if args.find_lr:
            utils.check_writable(self.range_test)
        if self.are_written:
            self.check_spared(args.init, *(args.teacher or []))
            utils.check_writable(self.best, self.last, self.history, self.run)
            utils.check_writable(self.curves, self.augmented)

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

    def save_epoch(self, run, history, training):
        """Save what the last epoch of the history left; `run` says what made it."""
        row = history.rows[-1]
        weights = training.ema.net.state_dict()
        # Copies, on the CPU, that further training leaves alone.
        weights = {name: weight.cpu().clone() for name, weight in weights.items()}
        result = result_of(row, history.split, weights)
        if history.best is row:
            self.best_weights = weights
            save_checkpoint(self.best, run | result)
        utils.write_csv(self.history, history.rows)
        utils.write_json(self.run, run | {"seconds": history.seconds})
        # With this one the epoch counts as finished; the others are there.
        state = training.state_dict()
        state["history"] = history.rows
        state["seconds"] = history.seconds
        state["best_weights"] = self.best_weights
        state["run_id"] = distributed.run_id()
        save_checkpoint(self.last, run | result | {"resume": state})

    def restore_best(self, run, history, weights):
        """Write best.pt from what a last.pt keeps of it, as they may have been parted."""
        self.best_weights = weights
        if self.are_written:
            result = result_of(history.best, history.split, weights)
            save_checkpoint(self.best, run | result)


def result_of(row, split, weights):
    """What a checkpoint holds of an epoch: `row` is that of the history."""
    return {
        "epoch": row["epoch"],
        "accuracy": row[f"{split}_accuracy"],
        "weights": weights,
    }


def describe(args, images, net, device, dtype, compiled, world):
    """All that decides the metrics of this training, as plain types."""
    made_with = provenance(device, dtype)
    made_with["compiled"] = compiled
    made_with["processes"] = world.size
    made_with["images"] = {
        name: len(labels) for name, (_, labels) in images.splits.items()
    }
    made_with["sha256"] = digest(*images.splits["train"])
    if args.init:
        made_with["init"] = f"weights of {args.init}"
    if args.teacher:
        digests = []
        for path in args.teacher:
            digests.append(hashlib.sha256(Path(path).read_bytes()).hexdigest())
        made_with["teachers"] = digests
    run = {
        "args": kept_options(args),
        "net": net.config,
        "classes": images.classes,
        "chosen_on": images.chooser,
        "made_with": made_with,
    }
    # New objects: which of them are one and the same, which a resumed training cannot
    # restore, would show in the bytes of the checkpoints.
    return json.loads(json.dumps(run))


def left_behind(files, run, is_continued):
    """The last.pt of this very training, to go on from; None where there is none.

    It is looked for with --continue, which is `is_continued`, and where torchrun has
    started the training again. Raises UserError where --continue finds another training's.
    """
    if not files.last.exists() or not (is_continued or distributed.is_restart()):
        return None
    checkpoint = load_checkpoint(files.last)
    check_resumable(checkpoint, files.last)
    given, kept = dict(run["args"]), dict(checkpoint["args"])
    # Images and teachers may have moved: their digests say whether they are the same.
    for name in ("data_dir", "teacher"):
        given.pop(name, None)
        kept.pop(name, None)
    differing = differences(given, kept)
    if run["net"] != checkpoint["net"]:
        differing.append("its network was edited")
    if is_continued and differing:
        raise UserError(
            f"--continue: {files.last} is of another training ({', '.join(differing)}): "
            "give its options, or another --name"
        )
    is_same_run = distributed.run_id() == checkpoint["resume"].get("run_id")
    return checkpoint if is_continued or (is_same_run and not differing) else None


def differences(given, kept):
    """Where options differ, in words."""
    words = []
    for name in sorted(given.keys() | kept.keys()):
        if given.get(name) != kept.get(name):
            words.append(f"{name} {kept.get(name)} and not {given.get(name)}")
    return words


def go_on(checkpoint, run, training, files):
    """Put training and files back to where a last.pt left them; returns its history."""
    before, state = checkpoint["made_with"], checkpoint["resume"]
    if run["made_with"]["sha256"] != before.get("sha256"):
        raise UserError("the training images are not those of the training to resume")
    if run["made_with"].get("teachers") != before.get("teachers"):
        raise UserError(
            "a --teacher is not the checkpoint it was: put that back, or train anew"
        )
    for name, value in run["made_with"].items():
        if value != before.get(name):
            print(
                f"note      {name} was {before.get(name)}: weights may differ a little"
            )
    try:
        training.load_state_dict(state, checkpoint["weights"])
        history = History(run["chosen_on"], state["history"], state["seconds"])
        check_fit(training.ema.net, state["best_weights"])
        files.restore_best(run, history, state["best_weights"])
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"the state of the training is damaged: {error}")
    return history


def print_header(args, title, rules, made_with):
    """Print what decides the run."""
    sizes = ", ".join(f"{size:,} {name}" for name, size in made_with["images"].items())
    names = ("python", "torch", "torchvision", "albumentations", "numpy")
    versions = ", ".join(f"{name} {made_with[name]}" for name in names)
    compiled = "compiled" if made_with["compiled"] else "not compiled"
    by_name = {rule.text: rule.value for rule in rules}
    print(
        f"network   {title}: {by_name[PARAMETERS]}, "
        f"receptive field {by_name[RECEPTIVE_FIELD]}"
    )
    if "init" in made_with:
        print(f"start     {made_with['init']}")
    for path in args.teacher or []:
        print(f"teacher   {path}")
    if args.freeze:
        print("frozen    all weights but those of the last layer")
    print(
        f"data      {args.dataset}: {sizes} images\n"
        f"device    {made_with['device']}, {made_with['precision']}, {compiled}\n"
        f"versions  {versions}\n"
        f"training  {args.epochs} epochs, batches of {args.batch_size}, "
        f"{args.optimizer}, {args.schedule}, seed {args.seed}\n"
        f"best      chosen on the {'held-out' if args.val_size else 'test'} images"
    )
    print_broken_rules(rules)


def print_epoch(history, epochs, images):
    """Print the last row of the history as one line; `images` are those of an epoch."""
    row, seconds, split = history.rows[-1], history.seconds[-1], history.split
    epoch = f"{row['epoch']:>{len(str(epochs))}}/{epochs}"
    line = (
        f"epoch {epoch}  lr {row['lr']:.4f}  train {show(row, 'train_')}  "
        f"{split} {show(row, f'{split}_')}  {seconds:.1f} s  "
        f"{images / seconds:,.0f} images/s"
    )
    if history.best is row:
        line += "  best"
    print(line, flush=True)


def report(history, files, title, targets):
    """Draw the curves, and print the accuracy of the best and the last epoch.

    `title` says what was trained, `targets` what the training loss has in place of the
    plain labels.
    """
    plot_curves(history, title, targets, GOAL, files.curves)
    named = (("best", history.best, files.best), ("last", history.rows[-1], files.last))
    for name, row, path in named:
        accuracy = row[f"{history.split}_accuracy"]
        print(
            f"{name} epoch {row['epoch']}: {history.split} accuracy {accuracy:.2%} in {path}"
        )
