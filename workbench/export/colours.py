"""Colour scales for values, as plain hex and arithmetic, shared by the HTML tables and the plotly figures.

Safe for the common colour-vision deficiencies: a single-hue scale whose lightness falls steadily, and a blue-red scale
around zero. It must never import a plotting library.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Scale = Literal["auto", "sequential", "diverging"]

SEQUENTIAL = ("#f7fbff", "#deebf7", "#c6dbef", "#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#08519c", "#08306b")
DIVERGING = ("#053061", "#2166ac", "#4393c3", "#92c5de", "#f7f7f7", "#f4a582", "#d6604d", "#b2182b", "#67001f")
UNDEFINED = "#d3d3d3"
HATCH = "#6b6b6b"
LINE = "#e4e7eb"  # between cells

# A table counts as signed when its lowest value is below this share of its largest magnitude: learned gates that end a
# hair under zero are not signed effects.
_SIGNED = -0.01


def scale(values: np.ndarray, kind: Scale = "auto") -> tuple[float, float, tuple[str, ...]]:
    """(lowest, highest, colours) of the finite values: symmetric around zero when signed, else as they lie."""
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return 0.0, 1.0, SEQUENTIAL
    low, high = float(finite.min()), float(finite.max())
    reach = max(abs(low), abs(high))
    if kind == "diverging" or (kind == "auto" and low < _SIGNED * reach):
        return (-reach, reach, DIVERGING) if reach else (-1.0, 1.0, DIVERGING)
    low = min(low, 0.0) if low < 0.5 * high else low  # start at zero unless that would waste half the scale
    return (low, high, SEQUENTIAL) if high > low else (low, low + 1.0, SEQUENTIAL)


def colour(value: float, low: float, high: float, stops: tuple[str, ...]) -> str:
    """The colour of a value on a scale, as #rrggbb; values beyond the ends take the end's colour."""
    place = float(np.clip((value - low) / (high - low), 0.0, 1.0)) * (len(stops) - 1)
    at = min(int(place), len(stops) - 2)
    first, second = rgb(stops[at]), rgb(stops[at + 1])
    mixed = (round(a + (b - a) * (place - at)) for a, b in zip(first, second, strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def tick_step(count: int, most: int = 20) -> int:
    """1, 2, 4, 8, ...: the smallest that leaves at most `most` labels."""
    step = 1
    while count / step > most:
        step *= 2
    return step


def rgb(stop: str) -> tuple[int, int, int]:
    """`#rrggbb` as three numbers."""
    return int(stop[1:3], 16), int(stop[3:5], 16), int(stop[5:7], 16)
