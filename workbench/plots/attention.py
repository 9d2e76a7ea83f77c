"""Attention over tokens for chosen heads: a square of query rows by key columns per head, with the tokens on the axes.

Every row is a distribution, so all panels share one scale, from 0 to the largest weight shown. It must never know how
the weights were captured.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import InputError
from workbench.export import colours
from workbench.plots import heatmap, theme

if TYPE_CHECKING:
    import plotly.graph_objects as go

_ACROSS = 3
_MOST = 12
_LABELS = 48  # tokens up to which each has its label
_WIDE = 14  # characters of a label
_SHOWN = str.maketrans({"\n": "⏎", "\t": "⇥", " ": "·"})


def attention(
    pattern: Any,
    tokens: Sequence[str],
    *,
    heads: Sequence[tuple[int, int]] | None = None,
    queries: Sequence[int] | None = None,
    title: str | None = None,
) -> go.Figure:
    """Attention pattern of one text for one or several heads.

    Args:
        pattern: `[query, key]`, or `[head, query, key]` with `heads`; weights from 0 to 1, NaN where undefined.
        tokens: the text of each position, as many as there are keys.
        heads: (layer, head) of each pattern, for the panels' titles.
        queries: rows to show (all by default), counted from 0.

    Raises:
        InputError: shapes that do not fit, weights outside 0 to 1, more than 12 heads, or a position that is not there.
    """
    from plotly.subplots import make_subplots

    weights = np.asarray(pattern, dtype=np.float64)
    weights = weights[None] if weights.ndim == 2 else weights
    _check(weights, tokens, heads)
    n_heads, n_queries, n_keys = weights.shape
    rows = list(range(n_queries)) if queries is None else [int(row) for row in queries]
    for row in rows:
        if not 0 <= row < n_queries:
            raise InputError(f"There is no query position {row}; the pattern has {n_queries}, counted from 0.")
    first = n_keys - n_queries  # where a pattern is of the last positions only, its rows are those tokens
    words = [f"{at} {escape(str(token).translate(_SHOWN))}" for at, token in enumerate(tokens)]
    across, down = min(n_heads, _ACROSS), -(-n_heads // _ACROSS)
    named = [f"L{layer} H{head}" for layer, head in heads] if heads is not None else [""] * n_heads
    side = int(np.clip(900 / across / n_keys, 5, 26))
    label = 7 * min(max(map(len, words)), _WIDE + 4)
    wide, tall = max(side * n_keys, 160), max(side * len(rows), 60)
    width, height = 150 + label + (wide + 24) * across, 110 + label + (tall + 44) * down
    fig: Any = make_subplots(
        rows=down,
        cols=across,
        subplot_titles=named if any(named) else None,
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=24 / ((wide + 24) * across),
        vertical_spacing=44 / ((tall + 44) * down),
    )
    fig.update_layout(template=theme.template(), plot_bgcolor=theme.GRID)
    high = float(np.nanmax(weights[:, rows], initial=0.0)) or 1.0
    for at in range(n_heads):
        shown = weights[at, rows]
        fig.add_heatmap(
            z=[[None if np.isnan(value) else float(value) for value in row] for row in shown],
            x=words,  # numbered, so no two are the same category
            y=[words[first + row] for row in rows],
            hovertemplate=f"<b>{named[at]}</b><br>from %{{y}}<br>to %{{x}}<br>weight %{{z:.4g}}<extra></extra>",
            coloraxis="coloraxis",
            xgap=0.5,
            ygap=0.5,
            row=at // across + 1,
            col=at % across + 1,
        )
    ticks = list(range(0, n_keys, colours.tick_step(n_keys, _LABELS)))
    x = {"tickvals": ticks, "ticktext": [_short(words[key]) for key in ticks], "tickangle": -60}
    at = list(range(0, len(rows), colours.tick_step(len(rows), _LABELS)))
    y = {"tickvals": at, "ticktext": [_short(words[first + rows[row]]) for row in at], "automargin": True}
    small = {"tickfont": {"size": 11 if side >= 12 else 9}, "ticks": "", "showgrid": False}
    fig.update_xaxes(type="category", range=[-0.5, n_keys - 0.5], automargin=True, **x, **small)
    fig.update_yaxes(type="category", range=[len(rows) - 0.5, -0.5], **y, **small)
    fig.update_yaxes(title="query (from)", col=1)
    for col in range(1, across + 1):  # the lowest panel of every column has the labels
        last = down if (down - 1) * across + col <= n_heads else down - 1
        fig.update_xaxes(title="key (to)", showticklabels=True, row=last, col=col)
    fig.update_layout(
        title=title if title is not None else "attention",
        width=int(width),
        height=int(height),
        coloraxis={
            "cmin": 0.0,
            "cmax": high,
            "colorscale": theme.colorscale(colours.SEQUENTIAL),
            "colorbar": {"title": {"text": "weight", "side": "right"}, "thickness": 14, "outlinewidth": 0},
        },
    )
    return fig


def _short(word: str) -> str:
    return word if len(word) <= _WIDE + 4 else word[: _WIDE + 3].partition("&")[0] + "…"


def _check(weights: np.ndarray, tokens: Sequence[str], heads: Sequence[tuple[int, int]] | None) -> None:
    if weights.ndim != 3 or not weights.size:
        raise InputError(f"An attention pattern has shape {weights.shape}; give [query, key] or [head, query, key].")
    n_heads, n_queries, n_keys = weights.shape
    if len(tokens) != n_keys or n_queries > n_keys:
        raise InputError(f"The pattern is of {n_queries} queries by {n_keys} keys, but there are {len(tokens)} tokens.")
    if heads is not None and len(heads) != n_heads:
        raise InputError(f"There are {n_heads} patterns, but {len(heads)} heads are named.")
    if n_heads > _MOST:
        raise InputError(f"{n_heads} heads do not fit one figure; give at most {_MOST}.")
    finite = weights[np.isfinite(weights)]
    if finite.size and (finite.min() < -1e-6 or finite.max() > 1 + 1e-3):
        raise InputError(
            f"Attention weights reach from {heatmap.number(finite.min())} to {heatmap.number(finite.max())}; "
            "they are shares, from 0 to 1."
        )
