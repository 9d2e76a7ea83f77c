"""Head tables and frames as pyarrow tables and Parquet bytes, and back.

The metadata of a head table travel as JSON under the schema key `workbench`. pyarrow is imported only inside functions.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import InputError
from workbench.export.frame import BOOL, FLOAT, INT, TEXT, Frame

if TYPE_CHECKING:
    import pyarrow as pa

KEY = b"workbench"


def from_head_table(table: Any) -> pa.Table:
    """All columns; `n` and `rank` as integers with nulls, other undefined numbers as NaN."""
    return from_frame(Frame.of(table))


def from_frame(frame: Frame) -> pa.Table:
    """Typed columns with the frame's metadata in the schema; the original when the frame came from pyarrow."""
    import pyarrow as pa

    if frame.raw is not None:
        return frame.raw
    types = {INT: pa.int64(), BOOL: pa.bool_(), TEXT: pa.string()}
    arrays = {}
    for name, values in frame.columns.items():
        kind = frame.kinds[name]
        if kind == FLOAT:
            arrays[name] = pa.array(np.array([np.nan if v is None else v for v in values], dtype=np.float64))
        else:
            arrays[name] = pa.array(values, type=types.get(kind))
    table = pa.table(arrays)
    return table.replace_schema_metadata({KEY: json.dumps(frame.meta, sort_keys=True)}) if frame.meta else table


def to_parquet(frame: Frame) -> bytes:
    """Parquet with page checksums, so that readers can notice a flipped bit."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = from_frame(frame)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(f"The table has a column that Parquet cannot hold ({error}).") from error
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def columns_and_meta(table: pa.Table) -> tuple[dict[str, Any], dict[str, Any]]:
    """Numpy columns (nulls in numbers as NaN) and the metadata under the schema key."""
    columns: dict[str, Any] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        values = column.to_pylist()  # the column's own to_numpy would import pandas
        if column.type == "string" or column.type == "large_string":
            columns[name] = np.array(["" if value is None else value for value in values], dtype=object)
        else:
            columns[name] = np.array(values, dtype=object if column.null_count else None)
    return columns, meta(table)


def meta(table: pa.Table) -> dict[str, Any]:
    """The JSON object under the schema key; empty when there is none."""
    try:
        found = json.loads((table.schema.metadata or {}).get(KEY, b"{}"))
    except ValueError as error:
        raise InputError("The table's 'workbench' metadata are not JSON; the file was not written by us.") from error
    return found if isinstance(found, dict) else {}
