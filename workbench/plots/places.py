"""Values by place: recall by length and depth of a needle, and what patching does by layer and position.

Cells without a row are hatched, never the colour of zero. It must never know how a value came about.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import InputError
from workbench.export import colours
from workbench.plots import columns, heatmap

if TYPE_CHECKING:
    import plotly.graph_objects as go


def grid(
    data: Any, *, x: str = "length", y: str = "depth", value: str = "recall", title: str | None = None
) -> go.Figure:
    """Mean of a value by length and depth (the needle-in-a-haystack picture); cells without a sample are hatched.

    Raises:
        InputError: a column is missing, or no row has all three.
    """
    table = columns.take(data, x, y, value)
    found = {name: columns.numbers(name, values) for name, values in table.items()}
    placed = ~np.isnan(found[x]) & ~np.isnan(found[y])
    across, column = np.unique(found[x][placed], return_inverse=True)
    down, row = np.unique(found[y][placed], return_inverse=True)
    values = found[value][placed]
    defined = ~np.isnan(values)
    total, count = np.zeros((len(down), len(across))), np.zeros((len(down), len(across)))
    np.add.at(total, (row[defined], column[defined]), values[defined])
    np.add.at(count, (row[defined], column[defined]), 1)
    if not count.any():
        raise InputError(f"No row has {x}, {y} and {value} all defined, so there is nothing to draw.")
    mean = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    hover = np.array(
        [
            [
                f"{escape(x)} {across[j]:g}<br>{escape(y)} {down[i]:g}<br>"
                f"{escape(value)} {heatmap.number(mean[i, j])}<br>n {int(count[i, j])}"
                for j in range(len(across))
            ]
            for i in range(len(down))
        ],
        dtype=object,
    ).reshape(mean.shape)
    reach = _whole(value, mean)
    fig = heatmap.cells(
        mean,
        x=[f"{place:g}" for place in across],
        y=[f"{place:g}" for place in down],
        hover=hover,
        bar=escape(value),
        scale="auto",
        limits=reach,
    )
    fig.update_layout(
        title=f"{escape(value)} by {escape(x)} and {escape(y)}" if title is None else title,
        width=max(460, 190 + 44 * len(across)),
        height=max(300, 130 + 34 * len(down)),
    )
    fig.update_xaxes(title=x, type="category")
    fig.update_yaxes(title=y, type="category", autorange="reversed")
    return fig


def _whole(value: str, mean: np.ndarray) -> tuple[float, float] | None:
    """The whole range of a share, or of a percentage where the name says so: 100 % everywhere is no pale picture."""
    if np.isnan(mean).all() or np.nanmin(mean) < 0:
        return None
    top = float(np.nanmax(mean))
    if top <= 1:
        return 0.0, 1.0
    return (0.0, 100.0) if top <= 100 and value in ("recall", "accuracy") else None


def positions(data: Any, *, value: str = "score", component: str | None = None, title: str | None = None) -> go.Figure:
    """Layer x position heatmap of one component (what patching one position at a time does); a row per head for heads.

    Args:
        data: columns component, layer, position and `value`; optional index (a head, -1 for a whole layer), stderr, n.
        component: which of them; the first in the table by default, and the title says which.

    Raises:
        InputError: no such component, or no rows.
    """
    table = columns.take(data, "component", "layer", "position", value, optional=("index", "stderr", "n"))
    names = list(dict.fromkeys(str(name) for name in table["component"]))
    which = component if component is not None else (names[0] if names else "")
    if which not in names:
        raise InputError(f"The table has no component {which!r}; it has {', '.join(names) or 'no rows'}.")
    rows = [at for at, name in enumerate(table["component"]) if str(name) == which]
    index = table["index"] if "index" in table else np.full(len(table["layer"]), -1)
    places = [(int(table["layer"][at]), int(index[at])) for at in rows]
    down = {place: row for row, place in enumerate(sorted(set(places)))}
    across = {int(at): column for column, at in enumerate(sorted({int(table["position"][at]) for at in rows}))}
    values = columns.numbers(value, table[value])
    grid = np.full((len(down), len(across)), np.nan)
    hover = np.full(grid.shape, "not patched", dtype=object)
    for at, place in zip(rows, places, strict=True):
        cell = down[place], across[int(table["position"][at])]
        grid[cell] = values[at]
        lines = [
            f"<b>{_place(place)}, position {int(table['position'][at])}</b>",
            f"{escape(value)} {heatmap.number(values[at])}",
        ]
        lines += [f"{name} {heatmap.number(float(table[name][at]))}" for name in ("stderr", "n") if name in table]
        hover[cell] = "<br>".join(lines)
    labels = [_place(place) for place in down]
    fig = heatmap.cells(
        grid, x=list(range(len(across))), y=list(range(len(down))), hover=hover, bar=escape(value), scale="auto"
    )
    side = int(np.clip(900 // max(len(across), 1), 9, 34))
    tall = int(np.clip(900 // max(len(down), 1), 9, 34))
    said = f"{escape(which)} by position"
    others = [name for name in names if name != which]
    fig.update_layout(
        title=said + (f" (also there: {escape(', '.join(others))})" if others else "") if title is None else title,
        width=max(460, 210 + side * len(across)),
        height=max(260, 130 + tall * len(down)),
    )
    x, y = (
        list(range(0, len(across), colours.tick_step(len(across)))),
        range(0, len(down), colours.tick_step(len(down))),
    )
    at = list(across)
    fig.update_xaxes(title="position", tickvals=x, ticktext=[str(at[column]) for column in x])
    fig.update_yaxes(title=escape(which), tickvals=list(y), ticktext=[labels[row] for row in y], automargin=True)
    fig.update_yaxes(range=[len(down) - 0.5, -0.5])
    return fig


def _place(place: tuple[int, int]) -> str:
    layer, index = place
    return f"layer {layer}" if index < 0 else f"L{layer} H{index}"
