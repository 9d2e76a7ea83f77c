"""Reading tidy tables for figures: a pandas frame, a pyarrow table, a mapping of columns or a list of records.

Pictures take any of them, so that a caller need not convert. It must never know what is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from workbench.errors import InputError, did_you_mean


def take(data: Any, *names: str, optional: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """The named columns as numpy arrays; optional ones only if they are there.

    Raises:
        InputError: a column is missing, or `data` is no table.
    """
    table = every(data)
    if table is None:
        raise InputError(f"A {type(data).__name__} cannot be drawn; give a table with columns {', '.join(names)}.")
    for name in names:
        if name not in table:
            raise InputError(
                f"The table to draw has no column {name!r}.{did_you_mean(name, table)} Columns: {', '.join(table)}."
            )
    return {name: np.asarray(table[name]) for name in (*names, *optional) if name in table}


def every(data: Any) -> dict[str, Any] | None:
    """All columns of a table as they are, None when `data` is no table."""
    if hasattr(data, "column_names"):  # pyarrow
        return {name: data.column(name).to_pylist() for name in data.column_names}
    if hasattr(data, "columns") and hasattr(data, "__getitem__"):  # pandas, HeadTable
        return {str(name): data[name] for name in data.columns}
    if isinstance(data, Mapping):
        return dict(data)
    if isinstance(data, (list, tuple)) and all(isinstance(row, Mapping) for row in data):
        keys = dict.fromkeys(key for row in data for key in row)
        return {key: [row.get(key) for row in data] for key in keys}
    return None


def numbers(name: str, values: np.ndarray) -> np.ndarray:
    """A column as float64, None as NaN."""
    try:
        return np.array([np.nan if value is None else value for value in values.tolist()], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"Column {name!r} holds something that is no number ({error}).") from error
