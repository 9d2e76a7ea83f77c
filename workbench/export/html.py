"""Tables as HTML that stands alone: a page for sending around, and the short form a notebook shows.

No script, no font, nothing fetched; every text is escaped. The heatmap is a grid of cells, one per head, with its
numbers as a tooltip. Text and lines take the colour of the page around them, light or dark.
"""

from __future__ import annotations

import math
from html import escape
from typing import Any

import numpy as np

from workbench.export import colours
from workbench.export.frame import FLOAT, INT, Frame
from workbench.export.text import rounded

_STYLE = (
    "body{font:14px/1.45 system-ui,sans-serif;margin:2em auto;max-width:72em;padding:0 1em;color:#1b1f24;"
    "background:#fff}"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    "th,td{padding:.15em .7em;border-bottom:1px solid #d5d9de;text-align:left}td.n,th.n{text-align:right}"
    "th{border-bottom:2px solid #8a929b}dl{display:grid;grid-template-columns:max-content auto;gap:.1em 1em}"
    "dt{color:#57606a}dd{margin:0;overflow-wrap:anywhere}.wide{overflow-x:auto}"
)


_MARGIN = 26  # pixels, of the heatmap's layer numbers
_LABEL = "padding:0 4px 0 2px;border:0;font-size:11px;line-height:1"
_LINE = "background:transparent;border:0"
_EDGE = "outline:1px solid #8883"  # of a cell: the palest is the colour of a white page


def page(frame: Frame) -> str:
    """A whole page: what the table is, its heatmap when it holds heads, and its rows."""
    # "shape" is there for programs that read the file, and empty entries say nothing.
    said = {key: value for key, value in frame.meta.items() if value not in ("", None) and key != "shape"}
    title = (
        " · ".join(str(frame.meta[key]) for key in ("analysis", "metric", "model") if frame.meta.get(key)) or "Table"
    )
    about = "".join(f"<dt>{escape(str(key))}</dt><dd>{escape(_said(value))}</dd>" for key, value in said.items())
    picture = heatmap(frame.heads) if frame.heads is not None and len(frame.heads) else ""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n'
        f"<body><h1>{escape(title)}</h1>\n<dl>{about}</dl>\n{picture}\n"
        f'<div class="wide">{rows(frame)}</div>\n</body></html>\n'
    )


def preview(table: Any, k: int = 10) -> str:
    """What a notebook shows of a head table: one line, the heatmap, the k best heads."""
    meta = table.meta
    unit = f" ({escape(meta['unit'])})" if meta["unit"] else ""
    model = escape(meta["model"]) or "no model named"
    line = (
        f"<b>{escape(meta['analysis'])}</b>: {escape(meta['metric'])}{unit}, {model}; "
        f"{table.n_layers} layers × {table.n_heads} {table.row_kind}s, {int(table.ok.sum())} of {len(table)} ok"
    )
    picture = heatmap(table) if len(table) else ""
    best = rows(Frame.of(table, top=k, columns=_telling(table.top(k)))) if table.ok.any() else ""
    return (
        f'<div style="color:inherit"><p>{line}</p>'
        '<div style="display:flex;flex-wrap:wrap;gap:1.5em;align-items:flex-start">'
        f'<div>{picture}</div><div style="overflow-x:auto">{best}</div></div></div>'
    )


def _telling(best: Any) -> list[str]:
    """The columns of the schema that say something about these rows; the others are in the table itself."""
    index = ("layer", "kv_group") if best.row_kind == "kv_group" else ("layer", "head")
    numbers = ("score", "stderr", "ci_low", "ci_high", "n", "null_mean", "null_p")
    return [*index, *(name for name in numbers if np.isfinite(best[name].astype(float)).any())]


def rows(frame: Frame) -> str:
    """A `<table>`, numbers rounded to the frame's digits."""
    right = {name: ' class="n"' if kind in (INT, FLOAT) else "" for name, kind in frame.kinds.items()}
    heads = "".join(f"<th{right[name]}>{escape(name)}</th>" for name in frame.columns)
    cells = [
        [
            f"<td{right[name]}>{escape(rounded(value, frame.kinds[name], frame.digits))}</td>"
            for value in frame.shown(name)
        ]
        for name in frame.columns
    ]
    body = "\n".join("<tr>" + "".join(row) + "</tr>" for row in zip(*cells, strict=True))
    return f'<table style="color:inherit"><thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table>'


def heatmap(table: Any, column: str = "score") -> str:
    """A grid of coloured cells, layers downwards and heads to the right; undefined cells are grey with a stroke.

    A table and not SVG, because a notebook that was not run here shows no SVG; a head without a row is an empty cell.
    """
    grid, status = table.matrix(column), table.matrix("status")
    n_layers, n_heads = grid.shape
    cell = int(np.clip(480 // max(n_heads, 1), 6, 20))
    low, high, stops = colours.scale(grid)
    letter = "G" if table.row_kind == "kv_group" else "H"
    each = colours.tick_step(n_heads)
    numbers = "".join(
        f'<td colspan="{min(each, n_heads - head)}" style="{_LABEL};text-align:left">{head}</td>'
        for head in range(0, n_heads, each)
    )
    lines = [f'<tr style="{_LINE}"><td style="padding:0;border:0"></td>{numbers}</tr>']
    for layer in range(n_layers):
        cells = [
            _cell(f"L{layer} {letter}{head}: ", grid[layer, head], status[layer, head], low, high, stops)
            for head in range(n_heads)
        ]
        number = layer if layer % colours.tick_step(n_layers) == 0 else ""
        lines.append(
            f'<tr style="{_LINE};height:{cell}px"><td style="{_LABEL};text-align:right">{number}</td>'
            f"{''.join(cells)}</tr>"
        )
    width = _MARGIN + n_heads * (cell + 1) + 1
    columns = f'<col style="width:{_MARGIN}px">' + f'<col style="width:{cell}px">' * n_heads
    caption = f"{column} {rounded(low, FLOAT)} to {rounded(high, FLOAT)}; layers down, {table.row_kind}s across"
    return (
        f'<table role="img" aria-label="{escape(caption)}" '
        f'style="width:{width}px;table-layout:fixed;border-collapse:separate;border-spacing:1px;margin:0;'
        f'color:inherit"><colgroup>{columns}</colgroup>{"".join(lines)}</table>'
        f'<p style="font-size:12px;margin:.3em 0 1em {_MARGIN}px">{escape(caption)}</p>'
    )


def _cell(name: str, value: float, status: Any, low: float, high: float, stops: tuple[str, ...]) -> str:
    if not math.isnan(value):
        said, look = rounded(float(value), FLOAT), f"background-color:{colours.colour(value, low, high, stops)}"
    elif status:
        stroke = f"{colours.UNDEFINED} 44%,{colours.HATCH} 45%,{colours.HATCH} 55%,{colours.UNDEFINED} 56%"
        said, look = str(status), f"background:{colours.UNDEFINED} linear-gradient(to bottom right,{stroke})"
    else:
        return '<td style="padding:0;border:0"></td>'
    return f'<td title="{escape(name + said)}" style="padding:0;border:0;{_EDGE};{look}"></td>'


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_said(item)}" for key, item in value.items())
    return str(value)
