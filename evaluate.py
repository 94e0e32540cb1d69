"""What a checkpoint learned and where it fails.

    python evaluate.py --ckpt best.pt

    python evaluate.py --ckpt best.pt --images cat.jpg folder/

The data set and the network come from the checkpoint. Prints accuracy, classification
report, confusion matrix and the assignment's rules, or what it takes the given images for;
leaves pictures in results/.
"""

import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.metrics import classification_report, confusion_matrix
from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

from dataset import DATASETS, load, read_image
from distributed import ALONE
from gradcam import grad_cam, overlay
from model import checklist, print_checklist, restore
from plots import plot_confusion, plot_images
from utils import (
    Parser,
    UserError,
    add_machine_options,
    check_writable,
    load_checkpoint,
    pick_device,
    pick_precision,
    run,
    write_json,
)


@torch.inference_mode()
def predict(net, images, device, dtype, mirror=False, batch_size=500, world=ALONE):
    """Logits (N, classes), float32 on the CPU, of uint8 images (N, 32, 32, 3).

    With `mirror` they are the mean of those of the image and of its mirror image. Several
    processes share out the batches, and each gets all logits.
    """
    net.eval()
    logits = []
    for batch in world.share(images.permute(0, 3, 1, 2).split(batch_size)):
        batch = batch.to(device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            result = net(batch).float()
            if mirror:
                result = (result + net(batch.flip(3)).float()) / 2
        logits.append(result.cpu())
    return torch.cat(world.gather(logits))


def loss_and_accuracy(logits, labels):
    """Mean cross-entropy and the share of right answers, exact over all images."""
    loss = F.cross_entropy(logits, labels).item()
    return loss, (logits.argmax(1) == labels).sum().item() / len(labels)


def plot_mistakes(net, images, labels, probabilities, classes, paths, count=30):
    """The most confident mistakes, and in a second picture where Grad-CAM saw them."""
    confidence, predicted = probabilities.max(1)
    order = confidence.argsort(descending=True)
    wrong = order[predicted[order] != labels[order]][:count]
    images, labels, predicted = images[wrong], labels[wrong], predicted[wrong]
    actual = [classes[label] for label in labels]
    taken = [classes[label] for label in predicted]
    shares = [f"{value:.0%}" for value in confidence[wrong]]
    titles = [f"{a}\n→ {p} {share}" for a, p, share in zip(actual, taken, shares)]
    heading = "The most confident mistakes: actual → predicted, probability"
    if not len(wrong):
        heading = "No mistakes"
    plot_images(images, titles, 6, paths[0], heading)
    columns = [images]
    columns += [overlay(images, grad_cam(net, images, c)) for c in (predicted, labels)]
    cells = torch.stack(columns, 1).flatten(0, 1)
    titles = []
    for name, guess, share in zip(actual, taken, shares):
        titles += [name, f"why {guess}\n({share})", f"why {name}"]
    heading = (
        "Mistakes: the image, what speaks for the prediction, and for the actual class"
    )
    plot_images(cells, titles, 9, paths[1], heading if len(wrong) else "No mistakes")


def find_images(paths):
    """The image files of the paths, a folder standing for those in it."""
    files = []
    for path in map(Path, paths):
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        files += [
            file
            for file in inside
            if file == path or has_file_allowed_extension(file.name, IMG_EXTENSIONS)
        ]
    if not files:
        raise UserError(f"no images in {', '.join(map(str, paths))}")
    return files


def classify(net, paths, classes, device, dtype, mirror, picture):
    """Print the three likeliest classes of each image file, and picture why.

    Returns a list of {"file", "classes"}, or {"file", "error"} for one that is broken.
    """
    results, images = [], []
    for file in find_images(paths):
        try:
            images.append(torch.tensor(read_image(file)))
            results.append({"file": str(file)})
        except UserError as error:
            results.append({"file": str(file), "error": str(error)})
    good = [result for result in results if "error" not in result]
    if good:
        images = torch.stack(images)
        logits = predict(net, images, device, dtype, mirror)
        likeliest = logits.softmax(1).topk(min(3, len(classes)))
        for result, *top in zip(good, *(part.tolist() for part in likeliest)):
            result["classes"] = {classes[number]: share for share, number in zip(*top)}
        first = likeliest.indices[:, 0]
        maps = overlay(images, grad_cam(net, images, first))
        cells = torch.stack([images, maps], 1).flatten(0, 1)
        titles = []
        for result, number in zip(good, first):
            titles += [Path(result["file"]).name[:12], f"why {classes[number]}"]
        plot_images(cells, titles, 6, picture, "Images, and what speaks for the class")
    width = max(len(result["file"]) for result in results)
    for result in results:
        top = [
            f"{name} {share:.1%}" for name, share in result.get("classes", {}).items()
        ]
        print(f"{result['file']:{width}}  {result.get('error', '  '.join(top))}")
    return results


def parse_arguments(argv):
    parser = Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--ckpt", default="best.pt", help="checkpoint to evaluate")
    add("--dataset", choices=DATASETS, help="None: the checkpoint's")
    add("--data-dir", help="None: the checkpoint's")
    add("--images", nargs="+", metavar="PATH", help="classify these files and folders")
    add(
        "--tta", action="store_true", help="average over the image and its mirror image"
    )
    add("--out", default="results", help="folder of the pictures")
    add("--json", metavar="FILE", help="write the figures there too")
    add_machine_options(add)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    names = ("confusion_matrix", "misclassified", "gradcam")
    pictures = [Path(args.out) / f"{name}.png" for name in names]
    check_writable(*pictures, *filter(None, [args.json]))
    device = pick_device(args.device)
    dtype = pick_precision(device, args.amp)
    checkpoint = load_checkpoint(args.ckpt)
    net = restore(checkpoint).to(device)
    classes, trained = checkpoint["classes"], checkpoint["args"]
    if args.images:
        options = device, dtype, args.tta, pictures[2]
        results = classify(net, args.images, classes, *options)
        if args.json:
            write_json(args.json, {"checkpoint": args.ckpt, "images": results})
        return 1 if any("error" in result for result in results) else 0

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

    logits = predict(net, images, device, dtype, args.tta)
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
        f"images of {dataset}{' and their mirror images' * args.tta}\n\n{report(digits=4)}\n"
        f"Confusion matrix (rows: actual, columns: predicted)\n"
    )
    width = max(map(len, classes))
    print(" " * width, *(f"{name[:5]:>5}" for name in classes))
    for name, row in zip(classes, matrix):
        print(f"{name:>{width}}", *(f"{count:>5}" for count in row))
    print_checklist(rules)

    plot_confusion(matrix, classes, pictures[0])
    plot_mistakes(net, images, labels, logits.softmax(1), classes, pictures[1:])
    print(f"\nPictures: {', '.join(map(str, pictures))}")
    if args.json:
        figures = {
            "checkpoint": args.ckpt,
            "dataset": dataset,
            "tta": args.tta,
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
