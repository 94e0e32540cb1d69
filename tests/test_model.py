"""The network, its receptive field against the gradient's extent, and the rules."""

import copy
import itertools
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import model
from layers import Depthwise, Dropout
from model import ARCHS, DOWNSAMPLE, NORMS, Net, Row, build, checklist, trace

COMBINATIONS = list(itertools.product(ARCHS, DOWNSAMPLE, NORMS))


def fields(net):
    """The receptive field after each row: {name: pixels}."""
    return {op.row: op.receptive_field for op in trace(net) if "." in op.row}


def test_reference_has_the_published_figures():
    net = build("reference", "dilated", "batch", None)
    assert sum(weight.numel() for weight in net.parameters()) == 98_779
    assert [*fields(net).values()][:10] == [3, 7, 7, 11, 19, 19, 27, 43, 43, 51]
    assert fields(net)["o.gap"] == 71
    # Odd kernels, padded by what they reach out, stay centred: unit 0 looks at pixel 0.
    # The last shrinking layer is padded by one unit, 4 pixels, less than it reaches out.
    starts = [op.axes[0].start for op in trace(net) if op.row in ("c2.down", "c3.down")]
    assert starts[-1] == starts[0] + 4 == 4
    assert {m.p for m in net.modules() if isinstance(m, nn.Dropout)} == {0.05}
    assert not any(
        "bias" in name for name, _ in net.named_parameters() if "norm" not in name
    )


@pytest.mark.parametrize(("arch", "downsample", "norm"), COMBINATIONS)
def test_every_combination_keeps_the_rules(call, arch, downsample, norm):
    net = build(arch, downsample, norm, None)
    assert net.eval()(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 10)
    assert sum(weight.numel() for weight in net.parameters()) < 200_000
    options = ["--arch", arch, "--downsample", downsample, "--norm", norm]
    status, output, _ = call(model.main, *options)
    assert status == 0
    assert output.count("pass  ") == 8
    assert "FAIL" not in output


@pytest.mark.parametrize("arch", ARCHS)
def test_downsamplings_are_what_they_are_called(arch):
    def shrinking(downsample):
        net = build(arch, downsample, "batch", None)
        assert not any("pool" in op.name for op in trace(net) if op.row != "o.gap")
        convs = {n: m for n, m in net.named_modules() if isinstance(m, nn.Conv2d)}
        downs = [
            m for n, m in convs.items() if ".down." in n and m.kernel_size == (3, 3)
        ]
        return downs, convs.values()

    downs, _ = shrinking("dilated")
    assert len(downs) == 3
    assert all(conv.dilation > (1, 1) for conv in downs)
    downs, _ = shrinking("strided")
    assert [(conv.stride, conv.dilation) for conv in downs] == [((2, 2), (1, 1))] * 3
    downs, convs = shrinking("stride-free")
    assert all(conv.stride == (1, 1) for conv in convs)
    assert all(conv.dilation > (1, 1) and conv.padding == (0, 0) for conv in downs)


def gradient_extent(forward, size):
    """The input rows and columns that the middle output unit depends on, and that unit.

    An oracle apart from the arithmetic: with positive weights and inputs no gradient
    cancels out, and what is not in the receptive field has none.
    """
    image = torch.rand(1, 3, size, size, dtype=torch.float64) + 1
    output = forward(image.requires_grad_())
    unit = [length // 2 for length in output.shape[2:]]
    output[0, :, unit[0], unit[1]].sum().backward()
    seen = image.grad[0].sum(0) > 0
    spans = []
    for axis in (1, 0):
        pixels = seen.any(axis).nonzero().ravel().tolist()
        spans.append((pixels[0], pixels[-1]))
    return spans, unit


def positive(net):
    """A copy in float64 with positive weights, and without statistics over the map,
    which are left out of a receptive field, as is usual."""
    net = copy.deepcopy(net).double().eval()
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
            if isinstance(child, nn.Conv2d):
                nn.init.uniform_(child.weight, 0.5, 1.0)
                child.weight.data /= child.weight[0].numel()
    return net


def assert_extent_agrees(op, forward, size):
    spans, unit = gradient_extent(forward, size)
    for axis, index, (first, last) in zip(op.axes, unit, spans, strict=True):
        claim = axis.first + index * axis.jump, axis.last + index * axis.jump
        assert claim[0] >= 0, "the image is too small to tell"
        assert claim[1] < size, "the image is too small to tell"
        assert (first, last) == claim


@pytest.mark.parametrize(("arch", "downsample", "norm"), COMBINATIONS)
def test_receptive_field_is_the_extent_of_the_gradient(arch, downsample, norm):
    net = build(arch, downsample, norm, 0.0)
    size = 128
    *_, before_gap = (op for op in trace(net, size) if op.shape[1:] > (1, 1))
    blocks = [block for name, block in positive(net).named_children() if name != "o"]
    assert_extent_agrees(before_gap, nn.Sequential(*blocks), size)


class RandomNet(nn.Module):
    """Windows of all kinds, and sums and concatenations of branches."""

    def __init__(self, seed):
        super().__init__()
        draw = random.Random(seed)

        def pair(low, high):
            return draw.randint(low, high), draw.randint(low, high)

        def window(channels):
            kernel, stride, dilation = pair(2, 5), pair(1, 2), pair(1, 3)
            padding = tuple(draw.randint(0, length // 2) for length in kernel)
            if draw.random() < 0.3:
                return nn.AvgPool2d(kernel, stride, padding)
            return nn.Conv2d(
                channels, channels, kernel, stride, padding, dilation, bias=False
            )

        def branch():
            kernel, dilation = pair(1, 5), pair(1, 3)
            return nn.Conv2d(
                3, 3, kernel, padding="same", dilation=dilation, bias=False
            )

        self.body = nn.Sequential(*[window(3) for _ in range(draw.randint(1, 3))])
        self.left = nn.Sequential(branch(), nn.ReLU(), branch())
        self.right = branch()
        self.sum_first = draw.random() < 0.5
        self.head = window(3)
        self.tail = window(6)

    def forward(self, x):
        x = self.body(x)
        if self.sum_first:
            x = self.head(self.left(x) + self.right(x) + x)
            return self.tail(torch.cat([x, self.left(x)], dim=1))
        x = torch.cat([self.left(x), self.right(x)], dim=1)
        return self.tail(x)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("seed", range(40))
def test_receptive_field_of_random_networks(seed):
    torch.manual_seed(seed)
    net, size = RandomNet(seed), 512
    assert_extent_agrees(trace(net, size)[-1], positive(net), size)


class Steps(nn.Module):
    """A network of one function, for `trace`."""

    def __init__(self, function):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2)
        self.function = function

    def forward(self, x):
        return self.function(self.conv(x))


@pytest.mark.parametrize(
    ("function", "field"),
    [
        (lambda x: F.max_pool2d(x, 2), 5),
        (lambda x: F.avg_pool2d(x, 3, 1), 7),
        (lambda x: F.adaptive_avg_pool2d(x, 1), 31),
        (lambda x: x.mean((2, 3)), 31),
        (lambda x: F.relu(x) * 2, 3),
    ],
)
def test_functions_count_like_modules(function, field):
    assert trace(Steps(function))[-1].receptive_field == field


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.interpolate(x, scale_factor=2),
        lambda x: F.conv2d(x, torch.ones(4, 4, 3, 3), padding=1),
        lambda x: F.pad(x, (1, 1, 1, 1)),
        lambda x: x[:, :, 1:, 1:],
    ],
)
def test_what_is_not_known_is_not_guessed(function):
    with pytest.raises(NotImplementedError):
        trace(Steps(function))


def test_branches_of_different_stride_are_refused():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Conv2d(3, 3, 1, stride=1, padding=0)
            self.two = nn.Conv2d(3, 3, 1, stride=2, padding=16)

        def forward(self, x):
            return self.one(x) + self.two(x)

    with pytest.raises(NotImplementedError, match="stride"):
        trace(Mixed())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_dropout(layout):
    """Against its definition (Srivastava et al., 2014): zero, or 1/(1 - p) as large."""
    x = torch.rand(50, 7, 31, 31).add(1).to(memory_format=layout).requires_grad_()
    for p in (0.05, 0.5):
        torch.manual_seed(0)
        y = Dropout(p)(x)
        kept = y != 0
        # Four units share a random number. Within four standard deviations:
        shares = [1 - kept.flatten()[i::4].float().mean() for i in range(4)]
        spread = (p * (1 - p) / (x.numel() / 4)) ** 0.5
        assert all(abs(share - p) < 4 * spread for share in shares)
        torch.testing.assert_close(y, torch.where(kept, x / (1 - p), 0))
        (slope,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(slope, kept / (1 - p))
        assert y.is_contiguous(memory_format=layout)
        assert not torch.equal(Dropout(p)(x) != 0, kept)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)


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
    results = []
    for conv in (ours, theirs):
        y = conv(x)
        weights = torch.arange(y.numel(), dtype=y.dtype).view_as(y)
        gradients = torch.autograd.grad((y * weights).sum(), (x, conv.weight))
        results.append((y, *gradients))
    for own, other in zip(*results, strict=True):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize("dilation", [1, 2, 8])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_gradients_in_bfloat16(dilation, stride):
    """Of wide maps, which a library's kernel for dilation gets wrong on some CPUs."""
    conv = Depthwise(32, 3, stride, dilation, dilation)
    x = torch.randn(16, 32, 64, 64).to(memory_format=torch.channels_last)
    gradients = []
    for is_enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_enabled):
            y = conv(x)
        gradients.append(torch.autograd.grad(y.float().square().sum(), conv.weight)[0])
    exact, ours = gradients
    assert (ours - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("arch", ARCHS)
def test_multiply_adds_agree_with_torch(arch):
    net = build(arch, "dilated", "batch", None).eval()
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, 32, 32))
    assert counter.get_total_flops() == 2 * sum(op.macs for op in trace(net))


# The one rule that an edit of the default table breaks, and the rows it changes.
EDITS = {
    "no max pooling": {"c3.down": [..., Row("c3.pool", 80, 2, 1, 1, 0, "maxpool")]},
    "under 200,000 parameters": {"c4.conv": {"channels": 300}},
    "receptive field over 44": {
        name: {"stride": 1, "padding": 0} for name in ("c1.down", "c2.down", "c3.down")
    },
    "three shrinking 3x3 layers": {"c3.down": {"padding": 2}},
    "3x3 in C1 C2 C3 C4": {"c4.conv": {"name": "x4.conv"}},
    "depthwise-separable layer": {"c4.conv": {"kind": "plain", "channels": 16}},
    "dilated layer": {
        "c1.down": {"dilation": 1, "padding": 1},
        "c2.down": {"dilation": 1, "padding": 1},
        "c3.down": {"dilation": 1, "padding": 1, "stride": 2},
    },
    "GAP, then 1x1 or linear": {
        "c3.down": [..., Row("c3.more", 10, 1, 1, 1, 0, "plain")],
        "o.conv": [],
    },
}


def edit(changes):
    """The default table with changed fields, or with other rows, in a row's place."""
    rows = []
    for row in ARCHS["residual"]:
        change = changes.get(row.name, {})
        if isinstance(change, dict):
            rows.append(row._replace(**change))
        else:
            rows += [row if new is ... else new for new in change]
    return rows


@pytest.mark.parametrize("rule", EDITS)
def test_an_edit_that_breaks_a_rule_is_caught(call, monkeypatch, rule):
    monkeypatch.setitem(ARCHS, "edited", edit(EDITS[rule]))
    status, output, _ = call(model.main, "--arch", "edited")
    broken = [line for line in output.splitlines() if line.startswith("  FAIL")]
    assert status == 1
    assert len(broken) == 1
    assert rule in broken[0]


def test_accuracy_is_a_rule_where_it_is_known():
    net = build("reference", "dilated", "batch", None)
    assert checklist(net, 0.85)[-1] == ("test accuracy of 85 %", "85.00%", True)
    assert checklist(net, 0.8499)[-1] == ("test accuracy of 85 %", "84.99%", False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"c1.conv": {"kind": "dense"}}, "c1.conv is of unknown kind 'dense'"),
        ({"c1.down": {"dilation": 0}}, "c1.down: kernel, stride, dilation"),
        ({"c2.conv2": {"name": "c2.conv"}}, "same name"),
        ({"c2.conv2": {"channels": 40}}, "makes no network"),
        ({"c3.conv": {"kernel": 99}}, "makes no network"),
        ({"c1.conv": {"name": "c1"}}, "makes no network"),
        ({"c1.conv": {"name": "mean.conv"}}, "makes no network"),
        ({"c2.down": {"name": "c2.shrink"}}, "changes row c2.down"),
    ],
)
def test_a_table_that_makes_no_network_is_refused(fails, monkeypatch, changes, message):
    monkeypatch.setitem(ARCHS, "edited", edit(changes))
    downsample = "strided" if "c2.down" in changes else "dilated"
    options = ["--arch", "edited", "--downsample", downsample]
    assert message in fails(model.main, *options)


def test_unknown_names_are_refused_with_the_known_ones(fails):
    assert "residual" in fails(model.main, "--arch", "resnet")
    assert "stride-free" in fails(model.main, "--downsample", "pool")
    assert "layer" in fails(model.main, "--norm", "instance")


def test_every_convolution_but_the_last_has_norm_relu_and_dropout():
    net = build("residual", "dilated", "batch", 0.3)
    layers = [module for module in net.modules() if hasattr(module, "relu")]
    convs = [row for row in ARCHS["residual"] if row.kind != "gap"]
    assert len(layers) == len(convs) - 1
    for layer in layers:
        names = [name for name, _ in layer.named_children()]
        assert names[-3:] == ["norm", "relu", "dropout"]
        assert layer.dropout.p == 0.3


def test_layer_norm_is_over_each_image():
    norm = NORMS["layer"](6)
    x = torch.randn(4, 6, 5, 5)
    assert torch.allclose(norm(x), F.layer_norm(x, x.shape[1:]), atol=1e-6)
    with torch.no_grad():
        moments = NORMS["group"](48)(x.repeat(1, 8, 1, 1) * 3 + 2).view(4, 8, -1)
    assert torch.allclose(moments.mean(-1), torch.zeros(4, 8), atol=1e-5)


def test_normalisation_is_part_of_the_network():
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    torch.manual_seed(0)
    inside = build("reference", "dilated", "batch", 0.0, 10, mean, std).eval()
    outside = Net(**{**inside.config, "mean": [0, 0, 0], "std": [1 / 255] * 3}).eval()
    outside.load_state_dict(inside.state_dict())
    pixels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    by_hand = (pixels.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(
        std
    ).view(3, 1, 1)
    assert torch.allclose(inside(pixels), outside(by_hand.float()), atol=1e-5)


def test_config_is_the_whole_network():
    net = build("residual", "stride-free", "group", 0.1, 7).eval()
    again = Net(**net.config).eval()
    again.load_state_dict(net.state_dict())
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(net(images), again(images))
    assert again.config == net.config
    assert net(images).shape == (2, 7)
