"""Writing tables as files people use: CSV, Parquet, Markdown, LaTeX, HTML and JSON, with where they came from.

`write` takes a `HeadTable`, a joined table, a pyarrow table, a pandas frame or a mapping of columns. CSV, JSON and
Parquet are exact and complete; Markdown, LaTeX and HTML are for reading and rounded unless told otherwise. Every file
appears at once or not at all, the same table gives the same bytes, and `read.table` reads every format back. Pandas is
never imported, and pyarrow only where a file needs it, so that `workbench export` answers at once. It must never know
what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.errors import InputError
from workbench.export import arrow, files, html, latex, read, text
from workbench.export.formats import FORMATS, format_of
from workbench.export.frame import DIGITS, Frame
from workbench.export.join import join

__all__ = ["FORMATS", "join", "read", "write"]


def write(
    table: Any,
    path: str | Path | None,
    format: str | None = None,
    *,
    top: int | None = None,
    columns: Sequence[str] | None = None,
    digits: int | None = DIGITS,
    caption: str | None = None,
    label: str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> str | bytes | None:
    """Write a table to a file, or return its text when `path` is None (bytes for Parquet).

    Args:
        table: a `HeadTable`, what `join` returned, a pyarrow table, a pandas frame (its index is left out), or a
            mapping of column names to equally long values.
        format: one of `FORMATS`; taken from the file's ending when None.
        top: keep the k best heads, best first (of a table that is no `HeadTable`: the first k rows).
        columns: keep these columns, in this order.
        digits: significant digits in Markdown, LaTeX and HTML; None for as many as read back to the same number.
        caption, label: of a LaTeX table.
        provenance: when given (may be empty), also write `<path>.provenance.json`: these entries, the table's metadata
            and column types, and the hash of the file.

    Raises:
        InputError: unknown format or column, a path that cannot be written, provenance that JSON cannot hold.
    """
    kind = format_of(format, path)
    if (caption or label) and kind != "latex":
        raise InputError(f"A caption and a label go into LaTeX tables; {kind} has no place for them.")
    frame = Frame.of(table, top=top, columns=columns, digits=digits)
    content = latex.table(frame, caption=caption, label=label) if kind == "latex" else _render(frame, kind)
    if path is None:
        return content
    raw = _encoded(content, path) if isinstance(content, str) else content
    files.write(path, raw)
    if provenance is not None:
        files.write_sidecar(path, raw, provenance, frame.describe())
    return None


def _render(frame: Frame, kind: str) -> str | bytes:
    if kind == "parquet":
        return arrow.to_parquet(frame)
    render = {"csv": text.csv, "json": text.json, "md": text.markdown, "html": html.page}
    return render[kind](frame)


def _encoded(content: str, path: str | Path) -> bytes:
    """UTF-8, which half of a surrogate pair does not have."""
    try:
        return content.encode("utf-8")
    except UnicodeEncodeError as error:
        bad = content[error.start : error.end]
        raise InputError(f"{str(path)!r} would hold {bad!r}, which is no character; mend that text.") from error
