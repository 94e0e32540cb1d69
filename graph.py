"""What runs in a network: its operations as a graph, read by running it once.

The network may be any module: nothing here decides on names, and Python may branch on
shapes as it likes. What this module doesn't know it marks as unknown, and goes on.
"""

import copy
import math
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dimensions import Call, Unknown, Value, Window, as_map, map_size
from operations import HANDLERS, pointwise
from skipping import compute_unread

DECIDES = "a value computed from the image decides what runs"
WRITTEN = "written to in place"
STOPPED = "stopped"  # the operation of a last node where the network raised an error


@dataclass(eq=False)
class Node:
    """One operation that ran, on something that depends on the image."""

    layer: str  # dotted path of the innermost module that ran it
    operation: str  # such as "conv2d" or "add"
    sources: list  # the nodes it reads, without gates; none for the image itself
    shape: tuple = ()  # of the output, without the batch
    size: tuple = (1, 1)  # (H, W) of the map after it; 1 where averaged away
    window: Window | None = None
    weight: tuple | None = None  # shape of a convolution's or linear layer's weight
    groups: int = 1
    unknown: str = ""  # why the receptive field isn't known from here on
    axes: list | None = field(default=None, repr=False)  # for H and W, by model.trace

    @property
    def receptive_field(self):
        """In pixels, the larger of height's and width's; None where it is unknown."""
        return max(axis.field for axis in self.axes) if self.axes else None

    @property
    def macs(self):
        """Multiply-adds an image, those of convolutions and linear layers."""
        return math.prod(self.shape) * math.prod(self.weight[1:]) if self.weight else 0


class Recorder(TorchDispatchMode):
    """Notes a node for each operation that depends on the image, while it is on."""

    def __init__(self):
        super().__init__()
        self.nodes = []
        self.values = {}  # by id of the tensor
        self.tensors = []  # all of these, kept so that no id is given away again
        self.layers = [""]  # paths of the modules that are running, the innermost last
        self.decided = ""  # the reason, once a value decided what runs

    def add(self, node, tensor, dims):
        """A node whose result is a tensor, and what the tensor's dimensions hold."""
        has_batch = tensor.dim() > 0 and tensor.shape[0] == 1
        node.shape = tuple(tensor.shape[1:] if has_batch else tensor.shape)
        node.size = map_size(dims)
        self.nodes.append(node)
        self.values[id(tensor)] = Value(node, dims)
        self.tensors.append(tensor)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        values = {}
        for argument in tree_leaves((args, kwargs)):
            if id(argument) in self.values:
                values[id(argument)] = self.values[id(argument)]
        if not values:
            return result
        name = name_of(function)
        if name in ("local_scalar_dense", "is_nonzero", "equal"):
            self.decided = self.decided or DECIDES
            return result
        arguments = arguments_of(function, args, kwargs)
        for tensor in results_of(name, result):
            sources = list(dict.fromkeys(value.node for value in values.values()))
            node = Node(self.layers[-1], name, sources)
            dims = self.understand(
                Call(node, arguments, dict(values), tensor), function
            )
            if function._schema.is_mutable:
                self.note_written(tensor, node)
            self.add(node, tensor, dims)
        return result

    def understand(self, call, function):
        """What the output's dimensions hold; notes in the node what is not known."""
        node = call.node
        handler = HANDLERS.get(node.operation)
        if handler is None and torch.Tag.pointwise in function.tags:
            handler = pointwise
        try:
            if handler is None:
                raise Unknown(f"the receptive field of '{node.operation}' is not known")
            dims = handler(call)
        except Unknown as reason:
            node.unknown = str(reason)
            dims = as_map(call.output.shape)
        for source in node.sources:
            node.unknown = node.unknown or source.unknown
        node.unknown = node.unknown or self.decided
        return dims

    def note_written(self, tensor, node):
        """What shares memory with a tensor that was written to is another value now."""
        memory = tensor.untyped_storage().data_ptr()
        for other in self.tensors:
            if other is tensor or other.untyped_storage().data_ptr() != memory:
                continue
            dims = self.values[id(other)].dims
            if other.numel() == tensor.numel():
                self.values[id(other)] = Value(node, dims)
            else:
                part = Node(node.layer, node.operation, [node], unknown=WRITTEN)
                part.size = map_size(dims)
                self.nodes.append(part)
                self.values[id(other)] = Value(part, dims)


def name_of(function):
    """An operation's name, without what tells its variants apart."""
    name = function.overloadpacket.__name__.strip("_")
    for part in ("native_", "mkldnn_", "cudnn_", "_with_indices"):
        name = name.replace(part, "")
    return name


def arguments_of(function, args, kwargs):
    """The arguments of a call by name, defaults included."""
    arguments = {}
    for position, argument in enumerate(function._schema.arguments):
        if position < len(args):
            arguments[argument.name] = args[position]
        else:
            arguments[argument.name] = kwargs.get(argument.name, argument.default_value)
    return arguments


def results_of(name, result):
    """The tensors that an operation makes of its input, without indices and statistics."""
    if isinstance(result, torch.Tensor):
        return [result]
    if name in ("split", "split_with_sizes", "unbind"):
        return list(result)
    return [result[0]]


def follow_layers(net, recorder):
    """Let the recorder know which module is running."""

    def enter(path):
        return lambda module, inputs: recorder.layers.append(path)

    def leave(module, inputs, output):
        recorder.layers.pop()

    for path, module in net.named_modules():
        path = path.removeprefix("body").removeprefix(".")
        module.register_forward_pre_hook(enter(path))
        module.register_forward_hook(leave)


def record(net, size=32, is_skipping=False):
    """The operations that run on an image of size x size pixels: a list of `Node`.

    The first is the image, the last what makes the network's output. The layers of a table
    run as it says, unless `is_skipping`: then as they are computed (skipping.skip_unread).
    Raises nothing for what a network does: where it stops, the last node says why.
    """
    recorder = Recorder()
    image = torch.zeros(1, 3, size, size)
    recorder.add(Node("", "image", []), image, as_map(image.shape))
    reason = "the scores do not depend on the image in a way that is known"
    try:
        net = copy.deepcopy(net).cpu().float().eval()
        if not is_skipping:
            compute_unread(net)
        follow_layers(net, recorder)
        with torch.no_grad(), recorder:
            output = net(image)
    except Exception as error:  # noqa: BLE001 - of any type, by what the network does
        output, reason = None, str(error)
    nodes = recorder.nodes
    if id(output) in recorder.values:
        last = recorder.values[id(output)].node
        nodes.remove(last)
    else:
        last = Node("", STOPPED, [nodes[-1]], unknown=reason)
    return [*nodes, last]


def computed_macs(net):
    """The multiply-adds of an image that are computed, without those that no layer reads."""
    return sum(node.macs for node in record(net, is_skipping=True))


def try_out(net, size=32):
    """Scores (2, classes) of two black images of size x size pixels, and the layer that gives them.

    That layer is the last convolution or linear layer that runs; None where there is none.
    """
    ran = []

    def note(layer, inputs, output):
        ran.append(layer)

    hooks = []
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            hooks.append(module.register_forward_hook(note))
    was_training = net.training
    images = torch.zeros(2, 3, size, size, dtype=torch.uint8, device=net.mean.device)
    with torch.no_grad():
        scores = net.eval()(images)
    net.train(was_training)
    for hook in hooks:
        hook.remove()
    return scores, ran[-1] if ran else None
