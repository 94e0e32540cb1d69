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
import random
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

import compare
import utils
from checkpoint import (
    OLDER_OPTIONS,
    Files,
    History,
    check_restorable,
    describe,
    go_on,
    left_behind,
    load_checkpoint,
    load_resumable,
    restore,
    start_from,
)
from dataset import (
    DATA_DIR,
    DATASET_HELP,
    DATASETS,
    HOLE,
    MOVE,
    AugmentedImages,
    augmentation,
    digest,
    load_splits,
    mean_and_std,
    note_oddities,
    pick_dataset,
    plot_steps,
    training_loader,
)
from engine import (
    SMALL,
    STEPS,
    Training,
    find_lr,
    shrink,
    small_epochs,
    train_one_epoch,
)
from evaluate import measure, predict
from layers import saved_by_mirroring
from machine import (
    ALONE,
    Crowding,
    add_device_options,
    compile_where_it_pays,
    is_lost,
    is_out_of_memory,
    join,
    keep_freed_memory,
    leave,
    pick_device,
    pick_precision,
    place,
    warn_of_layer_norms,
    warn_of_unsafe_layers,
    warn_of_unused_gpu,
)
from model import (
    ARCHS,
    NETWORK,
    add_network_options,
    build,
    figures_of,
    find_head,
    head_alone,
    takes,
    title_of,
    try_out,
)
from optim import DEFAULTS, SCHEDULES, in_words
from plots import metrics_in_words, plot_curves, plot_range_test
from receptive_field import trace
from rules import (
    GOAL,
    PARAMETERS,
    RECEPTIVE_FIELD,
    add_rules_option,
    checklist,
    print_broken_rules,
    print_note_on_scores,
)
from utils import OwnError, Parser, UserError, is_text, number
from whole_batch import augments_on_device

# The options, each with its type, its default and what it does. A checkpoint keeps all but
# those of one command alone.
NOT_KEPT = (
    "augment", "cuda_graph", "device", "dry_run", "find_lr", "is_continued", "resume",
    "rules", "seeds", "workers",
)  # fmt: skip
MAY_MOVE = ("data_dir", "teacher", "name", "ckpt", "out")  # at --resume
SMALL_BATCH = 32  # for few images
NATURAL, POSITIVE = number(int, 0), number(int, 1)
RATE, FRACTION = number(float, 0), number(float, 0, 1)
# An older last.pt may have one of more than the 32 bits that `check_together` allows.
SEED = number(int, 0, 2**63 - 1)


# fmt: off
def add_data_options(add):
    add("--dataset", choices=DATASETS, help=DATASET_HELP)
    add("--data-dir", default=DATA_DIR, help="folder of the images, or to download into")
    add("--val-size", type=NATURAL, default=0, metavar="N",
        help="training images held out to choose the best epoch; with 0 the test images do")
    add("-j", "--workers", type=NATURAL,
        help="processes that augment (default: all cores but two, 8 at most; for a GPU two "
        "at least)")
    add("--mirror", action=argparse.BooleanOptionalAction,
        help="whether half of the images are mirrored (default: of all but digits and mnist)")
    add("--move", type=FRACTION, default=MOVE,
        help="probability that an image is shifted (-1, 0 or 1 pixels each way: albumentations "
        "cuts parts off), scaled and rotated")
    add("--hole", type=FRACTION, default=HOLE, help="probability that an image gets a hole")


def add_recipe_options(add):
    rates = ", ".join(f"{name} {values['lr']}" for name, values in DEFAULTS.items())
    decays = ", ".join(f"{n} {v['weight_decay']}" for n, v in DEFAULTS.items())
    add("--epochs", type=POSITIVE, default=14, help="passes over the images")
    add("--small", type=FRACTION, default=0.4,
        help=f"share of the epochs, the first ones, on images made {SMALL}x{SMALL} pixels, which "
        "take about 0.7 of the time")
    add("-b", "--batch-size", type=POSITIVE, default=128, help="images per step")
    add("--optimizer", choices=DEFAULTS, default="muon",
        help="muon: for all convolutions and linear layers but depthwise ones and the last "
        "layer, with SGD for the rest")
    add("--lr", type=RATE,
        help=f"peak learning rate; with muon, that of SGD for the rest (default: {rates})")
    add("--weight-decay", type=RATE,
        help="weight decay (L2) of all but norms and biases; with muon, of those that SGD "
        f"trains: for no L2 at all give --muon-decay 0 too (default: {decays})")
    add("--muon-lr", type=RATE, default=0.039, help="peak learning rate of Muon")
    add("--muon-decay", type=RATE, default=0.06, help="weight decay of Muon")
    add("--schedule", choices=SCHEDULES, default="onecycle",
        help="schedule of the learning rates; plateau watches the loss of the held-out images, "
        "or the training loss where there are none")
    add("--peak", type=number(float, 0, below=1), default=0.3,
        help="share of the steps after which onecycle is at its highest")
    add("--gamma", type=FRACTION, default=0.1,
        help="step and plateau multiply the learning rates by this")
    add("--step-epochs", type=POSITIVE, metavar="N",
        help="epochs from step to step (default: a third of --epochs)")
    add("--patience", type=NATURAL, default=2,
        help="epochs without improvement that plateau waits")
    add("--l1", type=RATE, default=0.0, help="factor of the L1 penalty on all parameters")
    add("--label-smoothing", type=FRACTION, default=0.1,
        help="share of the target spread over all classes")
    add("--teacher", action="append", metavar="CKPT",
        help="a checkpoint to learn from as well: each label is averaged with its "
        "probabilities (distillation), or with their mean where the option is given again")
    add("--ema", type=FRACTION, default=0.02,
        help="share of the steps that the average of the weights (EMA) spans")
    add("--seed", type=SEED, default=0,
        help="seed of the weights, the order and the augmentation")
    add("--seeds", type=POSITIVE, default=1, metavar="N",
        help="train N seeds, starting at --seed")


def add_start_options(add):
    add("--init", metavar="CKPT",
        help="start from the network and the weights of a checkpoint")
    add("--freeze", action="store_true", help="train the last layer alone")
    add("--continue", action="store_true", dest="is_continued",  # `continue` is Python's
        help="go on if this command was interrupted; begin if it was not")
    add("--resume", metavar="LAST.PT",
        help="go on after the last epoch of a last.pt, with its options")


def add_machine_options(add):
    add_device_options(add)
    add("--augment", choices=["auto", "cpu", "device"], default="auto",
        help="where the images are augmented; auto: on the device if that is CUDA, has room for "
        "the images and supports all steps")
    add("--compile", choices=["auto", "on", "off"], default="auto",
        help="auto: where the training is long enough to win it back: on CUDA, and on CPUs "
        "in bfloat16 that are faster with it")
    add("--cuda-graph", choices=["auto", "off"], default="auto",
        help="auto: on CUDA the step of a table, by SGD or Muon, is recorded once for each "
        "size of images, then replayed; give off where an edit decides anew in each step")
    add("--sync-bn", action="store_true", help="batch norm over all CUDA processes")
    add("--deterministic", action="store_true", help="same bits every time on CUDA too")


def add_output_options(add):
    add("--ckpt", default="best.pt", help="checkpoint of the best epoch")
    add("--out", default="results", help="folder of the history and the pictures")
    add("--name", help="keep everything in results/NAME, in place of --ckpt and --out")
    add_rules_option(add)
    add("--dry-run", action="store_true", help="try one batch and write nothing")
    add("--find-lr", action="store_true", help="suggest learning rates and do no more")
# fmt: on


def make_parser():
    parser = Parser(description=__doc__.splitlines()[0])
    add_data_options(parser.add_argument_group("data").add_argument)
    add_network_options(parser)
    add_recipe_options(parser.add_argument_group("recipe").add_argument)
    add_start_options(parser.add_argument_group("start").add_argument)
    add_machine_options(parser.add_argument_group("machine").add_argument)
    add_output_options(parser.add_argument_group("output").add_argument)
    return parser


def parse_arguments(argv):
    """The options, and the checkpoint to resume or None.

    Raises UserError for options that do not go together.
    """
    parser = make_parser()
    defaults = vars(parser.parse_args([]))
    # Defaults are for what a namespace lacks; in this one all are there, and None.
    nothing = argparse.Namespace(**dict.fromkeys(defaults))
    parsed = vars(parser.parse_args(argv, nothing))
    given = {name: value for name, value in parsed.items() if value is not None}
    check_together(given)
    checkpoint, kept = None, {}
    if "resume" in given:
        checkpoint = load_resumable(given["resume"], named_by="--resume")
        kept = kept_by(checkpoint, parser, defaults)
        if "ckpt" in given or "out" in given:
            kept["name"] = None  # or it would say where to write
    elif "init" in given:
        kept = network_of(load_checkpoint(given["init"], named_by="--init"))
    args = argparse.Namespace(**(defaults | kept | given))
    complete(args)
    return args, checkpoint


def check_together(given):
    """Raise UserError where options that are given do not go together."""
    if "resume" in given:
        for name, option in (("is_continued", "--continue"), ("dry_run", "--dry-run")):
            if name in given:
                raise UserError(f"--resume and {option} do not go together: choose one")
        for name in given:
            if name not in (*NOT_KEPT, *MAY_MOVE):
                raise UserError(
                    "--resume goes on with the options of its training, whose schedule ends "
                    f"with its last epoch: leave out {option_of(name)}, or train anew"
                )
    elif "init" in given:
        for name in NETWORK:
            if name in given:
                raise UserError(f"--init brings its own network: leave out --{name}")
    elif "freeze" in given:
        raise UserError("--freeze is for trained weights: name them with --init")
    if given.get("seed", 0) + given.get("seeds", 1) > 2**32:
        raise UserError(
            "--seed takes 0 to 4294967295, and so does the last of --seeds: PyTorch's "
            "generator on CPUs leaves out higher bits"
        )
    for name in ("ckpt", "out"):
        if "name" in given and name in given:
            raise UserError(
                f"--name keeps everything in results/NAME: leave out --{name}"
            )
    if given.get("seeds", 1) > 1:
        if "find_lr" in given or "resume" in given:
            raise UserError(
                "--find-lr and --resume are for one training: leave out --seeds"
            )
        if "ckpt" in given:
            raise UserError("--seeds keeps each seed's in --out: leave out --ckpt")


def kept_by(checkpoint, parser, defaults):
    """The options that a last.pt keeps.

    They are parsed, and so checked like what a user says. Those of the network are in the
    checkpoint, and may have gone from model.py.
    """
    argv = []
    for name, value in (OLDER_OPTIONS | checkpoint["args"]).items():
        option = option_of(name)
        if name not in defaults:
            raise UserError(
                f"--resume: train.py does not know {option} of this training"
            )
        if name in NETWORK or value is None or value == defaults.get(name):
            continue
        if value is True:
            argv.append(option)
        elif value is False:
            argv.append(f"--no-{option.removeprefix('--')}")
        elif isinstance(value, list):  # of an option that may be given several times
            argv += [f"{option}={item}" for item in value]
        else:
            argv.append(f"{option}={value}")
    return vars(parser.parse_args(argv)) | network_of(checkpoint)


def network_of(checkpoint):
    """The options of the network of a checkpoint."""
    return {name: checkpoint["args"].get(name) for name in NETWORK}


def option_of(name):
    """How the command line says the option of this name."""
    return f"--{name.replace('_', '-')}"


def complete(args):
    """Fill in what follows from other options; UserError for values that cannot be."""
    if not is_text(args.data_dir):
        raise UserError("the name of the folder --data-dir does not print: rename it")
    args.dataset = pick_dataset(args.dataset, args.data_dir)
    if args.name is not None:
        if args.name in ("", "..") or Path(args.name).name != args.name:
            raise UserError(f"--name '{args.name}' is no name of a folder")
        args.out = f"results/{args.name}"  # on Windows too: last.pt may go on elsewhere
        args.ckpt = f"{args.out}/best.pt"
    if args.dry_run:
        args.epochs = 1
    for name, value in DEFAULTS[args.optimizer].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.norm is None and not callable(ARCHS.get(args.arch)):
        args.norm = "batch"  # a class may have another default
    if args.step_epochs is None:
        args.step_epochs = max(1, args.epochs // 3)
    if args.find_lr and args.lr == 0:
        raise UserError("--find-lr multiplies the rates: give an --lr over 0")
    if args.schedule == "plateau" and args.gamma == 1:
        raise UserError("--schedule plateau lowers the rates: give a --gamma under 1")


def main(argv=None):
    args, resumed = parse_arguments(argv)
    world, device = join(pick_device(args.device))
    keep_freed_memory(device)
    if args.find_lr and world.size > 1:
        raise UserError("--find-lr is for one process: leave out torchrun")
    try:
        if args.seeds > 1:
            status = train_seeds(args, device, world)
        else:
            files = Files(args, world, resumed)
            images = load_images(args, world)
            status = train(args, resumed, images, files, device, world)
    except RuntimeError as error:
        anew = "train anew: " if resumed else ""  # to resume takes no other options
        if "shared memory" in f"{error} {error.__cause__}":
            raise OwnError(
                "the processes of --workers have too little shared memory: give --workers 0, "
                "or docker run --shm-size=1g"
            )
        if is_out_of_memory(error):
            raise OwnError(
                f"{device} has too little memory: {anew}try a smaller --batch-size "
                f"than {args.batch_size}"
            )
        if "deterministic implementation" in str(error):
            raise UserError(
                f"--deterministic: {str(error).split(' does not')[0]} of this network has no "
                f"deterministic form on {device.type}: {anew}leave the option out"
            )
        if is_lost(error):
            raise OwnError(
                "another process ended: the saved files are complete, use --resume "
                f"({str(error).splitlines()[0]})"
            )
        raise
    except ValueError as error:
        if "more than 1 value per channel" in str(error):  # of batch norm in training
            raise UserError("batch norm needs more values: give a larger --batch-size")
        raise
    leave()
    return status


def train(args, resumed, images, files, device, world=ALONE):
    """One training, from the images to the report; returns the exit status.

    `resumed` is the checkpoint to go on from, or None.
    """
    dtype = pick_precision(device, args.amp)
    if len(set(world.gather([dtype]))) > 1:
        raise UserError("the devices would compute in different precisions: give --amp")
    set_seed(args)
    data, loader, on_device = make_loader(images, args, device, world)
    net, head = make_network(args, resumed, images, device, world)
    teachers = load_teachers(args.teacher, images, device)
    if small_epochs(args) and not all(takes(one, SMALL) for one in (net, *teachers)):
        taken = "note      the network, or a teacher, takes no images of"
        print(f"{taken} {SMALL}x{SMALL} pixels: --small is 0")
        args.small = 0.0
    steps = args.epochs * len(loader)
    training = Training(net, head, args, steps, dtype, world, teachers)
    scores, _ = try_out(net)
    nodes = trace(net)
    rules = checklist(net, nodes)

    kept = {key: value for key, value in vars(args).items() if key not in NOT_KEPT}
    run = describe(kept, images, training, on_device)
    run["network"] = figures_of(net, nodes)
    if not (args.dry_run or args.find_lr):
        resumed = left_behind(files, run, args.is_continued) or resumed
    before = None if args.find_lr else resumed
    choice = compile_as_before(args.compile, before, run["made_with"], world)
    compiled = compile_on_batches(training, choice, data)
    run["made_with"]["compiled"] = compiled
    title = title_of(net.config, args.downsample)
    saved = saved_by_mirroring(net)
    shown = f"{title} (saving {saved:,})" if saved else title
    print_header(args, shown, rules, run["made_with"], training.optimizers)
    print_note_on_scores(scores, nodes)
    warn_of_unused_gpu(device)
    warn_of_unsafe_layers(net, device, dtype)
    if not compiled:
        warn_of_layer_norms(nodes, device, dtype)
    if args.find_lr:
        return suggest_rates(training, loader, files)

    history = History(images.chooser)
    if resumed:
        history = go_on(resumed, run, training, files)
    finished = (len(history.rows), run["made_with"]["sha256"])
    if len(set(world.gather([finished]))) > 1:
        raise UserError("the processes do not see the same images and last.pt")
    if files.are_written:
        if not resumed:
            files.set_aside()
        plot_steps(data.images, data.transform, files.augmented)
    history, status = train_epochs(training, loader, images, history, run, files)

    if args.dry_run:
        print("nothing was written")
    if history.rows and files.are_written:
        report(history, files, title, args)
        if args.val_size and status == 0:
            is_first = not (resumed or args.init or args.teacher)
            evaluate_best(images, files, training, is_first)
    return status


class Images(NamedTuple):
    """The images of a training, by split, and what is told of them."""

    splits: dict  # name: (uint8 images (N, SIDE, SIDE, 3), labels (N,))
    classes: list  # their names
    mean: list  # of the training pixels, 0 to 1, one value per channel
    std: list
    chooser: str  # the split that chooses the best epoch: "test", or "val"
    sha256: str  # of the training images and their labels
    test_sha256: str  # of the test images and theirs


def load_images(args, world):
    """The `Images` of --dataset; of a dry run no more than a batch."""
    # Every process reads them for itself, but only one may download them.
    sizes = (args.val_size, args.batch_size)
    splits, classes = world.first_on_its_node(
        lambda: load_splits(args.dataset, args.data_dir, *sizes)
    )
    note_oddities(splits)
    steps = len(splits["train"][1]) // args.batch_size
    if steps < 10 and args.batch_size > SMALL_BATCH:
        print(
            f"note      an epoch has {steps} steps: with so few images a smaller batch, such "
            f"as -b {SMALL_BATCH}, learns more in as many epochs"
        )
    digests = [digest(*splits[name]) for name in ("train", "test")]
    if args.dry_run:
        for name, (images, labels) in splits.items():
            splits[name] = (images[: args.batch_size], labels[: args.batch_size])
    mean, std = mean_and_std(splits["train"][0])
    chooser = "val" if args.val_size else "test"
    return Images(splits, classes, mean, std, chooser, *digests)


def set_seed(args):
    """Seed the weights; each epoch is seeded by itself, so that resuming is exact."""
    seed_all(args.seed)
    if args.deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # what cuBLAS asks for
    torch.use_deterministic_algorithms(args.deterministic)


def seed_all(seed):
    """Seed all generators that a network may draw from."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def make_loader(images, args, device, world):
    """The augmented training images, and the loader of their batches."""
    if args.batch_size % world.size != 0:
        raise UserError(
            f"--batch-size {args.batch_size} on {world.size} processes: "
            "choose one they can share evenly"
        )
    mirror = DATASETS[args.dataset].mirror if args.mirror is None else args.mirror
    transform = augmentation(images.mean, mirror, args.move, args.hole)
    data = AugmentedImages(*images.splits["train"], transform, args.seed)
    on_device = augments_on_device(args.augment, data, device)
    loader = training_loader(
        data, args.batch_size, args.seed, args.workers, device, world, on_device
    )
    return data, loader, on_device


def make_network(args, resumed, images, device, world):
    """The network to train, and the layer of it that gives the scores."""
    if resumed:
        net = restore(resumed)
    elif args.init:
        checkpoint = load_checkpoint(args.init)
        note_on_source(checkpoint, args.init, images)
        net = start_from(checkpoint, images.classes, args.init)
    else:
        options = {name: getattr(args, name) for name in NETWORK}
        pixels = {"mean": images.mean, "std": images.std}
        net = build(**options, classes=len(images.classes), **pixels)
    if not resumed:
        check_restorable(net)
    head, _ = find_head(net)
    if args.freeze:
        head = head_alone(net, "--freeze")
        net.requires_grad_(False)
        head.requires_grad_(True)
    if not any(weight.requires_grad for weight in net.parameters()):
        raise UserError(f"'{args.arch}' has no weights to train")
    if args.sync_bn and world.size > 1 and device.type == "cuda":
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    elif args.sync_bn and not resumed:  # a training of many may go on in one process
        raise UserError("--sync-bn is for several processes on CUDA")
    return place(net, device), head


def note_on_source(checkpoint, path, images):
    """Print a note where another training may have seen what chooses the epoch here.

    It is one of the same classes, so of the same kind of images.
    """
    key = "sha256" if images.chooser == "val" else "test_sha256"
    is_same = checkpoint["made_with"].get(key) == getattr(images, key)
    if checkpoint["classes"] == list(images.classes) and not is_same:
        print(
            f"note      {path} was trained on other images: if they include some of the "
            f"{images.chooser} images here, the accuracy is too high"
        )


def load_teachers(paths, images, device):
    """The networks to learn from: of checkpoints of the same classes, or of none."""
    teachers = []
    for path in paths or []:
        checkpoint = load_checkpoint(path, named_by="--teacher")
        if checkpoint["classes"] != list(images.classes):
            raise UserError(
                f"--teacher: the classes of {path} are not those of the images"
            )
        note_on_source(checkpoint, path, images)
        teachers.append(place(restore(checkpoint, path), device).eval())
    return teachers


def compile_as_before(choice, resumed, made_with, world):
    """--compile, where "auto" is what it was for the training that goes on, if that was here.

    Another choice would give other bits. All processes take that of the first one, which
    wrote the last.pt: their GPUs may be of several kinds.
    """
    before = resumed["made_with"] if resumed else {}
    is_here = all(before.get(key) == made_with[key] for key in ("device", "precision"))
    if choice == "auto" and is_here and "compiled" in before:
        choice = "on" if before["compiled"] else "off"
    return world.gather([choice])[0]


def compile_on_batches(training, choice, data):
    """Compile the network where it pays, on a batch of each size; returns whether it is."""
    args, world = training.args, training.world
    first, labels = data[0, world.shard(range(args.batch_size))]
    batches = [(first, labels)]
    if small_epochs(args):
        batches.append((shrink(first), labels))
    count = STEPS * args.batch_size if args.find_lr else args.epochs * len(data)
    return compile_where_it_pays(training, choice, count, batches, world)


def suggest_rates(training, loader, files):
    """The learning-rate range test in place of a training."""
    args = training.args
    print(f"range test of up to {STEPS} batches of {args.batch_size} images")
    factor, factors, losses, smooth = find_lr(training, loader)
    suggestion = f"suggested --lr {factor * args.lr:.2g}"
    if len(training.optimizers) > 1:
        suggestion += f" --muon-lr {factor * args.muon_lr:.2g}"
    print(suggestion)
    if args.dry_run:
        print("nothing was written")
        return 0
    rates = [args.lr * value for value in factors]
    plot_range_test(rates, losses, smooth, factor * args.lr, files.range_test)
    print(f"the losses are in {files.range_test}")
    return 0


def train_epochs(training, loader, images, history, run, files):
    """Train epoch after epoch, each one saved; returns the history and the exit status.

    That is 130 where Ctrl-C ended it before its time.
    """
    args, world, split = training.args, training.world, images.chooser
    pictures, labels = images.splits[split]
    averaged = training.ema.net
    crowding = Crowding(training.device, loader.num_workers)
    try:
        for epoch in range(len(history.rows) + 1, args.epochs + 1):
            start, lr = time.perf_counter(), training.lr
            # Dropout draws from torch's generator: for each epoch alone, as all else.
            seed = np.random.SeedSequence((args.seed, epoch, world.rank))
            seed_all(int(seed.generate_state(1)[0]))
            train_metrics = train_one_epoch(training, loader, epoch)
            world.broadcast_buffers(training.net, averaged)
            averaged.train()  # some norms sum up their statistics when evaluation begins
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
                run["made_with"]["cuda_graph"] = training.replay.is_on
                if files.are_written:
                    files.save_epoch(run, longer, training)
                history = longer
            crowding.note()
    except KeyboardInterrupt:
        print(
            f"\ninterrupted: {len(history.rows)} of {args.epochs} epochs are finished"
        )
        if history.rows and not args.dry_run:
            print("to go on:", command_to_go_on(files.last, args))
        return history, 130
    return history, 0


def command_to_go_on(last, args):
    """The command that resumes a last.pt, by make where make runs this.

    The Python of make is in .venv, and need not be on the path. A name with quotes or a
    dollar would mean something else to make.
    """
    options = ["--resume", str(last)]
    # Those that decide bits, and that no checkpoint keeps.
    for name in ("device", "augment", "cuda_graph"):
        if getattr(args, name) != "auto":
            options += [option_of(name), getattr(args, name)]
    if "MAKELEVEL" in os.environ and re.fullmatch(r"[\w ./:-]+", last.as_posix()):
        options[1] = last.as_posix()  # to its shell a backslash means something else
        return f'make train ARGS="{shlex.join(options)}"'
    # As it was started, maybe from another folder; the tools end in train.py, too.
    script = sys.argv[0] if Path(sys.argv[0]).name == "train.py" else "train.py"
    command = ["python", script, *options]
    return subprocess.list2cmdline(command) if os.name == "nt" else shlex.join(command)


def print_header(args, title, rules, made_with, optimizers):
    """Print what decides the run."""
    sizes = ", ".join(f"{size:,} {name}" for name, size in made_with["images"].items())
    names = ("python", "torch", "torchvision", "albumentations", "opencv", "numpy")
    versions = ", ".join(f"{name} {made_with[name]}" for name in names)
    compiled = "compiled" if made_with["compiled"] else "not compiled"
    on_device = made_with["augmentation"] == "on the device"
    augments = ", augments there" if on_device else ""
    replays = ", a CUDA graph a step" if made_with["cuda_graph"] else ""
    epochs = f"{args.epochs} epochs"
    if small := small_epochs(args):
        epochs += f", the first {small} on {SMALL}x{SMALL} pixels"
    averaged = "the weights of the last step"
    if args.ema:
        averaged = f"weights averaged over {args.ema:.3g} of the steps"
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
        f"device    {made_with['device']}, {made_with['precision']}, {compiled}{augments}{replays}\n"
        f"versions  {versions}\n"
        f"training  {epochs}, batches of {args.batch_size}, "
        f"{args.optimizer}, {args.schedule}, seed {args.seed}\n"
        f"weights   {in_words(optimizers)}\n"
        f"rates     {rates_in_words(args, has_muon=len(optimizers) > 1)}\n"
        f"loss      {', '.join(['cross-entropy', *targets_of(args)])}\n"
        f"tested    {averaged}\n"
        f"best      chosen on the {'held-out' if args.val_size else 'test'} images"
    )
    if args.rules == "on":
        print_broken_rules(rules)


def rates_in_words(args, has_muon):
    """The rates of the optimizers, and where the schedule has its peak."""
    words = f"lr {args.lr:g}, weight decay {args.weight_decay:g}"
    if has_muon:
        words += f"; of Muon lr {args.muon_lr:g}, decay {args.muon_decay:g}"
    if args.schedule == "onecycle":
        words += f"; highest after {args.peak * args.epochs:.3g} epochs"
    return words


def targets_of(args):
    """What the training loss has in place of the plain labels, or besides."""
    targets = []
    if args.l1:
        targets.append(f"L1 {args.l1:g}")
    if args.label_smoothing:
        targets.append(f"label smoothing {args.label_smoothing:g}")
    if args.teacher:
        targets.append("soft labels")
    return targets


def print_epoch(history, epochs, image_count):
    """Print the last row of the history as one line; an epoch has `image_count`."""
    row, seconds, split = history.rows[-1], history.seconds[-1], history.split
    epoch = f"{row['epoch']:>{len(str(epochs))}}/{epochs}"
    line = (
        f"epoch {epoch}  lr {row['lr']:.4f}  train {metrics_in_words(row, 'train_')}  "
        f"{split} {metrics_in_words(row, f'{split}_')}  {seconds:.1f} s  "
        f"{image_count / seconds:,.0f} images/s"
    )
    if history.best is row:
        line += "  best"
    print(line)


def report(history, files, title, args):
    """Draw the curves, and print the accuracy of the best and the last epoch.

    `title` says what was trained.
    """
    shown = args.dataset
    if args.dataset == "folder":
        shown = Path(args.data_dir).absolute().name
    title = f"{title}: {shown}, {args.optimizer}, seed {args.seed}"
    goal = GOAL if args.rules == "on" else None
    plot_curves(history, title, ", ".join(targets_of(args)), goal, files.curves)
    named = (("best", history.best, files.best), ("last", history.rows[-1], files.last))
    for name, row, path in named:
        accuracy = row[f"{history.split}_accuracy"]
        print(
            f"{name} epoch {row['epoch']}: {history.split} accuracy {accuracy:.2%} in {path}"
        )


def evaluate_best(images, files, training, is_first):
    """Print the test accuracy of the epoch that the held-out images chose.

    `is_first` says that no command before this one can have looked at the test images.
    """
    chosen = place(restore(load_checkpoint(files.best)), training.device)
    pictures, labels = images.splits["test"]
    scores = predict(chosen, pictures, training.device, training.dtype)
    accuracy = measure(scores, labels)["accuracy"]
    seen = ", seen by nothing before" if is_first else ""
    print(f"test accuracy of the best epoch{seen}: {accuracy:.2%}")


def train_seeds(args, device, world):
    """Trainings that differ in their seed alone, shared out over the processes."""
    out = Path(args.out)
    trainings = []
    for seed in range(args.seed, args.seed + args.seeds):
        folder = out / f"seed-{seed}"
        changes = {"seed": seed, "seeds": 1, "name": None}
        changes |= {"out": folder.as_posix(), "ckpt": (folder / "best.pt").as_posix()}
        trainings.append(argparse.Namespace(**vars(args) | changes))
    own, status, trouble = [], 0, None
    try:
        own = [(one, Files(one, ALONE)) for one in world.shard(trainings)]
    except UserError as error:
        trouble = str(error)
    raise_any(world.gather([trouble]))
    images = load_images(args, world)
    for one, files in own:
        print(f"\nin {one.out}")
        try:
            status = train(one, None, images, files, device)
        except UserError as error:
            trouble = f"{one.out}: {error}"
        if status or trouble:
            break
    raise_any(world.gather([trouble]))
    status = max(world.gather([status]))
    if status and not args.dry_run:
        print("to go on with all seeds: the same command with --continue")
    if status == 0 and world.rank == 0 and not args.dry_run:
        print()
        folders = [one.out for one in trainings]
        compare.main([*folders, "--out", str(out / "compare.png")])
    return status


def raise_any(troubles):
    """Raise UserError with what is wrong in some of the processes; None is nothing."""
    if troubles := [line for line in troubles if line]:
        raise UserError("; ".join(troubles))


if __name__ == "__main__":
    utils.run(main)
