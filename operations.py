"""How each of PyTorch's operations moves a map: for graph.py, which sees them run.

Names and arguments are those of torch.ops.aten. What is not here is not known.
"""

import math
from itertools import chain

from dimensions import (
    Unknown,
    Window,
    as_map,
    axis_of,
    factor,
    map_part,
    map_size,
    numel,
    pair,
    replaced,
)

MEET = "branches of different size meet"

# How each operation moves the map: a handler returns what the output's dimensions hold,
# and notes window and weight in the call's node, before it raises Unknown for the rest.
HANDLERS = {}


def handles(*operations):
    """Register a handler for these operations."""

    def register(handler):
        HANDLERS.update(dict.fromkeys(operations, handler))
        return handler

    return register


# Normalisations are here: statistics are left out of a receptive field, as is usual.
@handles("batch_norm", "batch_norm_legit", "batch_norm_legit_no_training")
@handles("batch_norm_with_update", "group_norm", "layer_norm", "fused_rms_norm")
@handles("detach", "alias", "to_copy", "lift_fresh", "contiguous", "dropout")
@handles("channel_shuffle")
def keep(call):
    return call.dims


@handles("copy")
def overwrite(call):
    source = call.values.get(id(call.arguments["src"]))
    if source:  # what was there before is gone
        call.values, call.node.sources = {0: source}, [source.node]
    return pointwise(call)


@handles("hardswish", "prelu_kernel", "log_sigmoid_forward", "rrelu_with_noise")
@handles("expand", "fill", "zero")
def pointwise(call):
    """Also registered for whatever PyTorch itself calls pointwise."""
    values = list(call.values.values())
    if call.node.operation in ("mul", "div"):
        # A gate, averaged over the map, weighs what it multiplies and adds no view.
        maps = [value for value in values if map_size(value.dims) != (1, 1)]
        if maps:
            values, call.node.sources = maps, [value.node for value in maps]
    if len({map_size(value.dims) for value in values}) > 1:
        raise Unknown(MEET)
    dims = [()] * call.output.dim()
    for value in values:
        first = len(dims) - len(value.dims)
        for index, dim in enumerate(value.dims, first):
            if dims[index] and dim and map_part(dims[index]) != map_part(dim):
                raise Unknown("height meets width or channels")
            dims[index] = dims[index] or dim
    for index, size in enumerate(call.output.shape):
        if not dims[index]:
            dims[index] = factor(None, size)  # repeated
    return tuple(dims)


@handles("view", "unsafe_view", "reshape_alias", "reshape", "flatten", "unflatten")
@handles("squeeze", "unsqueeze")
def regroup(call):
    """The factors stay in order: channels may be split anew, height and width may not."""
    factors = []
    for label, size in chain.from_iterable(call.dims):
        if factors and label is None and factors[-1][0] is None:
            size *= factors.pop()[1]
        factors.append((label, size))
    factors.reverse()
    dims = []
    for length in call.output.shape:
        dim = []
        while length > 1:
            label, size = factors.pop()
            if length % size == 0:
                dim.append((label, size))
                length //= size
            elif label is None and size % length == 0:
                dim.append((None, length))
                factors.append((None, size // length))
                length = 1
            else:
                raise Unknown("a reshape takes the map apart")
        dims.append(tuple(dim))
    return tuple(dims)


@handles("as_strided")
def restride(call):
    """Only as a reshape of what has no height and width any more."""
    if map_size(call.dims) != (1, 1) or call.output.numel() != numel(call.dims):
        raise Unknown("the receptive field of 'as_strided' is not known")
    return as_map(call.output.shape)


@handles("permute")
def permute(call):
    return tuple(call.dims[index] for index in call.arguments["dims"])


@handles("transpose", "t")
def transpose(call):
    dims = list(call.dims)
    if len(dims) > 1:
        first, second = call.arguments.get("dim0", 0), call.arguments.get("dim1", 1)
        dims[first], dims[second] = dims[second], dims[first]
    return tuple(dims)


@handles("mean", "sum", "amax", "amin", "max", "min", "var", "std")
def reduce(call):
    """Over height or width: the window is the whole map on that axis."""
    dims, rank = call.dims, len(call.dims)
    chosen = call.arguments.get("dim")
    chosen = [chosen] if isinstance(chosen, int) else chosen
    chosen = {index % rank for index in chosen or range(rank)}
    gone = tuple(dims[index] for index in sorted(chosen))
    if map_part(chain.from_iterable(gone)) or (rank == 4 and chosen & {2, 3}):
        call.node.window = Window(map_size(gone), map_size(gone))
    if call.arguments.get("keepdim"):
        return tuple(() if i in chosen else dim for i, dim in enumerate(dims))
    return tuple(dim for i, dim in enumerate(dims) if i not in chosen)


@handles("mm", "addmm")
def multiply(call):
    """A linear layer: over height and width too, where they are in what it sums over."""
    is_biased = call.node.operation == "addmm"
    left = call.arguments["mat1" if is_biased else "self"]
    right = call.arguments["mat2"]
    if list(call.values) != [id(left)]:
        raise Unknown("a matrix is computed from the image")
    rows, summed = call.dims
    call.node.operation = "linear"
    call.node.weight = (right.shape[1], right.shape[0])
    call.node.window = Window(map_size([summed]), map_size([summed]))
    return rows, factor(None, right.shape[1])


def require_map(call):
    """Raise Unknown where the dimensions are not (N, C, H, W)."""
    dims = call.dims
    if len(dims) != 4 or map_part(dims[0] + dims[1]):
        raise Unknown(f"'{call.node.operation}' of something else than (N, C, H, W)")
    if (axis_of(dims, 2), axis_of(dims, 3)) != (0, 1):
        raise Unknown(f"'{call.node.operation}' of a transposed map")


@handles("convolution")
def convolve(call):
    arguments, weight = call.arguments, call.arguments["weight"]
    if arguments["transposed"] or weight.dim() != 4:
        raise Unknown("the receptive field of this convolution is not known")
    node, kernel = call.node, tuple(weight.shape[2:])
    node.operation, node.weight = "conv2d", tuple(weight.shape)
    node.groups = arguments["groups"]
    settings = (arguments[name] for name in ("stride", "padding", "dilation"))
    node.window = Window(kernel, *map(pair, settings))
    if id(weight) in call.values:
        raise Unknown("a kernel is computed from the image")
    require_map(call)
    return as_map(call.output.shape)


@handles("max_pool2d", "avg_pool2d")
def pool(call):
    kernel = pair(call.arguments["kernel_size"])
    stride = pair(call.arguments["stride"] or kernel)
    padding = pair(call.arguments["padding"])
    dilation = pair(call.arguments.get("dilation", 1))
    call.node.window = Window(kernel, stride, padding, dilation)
    require_map(call)
    return as_map(call.output.shape)


@handles("adaptive_avg_pool2d", "adaptive_max_pool2d")
def pool_to_size(call):
    require_map(call)
    before, after = map_size(call.dims), tuple(call.output.shape[2:])
    kernel = []
    for size, wanted in zip(before, after):
        if size % wanted:
            raise Unknown(
                f"a map of {size} pooled to {wanted} has windows of two sizes"
            )
        kernel.append(size // wanted)
    call.node.window = Window(tuple(kernel), tuple(kernel))
    return as_map(call.output.shape)


def shift(call, axis, size, offset, stride=1):
    """Note a window of one pixel, that begins at an offset; returns the new dimension."""
    old = call.node.window or Window((1, 1), (1, 1))
    strides, padding = list(old.stride), list(old.padding)
    strides[axis], padding[axis] = stride, -offset
    call.node.window = Window((1, 1), tuple(strides), tuple(padding))
    return factor("hw"[axis], size)


@handles("constant_pad_nd", "reflection_pad2d", "replication_pad2d")
def pad(call):
    dims = call.dims
    sides = call.arguments.get("pad") or call.arguments["padding"]
    for number in range(len(sides) // 2):  # from the last dimension on
        index, before = len(dims) - 1 - number, sides[2 * number]
        size = call.output.shape[index]
        if before or sides[2 * number + 1]:
            axis = axis_of(dims, index)
            new = factor(None, size)
            if axis is not None:
                new = shift(call, axis, size, -before)
            dims = replaced(dims, index, new)
    return dims


@handles("slice", "select")
def cut(call):
    index, dims = call.dim(), call.dims
    is_slice = call.node.operation == "slice"
    length = math.prod(size for _, size in dims[index])
    size = call.output.shape[index] if is_slice else 1
    if is_slice and size == length:
        return dims
    axis = axis_of(dims, index)
    new = factor(None, size)
    if axis is not None:
        offset = call.arguments["start" if is_slice else "index"] or 0
        offset = max(offset + length, 0) if offset < 0 else offset
        new = shift(call, axis, size, offset, call.arguments.get("step", 1))
    return replaced(dims, index, *([new] if is_slice else []))


@handles(
    "split", "split_with_sizes", "unbind", "softmax", "log_softmax", "safe_softmax"
)
def along_channels(call):
    index = call.dim()
    if map_part(call.dims[index]):
        raise Unknown(f"'{call.node.operation}' along height or width")
    if call.node.operation == "unbind":
        return replaced(call.dims, index)
    return replaced(call.dims, index, factor(None, call.output.shape[index]))


@handles("cat", "stack")
def join(call):
    values = list(call.values.values())
    index = call.arguments["dim"] % call.output.dim()
    if len({map_size(value.dims) for value in values}) > 1:
        raise Unknown(MEET)
    new = factor(None, call.output.shape[index])
    if call.node.operation == "stack":
        dims = (*call.dims[:index], new, *call.dims[index:])
    else:
        dims = replaced(call.dims, index, new)
    if map_size(dims) != map_size(call.dims):
        raise Unknown("joined along height or width")
    return dims
