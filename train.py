"""Train the network: from images to a checkpoint and its curves.

    python train.py [--dataset folder --data-dir FOLDER] [--arch reference] ...
    python train.py --resume last.pt
    python train.py --name NAME --continue ...
    python train.py --name NAME --init best.pt --freeze --dataset folder --data-dir FOLDER
    python train.py --find-lr
    torchrun --standalone --nproc-per-node=2 train.py ...

Writes the best epoch to --ckpt and the last one beside it, as last.pt; the history, its
curves, a picture of the augmentation and run.json to the folder --out.
"""

import argparse
import math
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import torch

import compare
import distributed
import utils
from checkpoint import load_checkpoint, restore
from dataset import load_splits, plot_steps
from distributed import ALONE
from evaluate import measure, predict
from history import (
    Files,
    History,
    describe,
    go_on,
    left_behind,
    print_epoch,
    print_header,
    report,
)
from lr_finder import STEPS, find_lr
from machine import (
    compile_where_it_pays,
    is_out_of_memory,
    keep_freed_memory,
    pick_device,
    pick_precision,
    place,
    warn_of_unsafe_layers,
    warn_of_unused_gpu,
)
from model import trace
from options import parse_arguments
from prepare import load_images, load_teachers, make_loader, make_network
from rules import checklist
from summary import title_of
from training import Training
from utils import OwnError, UserError


def main(argv=None):
    args, resumed = parse_arguments(argv, __doc__.splitlines()[0])
    world, device = distributed.join(pick_device(args.device))
    keep_freed_memory(device)
    if args.find_lr and world.size > 1:
        raise UserError("--find-lr is for one process: leave out torchrun")
    try:
        if args.seeds > 1:
            status = train_seeds(args, device, world)
        else:
            status = train(args, resumed, device, world)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise OwnError(
                f"{device} has too little memory: try a smaller --batch-size "
                f"than {args.batch_size}"
            )
        if distributed.is_lost(error):
            raise UserError(
                "another process ended: what is saved is whole, --resume goes on "
                f"({str(error).splitlines()[0]})"
            )
        raise
    distributed.leave()
    return status


def train(args, resumed, device, world=ALONE):
    """One training, from the images to the report; returns the exit status.

    `resumed` is the checkpoint to go on from, or None.
    """
    files = Files(args, world)
    dtype = pick_precision(device, args.amp)
    set_seed(args)
    images = load_images(args, world)
    data, loader = make_loader(images, args, device, world)

    net, head = make_network(args, resumed, images, device, world)
    teachers = load_teachers(args.teacher, images.classes, device)
    steps = args.epochs * len(loader)
    training = Training(net, head, args, steps, dtype, world, teachers)
    rules = checklist(net, trace(net))
    batch = data[0, world.shard(range(args.batch_size))]
    count = STEPS * args.batch_size if args.find_lr else args.epochs * len(data)
    compiled = compile_where_it_pays(training, args.compile, count, batch, world)
    run = describe(args, images, net, device, dtype, compiled, world)
    title = title_of(net.config, args.downsample)
    print_header(args, title, rules, run["made_with"])
    warn_of_unused_gpu(device)
    warn_of_unsafe_layers(net, device, dtype)
    if args.find_lr:
        return suggest_rates(training, loader, files)

    if not args.dry_run:
        resumed = resumed or left_behind(files, run, args.is_continued)
    history = History(images.chooser)
    if resumed:
        history = go_on(resumed, run, training, files)
    finished = (len(history.rows), run["made_with"]["sha256"])
    if len(set(world.gather([finished]))) > 1:
        raise UserError("the processes do not see the same images and last.pt")
    if files.are_written:
        plot_steps(data.images, data.transform, files.augmented)
    history = train_epochs(training, loader, images, history, run, files)
    return finish(training, history, title, images, files)


def set_seed(args):
    """Seed the weights; each epoch is seeded by itself, so that resuming is exact."""
    torch.manual_seed(args.seed)
    if args.deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # what cuBLAS asks for
        torch.use_deterministic_algorithms(True)


def suggest_rates(training, loader, files):
    """The learning-rate range test in place of a training."""
    args = training.args
    factor = find_lr(training, loader, files.range_test)
    suggestion = f"suggested --lr {factor * args.lr:.2g}"
    if len(training.optimizers) > 1:
        suggestion += f" --muon-lr {factor * args.muon_lr:.2g}"
    print(suggestion)
    print(f"the losses are in {files.range_test}")
    return 0


def train_epochs(training, loader, images, history, run, files):
    """Train epoch after epoch, each one saved; returns the history.

    Ctrl-C ends it before its time: the history then has fewer rows than there are epochs.
    """
    args, world, split = training.args, training.world, images.chooser
    pictures, labels = images.splits[split]
    averaged = training.ema.net
    try:
        for epoch in range(len(history.rows) + 1, args.epochs + 1):
            start, lr = time.perf_counter(), training.lr
            # Dropout draws from torch's generator: for each epoch alone, as all else.
            seed = np.random.SeedSequence((args.seed, epoch, world.rank))
            torch.manual_seed(int(seed.generate_state(1)[0]))
            train_metrics = train_one_epoch(training, loader, epoch)
            world.broadcast_buffers(training.net, averaged)
            scores = predict(
                averaged, pictures, training.device, training.dtype, world=world
            )
            eval_metrics = measure(scores, labels)
            if not math.isfinite(eval_metrics["loss"]):
                raise UserError(
                    f"the {split} loss became {eval_metrics['loss']} in epoch {epoch}"
                )
            # Without held-out images no metric of the test images may change the rates.
            watched = eval_metrics if args.val_size else train_metrics
            training.end_epoch(watched["loss"])
            row = {"epoch": epoch, "lr": lr}
            row |= {f"train_{name}": value for name, value in train_metrics.items()}
            row |= {f"{split}_{name}": value for name, value in eval_metrics.items()}
            longer = history.plus(row, time.perf_counter() - start)
            with utils.uninterrupted():
                print_epoch(longer, args.epochs, len(loader) * args.batch_size)
                if files.are_written:
                    files.save_epoch(run, longer, training)
                history = longer
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one ends at once
        print(
            f"\ninterrupted: {len(history.rows)} of {args.epochs} epochs are finished"
        )
        if history.rows and not args.dry_run:
            command = ["python", "train.py", "--resume", str(files.last)]
            print("to go on:", subprocess.list2cmdline(command))  # quotes the path
    return history


def train_one_epoch(training, loader, epoch):
    """One pass over the batches; returns the metrics on the augmented images.

    They are read off the device at the end, so that it need not wait in between, and are
    those of all processes. Raises UserError where a loss was not finite.
    """
    device, world = training.device, training.world
    training.start_epoch()
    loader.sampler.epoch = epoch
    batches = utils.progress(loader, f"epoch {epoch}")
    losses, rates, right, seen = [], [], 0, 0
    is_pinned = loader.pin_memory  # else the copy has to be waited for
    for number, (images, labels) in enumerate(batches, 1):
        images = images.to(device, non_blocking=is_pinned)
        labels = labels.to(device, non_blocking=is_pinned)
        rates.append(training.lr)
        loss, right_here = training.step(images, labels)
        losses.append(loss)
        right = right + right_here
        seen = seen + len(labels)
        if number % 50 == 0 and not batches.disable:
            accuracy = f"accuracy {right.item() / seen:.1%}, lr {rates[-1]:.4f}"
            batches.set_postfix_str(f"loss {loss.item():.3f}, {accuracy}")
    losses = world.sum(torch.stack(losses)).cpu() / world.size
    right = world.sum(right).item()
    broken = (~losses.isfinite()).nonzero()
    if len(broken) > 0:
        batch = broken[0].item()
        raise UserError(
            f"the loss became {losses[batch]} in epoch {epoch}, batch {batch + 1}, at "
            f"learning rate {rates[batch]:.4g}: try a lower --lr"
        )
    return {"loss": losses.mean().item(), "accuracy": right / (seen * world.size)}


def finish(training, history, title, images, files):
    """Report what the training reached; returns the exit status, 130 after Ctrl-C."""
    args = training.args
    status = 0 if len(history.rows) == args.epochs else 130
    if args.dry_run:
        print("nothing was written")
    if not history.rows or not files.are_written:
        return status
    shown = args.dataset
    if args.dataset == "folder":
        shown = Path(args.data_dir).absolute().name
    title = f"{title}: {shown}, {args.optimizer}, seed {args.seed}"
    targets = []
    if args.label_smoothing:
        targets.append(f"label smoothing {args.label_smoothing:g}")
    if args.teacher:
        targets.append("soft labels")
    report(history, files, title, ", ".join(targets))
    if args.val_size:
        chosen = place(restore(load_checkpoint(files.best)), training.device)
        pictures, labels = images.splits["test"]
        scores = predict(chosen, pictures, training.device, training.dtype)
        accuracy = measure(scores, labels)["accuracy"]
        print(
            f"test accuracy of the best epoch, seen by nothing before: {accuracy:.2%}"
        )
    return status


def train_seeds(args, device, world):
    """Trainings that differ in their seed alone, shared out over the processes."""
    out = Path(args.out)
    seeds = range(args.seed, args.seed + args.seeds)
    status, trouble = 0, None
    # Every process reads the images for itself, but only one may download them.
    world.first_on_its_node(
        lambda: load_splits(args.dataset, args.data_dir, args.val_size)
    )
    for seed in world.shard(seeds):
        folder = out / f"seed-{seed}"
        changes = {"seed": seed, "seeds": 1, "name": None}
        changes |= {"out": str(folder), "ckpt": str(folder / "best.pt")}
        print(f"\nin {folder}")
        try:
            status = train(argparse.Namespace(**vars(args) | changes), None, device)
        except UserError as error:
            trouble = f"{folder}: {error}"
        if status or trouble:
            break
    troubles = [line for line in world.gather([trouble]) if line]
    if troubles:
        raise UserError("; ".join(troubles))
    status = max(world.gather([status]))
    if status and not args.dry_run:
        print("to go on with all seeds: the same command with --continue")
    if status == 0 and world.rank == 0 and not args.dry_run:
        print()
        folders = [str(out / f"seed-{seed}") for seed in seeds]
        compare.main([*folders, "--out", str(out / "compare.png")])
    return status


if __name__ == "__main__":
    utils.run(main)
