"""What a training is made of: its images, its network and its teachers."""

from typing import NamedTuple

from torch import nn

from checkpoint import load_checkpoint, restore, start_from
from dataset import (
    DATASETS,
    AugmentedImages,
    augmentation,
    load_splits,
    mean_and_std,
    training_loader,
)
from graph import try_out
from machine import place
from model import build
from utils import UserError


class Images(NamedTuple):
    """The images of a training, by split, and what is told of them."""

    splits: dict  # name: (uint8 images (N, 32, 32, 3), labels (N,))
    classes: list  # their names
    mean: list  # of the training pixels, 0 to 1, one value per channel
    std: list
    chooser: str  # the split that chooses the best epoch: "test", or "val"


def load_images(args, world):
    """The images of --dataset; of a dry run no more than a batch."""
    splits, classes = world.first_on_its_node(
        lambda: load_splits(args.dataset, args.data_dir, args.val_size)
    )
    count = len(splits["train"][1])
    if args.batch_size > count:
        raise UserError(f"--batch-size {args.batch_size}: there are {count} images")
    if args.batch_size % world.size != 0:
        raise UserError(
            f"--batch-size {args.batch_size} on {world.size} processes: "
            "choose one they can share evenly"
        )
    if args.dry_run:
        for name, (images, labels) in splits.items():
            splits[name] = (images[: args.batch_size], labels[: args.batch_size])
    mean, std = mean_and_std(splits["train"][0])
    chooser = "val" if args.val_size else "test"
    return Images(splits, classes, mean, std, chooser)


def make_loader(images, args, device, world):
    """The augmented training images, and the loader of their batches."""
    mirror = DATASETS[args.dataset].mirror
    transform = augmentation(images.mean, mirror, args.move, args.hole)
    data = AugmentedImages(*images.splits["train"], transform, args.seed)
    loader = training_loader(
        data, args.batch_size, args.seed, args.workers, device, world
    )
    return data, loader


def make_network(args, resumed, images, device, world):
    """The network to train, and the layer of it that gives the scores."""
    if resumed:
        net = restore(resumed)
    elif args.init:
        net = start_from(load_checkpoint(args.init), images.classes, args.init)
    else:
        net = build(
            arch=args.arch,
            downsample=args.downsample,
            norm=args.norm,
            dropout=args.dropout,
            classes=len(images.classes),
            mean=images.mean,
            std=images.std,
            kernels=args.kernels,
        )
    _, head = try_out(net)
    if args.freeze:
        if head is None:
            raise UserError("--freeze: no layer of this network gives the scores")
        net.requires_grad_(False)
        head.requires_grad_(True)
    if not any(weight.requires_grad for weight in net.parameters()):
        raise UserError(f"'{args.arch}' has no weights to train")
    if args.sync_bn and world.size > 1 and device.type == "cuda":
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    elif args.sync_bn and not resumed:  # a training of many may go on in one process
        raise UserError("--sync-bn is for several processes on CUDA")
    return place(net, device), head


def load_teachers(paths, classes, device):
    """The networks to learn from: of checkpoints of the same classes, or of none."""
    teachers = []
    for path in paths or []:
        checkpoint = load_checkpoint(path, named_by="--teacher")
        if checkpoint["classes"] != list(classes):
            raise UserError(
                f"--teacher: the classes of {path} are not those of the images"
            )
        teachers.append(place(restore(checkpoint, path), device).eval())
    return teachers
