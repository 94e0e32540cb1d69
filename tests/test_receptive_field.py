"""The receptive field against the extent of the gradient, and published figures."""

import copy
import itertools
import random

import pytest
import torch
import torch.nn.functional as F
import torchvision.models
from test_model import random_rows, tables
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from layers import NORMS, PIXELWISE_NORMS, SqueezeExcitation
from model import DOWNSAMPLE, TableNet, build, receptive_fields, table
from receptive_field import trace
from rules import RECEPTIVE_FIELD, checklist, walk_back


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
    norms = {type(make(8)) for make in NORMS.values()} - set(PIXELWISE_NORMS)
    for module in list(net.modules()):
        for name, child in module.named_children():
            if type(child) in norms:
                setattr(module, name, nn.Identity())
            if isinstance(child, nn.Conv2d):
                nn.init.uniform_(child.weight, 0.5, 1.0)
                child.weight.data /= child.weight[0].numel()
    return net


def assert_extent_agrees(node, forward, size):
    """The claim of a node, for the middle unit of what `forward` returns, is the extent."""
    assert not node.unknown
    spans, unit = gradient_extent(forward, size)
    for axis, index, span in zip(node.axes, unit, spans, strict=True):
        first = axis.first + index * axis.jump
        last = axis.last + index * axis.jump
        assert first >= 0, "the image is too small to tell"
        assert last < size, "the image is too small to tell"
        assert span == (first, last)


@pytest.mark.parametrize(
    ("downsample", "norm"), list(itertools.product(DOWNSAMPLE, NORMS))
)
def test_receptive_field_is_the_extent_of_the_gradient(downsample, norm):
    net = build("small", downsample, norm, 0.0)
    size = 128
    _, maps = walk_back(trace(net, size)[-1])
    body = positive(net).body
    blocks = [block for name, block in body.named_children() if name != "o"]
    assert_extent_agrees(maps[0], nn.Sequential(*blocks), size)


@pytest.mark.parametrize(("arch", "downsample"), tables())
def test_the_arithmetic_of_a_table_is_that_of_what_runs(arch, downsample):
    rows = table(arch, downsample)
    seen = {}
    for node in trace(build(arch, downsample, "batch", None)):
        if node.layer:
            name = ".".join(node.layer.split(".")[:2])
            seen[name] = (node.receptive_field, node.axes[0].jump)
    assert receptive_fields(rows) == seen


def test_the_arithmetic_of_random_tables_is_that_of_what_runs():
    generator = random.Random(1)
    for _ in range(60):
        rows = random_rows(generator)
        net = TableNet(rows, 10, "batch", 0.0, is_written=True)
        gap = receptive_fields(rows)["o.gap"][0]
        assert gap == trace(net)[-1].receptive_field


def test_the_arithmetic_of_a_table_ends_at_a_row_that_it_does_not_know():
    rows = table("small", "dilated")
    rows[3] = rows[3]._replace(kind="attentive")
    names = [row.name for row in rows[:3]]
    assert list(receptive_fields(rows)) == names


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
        (lambda x: F.normalize(x), 3),
        (lambda x: F.normalize(x, 1.0, 1), 3),
        (lambda x: F.local_response_norm(x, 3), 3),
    ],
)
def test_functions_count_like_modules(function, field):
    assert trace(Steps(function))[-1].receptive_field == field


def test_what_is_compiled_is_seen_as_it_is_written(recwarn):
    inside = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    nodes = trace(Steps(torch.compile(inside, backend="eager")))
    assert not any(node.unknown for node in nodes)
    assert nodes[-1].receptive_field == 11
    assert not recwarn


def test_a_part_in_another_precision_is_seen():
    double = nn.Conv2d(4, 4, 3).double()
    nodes = trace(Steps(lambda x: double(x.double()).float()))
    assert nodes[-1].receptive_field == 7


def test_branches_of_different_stride_are_not_known():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Conv2d(3, 3, 1, stride=1, padding=0)
            self.two = nn.Conv2d(3, 3, 1, stride=2, padding=16)

        def forward(self, x):
            return self.one(x) + self.two(x)

    nodes = trace(nn.Sequential(Mixed(), nn.ReLU(), nn.Conv2d(3, 3, 3)))
    for node in nodes[-3:]:  # from there on
        assert "stride" in node.unknown
        assert node.receptive_field is None


class Gated(nn.Module):
    """Squeeze-and-excitation between windows; `is_open` leaves the gate out, which has no
    part in a receptive field, as is usual."""

    def __init__(self, is_open=False):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, 2, bias=False)
        self.gate = SqueezeExcitation(4, 2)
        self.second = nn.Conv2d(4, 4, 3, dilation=2, bias=False)
        self.is_open = is_open

    def forward(self, x):
        x = self.first(x)
        if not self.is_open:
            x = self.gate(x)
        return self.second(x)


class Shortcut(nn.Module):
    """A block whose shortcut is a 1x1 convolution of stride 2, in either order."""

    def __init__(self, shortcut_first):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, 1, 1, bias=False),
        )
        self.shortcut = nn.Conv2d(3, 4, 1, 2, bias=False)
        self.shortcut_first = shortcut_first

    def forward(self, x):
        if self.shortcut_first:
            return self.shortcut(x) + self.body(x)
        return self.body(x) + self.shortcut(x)


class Shuffled(nn.Module):
    """Channels shuffled by view and transpose, and a linear layer over the channels."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, 2, bias=False)
        self.mix = nn.Linear(4, 4, bias=False)
        self.second = nn.Conv2d(4, 4, 3, bias=False)
        nn.init.uniform_(self.mix.weight, 0.1, 1)

    def forward(self, x):
        x = self.first(x)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        x = self.mix(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        left, right = x.chunk(2, dim=1)
        return self.second(torch.cat([right, left], dim=1))


class Cut(nn.Module):
    """Padded by hand, cut, every third pixel taken."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, bias=False)

    def forward(self, x):
        x = F.pad(x, (2, 1, 0, 3))
        x = self.conv(x)[:, :, 1:, 2::3]
        return self.conv(x[..., 1:-1])


def test_gates_are_left_out():
    net = Gated()
    ungated = copy.deepcopy(net)
    ungated.is_open = True
    assert_extent_agrees(trace(net, 64)[-1], positive(ungated), 64)


@pytest.mark.parametrize(
    "net",
    [Shortcut(True), Shortcut(False), Shuffled(), Cut()],
    ids=lambda n: str(n)[:9],
)
def test_receptive_field_of_what_students_write(net):
    assert_extent_agrees(trace(net, 64)[-1], positive(net), 64)


def test_flattening_before_a_linear_layer_sees_the_whole_map():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Flatten(), nn.Linear(4 * 15 * 15, 10))
    nodes = trace(net)
    _, maps = walk_back(nodes[-1])
    assert [node.receptive_field for node in maps] == [3]
    assert nodes[-1].receptive_field == 31  # of 32 pixels; the last is never read
    assert nodes[-1].macs == 4 * 15 * 15 * 10


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: x.mean((2, 3)),
        lambda x: x.mean(3).mean(2),
        lambda x: x.view(x.size(0), x.size(1), -1).mean(-1),
        lambda x: F.avg_pool2d(x, x.shape[2:]).flatten(1),
        lambda x: nn.AdaptiveAvgPool2d(1)(x).squeeze(-1).squeeze(-1),
    ],
)
def test_global_average_pooling_in_other_words(pool):
    net = nn.Sequential(Steps(pool), nn.Linear(4, 10))
    nodes = trace(net)
    rules = {rule.text: rule for rule in checklist(net, nodes)}
    assert rules[RECEPTIVE_FIELD].value == "3"
    assert rules["GAP, then 1x1 or linear"].passed
    assert nodes[-1].receptive_field == 31


def test_a_map_of_one_unit_enters_global_average_pooling_too():
    """Shrunk to 1x1 before: the last layer counts, as in a ResNet-18 on small images."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, 16, 1),
        nn.Conv2d(4, 4, 3, 2, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 10),
    )
    rules = {rule.text: rule for rule in checklist(net, trace(net))}
    assert rules[RECEPTIVE_FIELD].value == "35"  # 3 + 2 * 16
    assert rules["GAP, then 1x1 or linear"].value == "2, 4"


class Ends(nn.Module):
    """Ends in branches that are concatenated, the narrower one last to run."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Conv2d(3, 4, 7, padding=3, bias=False)
        self.narrow = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        wide = self.wide(x)
        x = torch.cat([wide, self.narrow(x)], 1)
        return self.fc(x.mean((2, 3)))


def test_the_rule_is_of_what_enters_global_average_pooling():
    net = Ends()
    rules = {rule.text: rule.value for rule in checklist(net, trace(net))}
    assert rules[RECEPTIVE_FIELD] == "7"


class Branching(nn.Module):
    """Python decides by the shape, or by a value, what runs."""

    def __init__(self, by_value):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.by_value = by_value

    def forward(self, x):
        x = self.conv(x)
        decides = x.mean() > 1 if self.by_value else x.shape[2] > 1000
        return x if decides else self.conv(x[:, :3])


def test_python_may_decide_by_shapes():
    assert trace(Branching(by_value=False))[-1].receptive_field == 5


def test_a_value_that_decides_makes_the_rest_unknown():
    nodes = trace(Branching(by_value=True))
    assert nodes[-1].receptive_field is None
    assert "decides what runs" in nodes[-1].unknown
    assert nodes[1].receptive_field == 3  # what ran before is known


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: F.interpolate(x, scale_factor=2), "interpolate"),
        (lambda x: x + x.mean((2, 3), keepdim=True), "different size"),
        (lambda x: F.adaptive_avg_pool2d(x, 4), "windows of two sizes"),
        (lambda x: F.conv_transpose2d(x, torch.ones(4, 4, 2, 2)), "not known"),
        (lambda x: x.reshape(1, 20, 3, 15), "takes the map apart"),
        (lambda x: x @ x.transpose(2, 3), "not known"),
        (lambda x: torch.cat([x, x], 2), "along height or width"),
        (lambda x: x.softmax(2), "along height or width"),
        (lambda x: F.normalize(x, dim=2), "along height or width"),
        (lambda x: 1 / 0, "division by zero"),
    ],
)
def test_what_is_not_known_says_why_and_stops_nothing(function, reason):
    net = nn.Sequential(Steps(function), nn.ReLU())
    nodes = trace(net)
    assert nodes[-1].receptive_field is None
    assert reason in nodes[-1].unknown
    rules = checklist(net, nodes)
    assert rules[1].passed is None
    assert rules[1].value.startswith("unknown: ")


def test_writing_into_a_part_makes_the_whole_unknown():
    def write(x):
        x[:, :2] += F.conv2d(x, torch.ones(2, 4, 3, 3), padding=1)
        return x * 1

    assert "in place" in trace(Steps(write))[-1].unknown
    in_place = trace(Steps(lambda x: F.max_pool2d(x, 3).relu_().add_(1)))[-1]
    assert in_place.receptive_field == 7


PUBLISHED = {  # Araujo, Norris, Sim, 2019, and the gradient's extent at the concatenation
    "alexnet": 195,
    "vgg11": 150,
    "resnet18": 435,
    "resnet50": 427,
    "mobilenet_v2": 491,
    "vgg16": 212,
    "resnet34": 899,
    "densenet121": 2071,
    "inception_v3": 1311,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_receptive_fields(name):
    settings = {"init_weights": False} if name == "inception_v3" else {}
    net = getattr(torchvision.models, name)(weights=None, **settings)
    _, maps = walk_back(trace(net, 299 if name == "inception_v3" else 224)[-1])
    assert [node.receptive_field for node in maps] == [PUBLISHED[name]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "efficientnet_b0",
        "mobilenet_v3_small",
        "regnet_y_400mf",
        "convnext_tiny",
        "shufflenet_v2_x1_0",
        "googlenet",
    ],
)
def test_gates_permutations_and_shuffles_of_published_networks_are_known(name):
    settings = {"init_weights": False} if name == "googlenet" else {}
    net = getattr(torchvision.models, name)(weights=None, **settings)
    nodes = trace(net, 224)
    assert not nodes[-1].unknown
    _, maps = walk_back(nodes[-1])
    assert maps[0].receptive_field > 224


@pytest.mark.parametrize("arch", ["small", "own"])
def test_multiply_adds_agree_with_torch(arch):
    net = build(arch, "dilated", "batch", None).eval()
    with FlopCounterMode(display=False) as counter:
        net.as_written()(torch.zeros(1, 3, 32, 32))
    assert counter.get_total_flops() == 2 * sum(node.macs for node in trace(net))
