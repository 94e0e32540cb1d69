"""Every option of train.py, with its default, and what of it a checkpoint decides."""

import argparse
import os
from pathlib import Path

from checkpoint import check_resumable, load_checkpoint
from dataset import DATASETS, HOLE, MOVE
from machine import add_device_options
from model import add_network_options
from optim import DEFAULTS, SCHEDULES
from utils import Parser, UserError, is_text, number

NETWORK = ("arch", "downsample", "norm", "dropout", "kernels")
# Options of where and how far to train, not of what; a checkpoint does not keep them.
NOT_KEPT = {
    "device", "dry_run", "find_lr", "is_continued", "resume", "seeds", "workers",
}  # fmt: skip


def make_parser(description):
    """The parser of train.py."""
    parser = Parser(description=description)
    add_data_options(parser)
    add_network_options(parser)
    add_recipe_options(parser)
    add_start_options(parser)
    add_machine_options(parser)
    add_output_options(parser)
    return parser


def add_data_options(parser):
    """Add the options of the images and their augmentation."""
    natural, fraction = number(int, 0), number(float, 0, 1)
    add = parser.add_argument_group("data").add_argument
    add("--dataset", choices=DATASETS, default="cifar10", help="kind of images")
    add("--data-dir", default="data", help="folder they are in, or are downloaded to")
    add(
        "--val-size",
        type=natural,
        default=0,
        metavar="N",
        help="training images held out to choose the best epoch; with 0 the test images do",
    )
    add(
        "-j",
        "--workers",
        type=natural,
        help="processes that augment (default: all cores but two, 8 at most; for a GPU two "
        "at least)",
    )
    add(
        "--move",
        type=fraction,
        default=MOVE,
        help="fraction of images shifted, scaled and rotated",
    )
    add("--hole", type=fraction, default=HOLE, help="fraction of images with a hole")


def add_recipe_options(parser):
    """Add the options of how the network is trained, all in one group."""
    add = parser.add_argument_group("recipe").add_argument
    add_optimizer_options(add)
    add_schedule_options(add)
    add_loss_options(add)


def add_optimizer_options(add):
    """Add the options of the length, the batches and the optimizers."""
    positive, rate = number(int, 1), number(float, 0)
    add("--epochs", type=positive, default=14, help="passes over the images")
    add("-b", "--batch-size", type=positive, default=256, help="images per step")
    add(
        "--optimizer",
        choices=DEFAULTS,
        default="muon",
        help="muon: for all convolutions and linear layers but depthwise ones and the last "
        "layer, with SGD for the rest",
    )
    rates = ", ".join(f"{name} {values['lr']}" for name, values in DEFAULTS.items())
    add(
        "--lr",
        type=rate,
        help="peak learning rate; with muon, that of SGD for the rest (default: "
        f"{rates})",
    )
    decays = ", ".join(f"{n} {v['weight_decay']}" for n, v in DEFAULTS.items())
    add(
        "--weight-decay",
        type=rate,
        help="weight decay of all but norms and biases; with muon, of those that SGD "
        f"trains (default: {decays})",
    )
    add("--muon-lr", type=rate, default=0.04, help="peak learning rate of Muon")
    add("--muon-decay", type=rate, default=0.06, help="weight decay of Muon")


def add_schedule_options(add):
    """Add the options of the learning rates' schedule."""
    natural, positive, fraction = number(int, 0), number(int, 1), number(float, 0, 1)
    add(
        "--schedule",
        choices=SCHEDULES,
        default="onecycle",
        help="schedule of the learning rates; plateau watches the loss of the held-out images, "
        "or the training loss where there are none",
    )
    add(
        "--gamma",
        type=fraction,
        default=0.1,
        help="step and plateau multiply the learning rates by this",
    )
    add(
        "--step-epochs",
        type=positive,
        metavar="N",
        help="epochs from step to step (default: a third of --epochs)",
    )
    add(
        "--patience",
        type=natural,
        default=2,
        help="epochs without improvement that plateau waits",
    )


def add_loss_options(add):
    """Add the options of the loss, the average of the weights and the seeds."""
    positive, rate, fraction = number(int, 1), number(float, 0), number(float, 0, 1)
    add(
        "--l1",
        type=rate,
        default=0.0,
        help="factor of the L1 penalty on all parameters",
    )
    add(
        "--label-smoothing",
        type=fraction,
        default=0.1,
        help="share of the target spread over all classes",
    )
    add(
        "--teacher",
        action="append",
        metavar="CKPT",
        help="a checkpoint to learn from as well: each label is averaged with its "
        "probabilities (distillation), or with their mean where the option is given again",
    )
    add(
        "--ema",
        type=fraction,
        default=0.02,
        help="share of the steps that the average of the weights (EMA) spans",
    )
    add(
        "--seed",
        type=number(int, 0, 2**63 - 1),
        default=0,
        help="seed of the weights, the order and the augmentation",
    )
    add(
        "--seeds",
        type=positive,
        default=1,
        help="train N seeds, starting at --seed",
        metavar="N",
    )


def add_start_options(parser):
    """Add the options of what a training starts from, or goes on from."""
    add = parser.add_argument_group("start").add_argument
    add(
        "--init",
        metavar="CKPT",
        help="start from the network and the weights of a checkpoint",
    )
    add("--freeze", action="store_true", help="train the last layer alone")
    add(
        "--continue",
        action="store_true",
        dest="is_continued",  # `continue` is a word of Python
        help="go on where this command was interrupted; begin where it was not",
    )
    add(
        "--resume",
        metavar="LAST.PT",
        help="go on after the last epoch of a last.pt, with its options",
    )


def add_machine_options(parser):
    """Add the options of where and how the training is computed."""
    add = parser.add_argument_group("machine").add_argument
    add_device_options(add)
    add(
        "--compile",
        choices=["auto", "on", "off"],
        default="auto",
        help="auto: on CUDA, where the training is long enough to win it back",
    )
    add("--sync-bn", action="store_true", help="batch norm over all CUDA processes")
    add("--deterministic", action="store_true", help="same bits every time on CUDA too")


def add_output_options(parser):
    """Add the options of what is written, and where."""
    add = parser.add_argument_group("output").add_argument
    add("--ckpt", default="best.pt", help="checkpoint of the best epoch")
    add("--out", default="results", help="folder of the history and the pictures")
    add("--name", help="keep everything in results/NAME, in place of --ckpt and --out")
    add("--dry-run", action="store_true", help="try one batch and write nothing")
    add("--find-lr", action="store_true", help="suggest learning rates and do no more")


def parse_arguments(argv, description=None):
    """The options, and the checkpoint to resume or None.

    Raises UserError for options that do not go together.
    """
    parser = make_parser(description)
    args = parser.parse_args(argv)
    given = given_options(argv)
    checkpoint = None
    if args.resume is not None:
        for name, option in (("is_continued", "--continue"), ("dry_run", "--dry-run")):
            if name in given:
                raise UserError(f"--resume and {option} do not go together: choose one")
        checkpoint = load_checkpoint(args.resume, named_by="--resume")
        args = resumed_options(parser, checkpoint, given, args.resume)
    elif args.init is not None:
        for name in NETWORK:
            if name in given:
                raise UserError(f"--init brings its own network: leave out --{name}")
        take_network_of(load_checkpoint(args.init, named_by="--init"), args)
    if args.seeds > 1 and (args.find_lr or args.resume):
        raise UserError(
            "--find-lr and --resume are for one training: leave out --seeds"
        )
    if not is_text(args.data_dir):
        raise UserError("the name of the folder --data-dir does not print: rename it")
    if args.name is not None:
        if args.name in ("", "..") or Path(args.name).name != args.name:
            raise UserError(f"--name '{args.name}' is no name of a folder")
        args.out = os.path.join("results", args.name)
        args.ckpt = os.path.join(args.out, "best.pt")
    if args.dry_run:
        args.epochs = 1
    if args.lr is None:
        args.lr = DEFAULTS[args.optimizer]["lr"]
    if args.weight_decay is None:
        args.weight_decay = DEFAULTS[args.optimizer]["weight_decay"]
    if args.step_epochs is None:
        args.step_epochs = max(1, args.epochs // 3)
    return args, checkpoint


def given_options(argv):
    """The options that the command line names, without the defaults of the others."""
    parser = make_parser(None)
    names = vars(parser.parse_args([]))
    # Defaults are for what a namespace lacks; in this one all are there, and None.
    nothing = argparse.Namespace(**dict.fromkeys(names))
    parsed = vars(parser.parse_args(argv, nothing))
    return {name: value for name, value in parsed.items() if value is not None}


def resumed_options(parser, checkpoint, given, path):
    """The options of the training that a last.pt is of, but for where it goes on.

    What the file says is parsed, and so checked like what a user says.
    """
    for name in given:
        if name not in NOT_KEPT | {"data_dir", "teacher"}:  # what may have moved
            raise UserError(
                "--resume goes on with the options of its training, whose schedule ends "
                f"with its last epoch: leave out --{name.replace('_', '-')}, or train anew"
            )
    check_resumable(checkpoint, path)
    argv = []
    for name, value in (checkpoint["args"] | given).items():
        option = f"--{name.replace('_', '-')}"
        if name in NETWORK:
            continue  # it is in the checkpoint, and may have gone from model.py
        if value is True:
            argv.append(option)
        elif isinstance(value, list):  # of an option that may be given several times
            argv += [f"{option}={item}" for item in value]
        elif value is not None and value is not False:
            argv.append(f"{option}={value}")
    args = parser.parse_args(argv)
    take_network_of(checkpoint, args)
    return args


def take_network_of(checkpoint, args):
    """Set the options of the network to those of the checkpoint to start from."""
    for name in NETWORK:
        setattr(args, name, checkpoint["args"].get(name))


def kept_options(args):
    """The options that a checkpoint keeps: what decides the training's metrics."""
    return {name: value for name, value in vars(args).items() if name not in NOT_KEPT}
