"""Bars and curves: the best heads with their intervals and null, and recall against the number of masked heads.

Intervals are drawn wherever the table has them; what the picture aggregates itself it says in its hover. It must never
know an analysis.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import stats
from workbench.errors import InputError
from workbench.plots import columns, theme

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.tables import HeadTable


def bars(table: HeadTable, k: int = 20, *, title: str | None = None) -> go.Figure:
    """The k best heads as bars, best on top, with their intervals and, where measured, their null mean.

    Intervals are `ci_low` to `ci_high`, or one standard error either way where there is no interval.
    """
    import plotly.graph_objects as go

    best = table.top(k)
    letter = "G" if table.row_kind == "kv_group" else "H"
    names = [f"L{layer} {letter}{head}" for layer, head in best]
    score = best["score"]
    low = np.where(np.isnan(best["ci_low"]), score - best["stderr"], best["ci_low"])
    high = np.where(np.isnan(best["ci_high"]), score + best["stderr"], best["ci_high"])
    hover = [
        f"<b>{name}</b><br>score {value:.4g}" + ("" if np.isnan(a) else f"<br>interval {a:.4g} to {b:.4g}")
        for name, value, a, b in zip(names, score, low, high, strict=True)
    ]
    fig = go.Figure(layout={"template": theme.template()})
    fig.add_trace(
        go.Bar(
            x=_plain(score),
            y=names,
            orientation="h",
            marker={"color": theme.LINES[5]},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": _plain(np.maximum(high - score, 0)),
                "arrayminus": _plain(np.maximum(score - low, 0)),
                "color": theme.INK,
                "thickness": 1.2,
                "width": 3,
            },
            text=hover,
            textposition="none",
            hovertemplate="%{text}<extra></extra>",
            name="score",
        )
    )
    null = best["null_mean"]
    if not np.isnan(null).all():
        fig.add_trace(
            go.Scatter(
                x=_plain(null),
                y=names,
                mode="markers",
                marker={"symbol": "line-ns-open", "size": 14, "line": {"width": 2.5, "color": theme.LINES[1]}},
                hovertemplate="null mean %{x:.4g}<extra></extra>",
                name="null mean",
            )
        )
    unit = f" ({table.meta['unit']})" if table.meta["unit"] else ""
    named = theme.name_of(table.meta)
    fig.update_layout(
        title=f"{named} · best {len(best)}" if title is None else title,
        width=640,
        height=max(260, 120 + 24 * len(best)),
        showlegend=bool((~np.isnan(null)).any()),
        bargap=0.25,
    )
    said = theme.wrapped(f"{table.meta['metric']}{unit}", 480)
    fig.update_xaxes(title={"text": said, "standoff": 12}, automargin=True)
    fig.update_yaxes(type="category", autorange="reversed", showgrid=False, dtick=1, automargin=True)
    return fig


def intervals(
    data: Any,
    *,
    labels: str | Sequence[str],
    value: str,
    low: str = "ci_low",
    high: str = "ci_high",
    most: int = 60,
    title: str | None = None,
) -> go.Figure:
    """One point with its interval per row, in the table's order: conditions beside each other.

    Args:
        labels: the columns that name a row; parts that are missing or the same in every row are left out. Rows of one
            name (random draws) stand on one line, without their intervals.
        most: how many names at most, the first; the title says how many there are.

    Raises:
        InputError: a column is missing, or no row has a value.
    """
    import plotly.graph_objects as go

    by = (labels,) if isinstance(labels, str) else tuple(labels)
    table = columns.take(data, *by, value, low, high)
    middle, lowest, highest = (columns.numbers(name, table[name]) for name in (value, low, high))
    if not np.isfinite(middle).any():
        raise InputError(f"No row has a {value}, so there is nothing to draw.")
    telling = [name for name in by if len({str(word) for word in table[name]}) > 1] or [by[0]]
    words = [_name(telling, [table[name][row] for name in telling]) for row in range(len(middle))]
    every = list(dict.fromkeys(words))
    shown = every[:most]
    count = {name: words.count(name) for name in shown}
    rows = [row for row, name in enumerate(words) if name in count and np.isfinite(middle[row])]
    fig = go.Figure(layout={"template": theme.template()})
    for several, said in ((True, "draws"), (False, "mean and interval")):
        mine = [row for row in rows if (count[words[row]] > 1) == several]
        if not mine:
            continue
        bound = np.isfinite(lowest[mine]) & np.isfinite(highest[mine]) & (not several)
        arms = {
            "array": _plain(np.where(bound, np.maximum(highest[mine] - middle[mine], 0), np.nan)),
            "arrayminus": _plain(np.where(bound, np.maximum(middle[mine] - lowest[mine], 0), np.nan)),
        }
        hover = [
            f"<b>{escape(words[row])}</b><br>{escape(value)} {middle[row]:.4g}"
            + (f"<br>interval {lowest[row]:.4g} to {highest[row]:.4g}" if np.isfinite(lowest[row]) else "")
            for row in mine
        ]
        fig.add_trace(
            go.Scatter(
                x=_plain(middle[mine]),
                y=[escape(words[row]) for row in mine],
                mode="markers",
                marker={
                    "size": 8 if several else 10,
                    "symbol": "circle-open" if several else "circle",
                    "color": theme.LINES[4 if several else 0],
                },
                error_x={
                    "type": "data",
                    "symmetric": False,
                    **arms,
                    "color": theme.INK,
                    "thickness": 1.2,
                    "width": 4,
                    "visible": bool(bound.any()),
                },
                text=hover,
                hovertemplate="%{text}<extra></extra>",
                name=said,
            )
        )
    more = f" · first {len(shown)} of {len(every)}" if len(every) > len(shown) else ""
    fig.update_layout(
        title=(f"{escape(value)} by {escape(', '.join(telling))}" if title is None else title) + more,
        width=760,
        height=max(240, 130 + 24 * len(shown)),
        showlegend=len(list(fig.select_traces())) > 1,
    )
    inside = middle[rows]
    whole = inside.min() >= 0 and 0.5 < inside.max() <= 1  # shares; small ones are shown larger
    fig.update_xaxes(title=escape(value), range=[-0.03, 1.03] if whole else None, rangemode="tozero")
    ends = {"categoryorder": "array", "categoryarray": [escape(name) for name in shown]}
    fig.update_yaxes(type="category", autorange="reversed", dtick=1, automargin=True, **ends)
    return fig


def _name(columns_: Sequence[str], values: Sequence[Any]) -> str:
    """`zero, k 4`: words as they are, numbers with the name of their column, nothing for what is missing."""
    parts = []
    for name, value in zip(columns_, values, strict=True):
        missing = value is None or (isinstance(value, (float, np.floating)) and np.isnan(value))
        if not missing and str(value):
            parts.append(f"{name} {value:g}" if isinstance(value, (int, float, np.number)) else str(value))
    return ", ".join(parts) or "–"


def curves(
    data: Any,
    *,
    x: str = "k",
    y: str = "recall",
    group: str | Sequence[str] = "group",
    low: str = "ci_low",
    high: str = "ci_high",
    stderr: str = "stderr",
    title: str | None = None,
    seed: int = 0,
) -> go.Figure:
    """One line per group with its 95% interval as a band: what masking k heads does, found heads against random ones.

    A table with `low` and `high` columns, or with `stderr` (1.96 of them either way), is drawn as it is, one row per
    point. Without them, rows that share group and x are averaged, and the band is a bootstrap interval over them.

    Args:
        group: the column that tells the lines apart, or several whose words are joined.
    """
    import plotly.graph_objects as go

    by = (group,) if isinstance(group, str) else tuple(group)
    table = columns.take(data, x, y, *by, optional=(low, high, stderr))
    fig = go.Figure(layout={"template": theme.template()})
    across, values = columns.numbers(x, table[x]), columns.numbers(y, table[y])
    labels = np.array([" ".join(map(str, words)) for words in zip(*(table[name] for name in by), strict=True)])
    names = list(dict.fromkeys(labels.tolist()))
    edges = None
    if low in table and high in table:
        edges = columns.numbers(low, table[low]), columns.numbers(high, table[high])
    elif stderr in table:
        half = 1.96 * columns.numbers(stderr, table[stderr])
        edges = values - half, values + half
    for at, name in enumerate(names):
        mine = (labels == name) & ~np.isnan(across)
        if edges is not None:
            points = _given(name, across[mine], values[mine], edges[0][mine], edges[1][mine])
        else:
            points = _averaged(across[mine], values[mine], seed)
        _line(fig, name, at, x, y, *points)
    fig.update_layout(title=f"{escape(y)} by {escape(x)}" if title is None else title, width=760, height=440)
    if len(names) > 3:  # above the picture they would run into its title
        room = 60 + 8 * max(map(len, names))
        beside = {"orientation": "v", "x": 1.02, "xanchor": "left", "y": 1.0, "yanchor": "top"}
        fig.update_layout(legend=beside, width=760 + min(room, 320), height=max(440, 120 + 21 * len(names)))
    fig.update_xaxes(title=x)
    fig.update_yaxes(title=y, rangemode="tozero")
    return fig


Points = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # x, y, low, high, n


def _given(name: str, x: np.ndarray, y: np.ndarray, low: np.ndarray, high: np.ndarray) -> Points:
    order = np.argsort(x, kind="stable")
    if len(np.unique(x)) != len(x):
        raise InputError(
            f"Group {name!r} has several rows for one point, and each with an interval; give one row per point, "
            "or leave the interval columns out to have them averaged."
        )
    return x[order], y[order], low[order], high[order], np.full(len(x), np.nan)


def _averaged(x: np.ndarray, y: np.ndarray, seed: int) -> Points:
    places = np.unique(x)
    mean, low, high, n = (np.full(len(places), np.nan) for _ in range(4))
    for at, place in enumerate(places):
        here = y[x == place]
        mean[at], n[at] = stats.mean(here), (~np.isnan(here)).sum()
        low[at], high[at] = stats.bootstrap_ci(here, seed=seed)
    return places, mean, low, high, n


def _line(
    fig: go.Figure,
    name: str,
    at: int,
    x_name: str,
    y_name: str,
    x: np.ndarray,
    y: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    n: np.ndarray,
) -> None:
    import plotly.graph_objects as go

    colour, dash = theme.LINES[at % len(theme.LINES)], ("solid", "dash", "dot")[at // len(theme.LINES) % 3]
    band = ~np.isnan(low) & ~np.isnan(high)
    if band.sum() > 1:
        fig.add_trace(
            go.Scatter(
                x=_plain(np.concatenate([x[band], x[band][::-1]])),
                y=_plain(np.concatenate([high[band], low[band][::-1]])),
                mode="lines",
                fill="toself",
                fillcolor=theme.faded(colour, 0.18),
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
                legendgroup=name,
            )
        )
    hover = []
    for i in range(len(x)):
        text = f"<b>{escape(name)}</b><br>{escape(x_name)} {x[i]:g}<br>{escape(y_name)} {y[i]:.4g}"
        text += f"<br>interval {low[i]:.4g} to {high[i]:.4g}" if band[i] else ""
        hover.append(text + (f"<br>n {int(n[i])}" if not np.isnan(n[i]) else ""))
    fig.add_trace(
        go.Scatter(
            x=_plain(x),
            y=_plain(y),
            mode="lines+markers",
            line={"color": colour, "width": 2, "dash": dash},
            marker={"size": 6},
            name=escape(name),
            legendgroup=name,
            text=hover,
            hovertemplate="%{text}<extra></extra>",
        )
    )


def _plain(values: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
