"""Heatmaps: layer x head for any column of a head table, and the hatched cells that every heatmap here is made of.

Undefined cells are grey and hatched, never the colour of zero. Cells stay at least 9 pixels wide, so that 80 x 64 heads
remain readable. It must never know how a score came about.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import stats
from workbench.errors import InputError
from workbench.export import colours
from workbench.plots import theme

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.tables import HeadTable

_HOVER = {
    "score": "score",
    "stderr": "standard error",
    "ci_low": "interval",
    "n": "n",
    "null_mean": "null mean",
    "null_p": "p",
    "q": "q",
    "rank": "rank",
}
_ALPHA = 0.05


def heads(
    table: HeadTable, *, column: str = "score", title: str | None = None, scale: colours.Scale = "auto"
) -> go.Figure:
    """Layer x head heatmap of a column; a dot marks the heads whose score beats its null.

    A head beats its null where q < 0.05, of the column `q` or, without one, of `null_p` over all heads
    (Benjamini-Hochberg). Uncertainty and significance are on hover.

    Args:
        column: any numeric column, extra ones too.
        scale: "auto" centres a two-sided scale on zero when the values are signed, and is one-sided otherwise;
            "sequential" and "diverging" decide it.
    """
    if column not in table.columns or table.columns[column].dtype == object:
        table[column]  # raises with the names there are, when there is no such column
        raise InputError(f"Column {column!r} holds text; a heatmap needs numbers.")
    if scale not in ("auto", "sequential", "diverging"):
        raise InputError(f"scale={scale!r} is unknown; use 'auto', 'sequential' or 'diverging'.")
    grid = table.matrix(column)
    q = significance(table)
    letter = "kv group" if table.row_kind == "kv_group" else "head"
    unit = f" ({table.meta['unit']})" if column == "score" and table.meta["unit"] else ""
    cell = min(int(np.clip(760 // max(side, 1), 9, 34)) for side in (table.n_heads, table.n_layers))
    height = max(300, 130 + cell * table.n_layers)
    fig = cells(
        grid,
        x=list(range(table.n_heads)),
        y=list(range(table.n_layers)),
        hover=_head_hover(table, column, q),
        bar=theme.wrapped(f"{column.replace('_', ' ')}{unit}", height - 150),
        scale=scale,
    )
    if column == "score" and q is not None:
        _dots(fig, table, q, cell)
    fig.update_layout(
        title=theme.name_of(table.meta) if title is None else title,
        width=max(460, 190 + cell * table.n_heads),
        height=height,
    )
    fig.update_xaxes(title=letter, dtick=colours.tick_step(table.n_heads), range=[-0.5, table.n_heads - 0.5])
    fig.update_yaxes(title="layer", dtick=colours.tick_step(table.n_layers), range=[table.n_layers - 0.5, -0.5])
    return fig


def significance(table: HeadTable) -> np.ndarray | None:
    """q of every row: the column of that name, else from `null_p` over the rows that are ok; None without either."""
    if "q" in table.columns and table.columns["q"].dtype.kind == "f":
        return table["q"]
    p = np.where(table.ok, table["null_p"], np.nan)
    return None if np.isnan(p).all() else stats.benjamini_hochberg(p)


def cells(
    values: np.ndarray,
    *,
    x: list[Any],
    y: list[Any],
    hover: np.ndarray,
    bar: str,
    scale: colours.Scale,
    limits: tuple[float, float] | None = None,
) -> go.Figure:
    """A heatmap whose undefined cells are hatched; `hover` has a text for each."""
    import plotly.graph_objects as go

    low, high, stops = colours.scale(values, scale)
    low, high = limits or (low, high)
    undefined = np.isnan(values)
    # An infinite score has no place on a scale and JSON no word for it: it takes the end's colour, and its own hover.
    drawn = np.clip(values, low, high)
    gap = 1 if max(values.shape, default=0) <= 40 else 0.5
    # The gaps show the background: a line between cells, so that cells near white keep their outline.
    fig = go.Figure(layout={"template": theme.template(), "plot_bgcolor": theme.GRID})
    fig.add_trace(
        go.Heatmap(
            z=_json_grid(drawn),
            x=x,
            y=y,
            zmin=low,
            zmax=high,
            colorscale=theme.colorscale(stops),
            text=hover,
            hovertemplate="%{text}<extra></extra>",
            xgap=gap,
            ygap=gap,
            colorbar={"title": {"text": bar, "side": "right"}, "thickness": 14, "outlinewidth": 0},
        )
    )
    if undefined.any():
        _hatch(fig, undefined, x, y, hover, gap)
    fig.update_xaxes(showgrid=False)
    fig.update_yaxes(showgrid=False)
    return fig


def _hatch(fig: go.Figure, undefined: np.ndarray, x: list[Any], y: list[Any], hover: np.ndarray, gap: float) -> None:
    """Grey cells with a stroke through each: a second heatmap that covers only the undefined cells."""
    import plotly.graph_objects as go

    fig.add_trace(
        go.Heatmap(
            z=_json_grid(np.where(undefined, 0.0, np.nan)),
            x=x,
            y=y,
            zmin=0,
            zmax=1,
            colorscale=[[0, colours.UNDEFINED], [1, colours.UNDEFINED]],
            showscale=False,
            text=np.where(undefined, hover, None),  # type: ignore[arg-type]  # hovers of the others are in the file once
            hovertemplate="%{text}<extra></extra>",
            xgap=gap,
            ygap=gap,
        )
    )
    row, column = np.nonzero(undefined)
    fig.add_trace(
        go.Scatter(
            x=[x[at] for at in column],
            y=[y[at] for at in row],
            mode="markers",
            marker={
                "symbol": "line-ne-open",
                "size": int(np.clip(420 // max(undefined.shape), 6, 22)),
                "line": {"width": 1.5, "color": colours.HATCH},
                "color": colours.HATCH,
            },
            hoverinfo="skip",
            name="undefined",
            showlegend=False,
        )
    )


def _dots(fig: go.Figure, table: HeadTable, q: np.ndarray, cell: int) -> None:
    """A dot in each cell that beats its null, and one word about it; without such cells the title's line says so."""
    import plotly.graph_objects as go

    rows = np.flatnonzero((q < _ALPHA) & table.ok)
    index = table["kv_group"] if table.row_kind == "kv_group" else table["head"]
    if rows.size:
        size = int(np.clip(cell // 4, 3, 7))
        ring = {"width": 1, "color": theme.PAPER}
        fig.add_trace(
            go.Scatter(
                x=index[rows].tolist(),
                y=table["layer"][rows].tolist(),
                mode="markers",
                marker={"symbol": "circle", "size": size, "color": theme.INK, "line": ring},
                hoverinfo="skip",
                name="beats its null",
                showlegend=False,
            )
        )
    said = f"● {rows.size} of {int(table.ok.sum())} beat their null (q < {_ALPHA:g})" if rows.size else ""
    fig.add_annotation(
        text=said or f"none beats its null (q < {_ALPHA:g})",
        x=0,
        y=1,
        xref="paper",
        yref="paper",
        xanchor="left",
        yanchor="bottom",
        showarrow=False,
        font={"size": 12, "color": theme.MUTED},
    )


def _head_hover(table: HeadTable, column: str, q: np.ndarray | None) -> np.ndarray:
    """One text per cell: where it is and every number that is defined there."""
    kv = table.row_kind == "kv_group"
    index = table["kv_group"] if kv else table["head"]
    texts = np.full(table.shape, "no row", dtype=object)
    for row in range(len(table)):
        value = {name: values[row] for name, values in table.columns.items()}
        value["q"] = np.nan if q is None else q[row]
        where = f"<b>layer {value['layer']}, {'kv group' if kv else 'head'} {index[row]}</b>"
        lines = [where]
        if not kv and value["kv_group"] >= 0:
            lines.append(f"kv group {value['kv_group']}")
        if column not in _HOVER:
            lines.append(f"{escape(column)} {number(float(value[column]))}")
        for name, label in _HOVER.items():
            if not np.isnan(value[name]):
                upper = f" to {number(value['ci_high'])}" if name == "ci_low" else ""
                lines.append(f"{label} {number(value[name])}{upper}")
        lines.append(f"status: {escape(str(value['status']))}")
        texts[value["layer"], index[row]] = "<br>".join(lines)
    return texts


def number(value: float) -> str:
    return "undefined" if np.isnan(value) else f"{value:.4g}"


def _json_grid(values: np.ndarray) -> list[list[float | None]]:
    return [[None if np.isnan(value) else float(value) for value in row] for row in values]
