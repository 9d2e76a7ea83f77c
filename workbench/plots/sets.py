"""Sets beside each other: a square of pairwise overlaps, and the exclusive intersections of several sets (UpSet).

Both say on hover what was counted. UpSet after Lex et al. 2014: a bar per combination of sets, for the members that lie
in exactly these. It must never know what the members are.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import InputError, did_you_mean
from workbench.plots import columns, heatmap, theme

if TYPE_CHECKING:
    import plotly.graph_objects as go

_TURNED = {"a_in_b": "b_in_a", "b_in_a": "a_in_b"}  # what a statistic is called with a and b exchanged
_ITSELF = {"jaccard", "weighted_jaccard", "rbo", "average_overlap", "spearman", "pearson", "coefficient", *_TURNED}
_ANNOTATED = 24  # sets up to which every cell has its number
_LISTED = 12  # members that a hover names


def matrix(
    data: Any,
    names: Sequence[str] | None = None,
    *,
    statistic: str = "jaccard",
    p: Any = "p_layer_matched",
    level: str = "heads",
    title: str | None = None,
) -> go.Figure:
    """Overlap of every pair of sets as an annotated square; p on hover.

    Args:
        data: a square of values with `names`; or a table with a row per pair (columns a, b and `statistic`; every
            number of a row is shown on hover); or one with a row per statistic and set and a column per set.
        statistic: which to draw. "contained_in" is how much of the row's set lies in the column's.
        p: the statistic that is the p-value, if the table has it; with `names`, a square of p-values.
        level: which rows, of a table of pairs that has a column level.

    Raises:
        InputError: no such statistic, no sets, or values that are no square.
    """
    if names is not None:
        labels, values = [str(name) for name in names], _square(data, len(names))
        chance = _square(p, len(names)) if p is not None and not isinstance(p, str) else None
        facts: dict[tuple[int, int], str] = {}
    else:
        labels, values, chance, facts = _read(data, statistic, p if isinstance(p, str) else "", level)
    if not labels:
        raise InputError("There are no sets to compare.")
    word = statistic.replace("_", " ")
    hover = np.full(values.shape, "", dtype=object)
    for i, row in enumerate(labels):
        for j, column in enumerate(labels):
            lines = [f"<b>{escape(row)}</b> and <b>{escape(column)}</b>", f"{word} {heatmap.number(values[i, j])}"]
            if chance is not None and not np.isnan(chance[i, j]):
                lines.append(f"p {heatmap.number(chance[i, j])}")
            hover[i, j] = "<br>".join([*lines, *filter(None, [facts.get((i, j), "")])])
    finite = values[np.isfinite(values)]
    share = not finite.size or (finite.min() >= 0 and finite.max() <= 1)
    limits = (0.0, 1.0) if share else (-1.0, 1.0) if np.abs(finite).max() <= 1 else None
    scale = "sequential" if share else "auto" if limits is None else "diverging"
    places = list(range(len(labels)))
    fig = heatmap.cells(values, x=places, y=places, hover=hover, bar=escape(word), scale=scale, limits=limits)
    if len(labels) <= _ANNOTATED:
        main: Any = fig.data[0]  # the second is the hatching
        main.texttemplate = "%{z:.2f}"
    side = int(np.clip(640 // len(labels), 12, 72))
    room = 8 * max(map(len, labels))
    fig.update_layout(
        title=f"{escape(word)} of {len(labels)} sets" if title is None else title,
        width=max(440, 190 + room + side * len(labels)),
        height=max(300, 130 + min(room, 220) + side * len(labels)),
    )
    shown = [escape(label) for label in labels]
    axis = {"tickvals": places, "ticktext": shown, "automargin": True, "ticks": ""}
    fig.update_xaxes(range=[-0.5, len(labels) - 0.5], tickangle=0 if room <= side else -45, **axis)
    fig.update_yaxes(range=[len(labels) - 0.5, -0.5], **axis)
    return fig


def upset(sets: Mapping[str, Iterable[Hashable]], *, most: int = 40, title: str | None = None) -> go.Figure:
    """How many members lie in exactly which of the sets: bars by size, a matrix of dots below, set sizes beside it.

    Args:
        sets: name -> members, such as (layer, head).
        most: how many intersections at most; the title says how many more there are.

    Raises:
        InputError: no sets, or no set with a member.
    """
    from plotly.subplots import make_subplots

    found = {str(name): list(dict.fromkeys(members)) for name, members in sets.items()}
    if not any(found.values()):
        raise InputError("No set has a member, so there is nothing to intersect." if found else "There are no sets.")
    names = list(found)
    where: dict[Hashable, list[int]] = {}
    for at, members in enumerate(found.values()):
        for member in members:
            where.setdefault(member, []).append(at)
    groups: dict[tuple[int, ...], list[Hashable]] = {}
    for member, inside in where.items():
        groups.setdefault(tuple(inside), []).append(member)
    every = sorted(groups.items(), key=lambda item: (-len(item[1]), -len(item[0]), item[0]))
    shown = every[: max(1, most)]
    x = list(range(len(shown)))
    across, down = 28 * max(len(shown), 6), 30 * len(names)
    fig: Any = make_subplots(
        rows=2,
        cols=2,
        shared_xaxes=True,
        shared_yaxes=True,
        row_heights=[220, down],
        column_widths=[across, 170],
        horizontal_spacing=24 / (across + 194),
        vertical_spacing=14 / (234 + down),
        specs=[[{}, None], [{}, {}]],
    )
    fig.update_layout(template=theme.template())
    hover = [
        f"<b>{' and '.join(escape(names[at]) for at in inside)}</b>{'' if len(inside) > 1 else ' alone'}"
        f"<br>{len(members)}: {_listed(members)}"
        for inside, members in shown
    ]
    counts = [len(members) for _, members in shown]
    about = {"text": counts, "textposition": "outside", "cliponaxis": False, "hovertemplate": "%{customdata}"}
    about["hovertemplate"] += "<extra></extra>"
    fig.add_bar(x=x, y=counts, customdata=hover, marker={"color": theme.LINES[0]}, name="shared", row=1, col=1, **about)
    _dots(fig, shown, len(names), hover)
    sizes = [len(members) for members in found.values()]
    said = [f"<b>{escape(name)}</b><br>{len(members)}: {_listed(members)}" for name, members in found.items()]
    places = list(range(len(names)))
    about |= {"text": sizes, "customdata": said, "orientation": "h", "marker": {"color": theme.LINES[5]}}
    fig.add_bar(x=sizes, y=places, name="size", row=2, col=2, **about)
    more = len(every) - len(shown)
    named = f"members in exactly these of {len(names)} sets" + (f" · {more} smaller ones not shown" if more else "")
    room = min(8 * max(map(len, names)), 420)
    fig.update_layout(
        title=named if title is None else title,
        width=max(520, 290 + room + across),
        height=360 + down,
        showlegend=False,
        bargap=0.35,
    )
    fig.update_xaxes(showgrid=False, showticklabels=False, ticks="", row=1, col=1)
    ends = [-0.6, len(shown) - 0.4]
    fig.update_xaxes(showgrid=False, showticklabels=False, ticks="", zeroline=False, range=ends, row=2, col=1)
    fig.update_yaxes(title="in exactly these", dtick=_step(max(counts)), range=[0, 1.12 * max(counts)], row=1, col=1)
    rows = {"tickvals": places, "ticktext": [escape(name) for name in names], "range": [len(names) - 0.4, -0.6]}
    fig.update_yaxes(showgrid=False, ticks="", automargin=True, row=2, col=1, **rows)
    fig.update_yaxes(showgrid=False, ticks="", row=2, col=2)
    fig.update_xaxes(title="set size", range=[0, 1.25 * max(sizes)], dtick=_step(max(sizes), 3), row=2, col=2)
    return fig


def _dots(fig: Any, shown: list[tuple[tuple[int, ...], list[Hashable]]], n_sets: int, hover: list[str]) -> None:
    """A pale dot everywhere, an inked one for each set of an intersection, and a line through these."""
    every = [(x, y) for x in range(len(shown)) for y in range(n_sets)]
    inked = [(x, y) for x, (inside, _) in enumerate(shown) for y in inside]
    line: list[tuple[int | None, int | None]] = []
    for x, (inside, _) in enumerate(shown):
        line += [(x, min(inside)), (x, max(inside)), (None, None)]
    style = {"mode": "markers", "row": 2, "col": 1}
    pale = {"size": 11, "color": theme.GRID}
    fig.add_scatter(x=[x for x, _ in every], y=[y for _, y in every], marker=pale, hoverinfo="skip", **style)
    ink = {"color": theme.INK, "width": 2.5}
    style["mode"] = "lines"
    fig.add_scatter(x=[x for x, _ in line], y=[y for _, y in line], line=ink, hoverinfo="skip", **style)
    style["mode"] = "markers"
    fig.add_scatter(
        x=[x for x, _ in inked],
        y=[y for _, y in inked],
        marker={"size": 11, "color": theme.INK},
        customdata=[hover[x] for x, _ in inked],
        hovertemplate="%{customdata}<extra></extra>",
        name="members of",
        **style,
    )


def _read(
    data: Any, statistic: str, p: str, level: str
) -> tuple[list[str], np.ndarray, np.ndarray | None, dict[tuple[int, int], str]]:
    table = columns.every(data)
    if table is None:
        raise InputError(f"A {type(data).__name__} cannot be drawn; give a table of pairs, or values with names.")
    if "statistic" in table:
        return (*_wide(table, statistic, p), {})
    return _pairs(data, table, statistic, p, level)


def _wide(table: Mapping[str, Any], statistic: str, p: str) -> tuple[list[str], np.ndarray, np.ndarray | None]:
    kinds = [str(kind) for kind in table["statistic"]]
    if statistic not in kinds:
        known = list(dict.fromkeys(kinds))
        raise InputError(
            f"The table has no statistic {statistic!r}.{did_you_mean(statistic, known)} It has: {', '.join(known)}."
        )
    key = next(name for name in table if name != "statistic")  # the column beside it names the rows
    rows = {kind: [at for at, word in enumerate(kinds) if word == kind] for kind in (statistic, p)}
    labels = [str(table[key][at]) for at in rows[statistic]]

    def square(kind: str) -> np.ndarray:
        by_name = {str(table[key][at]): at for at in rows[kind]}
        return _square([[table[b][by_name[a]] for b in labels] for a in labels], len(labels))

    return labels, square(statistic), square(p) if len(rows[p]) == len(labels) and p != statistic else None


def _pairs(
    data: Any, table: Mapping[str, Any], statistic: str, p: str, level: str
) -> tuple[list[str], np.ndarray, np.ndarray | None, dict[tuple[int, int], str]]:
    named = "a_in_b" if statistic == "contained_in" else statistic
    turned = _TURNED.get(named, named)
    columns.take(data, "a", "b", named, turned)  # says which one there is not
    rows = range(len(table["a"]))
    if "level" in table:
        rows = [at for at in rows if table["level"][at] == level]
    ends = {at: (str(table["a"][at]), str(table["b"][at])) for at in rows}
    labels = list(dict.fromkeys(name for at in rows for name in ends[at]))
    place = {name: at for at, name in enumerate(labels)}
    values = np.full((len(labels), len(labels)), np.nan)
    if named in _ITSELF:
        np.fill_diagonal(values, 1.0)
    chance = np.full(values.shape, np.nan) if p in table and p != named else None
    facts: dict[tuple[int, int], str] = {}
    numeric = {}
    for name, column in table.items():
        if name not in ("a", "b", "level", named, turned, p):
            kept = [column[at] for at in rows]
            if all(isinstance(value, (int, float, np.number)) for value in kept):
                numeric[name] = column
    for at, (a, b) in ends.items():
        i, j = place[a], place[b]
        said = "<br>".join(f"{escape(name)} {heatmap.number(float(column[at]))}" for name, column in numeric.items())
        for key, kind in (((i, j), named), ((j, i), turned)):
            value = table[kind][at]
            values[key] = np.nan if value is None else float(value)
            facts[key] = f"<i>a is {escape(a)}, b is {escape(b)}</i><br>{said}" if said else ""
            if chance is not None:
                chance[key] = np.nan if table[p][at] is None else float(table[p][at])
    return labels, values, chance, facts


def _square(values: Any, n: int) -> np.ndarray:
    try:
        grid = np.array([[np.nan if v is None else v for v in row] for row in values], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"The values of the matrix are no square of numbers ({error}).") from error
    if grid.shape != (n, n) and not (n == 0 and grid.size == 0):
        raise InputError(f"{n} names need {n} x {n} values, but these are {' x '.join(map(str, grid.shape))}.")
    return grid.reshape(n, n)


def _step(largest: int, ticks: int = 5) -> int:
    """Whole numbers between ticks of counts: 1, 2, 5, 10, 20, ..."""
    step = 1
    while largest / step > ticks:
        step = step * 5 // 2 if str(step)[0] == "2" else step * 2
    return step


def _listed(members: Sequence[Hashable]) -> str:
    words = [".".join(map(str, m)) if isinstance(m, tuple) else str(m) for m in members[:_LISTED]]
    return escape(", ".join(words)) + (f" and {len(members) - _LISTED} more" if len(members) > _LISTED else "")
