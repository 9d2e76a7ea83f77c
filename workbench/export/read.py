"""Reading back what `workbench.export` wrote, as columns and metadata.

CSV carries no types, so they come from the provenance file beside it or are inferred from the text: our floats always
show a point, an exponent, "inf" or nothing, our integers never do.
"""

from __future__ import annotations

import csv as csv_module
import io
import re
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import InputError
from workbench.export import arrow, files
from workbench.export.frame import BOOL, FLOAT, INT, TEXT

Read = tuple[dict[str, Any], dict[str, Any]]
_INTEGER = re.compile(r"[-+]?\d{1,18}")


def parquet(path: str | Path) -> Read:
    """Columns and metadata of a Parquet file, page checksums verified."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = files.read(path)
    try:
        # Not pq.read_table, which imports pandas.
        table = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True).read(use_threads=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{str(path)!r} is no readable Parquet file ({str(error).splitlines()[0]}).") from error
    return arrow.columns_and_meta(table)


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
    names, rows = lines[0], [line for line in lines[1:] if line]
    if len(set(names)) != len(names):
        raise InputError(f"{str(path)!r} names a column twice ({', '.join(names)}); column names must differ.")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(names):
            raise InputError(f"{str(path)!r} has {len(row)} cells in row {number}, but {len(names)} columns.")
    kinds = known["columns"] if known else {}
    columns = {
        name: _typed(str(path), name, [row[at] for row in rows], kinds.get(name)) for at, name in enumerate(names)
    }
    return columns, (known["meta"] if known else {})


def _typed(path: str, name: str, cells: list[str], kind: str | None) -> np.ndarray:
    kind = kind or (TEXT if name == "status" else _infer(cells))
    if kind == BOOL:
        return np.array([cell == "true" for cell in cells], dtype=bool)
    if kind == INT and "" not in cells:
        return np.array([_number(path, name, cell, row, int) for row, cell in enumerate(cells, 2)], dtype=np.int64)
    if kind in (INT, FLOAT):
        return np.array([_number(path, name, cell or "nan", row, float) for row, cell in enumerate(cells, 2)])
    return np.array(cells, dtype=object)


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
        return kind(cell)
    except ValueError:
        raise InputError(f"{path!r} holds {cell!r} in row {row} of column {name!r}, which takes numbers.") from None
