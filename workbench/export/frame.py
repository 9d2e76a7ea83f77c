"""The one shape every writer takes: named columns of plain Python values, with metadata.

Turns head tables, pyarrow tables, pandas frames and mappings into it and knows which cells are empty. It must never
know a file format.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from workbench.errors import InputError, did_you_mean

INT, FLOAT, BOOL, TEXT, OTHER = "int", "float", "bool", "text", "other"
DIGITS = 4
_OPTIONAL_INTEGER = ("n", "rank")
NOT_APPLICABLE = ("head", "kv_group")  # -1 means "no such thing"


@dataclass(frozen=True)
class Frame:
    """Columns of Python values (None: undefined), the kind of each column, and metadata.

    `heads` is the whole `HeadTable` of which the frame shows all or some rows, if it does. `raw` is the pyarrow table
    it came from, when it came from one unchanged, so that Parquet keeps the exact types. `digits` is how many
    significant digits the formats for reading show, None for all. `groups` names, for a wide table, the result each
    column came from and the column's name in it.
    """

    columns: dict[str, list[Any]]
    kinds: dict[str, str]
    meta: dict[str, Any]
    heads: Any = None
    raw: Any = None
    digits: int | None = DIGITS
    groups: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def n_rows(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def rows(self) -> list[tuple[Any, ...]]:
        return list(zip(*self.columns.values(), strict=True))

    def shown(self, name: str) -> list[Any]:
        """A column as people read it: also -1 for "no head" and "no group" is undefined."""
        if self.heads is not None and name in NOT_APPLICABLE:
            return [None if value == -1 else value for value in self.columns[name]]
        return self.columns[name]

    def describe(self) -> dict[str, Any]:
        """What a reader needs to turn the text of a file back into this table."""
        return {
            "meta": self.meta,
            "columns": self.kinds,
            "rows": self.n_rows,
            "digits": self.digits,
            "heads": self.heads is not None,
        }

    @classmethod
    def of(
        cls,
        table: Any,
        *,
        top: int | None = None,
        columns: Sequence[str] | None = None,
        digits: int | None = DIGITS,
    ) -> Frame:
        """Take a `HeadTable`, a pyarrow table, a pandas frame, a mapping or a frame; keep `top` rows and `columns`."""
        from workbench.tables import HeadTable

        if digits is not None and (isinstance(digits, bool) or not isinstance(digits, int) or not 1 <= digits <= 17):
            raise InputError(f"digits={digits!r} is unusable; give 1 to 17 significant digits, or None for all.")
        if isinstance(table, HeadTable):
            frame = _of_heads(table.top(top) if top is not None else table, whole=table)
        else:
            if top is not None and (isinstance(top, bool) or not isinstance(top, int) or top < 1):
                raise InputError(f"top={top!r} is unusable; give a whole number of rows from 1 up.")
            if hasattr(table, "iloc"):  # pandas, which is not imported for the sake of asking
                import pyarrow as pa

                table = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(None)
            if isinstance(table, Frame):
                frame = table if top is None else table.first(top)
            else:
                frame = _of_arrow(table, top) if hasattr(table, "column_names") else _of_mapping(table, top)
        return replace(frame if columns is None else _only(frame, columns), digits=digits)

    def first(self, k: int) -> Frame:
        """The first k rows."""
        raw = self.raw.slice(0, k) if self.raw is not None else None
        return replace(self, columns={name: values[:k] for name, values in self.columns.items()}, raw=raw)


def _of_heads(table: Any, *, whole: Any) -> Frame:
    columns, kinds = {}, {}
    for name, values in table.columns.items():
        columns[name], kinds[name] = _plain(values)
        if name in _OPTIONAL_INTEGER:
            columns[name] = [None if value is None else int(value) for value in columns[name]]
            kinds[name] = INT
    meta = dict(table.meta) if table.complete else {**table.meta, "shape": list(table.shape)}
    return Frame(columns, kinds, meta, heads=whole)


def _of_arrow(table: Any, top: int | None) -> Frame:
    from workbench.export import arrow

    table = table if top is None else table.slice(0, top)
    columns, kinds = {}, {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        columns[name], kinds[name] = _kind_of_list(column.to_pylist())
    return Frame(columns, kinds, arrow.meta(table), raw=table)


def _of_mapping(table: Any, top: int | None) -> Frame:
    if not isinstance(table, Mapping):
        raise InputError(
            f"A {type(table).__name__} cannot be exported; give a HeadTable, a pyarrow table or a mapping of columns."
        )
    columns, kinds = {}, {}
    for name, values in table.items():
        if isinstance(values, np.ndarray) and values.ndim == 1:
            columns[str(name)], kinds[str(name)] = _plain(values[:top])
        else:
            columns[str(name)], kinds[str(name)] = _kind_of_list(list(values)[:top])
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"The columns are of different lengths ({lengths}); a table needs one length.")
    return Frame(columns, kinds, {})


def _only(frame: Frame, names: Sequence[str]) -> Frame:
    for name in names:
        if name not in frame.columns:
            raise InputError(
                f"The table has no column {name!r}.{did_you_mean(name, frame.columns)} "
                f"Columns: {', '.join(frame.columns)}."
            )
    raw = frame.raw.select(list(names)) if frame.raw is not None else None
    columns = {name: frame.columns[name] for name in names}
    return replace(frame, columns=columns, kinds={name: frame.kinds[name] for name in names}, raw=raw)


def _plain(values: np.ndarray) -> tuple[list[Any], str]:
    kind = values.dtype.kind
    if kind == "f":
        return [None if math.isnan(value) else value for value in values.astype(np.float64).tolist()], FLOAT
    if kind in "iu":
        return values.tolist(), INT
    if kind == "b":
        return values.tolist(), BOOL
    return _kind_of_list(values.tolist())


def _kind_of_list(values: list[Any]) -> tuple[list[Any], str]:
    values = [value.item() if isinstance(value, np.generic) else value for value in values]
    values = [None if isinstance(value, float) and math.isnan(value) else value for value in values]
    types = {type(value) for value in values if value is not None}
    if types <= {float}:
        return values, FLOAT
    if types == {int}:
        return values, INT
    if types == {int, float}:
        return [None if value is None else float(value) for value in values], FLOAT
    if types == {bool}:
        return values, BOOL
    return values, TEXT if types == {str} else OTHER
