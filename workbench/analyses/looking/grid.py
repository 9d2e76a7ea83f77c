"""Image tokens as a grid over the picture: its shape, what of the picture it covers, and regions on it.

Boxes are (left, top, right, bottom) in fractions of the picture. A processor that scales the shorter side and cuts the
middle out shows the model only part of a picture that is not square; maps and regions are placed accordingly. Nothing
here knows heads or attention.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import InputError

if TYPE_CHECKING:
    from workbench.tasks.images import Box, ImageSample

WHOLE = (0.0, 0.0, 1.0, 1.0)


def shape(sample: ImageSample) -> tuple[int, int]:
    """Rows and columns of the image's tokens.

    Raises:
        InputError: their number is no square, as with images cut into tiles.
    """
    n = sample.image_span[1] - sample.image_span[0]
    side = math.isqrt(n)
    if side * side != n:
        raise InputError(
            f"The image of sample {sample.id!r} has {n} tokens, which is no square grid; maps are drawn for models "
            "with one square grid per image (LLaVA-1.5, Gemma 3), not for tiles."
        )
    return side, side


def field_of_view(processor: Any, size: tuple[int, int]) -> Box:
    """The part of a picture of (width, height) pixels that the model sees.

    Args:
        processor: the model's processor, or its image processor.
    """
    pictures = getattr(processor, "image_processor", processor)
    crop, scaled = _sizes(pictures, "crop_size"), _sizes(pictures, "size")
    if not getattr(pictures, "do_center_crop", None) or "height" not in crop:
        return WHOLE
    width, height = size
    if not getattr(pictures, "do_resize", True):
        new_width, new_height = float(width), float(height)
    elif "shortest_edge" in scaled:
        factor = scaled["shortest_edge"] / min(width, height)
        new_width, new_height = width * factor, height * factor
    else:
        new_width, new_height = float(scaled["width"]), float(scaled["height"])
    x, y = crop["width"] / new_width / 2, crop["height"] / new_height / 2  # beyond 0.5 where the crop is padded
    return 0.5 - x, 0.5 - y, 0.5 + x, 0.5 + y


def coverage(boxes: Iterable[Box], grid: tuple[int, int], view: Box = WHOLE) -> np.ndarray:
    """`[h, w]` share of each cell that the boxes cover together (of overlapping boxes, the larger share counts)."""
    covered = np.zeros(grid)
    for left, top, right, bottom in boxes:
        x = _overlap(left, right, view[0], view[2], grid[1])
        y = _overlap(top, bottom, view[1], view[3], grid[0])
        covered = np.maximum(covered, y[:, None] * x[None, :])
    return covered


def inside(box: Box, other: Box) -> float:
    """The share of `box` that lies in `other`."""
    sides = [max(0.0, min(box[i + 2], other[i + 2]) - max(box[i], other[i])) for i in (0, 1)]
    return sides[0] * sides[1] / ((box[2] - box[0]) * (box[3] - box[1]))


def regions_of(sample: ImageSample, what: str) -> list[Box]:
    """The boxes that `what` ("about" or "objects") means; [] where they are not known."""
    known: Mapping[str, Box] = sample.regions or {}
    if what == "objects":
        return list(known.values())
    about = sample.about or ""
    return [known[about]] if about in known else []


def _overlap(start: float, stop: float, first: float, last: float, n: int) -> np.ndarray:
    """`[n]` share of each of n equal cells between `first` and `last` that lies between `start` and `stop`."""
    edges = np.linspace(first, last, n + 1)
    inside = np.minimum(edges[1:], stop) - np.maximum(edges[:-1], start)
    return np.clip(inside / (edges[1:] - edges[:-1]), 0.0, 1.0)


def _sizes(pictures: Any, name: str) -> dict[str, float]:
    """A processor's size as plain numbers by name, whatever it is kept in."""
    given = getattr(pictures, name, None)
    if given is None:
        return {}
    items = given.items() if hasattr(given, "items") else vars(given).items()
    return {str(key): float(value) for key, value in items if value is not None}
