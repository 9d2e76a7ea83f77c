"""Payload formats: Parquet tables, safetensors tensors, JSON. Open formats that need nothing of ours to be read.

Same content, same bytes: chunking, pandas' own metadata and key order leave no trace, so equal results have equal
digests. Every Parquet page carries a checksum. pyarrow, numpy and safetensors are imported only where they are used;
this module must never know where in a store a payload lies.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import InputError
from workbench.store import manifest

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

METADATA_KEY = b"workbench"
TABLE, TENSORS, JSON = ".parquet", ".safetensors", ".json"


class Unreadable(Exception):
    """The bytes do not decode; the reader knows which artifact they belong to and says so."""


# -- tables ------------------------------------------------------------------------------------------------------------


def write_table(path: Path, data: Any, *, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a dict of columns, a pyarrow Table or a pandas DataFrame as Parquet with page checksums.

    NaN stays NaN (it does not become null). An index other than pandas' default is kept as ordinary columns.
    """
    import pyarrow.parquet as pq

    table = to_table(data, metadata=metadata)
    with path.open("xb") as file:
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)


def to_table(data: Any, *, metadata: Mapping[str, Any] | None = None) -> pa.Table:
    """The Arrow table of ``data``, in one chunk per column, with ``metadata`` as JSON under the key ``workbench``."""
    import pyarrow as pa

    if isinstance(data, pa.Table):
        table = data
    elif hasattr(data, "columns") and hasattr(data, "reset_index"):
        table = _from_frame(data)
    elif isinstance(data, Mapping):
        table = _from_columns({_column_name(key): _column(key, value) for key, value in data.items()})
    else:
        raise InputError(
            f"A table must be a dict of columns, a pyarrow Table or a pandas DataFrame, not {type(data).__name__}."
        )
    if len(set(table.column_names)) != len(table.column_names):
        raise InputError(f"The table has a column twice among {table.column_names}; rename one.")
    kept = {key: value for key, value in (table.schema.metadata or {}).items() if key != b"pandas"}
    if metadata is not None:
        plain = manifest.plain(metadata, where="metadata")
        kept[METADATA_KEY] = json.dumps(plain, sort_keys=True, allow_nan=False).encode()
    table = _short_strings(table).combine_chunks()
    return table.replace_schema_metadata(dict(sorted(kept.items())) or None)


def _short_strings(table: pa.Table) -> pa.Table:
    """Text is ``string``: pandas 2, pandas 3 and numpy would otherwise each leave another type, and another digest."""
    import pyarrow as pa

    for position, field in enumerate(table.schema):
        if pa.types.is_large_string(field.type) and table.column(position).nbytes < 2**31:
            column = table.column(position).cast(pa.string())
            table = table.set_column(position, field.with_type(pa.string()), column)
    return table


def _from_frame(frame: Any) -> pa.Table:
    import pyarrow as pa

    if type(frame.index).__name__ != "RangeIndex":
        frame = frame.reset_index()
    columns = {}
    for position, key in enumerate(frame.columns):
        series = frame.iloc[:, position]
        name = _column_name(key)
        if name in columns:
            raise InputError(f"The table has the column {name!r} twice; rename one.")
        is_numpy = type(series.dtype).__module__.startswith("numpy") and series.dtype.kind in "biuf"
        try:
            # Numeric columns go the way of a dict of arrays: pandas' own path would turn NaN into null.
            columns[name] = _column(name, series.to_numpy()) if is_numpy else pa.Array.from_pandas(series)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            raise InputError(f"Column {name!r} cannot be stored ({error}); give it one type throughout.") from None
    return _from_columns(columns)


def _from_columns(columns: dict[str, pa.Array]) -> pa.Table:
    import pyarrow as pa

    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"The columns of a table must be equally long, not {lengths}.")
    return pa.table(columns)


def _column_name(key: object) -> str:
    if not isinstance(key, (str, int)):
        raise InputError(f"Column name {key!r} must be a text (or a whole number).")
    return str(key)


def _column(name: object, values: Any) -> pa.Array:
    import numpy as np
    import pyarrow as pa

    if isinstance(values, pa.ChunkedArray):
        return values.combine_chunks()
    if isinstance(values, pa.Array):
        return values
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise InputError(f"Column {name!r} has shape {values.shape}; a column has one dimension (see tensors()).")
        if values.dtype.kind in "biufc" and not values.dtype.isnative:
            values = values.astype(values.dtype.newbyteorder("="))
    elif isinstance(values, (str, bytes)) or not hasattr(values, "__len__"):
        raise InputError(f"Column {name!r} is a {type(values).__name__}; give a sequence of values.")
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise InputError(f"Column {name!r} cannot be stored ({error}); give it one type throughout.") from None


def read_table(source: Path | bytes, *, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file (or its bytes), checking every page; raises Unreadable on damaged bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = pa.BufferReader(source) if isinstance(source, bytes) else str(source)
    try:
        with pq.ParquetFile(buffer, page_checksum_verification=True) as file:
            unknown = [column for column in columns or () if column not in file.schema_arrow.names]
            if unknown:
                raise InputError(f"The table has no column {unknown[0]!r}; it has {file.schema_arrow.names}.")
            return file.read(columns, use_threads=False)  # its thread pool can abort the process at exit
    except (pa.ArrowException, OSError) as error:  # Arrow reports a failed page checksum as an OSError
        raise Unreadable(str(error)) from error


def metadata_of(table: pa.Table) -> dict[str, Any]:
    """The metadata given to ``write_table``; empty if none was."""
    raw = (table.schema.metadata or {}).get(METADATA_KEY)
    try:
        return json.loads(raw) if raw else {}
    except (ValueError, RecursionError):
        raise InputError(
            f"The metadata of this table, under {METADATA_KEY.decode()!r}, is not JSON; read its columns alone."
        ) from None


# -- tensors -----------------------------------------------------------------------------------------------------------


def write_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Write arrays by name as safetensors, names sorted. Torch tensors are taken to the CPU first."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    if not isinstance(tensors, Mapping):
        raise InputError(f"tensors() needs a dict of name -> array, not {type(tensors).__name__}.")
    arrays = {name: _array(name, tensors[name]) for name in sorted(tensors)}
    try:
        save_file(arrays, path)
    except SafetensorError as error:  # its writer is not Python's: the system's error number is in the text
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else 0, str(error), str(path)) from error


def _array(name: object, value: Any) -> np.ndarray:
    import numpy as np

    if not isinstance(name, str) or not name or name == "__metadata__":
        raise InputError(f"Tensor name {name!r} must be a non-empty text other than '__metadata__'.")
    try:
        if hasattr(value, "detach"):
            value = value.detach().cpu().numpy()
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"Tensor {name!r} is not an array ({error}); numpy has no bfloat16: use .float().") from None
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise InputError(f"Tensor {name!r} has dtype {array.dtype}; use bool, an integer or float16/32/64.")
    return np.array(array, dtype=array.dtype.newbyteorder("<"), order="C", ndmin=array.ndim)


def read_tensors(source: Path | bytes, *, keys: list[str] | None = None) -> dict[str, np.ndarray]:
    """Read arrays by name (only ``keys`` if given; from a file the others are not touched)."""
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import load

    try:
        if isinstance(source, bytes):
            arrays = load(source)  # views of the bytes: copied, so that both ways of reading give writable arrays
            return {key: arrays[_known(key, arrays)].copy() for key in keys or sorted(arrays)}
        with safe_open(source, framework="numpy") as file:
            names = list(file.keys())
            return {key: file.get_tensor(_known(key, names)) for key in keys or sorted(names)}
    except (SafetensorError, ValueError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise Unreadable(str(error)) from error


def _known(key: str, names: Any) -> str:
    if key not in names:
        raise InputError(f"There is no tensor {key!r}; there are {sorted(names)}.")
    return key


# -- JSON --------------------------------------------------------------------------------------------------------------


def json_bytes(value: Any, *, where: str) -> bytes:
    """Readable JSON with sorted keys; NaN is written as null, infinities as the texts "Infinity", "-Infinity"."""
    return manifest.to_json(manifest.plain(value, where=where))


def read_json(data: bytes) -> Any:
    """Parse JSON bytes; raises Unreadable on damaged ones."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Unreadable(str(error)) from error
