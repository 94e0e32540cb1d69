"""What a checkpoint learned and where it fails.

    python evaluate.py --ckpt best.pt

The data set and the network come from the checkpoint. Prints accuracy, classification
report, confusion matrix and the assignment's rules; leaves two pictures in results/.
"""

import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.metrics import classification_report, confusion_matrix

from dataset import DATASETS, load
from model import checklist, print_checklist, restore
from utils import (
    Parser,
    UserError,
    add_machine_options,
    check_writable,
    load_checkpoint,
    pick_device,
    pick_precision,
    plot_confusion,
    plot_images,
    run,
    write_json,
)


@torch.inference_mode()
def predict(net, images, device, dtype, batch_size=500):
    """Logits (N, classes), float32 on the CPU, of uint8 images (N, 32, 32, 3)."""
    net.eval()
    logits = []
    for batch in images.permute(0, 3, 1, 2).split(batch_size):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits.append(net(batch.to(device)).float().cpu())
    return torch.cat(logits)


def loss_and_accuracy(logits, labels):
    """Mean cross-entropy and the share of right answers, exact over all images."""
    loss = F.cross_entropy(logits, labels).item()
    return loss, (logits.argmax(1) == labels).sum().item() / len(labels)


def plot_mistakes(images, labels, probabilities, classes, path, count=30):
    """The most confident mistakes, each under actual class, prediction, probability."""
    confidence, predicted = probabilities.max(1)
    order = confidence.argsort(descending=True)
    wrong = order[predicted[order] != labels[order]][:count]
    titles = [
        f"{classes[labels[i]]}\n→ {classes[predicted[i]]} {confidence[i]:.0%}"
        for i in wrong
    ]
    heading = "The most confident mistakes: actual → predicted, probability"
    heading = heading if len(wrong) else "No mistakes"
    plot_images(images[wrong], titles, 6, path, heading)


def parse_arguments(argv):
    parser = Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--ckpt", default="best.pt", help="checkpoint to evaluate")
    add("--dataset", choices=DATASETS, help="None: the checkpoint's")
    add("--data-dir", help="None: the checkpoint's")
    add("--out", default="results", help="folder of the pictures")
    add("--json", metavar="FILE", help="write the figures there too")
    add_machine_options(add)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    out = Path(args.out)
    pictures = out / "confusion_matrix.png", out / "misclassified.png"
    check_writable(*pictures, *filter(None, [args.json]))
    device = pick_device(args.device)
    dtype = pick_precision(device, args.amp)
    checkpoint = load_checkpoint(args.ckpt)
    net = restore(checkpoint).to(device)
    classes, trained = checkpoint["classes"], checkpoint["args"]
    dataset = args.dataset or trained["dataset"]
    data_dir = args.data_dir or trained["data_dir"]
    if dataset not in DATASETS:
        raise UserError(f"{args.ckpt} was trained on an unknown data set: --dataset")
    images, labels, names = load(dataset, data_dir, train=False)
    if names != classes:
        raise UserError(
            f"{args.ckpt} knows the classes {', '.join(classes)}; the test images of "
            f"{dataset} are {', '.join(names)}: choose others with --dataset, --data-dir"
        )

    logits = predict(net, images, device, dtype)
    loss, accuracy = loss_and_accuracy(logits, labels)
    predicted = logits.argmax(1)
    numbers = range(len(classes))
    matrix = confusion_matrix(labels, predicted, labels=numbers)
    report = functools.partial(
        classification_report,
        labels,
        predicted,
        labels=numbers,
        target_names=classes,
        zero_division=0,
    )
    rules = checklist(net, accuracy)

    chosen = "held-out" if checkpoint["chosen_on"] == "val" else "test"
    print(
        f"{args.ckpt}: {trained['arch']}, {trained['downsample']}, {trained['norm']} "
        f"norm; epoch {checkpoint['epoch']} of {trained['epochs']}, seed "
        f"{trained['seed']}; its best epoch is chosen on the {chosen} images\n"
        f"made with {', '.join(f'{k} {v}' for k, v in checkpoint['made_with'].items())}\n"
        f"\nTest accuracy {accuracy:.2%}, loss {loss:.4f}, on the {len(labels):,} "
        f"images of {dataset}\n\n{report(digits=4)}\n"
        f"Confusion matrix (rows: actual, columns: predicted)\n"
    )
    width = max(map(len, classes))
    print(" " * width, *(f"{name[:5]:>5}" for name in classes))
    for name, row in zip(classes, matrix):
        print(f"{name:>{width}}", *(f"{count:>5}" for count in row))
    print_checklist(rules)

    plot_confusion(matrix, classes, pictures[0])
    plot_mistakes(images, labels, logits.softmax(1), classes, pictures[1])
    print(f"\nPictures: {pictures[0]}, {pictures[1]}")
    if args.json:
        figures = {
            "checkpoint": args.ckpt,
            "dataset": dataset,
            "epoch": checkpoint["epoch"],
            "args": trained,
            "made_with": checkpoint["made_with"],
            "accuracy": accuracy,
            "loss": loss,
            "classes": classes,
            "confusion_matrix": matrix.tolist(),
            "report": report(output_dict=True),
            "rules": [dict(zip(("rule", "figure", "passed"), rule)) for rule in rules],
        }
        write_json(args.json, figures)


if __name__ == "__main__":
    run(main)
