"""What a checkpoint learned and where it fails.

    python evaluate.py --ckpt best.pt

    python evaluate.py --ckpt best.pt --images cat.jpg folder/

The data set and the network come from the checkpoint. Prints accuracy, classification
report, confusion matrix and the assignment's rules, or what it takes the given images for;
leaves pictures in results/, of given images in images.png.
"""

import contextlib
import io
import json
import warnings
from collections import Counter
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from checkpoint import OF_EVALUATION, load_checkpoint, restore
from dataset import DATA_DIR, DATASETS, digest, load, pick_dataset
from folders import (
    NoImage,
    has_images,
    list_part,
    notes_in_words,
    read_image,
    reason_to_skip,
    skipped_in_words,
)
from machine import (
    ALONE,
    add_device_options,
    keep_freed_memory,
    pick_device,
    pick_precision,
    place,
)
from model import random_images, title_of
from plots import (
    metrics_in_words,
    most_confident,
    plot_confusion,
    plot_images,
    plot_mistakes,
    shortened,
)
from receptive_field import KEEP_AXES, OF_MAPS, handler_of, join, trace
from rules import add_rules_option, checklist, print_checklist
from utils import (
    Parser,
    UserError,
    check_writable,
    matching,
    number,
    printable,
    progress,
    run,
    write_csv,
    write_file,
    write_json,
)

CIFAR10_CLASSES = [
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
]  # fmt: skip
FEWEST = 12, 4  # mistakes in the two pictures, where --mistakes does not say
ON_CPU = "CPUExecutionProvider"  # of onnxruntime
PICTURED = 60  # images of --images at most: each takes memory, and all must be readable


@torch.no_grad()  # in inference mode, what a layer puts in a buffer's place stays unwritable
def predict(net, images, device, dtype, mirror=False, batch_size=200, world=ALONE):
    """Scores (N, classes), float32 on the CPU, of uint8 images (N, SIDE, SIDE, 3).

    With `mirror` they are the mean of those of the image and of its mirror image. Several
    processes share out the batches, and each gets all scores.
    """
    net.eval()
    scores = []
    batches = world.shard(images.permute(0, 3, 1, 2).split(batch_size))
    for batch in progress(batches, "evaluation"):
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
    """The image files of the paths, a folder standing for those in it.

    Returns them, and a Counter of the files left out, by the reason.
    """
    files, skipped = [], Counter()
    for path in map(Path, paths):
        if path.is_dir():
            try:
                inside = sorted(path.iterdir())
            except OSError as error:
                raise UserError(f"cannot read {path}: {error.strerror}")
        else:
            inside = matching(path)
        if inside == [path]:  # it is no pattern
            files.append(path)
            continue
        for file in inside:
            reason = "folder" if file.is_dir() else reason_to_skip(file)
            if reason:
                skipped[reason] += 1
            else:
                files.append(file)
    if not files:
        left_out = skipped_in_words(skipped)
        raise UserError(f"no images in {', '.join(map(str, paths))}{left_out}")
    return files, skipped


def classify(net, paths, classes, device, dtype, mirror, dark_ground, picture):
    """Print the three likeliest classes of each image file; of the first, picture why.

    Returns a list of {"file", "classes"}, or {"file", "error"} for one that is broken.
    """
    results, images, notes = [], [], Counter()
    files, skipped = find_images(paths)
    for file in files:
        result = {"file": str(file)}
        try:
            images.append(torch.tensor(read_image(file, notes)))
        except NoImage as error:
            result["error"] = f"cannot be read as an image: {error.reason}"
        results.append(result)
    readable = [result for result in results if "error" not in result]
    if readable:
        images = torch.stack(images)
        scores = predict(net, images, device, dtype, mirror)
        shares, numbers = scores.softmax(1).topk(min(3, len(classes)))
        for result, values, places in zip(readable, shares.tolist(), numbers.tolist()):
            names = [classes[place] for place in places]
            result["classes"] = dict(zip(names, values))
    print_classified(results)
    told = notes_in_words(notes) + skipped_in_words(skipped)
    print(f"\n{len(readable):,} images read{told}")
    if not readable:
        return results
    if dark_ground:
        note_light_grounds(images)
    names = [Path(result["file"]).name for result in readable[:PICTURED]]
    pictured = images[:PICTURED]
    plot_classified(net, pictured, names, numbers[:PICTURED, 0], classes, picture)
    print(f"Picture: {picture}")
    return results


def note_light_grounds(images):
    """Print how many images are light at their upper and lower edge, if some are."""
    edge = torch.cat([images[:, 0], images[:, -1]], 1).float().mean((1, 2))
    if count := int((edge > 128).sum()):
        print(
            f"note      {count:,} of them have a light ground; the network has only seen "
            "light strokes on a dark one: invert them"
        )


def plot_classified(net, images, names, predicted, classes, path):
    """A picture of images, each beside the evidence for its predicted class."""
    maps = grad_cam_or_note(net, images, predicted)
    cells = torch.stack([images, overlay(images, maps)], 1).flatten(0, 1)
    titles = []
    for name, guess, one in zip(names, predicted, maps):
        # Names of photos differ at their ends.
        shown = name if len(name) <= 12 else f"…{name[-11:]}"
        titles.append(printable(shown))
        titles.append(f"{evidence(one)} for\n{shortened(classes[guess])}")
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


class MapRecorder(TorchFunctionMode):
    """Keeps every feature map (N, C, H, W) that is computed while it is on, in order.

    That is what a function of such maps gives, a convolution, say, what is computed from one
    element by element, and such maps with their channels joined. Other tensors with four axes
    may have them in another order.
    """

    def __init__(self):
        super().__init__()
        self.maps = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and self.is_map(function, args, result):
            self.maps.append(result)
        return result

    def is_map(self, function, args, result):
        if result.ndim != 4 or not result.requires_grad or max(result.shape[2:]) == 1:
            return False
        handler = handler_of(function)
        if handler in OF_MAPS or function in (F.conv_transpose2d, F.interpolate):
            return True
        known = {id(one) for one in self.maps}
        if handler in KEEP_AXES:
            return any(id(one) in known for one in args)
        parts = args[0] if args and handler is join else []
        are_maps = len(parts) > 0 and all(id(part) in known for part in parts)
        return are_maps and result.shape[1] == sum(part.shape[1] for part in parts)


def grad_cam(net, images, targets, layer=None):
    """How far each place speaks for a class: (N, h, w), its largest value scaled to 1.

    `images` are uint8 (N, SIDE, SIDE, 3), `targets` (N,) the classes' numbers. The map
    is that of the last feature map with height and width on the way to the scores, or of
    what a `layer` of the network gives: its channels, weighted by the mean gradient of the
    class's score, summed, and cut off below 0. Where nothing speaks for the class it is 0
    throughout, as it is where there is none.
    Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
    Localization", ICCV 2017.
    """
    net.eval()
    device = next(net.parameters()).device
    given = []
    if layer is not None:
        handle = layer.register_forward_hook(lambda *call: given.append(call[2]))
    with torch.enable_grad(), MapRecorder() as recorder:
        pixels = images.permute(0, 3, 1, 2).to(device, torch.float32)
        scores = net(pixels.requires_grad_())
    if layer is not None:
        handle.remove()
        maps = {id(one) for one in recorder.maps}
        recorder.maps = [one for one in given if id(one) in maps]
    score = scores.gather(1, targets.to(device)[:, None]).sum()
    for features in reversed(recorder.maps):
        try:
            (gradient,) = torch.autograd.grad(
                score, features, retain_graph=True, allow_unused=True
            )
        except RuntimeError:  # of what recomputes its maps, say
            break
        if gradient is None:
            continue
        weights = gradient.mean((2, 3), keepdim=True)
        # Of a map before a softmax over its places they cancel out, but for rounding.
        if weights.abs().max() >= 1e-5 * gradient.abs().max():
            maps = F.relu((weights * features).sum(1)).detach().cpu()
            return maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-12)
    return torch.zeros(images.shape[:3])


def grad_cam_or_note(net, images, targets, layer=None):
    """As `grad_cam`; where all is 0, it says so."""
    maps = grad_cam(net, images, targets, layer)
    if not maps.any():
        print("note      no Grad-CAM: found no feature map with a usable gradient")
    return maps


def evidence(one):
    """The title of a map: what is 0 throughout shows none."""
    return "evidence" if one.any() else "no evidence"


def find_layer(net, name):
    """The layer of --layer: a row of a table, or a layer of a class, by its name."""
    layers = dict(net.body.named_modules())
    if name in layers:
        return layers[name]
    leaves = [key for key, module in layers.items() if not list(module.children())]
    names = [row.name for row in net.rows or []] or leaves
    raise UserError(f"--layer {name}: the network has {', '.join(names)}")


def overlay(images, maps):
    """Images with their maps laid over them in colour, uint8 (N, SIDE, SIDE, 3)."""
    size = images.shape[1:3]
    maps = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)
    inferno = matplotlib.colormaps["inferno"]
    colours = torch.from_numpy(inferno(maps[:, 0].numpy())[..., :3])
    return (0.4 * images + 0.6 * 255 * colours).round().to(torch.uint8)


def plot_evidence(net, images, labels, probabilities, classes, path, count, name=None):
    """Grad-CAM of two right answers and `count` mistakes, the most confident ones.

    Of each the image, and what speaks for the class predicted and for another one: the
    actual class, or where that was predicted the one that came second. With `name`
    the maps are those of this layer.
    """
    layer = find_layer(net, name) if name else None
    likeliest = probabilities.topk(2)
    confidence, predicted = likeliest.values[:, 0], likeliest.indices[:, 0]
    right = most_confident(confidence, predicted == labels, 2)
    wrong = most_confident(confidence, predicted != labels, count)
    chosen = torch.cat([right, wrong])
    images, labels, predicted = images[chosen], labels[chosen], predicted[chosen]
    second = likeliest.indices[chosen, 1]
    others = torch.where(predicted == labels, second, labels)
    for_predicted = grad_cam_or_note(net, images, predicted, layer)
    for_others = grad_cam(net, images, others, layer)
    cells = [images, overlay(images, for_predicted), overlay(images, for_others)]
    cells = torch.stack(cells, 1).flatten(0, 1)
    titles = []
    rows = zip(labels, predicted, others, confidence[chosen], for_predicted, for_others)
    for label, guess, other, share, of_guess, of_other in rows:
        actual, first, rival = (shortened(classes[n]) for n in (label, guess, other))
        place = "second" if guess == label else "actual"
        titles.append(f"{actual}\n→ {first} {share:.0%}")
        titles.append(f"{evidence(of_guess)} for\n{first}")
        titles.append(f"{evidence(of_other)} for\n{rival} ({place})")
    where = f" at {name}" if name else ""
    heading = (
        f"Grad-CAM{where} of right answers, then mistakes: actual → predicted; "
        "each map scaled to its own maximum"
    )
    plot_images(cells, titles, 6, path, heading)


# fmt: off
def parse_arguments(argv):
    parser = Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--ckpt", default="best.pt", help="checkpoint to evaluate")
    add("--dataset", choices=DATASETS, help="kind of images (default: the checkpoint's)")
    add("--data-dir", help="folder of the images (default: the checkpoint's)")
    add("--images", nargs="+", metavar="PATH",
        help=f"classify these files and folders, and picture the first {PICTURED} in "
        "images.png of --out")
    add_rules_option(add)
    add("--tta", action="store_true", help="average over the image and its mirror image")
    add("--out", default="results", help="folder of the pictures")
    add("--mistakes", type=number(int, 1), metavar="N",
        help="picture so many mistakes, with Grad-CAM too (default: 12, and 4 with Grad-CAM)")
    add("--layer", help="the layer that Grad-CAM looks at (default: the last map)")
    add("--json", metavar="FILE", help="write the metrics there too")
    add("--export", metavar="FILE.onnx",
        help="write the network there as ONNX and do no more: uint8 images in (N, 3, H, W), "
        "probabilities out, the names of the classes in its metadata")
    add("--predictions", metavar="FILE.csv",
        help="write the actual and the predicted class of each test image there")
    add_device_options(add)
    return parser.parse_args(argv)
# fmt: on


def main(argv=None):
    args = parse_arguments(argv)
    names = OF_EVALUATION
    if args.images:
        names = ["images.png"]
        for name in ("dataset", "data_dir", "layer", "mistakes"):
            if getattr(args, name) is not None:
                option = f"--{name.replace('_', '-')}"
                raise UserError(
                    f"{option} is of the test images: leave it out at --images"
                )
    pictures = [Path(args.out) / name for name in names]
    check_writable(*pictures, *filter(None, (args.json, args.predictions, args.export)))
    device = pick_device(args.device)
    keep_freed_memory(device)
    dtype = pick_precision(device, args.amp)
    checkpoint = load_checkpoint(args.ckpt)
    net = place(restore(checkpoint), device)
    if args.export:
        export(net, checkpoint["classes"], args.export)
        return 0
    trained_on = checkpoint["args"]["dataset"]
    source = DATASETS.get(trained_on if args.images else args.dataset or trained_on)
    may_mirror = checkpoint["args"].get("mirror")
    if may_mirror is None:  # the option was not given
        may_mirror = source is None or source.mirror
    if args.tta and not may_mirror:
        raise UserError(
            "--tta looks at mirror images too, and these are of another class: leave it out"
        )
    if not args.images:
        evaluate(args, checkpoint, net, device, dtype, pictures)
        return 0
    dark_ground = source is not None and source.dark_ground
    options = (device, dtype, args.tta, dark_ground, pictures[0])
    results = classify(net, args.images, checkpoint["classes"], *options)
    if args.json:
        write_json(args.json, origin(args, checkpoint) | {"images": results})
    if args.predictions:
        write_predictions(args.predictions, results)
    return 1 if any("error" in result for result in results) else 0


def evaluate(args, checkpoint, net, device, dtype, pictures):
    """Print and draw how good a network is on the test images, and where it fails."""
    classes = checkpoint["classes"]
    if args.layer:
        find_layer(net, args.layer)  # or an error, at once
    with contextlib.redirect_stdout(io.StringIO()) as told:  # the accuracy comes first
        dataset, images, labels, names = test_images(args, checkpoint)
    from sklearn.metrics import confusion_matrix  # here, as it takes a second

    scores = predict(net, images, device, dtype, args.tta)
    metrics = {name: float(value) for name, value in measure(scores, labels).items()}
    matrix = confusion_matrix(labels, scores.argmax(1), labels=range(len(classes)))
    rules = checklist(net, trace(net), metrics["accuracy"], dataset)

    averaged = " and their mirror images" if args.tta else ""
    print(
        f"Test {metrics_in_words(metrics)}, on the {len(labels):,} images of {dataset}{averaged}"
    )
    print(told.getvalue(), end="")
    print(f"\n{report(labels, scores, classes, digits=4)}")
    print_matrix(matrix, classes)
    if args.rules == "on":
        print_checklist(rules)

    plot_confusion(matrix, classes, pictures[0])
    probabilities = scores.softmax(1)
    counts = (args.mistakes, args.mistakes) if args.mistakes else FEWEST
    results = (images, labels, probabilities, classes)
    plot_mistakes(*results, pictures[1], counts[0])
    plot_evidence(net, *results, pictures[2], counts[1], args.layer)
    print(f"\nPictures: {', '.join(map(str, pictures))}\n")
    print_origin(args.ckpt, checkpoint)
    if args.predictions:
        predictions = []
        for name, label, shares in zip(names, labels, probabilities.tolist()):
            result = {"file": name, "actual": classes[label]}
            predictions.append(result | {"classes": dict(zip(classes, shares))})
        write_predictions(args.predictions, predictions)
    if args.json:
        content = origin(args, checkpoint) | {"dataset": dataset} | metrics
        content["classes"] = classes
        content["confusion_matrix"] = matrix.tolist()
        content["report"] = report(labels, scores, classes, output_dict=True)
        content["rules"] = [rule._asdict() for rule in rules]
        write_json(args.json, content)


def origin(args, checkpoint):
    """What the file of --json says of the checkpoint, and how it was evaluated."""
    content = {"checkpoint": args.ckpt, "tta": args.tta}
    return content | {key: checkpoint[key] for key in ("epoch", "args", "made_with")}


def export(net, classes, path):
    """Write a network as ONNX, for any number of images, in one file.

    It is written once onnxruntime has given the same probabilities as PyTorch. Raises
    UserError where packages lack, PyTorch cannot export the network, or these differ.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - which the exporter needs
    except ImportError as error:
        raise UserError(
            "--export needs more packages: python -m pip install onnx onnxscript onnxruntime "
            f"({error})"
        )
    net = nn.Sequential(net.cpu(), nn.Softmax(1)).eval()
    any_number = ({0: torch.export.Dim("images")},)
    names = {"input_names": ["images"], "output_names": ["probabilities"]}
    settings = names | {"dynamo": True, "dynamic_shapes": any_number, "verbose": False}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(net, (random_images(2),), **settings)
    except Exception as error:  # noqa: BLE001 - of many types, by what the network does
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"PyTorch cannot export this network as ONNX: {reason}")
    model = program.model_proto
    entry = model.metadata_props.add()
    entry.key, entry.value = "classes", json.dumps(classes)
    data = model.SerializeToString()
    batches, found = [random_images(count) for count in (1, 5)], []
    try:
        session = onnxruntime.InferenceSession(data, providers=[ON_CPU])
        for images in batches:
            found += session.run(None, {"images": images.numpy()})
    except Exception as error:  # noqa: BLE001 - of many types, by what it lacks
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"onnxruntime cannot run the exported network: {reason}")
    differences = []
    for images, result in zip(batches, found):
        with torch.no_grad():
            differences.append((net(images) - torch.from_numpy(result)).abs().max())
    largest = torch.stack(differences).max().item()  # NaN, if one is
    if not largest <= 1e-4:
        raise UserError(
            f"onnxruntime gives other probabilities, by up to {largest:.2g}"
        )
    write_file(path, data)
    print(
        f"Written: {path}; onnxruntime gives the same probabilities, to {largest:.0e}"
    )


def write_predictions(path, results):
    """A row for each image: its file or number, actual and predicted class, confidence."""
    rows = []
    for result in results:
        known = [name for name in ("file", "actual", "error") if name in result]
        row = {name: result[name] for name in known}
        if shares := result.get("classes"):
            row["predicted"] = max(shares, key=shares.get)
            row["confidence"] = round(shares[row["predicted"]], 4)
        rows.append(row)
    write_csv(path, rows)
    print(f"Predictions: {path}")


def test_images(args, checkpoint):
    """The data set's name, its test images, their labels, and their files or numbers.

    Raises UserError where their classes are not those of the checkpoint.
    """
    dataset, data_dir = place_of_test_images(args, checkpoint)
    if dataset not in DATASETS:
        raise UserError(f"{args.ckpt} was trained on an unknown data set: --dataset")
    images, labels, names = load(dataset, data_dir, train=False)
    classes = checkpoint["classes"]
    trained_on = checkpoint["made_with"].get("test_sha256")
    listing = list_part(data_dir, "test") if dataset == "folder" else None
    if trained_on and trained_on != digest(images, labels):
        note = "the test images are not those of the training"
        if listing and listing.whole:
            note += ": a fifth of the folder is held out anew, some may be trained on"
        print(f"note      {note}")
    if names != classes:
        raise UserError(
            f"{args.ckpt} knows the classes {', '.join(classes)}; the test images of "
            f"{dataset} are {', '.join(names)}: choose others with --dataset, --data-dir"
        )
    files = listing.paths if listing else range(len(labels))
    return dataset, images, labels, files


def place_of_test_images(args, checkpoint):
    """Their kind and their folder: what the options say, else as in the training."""
    trained = checkpoint["args"]
    kind, data_dir = trained["dataset"], args.data_dir or trained["data_dir"]
    if args.dataset:
        if kind == "folder" != args.dataset and not args.data_dir:
            data_dir = DATA_DIR  # nothing is downloaded among pictures
        return args.dataset, data_dir
    if kind not in ("folder", "cifar10"):
        are_pictures = args.data_dir and has_images(Path(data_dir))
        return "folder" if are_pictures else kind, data_dir
    # A copy of CIFAR-10 in folders may be gone where its own files are, or can be.
    is_cifar = checkpoint["classes"] == CIFAR10_CLASSES
    if is_cifar and args.data_dir is None and not Path(data_dir).exists():
        data_dir = DATA_DIR
    if kind == "folder" or args.data_dir:
        kind = pick_dataset(None, data_dir)
    return kind, data_dir


def report(labels, scores, classes, **settings):
    """scikit-learn's classification report."""
    from sklearn.metrics import classification_report  # here, as it takes a second

    numbers = range(len(classes))
    settings |= {"labels": numbers, "target_names": classes, "zero_division": 0}
    return classification_report(labels, scores.argmax(1), **settings)


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
