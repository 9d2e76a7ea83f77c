"""Writing tables as files people use: CSV, Parquet, Markdown, LaTeX, HTML and JSON, with where they came from.

`write` takes a `HeadTable`, a pyarrow table, a pandas frame or a mapping of columns. CSV, JSON and Parquet are exact
and complete; Markdown, LaTeX and HTML are for reading and rounded. Every file appears at once or not at all, and the
same table gives the same bytes. Pandas is never imported, and pyarrow only where a file needs it, so that
`workbench export` answers at once. It must never know what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.errors import InputError, did_you_mean
from workbench.export import arrow, files, html, latex, text
from workbench.export.frame import Frame

_ALIASES = {"markdown": "md", "tex": "latex", "htm": "html", "pq": "parquet"}
FORMATS = ("csv", "parquet", "md", "latex", "html", "json")


def write(
    table: Any,
    path: str | Path | None,
    format: str | None = None,
    *,
    top: int | None = None,
    columns: Sequence[str] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> str | bytes | None:
    """Write a table to a file, or return its text when `path` is None (bytes for Parquet).

    Args:
        table: a `HeadTable`, a pyarrow table, a pandas frame (its index is left out), or a mapping of column names to
            equally long values.
        format: one of `FORMATS`; taken from the file's ending when None.
        top: keep the k best heads, best first (of a table that is no `HeadTable`: the first k rows).
        columns: keep these columns, in this order.
        provenance: when given (may be empty), also write `<path>.provenance.json`: these entries, the table's metadata
            and column types, and the hash of the file.

    Raises:
        InputError: unknown format or column, a path that cannot be written, provenance that JSON cannot hold.
    """
    kind = _format(format, path)
    frame = Frame.of(table, top=top, columns=columns)
    content = _render(frame, kind)
    if path is None:
        return content
    raw = content.encode("utf-8") if isinstance(content, str) else content
    files.write(path, raw)
    if provenance is not None:
        files.write_sidecar(path, raw, provenance, frame)
    return None


def _render(frame: Frame, kind: str) -> str | bytes:
    if kind == "parquet":
        return arrow.to_parquet(frame)
    render = {"csv": text.csv, "json": text.json, "md": text.markdown, "latex": latex.table, "html": html.page}
    return render[kind](frame)


def _format(format: str | None, path: str | Path | None) -> str:
    if format is None and path is None:
        raise InputError(f"Say which format: one of {', '.join(FORMATS)}.")
    name = (format or Path(str(path)).suffix.lstrip(".")).lower()
    kind = _ALIASES.get(name, name)
    if kind not in FORMATS:
        where = "" if format else f" (from the ending of {str(path)!r})"
        raise InputError(
            f"There is no export format {name!r}{where}.{did_you_mean(name, (*FORMATS, *_ALIASES))} "
            f"Available: {', '.join(FORMATS)}."
        )
    return kind
