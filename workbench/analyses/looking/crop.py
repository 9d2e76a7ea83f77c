"""The part of a picture to look at again: the window in which a map stands out most.

Paper: Zhang et al. 2025, arXiv 2502.17422. For each ratio r = 1, 1.2, ..., 2 a window of r times the model's input side
slides over the map, cell by cell. Its best place is where the map's sum in it is largest; how well it stands out there
is that sum, less the mean of the sums one cell to the left, right, above and below, per cell of the window. The ratio
that stands out most wins, the smaller one at a tie. A picture no larger than the model's input is kept whole.

Arrays and boxes (fractions of the picture) only; nothing here knows a model.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from workbench.analyses.looking.grid import WHOLE
from workbench.errors import InputError
from workbench.tasks.images import Box

RATIOS = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0)


def attended_box(
    values: Float[np.ndarray, "rows columns"],
    size: tuple[int, int],
    *,
    base: int,
    view: Box = WHOLE,
    ratios: tuple[float, ...] = RATIOS,
) -> Box:
    """The box to crop, in fractions of the picture; all that the map covers where every window would be as large.

    Args:
        values: the map; undefined cells count as 0.
        size: width and height of the picture in pixels.
        base: side of the model's input in pixels.
        view: the part of the picture that the map covers.

    Raises:
        InputError: a map that is not two-dimensional, no ratio, or a side that is not positive.
    """
    if values.ndim != 2 or not values.size or not ratios or min(ratios) <= 0 or base < 1:
        raise InputError(
            f"A crop needs a map [rows, columns], positive ratios and a base of at least 1 pixel, not a map of shape "
            f"{values.shape}, ratios {ratios} and base {base}."
        )
    known = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    rows, columns = known.shape
    cell = (view[2] - view[0]) * size[0] / columns, (view[3] - view[1]) * size[1] / rows  # pixels across and down
    best: tuple[float, Box] | None = None
    for ratio in ratios:
        across, down = (min(int(base * ratio / pixels), n) for pixels, n in zip(cell, (columns, rows), strict=True))
        if across < 1 or down < 1:  # the window is smaller than a cell
            across, down = max(across, 1), max(down, 1)
        if (down, across) == known.shape:
            continue
        sums = window_sums(known, (down, across))
        y, x = np.unravel_index(int(sums.argmax()), sums.shape)
        beside = [
            sums[i, j]
            for i, j in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))
            if 0 <= i < sums.shape[0] and 0 <= j < sums.shape[1]
        ]
        stands_out = float(sums[y, x] - np.mean(beside)) / (across * down)
        if best is None or stands_out > best[0]:
            middle = (x + across / 2) / columns, (y + down / 2) / rows
            best = stands_out, _around(middle, (base * ratio / size[0], base * ratio / size[1]), view)
    return _clipped(view) if best is None else best[1]


def window_sums(values: Float[np.ndarray, "rows columns"], window: tuple[int, int]) -> np.ndarray:
    """Sum of the map in every window of (down, across) cells, by the window's upper left cell."""
    return np.lib.stride_tricks.sliding_window_view(values, window).sum(axis=(2, 3))


def _around(middle: tuple[float, float], sides: tuple[float, float], view: Box) -> Box:
    """A box of these sides around `middle` (fractions of the view), moved to where it lies inside the view."""
    seen = _clipped(view)
    edges = []
    for axis in (0, 1):
        first, last = seen[axis], seen[axis + 2]
        side = min(sides[axis], last - first)
        centre = view[axis] + middle[axis] * (view[axis + 2] - view[axis])
        start = min(max(centre - side / 2, first), last - side)
        edges.append((start, start + side))
    return edges[0][0], edges[1][0], edges[0][1], edges[1][1]


def _clipped(view: Box) -> Box:
    left, top, right, bottom = view
    return max(left, 0.0), max(top, 0.0), min(right, 1.0), min(bottom, 1.0)
