"""What explains a training: one's own images, Grad-CAM, comparisons, the data shown."""

import contextlib
import csv
import io
import json
import math
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import scipy.optimize
import torch
import torch.nn.functional as F
from conftest import ROOT
from nets import OwnNet
from PIL import Image
from sklearn.calibration import calibration_curve
from torch import nn
from torch.utils import checkpoint

import compare
import dataset
import engine
import evaluate
import plots
import train
from checkpoint import History, load_checkpoint, restore, save_checkpoint
from evaluate import MapRecorder, grad_cam, grad_cam_or_note, overlay
from folders import read_image
from machine import pick_precision
from model import ARCHS, build
from receptive_field import trace
from rules import GOAL
from utils import UserError

sys.path.insert(0, str(ROOT / "tools"))

import trust

QUICK = [
    "--dataset",
    "digits",
    "--epochs",
    "2",
    "-j",
    "0",
    "--arch",
    "small",
    "-b",
    "64",
]


class KnownNet(nn.Module):
    """Two feature maps, the red and the green pixels; class 1 is red minus 2 green."""

    def __init__(self):
        super().__init__()
        self.c4 = nn.Conv2d(3, 2, 1, bias=False)
        self.o = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2, bias=False)
        )
        with torch.no_grad():
            self.c4.weight.copy_(torch.eye(3)[:2, :, None, None])
            self.o[2].weight.copy_(torch.tensor([[0.0, 0.0], [1.0, -2.0]]))

    def forward(self, images):
        return self.o(self.c4(images.float()))


def test_grad_cam_is_what_the_definition_says():
    """By hand: the gradient of class 1 is 1 and -2 over the pixels, so the map is red
    minus 2 green, cut off at 0; nothing speaks for class 0."""
    images = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    maps = grad_cam(KnownNet(), images, torch.tensor([1, 0]))
    expected = (images[0, ..., 0].float() - 2 * images[0, ..., 1].float()).clamp(min=0)
    assert torch.allclose(maps[0], expected / expected.max(), atol=1e-5)
    assert (maps[1] == 0).all()


class FunctionalNet(KnownNet):
    """The same with a nested block, functions in the place of modules, and a gate whose
    own convolution runs last of all that has a map."""

    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleDict({"features": self.c4})
        self.aside = nn.Conv2d(3, 2, 1)

    def forward(self, images):
        x = self.inner["features"](images.float())
        self.aside(images.float())  # a map that has no part in the scores
        return self.o[2](x.mean((2, 3)))


def test_grad_cam_is_of_the_last_map_whatever_it_is_called():
    images = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8)
    targets = torch.tensor([1, 0, 1])
    known = grad_cam(KnownNet(), images, targets)
    assert torch.allclose(grad_cam(FunctionalNet(), images, targets), known, atol=1e-6)
    frozen = KnownNet().requires_grad_(False)
    assert torch.allclose(grad_cam(frozen, images, targets), known, atol=1e-6)
    assert grad_cam(OwnNet(), images, targets).shape[0] == 3


class Joined(KnownNet):
    """The same, but each of the two maps has a convolution of its own."""

    def forward(self, images):
        kernels = self.c4.weight
        maps = [F.conv2d(images.float(), kernel[None]) for kernel in kernels]
        return self.o(F.relu(torch.cat(maps, 1)))


def test_grad_cam_is_of_maps_that_are_joined():
    images = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    targets = torch.tensor([1, 0])
    known = grad_cam(KnownNet(), images, targets)
    assert torch.allclose(grad_cam(Joined(), images, targets), known, atol=1e-6)


def test_maps_are_joined_by_their_channels():
    x = torch.rand(2, 3, 8, 8, requires_grad=True)
    with MapRecorder() as recorder:
        one = F.conv2d(x, torch.rand(4, 3, 1, 1))
        joined = torch.cat([one, one], 1)
        torch.cat([one, one], 0)  # of images
        torch.cat([one, one], 2)
        torch.cat([one, x], 1)  # x is no map that is known
    assert [id(known) for known in recorder.maps] == [id(one), id(joined)]


class Pooled(nn.Module):
    """Attention over the places: of its logits the mean gradient is 0, but for rounding."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 8, 4, 4)
        self.heads = nn.Conv2d(8, 3, 1)
        self.head = nn.Linear(24, 10)

    def forward(self, images):
        x = F.relu(self.features(images / 255))
        shares = self.heads(x).flatten(2).softmax(2)
        return self.head((shares @ x.flatten(2).mT).flatten(1))


def test_grad_cam_is_not_of_rounding_errors():
    torch.manual_seed(0)
    net, targets = Pooled(), torch.arange(6)
    images = torch.randint(0, 256, (6, 32, 32, 3), dtype=torch.uint8)
    x = F.relu(net.features(images.permute(0, 3, 1, 2) / 255)).detach()
    x.requires_grad_()
    shares = net.heads(x).flatten(2).softmax(2)
    scores = net.head((shares @ x.flatten(2).mT).flatten(1))
    scores[range(6), targets].sum().backward()
    by_hand = F.relu((x.grad.mean((2, 3), keepdim=True) * x).sum(1)).detach()
    by_hand /= by_hand.amax((1, 2), keepdim=True).clamp(min=1e-12)
    assert by_hand.any()
    assert torch.allclose(grad_cam(net, images, targets), by_hand, atol=1e-4)


class Enlarged(KnownNet):
    """Its last map is enlarged again, by either means."""

    def __init__(self, enlarge):
        super().__init__()
        self.enlarge = enlarge

    def forward(self, images):
        return self.o(self.enlarge(self.c4(images.float())))


@pytest.mark.parametrize(
    "enlarge",
    [nn.Upsample(scale_factor=2), nn.ConvTranspose2d(2, 2, 2, 2)],
    ids=["interpolate", "conv_transpose2d"],
)
def test_grad_cam_of_maps_that_were_enlarged(enlarge):
    images = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    net = Enlarged(enlarge)
    targets = torch.tensor([1, 1])
    assert grad_cam(net, images, targets).shape == (2, 16, 16)
    assert grad_cam(net, images, targets, net.enlarge).shape == (2, 16, 16)


class Turned(KnownNet):
    """The same, but the axes of the last map are in another order, as in ConvNeXt."""

    def forward(self, images):
        x = self.c4(images.float()).permute(0, 2, 3, 1)
        return self.o[2]((x + 0).mean((1, 2)))


def test_grad_cam_takes_no_other_axes_for_height_and_width():
    images = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    targets = torch.tensor([1, 0])
    known = grad_cam(KnownNet(), images, targets)
    assert torch.allclose(grad_cam(Turned(), images, targets), known, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_no_grad_cam_where_there_are_no_gradients_of_maps(capsys):
    class Recomputing(KnownNet):
        def forward(self, images):
            x = checkpoint.checkpoint(self.c4, images.float(), use_reentrant=True)
            return self.o(x)

    images = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    maps = grad_cam_or_note(Recomputing(), images, torch.tensor([1, 0]))
    assert not maps.any()
    assert evaluate.evidence(maps[0]) == "no evidence"
    assert "note      no Grad-CAM: " in capsys.readouterr().out


def test_overlay_is_brighter_where_the_map_is():
    maps = torch.zeros(1, 8, 8)
    maps[0, 2:5, 2:5] = 1
    grey = torch.full((1, 32, 32, 3), 128, dtype=torch.uint8)
    result = overlay(grey, maps)[0].float().mean(-1)
    assert result.shape == (32, 32)
    assert result[12:16, 12:16].min() > result[24:, 24:].max() + 50


@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    """A folder with two trainings on the digits, results/a and results/b."""
    folder = tmp_path_factory.mktemp("trainings")
    with contextlib.chdir(folder):
        assert train.main([*QUICK, "--name", "a"]) == 0
        assert train.main([*QUICK, "--name", "b", "--norm", "group"]) == 0
    return folder


@pytest.fixture
def trained(trainings, tmp_path):
    """A copy of both trainings in the folder of the test."""
    shutil.copytree(trainings / "results", tmp_path / "results")


def test_own_images(trained, call, fails, tmp_path):
    images, _, _ = dataset.load("digits", None, False)
    folder = tmp_path / "own"
    folder.mkdir()
    for number, image in enumerate(images[:3]):
        Image.fromarray(image.numpy()).resize((90, 70)).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("no image")
    (folder / "broken.png").write_bytes(b"no image")
    Image.fromarray(images[3].numpy()).convert("LA").save(tmp_path / "grey.png")
    options = ["--ckpt", "results/a/best.pt", "--json", "own.json", "--out", "out"]
    options += ["--amp", "off"]
    status, output, _ = call(evaluate.main, *options, "--images", "own", "grey.png")
    assert status == 1  # one is broken
    assert "broken.png  cannot be read as an image: of no format" in output
    with open("own.json") as file:
        results = json.load(file)["images"]
    names = ["0.png", "1.png", "2.png", "broken.png", "grey.png"]
    assert [Path(result["file"]).name for result in results] == names
    net = restore(load_checkpoint("results/a/best.pt")).eval()
    for result in results:
        if "error" not in result:
            pixels = torch.tensor(read_image(Path(result["file"])))
            with torch.no_grad():
                scores = net(pixels.permute(2, 0, 1)[None])[0]
            likeliest = scores.softmax(0).sort(descending=True)
            shares = list(result["classes"].values())
            assert shares == pytest.approx(likeliest.values[:3].tolist(), abs=1e-4)
            digits = [str(number) for number in likeliest.indices[:3].tolist()]
            assert list(result["classes"]) == digits
            assert f"{digits[0]} {shares[0]:.1%}" in output
    assert np.asarray(Image.open("out/images.png")).std() > 0
    for option, value in (("--layer", "c1"), ("--mistakes", 5), ("--data-dir", "own")):
        errors = fails(evaluate.main, *options, "--images", "own", option, value)
        assert f"{option} is of the test images" in errors
    shutil.rmtree(folder)
    folder.mkdir()
    assert "no images in" in fails(evaluate.main, *options, "--images", "own")


def test_of_many_own_images_the_first_are_pictured(
    trained, call, monkeypatch, tmp_path
):
    images, _, _ = dataset.load("digits", None, False)
    for number, image in enumerate(images[:3]):
        Image.fromarray(image.numpy()).save(tmp_path / f"{number}.png")
    drawn = []
    monkeypatch.setattr(evaluate, "PICTURED", 2)
    monkeypatch.setattr(evaluate, "plot_images", lambda *given: drawn.append(given))
    Path("broken.png").write_bytes(b"no image")
    Path("0.png").rename("a-long-name-0.png")
    files = ["broken.png", "2.png", "a-long-name-0.png", "1.png"]
    status, output, _ = call(
        evaluate.main, "--ckpt", "results/a/best.pt", "--images", *files
    )
    assert status == 1
    classified, picture = output.split("\n\n")
    assert picture.startswith("3 images read\n")
    assert [line.split()[0] for line in classified.splitlines()] == files
    assert "images.png" in picture
    ((cells, titles, *_),) = drawn
    assert torch.equal(cells[0], images[2])
    assert torch.equal(cells[2], images[0])
    assert titles[0::2] == ["2.png", "…-name-0.png"]
    assert len(cells) == len(titles) == 4
    net = restore(load_checkpoint("results/a/best.pt"))
    for place, line in enumerate(classified.splitlines()[1:3]):
        likeliest = line.split()[1]
        image, shown = cells[2 * place : 2 * place + 2]
        assert titles[2 * place + 1].endswith(f"evidence for\n{likeliest}")
        maps = grad_cam(net, image[None], torch.tensor([int(likeliest)]))
        assert (shown.int() - overlay(image[None], maps)[0].int()).abs().max() <= 1


def test_folder_of_images_that_cannot_be_read(trained, fails, monkeypatch, tmp_path):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "own").mkdir()
    monkeypatch.setattr(Path, "iterdir", refuse)
    errors = fails(evaluate.main, "--ckpt", "results/a/best.pt", "--images", "own")
    assert "cannot read own: Permission denied" in errors


def test_mirror_images_are_averaged(trained, call, fails, monkeypatch):
    images, labels, _ = dataset.load("digits", None, False)
    net = evaluate.restore(load_checkpoint("results/a/best.pt"))
    cpu = torch.device("cpu")
    one, two, both = (
        evaluate.predict(net, pictures, cpu, torch.float32, mirror)
        for pictures, mirror in ((images, 0), (images.flip(2), 0), (images, 1))
    )
    assert torch.allclose(both, (one + two) / 2, atol=1e-5)
    assert not torch.allclose(one, two, atol=0.1)
    options = ["--ckpt", "results/a/best.pt", "--tta"]
    assert "leave it out" in fails(
        evaluate.main, *options
    )  # a digit has no mirror image
    mirrored = dataset.DATASETS["digits"]._replace(mirror=True)
    monkeypatch.setitem(dataset.DATASETS, "digits", mirrored)
    more = ["--amp", "off", "--json", "tta.json"]
    status, output, _ = call(evaluate.main, *options, *more)
    assert status == 0
    assert "and their mirror images" in output
    found = json.loads(Path("tta.json").read_text())["loss"]
    alone, together = (
        F.cross_entropy(scores, labels).item() for scores in (one, (one + two) / 2)
    )
    assert found == pytest.approx(together, rel=1e-5)
    assert found != pytest.approx(alone, rel=1e-4)
    index = int((one - two).abs().amax(1).argmax())
    Image.fromarray(images[index].numpy()).save("one.png")
    more = ["--amp", "off", "--json", "one.json", "--images", "one.png"]
    assert call(evaluate.main, *options, *more)[0] == 0
    written = json.loads(Path("one.json").read_text())
    assert written["tta"] is True
    shares = ((one + two) / 2)[index].softmax(0).topk(3).values.tolist()
    found = [*written["images"][0]["classes"].values()]
    assert found == pytest.approx(shares, abs=1e-4)
    checkpoint = load_checkpoint("results/a/best.pt")
    checkpoint["args"]["mirror"] = False  # the word of who trained it counts for more
    save_checkpoint("results/a/best.pt", checkpoint)
    assert "leave it out" in fails(evaluate.main, *options)


@pytest.mark.parametrize(
    ("dataset_name", "options", "expected"),
    [
        ("digits", [], 0.0),
        ("digits", ["--mirror"], 0.5),
        ("folder", [], 0.5),
        ("folder", ["--no-mirror"], 0.0),
    ],
)
def test_whether_images_are_mirrored(
    call, image_folder, monkeypatch, dataset_name, options, expected
):
    transforms = []
    monkeypatch.setattr(
        train,
        "AugmentedImages",
        lambda images, labels, transform, seed: (
            transforms.append(transform)
            or dataset.AugmentedImages(images, labels, transform, seed)
        ),
    )
    images = ["--dataset", dataset_name, "--data-dir", image_folder, "--dry-run"]
    options = [*QUICK, *images, *options]
    assert call(train.main, *options)[0] == 0
    flip, *_ = transforms[0].transforms
    assert flip.p == expected


def test_test_images_of_a_folder_are_told_by_the_folder(image_folder):
    """Also where the training's were CIFAR-10's own files."""
    classes = ["chat gâté", "dog"]
    made = {"dataset": "cifar10", "data_dir": "data"}
    checkpoint = {"args": made, "classes": classes, "made_with": {}}
    args = SimpleNamespace(ckpt="best.pt", dataset=None, data_dir=str(image_folder))
    name, images, _, _ = evaluate.test_images(args, checkpoint)
    assert name == "folder"
    assert len(images) == 32


@pytest.mark.parametrize("dataset_name", ["digits", "mnist", "cifar100"])
def test_own_pictures_stand_in_for_any_test_images(image_folder, dataset_name):
    made = {"dataset": dataset_name, "data_dir": "data"}
    checkpoint = {"args": made, "classes": ["chat gâté", "dog"], "made_with": {}}
    args = SimpleNamespace(ckpt="best.pt", dataset=None, data_dir=str(image_folder))
    assert evaluate.test_images(args, checkpoint)[0] == "folder"


def test_nothing_is_downloaded_among_pictures(monkeypatch):
    """CIFAR-10's own files are looked for where they usually are."""
    made = {"dataset": "folder", "data_dir": "CIFAR-10-images"}
    checkpoint = {"args": made, "classes": ["a"], "made_with": {}}
    asked = []

    def load(dataset, data_dir, train):
        asked.append((dataset, data_dir))
        return torch.zeros(1, 32, 32, 3), torch.zeros(1), ["a"]

    monkeypatch.setattr(evaluate, "load", load)
    args = SimpleNamespace(ckpt="best.pt", dataset="cifar10", data_dir=None)
    evaluate.test_images(args, checkpoint)
    assert asked == [("cifar10", "data")]


def test_compare(trained, call, fails, tmp_path):
    status, output, _ = call(compare.main, "results/a", "results/b")
    assert status == 0
    header, *rows = output.splitlines()[:3]
    assert f"at {100 * GOAL:g}%" in header
    assert [row.split()[0] for row in rows] == ["a", "b"]
    assert rows[0].endswith("norm batch")
    assert rows[1].endswith("norm group")
    net = restore(load_checkpoint("results/a/best.pt"))
    parameters = sum(weight.numel() for weight in net.parameters())
    macs = sum(node.macs for node in trace(net))
    assert rows[0].split()[1:5] == [f"{parameters:,}", "51", f"{macs:,}", "2/2"]
    assert rows[0].endswith("  norm batch")  # and no other option
    with open("results/a/run.json") as file:
        seconds = json.load(file)["seconds"]
    assert f"{sum(seconds) / len(seconds):.1f}" in rows[0]
    best = load_checkpoint("results/a/best.pt")["accuracy"]
    assert f"{best:.2%}" in rows[0]
    assert np.asarray(Image.open("results/compare.png")).std() > 0
    _, output, _ = call(compare.main, "results/*")  # as Windows leaves it
    assert [row.split()[0] for row in output.splitlines()[1:3]] == ["a", "b"]
    (tmp_path / "results" / "empty").mkdir()
    assert "no training in" in fails(compare.main, "results/empty", "nowhere")
    _, output, _ = call(
        compare.main, "results/a", "results/compare.png", "results/empty"
    )
    assert f"Left out, no training there: {Path('results/empty')}\n" in output
    (tmp_path / "results" / "empty" / "run.json").write_text("{}")
    assert "does not hold a whole training" in fails(compare.main, "results/empty")


def test_a_class_that_was_edited_is_another_network(call, monkeypatch):
    """Under the same name: its figures are those of when it was trained."""
    options = [*QUICK, "--arch", "own", "--epochs", 1]
    assert call(train.main, *options, "--name", "a")[0] == 0

    class Wider(OwnNet):
        def __init__(self, classes):
            super().__init__(classes)
            self.hidden = nn.Linear(32, 48)
            self.fc = nn.Linear(48, classes)

    monkeypatch.setitem(ARCHS, "own", Wider)
    assert call(train.main, *options, "--name", "b", "--seed", 1)[0] == 0
    _, output, _ = call(compare.main, "results/a", "results/b")
    _, first, second = output.splitlines()[:3]
    for row, net in ((first, OwnNet()), (second, Wider(10))):
        parameters = sum(weight.numel() for weight in net.parameters())
        assert row.split()[1] == f"{parameters:,}"
        assert "code " in row
    assert "mean" not in output


def test_an_edited_network_is_told_beside_other_options():
    one = {"epochs": 1, "network": "a", "code": "a", "arch": "default"}
    other = {"epochs": 2, "network": "b", "code": "b"}
    assert compare.differing([one, one | other]) == ["epochs", "network"]
    other["arch"] = "plain"
    assert compare.differing([one, one | other]) == ["arch", "epochs"]


def test_weights_that_a_training_started_from_are_compared():
    made = {"net": {}, "made_with": {"init_sha256": 64 * "a", "teachers": [64 * "b"]}}
    other = {"net": {}, "made_with": {"init_sha256": 64 * "c", "teachers": [64 * "b"]}}
    options = [compare.unsaid(made), compare.unsaid(other)]
    assert compare.differing(options) == ["weights of init"]
    other["made_with"] = made["made_with"] | {"teachers": [64 * "b", 64 * "d"]}
    options = [compare.unsaid(made), compare.unsaid(other)]
    assert compare.differing(options) == ["weights of teachers"]


def test_held_out_images_and_missing_epochs_are_said(trained, call, tmp_path):
    for seed in (1, 2):
        folder = tmp_path / "results" / f"seed-{seed}"
        shutil.copytree("results/a", folder)
        described = json.loads((folder / "run.json").read_text())
        described["args"]["seed"] = seed
        described["chosen_on"] = "val"
        (folder / "run.json").write_text(json.dumps(described))
        table = (folder / "history.csv").read_text().replace("test_", "val_")
        lines = table.splitlines()[: 1 + seed]
        (folder / "history.csv").write_text("\n".join(lines))
    _, output, _ = call(compare.main, "results/seed-1", "results/seed-2")
    assert "note      accuracies of held-out images: seed-1, seed-2\n" in output
    assert "last: mean" in output
    assert "note      seed-1: not all of the epochs are trained\n" in output
    assert "note" not in call(compare.main, "results/a")[1]


def test_trainings_of_the_same_name_are_told_apart(trained, call, monkeypatch):
    for folder in ("one", "two"):
        shutil.copytree("results/a", f"{folder}/seed-0")
    figures = []
    monkeypatch.setattr(
        compare, "save_figure", lambda figure, _: figures.append(figure)
    )
    _, output, _ = call(compare.main, "one/seed-0", "two/seed-0")
    names = [str(Path(folder, "seed-0")) for folder in ("one", "two")]
    assert [row.split()[0] for row in output.splitlines()[1:3]] == names
    shown = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert [text.partition(":")[0] for text in shown] == names
    assert figures[0].legends[0]._ncols == 1
    call(compare.main, *7 * ["results/a"])
    assert figures[1].legends[0]._ncols == 2


def test_the_table_says_when_the_goal_was_reached(trained, call, tmp_path):
    accuracies = [GOAL - 0.1, GOAL + 0.02, GOAL, GOAL - 0.01]
    lines = ["epoch,test_loss,test_accuracy"]
    lines += [f"{epoch},1,{value}" for epoch, value in enumerate(accuracies, 1)]
    (tmp_path / "results" / "a" / "history.csv").write_text("\n".join(lines))
    _, output, _ = call(compare.main, "results/a")
    cells = output.splitlines()[1].split()
    expected = ["2", f"{GOAL + 0.02:.2%}", f"{GOAL - 0.01:.2%}"]  # first, best, last
    assert cells[5:8] == expected


def test_joint_curves_of_trainings_of_other_lengths_and_metrics(
    trained, call, tmp_path, monkeypatch
):
    """Four graphs; one training is longer, one lacks a metric, one has it from then on."""
    longer, more = tmp_path / "results" / "longer", tmp_path / "results" / "more"
    for folder in (longer, more):
        shutil.copytree(tmp_path / "results" / "a", folder)
    with open(longer / "history.csv", "a") as file:
        file.write("3,0.1,0.5,0.9,0.4,0.9\n")
    header, first, second = (more / "history.csv").read_text().splitlines()
    lines = [f"{header},test_sureness", f"{first},", f"{second},0.99"]
    (more / "history.csv").write_text("\n".join(lines) + "\n")
    figures = []
    monkeypatch.setattr(
        compare, "save_figure", lambda figure, _: figures.append(figure)
    )
    assert call(compare.main, "results/a", longer, more)[0] == 0
    drawn = {}
    for axes in figures[0].axes:
        drawn[axes.get_title()] = [len(line.get_xdata()) for line in axes.lines]
    titles = {axes.get_title(): axes for axes in figures[0].axes}
    with open("results/a/history.csv") as file:
        accuracies = [100 * float(row["test_accuracy"]) for row in csv.DictReader(file)]
    found = titles["accuracy as evaluated"].lines[0].get_ydata()
    assert list(found) == pytest.approx(accuracies)
    expected = {
        "loss in training (augmented, with smoothed labels)": [2, 3, 2],
        "accuracy in training (augmented)": [2, 3, 2],
        "sureness in training (augmented)": [0, 0, 0],
        "loss as evaluated": [2, 3, 2],
        "accuracy as evaluated": [2, 3, 2],
        "sureness as evaluated": [0, 0, 1],
    }
    assert drawn | expected == drawn  # which has those of metrics of one's own, too


def test_options_that_say_nothing_with_a_schedule_are_no_difference():
    options = [{"schedule": "onecycle", "step_epochs": 1}, {"schedule": "onecycle"}]
    assert compare.differing(options) == []
    options = [{"schedule": "step", "step_epochs": 1}, {"schedule": "onecycle"}]
    assert compare.differing(options) == ["schedule", "step_epochs"]
    of = {"gamma": "step plateau", "patience": "plateau", "peak": "onecycle"}
    for name, schedules in of.items():
        for schedule in schedules.split():
            options = [{"schedule": schedule, name: value} for value in (1, 2)]
            assert compare.differing(options) == [name]
            others = [given | {"schedule": "cosine"} for given in options]
            assert compare.differing(others) == []


def test_images_and_networks_that_differ_are_told(trained, call, tmp_path):
    """Only trainings that differ in their seed alone have a spread."""

    def other_seed(change):
        shutil.copytree(tmp_path / "results" / "a", tmp_path / "results" / "other")
        path = tmp_path / "results" / "other" / "run.json"
        training = json.loads(path.read_text())
        training["args"]["seed"] += 1
        change(training)
        path.write_text(json.dumps(training))
        _, output, _ = call(compare.main, "results/a", "results/other")
        shutil.rmtree(path.parent)
        return output

    of_older = other_seed(lambda training: training["args"].update(small=0.0))
    assert "small 0.0" in of_older
    assert of_older == other_seed(lambda training: training["args"].pop("small"))
    assert "best: mean" in other_seed(lambda training: None)
    elsewhere = {"data_dir": "moved"}
    of_moved = other_seed(lambda training: training["args"].update(elsewhere))
    assert "best: mean" in of_moved
    edited = other_seed(lambda training: training["net"].update(activation="elu"))
    assert "network " in edited
    assert "best: mean" not in edited
    others = {"sha256": "ab", "test_sha256": "cd"}
    moved = other_seed(lambda training: training["made_with"].update(others))
    assert "images ab" in moved
    assert "test images cd" in moved
    assert "best: mean" not in moved


def test_predictions_are_those_that_are_counted(trained, call, monkeypatch):
    counts = []
    monkeypatch.setattr(
        evaluate, "plot_mistakes", lambda *given: counts.append(given[5])
    )
    monkeypatch.setattr(
        evaluate, "plot_evidence", lambda *given: counts.append(given[6])
    )
    options = ["--ckpt", "results/a/best.pt", "--predictions", "own.csv"]
    _, output, _ = call(evaluate.main, *options, "--rules", "off")
    assert counts == [12, 4]  # pictured, as --help says
    assert "The assignment's rules" not in output
    with open("own.csv") as file:
        rows = list(csv.DictReader(file))
    _, labels, classes = dataset.load("digits", None, False)
    assert [row["actual"] for row in rows] == [classes[label] for label in labels]
    right = sum(row["actual"] == row["predicted"] for row in rows)
    assert f"accuracy {right / len(rows):.2%}" in output
    assert all(0.1 <= float(row["confidence"]) <= 1 for row in rows)


def test_predictions_name_the_files_of_a_folder(trained, call, image_folder):
    for path in image_folder.rglob("chat*"):
        path.rename(path.parent / "0")
    names = [str(number) for number in range(1, 10)]
    for part in ("train", "test"):
        (image_folder / part / "dog").rename(image_folder / part / "1")
        for name in names[1:]:
            shutil.copytree(image_folder / part / "1", image_folder / part / name)
    options = ["--ckpt", "results/a/best.pt", "--dataset", "folder"]
    options += ["--data-dir", image_folder, "--predictions", "own.csv"]
    assert call(evaluate.main, *options)[0] == 0
    with open("own.csv") as file:
        for row in csv.DictReader(file):
            assert Path(row["file"]).parent.name == row["actual"]
    files = ["--images", image_folder / "test" / "1" / "000.png", image_folder]
    options = ["--ckpt", "results/a/best.pt", "--predictions", "own.csv"]
    call(evaluate.main, *options, *files[:2])
    with open("own.csv") as file:
        (row,) = csv.DictReader(file)
    assert row["file"].endswith("000.png")
    assert row["predicted"] in "0123456789"


def test_mistakes_and_layer_of_choice(trained, call, fails, monkeypatch):
    """As many mistakes in both pictures, and maps of the layer that was named."""
    drawn = {}

    def note(cells, titles, columns, path, heading):
        drawn[path.name] = (len(cells), columns)
        if path.name == "misclassified.png":
            for title in titles:
                actual, guess = title.split("\n→ ")
                assert actual != guess.split()[0]

    monkeypatch.setattr(plots, "plot_images", note)
    monkeypatch.setattr(evaluate, "plot_images", note)
    sizes = []
    overlay_maps = evaluate.overlay
    monkeypatch.setattr(
        evaluate,
        "overlay",
        lambda i, m: sizes.append(m.shape[1:]) or overlay_maps(i, m),
    )
    options = ["--ckpt", "results/a/best.pt", "--mistakes", 5, "--layer", "c1.down"]
    assert call(evaluate.main, *options)[0] == 0
    assert drawn == {"misclassified.png": (5, 5), "gradcam.png": (3 * 7, 6)}
    assert set(sizes) == {(16, 16)}
    net = restore(load_checkpoint("results/a/best.pt"))
    images, targets = torch.zeros(1, 32, 32, 3), torch.tensor([0])
    # An empty layer, as a shortcut may be, gives no map of its own that is read.
    assert not evaluate.grad_cam(net, images, targets, torch.nn.Sequential()).any()
    options[-1] = "c9"
    assert "--layer c9: the network has c1.conv, c1.down, " in fails(
        evaluate.main, *options
    )


class Attentive(nn.Module):
    """Two of its layers give no maps (N, C, H, W): one several tensors, one its own order."""

    def __init__(self, classes):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, 4)
        self.norm = nn.LayerNorm(8)
        self.mix = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        x = self.norm(self.conv(x).permute(0, 2, 3, 1)).flatten(1, 2)
        return self.head(self.mix(x, x, x)[0].mean(1))


def test_a_layer_without_maps_has_no_grad_cam():
    net, images = Attentive(10), torch.randint(0, 256, (2, 32, 32, 3)).to(torch.uint8)
    targets = torch.tensor([0, 1])
    assert grad_cam(net, images, targets, net.conv).any()
    for layer in (net.norm, net.mix):
        assert not grad_cam(net, images, targets, layer).any()


def test_export_names_the_packages_that_lack(trained, fails, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    options = ["--ckpt", "results/a/best.pt", "--export", "own.onnx"]
    errors = fails(evaluate.main, *options)
    assert "python -m pip install onnx onnxscript onnxruntime (import of " in errors


EXPORT = ["--ckpt", "results/a/best.pt", "--export", "own.onnx"]


def run_exported_by(monkeypatch, session):
    """Let what --export makes be nothing, and onnxruntime's session be this function."""
    runtime = SimpleNamespace(InferenceSession=session)
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    monkeypatch.setitem(sys.modules, "onnxscript", SimpleNamespace())
    metadata = SimpleNamespace(add=SimpleNamespace)
    model = SimpleNamespace(metadata_props=metadata, SerializeToString=bytes)
    program = SimpleNamespace(model_proto=model)
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **settings: program)


def test_an_export_that_does_not_run_ends_in_a_line(trained, fails, monkeypatch):
    def fail(*_, **settings):
        raise RuntimeError("ShapeInferenceError: no such operator\nand much more")

    run_exported_by(monkeypatch, fail)
    errors = fails(evaluate.main, *EXPORT)
    assert "cannot run the exported network: ShapeInferenceError: no such op" in errors
    assert "much more" not in errors


def test_an_export_that_gives_no_numbers_is_not_written(trained, fails, monkeypatch):
    nothing = np.full((5, 10), np.nan, np.float32)
    session = SimpleNamespace(run=lambda _, given: [nothing[: len(given["images"])]])
    run_exported_by(monkeypatch, lambda *_, **settings: session)
    errors = fails(evaluate.main, *EXPORT)
    assert "onnxruntime gives other probabilities, by up to nan" in errors


def test_export_is_the_same_network(trained, call, fails, monkeypatch):
    """In onnxruntime, which knows nothing of PyTorch; one that is not is not written."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="--export needs it")
    pytest.importorskip("onnxscript", reason="--export needs it")
    options = ["--ckpt", "results/a/best.pt", "--export", "own.onnx"]
    status, output, _ = call(evaluate.main, *options)
    assert status == 0
    assert "Written: own.onnx" in output
    assert [path.name for path in Path.cwd().glob("own.onnx*")] == ["own.onnx"]
    session = onnxruntime.InferenceSession("own.onnx")
    names = session.get_modelmeta().custom_metadata_map["classes"]
    images, _, classes = dataset.load("digits", None, False)
    assert json.loads(names) == classes
    for count in (1, 7):
        pixels = images[:count].permute(0, 3, 1, 2).contiguous()
        (found,) = session.run(None, {"images": pixels.numpy()})
        net = restore(load_checkpoint("results/a/best.pt")).eval()
        with torch.no_grad():
            expected = net(pixels).softmax(1)
        assert np.allclose(found, expected, atol=1e-5)
    Path("own.onnx").unlink()
    exported = torch.onnx.export

    def other(net, *arguments, **options):
        twice = torch.nn.Sequential(net, torch.nn.Softmax(1)).eval()
        return exported(twice, *arguments, **options)

    monkeypatch.setattr(torch.onnx, "export", other)
    assert "gives other probabilities" in fails(evaluate.main, *options)


@pytest.mark.slow
def test_the_exported_network_runs_in_a_web_page(trained, call):
    """docs/classify.html, opened from its folder in Chromium with onnxruntime-web from npm."""
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason="--export needs it")
    api = pytest.importorskip("playwright.sync_api", reason="it opens the page")
    chromium, npm = shutil.which("chromium"), shutil.which("npm")
    if not chromium or not npm:
        pytest.skip("needs chromium and npm")
    page_file = ROOT / "docs" / "classify.html"
    (address,) = re.findall(r'src="(https:.+)/[^/]+"', page_file.read_text("utf-8"))
    package = re.search(r"onnxruntime-web@[\d.]+", address)[0]
    packed = subprocess.run([npm, "pack", package], check=False, capture_output=True)
    if packed.returncode:
        pytest.skip("npm cannot download onnxruntime-web")
    with tarfile.open(next(Path.cwd().glob("*.tgz"))) as archive:
        archive.extractall(filter="data")

    options = ["--ckpt", "results/a/best.pt", "--export", "own.onnx"]
    assert call(evaluate.main, *options)[0] == 0
    images, _, classes = dataset.load("digits", None, False)
    Image.fromarray(images[3].numpy()).save("small.png")
    wide = np.zeros((50, 91, 3), np.uint8)
    wide[:, 20:70] = cv2.resize(images[4].numpy(), (50, 50))
    Image.fromarray(wide).save("wide.png")
    Path("broken.png").write_bytes(b"no picture")
    pixels = np.stack([images[3].numpy(), read_image("wide.png")])
    net = restore(load_checkpoint("results/a/best.pt")).eval()
    with torch.no_grad():
        expected = net(torch.from_numpy(pixels).permute(0, 3, 1, 2)).softmax(1)

    def answer(route):
        name = route.request.url.removeprefix(address)
        headers = {"Access-Control-Allow-Origin": "*"}
        route.fulfill(path=f"package/dist{name}", headers=headers)

    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox"]
        )
        page = browser.new_page()
        page.route(f"{address}/*", answer)
        page.goto(page_file.as_uri())
        page.set_input_files("#network", "own.onnx")
        page.set_input_files("#pictures", ["broken.png", "small.png", "wide.png"])
        page.wait_for_selector("#pictures:enabled")
        broken, *texts = page.locator("figcaption").all_inner_texts()
        assert page.inner_text("#error") == ""
        Path("cut.onnx").write_bytes(Path("own.onnx").read_bytes()[:-200])
        page.set_input_files("#network", "cut.onnx")
        page.wait_for_function("document.getElementById('error').textContent")
        assert page.inner_text("#error").startswith("cut.onnx: ")
        browser.close()
    assert broken.startswith("broken.png\n")
    assert len(texts) == 2
    for text, name, shares in zip(texts, ("small.png", "wide.png"), expected):
        likeliest = shares.topk(3)
        lines = [name]
        for share, number in zip(likeliest.values, likeliest.indices):
            lines.append(f"{classes[number]} {100 * share:.1f} %")
        assert text.splitlines() == lines


def test_find_lr_changes_nothing_else(call, tmp_path, monkeypatch):
    figures, save = [], plots.save_figure

    def note(figure, path):
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(plots, "save_figure", note)
    monkeypatch.setattr(engine, "STEPS", 80)
    status, output, _ = call(train.main, *QUICK, "--find-lr")
    assert status == 0
    suggested, of_muon = map(
        float, re.search(r"suggested --lr (\S+) --muon-lr (\S+)", output).groups()
    )
    assert 0.003 < suggested < 3
    _, smooth, mark = figures[0].axes[0].lines
    lowest = smooth.get_xdata()[np.nanargmin(smooth.get_ydata())]
    assert lowest / 10 == pytest.approx(suggested, rel=0.05)  # printed in two digits
    assert mark.get_xdata()[0] == pytest.approx(suggested, rel=0.05)
    assert of_muon / suggested == pytest.approx(0.039 / 0.28, rel=0.1)
    files = [file.name for file in tmp_path.rglob("*") if file.is_file()]
    assert files == ["lr_finder.png"]
    (tmp_path / "results" / "lr_finder.png").unlink()
    status, output, _ = call(train.main, *QUICK, "--find-lr", "--dry-run")
    assert status == 0
    assert "nothing was written" in output
    assert not list((tmp_path / "results").iterdir())


def test_range_test_is_its_definition(monkeypatch):
    """Of a loss that is known at each rate: the lowest, smoothed, and where it has doubled."""
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)

    def loss_at(factor):
        return 1 + math.log10(factor) ** 2 * (1 if factor < 1 else 50)

    def step(images, labels):
        rate = optimizer.param_groups[0]["lr"]
        return torch.tensor(loss_at(rate / 0.1), dtype=torch.double), None

    training = SimpleNamespace(
        args=SimpleNamespace(small=0, epochs=1),
        device=torch.device("cpu"),
        optimizers=[optimizer],
        start_epoch=lambda: None,
        step=step,
    )
    loader = [(torch.zeros(1), torch.zeros(1))]
    monkeypatch.setattr(engine, "endless", lambda _: loader * engine.STEPS)
    factor, factors, losses, smooth = engine.find_lr(training, loader)
    assert losses == pytest.approx([loss_at(factor) for factor in factors])
    weights = 0.95 ** np.arange(len(losses))
    for count, value in enumerate(smooth, 1):  # the mean, the last ones weighing most
        mean = np.average(losses[:count], weights=weights[:count][::-1])
        assert value == pytest.approx(mean)
    assert factor == pytest.approx(factors[np.argmin(smooth)] / 10)
    assert smooth[-1] >= 2 * min(smooth) > smooth[-2]
    assert len(losses) < engine.STEPS


def test_no_rate_is_suggested_where_the_loss_only_grew(monkeypatch):
    """By so little that it never doubles."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    losses = iter(torch.linspace(2, 3, engine.STEPS))
    training = SimpleNamespace(
        args=SimpleNamespace(small=0, epochs=1),
        device=torch.device("cpu"),
        optimizers=[optimizer],
        start_epoch=lambda: None,
        step=lambda *_: (next(losses), None),
    )
    loader = [(torch.zeros(1), torch.zeros(1))]
    monkeypatch.setattr(engine, "endless", lambda _: loader * engine.STEPS)
    with pytest.raises(UserError, match="the loss grew from the start"):
        engine.find_lr(training, loader)


@pytest.mark.parametrize(("small", "side"), [(0.4, 24), (0, 32)])
def test_find_lr_is_on_the_images_that_begin(call, monkeypatch, small, side):
    monkeypatch.setattr(engine, "STEPS", 10)
    sides = set()
    step = engine.Training.step

    def watched(training, images, labels):
        sides.add(images.shape[-1])
        return step(training, images, labels)

    monkeypatch.setattr(engine.Training, "step", watched)
    call(train.main, *QUICK, "--find-lr", "--epochs", 5, "--small", small)
    assert sides == {side}


def test_find_lr_draws_anew_when_the_images_begin_again():
    class Loader(list):
        sampler = SimpleNamespace(epoch=None)

    loader = Loader("ab")
    seen = []
    for batch in engine.endless(loader):
        seen.append((loader.sampler.epoch, batch))
        if len(seen) == 5:
            break
    assert seen == [(1, "a"), (1, "b"), (2, "a"), (2, "b"), (3, "a")]


def test_name_must_name_a_folder(fails):
    for name in ("../a", "a/b", "", ".."):
        assert "no name of a folder" in fails(train.main, *QUICK, "--name", name)


def test_data_set_is_shown(call):
    status, output, _ = call(dataset.main, "--dataset", "digits")
    assert status == 0
    rows = [line.split() for line in output.splitlines()]
    assert ["all", "1,437", "360"] in rows
    images, labels, _ = dataset.load("digits", None, True)
    pixels = images.double() / 255
    assert f"{pixels[..., 0].mean():.4f}" in output
    assert f"{pixels[..., 0].std(correction=0):.4f}" in output
    assert ["3", str((labels == 3).sum().item()), "37"] in rows
    for name in ("samples", "steps"):
        assert np.asarray(Image.open(f"results/{name}.png")).std() > 0


def test_images_are_upright_in_reading_order_under_their_titles(monkeypatch, tmp_path):
    """In the pixels of the file; a blank keeps its place."""
    figures, save = [], plots.save_figure

    def note(figure, path):
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(plots, "save_figure", note)
    images = np.zeros((7, 32, 32, 3), np.uint8)
    images[..., 2] = 30 * np.arange(1, 8).reshape(7, 1, 1)  # each a blue of its own
    images[:, :16, :8, 0] = 255  # and red in its upper left corner
    cells = [*images[:2], None, *images[2:]]
    titles = ["a", "b\nb", "blank", *"cdefg"]
    plots.plot_images(cells, titles, 3, tmp_path / "grid.png", "a heading")
    pixels = np.array(Image.open(tmp_path / "grid.png").convert("RGB"))
    height, width, _ = pixels.shape
    (axes,) = figures[0].axes
    texts = {text.get_text(): text for text in axes.texts}
    for place, (image, title) in enumerate(zip(cells, titles)):
        if image is None:
            continue
        x, y = axes.transData.transform(texts[title].get_position())
        x, y = figures[0].transFigure.inverted().transform((x, y))
        ys, xs = (pixels == image[-1, -1]).all(-1).nonzero()
        red_ys, red_xs = (pixels == image[0, 0]).all(-1).nonzero()
        row, column = divmod(place, 3)
        assert row == int(3 * ys.mean() / height), title
        assert column == int(3 * xs.mean() / width), title
        assert red_ys.mean() < ys.mean(), title
        assert red_xs.mean() < xs.mean(), title
        assert abs(x * width - (red_xs.min() + xs.max()) / 2) < 3, title
        assert 0 < red_ys.min() - (1 - y) * height < 12, title  # a tenth of an inch


def test_the_spread_of_seeds_by_hand(capsys):
    runs = [SimpleNamespace(accuracies=own) for own in ([0.9, 0.8], [0.94, 0.88])]
    compare.print_spread(runs)
    assert capsys.readouterr().out.splitlines() == [
        "best: mean 92.00%, standard deviation 2.83%, min 90.00%, max 94.00%",
        "last: mean 84.00%, standard deviation 5.66%, min 80.00%, max 88.00%",
    ]


def test_each_recipe_has_its_spread(capsys):
    def made(rate, seed, *accuracies):
        options = {"lr": rate, "seed": seed}
        return SimpleNamespace(options=options, accuracies=list(accuracies))

    runs = [made(1, 0, 0.9, 0.8), made(1, 1, 0.94, 0.88), made(2, 0, 0.5, 0.5)]
    compare.print_spreads(runs, ["lr", "seed"])
    _, _, row = capsys.readouterr().out.splitlines()
    assert row.split() == ["2", "92.00%", "2.83%", "84.00%", "5.66%", "lr", "1"]
    compare.print_spreads([runs[0], runs[2]], ["lr", "seed"])
    assert capsys.readouterr().out == ""


def test_a_folder_of_seeds_stands_for_them(trained, call, tmp_path):
    results = tmp_path / "results"
    for seed in (1, 2):
        shutil.copytree(results / "a", results / "c" / f"seed-{seed}")
        path = results / "c" / f"seed-{seed}" / "run.json"
        described = json.loads(path.read_text())
        described["args"]["seed"] = seed
        path.write_text(json.dumps(described))
    _, output, _ = call(compare.main, "results/b", "results/c")
    names = [row.split()[0] for row in output.splitlines()[1:4]]
    assert names == ["b", "seed-1", "seed-2"]
    assert output.splitlines()[6].split()[0] == "2"  # seeds of one recipe
    assert compare.with_seeds([results / "c", *sorted((results / "c").iterdir())]) == [
        results / "c",
        *sorted((results / "c").iterdir()),
    ]


def test_a_seed_counts_once(trained, call, tmp_path):
    """As in results/earlier-1, or where a training is there as one of several seeds, too."""
    last = []
    for name, seed, epochs in (("a", 0, 2), ("again", 0, 2), ("other", 1, 1)):
        folder = tmp_path / "results" / name
        if name != "a":
            shutil.copytree("results/a", folder)
        described = json.loads((folder / "run.json").read_text())
        described["args"]["seed"] = seed
        (folder / "run.json").write_text(json.dumps(described))
        lines = (folder / "history.csv").read_text().splitlines()[: 1 + epochs]
        (folder / "history.csv").write_text("\n".join(lines))
        last.append(float(lines[-1].split(",")[-1]))
    folders = [f"results/{name}" for name in ("a", "again", "other")]
    _, output, _ = call(compare.main, *folders)
    deviation = abs(last[0] - last[2]) / 2**0.5
    assert "note      of a seed that is there twice" in output
    assert f"last: mean {np.mean(last[1:]):.2%}" in output
    assert f"deviation {deviation:.2%}" in output.partition("last: mean")[2]


def test_what_cannot_be_written_is_said_before_the_evaluation(trained, fails):
    Path("file").touch()
    for option in ("--json", "--predictions", "--export", "--out"):
        options = ["--ckpt", "results/a/best.pt", option, str(Path("file", "below"))]
        assert "cannot write file" in fails(evaluate.main, *options)


def test_the_most_confident_come_first():
    confidence = torch.tensor([0.9, 0.5, 0.8, 0.7])
    mask = torch.tensor([True, True, False, True])
    assert plots.most_confident(confidence, mask, 2).tolist() == [0, 3]
    assert plots.most_confident(confidence, ~mask, 5).tolist() == [2]


def test_mistakes_are_shown_above_their_own_images(monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "plot_images", lambda *given: drawn.append(given))
    images = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 32, 32, 3)
    shares = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.4, 0.6], [0.8, 0.2]])
    labels = torch.tensor([0, 1, 0, 1])
    plots.plot_mistakes(images, labels, shares, ["cat", "dog"], "mistakes.png", 12)
    cells, titles, *_ = drawn[0]
    assert [int(cell[0, 0, 0]) for cell in cells] == [3, 1, 2]
    assert titles == ["dog\n→ cat 80%", "dog\n→ cat 70%", "cat\n→ dog 60%"]
    for number, count in ((4, 1), (1, 12)):
        part = (images[:number], labels[:number], shares[:number])
        plots.plot_mistakes(*part, ["cat", "dog"], "mistakes.png", count)
    every, one, none = (given[-1] for given in drawn)
    assert every.startswith("The most confident 3 of 3 mistakes")
    assert one.startswith("The most confident 1 of 3 mistakes")
    assert none == "No mistakes"


def test_evidence_is_of_two_right_answers_and_four_mistakes(
    trained, tmp_path, monkeypatch
):
    """Each has its image, and maps for the class predicted and for another one."""
    drawn = []
    monkeypatch.setattr(evaluate, "plot_images", lambda *plot: drawn.append(plot))
    images, labels, classes = dataset.load("digits", None, False)
    net = evaluate.restore(load_checkpoint(tmp_path / "results" / "b" / "best.pt"))
    cpu = torch.device("cpu")
    probabilities = evaluate.predict(net, images, cpu, torch.float32).softmax(1)
    evaluate.plot_evidence(
        net, images, labels, probabilities, classes, "evidence.png", 4
    )
    ((cells, titles, columns, path, _),) = drawn
    assert (len(cells), len(titles), columns, path) == (18, 18, 6, "evidence.png")
    confidence, predicted = probabilities.max(1)
    expected = []
    for mask, count in ((predicted == labels, 2), (predicted != labels, 4)):
        expected += confidence[mask].sort(descending=True).values[:count].tolist()
    shares = [title.split()[-1] for title in titles[::3]]
    assert shares == [f"{share:.0%}" for share in expected]
    for number in range(6):
        title, first, second = titles[3 * number : 3 * number + 3]
        actual, guess = title.split("\n→ ")
        guess = guess.split()[0]
        assert (actual == guess) == (number < 2)
        assert first == f"evidence for\n{guess}"
        assert second != first
        image, *maps = cells[3 * number : 3 * number + 3]
        index, *_ = (images == image).flatten(1).all(1).nonzero().ravel().tolist()
        assert classes[labels[index]] == actual
        assert classes[probabilities[index].argmax()] == guess
        for told, shown in zip((first, second), maps):
            target = torch.tensor([int(told.split("\n")[1].split()[0])])
            expected = overlay(image[None], grad_cam(net, image[None], target))[0]
            assert (shown.int() - expected.int()).abs().max() <= 1
        if number >= 2:
            assert second == f"evidence for\n{actual} (actual)"
        else:
            runner_up = classes[probabilities[index].topk(2).indices[1]]
            assert second.split("\n")[1] == f"{runner_up} (second)"


def test_curves_show_all_but_the_first_epochs(monkeypatch):
    """An outlier at the start leaves the axes; the goal and every later value stay."""
    drawn = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, _: drawn.append(figure))
    rows = []
    for epoch in range(1, 21):
        accuracy = 0.1 if epoch == 1 else 0.7 + 0.005 * epoch
        row = {
            "epoch": epoch,
            "train_loss": 2 - 0.05 * epoch,
            "train_accuracy": accuracy - 0.02,
        }
        rows.append(row | {"test_loss": 1 - 0.02 * epoch, "test_accuracy": accuracy})
    rows[14]["test_accuracy"] = 0.82  # the best one is not the last
    plots.plot_curves(
        History("test", rows), "a title", "label smoothing 0.1", 0.85, "curves.png"
    )
    (figure,) = drawn
    assert figure.get_suptitle() == "a title"
    loss, accuracy = figure.axes
    named = (
        (loss, "loss", 1, ",\nlabel smoothing 0.1"),
        (accuracy, "accuracy", 100, ""),
    )
    for axes, name, scale, targets in named:
        lines = {}
        for line in axes.get_lines():
            lines[line.get_label()] = line.get_xydata().tolist()
        for part, label in (("test", "test"), ("train", f"train (augmented{targets})")):
            values = [[row["epoch"], scale * row[f"{part}_{name}"]] for row in rows]
            assert lines[label] == values
    assert lines["best epoch, 15: 82.00 %"] == [pytest.approx([15, 82])]
    low, high = accuracy.get_ylim()
    assert 10 < low < 72.5
    assert high > 85
    labels = [text.get_text() for text in loss.get_legend().get_texts()]
    assert "train (augmented,\nlabel smoothing 0.1)" in labels
    for row in rows:  # of a metric of one's own
        row |= {"train_own": math.nan, "test_own": math.nan}
    plots.plot_curves(History("test", rows), "a title", "", None, "curves.png")
    lines = drawn[-1].axes[1].get_lines()
    assert not any("of the assignment" in line.get_label() for line in lines)


def test_confusions_of_many_classes_are_the_pairs_confused_most(monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, _: drawn.append(figure))
    matrix = 50 * np.eye(1000, dtype=int)
    matrix[3, 7], matrix[999, 0] = 9, 12
    names = [f"class {number}" for number in range(1000)]
    plots.plot_confusion(matrix, names, "matrix.png")
    axes, words, _ = drawn[0].axes
    assert axes.images[0].get_clim() == (0, 12)
    lines = words.texts[0].get_text().split("\n")[2:]
    pairs = ["   12  class 999 → class 0", "    9  class 3 → class 7"]
    assert lines == pairs
    assert axes.images[0].get_array()[3, 7] == 9  # the rows are the actual classes
    assert axes.get_xlabel() == "number of the predicted class"
    assert axes.get_ylabel() == "number of the actual class"


def test_confusion_matrix_shows_mistakes_in_colour_and_shares(monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, _: drawn.append(figure))
    matrix = np.array([[90, 10], [5, 15]])
    plots.plot_confusion(matrix, ["cat", "dog"], "matrix.png")
    axes = drawn[0].axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["cat  90.0%", "dog  75.0%"]
    shown = {text.get_position(): text.get_text() for text in axes.texts}
    # By (predicted, actual): the rows are the actual classes.
    assert shown == {(0, 0): "90", (1, 0): "10", (0, 1): "5", (1, 1): "15"}
    assert axes.images[0].get_clim() == (0, 10)  # the right answers do not scale it
    assert matrix[0, 0] == 90  # and are not changed
    assert axes.get_xlabel() == "predicted"
    assert axes.get_ylabel().startswith("actual")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cat", "dog"]


def test_printed_matrix_has_the_actual_classes_as_rows(capsys):
    evaluate.print_matrix(np.array([[90, 10], [5, 15]]), ["cat", "dog"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows == [["cat", "dog"], ["cat", "90", "10"], ["dog", "5", "15"]]


@pytest.mark.parametrize("count", [2, 100])
def test_confusion_matrix_without_mistakes_has_no_colour(monkeypatch, count):
    drawn = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, _: drawn.append(figure))
    names = [f"class {number}" for number in range(count)]
    plots.plot_confusion(3 * np.eye(count, dtype=int), names, "matrix.png")
    assert drawn[0].axes[0].images[0].get_clim() == (0, 1)


def test_long_names_of_classes_are_cut_above_images(monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "plot_images", lambda *cells: drawn.append(cells))
    classes = ["Tomato___Bacterial_spot", "Tomato___healthy"]
    probabilities = torch.tensor([[0.1, 0.9]])
    images, labels = torch.zeros(1, 32, 32, 3, dtype=torch.uint8), torch.tensor([0])
    plots.plot_mistakes(images, labels, probabilities, classes, "mistakes.png", 1)
    _, titles, *_ = drawn[0]
    assert titles == ["Tomato___Bac…\n→ Tomato___hea… 90%"]
    assert plots.shortened("aquarium_fish") == "aquarium_fish"
    assert plots.shortened("猫" * 6) == "猫" * 6
    assert plots.shortened("猫" * 7) == "猫" * 5 + "…"


def test_confusion_matrix_has_room_for_its_labels(tmp_path):
    matrix = np.diag([36] * 10)
    matrix[[6, 8, 9], [3, 5, 3]] = 1
    plots.plot_confusion(matrix, [*"0123456789"], tmp_path / "matrix.png")
    pixels = np.array(Image.open(tmp_path / "matrix.png").convert("L"))
    assert (pixels[:, :2] == 255).all()  # nothing reaches the left edge


def test_grad_cam_is_that_of_the_library_grad_cam():
    """Of a network without ReLUs in place, which overwrite what its hook has kept."""
    library = pytest.importorskip(
        "pytorch_grad_cam", reason="grad-cam is not installed"
    )
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    torch.manual_seed(0)
    net = build("small", "dilated", "batch", None, activation="gelu").eval()
    images = torch.randint(256, (4, 32, 32, 3), dtype=torch.uint8)
    classes = torch.tensor([0, 3, 5, 9])
    wanted = [targets.ClassifierOutputTarget(number) for number in classes.tolist()]
    layer = net.body.c4.conv
    with library.GradCAM(net, [layer]) as cam:
        pixels = images.permute(0, 3, 1, 2).float()
        cam(pixels, wanted)
        kept = cam.activations_and_grads
        maps, gradients = kept.activations[0].numpy(), kept.gradients[0].numpy()
        raw = cam.get_cam_image(pixels, layer, wanted, maps, gradients, False)
    expected = np.maximum(raw, 0)
    expected /= expected.max((1, 2), keepdims=True)
    found = grad_cam(net, images, classes)
    assert found.shape == (4, 6, 6)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def random_scores(count, seed=0):
    """Scores of ten classes that are often right, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (count,), generator=generator)
    scores = torch.randn(count, 10, generator=generator)
    return scores + 2 * F.one_hot(labels, 10), labels


def test_calibration_error_against_scikit_learns_curve():
    scores, labels = random_scores(2_000)
    probabilities = scores.softmax(1)
    confidence, predicted = probabilities.max(1)
    right = predicted == labels
    by_bin = calibration_curve(right, confidence, n_bins=15)
    counts, _ = np.histogram(confidence, bins=15, range=(0, 1))
    gaps = np.abs(by_bin[0] - by_bin[1])
    expected = (gaps * counts[counts > 0]).sum() / len(labels)
    found = trust.calibration_error(probabilities, labels)
    assert found == pytest.approx(expected, abs=1e-6)
    assert found > 0.01


def test_temperature_is_the_likeliest():
    scores, labels = random_scores(2_000)

    def loss(temperature):
        return F.cross_entropy(scores / temperature, labels).item()

    best = scipy.optimize.minimize_scalar(loss, bounds=(0.1, 10), method="bounded").x
    assert trust.temperature(scores, labels) == pytest.approx(best, rel=1e-3)
    # Scores three times too sure are brought back.
    assert trust.temperature(3 * scores, labels) == pytest.approx(3 * best, rel=1e-3)


def test_each_half_has_the_temperature_of_the_other(capsys):
    scores, labels = random_scores(2_000)
    scores[1::2] *= 3
    trust.print_calibration(scores, labels)
    output = capsys.readouterr().out
    words = re.search(r"divided by ([\d.]+) and ([\d.]+),", output)
    first, second = map(float, words.groups())
    assert first > 2 * second  # the even ones' is that of the odd ones
    expected = trust.temperature(scores[::2], labels[::2])
    assert second == pytest.approx(expected, abs=1e-3)
    cooled = scores.clone()
    cooled[::2] /= first
    cooled[1::2] /= second
    errors = []
    for one in (scores, cooled):
        errors.append(100 * trust.calibration_error(one.softmax(1), labels))
    assert abs(errors[0] - errors[1]) > 1
    shown = re.search(r"error: ([\d.]+)%; ([\d.]+)% with", output).groups()
    assert [float(value) for value in shown] == pytest.approx(errors, abs=0.05)


@pytest.mark.parametrize("name", trust.CORRUPTIONS)
def test_the_last_severity_of_a_corruption_is_the_worst(name):
    generator = torch.Generator().manual_seed(0)
    images = 255 * torch.rand(12, 3, 12, 12, generator=generator)
    images = F.interpolate(images, (32, 32), mode="bilinear").permute(0, 2, 3, 1)
    images = images.to(torch.uint8)
    differences = []
    for step in trust.CORRUPTIONS[name]:
        result = trust.corrupted(images, step)
        assert result.shape == images.shape
        assert result.dtype == torch.uint8
        assert torch.equal(result, trust.corrupted(images, step))
        differences.append((result.float() - images).abs().mean().item())
    assert 0 < min(differences)
    assert max(differences[:2]) < differences[2]


def test_the_corruption_jpeg_is_pillows():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (3, 32, 32, 3), dtype=torch.uint8, generator=generator)
    found = trust.corrupted(images, trust.CORRUPTIONS["JPEG"][0])
    for image, result in zip(images.numpy(), found.numpy()):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=80, subsampling="4:2:0")
        assert np.array_equal(result, Image.open(file))


def test_trust_prints_all(call, monkeypatch):
    call(train.main, *QUICK)
    few = {name: trust.CORRUPTIONS[name] for name in ("contrast", "JPEG")}
    monkeypatch.setattr(trust, "CORRUPTIONS", few)
    status, output, _ = call(trust.main, "--ckpt", "best.pt")
    assert status == 0
    checkpoint = load_checkpoint("best.pt")
    assert f"accuracy {checkpoint['accuracy']:.2%}" in output
    assert re.search(r"calibration error: [\d.]+%; [\d.]+% with the scores", output)
    *names, mean = [line.split() for line in output.splitlines()[-3:]]
    assert [row[0] for row in names] == ["contrast", "JPEG"]
    for place in (1, 2, 3):
        average = sum(float(row[place]) for row in names) / 2
        assert float(mean[place]) == pytest.approx(average, abs=0.011)
    net = restore(checkpoint)
    images, labels, _ = dataset.load("digits", None, False)
    cpu = torch.device("cpu")
    for name, *shown in names:
        worst = trust.corrupted(images, few[name][-1])
        scores = evaluate.predict(net, worst, cpu, pick_precision(cpu, "auto"))
        right = (scores.argmax(1) == labels).double().mean().item()
        assert float(shown[2]) == pytest.approx(100 * right, abs=0.006)
