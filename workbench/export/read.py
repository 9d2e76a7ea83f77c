"""Reading back what `workbench.export` wrote, as columns and metadata.

Parquet and JSON carry their types. CSV does not, so they come from the provenance file beside it or are inferred from
the text: our floats always show a point, an exponent, "inf" or nothing, our integers never do. Markdown, LaTeX and HTML
are read the same way, and give the numbers they show: all of them where the table was written with `digits=None`.
A text that is undefined reads back as an empty one, except from Parquet and JSON.
"""

from __future__ import annotations

import csv as csv_module
import io
import json as json_module
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import InputError
from workbench.export import arrow, files, shown
from workbench.export.formats import format_of
from workbench.export.frame import BOOL, FLOAT, INT, NOT_APPLICABLE, TEXT
from workbench.export.text import UNDEFINED

if TYPE_CHECKING:
    from workbench.tables import HeadTable

Read = tuple[dict[str, Any], dict[str, Any]]
_INTEGER = re.compile(r"[-+]?\d{1,18}")
_FOR_READING = {"md": shown.markdown, "latex": shown.latex, "html": shown.html}


def table(path: str | Path, format: str | None = None, *, ignore_sidecar: bool = False) -> Read:
    """Columns (numpy, undefined numbers NaN) and metadata of a file of any format.

    Args:
        format: one of `export.FORMATS`; taken from the file's ending when None.
        ignore_sidecar: do without the provenance file; types are then inferred where the format has none.

    Raises:
        InputError: no such file or format, a file changed since its provenance was written, or none of ours.
    """
    kind = format_of(format, path)
    if kind == "parquet":
        return parquet(path)
    if kind == "json":
        return json(path)
    return csv(path, ignore_sidecar=ignore_sidecar) if kind == "csv" else _for_reading(path, kind, ignore_sidecar)


def heads(path: str | Path, format: str | None = None) -> HeadTable:
    """The head table that was written to `path`, equal to the one that was exported.

    Raises:
        InputError: as `table`; also a file that shows rounded numbers, whose ranks could not be had from it.
    """
    from workbench.tables import HeadTable

    columns, meta = table(path, format)
    kind = format_of(format, path)
    if kind in _FOR_READING:
        known = files.read_sidecar(path, files.read(path)) or {}
        if known.get("digits", 0) is not None:
            raise InputError(
                f"{str(path)!r} shows rounded numbers; export it with all digits (digits=None, --digits 0) to have "
                "the same table again, or read what it shows with read.table."
            )
    shape = meta.pop("shape", None)
    return HeadTable(columns, meta, shape=shape)


def parquet(path: str | Path) -> Read:
    """Columns and metadata of a Parquet file, page checksums verified."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = files.read(path)
    try:
        # Not pq.read_table, which imports pandas.
        table = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True).read(use_threads=False)
        return arrow.columns_and_meta(table)
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:  # a name that is no UTF-8 shows when it is looked at
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{str(path)!r} is no readable Parquet file ({why}); copy or export it again.") from error


def csv(path: str | Path, *, ignore_sidecar: bool = False) -> Read:
    """Columns of a CSV file; types and metadata from its provenance file unless that is to be ignored."""
    content = files.read(path)
    known = None if ignore_sidecar else files.read_sidecar(path, content)
    try:
        lines = list(csv_module.reader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    except (UnicodeDecodeError, csv_module.Error) as error:
        raise InputError(f"{str(path)!r} is no readable CSV file ({error}); save it as UTF-8 text.") from error
    if not lines or not lines[0]:
        raise InputError(f"{str(path)!r} is empty; a CSV table starts with a line of column names.")
    return _columns(str(path), lines[0], [line for line in lines[1:] if line], known)


def json(path: str | Path) -> Read:
    """Columns and metadata of a JSON file of ours."""
    try:
        whole = json_module.loads(files.read(path))
        names, rows, kinds = list(whole["columns"]), list(whole["rows"]), dict(whole["kinds"])
        values = {name: [row[name] for row in rows] for name in names}
        meta = dict(whole["meta"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{str(path)!r} is no JSON table of ours ({error}); export it again.") from error
    return {name: _from_json(str(path), name, values[name], kinds.get(name)) for name in names}, meta


def _from_json(path: str, name: str, values: list[Any], kind: str | None) -> np.ndarray:
    if kind in (INT, FLOAT):
        texts = ["" if value is None else str(value) for value in values]
        return _typed(path, name, texts, kind)
    if kind == BOOL and None not in values:
        return np.array(values, dtype=bool)
    out = np.empty(len(values), dtype=object)  # np.array would make lists of one length a grid
    out[:] = values
    return out


def _for_reading(path: str | Path, kind: str, ignore_sidecar: bool) -> Read:
    content = files.read(path)
    known = None if ignore_sidecar else files.read_sidecar(path, content)
    try:
        names, rows = _FOR_READING[kind](content.decode("utf-8"))
    except ValueError as error:
        raise InputError(f"{str(path)!r} is no {kind} table of ours ({error}); export it again.") from error
    kinds = known["columns"] if known else {}
    whole = known is not None and known.get("heads", False)
    for at, name in enumerate(names):
        if kinds.get(name, TEXT if name == "status" else None) == TEXT:
            said = {} if whole else {UNDEFINED: ""}  # every text of a head table is defined
        else:
            said = {UNDEFINED: "-1" if whole and name in NOT_APPLICABLE else "", "yes": "true", "no": "false"}
        for row in rows:
            if at < len(row):
                row[at] = said.get(row[at], row[at])
    return _columns(str(path), names, rows, known)


def _columns(path: str, names: list[str], rows: list[list[str]], known: dict[str, Any] | None) -> Read:
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path!r} names the column {twice!r:.60} twice; column names must differ.")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(names):
            raise InputError(f"{path!r} has {len(row)} cells in row {number}, but {len(names)} columns.")
    kinds = known["columns"] if known else {}
    columns = {name: _typed(path, name, [row[at] for row in rows], kinds.get(name)) for at, name in enumerate(names)}
    return columns, (known["meta"] if known else {})


def _typed(path: str, name: str, cells: list[str], kind: str | None) -> np.ndarray:
    kind = kind or (TEXT if name == "status" else _infer(cells))
    if kind == BOOL:
        return _flags(path, name, cells)
    if kind == INT and "" not in cells:
        return np.array([_number(path, name, cell, row, int) for row, cell in enumerate(cells, 2)], dtype=np.int64)
    if kind in (INT, FLOAT):
        return np.array([_number(path, name, cell or "nan", row, float) for row, cell in enumerate(cells, 2)])
    return np.array(cells, dtype=object)


def _flags(path: str, name: str, cells: list[str]) -> np.ndarray:
    said: dict[str, bool | None] = {"true": True, "false": False, "": None}
    for row, cell in enumerate(cells, 2):
        if cell not in said:
            raise InputError(f"{path!r} holds {cell!r} in row {row} of column {name!r}, which takes true or false.")
    return np.array([said[cell] for cell in cells], dtype=object if "" in cells else bool)


def _infer(cells: list[str]) -> str:
    filled = [cell for cell in cells if cell]
    if filled and all(cell in ("true", "false") for cell in filled) and len(filled) == len(cells):
        return BOOL
    if filled and all(_INTEGER.fullmatch(cell) for cell in filled):
        return INT
    try:
        for cell in filled:
            float(cell)
    except ValueError:
        return TEXT
    return FLOAT


def _number(path: str, name: str, cell: str, row: int, kind: type) -> Any:
    try:
        found = kind(cell)
        if kind is int and abs(found) >= 2**63:
            raise ValueError
        return found
    except ValueError:
        raise InputError(f"{path!r} holds {cell!r} in row {row} of column {name!r}, which takes numbers.") from None
