"""What was found held against something else: a circuit's size, a reference, another table.

    faithfulness    f of the best k nodes by their share, beside random sets of the same size
    roc             true against false positives, every threshold
    scatter         the scores of two tables, head by head

Points are the tables' rows; areas under curves are the only thing computed here. It must never know an analysis.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import InputError
from workbench.plots import columns, theme

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.tables import HeadTable

_DASHES = ("solid", "dash", "dot", "dashdot")
_MARKERS = {"circuit": ("star", 15, theme.INK), "complement": ("x", 10, theme.INK)}


def faithfulness(
    curve: Any, sets: Any = None, *, panel: str = "ablation", line: str = "ranking", title: str | None = None
) -> go.Figure:
    """Faithfulness against size: one panel per ablation, one line per ranking, with the circuit and random sets.

    Args:
        curve: columns size (a share), f, and optionally `panel` and `line`.
        sets: columns set, share, f, and optionally `panel` and stderr. Rows "random" become their middle 95% at their
            size (a band, where there are several sizes), rows "circuit" and "complement" marks with 1.96 standard
            errors; other rows are left out.

    Raises:
        InputError: a column is missing, or there is no defined point.
    """
    from plotly.subplots import make_subplots

    points = columns.take(curve, "size", "f", optional=(panel, line))
    x, y = (columns.numbers(name, points[name]) for name in ("size", "f"))
    marks = None if sets is None else columns.take(sets, "set", "share", "f", optional=(panel, "stderr"))
    if not np.isfinite(y).any():
        raise InputError("The curve has no defined point, so there is nothing to draw.")
    panels = _words(points, panel, len(x))
    lines = _words(points, line, len(x))
    shown, names = list(dict.fromkeys(panels)), list(dict.fromkeys(lines))
    across = 2 if len(shown) == 4 else min(len(shown), 3)
    down = -(-len(shown) // across)
    titles = [escape(f"{panel}: {name}") if name else "" for name in shown]
    fig: Any = make_subplots(
        rows=down,
        cols=across,
        subplot_titles=titles if any(titles) else None,
        shared_yaxes=True,
        shared_xaxes=True,
        horizontal_spacing=0.04,
        vertical_spacing=0.12,
    )
    fig.update_layout(template=theme.template())
    said: set[str] = set()
    for number, name in enumerate(shown):
        place = {"row": number // across + 1, "col": number % across + 1}
        if marks is not None:
            _sets(fig, marks, _words(marks, panel, len(marks["f"])), name, place, said)
        for at, which in enumerate(names):
            mine = [i for i in range(len(x)) if panels[i] == name and lines[i] == which]
            mine.sort(key=lambda i: x[i])
            if not mine:
                continue
            fig.add_scatter(
                x=_plain(x[mine]),
                y=_plain(y[mine]),
                mode="lines+markers",
                line={"color": theme.LINES[at % 6], "width": 2, "dash": _DASHES[at // 6 % 4]},
                marker={"size": 5},
                **_once(which or "f", said),
                hovertemplate=f"<b>{escape(which)}</b><br>size %{{x:.4g}}<br>f %{{y:.4g}}<extra></extra>",
                **place,
            )
        for level in (0.0, 1.0):
            fig.add_hline(y=level, line={"color": theme.AXIS, "width": 1, "dash": "dot"}, **place)
    fig.update_layout(
        title="faithfulness by size" if title is None else title,
        width=120 + {1: 560, 2: 400, 3: 320}[across] * across,
        height=150 + 290 * down,
        margin={"t": 84, "b": 90},
        legend={"y": 0, "yref": "container", "yanchor": "bottom", "x": 0.5, "xanchor": "center"},
    )
    fig.update_annotations(font_size=13)
    fig.update_xaxes(range=[-0.03, 1.03])
    for col in range(1, across + 1):  # the lowest panel of every column names the axis
        last = down if (down - 1) * across + col <= len(shown) else down - 1
        fig.update_xaxes(title="share of nodes kept", showticklabels=True, row=last, col=col)
    reach = [0.0, 1.0, *y[np.isfinite(y)]]
    for trace in fig.data:
        middle = [np.nan if value is None else value for value in trace.y]
        for way, sign in (("array", 1), ("arrayminus", -1)):
            half = trace.error_y[way] or trace.error_y.array or [0.0] * len(middle)
            ends = [m + sign * (h or 0.0) for m, h in zip(middle, half, strict=True)]
            reach += [end for end in ends if np.isfinite(end)]
    low, high = min(reach), max(reach)
    fig.update_yaxes(range=[low - 0.08 * (high - low), high + 0.08 * (high - low)])
    fig.update_yaxes(title="faithfulness f", col=1)
    return fig


def roc(
    data: Any, *, group: str = "method", x: str = "fpr", y: str = "tpr", most: int = 20, title: str | None = None
) -> go.Figure:
    """True against false positive rate, a line per group from (0, 0) to (1, 1), with its area in the legend.

    Args:
        data: one row per threshold; optional column threshold, on hover.
        most: how many groups at most, those of largest area; the title says how many there are.

    Raises:
        InputError: a column is missing, a rate lies outside 0 to 1, or there is no defined point.
    """
    import plotly.graph_objects as go

    table = columns.take(data, x, y, optional=(group, "threshold"))
    across, up = columns.numbers(x, table[x]), columns.numbers(y, table[y])
    defined = np.isfinite(across) & np.isfinite(up)
    if not defined.any():
        raise InputError("The table has no defined point, so there is no curve to draw.")
    for name, rates in ((x, across[defined]), (y, up[defined])):
        if rates.min() < 0 or rates.max() > 1:
            raise InputError(f"Column {name!r} is no rate: it reaches from {rates.min():g} to {rates.max():g}.")
    words = _words(table, group, len(across))
    threshold = columns.numbers("threshold", table["threshold"]) if "threshold" in table else np.full(len(up), np.nan)
    curves = []
    for name in dict.fromkeys(words):
        rows = np.array([i for i, word in enumerate(words) if word == name and defined[i]], dtype=int)
        if not rows.size:
            continue
        rows = rows[np.lexsort((up[rows], across[rows]))]
        xs, ys = np.r_[0.0, across[rows], 1.0], np.r_[0.0, up[rows], 1.0]
        area = float(np.sum(np.diff(xs) * (ys[1:] + ys[:-1]) / 2))
        curves.append((area, name, xs, ys, np.r_[np.nan, threshold[rows], np.nan]))
    curves.sort(key=lambda one: -one[0])
    fig = go.Figure(layout={"template": theme.template()})
    chance = {"color": theme.AXIS, "width": 1.5, "dash": "dot"}
    fig.add_trace(go.Scatter(x=[0, 1], y=[0, 1], mode="lines", line=chance, name="chance (0.50)", hoverinfo="skip"))
    for at, (area, name, xs, ys, cut) in enumerate(curves[:most]):
        hover = [
            f"<b>{escape(name)}</b>, area {area:.3f}<br>{escape(x)} {a:.4g}<br>{escape(y)} {b:.4g}"
            + ("" if np.isnan(c) else f"<br>threshold {c:.4g}")
            for a, b, c in zip(xs, ys, cut, strict=True)
        ]
        fig.add_trace(
            go.Scatter(
                x=xs.tolist(),
                y=ys.tolist(),
                mode="lines",
                line={"color": theme.LINES[at % 7], "width": 2, "dash": _DASHES[at // 7 % 4]},
                name=f"{escape(name)} ({area:.2f})",
                text=hover,
                hovertemplate="%{text}<extra></extra>",
            )
        )
    said = "ROC, area in brackets"
    if len(curves) > most:
        said += f" · best {most} of {len(curves)}"
    fig.update_layout(
        title=said if title is None else title,
        width=780,
        height=max(520, 120 + 21 * min(len(curves), most)),
        legend={"orientation": "v", "x": 1.02, "xanchor": "left", "y": 1.0, "yanchor": "top"},
    )
    fig.update_xaxes(title="false positive rate", range=[-0.02, 1.02], constrain="domain")
    fig.update_yaxes(title="true positive rate", range=[-0.02, 1.02], scaleanchor="x", constrain="domain")
    return fig


def scatter(
    a: HeadTable,
    b: HeadTable,
    *,
    names: tuple[str, str] | None = None,
    by: str = "score",
    rule: str = "top 10",
    allow_basis_mismatch: bool = False,
    title: str | None = None,
) -> go.Figure:
    """One table against another, a point per head, coloured by which of them selects it; ranks on hover.

    Args:
        names: what to call the two, by default their analyses and models.
        by: "score", or "rank" (1, the best, at the outer end of both axes).
        rule: which heads count as selected, as `HeadTable.select`.

    Raises:
        InputError: the tables cannot be compared, or have no head that is defined in both.
    """
    import plotly.graph_objects as go

    if by not in ("score", "rank"):
        raise InputError(f"by={by!r} is unknown; use 'score' or 'rank'.")
    found = a.compare(b, rule=rule, allow_basis_mismatch=allow_basis_mismatch)
    rows_a, rows_b = ({key: row for row, key in enumerate(one.keys())} for one in (a, b))
    ok_a, ok_b = a.ok, b.ok
    keys = [k for k, row in rows_a.items() if k in rows_b and ok_a[row] and ok_b[rows_b[k]]]
    if not keys:
        raise InputError("No head is defined in both tables, so there is nothing to draw.")
    letter = "G" if a.row_kind == "kv_group" else "H"
    called = names or (theme.name_of(a.meta) or "a", theme.name_of(b.meta) or "b")
    called = tuple(escape(name) for name in called) if names else called
    in_a, in_b = set(found.heads_a), set(found.heads_b)
    kinds = {
        "neither": ("circle-open", theme.AXIS, 6),
        "only x": ("triangle-right", theme.LINES[1], 10),
        "only y": ("triangle-up", theme.LINES[0], 10),
        "both": ("star", theme.LINES[2], 13),
    }
    member = ["neither" if k not in in_a | in_b else "only x" if k not in in_b else "only y" for k in keys]
    member = ["both" if k in in_a and k in in_b else word for k, word in zip(keys, member, strict=True)]
    fig = go.Figure(layout={"template": theme.template()})
    for kind, (symbol, colour, size) in kinds.items():
        here = [k for k, word in zip(keys, member, strict=True) if word == kind]
        if not here:
            continue
        hover = []
        for layer, head in here:
            lines = [f"<b>L{layer} {letter}{head}</b>"]
            for name, one, row in ((called[0], a, rows_a[layer, head]), (called[1], b, rows_b[layer, head])):
                lines.append(f"{name}: {one['score'][row]:.4g}, rank {one['rank'][row]:g}")
            hover.append("<br>".join(lines))
        values = [
            np.array([one[by][rows[k]] for k in here], dtype=np.float64) for one, rows in ((a, rows_a), (b, rows_b))
        ]
        fig.add_trace(
            go.Scatter(
                x=_plain(values[0]),
                y=_plain(values[1]),
                mode="markers",
                marker={"symbol": symbol, "color": colour, "size": size, "line": {"width": 1, "color": colour}},
                customdata=[list(k) for k in here],
                text=hover,
                hovertemplate="%{text}<extra></extra>",
                name=f"{kind} ({len(here)})",
            )
        )
    said = f"{len(keys)} heads · Spearman {found.spearman:.2f} · selected by {escape(rule)}"
    fig.update_layout(
        title=said if title is None else title,
        width=720,
        height=620,
        margin={"t": 84},
        legend={"y": 1.01, "x": 0.0, "xanchor": "left"},
    )
    turned = "reversed" if by == "rank" else True
    fig.update_xaxes(title=f"{called[0]}: {by}", autorange=turned)
    fig.update_yaxes(title=f"{called[1]}: {by}", autorange=turned)
    return fig


def _sets(
    fig: Any, marks: dict[str, np.ndarray], where: list[str], name: str, place: dict[str, int], said: set[str]
) -> None:
    """Random sets as their range, the others as marks."""
    f, share = columns.numbers("f", marks["f"]), columns.numbers("share", marks["share"])
    error = columns.numbers("stderr", marks["stderr"]) if "stderr" in marks else np.full(len(f), np.nan)
    kind = np.array([str(word) for word in marks["set"]])
    here = np.array([word == name for word in where]) & np.isfinite(f) & np.isfinite(share)
    drawn = here & (kind == "random")
    sizes = np.unique(share[drawn])
    low, middle, high = (
        np.array([np.quantile(f[drawn & (share == s)], q) for s in sizes]) for q in (0.025, 0.5, 0.975)
    )
    colour = theme.LINES[4]
    if len(sizes) > 1:
        band = {"x": _plain(np.r_[sizes, sizes[::-1]]), "y": _plain(np.r_[high, low[::-1]]), "fill": "toself"}
        look = {"fillcolor": theme.faded(colour, 0.25), "line": {"width": 0}, "mode": "lines", "hoverinfo": "skip"}
        fig.add_scatter(**band, **look, showlegend=False, legendgroup="random sets", **place)
    if len(sizes):
        n = [int((drawn & (share == s)).sum()) for s in sizes]
        fig.add_scatter(
            x=_plain(sizes),
            y=_plain(middle),
            mode="markers",
            marker={"symbol": "line-ew-open", "size": 16, "color": colour, "line": {"width": 2.5}},
            error_y={
                "type": "data",
                "symmetric": False,
                "array": _plain(high - middle),
                "arrayminus": _plain(middle - low),
                "color": colour,
                "thickness": 5,
                "width": 0,
            },
            text=[
                f"{k} random sets<br>share {s:.4g}<br>median f {m:.4g}<br>middle 95%: {a:.4g} to {b:.4g}"
                for k, s, m, a, b in zip(n, sizes, middle, low, high, strict=True)
            ],
            hovertemplate="%{text}<extra></extra>",
            **_once("random sets", said),
            **place,
        )
    for which, (symbol, size, ink) in _MARKERS.items():
        mine = here & (kind == which)
        if not mine.any():
            continue
        half = 1.96 * error[mine]
        fig.add_scatter(
            x=_plain(share[mine]),
            y=_plain(f[mine]),
            mode="markers",
            marker={"symbol": symbol, "size": size, "color": ink},
            error_y={"type": "data", "array": _plain(half), "color": ink, "thickness": 1.2, "width": 4},
            text=[f"<b>{which}</b><br>share {s:.4g}<br>f {v:.4g}" for s, v in zip(share[mine], f[mine], strict=True)],
            hovertemplate="%{text}<extra></extra>",
            **_once(which, said),
            **place,
        )


def _once(name: str, said: set[str]) -> dict[str, Any]:
    """A legend entry for the first of the panels only."""
    first = name not in said
    said.add(name)
    return {"name": escape(name), "legendgroup": name, "showlegend": first}


def _words(table: dict[str, np.ndarray], name: str, n: int) -> list[str]:
    return [str(word) for word in table[name]] if name in table else [""] * n


def _plain(values: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
