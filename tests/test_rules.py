"""The assignment's rules, each broken by one edit of a table and by classes of one's own."""

import pytest
import torch.nn.functional as F
from nets import SMALL, OwnNet
from torch import nn

import model
from model import ARCHS, Row, build
from receptive_field import trace
from rules import checklist

# The one rule that an edit of the small table breaks, and the rows it changes.
EDITS = {
    "no max pooling": {"c3.down": [..., Row("c3.pool", 0, 2, 1, 1, 0, "maxpool")]},
    "under 200,000 parameters": {"c4.conv": {"channels": 16000}},
    "receptive field over 44": {
        name: {"stride": 1, "padding": 0} for name in ("c1.down", "c2.down", "c3.down")
    },
    "three shrinking 3x3 layers": {"c3.down": {"padding": 2}},
    "four blocks of 3x3 layers": {
        "c4.conv": [
            Row("c4.conv", 32, 5, 1, 1, 2, "separable"),
        ],
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
        "c4.conv": [..., Row("c4.more", 10, 1, 1, 1, 0, "plain")],
        "o.conv": [],
    },
}


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
    expected = [rule]
    if rule == "three shrinking 3x3 layers":  # which part the blocks
        expected = ["four blocks of 3x3 layers", rule]
    assert len(broken) == len(expected)
    for name, line in zip(expected, broken):
        assert name in line


def test_the_small_table_keeps_all_rules(call):
    status, output, _ = call(model.main, "--arch", "small")
    assert status == 0
    assert output.count("pass  ") == 8


def passed(net):
    return {rule.text: rule.passed for rule in checklist(net, trace(net))}


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
    assert not rules["four blocks of 3x3 layers"]
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


def test_accuracy_is_a_rule_where_it_is_known():
    net = build("small", "dilated", "batch", None)
    nodes = trace(net)
    for accuracy, is_enough in ((0.85, True), (0.8499, False)):
        rule = checklist(net, nodes, accuracy, "mnist")[-1]
        assert rule.text == "test accuracy of 85 %"
        assert rule.value == f"{accuracy:.2%} on mnist"
        assert rule.passed is is_enough


def test_an_unknown_receptive_field_is_marked_and_ends_in_status_1(call, monkeypatch):
    class Grown(OwnNet):
        def forward(self, x):
            return super().forward(F.interpolate(x, scale_factor=2))

    monkeypatch.setitem(ARCHS, "grown", Grown)
    status, output, errors = call(model.main, "--arch", "grown")
    assert status == 1
    assert errors == ""
    (line,) = [line for line in output.splitlines() if line.startswith("  ?")]
    assert "receptive field over 44" in line
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
