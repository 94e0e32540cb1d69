"""The assignment's rules, read off the network as its table says, or its class runs."""

from typing import NamedTuple

GOAL = 0.85  # of the test images
PARAMETER_LIMIT = 200_000
FIELD_TO_EXCEED = 44  # pixels: the receptive field
PARAMETERS = f"under {PARAMETER_LIMIT:,} parameters"
RECEPTIVE_FIELD = f"receptive field over {FIELD_TO_EXCEED}"
AVERAGES = ("mean", "avg_pool2d", "adaptive_avg_pool2d")


class Rule(NamedTuple):
    """A rule of the assignment, with the value that decides it."""

    text: str
    value: str
    passed: bool | None  # None where it cannot be decided


def checklist(net, nodes, accuracy=None, dataset="cifar10"):
    """The assignment's rules for a network: a list of `Rule`.

    `nodes` are those of `receptive_field.trace`. An `accuracy`, 0 to 1, of the test images of
    `dataset` adds the rule on it.
    """
    convolutions = [node for node in nodes if node.operation == "conv2d"]
    pools = [node for node in nodes if "max_pool" in node.operation]
    dilated = [n for n in convolutions if is_larger(n) and max(n.window.dilation) > 1]
    separable = [node for node in convolutions if is_separable(node, nodes)]
    shrinking = [node for node in nodes if is_shrinking(node)]
    blocks, in_a_row = count_blocks(nodes)
    weighted, is_average = end_of(nodes[-1])
    sizes = " + ".join(str(count) for count in blocks)

    def names(nodes):
        found = dict.fromkeys(name_of(net, node) for node in nodes)
        return ", ".join(found) or "none"

    rules = [
        rule_on_parameters(net, nodes[-1]),
        rule_on_receptive_field(nodes[-1]),
        Rule("four blocks of 3x3 layers", f"{sizes} layers", all(blocks)),
        Rule("three shrinking 3x3 layers", names(shrinking), in_a_row >= 3),
        Rule("no max pooling", names(pools), not pools),
        Rule("depthwise-separable layer", names(separable), bool(separable)),
        Rule("dilated layer", names(dilated), bool(dilated)),
        Rule("GAP, then 1x1 or linear", names(weighted), is_average),
    ]
    if accuracy is not None:
        value = f"{accuracy:.2%} on {dataset}"
        text = f"test accuracy of {100 * GOAL:.0f} %"
        rules.append(Rule(text, value, accuracy >= GOAL))
    return rules


def count_parameters(module):
    """How many parameters there are in a network or a layer of it."""
    return sum(weight.numel() for weight in module.parameters())


def rule_on_parameters(net, output):
    """That of the number of parameters, said with the number of classes."""
    total = count_parameters(net)
    classes = output.shape[-1] if output.shape else "?"
    value = f"{total:,} with {classes} classes"
    return Rule(PARAMETERS, value, total < PARAMETER_LIMIT)


def rule_on_receptive_field(output):
    """That of the map which enters global average pooling, or of the last map."""
    _, maps = walk_back(output)
    for node in [output, *maps]:
        if node.unknown:
            return Rule(RECEPTIVE_FIELD, f"unknown: {node.unknown}", None)
    field = max((node.receptive_field for node in maps), default=1)
    return Rule(RECEPTIVE_FIELD, f"{field}", field > FIELD_TO_EXCEED)


def walk_back(output):
    """From the scores back to the last map: the operations behind it, and that map.

    It is what enters global pooling. Returns two lists of nodes; the map is more than one
    where a network ends in branches.
    """
    behind, maps, waiting = [], [], [output]
    while waiting:
        node = waiting.pop()
        if node in behind:
            continue
        behind.append(node)
        for source in node.sources:
            is_behind = source.size == (1, 1) and not is_pool(node)
            if is_behind or averages_an_axis(source):
                waiting.append(source)
            elif source not in maps:
                maps.append(source)
    return behind, maps


def is_pool(node):
    return node.window is not None and node.weight is None


def averages_an_axis(node):
    """Whether a node averages height or width alone, as one half of global pooling."""
    if node.operation != "mean" or not node.window:
        return False
    return min(node.size) == 1 and max(node.size) > 1


def end_of(output):
    """The pooling and the layers with weights behind the last map, and whether these are
    global average pooling and then 1x1 convolutions or linear layers."""
    behind, maps = walk_back(output)
    averages, layers, others = [], [], []
    for node in reversed(behind):
        reads_map = any(source in maps for source in node.sources)
        if reads_map and node.operation in AVERAGES:
            averages.append(node)
        elif reads_map:
            others.append(node)
        elif node.weight and max(node.window.kernel) == 1:
            layers.append(node)
        elif node.weight:
            others.append(node)
    is_average = bool(averages) and bool(layers) and not others
    return averages + layers + others, is_average


def count_blocks(nodes):
    """How many 3x3 layers each of the blocks C1 to C4 has, and how many shrinking ones
    follow one another.

    A block ends with the 3x3 layer that shrinks its map. Where branches meet, the one
    with most such layers counts.
    """
    blocks = [0, 0, 0, 0]
    passed = {}  # by node: the shrinking layers up to it
    for node in nodes:
        before = max((passed[source] for source in node.sources), default=0)
        if is_3x3(node) and before < len(blocks):
            blocks[before] += 1
        passed[node] = before + 1 if is_shrinking(node) else before
    return blocks, max(passed.values())


def is_3x3(node):
    return node.operation == "conv2d" and node.window.kernel == (3, 3)


def is_larger(node):
    """Whether a convolution reads more than one pixel."""
    return max(node.window.kernel) > 1


def is_shrinking(node):
    """Whether a node is a 3x3 convolution whose map is smaller than the one it reads."""
    if not is_3x3(node):
        return False
    before, after = node.sources[0].size, node.size
    return after[0] < before[0] or after[1] < before[1]


def is_depthwise(node):
    """Whether a convolution filters each channel by itself."""
    return node.operation == "conv2d" and node.weight[1] == 1 and node.groups > 1


def is_separable(node, nodes):
    """Whether a depthwise convolution is read, through norms and such, by a 1x1 one."""
    if not is_depthwise(node) or not is_larger(node):
        return False
    readers = [node]
    for later in nodes[nodes.index(node) + 1 :]:
        if any(source in readers for source in later.sources):
            if later.operation == "conv2d":
                if later.window.kernel == (1, 1) and later.groups == 1:
                    return True
            elif later.window is None:
                readers.append(later)
    return False


def print_checklist(rules):
    """Print the rules, one per line, and return whether all of them passed."""
    marks = {True: "pass", False: "FAIL", None: "?   "}
    print("\nThe assignment's rules")
    for rule in rules:
        print(f"  {marks[rule.passed]}  {rule.text:28}{rule.value}")
    return all(rule.passed is True for rule in rules)


def print_broken_rules(rules):
    """Print a line for each rule that is broken or cannot be decided."""
    for rule in rules:
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
