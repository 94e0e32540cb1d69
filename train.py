"""Train the network: from images to a checkpoint and its curves.

    python train.py [--dataset folder --data-dir FOLDER] [--arch reference] ...
    python train.py --resume last.pt
    python train.py --find-lr
    torchrun --standalone --nproc-per-node=2 train.py ...

Writes the best epoch to --ckpt and the last one beside it, as last.pt; the history, its
curves, a picture of the augmentation and run.json to the folder --out.
"""

import argparse
import json
import math
import os
import signal
import time
from pathlib import Path

import numpy as np
import torch

import compare
import distributed
import utils
from dataset import (
    DATASETS,
    AugmentedImages,
    augmentation,
    digest,
    load_splits,
    mean_and_std,
    training_loader,
)
from distributed import ALONE
from evaluate import loss_and_accuracy, predict
from lr_finder import find_lr
from model import add_network_options, build, checklist, restore
from optim import Training
from plots import plot_curves
from utils import UserError, number

# Options of where and how far to train, not of what; a checkpoint does not keep them.
WHERE = {"device", "dry_run", "find_lr", "resume", "seeds", "workers"}
COMPILE_FROM = 200_000  # images in all: compiling takes 20 s, won back in about 100,000


def parse_arguments(argv):
    parser = utils.Parser(description=__doc__.splitlines()[0])
    natural, positive, share = number(int, 0), number(int, 1), number(float, 0, 1)
    rate = number(float, 0)

    add = parser.add_argument_group("data").add_argument
    add("--dataset", choices=DATASETS, default="cifar10", help="kind of images")
    add("--data-dir", default="data", help="folder they are in, or are downloaded to")
    add(
        "--val-size",
        type=natural,
        default=0,
        metavar="N",
        help="training images that choose the best epoch; 0: the test images do",
    )
    add(
        "-j",
        "--workers",
        type=natural,
        help="processes that augment; None: all cores but two, 8 at most",
    )
    add("--move", type=share, default=0.3, help="share of images moved and turned")
    add("--hole", type=share, default=0.15, help="share of images with a hole")

    add_network_options(parser)

    add = parser.add_argument_group("recipe").add_argument
    add("--epochs", type=positive, default=14, help="passes over the images")
    add("-b", "--batch-size", type=positive, default=128, help="images a step")
    add(
        "--optimizer",
        choices=["muon", "sgd"],
        default="muon",
        help="muon: for the kernels that mix channels, and SGD for the rest",
    )
    add("--muon-lr", type=rate, default=0.03, help="highest learning rate of Muon")
    add("--muon-decay", type=rate, default=0.02, help="weight decay of Muon")
    add("--lr", type=rate, default=0.3, help="highest learning rate of SGD")
    add("--weight-decay", type=rate, default=5e-4, help="of SGD, but for norms")
    add("--l1", type=rate, default=0.0, help="penalty on the size of all parameters")
    add("--gamma", type=share, help="times the rates every epoch; None: one cycle")
    add("--label-smoothing", type=share, default=0.1, help="share of other classes")
    add(
        "--ema",
        type=share,
        default=0.02,
        help="share of the steps weights average over",
    )
    add(
        "--seed",
        type=number(int, 0, 2**63 - 1),
        default=0,
        help="of weights, order and augmentation",
    )
    add("--seeds", type=positive, default=1, help="as many trainings, from --seed on")

    add = parser.add_argument_group("machine").add_argument
    utils.add_machine_options(add)
    add(
        "--compile",
        choices=["auto", "off"],
        default="auto",
        help="auto: where a compiler is found and the training is long enough",
    )
    add("--sync-bn", action="store_true", help="batch norm over all CUDA processes")
    add("--deterministic", action="store_true", help="same bits each time on CUDA too")

    add = parser.add_argument_group("output").add_argument
    add("--ckpt", default="best.pt", help="checkpoint of the best epoch")
    add("--out", default="results", help="folder of the history and the pictures")
    add("--name", help="keep everything in results/NAME, whatever --ckpt and --out")
    add("--dry-run", action="store_true", help="try one batch and write nothing")
    add("--find-lr", action="store_true", help="suggest learning rates and do no more")
    add("--resume", metavar="LAST.PT", help="go on after its epoch, with its options")

    args = parser.parse_args(argv)
    if args.resume is None:
        return args, None
    # Parsed onto a namespace that has them all, options that were not given stay None.
    blank = argparse.Namespace(**dict.fromkeys(vars(args)))
    parsed = vars(parser.parse_args(argv, blank))
    given = {name: value for name, value in parsed.items() if value is not None}
    if fixed := [name for name in given if name not in WHERE | {"data_dir"}]:
        raise UserError(
            "--resume goes on with the options of its training, whose schedule ends with "
            f"its last epoch: leave out --{fixed[0].replace('_', '-')}, or train anew"
        )
    checkpoint = utils.load_checkpoint(args.resume)
    if not isinstance(checkpoint.get("resume"), dict):
        raise UserError(f"{args.resume} cannot be resumed, only a last.pt can")
    argv = []  # parsed again, what the file says is checked like what a user says
    for name, value in (checkpoint["args"] | given).items():
        if value is not None and value is not False:
            option = f"--{name.replace('_', '-')}"
            argv.append(option if value is True else f"{option}={value}")
    return parser.parse_args(argv), checkpoint


def can_compile(device):
    """Whether torch.compile finds what it needs here, which only trying tells."""
    try:
        torch.compile(torch.neg)(torch.zeros(8, device=device))
    except Exception:  # noqa: BLE001 - of many types, by what is missing
        return False
    return True


def train_one_epoch(training, batches, epoch, device, dtype, world=ALONE):
    """One pass over the batches; returns loss and accuracy on the augmented images.

    Both are read off the device at the end, so that it need not wait in between, and
    are those of all processes. Raises UserError where a loss was not finite.
    """
    training.net.train()
    losses, rates, right, seen = [], [], 0, 0
    for images, labels in batches:
        images = images.to(device, non_blocking=True)
        labels = labels.to(device, non_blocking=True)
        rates.append(training.lr)
        loss, right_here = training.step(images, labels, dtype)
        losses.append(loss)
        right, seen = right + right_here, seen + len(labels)
        if batches.n % 50 == 0 and not batches.disable:
            accuracy = f"accuracy {right.item() / seen:.1%}, lr {rates[-1]:.4f}"
            batches.set_postfix_str(f"loss {loss.item():.3f}, {accuracy}")
    losses = world.sum(torch.stack(losses)).cpu() / world.size
    right, seen = world.sum(right), seen * world.size
    if not losses.isfinite().all():
        batch = losses.isfinite().int().argmin()
        raise UserError(
            f"the loss became {losses[batch]} in epoch {epoch}, batch {batch + 1}, at "
            f"learning rate {rates[batch]:.4g}: try a lower --lr"
        )
    return losses.mean().item(), right.item() / seen


def main(argv=None):
    args, resumed = parse_arguments(argv)
    if args.name is not None:
        if args.name in ("", "..") or Path(args.name).name != args.name:
            raise UserError(f"--name '{args.name}' is no name of a folder")
        args.out = os.path.join("results", args.name)
        args.ckpt = os.path.join(args.out, "best.pt")
    if args.seeds > 1 and (args.find_lr or args.resume):
        raise UserError(
            "--find-lr and --resume are for one training: leave out --seeds"
        )
    world, device = distributed.join(utils.pick_device(args.device))
    if args.find_lr and world.size > 1:
        raise UserError("--find-lr is for one process: leave out torchrun")
    try:
        if args.seeds > 1:
            status = train_seeds(args, device, world)
        else:
            status = train(args, resumed, device, world)
    except RuntimeError as error:
        if not distributed.is_lost(error):
            raise
        raise UserError(
            "another process ended: what is saved is whole, --resume goes on"
        )
    distributed.leave()
    return status


def train_seeds(args, device, world):
    """Trainings that differ in their seed alone, shared out over the processes."""
    out = Path(args.out)
    folders = [out / f"seed-{args.seed + number}" for number in range(args.seeds)]
    status, trouble = 0, None
    for folder in world.share(folders):
        own = {"seed": int(folder.name.removeprefix("seed-")), "seeds": 1, "name": None}
        own |= {"out": str(folder), "ckpt": str(folder / "best.pt")}
        print(f"\nin {folder}")
        try:
            status = train(argparse.Namespace(**vars(args) | own), None, device)
        except UserError as error:
            trouble = f"{folder}: {error}"
        if status or trouble:
            break
    if troubles := [*filter(None, world.gather([trouble]))]:
        raise UserError("; ".join(troubles))
    status = max(world.gather([status]))
    if status == 0 and world.rank == 0 and not args.dry_run:
        print()
        compare.main([*map(str, folders), "--out", str(out / "compare.png")])
    return status


def train(args, resumed, device, world=ALONE):
    """One training; returns the exit status."""
    best_path, out = Path(args.ckpt), Path(args.out)
    last_path = best_path.parent / "last.pt"
    writes = world.rank == 0 and not args.dry_run
    if best_path == last_path:
        raise UserError("last.pt is the last epoch's: give --ckpt another name")
    names = ("history.csv", "run.json", "curves.png", "augmented.png")
    if args.find_lr:
        utils.check_writable(out / "lr_finder.png")
    elif writes:
        utils.check_writable(best_path, last_path, *(out / name for name in names))
    dtype = utils.pick_precision(device, args.amp)
    torch.manual_seed(args.seed)
    if args.deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # what cuBLAS asks for
        torch.use_deterministic_algorithms(True)

    # Images. Of these data sets, the digits alone are something else in the mirror.
    splits, classes = world.first_on_its_node(
        lambda: load_splits(args.dataset, args.data_dir, args.val_size)
    )
    if args.batch_size > (count := len(splits["train"][1])):
        raise UserError(f"--batch-size {args.batch_size}: there are {count} images")
    if args.batch_size % world.size:
        raise UserError(
            f"--batch-size {args.batch_size} on {world.size} processes: "
            "choose one they can share evenly"
        )
    if args.dry_run:
        args.epochs, some = 1, slice(args.batch_size)
        splits = {name: (i[some], k[some]) for name, (i, k) in splits.items()}
    chooser = "val" if args.val_size else "test"  # of the best epoch
    mean, std = mean_and_std(splits["train"][0])
    flip = args.dataset != "digits"
    transform = augmentation(mean, flip, args.move, args.hole)
    data = AugmentedImages(*splits["train"], transform, args.seed)
    loading = args.batch_size, args.seed, args.workers, device, world
    loader = training_loader(data, *loading)

    # The network and what trains it.
    choice = args.arch, args.downsample, args.norm, args.dropout
    net = build(*choice, len(classes), mean, std).to(device)
    if args.sync_bn:
        if device.type != "cuda" or world.size == 1:
            raise UserError("--sync-bn is for several processes on CUDA")
        net = torch.nn.SyncBatchNorm.convert_sync_batchnorm(net)
    training = Training(net, args, args.epochs * len(loader), world)
    is_long = args.epochs * count >= COMPILE_FROM
    compiled = args.compile == "auto" and is_long and can_compile(device)
    if compiled:
        net.compile()  # in place: its weights keep their names

    made_with = utils.provenance(device, dtype) | {"compiled": compiled}
    made_with["processes"] = world.size
    made_with["images"] = {name: len(labels) for name, (_, labels) in splits.items()}
    made_with["sha256"] = digest(*splits["train"])
    options = {key: value for key, value in vars(args).items() if key not in WHERE}
    run = {"args": options, "net": net.config, "classes": classes}
    run |= {"chosen_on": chooser, "made_with": made_with}
    # Plain types; and new objects, or which of them are the same one, which a resumed
    # training cannot restore, would show in the bytes of the checkpoints.
    run = json.loads(json.dumps(run))
    print_header(args, checklist(net), made_with)
    if args.find_lr:
        factor = find_lr(training, loader, device, dtype, out / "lr_finder.png")
        print(
            f"suggested --lr {factor * args.lr:.2g} --muon-lr {factor * args.muon_lr:.2g}"
        )
        print(f"the losses are in {out / 'lr_finder.png'}")
        return 0
    if not resumed and distributed.is_restart() and last_path.exists():
        last = utils.load_checkpoint(last_path)
        own = distributed.run_id() == last["resume"].get("run_id")
        resumed = last if own and last["args"] == run["args"] else None
    history, seconds = resume(resumed, run, training) if resumed else ([], [])
    if len(set(world.gather([(len(history), made_with["sha256"])]))) > 1:
        raise UserError("the processes do not see the same images and last.pt")
    if writes:
        data.save_samples(classes, out / "augmented.png")
    try:
        for epoch in range(len(history) + 1, args.epochs + 1):
            start, lr = time.perf_counter(), training.lr
            # Dropout draws from torch's generator: for each epoch alone, as all else.
            own = np.random.SeedSequence((args.seed, epoch, world.rank))
            torch.manual_seed(int(own.generate_state(1)[0]))
            loader.sampler.epoch = epoch
            batches = utils.progress(loader, f"epoch {epoch}")
            train_loss, train_accuracy = train_one_epoch(
                training, batches, epoch, device, dtype, world
            )
            world.share_buffers(net, training.ema.module)
            images, labels = splits[chooser]
            logits = predict(training.ema.module, images, device, dtype, world=world)
            loss, accuracy = loss_and_accuracy(logits, labels)
            if not math.isfinite(loss):
                raise UserError(f"the {chooser} loss became {loss} in epoch {epoch}")
            row = {"epoch": epoch, "lr": lr}
            row |= {"train_loss": train_loss, "train_accuracy": train_accuracy}
            row |= {f"{chooser}_loss": loss, f"{chooser}_accuracy": accuracy}
            rows = [*history, row]
            times = [*seconds, time.perf_counter() - start]
            is_best = utils.best_epoch(rows, chooser) is row
            print_epoch(
                row, args.epochs, chooser, count / times[-1], times[-1], is_best
            )
            if writes:
                weights = training.ema.module.state_dict()
                result = {"epoch": epoch, "accuracy": accuracy, "weights": weights}
                if is_best:
                    utils.save_checkpoint(best_path, run | result)
                utils.write_csv(out / "history.csv", rows)
                utils.write_json(out / "run.json", {**run, "seconds": times})
                # With this one the epoch counts as finished; the others are there.
                state = training.state_dict() | {"history": rows, "seconds": times}
                state["run_id"] = distributed.run_id()
                utils.save_checkpoint(last_path, run | result | {"resume": state})
            history, seconds = rows, times
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one ends at once
        print(f"\ninterrupted: {len(history)} of {args.epochs} epochs are finished")
        if history and not args.dry_run:
            print(f"to go on: python train.py --resume {last_path}")

    status = 0 if len(history) == args.epochs else 130
    if not history or args.dry_run:
        print("nothing was written")
    if not history or not writes:
        return status
    plot_curves(history, chooser, out / "curves.png")
    best = utils.best_epoch(history, chooser)
    for name, row, path in ("best", best, best_path), ("last", history[-1], last_path):
        figure = f"{chooser} accuracy {row[f'{chooser}_accuracy']:.2%}"
        print(f"{name} epoch {row['epoch']}: {figure} in {path}")
    if args.val_size:
        chosen = restore(utils.load_checkpoint(best_path)).to(device)
        logits = predict(chosen, splits["test"][0], device, dtype)
        _, accuracy = loss_and_accuracy(logits, splits["test"][1])
        print(
            f"test accuracy of the best epoch, seen by nothing before: {accuracy:.2%}"
        )
    return status


def resume(checkpoint, run, training):
    """Put the training back to where a last.pt left it; returns history and seconds."""
    before, state = checkpoint["made_with"], checkpoint["resume"]
    if run["made_with"]["sha256"] != before.get("sha256"):
        raise UserError("the training images are not those of the training to resume")
    for name, value in run["made_with"].items():
        if value != before.get(name):
            print(
                f"note      {name} was {before.get(name)}: weights may differ a little"
            )
    try:
        training.load_state_dict(state, checkpoint["weights"])
        return state["history"], state["seconds"]
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"the state of the training is damaged: {error}")


def print_header(args, rules, made_with):
    """Print what decides the run."""
    (_, parameters, _), (_, field, _), *_ = rules
    sizes = ", ".join(f"{size:,} {name}" for name, size in made_with["images"].items())
    versions = ("python", "torch", "torchvision", "albumentations", "numpy")
    print(
        f"network   {args.arch}, {args.downsample}, {args.norm} norm: "
        f"{parameters} parameters, receptive field {field}\n"
        f"data      {args.dataset}: {sizes} images\n"
        f"device    {made_with['device']}, {made_with['precision']}, "
        f"{'' if made_with['compiled'] else 'not '}compiled\n"
        f"versions  {', '.join(f'{name} {made_with[name]}' for name in versions)}\n"
        f"training  {args.epochs} epochs, batches of {args.batch_size}, seed {args.seed}\n"
        f"best      chosen on the {'held-out' if args.val_size else 'test'} images"
    )
    for rule, figure, passed in rules:
        if not passed:
            print(f"warning   a rule of the assignment is broken: {rule} ({figure})")


def print_epoch(row, epochs, chooser, speed, seconds, is_best):
    """Print a row of the history as one line."""
    print(
        f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  lr {row['lr']:.4f}  "
        f"train {row['train_loss']:.4f} {row['train_accuracy']:.2%}  {chooser} "
        f"{row[f'{chooser}_loss']:.4f} {row[f'{chooser}_accuracy']:.2%}  "
        f"{seconds:.1f} s  {speed:,.0f} images/s{'  best' * is_best}",
        flush=True,
    )


if __name__ == "__main__":
    utils.run(main)
