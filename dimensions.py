"""What the dimensions of a tensor hold of a map, as operations.py reads it off each call."""

import math
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch


class Window(NamedTuple):
    """What an output unit reads of the input's map: pairs (H, W), in input units."""

    kernel: tuple
    stride: tuple
    padding: tuple = (0, 0)  # before the first row and column; negative where cut off
    dilation: tuple = (1, 1)


class Unknown(Exception):
    """Raised by a handler: why the receptive field isn't known from here on."""


class Value(NamedTuple):
    """A tensor that depends on the image: what made it, and what its dimensions hold.

    Each dimension is a tuple of factors (label, size) in order, label "h", "w" or None
    for channels; factors of size 1, as the batch, are left out. (1, C, H, W) flattened
    is ((), ((None, C), ("h", H), ("w", W))).
    """

    node: Any
    dims: tuple


@dataclass
class Call:
    """An operation that ran, as its handler sees it."""

    node: Any  # the new node; the handler writes what it knows there
    arguments: dict  # by name
    values: dict  # by id of the tensor, those arguments that depend on the image
    output: torch.Tensor

    @property
    def dims(self):
        """What the dimensions of the first argument hold."""
        return next(iter(self.values.values())).dims

    def dim(self, name="dim"):
        """A dimension that is an argument, counted from the front."""
        return self.arguments[name] % len(self.dims)


def map_part(dim):
    """The factors of the map, h and w, in a dimension."""
    return [factor for factor in dim if factor[0]]


def map_size(dims):
    """(H, W) of the map that the dimensions hold."""
    sizes = dict(chain.from_iterable(dims))
    return sizes.get("h", 1), sizes.get("w", 1)


def numel(dims):
    """The number of elements of a tensor with these dimensions."""
    return math.prod(size for _, size in chain.from_iterable(dims))


def factor(label, size):
    """A dimension that holds a single factor."""
    return ((label, size),) if size > 1 else ()


def as_map(shape):
    """The dimensions of a shape (N, C, H, W); of another, as if all were channels."""
    labels = (None, None, "h", "w") if len(shape) == 4 else (None,) * len(shape)
    return tuple(factor(label, size) for label, size in zip(labels, shape))


def axis_of(dims, index):
    """0 where a dimension is the map's height, 1 for its width, None for channels."""
    if len(dims) == 4 and index >= 2 and not dims[index]:
        return index - 2  # a map of size 1
    if not map_part(dims[index]):
        return None
    if len(dims[index]) > 1:
        raise Unknown("height or width are cut while merged with another dimension")
    return "hw".index(dims[index][0][0])


def replaced(dims, index, *new):
    """The dimensions with others in the place of one."""
    return (*dims[:index], *new, *dims[index + 1 :])


def pair(values):
    """(H, W) of an argument with one value or two."""
    values = values if isinstance(values, (list, tuple)) else [values]
    return tuple(values) if len(values) == 2 else (values[0], values[0])
