"""What runs in a network, operation by operation, and the receptive field after each.

The network may be any module: it runs once, on one image, and every function of PyTorch
that it calls is seen. No name of a layer counts, and Python may branch on shapes as it
likes. The handlers below say how each function moves the map. Of all other functions, and
from there on, the receptive field is unknown; so it is of what is computed where it cannot
be seen. No guess is made.
"""

import contextlib
import copy
import gc
import math
import sys
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from utils import SIDE

DECIDES = "a value computed from the image decides what runs"
# Operations of nodes behind which there may be layers that are not seen:
STOPPED = "stopped"  # of a last node, where the network raised an error
UNSEEN = "unseen"  # of scripted code, say


class Unknown(Exception):
    """Raised where the receptive field isn't known from here on, some with a reason."""


class Window(NamedTuple):
    """What an output unit reads of the input's map: pairs (H, W), in input units."""

    kernel: tuple
    stride: tuple
    padding: tuple = (0, 0)  # before the first row and column; negative where cut off
    dilation: tuple = (1, 1)


class Axis(NamedTuple):
    """One axis of a feature map: unit i depends on the input pixels from
    `first + i * jump` to `last + i * jump`."""

    size: int
    jump: int = 1
    first: int = 0
    last: int = 0

    @property
    def field(self):
        """The receptive field, in pixels."""
        return self.last - self.first + 1

    @property
    def start(self):
        """The start offset: where the receptive field of unit 0 is centred."""
        return (self.first + self.last) / 2

    def slide(self, size, kernel, stride, padding, dilation):
        """The axis after a convolution or pool with this window."""
        first = self.first - padding * self.jump
        last = self.last + (dilation * (kernel - 1) - padding) * self.jump
        return Axis(size, self.jump * stride, first, last)

    def union(self, other):
        """The axis of a sum or concatenation: what is seen through either branch."""
        if (self.size, self.jump) != (other.size, other.jump):
            raise Unknown("branches of different size or stride meet")
        first, last = min(self.first, other.first), max(self.last, other.last)
        return Axis(self.size, self.jump, first, last)


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
    learns: bool = False  # whether that is, or is made of, parameters of the network
    is_stray: bool = False  # whether it reads a parameter that is none of the network's
    groups: int = 1
    norm_axes: int = 0  # that a layer norm is over, if its weights learn
    unknown: str = ""  # why the receptive field isn't known from here on
    axes: list | None = field(default=None, repr=False)  # the `Axis` of H, that of W

    @property
    def fields(self):
        """The receptive field in pixels, (height, width); None where it is unknown."""
        return tuple(axis.field for axis in self.axes) if self.axes else None

    @property
    def receptive_field(self):
        """In pixels, the smaller of height's and width's; None where it is unknown."""
        return min(self.fields) if self.fields else None

    @property
    def macs(self):
        """Multiply-adds an image, those of convolutions and linear layers."""
        return math.prod(self.shape) * math.prod(self.weight[1:]) if self.weight else 0


def trace(net, size=SIDE):
    """The operations that run on an image of size x size pixels, as a list of `Node`.

    The first is the image, the last what makes the network's output. The layers of a table
    run as its rows are written. Each node has its `axes`, the receptive field's arithmetic
    for height and width, or None and the reason in `unknown`. Where the network raises an
    error, the last node says which. Arithmetic: Araujo, Norris, Sim,
    "Computing Receptive Fields of Convolutional Neural Networks", Distill, 2019.
    """
    image = torch.zeros(1, 3, size, size)
    recorder, output = Recorder(image), None
    reason = "the scores do not depend on the image in a way that is known"
    try:
        net = net.as_written() if hasattr(net, "as_written") else copy.deepcopy(net)
        net = net.cpu().eval()
        recorder.prepare(net)
        with torch.no_grad(), uncompiled(), recorder:
            output = net(image)
    except Exception as error:  # noqa: BLE001 - of any type, by what the network does
        reason = str(error) or type(error).__name__
    nodes = recorder.nodes
    value = recorder.value_of(output) if isinstance(output, Tensor) else None
    if value is None:
        return [*nodes, Node("", STOPPED, [nodes[-1]], unknown=reason)]
    # What a network does with its scores, such as to keep them, makes no part of them.
    return nodes[: nodes.index(value.node) + 1]


def uncompiled():
    """Let what torch.compile made run as it is written: the compiler hides what runs."""
    # Where it is not loaded nothing is compiled; to load it takes a second.
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")


def computed_macs(net, side=SIDE):
    """The multiply-adds that a network computes for an image of `side` x `side` pixels."""
    net = copy.deepcopy(net).cpu().eval()
    images = torch.zeros(2, 3, side, side)  # some networks take one image for no batch
    had_fast_path = torch.backends.mha.get_fastpath_enabled()
    # The counter does not look inside of the fused kernels of attention (torch 2.14.1).
    torch.backends.mha.set_fastpath_enabled(False)
    plain = sdpa_kernel(SDPBackend.MATH)
    try:
        counting = FlopCounterMode(display=False)
        with torch.no_grad(), uncompiled(), plain, counting as counter:
            net(images)
    finally:
        torch.backends.mha.set_fastpath_enabled(had_fast_path)
    return counter.get_total_flops() // 2 // 2  # of two images; a multiply-add is two


class Value(NamedTuple):
    """A tensor that depends on the image: what made it, and what its elements belong to.

    `places` are the rows and the columns of the node's map: two tensors of its shape.
    """

    node: Node
    places: list
    is_averaged: bool = False  # each of its elements is computed from the whole map


@dataclass
class Call:
    """A function that ran, as its handler sees it."""

    function: object
    node: Node  # the handler notes window and weight here
    values: dict  # by id of the tensor, the arguments that depend on the image
    output: Tensor
    number: int  # of the output among those of the function
    learned: set  # ids of the tensors that are, or are made of, parameters

    def note_weight(self, weight):
        self.node.weight = tuple(weight.shape)
        # One that is computed from the image as well is taken for one that learns.
        self.node.learns = id(weight) in self.learned or id(weight) in self.values

    def places(self, tensor):
        """Those of the only argument that depends on the image, or Unknown is raised."""
        if list(self.values) != [id(tensor)]:
            raise Unknown
        return self.values[id(tensor)].places


class Recorder(TorchFunctionMode):
    """Notes a node for each function that depends on the image, while it is on."""

    def __init__(self, image):
        super().__init__()
        self.nodes = []
        self.tensors = []  # all that were seen, so that no id is given away again
        self.values = {}  # by id of the tensor: its `Value`, or None for a constant
        self.versions = {}  # by id, as `version_of`, when its value was noted
        self.learned = set()  # ids of parameters and of what is computed of these alone
        self.layers = [""]  # paths of the modules that are running, the innermost last
        self.decided = ""  # why all that runs from now on is unknown
        axes = [Axis(length) for length in image.shape[2:]]
        self.add(Node("", "image", [], axes=axes), image, places_of_map(image.shape))

    def prepare(self, net):
        """Take the tensors that exist for constants; follow which module is running."""
        kinds = (Tensor, Parameter)
        for tensor in [thing for thing in gc.get_objects() if type(thing) in kinds]:
            if id(tensor) not in self.values:
                self.keep(tensor, None)
        self.learned.update(id(weight) for weight in net.parameters())

        def enter(path):
            return lambda module, inputs: self.layers.append(path)

        def leave(module, inputs, output):
            self.layers.pop()

        for path, module in net.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # it takes no hooks
            module.register_forward_pre_hook(enter(layer_of(path)))
            module.register_forward_hook(leave)

    def keep(self, tensor, value):
        self.tensors.append(tensor)
        self.values[id(tensor)] = value
        self.versions[id(tensor)] = version_of(tensor)

    def add(self, node, tensor, places, is_averaged=False):
        """A node whose result is a tensor."""
        has_batch = tensor.dim() > 0 and tensor.shape[0] == 1
        node.shape = tuple(tensor.shape[1:] if has_batch else tensor.shape)
        node.size = size_of(places)
        self.nodes.append(node)
        self.keep(tensor, Value(node, places, is_averaged))

    def value_of(self, tensor):
        """The `Value` of a tensor, None for a constant.

        It is unknown where the tensor, or what shares its memory, has been written to since;
        and where it is not the result of a function that was seen, but came from scripted
        code or through NumPy, say.
        """
        if self.versions.get(id(tensor)) != version_of(tensor):
            operation = UNSEEN
            reason = "it cannot be seen what a tensor is computed from"
            if id(tensor) in self.versions:
                operation, reason = "written", "written to in place"
            node = Node(self.layers[-1], operation, [self.nodes[-1]], unknown=reason)
            self.add(node, tensor, places_of_map(tensor.shape))
        return self.values[id(tensor)]

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        arguments = tensors_in([args, kwargs])
        values = self.values_read(function, arguments)
        result = function(*args, **kwargs)
        results = tensors_in(result)
        if function == Tensor.data.__get__:
            self.decided = "what is written to through .data cannot be seen"
        if not values:
            for tensor in [*arguments, *results]:
                if self.values.get(id(tensor)) is None:
                    self.keep(tensor, None)
            if any(id(tensor) in self.learned for tensor in arguments):
                self.learned.update(id(tensor) for tensor in results)
            return result
        for number, tensor in enumerate(results):
            self.note_result(function, args, kwargs, values, tensor, number)
        if not results and function is not Tensor.__setitem__:
            self.decided = DECIDES
        return result

    def values_read(self, function, arguments):
        """The arguments that a function reads, those that depend on the image, by id."""
        values = {}
        for number, tensor in enumerate(arguments):
            value = self.value_of(tensor)
            if function in METADATA or (function in LIKE and number > 0):
                # A value may have decided on the shape, if that of an unknown function.
                if value and value.node.unknown:
                    self.decided = DECIDES
            elif value:
                values[id(tensor)] = value
        return values

    def note_result(self, function, args, kwargs, values, tensor, number):
        """Add a node for one of the tensors that a function returns, by its number."""
        name, handler = HANDLERS.get(function, (name_of(function), None))
        is_written = self.versions.get(id(tensor)) != version_of(tensor)
        if handler and id(tensor) in values and not is_written:
            return  # an argument as it was, such as x.contiguous()
        node = Node(self.layers[-1], name, [])
        for one in tensors_in([args, kwargs]):
            if isinstance(one, Parameter) and id(one) not in self.learned:
                node.is_stray = True
        call = Call(function, node, dict(values), tensor, number, self.learned)
        if number > 0 and handler is not move:  # such as the indices of a maximum
            handler = None
        places = self.understand(call, handler, args, kwargs)
        are_averaged = all(value.is_averaged for value in call.values.values())
        covers = not node.unknown and covers_map(node)
        self.add(node, tensor, places, are_averaged or covers)

    def understand(self, call, handler, args, kwargs):
        """The places of a result's elements; notes in the node what is not known."""
        node, places, reason = call.node, places_of_map(call.output.shape), ""
        not_known = f"the receptive field of '{node.operation}' is not known"
        try:
            is_seen = handler and kwargs.get("out") is None
            found = handler(call, *args, **kwargs) if is_seen else []
            if [place.shape for place in found] != [call.output.shape] * 2:
                raise Unknown
            places = found
        except Unknown as error:
            reason = str(error) or not_known
        except Exception:  # noqa: BLE001 - arguments that the handler has no place for
            reason = not_known
        # What the handler took for a gate is no longer among the values.
        node.sources = sources_of(call.values)
        node.size = size_of(places)
        reasons = [source.unknown for source in node.sources]
        node.unknown = next(filter(None, [*reasons, reason, self.decided]), "")
        try:
            node.axes = None if node.unknown else [axis_after(node, i) for i in (0, 1)]
        except Unknown as error:
            node.unknown = str(error) or not_known
        return places


def axis_after(node, number):
    """The `Axis` of a node's output: number 0 is its height, 1 its width."""
    axis = node.sources[0].axes[number]
    for source in node.sources[1:]:
        axis = axis.union(source.axes[number])
    if node.window:
        kernel, stride, padding, dilation = (pair[number] for pair in node.window)
        axis = axis.slide(node.size[number], kernel, stride, padding, dilation)
    if axis.size != node.size[number]:
        raise Unknown
    return axis


def covers_map(node):
    """Whether a single window of a node reads the whole map."""
    if not node.window or node.size != (1, 1):
        return False
    height, width = node.sources[0].size
    return node.window.kernel[0] >= height and node.window.kernel[1] >= width


def layer_of(path):
    """The name of a layer: its path in a `Net`, without the `body`."""
    return path.removeprefix("body").removeprefix(".")


def sources_of(values):
    return list(dict.fromkeys(value.node for value in values.values()))


def name_of(function):
    """Such as "getitem"; that of a property, such as "shape", is in its getter."""
    name = getattr(function, "__name__", str(function))
    if name == "__get__":
        name = getattr(function.__self__, "__name__", name)
    return name.strip("_")


def tensors_in(value):
    """All tensors in an argument or a result, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, slice):
        value = (value.start, value.stop, value.step)
    if isinstance(value, dict):
        value = list(value.values())
    found = []
    if isinstance(value, (tuple, list)):
        for part in value:
            found += tensors_in(part)
    return found


def version_of(tensor):
    """A number that changes with each write; NaN, equal to nothing, where there is none."""
    try:
        return tensor._version
    except (RuntimeError, ValueError):  # of inference mode, for one
        return math.nan


def places_of_map(shape):
    """Of (N, C, H, W) the rows and columns; of another shape, as if all were channels."""
    if len(shape) != 4:
        return [torch.zeros(shape, dtype=torch.int32)] * 2
    rows, columns = (torch.arange(size, dtype=torch.int32) for size in shape[2:])
    return [rows.view(-1, 1).expand(shape), columns.expand(shape)]


def size_of(places):
    """(H, W) of the map."""
    return tuple(int(place.max()) + 1 if place.numel() else 0 for place in places)


def varies(place, dim):
    """Whether it is not the same all along a dimension."""
    return bool((place != place.narrow(dim, 0, 1)).any())


def pair(values):
    """(H, W) of an argument with one value or two."""
    values = values if isinstance(values, (list, tuple)) else [values]
    return tuple(values) if len(values) == 2 else (values[0], values[0])


# How each function moves the map. A handler takes a `Call` and the function's arguments. It
# notes window and weight in the call's node, and returns the places of the result's elements
# or raises Unknown. Where the shape of these is not that of the result, or the handler does
# not understand the arguments, the function is unknown too.

HANDLERS = {}  # by function, its name and its handler
PLAIN = ("{}", "__{}__")  # such as Tensor.mean and Tensor.__getitem__
OPERATOR = (*PLAIN, "{}_", "__r{}__", "__i{}__")


def functions_named(names, forms=PLAIN):
    """Pairs of a name and each function, method or property that PyTorch has for it."""
    found = []
    for name in names.split():
        for place in (torch, Tensor, F):
            for form in forms:
                function = getattr(place, form.format(name), None)
                if not callable(function):  # a property, where there is one
                    function = getattr(function, "__get__", None)
                if function is not None:
                    found.append((name, function))
    return found


def handles(names, forms=PLAIN):
    """Register a handler for these functions."""

    def register(handler):
        for name, function in functions_named(names, forms):
            HANDLERS[function] = (name.removesuffix("_with_indices"), handler)
        return handler

    return register


# What reads no values, and what reads those of its first argument alone.
METADATA = """dim ndim ndimension dtype device layout is_cuda is_cpu is_contiguous is_complex
is_floating_point is_signed requires_grad is_leaf grad grad_fn element_size itemsize
get_device is_sparse is_quantized is_mkldnn is_meta is_nested is_inference hash names
shape size numel nelement len stride nbytes zeros_like ones_like empty_like rand_like
randn_like new_zeros new_ones new_empty"""
LIKE = "to type_as expand_as view_as reshape_as"
METADATA = {function for _, function in functions_named(METADATA)}
LIKE = {function for _, function in functions_named(LIKE)}

POINTWISE = """relu relu6 leaky_relu prelu rrelu elu celu selu gelu silu mish softplus softsign
softshrink hardshrink tanhshrink hardtanh hardswish hardsigmoid logsigmoid threshold sigmoid
tanh dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout
feature_alpha_dropout add sub rsub subtract mul multiply div divide true_divide truediv
floor_divide floordiv remainder fmod mod neg negative pos positive abs absolute sign sgn pow
square sqrt rsqrt reciprocal exp exp2 expm1 log log2 log10 log1p logit logaddexp xlogy hypot
sin cos tan asin acos atan atan2 sinh cosh asinh acosh atanh erf erfc clamp clip clamp_min
clamp_max round floor ceil trunc frac nan_to_num maximum minimum fmax fmin where masked_fill
lerp addcmul addcdiv gt ge lt le eq ne logical_and logical_or logical_xor logical_not isnan
isinf isfinite bitwise_and bitwise_or bitwise_xor bitwise_not and or xor invert"""
COPIES = """clone contiguous detach requires_grad_ cpu cuda float double half bfloat16
bool int long type to type_as"""
MOVES = """view reshape flatten unflatten squeeze unsqueeze ravel view_as reshape_as permute
transpose t T mT swapaxes swapdims movedim moveaxis getitem select narrow index_select split
chunk tensor_split unbind expand expand_as broadcast_to repeat flip roll channel_shuffle"""


@handles(POINTWISE, OPERATOR)
@handles(COPIES)
def pointwise(call, *args, **kwargs):
    if call.node.operation in ("mul", "multiply", "div", "divide"):
        leave_out_gates(call)
    return shared_places(call, lambda place: place.expand(call.output.shape))


def leave_out_gates(call):
    """What is averaged over the map weighs what it multiplies, and adds no view."""
    maps, gates = {}, []
    for key, value in call.values.items():
        if value.node.size == (1, 1):
            gates.append(value)
        else:
            maps[key] = value
    if maps and all(gate.is_averaged for gate in gates):
        call.values = maps


def shared_places(call, prepare):
    """What `prepare` makes of places, the same of those of all the values of a call."""
    values = list(call.values.values())
    if len({value.node.size for value in values}) > 1:
        raise Unknown("branches of different size meet")
    first = [prepare(place) for place in values[0].places]
    for value in values[1:]:
        for expected, place in zip(first, value.places):
            if not expected.equal(prepare(place)):
                raise Unknown("height meets width or channels")
    return first


# Statistics are left out of a receptive field, as is usual.
@handles("batch_norm instance_norm group_norm layer_norm rms_norm local_response_norm")
def normalise(call, input, *args, **kwargs):
    if call.node.operation == "layer_norm":
        note_layer_norm(call, *args, **kwargs)
    return call.places(input)


def note_layer_norm(call, normalized_shape, weight=None, bias=None, *args, **kwargs):
    for one in (weight, bias):
        if id(one) in call.learned and one.requires_grad:
            call.node.norm_axes = len(normalized_shape)


@handles(MOVES)
def move(call, input, *args, **kwargs):
    """Elements are chosen and put in order: the same is done with their places."""
    moved = []
    for place in call.places(input):
        results = tensors_in(call.function(place.contiguous(), *args, **kwargs))
        if results[call.number].dtype != place.dtype:
            raise Unknown
        moved.append(results[call.number])
    return settle(call, moved, moved)


def settle(call, first, last, is_pool=False):
    """The places of a result whose elements read those from `first` to `last`.

    They must be evenly spaced. The window is noted if it is more than a single unit's.
    """
    places, kernel, stride, padding = [], [], [], []
    for low, high in zip(first, last):
        if sum(varies(low, dim) for dim in range(low.dim())) > 1:
            raise Unknown("a reshape takes the map apart")
        lengths, starts = (high - low + 1).unique(), low.unique()
        steps = starts.diff().unique()
        if len(lengths) != 1 or len(steps) > 1:
            raise Unknown
        kernel.append(int(lengths))
        stride.append(int(steps) if len(steps) else int(lengths))
        padding.append(-int(starts[0]))
        places.append((low - starts[0]) // stride[-1])
    window = Window(tuple(kernel), tuple(stride), tuple(padding))
    (source,) = sources_of(call.values)
    if is_pool or window != Window((1, 1), (1, 1)) or size_of(places) != source.size:
        call.node.window = window
    return places


@handles("mean sum amax amin max min var std")
def reduce(call, input, dim=None, *args, axis=None, **kwargs):
    """Over height or width: the window is the whole map on that axis."""
    if isinstance(dim, Tensor):  # the larger one of two tensors
        return pointwise(call)
    rank, dim = input.dim(), axis if dim is None else dim
    if dim is None or isinstance(dim, bool) or dim in ((), []):
        dim = tuple(range(rank))
    dim = [index % rank for index in ([dim] if isinstance(dim, int) else dim)]
    options = {"dim": dim, "keepdim": call.output.dim() == rank}
    first = [place.amin(**options) for place in call.places(input)]
    last = [place.amax(**options) for place in call.places(input)]
    return settle(call, first, last, is_pool=rank == 4 and max(dim) >= 2)


@handles("linear")
def linear(call, input, weight, bias=None):
    """Over height and width too, where they are in what it sums over."""
    call.note_weight(weight)
    shape = call.output.shape
    first = [place.amin(-1, keepdim=True).expand(shape) for place in call.places(input)]
    last = [place.amax(-1, keepdim=True).expand(shape) for place in call.places(input)]
    return settle(call, first, last, is_pool=True)


@handles("matmul mm")
def matmul(call, input, other):
    """A linear layer, if the matrix is a constant."""
    if other.dim() != 2 or list(call.values) != [id(input)]:
        raise Unknown
    call.node.operation = "linear"
    places = linear(call, input, other.t())
    call.node.learns = id(other) in call.learned
    return places


def slide_window(call, input, *window):
    """The places after a window has moved over an input (N, C, H, W)."""
    call.node.window = Window(*(pair(values) for values in window))
    for place, wanted in zip(call.places(input), places_of_map(input.shape)):
        if input.dim() != 4 or not place.equal(wanted):
            what = "something else than (N, C, H, W)"
            raise Unknown(f"'{call.node.operation}' of {what}")
    return places_of_map(call.output.shape)


@handles("conv2d")
def convolve(call, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    kernel = tuple(weight.shape[2:])
    call.note_weight(weight)
    call.node.groups = groups
    if padding == "same":  # what is odd of it comes after the last row and column
        padding = [d * (k - 1) // 2 for d, k in zip(pair(dilation), kernel)]
    padding = 0 if padding == "valid" else padding
    return slide_window(call, input, kernel, stride, padding, dilation)


@handles("avg_pool2d")
def avg_pool(call, input, kernel_size, stride=None, padding=0, *args, **kwargs):
    return slide_window(call, input, kernel_size, stride or kernel_size, padding)


@handles("max_pool2d max_pool2d_with_indices")
def max_pool(
    call, input, kernel_size, stride=None, padding=0, dilation=1, *args, **kwargs
):
    window = (kernel_size, stride or kernel_size, padding, dilation)
    return slide_window(call, input, *window)


@handles("adaptive_avg_pool2d adaptive_max_pool2d adaptive_max_pool2d_with_indices")
def pool_to_size(call, input, *args, **kwargs):
    kernel = []
    for size, wanted in zip(input.shape[2:], call.output.shape[2:]):
        if size % wanted:
            what = f"a map of {size} pooled to {wanted}"
            raise Unknown(f"{what} has windows of two sizes")
        kernel.append(size // wanted)
    return slide_window(call, input, kernel, kernel)


@handles("pad")
def add_border(call, input, pad, mode="constant", value=None):
    if mode not in ("constant", "reflect", "replicate"):
        raise Unknown(f"the receptive field of {mode} padding is not known")
    left, _, top, _ = [*pad, 0, 0][:4]
    return slide_window(call, input, 1, 1, (top, left))


@handles("softmax log_softmax")
def softmax(call, input, dim=None, *args, **kwargs):
    if dim is None:  # what PyTorch takes then, with a warning
        dim = 0 if input.dim() in (0, 1, 3) else 1
    if any(varies(place, dim) for place in call.places(input)):
        raise Unknown(f"'{call.node.operation}' along height or width")
    return call.places(input)


@handles("normalize")
def divide_by_length(call, input, p=2.0, dim=1, *args, **kwargs):
    return softmax(call, input, dim)


@handles("cat concat concatenate stack")
def join(call, tensors, dim=0, axis=None):
    shape = call.output.shape
    dim = (dim if axis is None else axis) % len(shape)

    def in_a_slice(place):
        if call.node.operation == "stack":
            return place.unsqueeze(dim)
        if varies(place, dim):
            raise Unknown("joined along height or width")
        return place.narrow(dim, 0, 1)

    return [place.expand(shape) for place in shared_places(call, in_a_slice)]


def handler_of(function):
    """What says how a function moves the map; None where it is not known."""
    return HANDLERS.get(function, (None, None))[1]


OF_MAPS = (convolve, avg_pool, max_pool, pool_to_size)  # from maps (N, C, H, W) to maps
KEEP_AXES = (pointwise, normalise)  # elements stay where those of the argument are
