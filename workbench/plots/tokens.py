"""Tokens shaded by the attention they get, and the patches of a picture: what heads look at, as one reads it.

HTML without scripts, styles of its own or anything fetched; every text is escaped. A shade is one colour, more or less
opaque, so that text keeps the colour of the page around it, light or dark; all heads of an example share one scale for
tokens and one for patches. Where there are several answer tokens, a token is shaded by the most that any of them gives;
below, each answer token by itself. It must never know how rows were captured.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from workbench.errors import InputError
from workbench.plots import columns, theme

COLUMNS = ("example", "id", "layer", "head", "step", "says", "key", "token", "row", "column", "weight")
SHADE = theme.LINES[1]
MOST_OPAQUE = 0.7  # text on the strongest shade is still read on a light and on a dark page
PICTURE = "attention_picture_"
_WHOLE = 400  # tokens up to which a prompt is shown whole
_AROUND = 8  # tokens beside a heavy one, in a longer prompt
_HEAVY = 0.02  # of the strongest weight
_SIDE = 200  # pixels of a picture
_MUTED = "opacity:.75;font-size:12px"


@dataclass(frozen=True)
class Shaded:
    """HTML that a notebook shows; `str(shaded)` is the HTML."""

    html: str

    def _repr_html_(self) -> str:
        return self.html

    def __str__(self) -> str:
        return self.html


@dataclass(frozen=True)
class Rows:
    """One example of a table `attention`.

    Attributes:
        heads: in the order of the table, the best first.
        weights: `[head, step, key]`, NaN where the table has no row.
        says: by step, what the model said there; empty texts where it was not asked to answer.
        places: `[key, 2]` row and column in the picture's grid; -1 for text.
    """

    name: str
    heads: list[tuple[int, int]]
    weights: np.ndarray
    says: list[str]
    tokens: list[str]
    places: np.ndarray

    @property
    def is_image(self) -> np.ndarray:
        return self.places[:, 0] >= 0

    def grid(self, weight: np.ndarray) -> np.ndarray:
        """`[row, column]` of the weights `[key]` on the picture."""
        at = self.places[self.is_image]
        found = np.full(at.max(axis=0) + 1, np.nan)
        found[at[:, 0], at[:, 1]] = weight[self.is_image]
        return found


def tokens(data: Any, *, pictures: Mapping[str, Any] | None = None, example: int | None = None) -> Shaded:
    """Every kept example's tokens, shaded by the attention of each kept head.

    Args:
        data: a table `attention`, as analyses make it with `keep_patterns`.
        pictures: what the model saw, uint8 `[height, width, 3]` by name; of other arrays among them no notice is taken.
        example: only this one, counted from 0.

    Example:
        >>> wb.plots.tokens(result.tables["attention"], pictures=result.arrays)  # doctest: +SKIP

    Raises:
        InputError: a column is missing, the table is empty, or there is no such example.
    """
    found = examples(data)
    if example is not None and example not in found:
        raise InputError(f"There is no example {example}; attention was kept of {', '.join(map(str, found))}.")
    chosen = found if example is None else {example: found[example]}
    drawn = [_example(rows, (pictures or {}).get(f"{PICTURE}{at}")) for at, rows in chosen.items()]
    return Shaded("".join(drawn))


def examples(data: Any) -> dict[int, Rows]:
    """The examples of a table `attention`, by number."""
    table = columns.take(data, *COLUMNS)
    numbers = {name: columns.numbers(name, table[name]) for name in ("example", "layer", "head", "step", "key")}
    numbers |= {name: columns.numbers(name, table[name]) for name in ("row", "column", "weight")}
    if not len(numbers["key"]):
        raise InputError("The table of attention has no rows, so there is nothing to draw.")
    if not all(np.isfinite(values).all() for name, values in numbers.items() if name != "weight"):
        raise InputError("A row of the table of attention lacks its example, layer, head, step, key, row or column.")
    whole = {name: values.astype(int) for name, values in numbers.items() if name != "weight"}
    if min(whole["step"].min(), whole["key"].min(), whole["row"].min() + 1, whole["column"].min() + 1) < 0:
        raise InputError("Steps and keys of a table of attention count from 0, rows and columns from 0 or -1 for text.")
    made = {}
    for at in dict.fromkeys(whole["example"].tolist()):
        here = np.flatnonzero(whole["example"] == at)
        mine = {name: values[here] for name, values in whole.items()}
        made[at] = _rows(mine, {name: table[name][here] for name in ("id", "says", "token")}, numbers["weight"][here])
    return made


def _rows(at: Mapping[str, np.ndarray], text: Mapping[str, np.ndarray], weight: np.ndarray) -> Rows:
    heads = list(dict.fromkeys(zip(at["layer"].tolist(), at["head"].tolist(), strict=True)))
    number = {head: i for i, head in enumerate(heads)}
    n_steps, n_keys = int(at["step"].max()) + 1, int(at["key"].max()) + 1
    weights = np.full((len(heads), n_steps, n_keys), np.nan)
    which = [number[head] for head in zip(at["layer"].tolist(), at["head"].tolist(), strict=True)]
    weights[which, at["step"], at["key"]] = weight
    says, words, places = [""] * n_steps, [""] * n_keys, np.full((n_keys, 2), -1)
    for some, texts, column in ((says, text["says"], at["step"]), (words, text["token"], at["key"])):
        for place, row in zip(*np.unique(column, return_index=True), strict=True):
            some[int(place)] = str(texts[row] or "")
    places[at["key"]] = np.stack([at["row"], at["column"]], axis=1)
    return Rows(str(text["id"][0]), heads, weights, says, words, places)


def _example(rows: Rows, picture: Any) -> str:
    most = np.max(np.nan_to_num(rows.weights, nan=0.0), axis=1)  # [head, key]: a key that no row sees gets no shade
    on_image = most[:, rows.is_image]
    high, patch = float(most[:, ~rows.is_image].max(initial=0.0)), float(on_image.max(initial=0.0))
    answer, several = "".join(rows.says).strip(), len(rows.says) > 1
    words = [f"answers <q>{escape(answer)}</q>" if answer else "at the end of the prompt"]
    words += [f"shaded by the most that any of its {len(rows.says)} tokens gives"] if several else []
    words.append(f"strongest token {high:.2g}")
    pictured = picture is not None and bool(rows.is_image.any())
    words += [f"strongest patch {patch:.2g}"] if pictured else []
    blocks = []
    for at, (layer, head) in enumerate(rows.heads):
        share = f' <span style="{_MUTED}">{on_image[at].sum():.1%} on the image</span>' if rows.is_image.any() else ""
        text = _line(_items(rows, most[at]), high, whole=most.shape[1] <= _WHOLE)
        if pictured:
            patches = _patches(rows.grid(most[at]), patch)
            text = f'<div style="display:flex;flex-wrap:wrap;gap:14px">{patches}<div>{text}</div></div>'
        if several:
            text += _by_step(rows, at, high)
        look = "line-height:1.9;max-width:70em"
        blocks.append(
            f'<div style="margin:10px 0"><b>L{layer} H{head}</b>{share}<div style="{look}">{text}</div></div>'
        )
    uri = f";--picture:url({_data_uri(picture)})" if pictured else ""
    return (
        f'<div style="color:inherit;margin:8px 0 20px{uri}"><p><b>{escape(rows.name)}</b> · {"; ".join(words)}</p>'
        f"{''.join(blocks)}</div>"
    )


def _by_step(rows: Rows, at: int, high: float) -> str:
    """What each token of the answer gives, of one head; folded away."""
    lines = (
        f"<div>{escape(_visible(said)) or '?'} &larr; {_line(_items(rows, row), high, whole=False, around=2)}</div>"
        for said, row in zip(rows.says, np.nan_to_num(rows.weights[at], nan=0.0), strict=True)
    )
    return f'<details><summary style="{_MUTED}">each token of the answer</summary>{"".join(lines)}</details>'


Item = tuple[str, float, bool]  # text, weight, whether it stands for the image


def _items(rows: Rows, weight: np.ndarray) -> list[Item]:
    """The tokens, those of the image together as one."""
    items: list[Item] = []
    for word, value, is_image in zip(rows.tokens, weight.tolist(), rows.is_image.tolist(), strict=True):
        if is_image and items and items[-1][2]:
            items[-1] = ("image", items[-1][1] + value, True)
        else:
            items.append(("image" if is_image else word, value, is_image))
    return items


def _line(items: Sequence[Item], high: float, *, whole: bool, around: int = _AROUND) -> str:
    """Shaded tokens; of a long prompt those near a heavy one, and what lies between as a count and a sum."""
    heavy = [at for at, (_, value, is_image) in enumerate(items) if is_image or (high and value >= _HEAVY * high)]
    near = {at + by for at in heavy for by in range(-around, around + 1)}
    parts: list[str] = []
    left: list[float] = []
    for at, (word, value, is_image) in enumerate(items):
        if not whole and at not in near:
            left.append(value)
            continue
        parts += _gap(left)
        left = []
        parts.append(_token(word, value, high, is_image))
    return f'<span style="white-space:pre-wrap;overflow-wrap:anywhere">{"".join([*parts, *_gap(left)])}</span>'


def _gap(left: Sequence[float]) -> Iterable[str]:
    if left:
        words = "1 token" if len(left) == 1 else f"{len(left):,} tokens"
        yield f' <span style="{_MUTED}">[{words}, {sum(left):.2g} together]</span> '


def _token(word: str, value: float, high: float, is_image: bool) -> str:
    if is_image:
        return f' <span style="{_MUTED}">[{escape(word)} {value:.2g}]</span> '
    shade = shaded(value / high if high else 0.0)
    look = f' style="background:{shade};border-radius:3px"' if shade else ""
    title = f' title="{value:.3g}"' if shade else ""
    return f"<span{look}{title}>{escape(_visible(word))}</span>"


def shaded(share: float) -> str:
    """The shade of a share of the strongest weight, as `#rrggbbaa`; empty where it could not be seen."""
    opacity = round(255 * MOST_OPAQUE * min(max(share, 0.0), 1.0))
    return f"{SHADE}{opacity:02x}" if opacity > 1 else ""


def _patches(grid: np.ndarray, high: float) -> str:
    """The picture with its grid over it."""
    cells = []
    for row, values in enumerate(grid):
        for column, value in enumerate(values):
            shade = shaded(value / high) if high and np.isfinite(value) else ""
            look = f' style="background:{shade}"' if shade else ""
            cells.append(f'<i{look} title="row {row}, column {column}: {value:.3g}"></i>')
    look = (
        f"display:grid;grid-template:repeat({grid.shape[0]},1fr)/repeat({grid.shape[1]},1fr);width:{_SIDE}px;"
        f"height:{_SIDE}px;background:var(--picture) 0 0/100% 100%;image-rendering:pixelated;flex:none"
    )
    return f'<div role="img" aria-label="attention on the picture" style="{look}">{"".join(cells)}</div>'


def _visible(word: str) -> str:
    return word.replace("\n", "⏎").replace("\t", "⇥")


def _data_uri(picture: Any) -> str:
    from PIL import Image

    pixels = np.asarray(picture)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise InputError(
            f"A picture of kept attention has shape {pixels.shape} and type {pixels.dtype}; it is uint8 "
            "[height, width, 3]."
        )
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
