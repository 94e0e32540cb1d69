"""What a checkpoint learned and where it fails.

    python evaluate.py --ckpt best.pt

    python evaluate.py --ckpt best.pt --images cat.jpg folder/

The data set and the network come from the checkpoint. Prints accuracy, classification
report, confusion matrix and the assignment's rules, or what it takes the given images for;
leaves pictures in results/, of given images in images.png.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.metrics import classification_report, confusion_matrix
from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

from checkpoint import load_checkpoint, restore
from dataset import DATASETS, load, read_image
from distributed import ALONE
from gradcam import grad_cam, overlay, plot_evidence
from machine import (
    add_device_options,
    keep_freed_memory,
    pick_device,
    pick_precision,
    place,
)
from model import trace
from plots import plot_confusion, plot_images, plot_mistakes, show
from rules import checklist, print_checklist
from summary import title_of
from utils import Parser, UserError, check_writable, printable, run, write_json

PICTURED = 60  # images of --images at most: each takes memory, and all must be readable


@torch.inference_mode()
def predict(net, images, device, dtype, mirror=False, batch_size=200, world=ALONE):
    """Scores (N, classes), float32 on the CPU, of uint8 images (N, 32, 32, 3).

    With `mirror` they are the mean of those of the image and of its mirror image. Several
    processes share out the batches, and each gets all scores.
    """
    net.eval()
    scores = []
    for batch in world.shard(images.permute(0, 3, 1, 2).split(batch_size)):
        batch = batch.to(device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            result = net(batch).float()
            if mirror:
                result = (result + net(batch.flip(3)).float()) / 2
        scores.append(result.cpu())
    return torch.cat(world.gather(scores))


def measure(scores, labels):
    """The metrics of a split, by name, each exact over all its images.

    A metric added here is in the history, its file, the line of each epoch and the curves.
    "accuracy" chooses the best epoch. All but a loss are taken for shares, 0 to 1.
    """
    right = (scores.argmax(1) == labels).sum().item()
    return {
        "loss": F.cross_entropy(scores, labels).item(),
        "accuracy": right / len(labels),
    }


def find_images(paths):
    """The image files of the paths, a folder standing for those in it."""
    files = []
    for path in map(Path, paths):
        if not path.is_dir():
            files.append(path)
            continue
        try:
            inside = sorted(path.iterdir())
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}")
        for file in inside:
            if has_file_allowed_extension(file.name, IMG_EXTENSIONS):
                files.append(file)
    if not files:
        raise UserError(f"no images in {', '.join(map(str, paths))}")
    return files


def classify(net, paths, classes, device, dtype, mirror, picture):
    """Print the three likeliest classes of each image file; of the first, picture why.

    Returns a list of {"file", "classes"}, or {"file", "error"} for one that is broken.
    """
    results, images = [], []
    for file in find_images(paths):
        try:
            images.append(torch.tensor(read_image(file)))
            results.append({"file": str(file)})
        except UserError as error:
            results.append({"file": str(file), "error": str(error)})
    readable = [result for result in results if "error" not in result]
    if readable:
        images = torch.stack(images)
        scores = predict(net, images, device, dtype, mirror)
        likeliest = scores.softmax(1).topk(min(3, len(classes)))
        for result, shares, numbers in zip(
            readable, likeliest.values.tolist(), likeliest.indices.tolist()
        ):
            result["classes"] = {}
            for share, number in zip(shares, numbers):
                result["classes"][classes[number]] = share
    print_classified(results)
    if readable:
        shown = slice(PICTURED)
        predicted = likeliest.indices[shown, 0]
        names = [Path(result["file"]).name for result in readable[shown]]
        plot_classified(net, images[shown], names, predicted, classes, picture)
        print(f"\nPicture: {picture}")
    return results


def plot_classified(net, images, names, predicted, classes, path):
    """A picture of images, each beside the evidence for its predicted class."""
    maps = overlay(images, grad_cam(net, images, predicted))
    cells = torch.stack([images, maps], 1).flatten(0, 1)
    titles = []
    for name, number in zip(names, predicted):
        titles += [printable(name[:12]), f"evidence for\n{classes[number]}"]
    heading = "Grad-CAM, each map scaled to its own maximum"
    plot_images(cells, titles, 6, path, heading)


def print_classified(results):
    """Print one line per file: its likeliest classes, or what is wrong with it."""
    width = max(len(printable(result["file"])) for result in results)
    for result in results:
        text = result.get("error", "")
        if not text:
            shares = result["classes"].items()
            text = "  ".join(f"{name} {share:.1%}" for name, share in shares)
        print(f"{printable(result['file']):{width}}  {printable(text)}")


def parse_arguments(argv):
    parser = Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--ckpt", default="best.pt", help="checkpoint to evaluate")
    add(
        "--dataset", choices=DATASETS, help="kind of images (default: the checkpoint's)"
    )
    add("--data-dir", help="folder they are in (default: the checkpoint's)")
    add(
        "--images",
        nargs="+",
        metavar="PATH",
        help="classify these files and folders, and picture the first "
        f"{PICTURED} in images.png of --out",
    )
    add(
        "--tta", action="store_true", help="average over the image and its mirror image"
    )
    add("--out", default="results", help="folder of the pictures")
    add("--json", metavar="FILE", help="write the metrics there too")
    add_device_options(add)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    out = Path(args.out)
    names = ["confusion_matrix.png", "misclassified.png", "gradcam.png"]
    if args.images:
        names = ["images.png"]
    pictures = [out / name for name in names]
    check_writable(*pictures)
    if args.json:
        check_writable(args.json)
    device = pick_device(args.device)
    keep_freed_memory(device)
    dtype = pick_precision(device, args.amp)
    checkpoint = load_checkpoint(args.ckpt)
    net = place(restore(checkpoint), device)
    classes = checkpoint["classes"]
    if args.images:
        options = (device, dtype, args.tta, pictures[0])
        results = classify(net, args.images, classes, *options)
        if args.json:
            write_json(args.json, {"checkpoint": args.ckpt, "images": results})
        return 1 if any("error" in result for result in results) else 0

    dataset, images, labels = test_images(args, checkpoint)
    scores = predict(net, images, device, dtype, args.tta)
    metrics = measure(scores, labels)
    matrix = confusion_matrix(labels, scores.argmax(1), labels=range(len(classes)))
    rules = checklist(net, trace(net), metrics["accuracy"], dataset)

    print_origin(args.ckpt, checkpoint)
    averaged = " and their mirror images" if args.tta else ""
    print(
        f"\nTest {show(metrics)}, on the {len(labels):,} images of {dataset}{averaged}"
    )
    print(f"\n{report(labels, scores, classes, digits=4)}")
    print_matrix(matrix, classes)
    print_checklist(rules)

    plot_confusion(matrix, classes, pictures[0])
    probabilities = scores.softmax(1)
    plot_mistakes(images, labels, probabilities, classes, pictures[1])
    plot_evidence(net, images, labels, probabilities, classes, pictures[2])
    print(f"\nPictures: {', '.join(map(str, pictures))}")
    if args.json:
        content = {"checkpoint": args.ckpt, "dataset": dataset, "tta": args.tta}
        content |= {key: checkpoint[key] for key in ("epoch", "args", "made_with")}
        content |= metrics
        content["classes"] = classes
        content["confusion_matrix"] = matrix.tolist()
        content["report"] = report(labels, scores, classes, output_dict=True)
        content["rules"] = [rule._asdict() for rule in rules]
        write_json(args.json, content)


def test_images(args, checkpoint):
    """The data set's name, its test images and their labels.

    Raises UserError where their classes are not those of the checkpoint.
    """
    dataset = args.dataset or checkpoint["args"]["dataset"]
    data_dir = args.data_dir or checkpoint["args"]["data_dir"]
    if dataset not in DATASETS:
        raise UserError(f"{args.ckpt} was trained on an unknown data set: --dataset")
    images, labels, names = load(dataset, data_dir, train=False)
    classes = checkpoint["classes"]
    if names != classes:
        raise UserError(
            f"{args.ckpt} knows the classes {', '.join(classes)}; the test images of "
            f"{dataset} are {', '.join(names)}: choose others with --dataset, --data-dir"
        )
    return dataset, images, labels


def report(labels, scores, classes, **settings):
    """scikit-learn's classification report."""
    return classification_report(
        labels,
        scores.argmax(1),
        labels=range(len(classes)),
        target_names=classes,
        zero_division=0,
        **settings,
    )


def print_origin(path, checkpoint):
    """Print what the checkpoint is of, and what it was made with."""
    trained = checkpoint["args"]
    chosen = "held-out" if checkpoint["chosen_on"] == "val" else "test"
    made_with = [f"{name} {value}" for name, value in checkpoint["made_with"].items()]
    print(
        f"{path}: {title_of(checkpoint['net'], trained['downsample'])}; "
        f"epoch {checkpoint['epoch']} of {trained['epochs']}, seed {trained['seed']}; "
        f"its best epoch is chosen on the {chosen} images\n"
        f"made with {', '.join(made_with)}"
    )


def print_matrix(matrix, classes):
    print("Confusion matrix (rows: actual, columns: predicted)\n")
    width = max(map(len, classes))
    print(" " * width, *(f"{name[:5]:>5}" for name in classes))
    for name, row in zip(classes, matrix):
        print(f"{name:>{width}}", *(f"{count:>5}" for count in row))


if __name__ == "__main__":
    run(main)
