"""The networks: tables and classes of one's own, and what is refused."""

import contextlib
import itertools
import random
import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import PATH, run_script
from nets import SMALL, OwnNet
from test_rules import edit
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import evaluate
import model
import plots
from layers import (
    ACTIVATIONS,
    KINDS,
    NORMS,
    Conv,
    Depthwise,
    Residual,
    Row,
    SqueezeExcitation,
    as_computed,
    size_after,
)
from model import (
    ARCHS,
    CLASSES,
    DOWNSAMPLE,
    KERNELS,
    Arch,
    Net,
    TableNet,
    build,
    find_head,
    head_alone,
    random_images,
    summarise,
    table,
    title_of,
    try_out,
)
from receptive_field import computed_macs, trace
from rules import count_parameters
from utils import UserError


@pytest.mark.parametrize(
    ("downsample", "norm", "kernels"),
    list(itertools.product(DOWNSAMPLE, NORMS, KERNELS)),
)
def test_every_combination_makes_a_network(downsample, norm, kernels):
    net = build("small", downsample, norm, None, classes=7, kernels=kernels)
    assert net.eval()(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 7)


def test_downsamplings_are_what_they_are_called():
    def convolutions(downsample):
        net = build("small", downsample, "batch", None).as_written()
        assert not any("max_pool" in node.operation for node in trace(net))
        return {n: m for n, m in net.named_modules() if isinstance(m, nn.Conv2d)}

    def downs(downsample):
        found = convolutions(downsample).items()
        return [m for n, m in found if ".down." in n and m.kernel_size == (3, 3)]

    assert len(downs("dilated")) == 3
    assert all(conv.dilation > (1, 1) for conv in downs("dilated"))
    windows = [(conv.stride, conv.dilation) for conv in downs("strided")]
    assert windows == [((2, 2), (1, 1))] * 3
    assert all(c.stride == (1, 1) for c in convolutions("stride-free").values())
    for conv in downs("stride-free"):
        assert conv.dilation > (1, 1)
        assert conv.padding == (0, 0)


def gradients_of(conv, x):
    """A layer's map, and the gradients of a function of it for the input and the kernels."""
    y = conv(x)
    weights = torch.arange(y.numel(), dtype=y.dtype).view_as(y)
    return y, *torch.autograd.grad((y * weights).sum(), (x, conv.weight))


@pytest.mark.parametrize(
    "kernel, stride, padding, dilation",
    [
        (3, 2, 2, 2),
        (3, 2, 1, 1),
        (3, 2, 3, 3),
        (3, 1, 2, 2),
        (5, 2, 4, 2),
        (3, 3, 3, 6),
    ],
)
@pytest.mark.parametrize("size", [17, 20])
def test_depthwise_convolutions_are_pytorchs(kernel, stride, padding, dilation, size):
    window = kernel, stride, padding, dilation
    ours = Depthwise(4, *window).double()
    theirs = nn.Conv2d(4, 4, *window, groups=4, bias=False).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 4, size, size, dtype=torch.double, requires_grad=True)
    results = gradients_of(ours, x), gradients_of(theirs, x)
    for own, other in zip(*results, strict=True):
        torch.testing.assert_close(own, other)


class Strided1x1(TorchDispatchMode):
    """Counts the convolutions, and the gradients of one, with such a kernel."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "convolution" in function._schema.name:
            named = zip(function._schema.arguments, args)
            values = {argument.name: value for argument, value in named}
            is_1x1 = values["weight"].shape[2:] == (1, 1)
            self.count += is_1x1 and max(values["stride"]) > 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("padding", "stride"), [(0, 2), (0, 3), (1, 2), (2, 2), (1, 1)]
)
@pytest.mark.parametrize("depthwise", [False, True])
def test_no_strided_1x1_convolution_runs(depthwise, padding, stride):
    """A library's gradient of it corrupts memory on CPUs. In float64, which that library
    has no kernels for, it can be compared with."""
    window = (1, stride, padding, 1)
    ours = Depthwise(4, *window) if depthwise else Conv(4, 6, *window)
    theirs = nn.Conv2d(
        4, len(ours.weight), *window, groups=ours.groups, bias=False
    ).double()
    theirs.load_state_dict(ours.double().state_dict())
    x = torch.randn(2, 4, 9, 8, dtype=torch.double, requires_grad=True)
    with Strided1x1() as strided:
        results = gradients_of(ours, x)
    assert strided.count == 0
    with Strided1x1() as strided:
        expected = gradients_of(theirs, x)
    assert strided.count == 2 * (stride > 1)
    for own, other in zip(results, expected, strict=True):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize("dilation", [1, 2, 8])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [24, 32, 88, "depthwise"])
def test_gradients_in_bfloat16(channels, dilation, stride):
    """Of wide maps, which a library's kernel for dilation gets wrong on some CPUs."""
    window = (3, stride, dilation, dilation)
    if channels == "depthwise":
        channels, conv = 32, Depthwise(32, *window)
    else:
        conv = Conv(channels, 24, *window)
    x = torch.randn(4, channels, 64, 64).to(memory_format=torch.channels_last)
    gradients = []
    for is_enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_enabled):
            y = conv(x)
            # What is dilated, and reads no multiple of 16 channels, is in float32.
            remains = dilation > (stride if conv.groups > 1 else 1)
            is_uneven = conv.weight.shape[1] % 16 > 0
            is_exact = not is_enabled or (remains and is_uneven)
            assert (y.dtype == torch.float32) == is_exact
        gradients.append(torch.autograd.grad(y.float().square().sum(), conv.weight)[0])
    exact, ours = gradients
    assert (ours - exact).norm() < 0.02 * exact.norm()


def results_of(net, x):
    """Scores in evaluation, and all gradients of a function of them."""
    net.eval()
    scores = net(x).flatten(1)
    weights = torch.linspace(-1, 1, scores.numel(), dtype=scores.dtype)
    value = (scores.ravel() * weights).sum()
    return scores, *torch.autograd.grad(value, (x, *net.parameters()))


def assert_computed_is_as_written(rows, norm="batch", kernels="free"):
    """Scores and gradients, against the network that runs the rows as they are written.

    Returns how many rows take a stride from the next one.
    """
    settings = (rows, 10, norm, 0.0, kernels)
    net = TableNet(*settings).double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    whole = TableNet(*settings, is_written=True).double()
    whole.load_state_dict(net.state_dict())
    x = torch.randn(2, 3, 32, 32, dtype=torch.double, requires_grad=True)
    for own, other in zip(results_of(net, x), results_of(whole, x), strict=True):
        torch.testing.assert_close(own, other)
    computed = as_computed(rows, norm)
    return sum(runs.stride > row.stride for row, runs in zip(rows, computed))


def tables():
    """The tables of ARCHS in each way to shrink, but for those that refuse it in a line."""
    found = []
    for arch, downsample in itertools.product(ARCHS, DOWNSAMPLE):
        if not callable(ARCHS[arch]):
            with contextlib.suppress(UserError):
                build(arch, downsample, "batch", None)
                found.append((arch, downsample))
    return found


def test_a_table_with_each_kind_of_row_can_shrink_in_every_way():
    assert {("small", downsample) for downsample in DOWNSAMPLE} <= set(tables())


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("arch", "downsample"), tables())
def test_rows_as_computed_give_what_the_table_says(arch, downsample, norm, kernels):
    rows = table(arch, downsample)
    changed = assert_computed_is_as_written(rows, norm, kernels)
    if arch == "small":
        # The rows before c1.down and c2.down; other norms look at the whole map.
        expected = 2 if (downsample, norm) == ("dilated", "batch") else 0
        assert changed == expected


def random_rows(generator):
    """Layers of any kind, kernel, stride, dilation and padding that make a network."""
    rows, size = [], 32
    while len(rows) < 7:
        kind = generator.choice(
            ["plain", "residual", "separable", "maxpool", "squeeze"]
        )
        kernel, stride = generator.choice([1, 3]), generator.choice([1, 1, 2, 2, 3])
        dilation, padding = (
            generator.choice([1, 2, 3, 4]),
            generator.choice([0, 1, 2, 4]),
        )
        if kind == "residual":
            padding = dilation * (kernel - 1) // 2
        if kind == "maxpool":
            kernel, dilation, padding = 2, 1, 0
        channels = generator.choice([4, 8])
        name = f"c.r{len(rows)}"
        row = Row(name, channels, kernel, stride, dilation, padding, kind)
        try:
            size = size_after(row, size)
        except ValueError:
            continue
        rows.append(row)
        if size < 3:
            break
    return [*rows, Row("o.gap", 0, 0, 0, 0, 0, "gap"), SMALL[-1]]


def test_random_tables_skip_only_what_is_never_read():
    generator = random.Random(0)
    changed = 0
    for _ in range(150):
        changed += assert_computed_is_as_written(random_rows(generator))
    assert changed > 50


def test_a_layer_that_sees_the_whole_map_skips_nothing(monkeypatch):
    """A norm or a row that a student adds, of which nothing is known here."""
    monkeypatch.setitem(NORMS, "instance", nn.InstanceNorm2d)
    rows = table("small", "dilated")
    assert assert_computed_is_as_written(rows, "instance") == 0

    def attentive(row, channels):
        layer = KINDS["plain"](row, channels)
        layer.attention = SqueezeExcitation(row.channels, 4)
        return layer

    monkeypatch.setitem(KINDS, "attentive", attentive)
    rows[0] = rows[0]._replace(kind="attentive")
    assert assert_computed_is_as_written(rows) == 1


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_another_activation_computes_no_more(name):
    expected = computed_macs(build("small", "dilated", "batch", None))
    net = build("small", "dilated", "batch", None, activation=name)
    layers = [layer for layer in net.modules() if hasattr(layer, "activation")]
    kinds = {type(layer.activation) for layer in layers}
    assert [kind.__name__.lower() for kind in kinds] == [name.replace("-", "")]
    assert computed_macs(net) == expected < sum(node.macs for node in trace(net))
    assert (name in title_of(net.config, "dilated")) == (name != "relu")


def test_rows_as_they_run_are_shown(call):
    _, output, _ = call(model.main, "--arch", "small", "--computed")
    lines = [line.split() for line in output.splitlines()]
    macs = computed_macs(build("small", "dilated", "batch", None))
    assert f"\n{macs:,} of them are computed: no layer reads" in output
    assert ["c1.conv", "plain", "16x16", "3x3", "2", "(1)", "1", "1"] in lines
    window = ["1", "(2)"] * 3
    assert ["c1.down", "plain", "16x16", "3x3", *window] in lines
    assert ["c4.conv", "separable", "6x6", "3x3", "1", "1", "1"] in lines
    _, output, _ = call(model.main, "--arch", "own", "--computed")
    assert "a class runs as it is written" in output


def test_images_have_their_size_from_one_place(tmp_path, image_folder, fails):
    """Images of 64x64 pixels train, are evaluated and classified; others are refused."""
    script = (
        "import utils; utils.SIDE = 64\n"
        "import nets, model, train, evaluate, dataset\n"
        "model.main(['--arch', 'small'])\n"
        f"options = ['--data-dir', {str(image_folder)!r}, '-b', '16', '-j', '0']\n"
        "train.main(['--arch', 'small', *options, '--epochs', '1'])\n"
        "evaluate.main([])\n"
        f"evaluate.main(['--images', {str(image_folder / 'test' / 'dog')!r}])\n"
        "print(dataset.in_size(dataset.np.zeros((2, 32, 32, 3), 'uint8')).shape)\n"
        "print(dataset.load('digits', '', False)[0].shape)"
    )
    result = run_script(tmp_path, "-c", script, path=PATH)
    assert result.returncode == 0, result.stderr
    assert "8x64x64" in result.stdout
    assert "16 images read" in result.stdout
    assert "(2, 64, 64, 3)\ntorch.Size([360, 64, 64, 3])" in result.stdout
    message = "it is for images of 64x64 pixels: set SIDE of utils.py to 64"
    assert message in fails(evaluate.main, "--ckpt", tmp_path / "best.pt")


def test_in_training_statistics_are_those_of_the_outputs_that_are_read():
    net = TableNet(table("small", "dilated"), 10, "batch", 0.0).train()
    x = torch.randn(4, 3, 32, 32)
    net(x)
    read = net.c1.conv.conv.forward(x)
    every = nn.functional.conv2d(x, net.c1.conv.conv.weight, padding=1)
    assert torch.equal(read, every[:, :, ::2, ::2])
    mean = 0.1 * read.mean((0, 2, 3))  # of a momentum of 0.1
    assert torch.allclose(net.c1.conv.norm.running_mean, mean, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_mirrored_kernels_see_mirror_images_alike(norm):
    """The channels of a mirrored image are those of the image, with halves exchanged.

    Without strides this is exact, as long as the norms' own weights are all alike.
    """
    features = []
    for kernels in KERNELS:
        net = TableNet(table("small", "stride-free"), 10, norm, 0.0, kernels)
        net.o.conv = nn.Identity()
        x = torch.randn(2, 3, 32, 32, dtype=torch.double)
        with torch.no_grad():
            ours, theirs = (net.double().eval()(image) for image in (x, x.flip(3)))
        is_equal = torch.allclose(theirs, ours.roll(ours.shape[1] // 2, 1))
        features.append((kernels, is_equal, ours.std() > 1e-6))
    assert features == [("mirrored", True, True), ("free", False, True)]


def test_mirrored_kernels_are_learned_once_for_two():
    def sizes(kernels):
        net = build("small", "dilated", "batch", None, kernels=kernels)
        parameters = net.named_parameters()
        return {name: weight.numel() for name, weight in parameters}

    free = sizes("free")
    for name, size in sizes("mirrored").items():
        is_kernel = ".norm." not in name and not name.startswith("body.o.")
        assert free[name] == (2 * size if is_kernel else size)


def test_which_networks_have_mirrored_kernels(fails):
    def kernels(arch):
        return build(arch, "dilated", "batch", None).config["kernels"]

    assert kernels("default") == kernels("small") == "mirrored"
    assert kernels("reference") == kernels("own") == "free"
    assert "for tables" in fails(model.main, "--arch", "own", "--kernels", "mirrored")


def test_kernels_that_cannot_be_mirrored_are_refused(monkeypatch):
    """A kind of row that a student builds on PyTorch's own convolution."""

    def foreign(row, channels):
        return nn.Sequential(nn.Conv2d(channels, row.channels, 3, padding=1))

    monkeypatch.setitem(KINDS, "foreign", foreign)
    monkeypatch.setitem(ARCHS, "edited", edit({"c2.conv": {"kind": "foreign"}}))
    with pytest.raises(
        UserError, match=r"row c2.conv: .* no mirrored kernels: take Conv"
    ):
        build("edited", "dilated", "batch", None, kernels="mirrored")
    build("edited", "dilated", "batch", None)


def test_an_edit_of_a_kind_that_looks_beyond_its_pixels_is_noticed(call, monkeypatch):
    """The row before would leave out what a second 3x3 kernel reads."""

    def double(row, channels):
        layer = plain(row, channels)
        layer.second = Conv(row.channels, row.channels, 3, 1, 1, 1)
        return layer

    plain = KINDS["plain"]
    monkeypatch.setitem(KINDS, "plain", double)
    with pytest.raises(
        UserError, match="leave the kind that you changed out of ONE_KERNEL"
    ):
        build("small", "dilated", "batch", None)
    build("small", "dilated", "group", None)  # computes all that the table says
    _, output, _ = call(model.main, "--arch", "small", "--norm", "group")
    assert "by its row alone the receptive field of c1.conv would be 3:" in output


def test_a_norm_that_takes_some_channels_alone(monkeypatch):
    monkeypatch.setitem(NORMS, "g16", lambda channels: nn.GroupNorm(16, channels))
    build("reference", "dilated", "g16", None)
    monkeypatch.setitem(NORMS, "none", lambda channels: nn.Identity())
    assert as_computed(SMALL, "none") == as_computed(SMALL, "batch") != SMALL


def test_no_dropout_is_a_choice_too(monkeypatch):
    monkeypatch.setitem(ARCHS, "dropping", Arch(SMALL, dropout=0.2))
    for given, expected in ((None, 0.2), (0.0, 0.0)):
        net = build("dropping", "dilated", "batch", given)
        layers = [layer for layer in net.modules() if isinstance(layer, nn.Dropout)]
        assert {layer.p for layer in layers} == {expected}


def test_a_deep_network_is_drawn_in_several_rows(monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, _: drawn.append(figure))
    monkeypatch.setattr(plots, "DRAWN", 4)
    net = build("small", "dilated", "batch", None)
    lines = summarise(net, trace(net))
    plots.plot_network(lines, "a title", "net.png")
    maps, fields = drawn[0].axes[::2], drawn[0].axes[1::2]
    names = [label.get_text() for axes in fields for label in axes.get_xticklabels()]
    assert names == [line.name for line in lines]
    bars = [bar.get_height() for axes in maps for bar in axes.patches]
    assert bars == [max(line.shape[1:], default=1) for line in lines]


def test_a_class_gets_the_activation_that_is_given(monkeypatch, fails):
    seen = []

    class Active(OwnNet):
        def __init__(self, classes, activation="relu"):
            seen.append(activation)
            super().__init__(classes)

    monkeypatch.setitem(ARCHS, "active", Active)
    build("active", "dilated", None, None)
    assert set(seen) == {"relu"}
    seen.clear()
    build("active", "dilated", None, None, activation="gelu")
    assert set(seen) == {"gelu"}
    errors = fails(model.main, "--arch", "own", "--activation", "gelu")
    assert "takes no activation" in errors


def test_any_row_may_have_as_many_channels_as_there_are_classes(monkeypatch):
    monkeypatch.setitem(ARCHS, "edited", edit({"c4.conv": {"channels": CLASSES}}))
    net = build("edited", "dilated", "batch", None, classes=6)
    assert net.body.o.conv.conv.weight.shape == (6, 6, 1, 1)


def test_a_convolution_that_scales_its_result_is_no_gate(monkeypatch):
    class Scaled(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * 0.5

    class Own(OwnNet):
        def __init__(self, classes=10):
            super().__init__(classes)
            self.last = Scaled(24, 32, 3, padding=1)

    monkeypatch.setitem(ARCHS, "mine", Own)
    net = build("mine", "dilated", None, None)
    kinds = {line.name: line.kind for line in summarise(net, trace(net))}
    assert kinds["last"] == kinds["stem"] == "conv2d"


def test_a_kind_that_leaves_no_place_for_a_norm_is_refused(monkeypatch):
    """They would be added where nothing runs them."""

    def block(row, channels):
        return Residual(KINDS["plain"](row, channels), nn.Identity())

    monkeypatch.setitem(KINDS, "block", block)
    monkeypatch.setitem(ARCHS, "edited", edit({"c2.conv": {"kind": "block"}}))
    with pytest.raises(UserError, match=r"row c2.conv: .* an nn.Sequential"):
        build("edited", "dilated", "batch", None)


def test_every_convolution_but_the_last_has_norm_activation_and_dropout():
    net = build("small", "dilated", "batch", 0.3)
    layers = [module for module in net.modules() if hasattr(module, "activation")]
    convolutions = [row for row in SMALL if row.kind != "gap"]
    assert len(layers) == len(convolutions) - 1
    for layer in layers:
        names = [name for name, _ in layer.named_children()]
        assert names[-3:] == ["norm", "activation", "dropout"]
        assert layer.dropout.p == 0.3


def test_layer_norm_is_over_each_image():
    norm = NORMS["layer"](6)
    x = torch.randn(4, 6, 5, 5)
    assert torch.allclose(norm(x), F.layer_norm(x, x.shape[1:]), atol=1e-6)


def test_group_norm_is_over_each_eighth_of_the_channels():
    x = torch.randn(4, 48, 5, 5) * torch.linspace(1, 5, 48).view(-1, 1, 1) + 2
    expected = F.layer_norm(x.view(4, 8, -1), (150,)).view_as(x)
    assert torch.allclose(NORMS["group"](48)(x), expected, atol=1e-5)


def test_squeeze_and_excitation_is_its_definition():
    """Hu et al., 2018, written with linear layers."""
    layer = SqueezeExcitation(6, 2)
    x = torch.randn(3, 6, 5, 4)
    squeezed = F.relu(
        x.mean((2, 3)) @ layer.squeeze.weight[:, :, 0, 0].T + layer.squeeze.bias
    )
    gate = torch.sigmoid(
        squeezed @ layer.excite.weight[:, :, 0, 0].T + layer.excite.bias
    )
    assert torch.allclose(layer(x), x * gate[:, :, None, None], atol=1e-6)


def test_residual_rows(monkeypatch):
    """As they are where nothing changes; with a 1x1 shortcut where the map does."""
    changes = {
        "c2.conv": [..., Row("c2.se", 4, 0, 0, 0, 0, "squeeze")],
        "c2.down": [Row("c2.down", 24, 3, 2, 2, 2, "residual")],
    }
    monkeypatch.setitem(ARCHS, "resnet", edit(changes))
    net = build("resnet", "dilated", "batch", 0.0).eval()
    x = torch.randn(2, 16, 16, 16)
    same = net.body.c2.conv
    assert isinstance(same, Residual)
    assert torch.allclose(same(x), x + same.body(x), atol=1e-6)
    shrinking = net.body.c2.down
    shortcut = shrinking.shortcut.conv
    assert (shortcut.kernel_size, shortcut.stride) == ((1, 1), (2, 2))
    kernels = shortcut.kernels()
    by_hand = shrinking.shortcut.norm(F.conv2d(x[:, :, ::2, ::2], kernels))
    assert torch.allclose(shrinking(x), by_hand + shrinking.body(x), atol=1e-5)
    assert isinstance(net.body.c2.se, SqueezeExcitation)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"c1.conv": {"kind": "dense"}}, "c1.conv is of unknown kind 'dense'"),
        ({"c1.down": {"dilation": 0}}, "c1.down: kernel, stride, dilation"),
        ({"c1.down": {"padding": -1}}, "c1.down: padding must be 0 or more"),
        ({"c2.conv": {"padding": 0}}, "so its padding must be 1"),
        ({"c2.conv": {"kernel": 4}}, "so its kernel must be odd"),
        ({"c3.conv": {"name": "c2.conv"}}, "same name"),
        ({"c2.conv": {"padding": 0}}, "c2.conv: a residual row"),
        ({"c3.conv": {"kernel": 99}}, "c3.conv: a kernel that reaches over 99"),
        ({"c1.conv": {"name": "c1"}}, "row c1: a name is block.layer"),
        ({"c3.conv": {"name": "c1.more"}}, "the rows of c1 must follow one another"),
        ({"c1.conv": {"name": "training.conv"}}, "makes no network"),
        ({"c2.down": {"name": "c2.shrink"}}, "changes row c2.down"),
    ],
)
def test_a_table_that_makes_no_network_is_refused(fails, monkeypatch, changes, message):
    monkeypatch.setitem(ARCHS, "edited", edit(changes))
    downsample = "strided" if "c2.down" in changes else "dilated"
    options = ["--arch", "edited", "--downsample", downsample]
    assert message in fails(model.main, *options)


def test_what_is_no_network_to_build_is_refused(fails, monkeypatch):
    monkeypatch.setitem(ARCHS, "made", OwnNet())
    assert "name its class instead" in fails(model.main, "--arch", "made")
    monkeypatch.setitem(ARCHS, "tuples", [tuple(row) for row in SMALL])
    assert "no list of Row" in fails(model.main, "--arch", "tuples")


def test_a_network_that_is_not_told_the_classes(fails, monkeypatch):
    monkeypatch.setitem(ARCHS, "mine", lambda: OwnNet(7))
    assert "not told the number of classes" in fails(model.main, "--arch", "mine")
    monkeypatch.setitem(ARCHS, "mine", lambda classes: OwnNet(classes + 1))
    errors = fails(model.main, "--arch", "mine")
    assert "have the shape (2, 11)" in errors
    assert "not told" not in errors


@pytest.mark.parametrize(
    ("channels", "groups"), [(64, 8), (10, 5), (15, 5), (12, 6), (11, 1)]
)
def test_group_norm_has_the_most_groups_that_fit(channels, groups):
    assert NORMS["group"](channels).num_groups == groups


def test_unknown_names_are_refused_with_the_known_ones(fails):
    assert "small" in fails(model.main, "--arch", "nonsense")
    assert "stride-free" in fails(model.main, "--downsample", "nonsense")
    assert "layer" in fails(model.main, "--norm", "nonsense")
    assert "below 1" in fails(model.main, "--dropout", "1")


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_group_norm_is_exact_on_the_maps_of_a_network(norm):
    """PyTorch's loses the variance of maps in channels last whose mean is large beside it.

    Of images of nearly one colour, where it is largest, to a hundredth of a deviation.
    """
    torch.manual_seed(0)
    net = build("small", "dilated", norm, None).train()
    errors, ratios = [], []

    def compare(module, inputs, output):
        (maps,) = inputs
        assert maps.is_contiguous(memory_format=torch.channels_last)
        groups = maps.double().unflatten(1, (module.num_groups, -1))
        means, deviations = groups.mean((2, 3, 4)), groups.std((2, 3, 4))
        ratios.append((means.abs() / deviations).max().item())
        exact = F.group_norm(maps.double(), module.num_groups, eps=module.eps)
        errors.append((output - exact).abs().max().item())

    for module in net.modules():
        if isinstance(module, nn.GroupNorm):
            module.register_forward_hook(compare)
    dark_to_bright = torch.linspace(0, 255, 16).reshape(16, 1, 1, 1)
    net((dark_to_bright + 20 * torch.rand(16, 3, 32, 32)).clamp(0, 255))
    assert len(errors) > 5
    assert max(ratios) < 10
    assert max(errors) < 1e-2


def test_initial_weights_do_not_depend_on_the_memory_format():
    """Random numbers come in the order of the memory: the layers are made contiguous."""
    torch.manual_seed(0)
    net = build("small", "dilated", "batch", 0.1)
    torch.manual_seed(0)
    plain = TableNet(net.rows, 10, "batch", 0.1, net.config["kernels"])
    assert net.body.c2.conv.body.conv.weight.stride(1) == 1  # channels last by now
    for name, weight in plain.named_parameters():
        assert weight.is_contiguous()
        assert torch.equal(net.body.get_parameter(name), weight), name


def test_normalisation_is_part_of_the_network():
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    pixels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    columns = [torch.tensor(values).view(3, 1, 1) for values in (mean, std)]
    by_hand = ((pixels.double() / 255 - columns[0]) / columns[1]).float()
    for arch in ("small", "own"):
        net = build(arch, "dilated", "batch", None, 10, mean, std).eval()
        assert torch.allclose(net(pixels), net.body(by_hand).flatten(1), atol=1e-5)


@pytest.mark.parametrize("arch", ["small", "own"])
def test_config_is_the_whole_network(arch):
    net = build(arch, "dilated", "group", 0.1, 7).eval()
    again = Net(**net.config).eval()
    again.load_state_dict(net.state_dict())
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(net(images), again(images))
    assert again.config == net.config
    assert net(images).shape == (2, 7)


def test_a_class_gets_the_options_that_it_names(monkeypatch, fails):
    seen = {}

    class Plain(OwnNet):
        def __init__(self):
            super().__init__()

    class Named(OwnNet):
        def __init__(self, classes, dropout=0.7):
            seen.update(classes=classes, dropout=dropout)
            super().__init__(classes, dropout=dropout)

    monkeypatch.setitem(ARCHS, "plain", Plain)
    monkeypatch.setitem(ARCHS, "named", Named)
    build("plain", "dilated", None, None)
    build("named", "dilated", None, None, classes=3)
    assert seen == {"classes": 3, "dropout": 0.7}
    build("named", "dilated", None, 0.2, classes=3)
    assert seen["dropout"] == 0.2
    build("named", "dilated", None, 0.0, classes=3)
    assert seen["dropout"] == 0
    assert "takes no norm" in fails(model.main, "--arch", "named", "--norm", "group")
    assert "no dropout" in fails(model.main, "--arch", "plain", "--dropout", "0.1")
    options = ["--arch", "plain", "--downsample", "strided"]
    assert "'plain' is none" in fails(model.main, *options)


class Broken(nn.Module):
    """Fails, or returns the wrong number of scores, as `what` says."""

    def __init__(self, what):
        super().__init__()
        self.fc = nn.Linear(3 * 32 * 32, 8)
        self.what = what

    def forward(self, x):
        if self.what == "fails":
            return self.fc(x)
        return self.fc(x.flatten(1))


@pytest.mark.parametrize(
    ("what", "message"),
    [("fails", "test_model.py, line"), ("wrong", "(2, 8), not (2, 10)")],
)
def test_a_class_that_fails_is_refused_with_the_place(
    what, message, fails, monkeypatch
):
    monkeypatch.setitem(ARCHS, "mine", lambda: Broken(what))
    assert message in fails(model.main, "--arch", "mine")


def test_the_layer_that_gives_the_scores_is_found_by_what_it_is():
    for arch, path in (("small", "o.conv.conv"), ("own", "fc")):
        net = build(arch, "dilated", "batch", None)
        scores, head = try_out(net)
        assert head is net.body.get_submodule(path)
        assert scores.shape == (2, 10)
        assert net.training


class Cosine(nn.Module):
    """Its scores come of no convolution or linear layer."""

    def __init__(self, classes, second=False):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 8, 8)
        self.classes = nn.Parameter(torch.randn(classes, 8))
        self.fc = nn.Linear(8, classes) if second else None

    def forward(self, x):
        x = F.relu(self.conv(x)).mean((2, 3))
        scores = F.linear(F.normalize(x), F.normalize(self.classes))
        return scores if self.fc is None else scores + self.fc(x)


class OfTen(nn.Module):
    """For ten classes, whatever is asked for."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 10)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))


def test_the_head_is_of_the_classes(monkeypatch):
    """And of them alone, where others are to be kept or frozen."""
    kinds = {"cosine": Cosine, "two": partial(Cosine, second=True), "ten": OfTen}
    found = {}
    for arch, kind in kinds.items():
        monkeypatch.setitem(ARCHS, arch, kind)
        net = build(arch, "dilated", None, None)
        head, others = find_head(net)
        found[arch] = head and net.body.fc is head, others
        if others:
            with pytest.raises(UserError, match="body.classes depends on|no layer of"):
                head_alone(net, "--freeze")
    others = ["body.classes"]
    assert found == {"cosine": (None, others), "two": (True, others), "ten": (True, [])}
    net = build("small", "dilated", "batch", None)
    assert head_alone(net, "--freeze") is net.body.o.conv.conv


def test_the_scores_may_be_made_before_the_pooling(monkeypatch, call):
    """As in "Network in Network": a layer behind it is optional in the assignment."""
    conv, gap = SMALL[-1], SMALL[-2]
    monkeypatch.setitem(ARCHS, "nin", Arch([*SMALL[:-2], conv, gap], "mirrored"))
    net = build("nin", "dilated", "batch", None)
    assert [*map(type, net.body.o.conv)] == [Conv]
    before = build("small", "dilated", "batch", None)
    assert count_parameters(net) == count_parameters(before)
    net.load_state_dict(before.state_dict())  # the mean of all is that of their scores
    images = random_images(4)
    assert torch.allclose(net.eval()(images), before.eval()(images), atol=1e-5)
    status, output, _ = call(model.main, "--arch", "nin")
    assert status == 0
    assert "o.gap, and no layer behind it (that is optional)" in output


def test_a_class_may_call_view():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, 4)
            self.fc = nn.Linear(256, 10)

        def forward(self, x):
            x = self.conv(x)
            return self.fc(x.view(x.size(0), -1))

    ARCHS["flat"] = Flat
    try:
        net = build("flat", "dilated", None, None)
        images = torch.zeros(4, 32, 32, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
        assert net(images).shape == (4, 10)
    except UserError as error:
        pytest.fail(str(error))
    finally:
        del ARCHS["flat"]


@pytest.mark.parametrize("arch", ["small", "own"])
def test_network_is_drawn_with_every_map_and_receptive_field(call, monkeypatch, arch):
    """All that the printed table says of them is in the picture."""
    drawn = []
    monkeypatch.setattr(
        plots, "save_figure", lambda figure, path: drawn.append((figure, path))
    )
    status, output, _ = call(model.main, "--arch", arch, "--plot", "net.png")
    assert status == (1 if "FAIL" in output else 0)
    ((figure, path),) = drawn
    assert path == "net.png"
    maps, fields = figure.axes
    rows = [line.split() for line in output.split("parameters, ")[0].splitlines()[1:-1]]
    names = [label.get_text() for label in fields.get_xticklabels()]
    assert names == [row[0] for row in rows]
    heights = [round(bar.get_height()) for bar in fields.patches]
    assert heights == [int(row[-2]) for row in rows]
    sizes = [text.get_text() for text in maps.texts]
    for row in rows:
        channels, _, size = row[-8].partition("x")
        assert f"{size or '1x1'}\n{channels} channels" in sizes
    bars = [round(bar.get_height()) for bar in maps.patches]
    assert bars == [int((row[-8].split("x") + ["1"])[1]) for row in rows]
    kinds = [text.get_text().split("\n") for text in maps.texts[::2]]
    for row, words in zip(rows, kinds, strict=True):
        if "pooling" not in words:  # over all of the map
            kernel, stride, dilation = row[-5:-2]
            assert kernel in words
            assert (f"stride {stride}" in words) == (stride != "1")
            assert (f"dilation {dilation}" in words) == (dilation != "1")


def test_a_network_of_no_known_layer_is_not_drawn(call, monkeypatch):
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 32, 32, 10))

        def forward(self, x):
            return torch.einsum("nchw,chwo->no", x, self.weight)

    monkeypatch.setitem(ARCHS, "product", Product)
    status, output, _ = call(model.main, "--arch", "product", "--plot")
    assert status == 1  # of the rules
    assert "no layer is known that could be drawn" in output
    assert "The assignment's rules" in output


def test_a_network_with_a_mean_of_all_is_drawn(call, monkeypatch, tmp_path):
    class Centred(OwnNet):
        def forward(self, x):
            return super().forward(x - x.mean())

    monkeypatch.setitem(ARCHS, "centred", Centred)
    _, output, _ = call(model.main, "--arch", "centred", "--plot")
    assert "Picture: results/network.png" in output
    assert (tmp_path / "results" / "network.png").exists()


def test_a_part_in_another_precision_is_counted(call, monkeypatch):
    class Precise(OwnNet):
        def __init__(self, classes):
            super().__init__(classes)
            self.last.double()

        def forward(self, x):
            x = F.relu(self.shrink1(self.bn1(self.stem(x))))
            x = self.shrink3(self.shrink2(x)).double()
            return self.fc(self.last(x).float().mean((2, 3)))

    monkeypatch.setitem(ARCHS, "precise", Precise)
    _, output, _ = call(model.main, "--arch", "precise")
    assert re.search(r"^last +conv2d +32x4x4 ", output, re.MULTILINE)
    assert re.search(r"^[\d,]+ parameters, [\d,]+ multiply-adds", output, re.MULTILINE)


def test_picture_of_a_network_is_written(call, tmp_path):
    _, output, _ = call(model.main, "--arch", "small", "--plot")
    assert "Picture: results/network.png" in output
    assert (tmp_path / "results" / "network.png").read_bytes()[1:4] == b"PNG"
