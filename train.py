"""Train the network: from images to a checkpoint and its curves.

    python train.py [--dataset folder --data-dir FOLDER] [--arch reference] ...

Writes the best epoch to --ckpt and the last one beside it, as last.pt; the history, its
curves and a picture of the augmentation to the folder --out.
"""

import platform
import time
from pathlib import Path

import albumentations
import torch
import torch.nn.functional as F
import torchvision
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

import utils
from dataset import (
    DATASETS,
    AugmentedImages,
    augmentation,
    load_splits,
    mean_and_std,
    training_loader,
)
from evaluate import loss_and_accuracy, predict
from model import add_network_options, build, checklist, restore
from utils import UserError, number

COMPILE_FROM = 200_000  # images in all: compiling takes 20 s, won back in about 100,000


def parse_arguments(argv):
    parser = utils.Parser(description=__doc__.splitlines()[0])
    natural, positive, share = number(int, 0), number(int, 1), number(float, 0, 1)

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
    add("-j", "--workers", type=natural, default=1, help="processes that augment")

    add_network_options(parser)

    add = parser.add_argument_group("recipe").add_argument
    add("--epochs", type=positive, default=25, help="passes over the images")
    add("-b", "--batch-size", type=positive, default=128, help="images a step")
    add("--lr", type=number(float, 0), default=0.3, help="highest learning rate")
    add("--weight-decay", type=number(float, 0), default=5e-4, help="of all but norms")
    add("--label-smoothing", type=share, default=0.1, help="share of other classes")
    add(
        "--ema",
        type=share,
        default=0.02,
        help="share of the steps weights average over",
    )
    add("--seed", type=natural, default=0, help="of weights, order and augmentation")

    add = parser.add_argument_group("machine").add_argument
    utils.add_machine_options(add)
    add(
        "--compile",
        choices=["auto", "off"],
        default="auto",
        help="auto: where a compiler is found and the training is long enough",
    )

    add = parser.add_argument_group("output").add_argument
    add("--ckpt", default="best.pt", help="checkpoint of the best epoch")
    add("--out", default="results", help="folder of the history and the pictures")
    add(
        "--dry-run",
        action="store_true",
        help="try one batch and write nothing",
    )
    return parser.parse_args(argv)


def make_optimizer(net, lr, weight_decay):
    """SGD with Nesterov momentum; norms and biases, which are 1-d, are not decayed."""
    groups = [
        {"params": [w for w in net.parameters() if w.ndim > 1]},
        {"params": [w for w in net.parameters() if w.ndim == 1], "weight_decay": 0},
    ]
    return torch.optim.SGD(
        groups, lr, momentum=0.9, nesterov=True, weight_decay=weight_decay
    )


def can_compile(device):
    """Whether torch.compile finds what it needs here, which only trying tells."""
    try:
        torch.compile(torch.neg)(torch.zeros(8, device=device))
    except Exception:  # noqa: BLE001 - of many types, by what is missing
        return False
    return True


def train_one_epoch(net, ema, batches, optimizer, scheduler, smoothing, device, dtype):
    """One pass over the batches; returns loss and accuracy on the augmented images.

    Both are summed on the device and read at the end, so that it need not wait.
    """
    net.train()
    loss_sum = right = torch.zeros((), device=device)
    seen = 0
    for images, labels in batches:
        images = images.to(device, non_blocking=True)
        labels = labels.to(device, non_blocking=True)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = net(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        ema.update_parameters(net)

        seen += len(labels)
        loss_sum = loss_sum + loss.detach() * len(labels)
        right = right + (logits.argmax(1) == labels).sum()
        if batches.n % 50 == 0 and not batches.disable:
            batches.set_postfix_str(
                f"loss {loss_sum / seen:.3f}, accuracy {right / seen:.1%}, "
                f"lr {scheduler.get_last_lr()[0]:.4f}"
            )
    return loss_sum.item() / seen, right.item() / seen


def main(argv=None):
    args = parse_arguments(argv)
    best_path, out = Path(args.ckpt), Path(args.out)
    last_path = best_path.parent / "last.pt"
    if best_path == last_path:
        raise UserError("last.pt is the last epoch's: give --ckpt another name")
    if not args.dry_run:
        utils.check_writable(best_path, last_path, out / "history.csv")
    device = utils.pick_device(args.device)
    dtype = utils.pick_precision(device, args.amp)
    torch.manual_seed(args.seed)

    # Images. Of these data sets, the digits alone are something else in the mirror.
    splits, classes = load_splits(args.dataset, args.data_dir, args.val_size)
    if args.batch_size > (count := len(splits["train"][1])):
        raise UserError(f"--batch-size {args.batch_size}: there are {count} images")
    if args.dry_run:
        args.epochs, some = 1, slice(args.batch_size)
        splits = {name: (i[some], k[some]) for name, (i, k) in splits.items()}
    chooser = "val" if args.val_size else "test"  # of the best epoch
    mean, std = mean_and_std(splits["train"][0])
    transform = augmentation(mean, flip=args.dataset != "digits")
    data = AugmentedImages(*splits["train"], transform, args.seed)
    pin = device.type == "cuda"
    loader = training_loader(data, args.batch_size, args.seed, args.workers, pin)

    # The network, and a running average of its weights, which is tested and saved.
    choice = args.arch, args.downsample, args.norm, args.dropout
    net = build(*choice, len(classes), mean, std).to(device)
    steps = args.epochs * len(loader)
    average = get_ema_multi_avg_fn(1 - 1 / max(1, args.ema * steps))
    ema = AveragedModel(net, multi_avg_fn=average, use_buffers=True)
    rules = checklist(net)
    is_long = args.epochs * len(data.labels) >= COMPILE_FROM
    compiled = args.compile == "auto" and is_long and can_compile(device)
    if compiled:
        net.compile()  # in place: its weights keep their names

    # The recipe: the learning rate rises for 0.3 of the steps, then falls to nothing.
    optimizer = make_optimizer(net, args.lr, args.weight_decay)
    scheduler = OneCycleLR(
        optimizer,
        args.lr,
        total_steps=steps,
        div_factor=10,
        final_div_factor=1000,
        cycle_momentum=False,
    )

    print_header(args, rules, splits, device, dtype, compiled)
    if not args.dry_run:
        data.save_samples(classes, out / "augmented.png")
    history, best = [], None
    try:
        for epoch in range(1, args.epochs + 1):
            start = time.perf_counter()
            lr = scheduler.get_last_lr()[0]
            loader.sampler.epoch = epoch
            batches = tqdm(loader, f"epoch {epoch}", leave=False, disable=None)
            train_loss, train_accuracy = train_one_epoch(
                net,
                ema,
                batches,
                optimizer,
                scheduler,
                args.label_smoothing,
                device,
                dtype,
            )
            train_seconds = time.perf_counter() - start
            images, labels = splits[chooser]
            logits = predict(ema.module, images, device, dtype)
            loss, accuracy = loss_and_accuracy(logits, labels)
            row = {
                "epoch": epoch,
                "lr": lr,
                "train_loss": train_loss,
                "train_accuracy": train_accuracy,
                f"{chooser}_loss": loss,
                f"{chooser}_accuracy": accuracy,
                "seconds": time.perf_counter() - start,
                "images_per_second": len(loader) * args.batch_size / train_seconds,
            }
            history.append(row)
            is_best = best is None or accuracy > best[f"{chooser}_accuracy"]
            best = row if is_best else best
            print_epoch(row, args.epochs, chooser, is_best)
            if args.dry_run:
                continue
            checkpoint = {
                "args": vars(args),
                "net": net.config,  # mean and std among it
                "classes": classes,
                "chosen_on": chooser,
                "epoch": epoch,
                "accuracy": accuracy,
                "weights": ema.module.state_dict(),
            }
            utils.save_checkpoint(last_path, checkpoint)
            if is_best:
                utils.save_checkpoint(best_path, checkpoint)
            utils.write_csv(out / "history.csv", history)
    except KeyboardInterrupt:
        print(f"\ninterrupted: {len(history)} of {args.epochs} epochs were finished")

    if not history or args.dry_run:
        print("nothing was written")
        return 0 if history else 130
    utils.plot_curves(history, chooser, out / "curves.png")
    ends = {"best": (best, best_path), "last": (history[-1], last_path)}
    for name, (row, path) in ends.items():
        accuracy = row[f"{chooser}_accuracy"]
        print(
            f"{name} epoch {row['epoch']}: {chooser} accuracy {accuracy:.2%} in {path}"
        )
    if args.val_size:
        images, labels = splits["test"]
        chosen = restore(utils.load_checkpoint(best_path)).to(device)
        logits = predict(chosen, images, device, dtype)
        _, accuracy = loss_and_accuracy(logits, labels)
        print(
            f"test accuracy of the best epoch, seen by nothing before: {accuracy:.2%}"
        )
    return 0 if len(history) == args.epochs else 130


def print_header(args, rules, splits, device, dtype, compiled):
    """Print what decides the run."""
    (_, parameters, _), (_, field, _), *_ = rules
    sizes = ", ".join(f"{len(labels):,} {name}" for name, (_, labels) in splits.items())
    precision = str(dtype).removeprefix("torch.")
    print(
        f"network   {args.arch}, {args.downsample}, {args.norm} norm: "
        f"{parameters} parameters, receptive field {field}\n"
        f"data      {args.dataset}: {sizes} images\n"
        f"device    {device}, {precision}, {'' if compiled else 'not '}compiled\n"
        f"versions  Python {platform.python_version()}, torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}, "
        f"albumentations {albumentations.__version__}\n"
        f"training  {args.epochs} epochs, batches of {args.batch_size}, seed {args.seed}\n"
        f"best      chosen on the {'held-out' if args.val_size else 'test'} images"
    )
    for rule, figure, passed in rules:
        if not passed:
            print(f"warning   a rule of the assignment is broken: {rule} ({figure})")


def print_epoch(row, epochs, chooser, is_best):
    """Print a row of the history as one line."""
    print(
        f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  lr {row['lr']:.4f}  "
        f"train {row['train_loss']:.4f} {row['train_accuracy']:.2%}  {chooser} "
        f"{row[f'{chooser}_loss']:.4f} {row[f'{chooser}_accuracy']:.2%}  "
        f"{row['seconds']:.1f} s  {row['images_per_second']:,.0f} images/s"
        f"{'  best' if is_best else ''}",
        flush=True,
    )


if __name__ == "__main__":
    utils.run(main)
