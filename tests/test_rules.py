"""The assignment's rules, each broken by one edit of a table and by classes of one's own."""

import pytest
import torch
import torch.nn.functional as F
from nets import SMALL, OwnNet
from torch import nn

import model
import rules
from model import ARCHS, Row, build
from receptive_field import trace
from rules import GOAL, PARAMETERS, RECEPTIVE_FIELD, checklist

# The one rule that an edit of the small table breaks, and the rows it changes.
EDITS = {
    "no max pooling": {"c3.down": [..., Row("c3.pool", 0, 2, 1, 1, 0, "maxpool")]},
    PARAMETERS: {"c4.conv": {"channels": 16000}},
    RECEPTIVE_FIELD: {
        name: {"stride": 1, "padding": 0} for name in ("c1.down", "c2.down", "c3.down")
    },
    "three shrinking 3x3 layers": {
        "c3.conv": {"kernel": 5, "padding": 2},
        "c3.down": {"dilation": 1},
    },
    "four blocks of 3x3 layers": {
        "c1.conv": {"kernel": 5, "padding": 2},
        "c4.conv": {"kernel": 5, "padding": 2},
    },
    "depthwise-separable layer": {
        "c2.down": {"kind": "plain"},
        "c4.conv": {"kind": "plain"},
    },
    "dilated layer": {
        "c1.down": {"dilation": 1, "padding": 1},
        "c2.down": {"dilation": 1, "padding": 1},
        "c3.down": {"dilation": 1, "padding": 1, "stride": 2},
    },
    "GAP, then 1x1 or linear": {
        "o.gap": [Row("o.all", 16, 6, 1, 1, 0, "plain")],
    },
}


@pytest.fixture(autouse=True)
def of_this_assignment(monkeypatch):
    """Whatever `MAX_POOLING` has been edited to."""
    monkeypatch.setattr(rules, "MAX_POOLING", False)


def test_max_pooling_may_be_allowed(call, monkeypatch):
    """It then parts the blocks as a stride does, and no rule is broken by it."""
    pooled = []
    for row in SMALL:
        if row.name.endswith(".down"):
            pooled.append(Row(row.name, 0, 2, 2, 1, 0, "maxpool"))
        else:
            pooled.append(row)
    monkeypatch.setitem(ARCHS, "edited", pooled)
    _, output, _ = call(model.main, "--arch", "edited")
    assert "FAIL  no max pooling" in output
    monkeypatch.setattr(rules, "MAX_POOLING", True)
    _, output, _ = call(model.main, "--arch", "edited")
    assert "max pooling" not in output
    assert "pass  four blocks of 3x3 layers" in output
    assert "three shrinking 3x3 layers" not in output
    status, output, _ = call(model.main, "--arch", "edited", "--rules", "off")
    assert (status, "The assignment's rules" in output) == (0, False)


def edit(changes):
    """The small table with changed cells, or with other rows, in a row's place."""
    rows = []
    for row in SMALL:
        change = changes.get(row.name, {})
        if isinstance(change, dict):
            rows.append(row._replace(**change))
            continue
        for new in change:
            rows.append(row if new is ... else new)
    return rows


@pytest.mark.parametrize("rule", EDITS)
def test_an_edit_that_breaks_a_rule_is_caught(call, monkeypatch, rule):
    monkeypatch.setitem(ARCHS, "edited", edit(EDITS[rule]))
    status, output, _ = call(model.main, "--arch", "edited")
    broken = [line for line in output.splitlines() if line.startswith("  FAIL")]
    assert status == 1
    assert len(broken) == 1
    assert rule in broken[0]


def test_the_small_table_keeps_all_rules(call):
    status, output, _ = call(model.main, "--arch", "small")
    assert status == 0
    assert output.count("pass  ") == 8


def passed(net):
    return {rule.text: rule.passed for rule in checklist(net, trace(net))}


def test_what_is_done_with_the_scores_is_no_part_of_the_network():
    class Watched(OwnNet):
        def forward(self, x):
            scores = super().forward(x)
            self.shares = scores.exp()
            return scores

    assert passed(Watched()) == passed(OwnNet())


def test_rules_do_not_depend_on_names():
    renamed = [row._replace(name=f"x{i}.y") for i, row in enumerate(SMALL)]
    ARCHS["renamed"] = renamed
    try:
        assert passed(build("renamed", "dilated", "batch", None)) == passed(
            build("small", "dilated", "batch", None)
        )
    finally:
        del ARCHS["renamed"]


class ResNet(nn.Module):
    """Three residual blocks of stride 2 whose shortcuts are 1x1, summed in either order."""

    def __init__(self, shortcut_first):
        super().__init__()
        self.bodies, self.shortcuts = nn.ModuleList(), nn.ModuleList()
        for before, after in ((3, 8), (8, 16), (16, 24)):
            body = nn.Sequential(
                nn.Conv2d(before, after, 3, 2, 1),
                nn.ReLU(),
                nn.Conv2d(after, after, 3, 1, 1),
            )
            self.bodies.append(body)
            self.shortcuts.append(nn.Conv2d(before, after, 1, 2))
        self.fc = nn.Linear(24, 10)
        self.shortcut_first = shortcut_first

    def forward(self, x):
        for body, shortcut in zip(self.bodies, self.shortcuts):
            if self.shortcut_first:
                x = shortcut(x) + body(x)
            else:
                x = body(x) + shortcut(x)
        return self.fc(F.relu(x).mean((2, 3)))


@pytest.mark.parametrize("shortcut_first", [False, True])
def test_rules_do_not_depend_on_the_order_of_a_sum(shortcut_first):
    rules = passed(ResNet(shortcut_first))
    assert rules["three shrinking 3x3 layers"]
    assert rules["four blocks of 3x3 layers"]
    assert not rules["depthwise-separable layer"]
    assert not rules["dilated layer"]


class Parallel(nn.Module):
    """Three shrinking layers side by side, which are not one after another."""

    def __init__(self):
        super().__init__()
        self.paths = nn.ModuleList([nn.Conv2d(3, 8, 3, 2) for _ in range(3)])
        self.last = nn.Conv2d(8, 8, 3)
        self.fc = nn.Conv2d(8, 10, 1)

    def forward(self, x):
        x = self.last(sum(path(x) for path in self.paths))
        return self.fc(F.adaptive_avg_pool2d(x, 1)).flatten(1)


def test_shrinking_layers_side_by_side_are_one():
    rules = passed(Parallel())
    assert not rules["three shrinking 3x3 layers"]
    assert "four blocks of 3x3 layers" not in rules  # that fault is said once
    assert rules["GAP, then 1x1 or linear"]


def test_a_depthwise_layer_counts_as_separable_where_a_1x1_reads_it():
    def end(*layers):
        return nn.Sequential(
            nn.Conv2d(3, 3, 3, groups=3),
            *layers,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(3, 10),
        )

    rule = "depthwise-separable layer"
    assert passed(end(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1)))[rule]
    assert not passed(end())[rule]
    assert not passed(end(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 1)))[rule]


@pytest.mark.parametrize(
    ("pool", "is_average"),
    [(nn.AdaptiveAvgPool2d(1), True), (nn.AdaptiveMaxPool2d(1), False)],
)
def test_global_average_pooling_is_no_maximum(pool, is_average):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), pool, nn.Flatten(), nn.Linear(4, 10))
    assert passed(net)["GAP, then 1x1 or linear"] == is_average


def test_flattening_is_no_pooling():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.Flatten(), nn.Linear(256, 10))
    assert not passed(net)["GAP, then 1x1 or linear"]


BLOCKS, SHRINKING = "four blocks of 3x3 layers", "three shrinking 3x3 layers"
SEPARABLE = "depthwise-separable layer"
DILATED, END = "dilated layer", "GAP, then 1x1 or linear"


def convolutions(*windows):
    """3x3 convolutions of 8 channels, each by what is not usual of it."""
    layers = []
    for number, window in enumerate(windows):
        settings = {"padding": 1} | window
        layers += [nn.Conv2d(8 if number else 3, 8, 3, **settings), nn.ReLU()]
    return layers


def verdicts(*layers):
    """The rules by their texts, of layers that end in GAP and a linear layer."""
    net = nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )
    return {rule.text: rule for rule in checklist(net, trace(net))}


class Reversed(nn.Module):
    """As in ConvNeXt: a depthwise layer, then a linear one over channels that come last."""

    def __init__(self):
        super().__init__()
        self.depthwise = nn.Conv2d(8, 8, 7, padding=3, groups=8)
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return self.linear(self.depthwise(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Blur(nn.Module):
    """A convolution whose weights never learn."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weights", torch.ones(8, 1, 3, 3) / 9)

    def forward(self, x):
        return F.conv2d(x, self.weights, None, 2, 2, 2, groups=8)


def test_a_pad_and_its_convolution_are_one_layer():
    padded = []
    for layer in convolutions(*[{"padding": 0}] * 4):
        padded += [nn.ReflectionPad2d(1), layer]
    rules = verdicts(*padded, nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"))
    assert rules[SHRINKING].value == "none"
    assert rules[SHRINKING].passed is False
    assert BLOCKS not in rules


def test_a_padded_depthwise_layer_alone_is_not_separable():
    layer = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect", groups=8)
    net = nn.Sequential(*convolutions({}), layer, nn.Conv2d(8, 8, 3))
    lines = model.summarise(net, trace(net))
    assert [line.kind for line in lines] == ["conv2d", "depthwise", "conv2d"]


def test_a_linear_layer_over_the_channels_makes_a_layer_separable():
    rules = verdicts(*convolutions({}), Reversed())
    assert rules[SEPARABLE].passed
    net = nn.Sequential(*convolutions({"stride": 2}), Reversed())
    assert model.summarise(net, trace(net))[-1].shape == (8, 16, 16)


def test_the_layer_behind_gap_is_optional():
    net = nn.Sequential(
        *convolutions({}), nn.Conv2d(8, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    rule = checklist(net, trace(net))[-1]
    assert rule.passed
    assert "optional" in rule.value


def test_dilated_layers_stand_in_the_place_of_strides():
    wide = [{}, {"dilation": 2, "padding": 2}]
    rules = verdicts(*convolutions(*wide, *wide, *wide, {}))
    assert rules[SHRINKING].passed
    assert rules[SHRINKING].value == "2, 6, 10 dilated in the place of strides"
    assert rules[BLOCKS].value == "2 + 2 + 2 + 1 layers"
    rules = verdicts(*convolutions(*wide, *wide, {"stride": 2}, {}))
    assert rules[SHRINKING].passed
    assert rules[SHRINKING].value == "8; 2, 6 dilated in the place of strides"
    assert not verdicts(*convolutions(*wide, *wide, {}))[SHRINKING].passed


def test_max_pooling_is_one_fault():
    layers = []
    for _ in range(3):
        layers += [nn.Conv2d(8 if layers else 3, 8, 3, padding=1), nn.MaxPool2d(2)]
    rules = verdicts(*layers, nn.Conv2d(8, 8, 3, padding=1))
    assert SHRINKING not in rules
    assert rules[BLOCKS].passed
    assert rules["no max pooling"].passed is False


class MaxOfPieces(nn.Module):
    """Max pooling by a reshape, as einops writes it."""

    def forward(self, x):
        n, c, h, w = x.shape
        return x.view(n, c, h // 2, 2, w // 2, 2).amax((3, 5))


class MaxOfChannels(nn.Module):
    """The largest channel weighs all others, as in CBAM."""

    def forward(self, x):
        return x * x.amax(1, keepdim=True)


def test_max_pooling_of_a_reshaped_map_is_not_decided():
    rules = verdicts(*convolutions({}), MaxOfPieces())
    assert rules["no max pooling"].passed is None
    rules = verdicts(*convolutions({}), MaxOfChannels())
    assert rules["no max pooling"].passed


class Forgetful(nn.Module):
    """Three shrinking layers whose result no layer reads."""

    def __init__(self):
        super().__init__()
        self.forgotten = nn.Sequential(*[nn.Conv2d(8, 8, 3, 2, 1) for _ in range(3)])

    def forward(self, x):
        self.forgotten(x)
        return x


def test_layers_that_the_scores_do_not_depend_on_part_no_blocks():
    rules = verdicts(*convolutions({}), Forgetful())
    assert rules[SHRINKING].passed is False
    assert rules[SHRINKING].value == "none"
    assert BLOCKS not in rules


def test_a_shrinking_layer_may_begin_a_block():
    begin = {"stride": 2}
    rules = verdicts(*convolutions({}, begin, {}, begin, begin))
    assert rules[BLOCKS].passed
    assert rules[BLOCKS].value == "1 + 2 + 1 + 1 layers"
    assert not verdicts(*convolutions(begin, begin, begin))[BLOCKS].passed


@pytest.mark.parametrize("pool", ["sum", "amax", "mean", "amin"])
def test_global_pooling_in_two_halves(pool):
    class Halves(nn.Module):
        def forward(self, x):
            x = getattr(x, pool)(3)
            return getattr(x, pool)(2)

    net = nn.Sequential(*convolutions({}, {}), Halves(), nn.Linear(8, 10))
    rules = {rule.text: rule for rule in checklist(net, trace(net))}
    assert rules[RECEPTIVE_FIELD].value == "5"
    assert rules[END].passed == (pool in ("sum", "mean"))


def test_a_map_of_one_pixel_is_not_pooled():
    net = nn.Sequential(
        *convolutions(*[{"stride": 2}] * 6), nn.Flatten(), nn.Linear(8, 10)
    )
    rules = {rule.text: rule for rule in checklist(net, trace(net))}
    assert rules[RECEPTIVE_FIELD].value == "127"  # of the last convolution
    assert not rules[END].passed


def test_of_height_and_width_the_smaller_view_counts(call, monkeypatch):
    def wide(before, after):
        return nn.Conv2d(before, after, (1, 9), stride=(1, 2), padding=(0, 4))

    class Wide(nn.Sequential):
        def __init__(self):
            pools = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
            super().__init__(
                wide(3, 8), wide(8, 8), wide(8, 8), *pools, nn.Linear(8, 10)
            )

    monkeypatch.setitem(ARCHS, "wide", Wide)
    _, output, _ = call(model.main, "--arch", "wide", "--plot")
    assert f"  FAIL  {RECEPTIVE_FIELD}     1x57 (height x width)\n" in output
    assert "1x9    1x2" in output


def test_pooling_a_part_of_the_map_is_not_global():
    layers = convolutions({"stride": 2}, {"stride": 2}, {"padding": 0})  # 6x6
    net = nn.Sequential(*layers, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(8, 10))
    rules = {rule.text: rule for rule in checklist(net, trace(net))}
    assert rules[END].passed is False
    assert "7" not in rules[RECEPTIVE_FIELD].value


def test_a_convolution_that_never_learns_is_no_layer():
    rules = verdicts(*convolutions({}), Blur(), nn.Conv2d(8, 8, 1))
    for rule in (SHRINKING, SEPARABLE, DILATED):
        assert not rules[rule].passed
    frozen = nn.Conv2d(8, 8, 3, padding=2, dilation=2).requires_grad_(False)
    assert verdicts(*convolutions({}), frozen)[DILATED].passed


def test_a_weight_that_is_made_of_parameters_learns():
    dilated = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
    dilated = nn.utils.parametrizations.weight_norm(dilated)
    assert verdicts(*convolutions({}), dilated)[DILATED].passed


@pytest.mark.filterwarnings("ignore")  # scripts are going to be left out of PyTorch
def test_what_is_not_seen_may_hold_what_is_not_found():
    inside = torch.jit.script(nn.Sequential(nn.Conv2d(8, 8, 3), nn.MaxPool2d(2)))
    rules = verdicts(*convolutions({}), inside)
    for rule in (SHRINKING, SEPARABLE, DILATED, "no max pooling", RECEPTIVE_FIELD):
        assert rules[rule].passed is None
    assert rules[END].passed


class Gated(nn.Module):
    """The largest value of each channel weighs it."""

    def forward(self, x):
        return x * torch.sigmoid(F.adaptive_max_pool2d(x, 1))


class Dynamic(nn.Conv2d):
    """Its weight depends on the image."""

    def forward(self, x):
        return F.conv2d(x, self.weight * x.mean().sigmoid(), None, 1, 2, 2)


def test_a_maximum_over_the_whole_map_is_no_pooling_between_layers():
    layers = convolutions({"stride": 2}, {"stride": 2}, {"stride": 2}, {})
    assert verdicts(*layers, Gated())["no max pooling"].passed
    inception = nn.MaxPool2d(3, stride=1, padding=1)
    assert verdicts(*layers, inception)["no max pooling"].passed is False
    net = nn.Sequential(
        *layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )
    failed = [rule.text for rule in checklist(net, trace(net)) if rule.passed is False]
    assert END in failed
    assert "no max pooling" not in failed


def test_pooling_a_map_of_one_pixel_is_global():
    rules = verdicts(*convolutions(*[{"stride": 2}] * 5))
    assert rules[END].passed
    assert rules[RECEPTIVE_FIELD].value == "63"


def test_the_end_of_an_unknown_map_is_not_decided():
    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = nn.Linear(1024, 1024)

        def forward(self, x):
            x = x.flatten(2)
            return (x + self.tokens(x)).mean(2)

    net = nn.Sequential(*convolutions({}), Mixing(), nn.Linear(8, 10))
    rules = {rule.text: rule for rule in checklist(net, trace(net))}
    assert rules[END].passed is None


def test_a_weight_that_depends_on_the_image_is_of_a_layer():
    rules = verdicts(*convolutions({}), Dynamic(8, 8, 3))
    assert rules[DILATED].passed
    assert rules[RECEPTIVE_FIELD].passed is None


@pytest.mark.parametrize("is_module", [True, False])
def test_multiply_adds_of_attention_are_counted(call, monkeypatch, is_module):
    """By hand: 16 patches of 8 values, two products of 16 x 16 x 8, four of 16 x 8 x 8."""

    class Attention(nn.Module):
        def __init__(self, classes=10):
            super().__init__()
            self.patches = nn.Conv2d(3, 8, 8, 8)
            self.mix = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, classes)

        def forward(self, x):
            x = self.patches(x).flatten(2).transpose(1, 2)
            if is_module:
                return self.head(self.mix(x, x, x)[0].mean(1))
            return self.head(F.scaled_dot_product_attention(x, x, x).mean(1))

    monkeypatch.setitem(ARCHS, "attention", Attention)
    _, output, _ = call(model.main, "--arch", "attention")
    hidden = 2 * 16 * 16 * 8 + (4 * 16 * 8 * 8 if is_module else 0)
    assert f"{hidden:,} more are computed in what is not listed" in output


def test_work_and_weights_that_are_not_counted_are_said(call, monkeypatch):
    class Listed(nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.layers = [nn.Conv2d(3, 8, 8, 8)]
            self.rows = nn.LSTM(8, 8, batch_first=True)
            self.head = nn.Linear(8, classes)

        def forward(self, x):
            x = self.layers[0](x).flatten(2).transpose(1, 2)
            return self.head(self.rows(x)[0].mean(1))

    monkeypatch.setitem(ARCHS, "listed", Listed)
    _, output, _ = call(model.main, "--arch", "listed")
    assert "those of lstm are not counted" in output
    (line,) = [line for line in output.splitlines() if "under 200,000" in line]
    assert line.startswith("  ?   ")
    assert line.endswith("a plain list: put them into nn.ModuleList")


class Held(nn.Module):
    """A layer in a list of either kind."""

    def __init__(self, layer, kind):
        super().__init__()
        self.layers = kind([layer])

    def forward(self, x):
        (layer,) = self.layers
        if isinstance(layer, nn.Parameter):
            return (x.permute(0, 2, 3, 1) @ layer).permute(0, 3, 1, 2)
        if isinstance(layer, nn.LSTM):
            return x + layer(x.mean(2).transpose(1, 2))[0].mean((1, 2))
        return layer(x)


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(8),
        nn.PReLU(8),
        nn.ConvTranspose2d(8, 8, 2),
        nn.LSTM(8, 8, batch_first=True),
        nn.Parameter(torch.eye(8)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_weights_of_any_kind_in_a_plain_list_are_noticed(layer):
    kept = nn.ParameterList if isinstance(layer, nn.Parameter) else nn.ModuleList
    assert verdicts(*convolutions({}), Held(layer, list))[PARAMETERS].passed is None
    assert verdicts(*convolutions({}), Held(layer, kept))[PARAMETERS].passed


@pytest.mark.parametrize(
    "shape", [nn.Identity(), nn.Flatten(), nn.Unflatten(1, (2, 5))]
)
def test_probabilities_are_noted_by_their_values(call, monkeypatch, shape):
    """Whatever is done to their shape; and not those of which the loss needs the logarithm."""

    def arch(last):
        def make(classes):
            return nn.Sequential(nn.Conv2d(3, classes, 32), nn.Flatten(), last, shape)

        return make

    for name, last in (("of", nn.Softmax(1)), ("log", nn.LogSoftmax(1))):
        monkeypatch.setitem(ARCHS, name, arch(last))
        _, output, _ = call(model.main, "--arch", name)
        assert ("it ends in softmax" in output) == (name == "of")


def test_parameters_of_a_block_are_listed_once():
    """Though the block pools by itself, after its convolution."""

    class Transition(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 1)

        def forward(self, x):
            return F.avg_pool2d(self.conv(x), 2)

    net = nn.Sequential(*convolutions({}), Transition())
    listed = {line.name: line.parameters for line in model.summarise(net, trace(net))}
    assert listed == {"0": "224", "2.conv": "72", "2": "0"}


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.Sigmoid(), nn.LogSoftmax(1)])
def test_scores_that_are_probabilities_are_noted(call, monkeypatch, last):
    class Ending(nn.Sequential):
        def __init__(self):
            super().__init__(OwnNet(), last)

    monkeypatch.setitem(ARCHS, "ending", Ending)
    _, output, _ = call(model.main, "--arch", "ending")
    assert ("which the loss does itself" in output) != isinstance(last, nn.LogSoftmax)


def test_accuracy_is_a_rule_where_it_is_known():
    net = build("small", "dilated", "batch", None)
    nodes = trace(net)
    for accuracy, is_enough in ((GOAL, True), (GOAL - 0.0001, False)):
        rule = checklist(net, nodes, accuracy, "mnist")[-1]
        assert rule.text == f"test accuracy of {100 * GOAL:g} %"
        assert rule.value == f"{accuracy:.2%} on mnist"
        assert rule.passed is is_enough


def test_a_goal_may_have_decimals(monkeypatch):
    monkeypatch.setattr(rules, "GOAL", 0.994)
    net = build("small", "dilated", "batch", None)
    found = checklist(net, trace(net), 0.9935, "mnist")[-1]
    assert found == ("test accuracy of 99.4 %", "99.35% on mnist", False)


def test_rules_that_an_assignment_has_not_are_left_out(call, monkeypatch):
    rows = [r._replace(kind="plain") if r.kind == "separable" else r for r in SMALL]
    monkeypatch.setitem(ARCHS, "edited", rows)
    assert call(model.main, "--arch", "edited")[0] == 1
    monkeypatch.setattr(rules, "LEFT_OUT", ("depthwise-separable layer",))
    status, output, _ = call(model.main, "--arch", "edited")
    assert status == 0
    assert "depthwise" not in output.partition("The assignment's rules")[2]
    broken = [rules.Rule("depthwise-separable layer", "none", False)]
    rules.print_broken_rules(broken)
    assert call(model.main, "--arch", "small")[1].count("warning") == 0


def test_an_unknown_receptive_field_is_marked_and_ends_in_status_1(call, monkeypatch):
    class Grown(OwnNet):
        def forward(self, x):
            return super().forward(F.interpolate(x, scale_factor=2))

    monkeypatch.setitem(ARCHS, "grown", Grown)
    status, output, errors = call(model.main, "--arch", "grown")
    assert status == 1
    assert errors == ""
    (line,) = [line for line in output.splitlines() if line.startswith("  ?")]
    assert RECEPTIVE_FIELD in line
    assert "interpolate" in line


class Functional(nn.Module):
    """Pre-activation, and a kernel that is a parameter of the class itself."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.kernel = nn.Parameter(nn.Conv2d(3, 10, 3).weight.detach().clone())

    def forward(self, x):
        return F.conv2d(F.relu(self.norm(x)), self.kernel).mean((2, 3))


def test_summary_of_networks_of_all_kinds(call, monkeypatch):
    for make in (Functional, OwnNet):
        monkeypatch.setitem(ARCHS, "mine", make)
        _, output, _ = call(model.main, "--arch", "mine")
        total = sum(weight.numel() for weight in make().parameters())
        assert f"{total:,} parameters" in output
        assert "conv2d" in output


class OfTheImage(nn.Module):
    """The weights of its last layer depend on the image."""

    def __init__(self, classes):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 8, 8)
        self.weight = nn.Parameter(torch.randn(classes, 8))

    def forward(self, x):
        x = self.conv(x).mean((2, 3))
        return F.linear(x, self.weight * x.mean())


def test_weights_that_depend_on_the_image(call, monkeypatch):
    monkeypatch.setitem(ARCHS, "mine", OfTheImage)
    status, output, _ = call(model.main, "--arch", "mine")
    assert status == 1  # it has no blocks
    (line,) = [line for line in output.splitlines() if END in line]
    assert line.startswith("  pass")
