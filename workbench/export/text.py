"""CSV, JSON and Markdown, and the short form a table shows at a Python prompt.

CSV and JSON are exact: floats are written with the shortest digits that read back to the same float. Markdown is for
reading: as many significant digits as the frame says. Nothing here knows files.
"""

from __future__ import annotations

import csv as csv_module
import io
import json as json_module
import math
import re
from typing import Any

from workbench.export.files import jsonable
from workbench.export.frame import BOOL, DIGITS, FLOAT, INT, Frame

# An underscore inside a word is no emphasis, so that column names stay readable.
_MARKDOWN = re.compile(r"([\\|`*\[\]<>~&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
UNDEFINED = "–"


def csv(frame: Frame) -> str:
    """Comma-separated, `\\n` line ends, undefined left empty, structured cells as JSON."""
    out = io.StringIO()
    writer = csv_module.writer(out, lineterminator="\n")
    writer.writerow(frame.columns)
    writer.writerows([_exact(value) for value in row] for row in frame.rows())
    return out.getvalue()


def json(frame: Frame) -> str:
    """One object: metadata, column names and kinds, and one object per row."""
    rows = [dict(zip(frame.columns, jsonable(row), strict=True)) for row in frame.rows()]
    said = {"meta": jsonable(frame.meta), "columns": list(frame.columns), "kinds": frame.kinds}
    whole = {**said, "heads": frame.heads is not None, "rows": rows}
    return json_module.dumps(whole, ensure_ascii=False, allow_nan=False, indent=1, default=str) + "\n"


def markdown(frame: Frame) -> str:
    """A pipe table, numbers to the right."""
    cells = {
        name: [_markdown_text(rounded(value, kind, frame.digits)) for value in frame.shown(name)]
        for name, kind in frame.kinds.items()
    }
    heads = {name: _markdown_text(name) for name in cells}
    widths = {name: max([3, len(heads[name]), *map(len, values)]) for name, values in cells.items()}
    right = {name for name, kind in frame.kinds.items() if kind in (INT, FLOAT)}

    def line(values: dict[str, str]) -> str:
        padded = (
            value.rjust(widths[name]) if name in right else value.ljust(widths[name]) for name, value in values.items()
        )
        return "| " + " | ".join(padded) + " |"

    rule = {name: "-" * (width - 1) + (":" if name in right else "-") for name, width in widths.items()}
    body = [line({name: cells[name][row] for name in cells}) for row in range(frame.n_rows)]
    return "\n".join([line(heads), line(rule), *body]) + "\n"


def preview(table: Any, k: int = 10) -> str:
    """What a head table shows at a prompt: what it is, and its best rows."""
    meta = table.meta
    unit = f" ({meta['unit']})" if meta["unit"] else ""
    head = (
        f"HeadTable: {meta['analysis']}, {meta['metric']}{unit}, {meta['model'] or 'no model named'}; "
        f"{table.n_layers} layers x {table.n_heads} {table.row_kind}s, {int(table.ok.sum())} of {len(table)} ok"
    )
    if not table.ok.any():
        return head
    shown = [name for name in table.columns if name == "score" or not _says_nothing(table, name)]
    return f"{head}\n{markdown(Frame.of(table, top=k, columns=shown))}".rstrip("\n")


def rounded(value: Any, kind: str, digits: int | None = DIGITS) -> str:
    """A value as people read it: so many significant digits (None: all there are), whole numbers whole."""
    if value is None:
        return UNDEFINED
    if kind == FLOAT:
        return repr(value) if digits is None else f"{value:.{digits}g}"
    if kind == BOOL:
        return "yes" if value else "no"
    return str(value)


def _exact(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, dict)):
        return json_module.dumps(jsonable(value), ensure_ascii=False, sort_keys=True, default=str)
    return repr(value) if isinstance(value, float) else str(value)


def _markdown_text(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split())) if text else ""


def _says_nothing(table: Any, name: str) -> bool:
    values = table.columns[name]
    if values.dtype.kind == "f":
        return all(math.isnan(value) for value in values)
    return name in ("head", "kv_group") and bool((values == -1).all())
