"""What was published: the defaults that the README's figures and the assignment rest on.

Edit them freely. A failure here says that a default is no longer the published one, and
not that the code is broken.
"""

import albumentations as A
import numpy as np
import pytest
import torch
from conftest import ROOT

from checkpoint import load_checkpoint, restore
from dataset import HOLE, MOVE, AugmentedImages, augmentation
from layers import NORMS
from model import DOWNSAMPLE, KERNELS, build
from receptive_field import computed_macs, trace
from rules import (
    FIELD_TO_EXCEED,
    GOAL,
    PARAMETER_LIMIT,
    PARAMETERS,
    RECEPTIVE_FIELD,
    checklist,
    count_parameters,
)
from train import parse_arguments

pytestmark = pytest.mark.slow
PUBLISHED = ("default", "plain", "record", "reference")
MEAN = (0.4914, 0.4822, 0.4465)
FILL = (125, 123, 114)  # MEAN on the scale of the image
EDITED = "a default of the augmentation in dataset.py was edited: "


def test_limits_are_the_assignments():
    limits = (PARAMETER_LIMIT, FIELD_TO_EXCEED, GOAL)
    assert limits == (200_000, 44, 0.85), "the limits in rules.py were edited"


def test_augmentation_is_the_assignments_three():
    names = [
        type(step).__name__ for step in augmentation(MEAN, True, MOVE, HOLE).transforms
    ]
    assert names == ["HorizontalFlip", "ShiftScaleRotate", "CoarseDropout"], (
        f"{EDITED}the assignment's steps are these three"
    )


def test_probabilities_are_the_published_ones():
    chances = [step.p for step in augmentation(MEAN, True, MOVE, HOLE).transforms]
    assert chances == [0.5, 0.7, 0.15], f"{EDITED}the probabilities are others"
    without_mirror = augmentation(MEAN, False, MOVE, HOLE).transforms[0]
    assert without_mirror.p == 0, f"{EDITED}the first step is not the mirror image"


def test_mirrored_half_the_time():
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (1, 32, 32, 3), dtype=torch.uint8, generator=generator)
    steps = A.Compose([augmentation(MEAN, True, MOVE, HOLE).transforms[0]])
    data = AugmentedImages(image.expand(400, 32, 32, 3), None, steps, 0)
    mirrored = 0
    for result in data.augment(1, range(400)):
        if not np.array_equal(result, image[0]):
            mirrored += 1
    assert 150 < mirrored < 250, f"{EDITED}not every other image is mirrored"


def test_moves_are_the_published_ones():
    moves = None
    for step in augmentation(MEAN, True, MOVE, HOLE).transforms:
        if isinstance(step, A.ShiftScaleRotate):
            moves = step
    assert moves is not None, f"{EDITED}there is no ShiftScaleRotate"
    message = f"{EDITED}shift, scale or rotation have other limits"
    assert moves.shift_limit_x == moves.shift_limit_y == (-0.0625, 0.0625), message
    assert moves.scale_limit == (0.95, 1.05), message  # factors; the option is 0.05
    assert moves.rotate_limit == (-5, 5), message  # degrees


def hole_of(image):
    """Where an image that was white is no longer white; the other steps leave it so."""
    return (image != 255).any(-1)


def test_hole_is_one_block_of_16x16_of_the_mean():
    white = torch.full((200, 32, 32, 3), 255, dtype=torch.uint8)
    data = AugmentedImages(white, None, augmentation(MEAN, True, MOVE, hole=0.3), 0)
    holes = 0
    for image in data.augment(1, range(200)):
        hole = hole_of(image)
        if not hole.any():
            continue
        holes += 1
        rows = np.flatnonzero(hole.any(axis=1))
        columns = np.flatnonzero(hole.any(axis=0))
        height = rows[-1] - rows[0] + 1
        width = columns[-1] - columns[0] + 1
        message = f"{EDITED}a hole is not one block of 16x16"
        assert (height, width, hole.sum()) == (16, 16, 256), message
        assert (image[hole] == FILL).all(), f"{EDITED}a hole is not of the mean"
    assert 30 < holes < 90, f"{EDITED}not three images in ten have a hole"  # of 200


@pytest.mark.parametrize("mirror", [True, False])
def test_images_stay_uint8_of_32x32(mirror):
    white = torch.full((20, 32, 32, 3), 255, dtype=torch.uint8)
    transform = augmentation(MEAN, mirror, MOVE, HOLE)
    for image in AugmentedImages(white, None, transform, 0).augment(1, range(20)):
        assert image.shape == (32, 32, 3), f"{EDITED}images are of another size"
        assert image.dtype == np.uint8, f"{EDITED}images are not uint8"


def text_of(name):
    """A document in one line, as its sentences go over several."""
    return " ".join((ROOT / name).read_text(encoding="utf-8").split())


def test_figures_in_prose_are_those_of_the_default():
    net, free = (build("default", "dilated", "batch", None, kernels=k) for k in KERNELS)
    readme, text = text_of("README.md"), text_of("docs/how-it-works.md")
    total = count_parameters(free)
    message = TABLE.format("default") + "the documents' figures are of another one"
    assert f"no parameters (or {total:,})" in readme, message
    assert f"(saving {total - count_parameters(net):,})" in readme, message
    assert f"the default table then has {total:,} parameters" in text, message
    whole = sum(node.macs for node in trace(net)) / 1e6
    computed = computed_macs(net) / 1e6
    spared = f"{computed:.1f} million multiply-adds per image instead of {whole:.1f}"
    assert f"with {spared} million" in text, message


@pytest.mark.parametrize("downsample", ["strided", "stride-free"])
def test_figures_of_the_variants(downsample):
    net = build("default", downsample, "batch", None)
    nodes = trace(net)
    values = {rule.text: rule.value for rule in checklist(net, nodes)}
    macs = sum(node.macs for node in nodes) / 1e6
    row = f"| `--downsample {downsample}` | {values[RECEPTIVE_FIELD]} | {macs:.0f} million |"
    message = TABLE.format("default") + "the document's figures are of another one"
    assert row in text_of("docs/results.md"), message


TABLE = "the table '{}' of model.py was edited: "
COMBINATIONS = [(a, d, n) for a in PUBLISHED for d in DOWNSAMPLE for n in NORMS]


def receptive_fields(net):
    """The receptive field after each row of a table, by the row's name."""
    fields = {}
    for node in trace(net):
        if node.layer:
            row = ".".join(node.layer.split(".")[:2])
            fields[row] = node.receptive_field
    return fields


def test_reference_has_the_published_figures():
    net = build("reference", "dilated", "batch", None)
    edited = TABLE.format("reference")
    assert sum(weight.numel() for weight in net.parameters()) == 98_779, edited
    fields = receptive_fields(net)
    published = [3, 7, 7, 11, 19, 19, 27, 43, 43, 51]
    assert list(fields.values())[:10] == published, edited
    assert fields["o.gap"] == 71, edited
    # Odd kernels, padded by what they reach out, stay centred: unit 0 looks at pixel 0.
    # The last shrinking layer is padded by one unit, 4 pixels, less than it reaches out.
    starts = {}
    for node in trace(net):
        if node.operation == "conv2d":
            starts[node.layer] = node.axes[0].start
    assert starts["c2.down.depthwise"] == 0, edited
    assert starts["c3.down.depthwise"] == 4, edited
    dropout = {m.p for m in net.modules() if isinstance(m, torch.nn.Dropout)}
    assert dropout == {0.05}, "the dropout of 'reference' in model.py was edited"


@pytest.mark.parametrize(
    ("arch", "parameters", "field"),
    [
        ("default", 192_824, 59),
        ("plain", 196_760, 59),
        ("record", 198_716, 61),
        ("reference", 98_779, 51),
    ],
)
def test_figures_of_the_readme(arch, parameters, field):
    net = build(arch, "dilated", "batch", None)
    rules = {rule.text: rule.value for rule in checklist(net, trace(net))}
    edited = TABLE.format(arch) + "the README's figures are of another one"
    expected = f"{parameters:,} with 10 classes"
    assert rules[PARAMETERS] == expected, edited
    assert rules[RECEPTIVE_FIELD] == f"{field}", edited


@pytest.mark.parametrize(("arch", "downsample", "norm"), COMBINATIONS)
def test_every_combination_keeps_the_rules(arch, downsample, norm):
    net = build(arch, downsample, norm, None)
    for rule in checklist(net, trace(net)):
        message = TABLE.format(arch) + f"'{rule.text}' fails ({rule.value})"
        assert rule.passed, message


def test_recipe_is_that_of_the_readme():
    args, _ = parse_arguments([])
    edited = "a default of train.py or optim.py was edited"
    recipe = (args.arch, args.epochs, args.batch_size, args.optimizer, args.schedule)
    assert recipe == ("default", 14, 128, "muon", "onecycle"), edited
    rates = (args.lr, args.weight_decay, args.muon_lr, args.muon_decay)
    assert rates == (0.28, 5e-4, 0.039, 0.06), edited
    rest = (args.label_smoothing, args.ema, args.small, args.seed)
    assert rest == (0.1, 0.02, 0.4, 0), edited
    assert (args.move, args.hole) == (0.7, 0.15), edited


@pytest.mark.parametrize(
    "file", ["default.pt", "record.pt", "record-1.pt", "record-2.pt"]
)
def test_pretrained_weights_are_those_of_the_results(file):
    path = ROOT / "pretrained" / file
    name = path.stem.partition("-")[0]
    checkpoint = load_checkpoint(path)
    net = restore(checkpoint)
    assert path.stat().st_size < 1_000_000
    rules = checklist(net, trace(net), checkpoint["accuracy"])
    assert all(rule.passed for rule in rules)
    fresh = build(name, "dilated", "batch", None)
    assert checkpoint["net"]["rows"] == fresh.config["rows"], (
        TABLE.format(name) + f"{path.name} is of another one"
    )
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    section = results.split(f"## The {name} network\n")[1].split("\n## ")[0]
    assert f"{checkpoint['accuracy']:.2%}".replace("%", " %") in section


def test_receptive_field_by_hand_is_that_of_the_default():
    """The table in docs/how-it-works.md, against what is traced."""
    text = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    section = text.split("## Receptive field\n")[1].split("\n## ")[0]
    by_hand = {}
    for line in section.splitlines():
        if line.startswith("| `"):
            name, *cells = [cell.strip(" `") for cell in line.strip("|").split("|")]
            by_hand[name] = [int(cell) for cell in cells]
    fields = receptive_fields(build("default", "dilated", "batch", None))
    before, jump = 1, 1
    for name, (kernel, stride, dilation, jump_before, adds, field) in by_hand.items():
        assert jump_before == jump, name
        assert adds == (kernel - 1) * dilation * jump, name
        assert field == before + adds == fields[name], TABLE.format("default") + name
        before, jump = field, jump * stride
    assert len(by_hand) == len(fields) - 1  # the last layer adds nothing
