"""The augmentation of a whole batch at once: the pixels of albumentations, three times as fast.

Its steps stay the definition: they draw, each for itself and image by image, and the draws are
then carried out for all images together. albumentations spends most of its time around these
draws: checks, copies, and a second matrix for bounding boxes that are not there.
"""

from typing import NamedTuple

import albumentations as A
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from machine import Loader
from utils import UserError

VERSION = "2.0.8"  # of albumentations: what is read here of its steps is this version's
MOVES = (A.Affine, A.ShiftScaleRotate)


class Draw(NamedTuple):
    """What a step drew for a batch: the places of its images in it, and how each changes."""

    step: A.BasicTransform
    places: list
    values: list  # of a move (shift, shear, scale, degrees); of a hole its corners; else None


def is_known(transform):
    """Whether `augment_batch` knows all that a transform does to an image."""
    return (
        A.__version__ == VERSION
        and type(transform) is A.Compose
        and not transform.processors  # of bounding boxes, say
        and all(is_known_step(step) for step in transform.transforms)
    )


def is_known_step(step):
    if type(step) is A.CoarseDropout:
        return not isinstance(step.fill, str)  # "random" and others draw for each pixel
    if type(step) in MOVES:
        return not step.fit_output
    return type(step) is A.HorizontalFlip


def augment_batch(transform, images, places):
    """Augment uint8 images (N, H, W, 3) in place, as `transform(image=...)` does each of them.

    `places` is as from `AugmentedImages.places`: it yields the place of an image when the
    generators of the transform are set for its draws. `is_known` has to hold.
    """
    for draw in draw_batch(transform, places, images.shape[1:]):
        if type(draw.step) is A.HorizontalFlip:
            images[draw.places] = images[draw.places, :, ::-1]
        elif type(draw.step) is A.CoarseDropout:
            cut_holes(draw, images)
        else:
            move(draw, images)


def draw_batch(transform, places, shape):
    """The `Draw` of each step for the images of these places, of a shape (H, W, 3)."""
    draws = [Draw(step, [], []) for step in transform.transforms]
    for place in places:
        if transform.py_random.random() >= transform.p:
            continue
        for draw in draws:
            if draw.step.should_apply():
                draw.places.append(place)
                draw.values.append(draw_values(draw.step, shape))
    return draws


def draw_values(step, shape):
    """What a step draws for an image, in the order of albumentations."""
    if type(step) is A.CoarseDropout:
        return draw_holes(step, shape)
    if type(step) is A.HorizontalFlip:
        return None
    shift = step._get_translate_params(shape)
    shear = step._get_shear_params()
    settings = (step.keep_ratio, step.balanced_scale, step.py_random)
    scale = step._get_scale(step.scale, *settings)
    degrees = step.py_random.uniform(*step.rotate)
    return (*both(shift), *both(shear), *both(scale), degrees)


def draw_holes(step, shape):
    """The holes that a step draws for an image: (left, top, right, bottom) of each."""
    height, width = shape[:2]
    integers = step.random_generator.integers
    count = step.py_random.randint(*step.num_holes_range)
    ranges = step.hole_height_range, step.hole_width_range
    sizes = step.calculate_hole_dimensions(shape, *ranges, size=count)
    heights, widths = (size.tolist() for size in sizes)
    tops = [integers(0, height - size + 1) for size in heights]
    lefts = [integers(0, width - size + 1) for size in widths]
    integers(0, 2**32 - 1)  # albumentations draws a seed, for holes full of noise
    holes = []
    for left, top, wide, high in zip(lefts, tops, widths, heights):
        holes.append((left, top, left + wide, top + high))
    return holes


def both(pair):
    return pair["x"], pair["y"]


def cut_holes(draw, images):
    """Fill the holes of a `Draw` in images (N, H, W, 3)."""
    fill = np.array(draw.step.fill, images.dtype)
    for place, holes in zip(draw.places, draw.values):
        for left, top, right, bottom in holes:
            images[place, top:bottom, left:right] = fill


def move(draw, images):
    """Shift, shear, scale and rotate the images (N, H, W, 3) of a `Draw`."""
    step, (height, width) = draw.step, images.shape[1:3]
    fill = step.fill
    if isinstance(fill, (int, float)):
        fill = [fill] * images.shape[3]
    settings = {"flags": step.interpolation, "borderMode": step.border_mode}
    settings["borderValue"] = fill
    for place, matrix in zip(draw.places, matrices(draw.values, height, width)):
        source, size = images[place], (width, height)
        images[place] = cv2.warpAffine(source, matrix[:2], size, **settings)


def matrices(values, height, width):
    """Where moves take a pixel (x, y, 1): (N, 3, 3), the same bits as albumentations'.

    So its factors are multiplied here in its order: about the middle of the image, scale,
    rotate, shear, shift.
    """
    if not values:
        return np.empty((0, 3, 3))
    shift_x, shift_y, shear_x, shear_y, scale_x, scale_y, degrees = np.array(values).T
    shear_x, shear_y, angle = np.deg2rad([shear_x, shear_y, degrees % 360])
    cos, sin = np.cos(angle), np.sin(angle)
    middle_x, middle_y = width / 2 - 0.5, height / 2 - 0.5
    factors = [
        matrix((1, 0, middle_x), (0, 1, middle_y)),
        matrix((1, 0, shift_x), (0, 1, shift_y)),
        matrix((1, np.tan(shear_x), 0), (np.tan(shear_y), 1, 0)),
        matrix((cos, sin, 0), (-sin, cos, 0)),
        matrix((scale_x, 0, 0), (0, scale_y, 0)),
        matrix((1, 0, -middle_x), (0, 1, -middle_y)),
    ]
    product = factors[0]
    for factor in factors[1:]:
        product = product @ factor
    return product


def matrix(*rows):
    """A 3x3 matrix of two rows and (0, 0, 1), or of arrays of N numbers: (N or 1, 3, 3)."""
    rows = [*rows, (0.0, 0.0, 1.0)]
    entries = np.broadcast_arrays(*(entry for row in rows for entry in row))
    return np.stack(entries, -1).reshape(-1, 3, 3)


def is_known_on_device(transform):
    """Whether `augment_on_device` knows a transform: flips, a move, then holes of one colour."""
    if not is_known(transform):
        return False
    steps = transform.transforms
    moves = [step for step in steps if type(step) in MOVES]
    cuts = [type(step) is A.CoarseDropout for step in steps]
    return (
        all(move.interpolation == cv2.INTER_CUBIC for move in moves)
        and all(move.border_mode == cv2.BORDER_REFLECT_101 for move in moves)
        and all(min(low for low, _ in move.scale.values()) > 0 for move in moves)
        and len(moves) <= 1
        and not any(cuts[:-1])
    )


def draw_for_device(transform, places, count, side):
    """What `augment_on_device` needs besides the images: where pixels come from, and holes.

    The first is (count, 2, 3), float32, and takes a pixel (x, y, 1) of the new image to a
    place in the old one, -1 to 1 from the middle of the first pixel to that of the last; the
    second is (count, holes, 4): left, top, right, bottom. `places` is as in `augment_batch`.
    """
    sources = np.tile(np.eye(3), (count, 1, 1))
    holes = np.zeros((count, 0, 4), np.int64)
    for step, struck, values in draw_batch(transform, places, (side, side, 3)):
        if type(step) is A.HorizontalFlip:
            sources[struck] = sources[struck] @ matrix((-1, 0, side - 1), (0, 1, 0))
        elif type(step) is A.CoarseDropout:
            holes = np.zeros((count, step.num_holes_range[1], 4), np.int64)
            for place, corners in zip(struck, values):
                holes[place, : len(corners)] = corners
        else:
            back = np.linalg.inv(matrices(values, side, side))
            sources[struck] = sources[struck] @ back
    half = (side - 1) / 2
    to_pixels = matrix((half, 0, half), (0, half, half))
    sources = np.linalg.inv(to_pixels) @ sources @ to_pixels
    return torch.from_numpy(sources[:, :2]).float(), torch.from_numpy(holes)


def augment_on_device(images, sources, holes, fill):
    """Augmented images, uint8 (N, 3, side, side), of such images, where these lie.

    `sources` and `holes` are those of `draw_for_device`, `fill` (3, 1, 1) is the holes' colour.
    Of 100,000 values about four are a grey level from those of `augment_batch`.
    """
    grid = F.affine_grid(sources, images.shape, align_corners=True)
    moved = F.grid_sample(
        images.float(), grid, "bicubic", "reflection", align_corners=True
    )
    moved = moved.round().clamp(0, 255)
    if holes.shape[1] > 0:
        place = torch.arange(images.shape[-1], device=images.device)
        left, top, right, bottom = holes[..., None].unbind(2)
        columns = (place >= left) & (place < right)
        rows = (place >= top) & (place < bottom)
        is_hole = (rows[..., :, None] & columns[..., None, :]).any(1, keepdim=True)
        moved = torch.where(is_hole, fill, moved)
    return moved.to(torch.uint8, memory_format=torch.channels_last)  # as a loader's


class Draws(Dataset):
    """What is drawn for the batches of a `dataset.AugmentedImages`, whose keys it takes."""

    def __init__(self, data):
        self.data = data

    def __getitem__(self, key):
        epoch, indices = key
        data, chosen = self.data, torch.tensor(indices)
        places, side = data.places(epoch, indices), data.images.shape[1]
        drawn = draw_for_device(data.transform, places, len(indices), side)
        return (chosen, *drawn), data.labels[chosen]


class OnDevice(Loader):
    """A loader that gets the draws alone: the device holds the images, and makes the pixels."""

    def __init__(self, data, device, **settings):
        super().__init__(Draws(data), **settings)
        self.device = device
        last = data.transform.transforms[-1]
        fill = getattr(last, "fill", 0)  # it may be no hole
        # Copied once: for each batch it would have to wait for the device.
        fill = torch.tensor(fill, dtype=torch.float32, device=device)
        self.fill = fill.view(-1, 1, 1)
        self.images = data.images.permute(0, 3, 1, 2).contiguous().to(device)

    def __iter__(self):
        for drawn, labels in super().__iter__():
            chosen, *drawn = (
                one.to(self.device, non_blocking=self.pin_memory) for one in drawn
            )
            yield augment_on_device(self.images[chosen], *drawn, self.fill), labels


def augments_on_device(choice, data, device):
    """Whether the device makes the pixels of `AugmentedImages`, of the choices of --augment.

    Raises UserError where it is asked to and cannot.
    """
    can = is_known_on_device(data.transform)
    if choice == "device" and not can:
        raise UserError(
            "--augment device knows flips, then one move, cubic and reflected at the "
            "borders, then holes of one colour: leave it out"
        )
    if choice != "auto" or device.type != "cuda" or not can:
        return choice == "device"
    free, _ = torch.cuda.mem_get_info(device)
    return data.images.nbytes < free / 4
