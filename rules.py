"""The assignment's rules, read off the network as its table says, or its class runs.

Layers are convolutions and linear layers whose weights are parameters: a blur by constant
weights is none. A pad and the convolution that reads it are one layer.
"""

from typing import NamedTuple

from receptive_field import STOPPED, UNSEEN, covers_map
from utils import times

GOAL = 0.85  # of the test images
PARAMETER_LIMIT = 200_000
FIELD_TO_EXCEED = 44  # pixels: the receptive field
MAX_POOLING = False  # whether it is allowed
LEFT_OUT = ()  # rules that another assignment has not, such as ("dilated layer",)
PARAMETERS = f"under {PARAMETER_LIMIT:,} parameters"
RECEPTIVE_FIELD = f"receptive field over {FIELD_TO_EXCEED}"
AVERAGES = ("mean", "avg_pool2d", "adaptive_avg_pool2d", "sum")  # a sum: times the size
REDUCTIONS = ("mean", "sum", "amax", "amin", "max", "min")  # over an axis, or over both
BLOCKS = 4


class Rule(NamedTuple):
    """A rule of the assignment, with the value that decides it."""

    text: str
    value: str
    passed: bool | None  # None where it cannot be decided


def rule_where(text, value, passed, is_hidden):
    """A rule; undecided if it did not pass and part of the network is not seen."""
    if is_hidden and not passed:
        return Rule(text, f"{value} in what is seen of the network", None)
    return Rule(text, value, passed)


def checklist(net, nodes, accuracy=None, dataset="cifar10"):
    """The assignment's rules for a network: a list of `Rule`.

    `nodes` are those of `receptive_field.trace`. An `accuracy`, 0 to 1, of the test images of
    `dataset` adds the rule on it. Where part of the network is not seen, what is not found
    may be there: such a rule is not decided.
    """
    # A maximum over the whole map is left to the rule on the end, or is a gate's.
    pools = [n for n in nodes if "max_pool" in n.operation and not pools_all(n)]
    may_pool = any(takes_largest_of_pieces(node) for node in nodes)
    separable = [node for node in nodes if is_separable(node, nodes)]
    dilated = [node for node in nodes if is_dilated(node)]
    is_hidden = any(node.operation in (STOPPED, UNSEEN) for node in nodes)

    def rule_on_finding(text, layers):
        return rule_where(text, names_of(net, layers), bool(layers), is_hidden)

    if pools:
        no_pooling = Rule("no max pooling", names_of(net, pools), False)
    else:
        may_pool = may_pool or is_hidden
        no_pooling = rule_where("no max pooling", "none", not may_pool, may_pool)
    rules = [
        rule_on_parameters(net, nodes),
        rule_on_receptive_field(nodes[-1]),
        *rules_on_blocks(net, nodes, is_hidden),
        *([] if MAX_POOLING else [no_pooling]),
        rule_on_finding("depthwise-separable layer", separable),
        rule_on_finding("dilated layer", dilated),
        rule_on_the_end(net, nodes[-1], is_hidden),
    ]
    if accuracy is not None:
        value = f"{accuracy:.2%} on {dataset}"
        text = f"test accuracy of {100 * GOAL:g} %"
        rules.append(Rule(text, value, accuracy >= GOAL))
    return rules


def add_rules_option(add):
    """Add --rules, which all scripts take that look at a network."""
    about = "on: check the rules of the assignment"
    add("--rules", choices=["on", "off"], default="on", help=about)


def count_parameters(module):
    """How many parameters there are in a network or a layer of it."""
    return sum(weight.numel() for weight in module.parameters())


def rule_on_parameters(net, nodes):
    """The rule on the number of parameters; its value says for how many classes."""
    total, output = count_parameters(net), nodes[-1]
    classes = output.shape[-1] if output.shape else "?"
    value = f"{total:,} with {classes} classes"
    if any(node.is_stray for node in nodes):
        value += " and those of layers in a plain list: put them into nn.ModuleList"
        return Rule(PARAMETERS, value, None)
    return Rule(PARAMETERS, value, total < PARAMETER_LIMIT)


def rule_on_receptive_field(output):
    """The rule on the field of the map that enters global pooling, or of the last map.

    Of height and width, where they differ, the smaller one counts.
    """
    _, maps = walk_back(output)
    for node in [output, *maps]:
        if node.unknown:
            return Rule(RECEPTIVE_FIELD, f"unknown: {node.unknown}", None)
    fields = [node.fields for node in maps] or [(1, 1)]
    sides = [max(side) for side in zip(*fields)]  # through any branch
    value = f"{sides[0]}"
    if sides[0] != sides[1]:
        value = f"{times(sides)} (height x width)"
    return Rule(RECEPTIVE_FIELD, value, min(sides) > FIELD_TO_EXCEED)


def rules_on_blocks(net, nodes, is_hidden):
    """The rules on the four blocks C1 to C4, and on the three layers between them.

    A block ends where its map shrinks, or where a dilated 3x3 layer stands in the place of
    one that shrinks it: extra credit of the assignment. The layer belongs to the block that
    it ends or, as in a ResNet, to the one that it begins. A fault is said once: where less
    than three layers part the network there are no four blocks to look at, and where max
    pooling parts it that is what is wrong.
    """
    nodes = read_by(nodes[-1], nodes)
    shrinking = [node for node in nodes if is_3x3(node) and shrinks_map(node)]
    borders = [node for node in nodes if shrinks_map(node)]
    in_place = [n for n in nodes if is_dilated(n) and is_3x3(n) and n not in borders]
    pools = [node for node in borders if "max_pool" in node.operation]
    value = names_of(net, shrinking)
    passed = most_in_a_row(nodes, shrinking) > 2
    if passed:
        borders = shrinking
    elif most_in_a_row(nodes, shrinking + in_place) > 2:
        passed = True
        borders = borders + in_place
        value = f"{names_of(net, in_place)} dilated in the place of strides"
        value = f"{names_of(net, shrinking)}; {value}" if shrinking else value
    is_pooled = most_in_a_row(nodes, shrinking + in_place + pools) > 2
    rules = []
    if most_in_a_row(nodes, borders) > 2:
        counts = [count_blocks(nodes, borders, is_last) for is_last in (True, False)]
        counts = next(filter(all, counts), counts[0])
        in_words = " + ".join(map(str, counts))
        text = "four blocks of 3x3 layers"
        rules.append(rule_where(text, f"{in_words} layers", all(counts), is_hidden))
    if passed or is_hidden or not is_pooled:
        text = "three shrinking 3x3 layers"
        rules.append(rule_where(text, value, passed, is_hidden))
    return rules


def rule_on_the_end(net, output, is_hidden):
    """The rule on global average pooling; layers behind it are optional."""
    behind, maps = walk_back(output)
    averages, layers, others, named = [], [], [], []
    for node in reversed(behind):
        kind = None
        if pools_all(node):
            kind = averages if node.operation in AVERAGES else others
        elif node.weight:
            kind = others if is_larger(node) else layers
        elif is_pool(node) and not pools_an_axis(node):
            kind = others
        if kind is not None:
            kind.append(node)
            named.append(node)
    passed = bool(averages) and not others
    if not averages and not others:  # what there is instead
        named = maps + named
    value = names_of(net, named)
    if passed and not layers:
        value += ", and no layer behind it (that is optional)"
    is_hidden = is_hidden or bool(output.unknown)
    return rule_where("GAP, then 1x1 or linear", value, passed, is_hidden)


def walk_back(output):
    """From the scores back to the last map: the operations behind it, and that map.

    It is what enters global pooling, or else what the last convolution of a map gives.
    Returns two lists of nodes; the map is more than one where a network ends in branches.
    """
    behind, maps, waiting = [], [], [output]
    while waiting:
        node = waiting.pop()
        if node in behind or node in maps:
            continue
        is_of_map = is_larger(node)
        if node.operation == "conv2d" and (is_of_map or node.sources[0].size != (1, 1)):
            maps.append(node)
            continue
        behind.append(node)
        for source in node.sources:
            if not is_of_map or pools_an_axis(source):
                waiting.append(source)
            elif source not in maps:
                maps.append(source)
    return behind, maps


def is_pool(node):
    return node.window is not None and node.weight is None


def pools_all(node):
    """Whether a node pools all of a map, at once or what was left of it."""
    return is_pool(node) and covers_map(node)


def pools_an_axis(node):
    """Whether a node pools height or width alone, as one half of global pooling."""
    if node.operation not in REDUCTIONS or not node.window:
        return False
    return min(node.size) == 1 and max(node.size) > 1


def takes_largest_of_pieces(node):
    """Whether a node takes the largest values of a map that was reshaped into pieces."""
    is_maximum = node.operation in ("max", "amax") and bool(node.sources)
    return is_maximum and bool(node.unknown) and len(node.sources[0].shape) > 3


def read_by(output, nodes):
    """The nodes that an output is computed from, and itself; gates are no part of it."""
    read = {output}
    for node in reversed(nodes):
        if node in read:
            read.update(node.sources)
    return [node for node in nodes if node in read]


def most_in_a_row(nodes, chosen):
    """How many of the chosen nodes follow one another, at most, on a way to the scores."""
    return number_up_to(nodes, chosen)[nodes[-1]]


def number_up_to(nodes, chosen):
    """How many of the chosen nodes there are up to each node and with it, by node.

    Where branches meet, the one with most of them counts.
    """
    numbers = {}
    for node in nodes:
        before = max((numbers[source] for source in node.sources), default=0)
        numbers[node] = before + 1 if node in chosen else before
    return numbers


def count_blocks(nodes, borders, is_last):
    """How many 3x3 layers each of the blocks C1 to C4 has.

    `borders` are the nodes between blocks, each of which `is_last` in a block, or else first.
    """
    blocks = [0] * BLOCKS
    numbers = number_up_to(nodes, borders)
    for node in nodes:
        if is_3x3(node):
            block = numbers[node]
            if is_last and node in borders:
                block -= 1
            blocks[min(block, BLOCKS - 1)] += 1
    return blocks


def is_convolution(node):
    return node.operation == "conv2d" and node.learns


def is_3x3(node):
    return is_convolution(node) and node.window.kernel == (3, 3)


def is_larger(node):
    """Whether a node reads more than one pixel."""
    return node.window is not None and max(node.window.kernel) > 1


def is_dilated(node):
    return is_convolution(node) and is_larger(node) and max(node.window.dilation) > 1


def shrinks_map(node):
    """Whether a node's map is smaller than the one before it, but not pooled away."""
    if not node.window or node.operation == "pad":
        return False
    if pools_all(node) or pools_an_axis(node):
        return False
    before = node.sources[0]
    while before.operation == "pad":
        before = before.sources[0]
    return node.size[0] < before.size[0] or node.size[1] < before.size[1]


def is_depthwise(node):
    """Whether a convolution filters each channel by itself."""
    return is_convolution(node) and node.weight[1] == 1 and node.groups > 1


def is_separable(node, nodes):
    """Whether a depthwise layer is read, through norms and such, by one of single pixels.

    That is a 1x1 convolution, or a linear layer over the channels.
    """
    if not is_depthwise(node) or not is_larger(node):
        return False
    readers = [node]
    for later in nodes[nodes.index(node) + 1 :]:
        if any(source in readers for source in later.sources):
            if later.weight:
                if later.learns and not is_larger(later) and later.groups == 1:
                    return True
            elif later.window is None:
                readers.append(later)
    return False


def names_of(net, nodes):
    """The rows or layers of nodes, each once."""
    found = dict.fromkeys(name_of(net, node) for node in nodes)
    return ", ".join(found) or "none"


def print_note_on_scores(scores, nodes):
    """Print a note where a network gives probabilities, which the loss makes of scores.

    `scores` (N, classes) are what it gives of some images, `nodes` those of one.
    """
    are_shares = (scores >= 0).all() and ((scores.sum(1) - 1).abs() < 1e-3).all()
    if are_shares or nodes[-1].operation == "sigmoid":
        kind = "softmax" if are_shares else "sigmoid"
        print(f"note      it ends in {kind}, which the loss does itself: leave it out")


def asked_for(rules):
    """The rules but for those of LEFT_OUT."""
    return [rule for rule in rules if rule.text not in LEFT_OUT]


def print_checklist(rules):
    """Print the rules, one per line, and return whether all of them passed."""
    rules = asked_for(rules)
    marks = {True: "pass", False: "FAIL", None: "?   "}
    print("\nThe assignment's rules")
    for rule in rules:
        print(f"  {marks[rule.passed]}  {rule.text:28}{rule.value}")
    return all(rule.passed is True for rule in rules)


def print_broken_rules(rules):
    """Print a line for each rule that is broken or cannot be decided."""
    for rule in asked_for(rules):
        if rule.passed is False:
            print(
                f"warning   a rule of the assignment is broken: {rule.text} ({rule.value})"
            )
        elif rule.passed is None:
            print(f"note      {rule.text}: {rule.value}")


def name_of(net, node):
    """The row of a table that a node belongs to, or else its layer."""
    if getattr(net, "config", {}).get("rows"):
        return ".".join(node.layer.split(".")[:2])
    return node.layer or node.operation
