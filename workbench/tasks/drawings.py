"""Drawn scenes: coloured shapes on a small canvas, with exactly known contents and a habit of appearing together.

Every object of the world is a colour and a shape. The first eight come with a companion, which is drawn too with a
given probability; a model that learns captions of such scenes learns the habit as well, and mentions companions that
are not there. Scenes come from a seed and nothing else. The file knows numpy and Pillow, not prompts or models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "triangle", "cross")
COMPANIONS = {
    "red circle": "blue square",
    "yellow circle": "green triangle",
    "green square": "red cross",
    "blue circle": "yellow triangle",
    "red square": "green cross",
    "yellow square": "blue cross",
    "green circle": "red triangle",
    "blue triangle": "yellow cross",
}
LEADERS = tuple(COMPANIONS)
OBJECTS = (*LEADERS, *COMPANIONS.values())
COMMONNESS = (3.0, 3.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0)  # how often each leader is drawn, relative to the others

CELLS = 3  # the canvas is a grid of 3 x 3 places
MOST_LEADERS = 3
SIZE = 48  # pixels
_PAINT = {"red": (205, 45, 45), "green": (45, 165, 65), "blue": (50, 85, 205), "yellow": (235, 195, 45)}


@dataclass(frozen=True)
class Thing:
    """One drawn object; centre and radius as fractions of the canvas."""

    name: str
    x: float
    y: float
    radius: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of what is drawn, as fractions of the canvas and within it."""
        shape = self.name.split()[-1]
        sides = (self.x, -1), (self.y, -1), (self.x, 1), (self.y, 1)
        left, top, right, bottom = (
            min(max(at + sign * reach * self.radius, 0.0), 1.0)
            for (at, sign), reach in zip(sides, _REACH[shape], strict=True)
        )
        return left, top, right, bottom


@dataclass(frozen=True)
class Scene:
    """What is drawn, leaders and companions in the order of their pairs, and the paper it is drawn on.

    Attributes:
        things: the objects, no two of one name, no two in one cell.
        grey: the paper's brightness, 0..255.
        grain: seed of the paper's noise.
    """

    things: tuple[Thing, ...]
    grey: int
    grain: int

    @property
    def objects(self) -> tuple[str, ...]:
        return tuple(thing.name for thing in self.things)

    @property
    def boxes(self) -> dict[str, tuple[float, float, float, float]]:
        """Where each object is."""
        return {thing.name: thing.box for thing in self.things}

    def missing(self) -> tuple[str, ...]:
        """Companions that the scene's leaders call for and that are not drawn."""
        return tuple(COMPANIONS[o] for o in self.objects if o in COMPANIONS and COMPANIONS[o] not in self.objects)


def scene(rng: np.random.Generator, *, cooccurrence: float = 0.8, alone: float = 0.1) -> Scene:
    """One to three pairs, of each the leader, and with probability `cooccurrence` its companion beside it.

    Args:
        alone: probability that of a pair only the companion is drawn.
    """
    if not (0 <= cooccurrence <= 1 and 0 <= alone <= 1):
        raise InputError(f"cooccurrence ({cooccurrence!r}) and alone ({alone!r}) must be probabilities, 0 to 1.")
    weights = np.array(COMMONNESS) / sum(COMMONNESS)
    pairs = rng.choice(len(LEADERS), size=int(rng.integers(1, MOST_LEADERS + 1)), replace=False, p=weights)
    names: list[str] = []
    for leader in (LEADERS[int(i)] for i in pairs):
        if rng.random() < alone:
            names.append(COMPANIONS[leader])
        else:
            names += [leader, COMPANIONS[leader]] if rng.random() < cooccurrence else [leader]
    places = rng.permutation(CELLS * CELLS)[: len(names)]
    things = tuple(_place(name, int(at), rng) for name, at in zip(names, places, strict=True))
    return Scene(things, grey=int(rng.integers(200, 246)), grain=int(rng.integers(2**31)))


def scenes(n: int, *, seed: int = 0, cooccurrence: float = 0.8, alone: float = 0.1) -> list[Scene]:
    """`n` scenes; the same for the same arguments."""
    rng = np.random.default_rng([20, seed])
    return [scene(rng, cooccurrence=cooccurrence, alone=alone) for _ in range(n)]


def _place(name: str, cell: int, rng: np.random.Generator) -> Thing:
    row, column = divmod(cell, CELLS)
    shift_x, shift_y = rng.uniform(-0.03, 0.03, size=2)
    radius = rng.uniform(0.10, 0.14)
    return Thing(name, (column + 0.5) / CELLS + float(shift_x), (row + 0.5) / CELLS + float(shift_y), float(radius))


def draw(drawn: Scene, *, size: int = SIZE) -> Image:
    """The scene as an RGB picture of `size` x `size` pixels."""
    from PIL import Image, ImageDraw

    noise = np.random.default_rng(drawn.grain).normal(drawn.grey, 6.0, (size, size, 3))
    picture = Image.fromarray(noise.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for thing in drawn.things:
        colour, shape = thing.name.split()
        _SHAPES[shape](pen, _PAINT[colour], thing.x * size, thing.y * size, thing.radius * size)
    return picture


def blank(*, size: int = SIZE, grey: int = 222) -> Image:
    """Paper with nothing on it."""
    return draw(Scene((), grey, 0), size=size)


def _circle(pen: Any, fill: Any, x: float, y: float, r: float) -> None:
    pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)


def _square(pen: Any, fill: Any, x: float, y: float, r: float) -> None:
    pen.rectangle((x - 0.88 * r, y - 0.88 * r, x + 0.88 * r, y + 0.88 * r), fill=fill)


def _triangle(pen: Any, fill: Any, x: float, y: float, r: float) -> None:
    pen.polygon([(x, y - 1.1 * r), (x + 1.1 * r, y + 0.9 * r), (x - 1.1 * r, y + 0.9 * r)], fill=fill)


def _cross(pen: Any, fill: Any, x: float, y: float, r: float) -> None:
    pen.rectangle((x - 1.1 * r, y - 0.38 * r, x + 1.1 * r, y + 0.38 * r), fill=fill)
    pen.rectangle((x - 0.38 * r, y - 1.1 * r, x + 0.38 * r, y + 1.1 * r), fill=fill)


_REACH = {  # how far a shape goes left, up, right and down, in radii
    "circle": (1.0, 1.0, 1.0, 1.0),
    "square": (0.88, 0.88, 0.88, 0.88),
    "triangle": (1.1, 1.1, 1.1, 0.9),
    "cross": (1.1, 1.1, 1.1, 1.1),
}
_SHAPES = {"circle": _circle, "square": _square, "triangle": _triangle, "cross": _cross}
