"""A directed graph of heads: layers upwards from the input to the logits, one arrow per table row.

Names of nodes and receivers are read as text: `2.3` a head, `2.mlp`, `input`, `logits`; a receiver `2.3.q` is one input
of a node. It must never know how a graph was found.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import InputError
from workbench.plots import columns, theme

if TYPE_CHECKING:
    import plotly.graph_objects as go

_COLOURS = {"q": theme.LINES[0], "k": theme.LINES[1], "v": theme.LINES[2], "mlp": theme.LINES[3]}
_COLOURS |= {"logits": theme.INK}
_WORDS = {"mlp": "into an MLP", "logits": "direct, to the logits"}
_PORTS = {"q": (-0.8, -0.8), "v": (0.8, -0.8)}  # where an arrow reaches its head, in radii: q, k and v stay apart
_BEFORE = {"q": -0.12, "v": 0.12}  # the same for the dots to hover on, in layers
_FACTS = ("kind", "role", "effect", "stderr", "stage", "seen_by")
_WIDTHS = (1.0, 2.0, 3.2, 4.6, 6.2)
_LABELLED = 120  # nodes up to which each has its name
_STEPS = np.linspace(0.0, 1.0, 15)
_MARGIN = {"l": 84, "r": 24, "t": 56, "b": 56}

Point = tuple[float, float]


def graph(nodes: Any, edges: Any, *, group: int = 1, most: int = 400, title: str | None = None) -> go.Figure:
    """Nodes by layer and the edges between them, coloured by what they are read by, as wide as their |effect|.

    Negative effects are dashed; every number of a row is on hover. An edge into `2.1.k` or `2.1.v` is drawn to each
    head of that kv group among the nodes; a receiver that is no node is drawn hollow.

    Args:
        nodes: columns node, layer; optional kind, head, effect, stderr, stage, role, seen_by. None: what sends is a
            node, as in a table of patched paths, and the title says how many of the edges are drawn.
        edges: columns sender, receiver, effect; optional stderr, stage, view, seen_by.
        group: query heads per kv group.
        most: how many edges at most, the strongest; the title says how many there are.

    Raises:
        InputError: no nodes, a column is missing, or an edge leaves a node that the table has not.
    """
    import plotly.graph_objects as go

    links = columns.take(edges, "sender", "receiver", "effect", optional=("stderr", "stage", "view", "seen_by"))
    effect = columns.numbers("effect", links["effect"])
    order = np.argsort(-np.nan_to_num(np.abs(effect), nan=-1.0), kind="stable")[: max(0, most)]
    if nodes is None:
        nodes = {"node": list(dict.fromkeys(str(links["sender"][row]) for row in order))}
        nodes["layer"] = [_level(name)[0] for name in nodes["node"]]
    table = columns.take(nodes, "node", "layer", optional=_FACTS)
    names = [str(name) for name in table["node"]]
    if not names:
        raise InputError("There are no nodes, so there is no graph to draw.")
    arrows: list[tuple[int, str, str, str]] = []  # row, sender, node it reaches, input
    for row in order.tolist():
        sender, receiver = str(links["sender"][row]), str(links["receiver"][row])
        if sender not in names:
            raise InputError(f"The edge {sender} -> {receiver} leaves {sender!r}, which is not among the nodes.")
        ends, part = _ends(receiver, set(names), group)
        arrows += [(row, sender, end, part) for end in ends]
    ghosts = list(dict.fromkeys(end for _, _, end, _ in arrows if end not in names))
    at, ticks = _places([*names, *ghosts])

    x = [place[0] for place in at.values()]
    left, right = min(x) - 0.7, max(x) + 0.9
    width = int(np.clip(150 + 112 * (right - left), 560, 1600))
    height = int(np.clip(150 + 94 * len(ticks), 340, 2400))
    per_x, per_y = (width - 108) / (right - left), (height - 112) / len(ticks)  # pixels
    large = len(at) <= _LABELLED
    radius = ((20.0 if large else 5.0) / per_x, (20.0 if large else 5.0) / per_y)

    fig = go.Figure(layout={"template": theme.template()})
    _draw_edges(fig, arrows, effect, links, at, radius)
    _draw_nodes(fig, names, ghosts, table, at, radius[0] if large else None)
    said = f"{len(names)} nodes, {len(effect)} edges"
    if len(effect) > len(order):
        said += f" (the {len(order)} strongest are drawn)"
    fig.update_layout(
        title=said if title is None else title,
        width=width,
        height=height,
        margin=_MARGIN,
        legend={"y": 0, "yanchor": "top", "x": 0.5, "xanchor": "center"},
    )
    hidden = {"showgrid": False, "showline": False, "ticks": ""}
    fig.update_xaxes(showticklabels=False, range=[left, right], **hidden)
    grid = {"tickvals": [y for y, _ in ticks], "ticktext": [word for _, word in ticks], "automargin": False}
    fig.update_yaxes(range=[-0.5, len(ticks) - 0.5], **{**hidden, "showgrid": True}, **grid)
    return fig


def _ends(receiver: str, known: set[str], group: int) -> tuple[list[str], str]:
    """The nodes a receiver stands for, and which input it is."""
    parts = receiver.split(".")
    part = parts[-1]
    if len(parts) < 3:
        return [receiver], part
    layer, index = parts[0], parts[1]
    if part == "q" or not index.isdigit():
        return [f"{layer}.{index}"], part
    heads = [f"{layer}.{head}" for head in range(int(index) * group, (int(index) + 1) * group)]
    return [head for head in heads if head in known] or [heads[0] if group == 1 else receiver], part


def _level(name: str) -> tuple[int, int]:
    """Sorts nodes upwards: (layer, whether it is an MLP)."""
    if name == "input":
        return -1, 0
    first = name.split(".")[0]
    if not first.isdigit():
        return 1_000_000, 0
    return int(first), int(name.endswith(".mlp"))


def _places(names: list[str]) -> tuple[dict[str, Point], list[tuple[float, str]]]:
    """Where every node goes, and the layers' ticks. Layers without a node take no room."""
    levels: dict[tuple[int, int], list[str]] = {}
    for name in names:
        levels.setdefault(_level(name), []).append(name)
    widest = max(map(len, levels.values()))
    places: dict[str, Point] = {}
    ticks: list[tuple[float, str]] = []
    for y, (level, here) in enumerate(sorted(levels.items())):
        here = sorted(here, key=lambda name: [int(w) if w.isdigit() else -1 for w in name.split(".")])
        step = max(1.0, 0.6 * widest / len(here))  # sparse layers use the width too, or all edges would run as one
        for x, name in enumerate(here):
            places[name] = ((x - (len(here) - 1) / 2) * step, float(y))
        word = {-1: "input", 1_000_000: "output"}.get(level[0], f"layer {level[0]}{' MLP' if level[1] else ''}")
        ticks.append((float(y), word))
    return places, ticks


def _bend(start: Point, end: Point, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points of a curve: straight between neighbouring layers, round what lies between for others."""
    (x0, y0), (x1, y1) = start, end
    skipped = max(0.0, abs(y1 - y0) - 1.0)
    side = 1.0 if x0 + x1 > -1e-9 else -1.0
    x_mid, y_mid = (x0 + x1) / 2 + side * min(0.75 * skipped, 1.8), (y0 + y1) / 2
    x = (1 - t) ** 2 * x0 + 2 * t * (1 - t) * x_mid + t**2 * x1
    return x, (1 - t) ** 2 * y0 + 2 * t * (1 - t) * y_mid + t**2 * y1


def _draw_edges(
    fig: go.Figure,
    arrows: list[tuple[int, str, str, str]],
    effect: np.ndarray,
    links: dict[str, np.ndarray],
    at: dict[str, Point],
    radius: Point,
) -> None:
    """One trace per colour, width and sign, and for each input one of arrow heads and one of what hovering shows."""
    import plotly.graph_objects as go

    size = np.abs(effect)
    top = float(np.nanmax(size, initial=0.0)) if np.isfinite(size).any() else 0.0
    lines: dict[tuple[str, int, bool], tuple[list[float | None], list[float | None]]] = {}
    marks: dict[str, dict[str, list[Any]]] = {}
    for row, sender, end, part in arrows:
        (x0, y0), (x1, y1) = at[sender], at[end]
        aside, below = _PORTS.get(part, (0.0, -1.1))
        start, stop = (x0, y0 + radius[1]), (x1 + aside * radius[0], y1 + below * radius[1])
        x, y = _bend(start, stop, _STEPS)
        layers = max(1.0, abs(y1 - y0))
        between = (np.floor(layers / 2) + 0.5 + _BEFORE.get(part, 0.0)) / layers  # not at the height of a layer
        dot_x, dot_y = _bend(start, stop, np.array([between]))
        share = 0.0 if np.isnan(size[row]) or not top else min(size[row] / top, 1.0)
        width = min(int(share * len(_WIDTHS)), len(_WIDTHS) - 1)
        xs, ys = lines.setdefault((part, width, bool(effect[row] < 0)), ([], []))
        xs += [*x.tolist(), None]
        ys += [*y.tolist(), None]
        mark = marks.setdefault(part, {"x": [], "y": [], "tip_x": [], "tip_y": [], "text": [], "effect": []})
        mark["x"].append(float(dot_x[0]))
        mark["y"].append(float(dot_y[0]))
        mark["tip_x"] += [float(x[-2]), float(x[-1]), None]
        mark["tip_y"] += [float(y[-2]), float(y[-1]), None]
        mark["text"].append(_about_edge(links, row))
        mark["effect"].append(None if np.isnan(effect[row]) else float(effect[row]))
    for part, width, negative in sorted(lines):
        xs, ys = lines[part, width, negative]
        line = {"color": _colour(part), "width": _WIDTHS[width], "dash": "dash" if negative else "solid"}
        options = {"mode": "lines", "line": line, "opacity": 0.8, "hoverinfo": "skip", "showlegend": False}
        fig.add_trace(go.Scatter(x=xs, y=ys, legendgroup=part, **options))
    for part in sorted(marks, key=lambda part: list(_COLOURS).index(part) if part in _COLOURS else 99):
        mark, colour = marks[part], _colour(part)
        arrow = {"symbol": "arrow", "size": [0, 11, 0] * (len(mark["tip_x"]) // 3), "angleref": "previous"}
        style = {"mode": "markers", "legendgroup": part}
        tips = {"x": mark["tip_x"], "y": mark["tip_y"], "marker": {**arrow, "color": colour}}
        fig.add_trace(go.Scatter(**tips, **style, hoverinfo="skip", showlegend=False))
        fig.add_trace(
            go.Scatter(
                x=mark["x"],
                y=mark["y"],
                marker={"size": 7, "color": colour, "symbol": "circle"},
                customdata=mark["effect"],
                text=mark["text"],
                hovertemplate="%{text}<extra></extra>",
                name=escape(_WORDS.get(part, part)),
                **style,
            )
        )
    if any(negative for *_, negative in lines):
        dashed = {"color": theme.INK, "width": 2, "dash": "dash"}
        fig.add_trace(go.Scatter(x=[None], y=[None], mode="lines", line=dashed, name="negative effect"))


def _draw_nodes(
    fig: go.Figure,
    names: list[str],
    ghosts: list[str],
    table: dict[str, np.ndarray],
    at: dict[str, Point],
    radius: float | None,
) -> None:
    """The nodes; with a radius they have their names inside and their roles at their right."""
    import plotly.graph_objects as go

    every = [*names, *ghosts]
    hover = []
    roles: dict[str, str] = {}
    for row, name in enumerate(every):
        facts = _facts(table, row, _FACTS) if row < len(names) else []
        hover.append("<br>".join([f"<b>{escape(name)}</b>", *facts]))
        role = str(table["role"][row]) if "role" in table and row < len(names) else ""
        if role not in ("", "None", "nan"):
            roles[name] = escape(role)
    large = radius is not None
    square = ["square" if name.endswith(".mlp") or name in ("input", "logits") else "circle" for name in every]
    fig.add_trace(
        go.Scatter(
            x=[at[name][0] for name in every],
            y=[at[name][1] for name in every],
            mode="markers+text" if large else "markers",
            marker={
                "symbol": square,
                "size": 40 if large else 9,
                "color": [theme.NODE] * len(names) + [theme.PAPER] * len(ghosts),
                "line": {"color": theme.INK, "width": [1.5] * len(names) + [1.0] * len(ghosts)},
                "opacity": 1,
            },
            text=[f"<b>{escape(name)}</b>" for name in every] if large else None,
            textposition="middle center",
            textfont={"size": 11},
            customdata=every,
            hovertext=hover,
            hovertemplate="%{hovertext}<extra></extra>",
            name="nodes",
            showlegend=False,
        )
    )
    if radius is not None and roles:
        fig.add_trace(
            go.Scatter(
                x=[at[name][0] + 1.1 * radius for name in roles],
                y=[at[name][1] for name in roles],
                mode="text",
                text=[role.replace(" ", "<br>") for role in roles.values()],
                textposition="middle right",
                textfont={"size": 10, "color": theme.MUTED},
                hoverinfo="skip",
                name="roles",
                showlegend=False,
            )
        )


def _about_edge(links: dict[str, np.ndarray], row: int) -> str:
    ends = f"<b>{escape(str(links['sender'][row]))} → {escape(str(links['receiver'][row]))}</b>"
    return "<br>".join([ends, *_facts(links, row, ("effect", "stderr", "stage", "view", "seen_by"))])


def _facts(table: dict[str, np.ndarray], row: int, names: tuple[str, ...]) -> list[str]:
    said = []
    for name in names:
        if name not in table:
            continue
        value = table[name][row]
        if isinstance(value, (float, np.floating)):
            said.append(f"{name} {'undefined' if np.isnan(value) else f'{value:.4g}'}")
        elif value not in (None, ""):
            said.append(f"{name.replace('_', ' ')} {escape(str(value))}")
    return said


def _colour(part: str) -> str:
    return _COLOURS.get(part, theme.LINES[4])
