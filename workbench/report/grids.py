"""Tables and figures as the JSON that the page's script reads: small, strict, and harmless inside HTML.

Numbers keep six significant digits (exports are exact, a page is for reading). Text is data: `<`, `>` and `&` are
written as escapes, so that no name, token or prompt can end a script element. Large blocks are deflated (browsers
inflate them without a library), so that a report of several large models stays one file that can be sent. It must never
know where a table is from.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from typing import TYPE_CHECKING, Any

from workbench.export.frame import FLOAT, INT, Frame

if TYPE_CHECKING:
    import plotly.graph_objects as go

_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})
MOST_ROWS = 20_000
_LARGE = 50_000  # bytes of JSON from which on it is deflated


def data_element(key: str, value: Any) -> str:
    """`value` as an element that shows nothing; `page.js` reads it by its id."""
    text = script_json(value)
    if len(text) <= _LARGE:
        return f'<script type="application/json" id="{key}">{text}</script>'
    packed = base64.b64encode(zlib.compress(text.encode("ascii"), 9)).decode("ascii")
    return f'<script type="application/deflate" id="{key}">{packed}</script>'


def script_json(value: Any) -> str:
    """JSON for a `<script type="application/json">`; everything outside ASCII escaped, half surrogates too."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"), default=str)
    return text.translate(_ESCAPES)


def table(frame: Frame, *, sort: str = "") -> dict[str, Any]:
    """Columns, which of them are numbers, values by column, and how many rows there are in all.

    Columns without any value are named in `empty` instead; rows beyond `MOST_ROWS` are counted only.
    """
    columns, empty = [], []
    for name in frame.columns:
        values = frame.shown(name)[:MOST_ROWS]
        if values and all(value is None for value in values):
            empty.append(name)
            continue
        columns.append(
            {"name": name, "number": frame.kinds[name] in (INT, FLOAT), "values": [_plain(value) for value in values]}
        )
    names = [column["name"] for column in columns]
    return {"columns": columns, "empty": empty, "rows": frame.n_rows, "sort": sort if sort in names else ""}


def figure(fig: go.Figure) -> dict[str, Any]:
    """Data and layout; the template, equal in all figures of a page, is left out."""
    made = json.loads(fig.to_json() or "{}")
    made["layout"].pop("template", None)
    return {"data": made["data"], "layout": made["layout"]}


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return float(f"{value:.6g}") if math.isfinite(value) else "inf" if value > 0 else "-inf"
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)
