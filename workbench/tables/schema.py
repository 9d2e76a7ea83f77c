"""What a valid head table is: column names and types, the metadata, and the ranking that follows from the scores.

One place decides, so that a table read from a file and one built by an analysis mean the same. It must never know how a
score was computed or where the table goes.

Conventions: floats are float64 with NaN for undefined; `n` and `rank` may be undefined too and are therefore float64 in
memory (files hold them as integers with nulls); `head` is -1 in a table whose rows are kv groups; `kv_group` is -1 when
the grouping is not known; `status` is "ok" or a word saying why the row has no valid score.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from workbench.errors import InputError, did_you_mean

INTEGER = ("layer", "head", "kv_group")
OPTIONAL_INTEGER = ("n", "rank")
COLUMNS = (
    *INTEGER,
    "score",
    "stderr",
    "ci_low",
    "ci_high",
    "n",
    "null_mean",
    "null_p",
    "rank",
    "status",
)
OK = "ok"
META_DEFAULTS: dict[str, Any] = {
    "analysis": "unknown",
    "metric": "score",
    "unit": "",
    "model": "",
    "fingerprint": "",
    "basis": "raw",
    "higher_is_more": True,
}


def check_meta(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in defaults (also for None) and check types. Keys beyond the schema are kept when JSON can hold them."""
    full = META_DEFAULTS | {key: value for key, value in meta.items() if value is not None}
    if isinstance(full["higher_is_more"], np.bool_):
        full["higher_is_more"] = bool(full["higher_is_more"])
    for key, default in META_DEFAULTS.items():
        if not isinstance(full[key], type(default)):
            kind = "true or false" if key == "higher_is_more" else "text"
            raise InputError(f"Table metadata {key}={full[key]!r} should be {kind}.")
    try:
        text = json.dumps(full, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise InputError(f"Table metadata cannot be written as JSON ({error}); use plain values.") from error
    return json.loads(text)


def check_meta_keywords(words: Mapping[str, Any]) -> None:
    """Refuse keywords that are no metadata key, so that a misspelt column name is not swallowed."""
    for word in words:
        if word not in META_DEFAULTS:
            known = (*META_DEFAULTS, *COLUMNS, "extra", "n_kv_heads")
            raise InputError(
                f"{word!r} is neither a column nor a metadata key of a head table.{did_you_mean(word, known)} "
                "Further columns go in extra={...}, further metadata in meta={...}."
            )


def check_columns(columns: Mapping[str, Any], *, higher_is_more: bool, sort: bool = True) -> dict[str, np.ndarray]:
    """Return all columns in schema order, typed, sorted by (layer, head), ranked and read-only.

    Raises:
        InputError: naming the column, and the row where one is to blame.
    """
    given = {name: np.asarray(values) for name, values in columns.items()}
    for required in ("layer", "score"):
        if required not in given:
            held = " ".join(", ".join(given).split())
            raise InputError(f"A head table needs a {required!r} column; it has {held or 'none'}.")
    if "head" not in given and "kv_group" not in given:
        raise InputError("A head table needs a 'head' column (or 'kv_group' alone, for rows that are kv groups).")
    n_rows = given["score"].shape[0] if given["score"].ndim else 0
    for name, values in given.items():
        if values.ndim != 1 or len(values) != n_rows:
            raise InputError(
                f"Column {name!r} has shape {values.shape}, but 'score' has {n_rows} rows; every column is flat and "
                "of one length."
            )
    table: dict[str, np.ndarray] = {}
    for name in INTEGER:
        table[name] = _integers(name, given.get(name, np.full(n_rows, -1)))
    for name in COLUMNS[len(INTEGER) : -1]:
        table[name] = _floats(name, given.get(name, np.full(n_rows, np.nan)))
    missing = np.isnan(table["score"])
    table["status"] = _texts("status", given.get("status", np.where(missing, "undefined", OK)))
    for name, values in given.items():
        if name not in table:
            table[name] = _extra(name, values)
    _check_rows(table)
    if sort:
        order = np.lexsort((row_index(table), table["layer"]))
        table = {name: values[order] for name, values in table.items()}
        table["rank"] = ranks(table, higher_is_more=higher_is_more)
    for values in table.values():
        values.flags.writeable = False
    return table


def row_index(table: Mapping[str, np.ndarray]) -> np.ndarray:
    """What numbers the rows within a layer: `head`, or `kv_group` where all heads are -1."""
    return table["kv_group"] if rows_are_kv_groups(table) else table["head"]


def rows_are_kv_groups(table: Mapping[str, np.ndarray]) -> bool:
    return len(table["head"]) > 0 and bool((table["head"] == -1).all())


def ranks(table: Mapping[str, np.ndarray], *, higher_is_more: bool) -> np.ndarray:
    """1 for the best score among rows whose status is ok; NaN elsewhere. Ties go to the earlier row."""
    ok = np.flatnonzero(table["status"] == OK)
    score = table["score"][ok]
    order = np.argsort(-score if higher_is_more else score, kind="stable")
    rank = np.full(len(table["score"]), np.nan)
    rank[ok[order]] = np.arange(1, len(ok) + 1)
    return rank


def _check_rows(table: Mapping[str, np.ndarray]) -> None:
    index = row_index(table)
    _refuse(table, "layer", table["layer"] < 0, "layers count from 0")
    _refuse(table, "kv_group", table["kv_group"] < -1, "kv groups count from 0, and -1 says unknown")
    if rows_are_kv_groups(table):
        _refuse(table, "kv_group", index < 0, "a table of kv groups (head -1 everywhere) numbers them from 0")
    else:
        _refuse(table, "head", index < 0, "heads count from 0, and -1 is for tables of kv groups only")
    _refuse(table, "stderr", table["stderr"] < 0, "a standard error is not negative")
    _refuse(table, "ci_high", table["ci_high"] < table["ci_low"], "the upper bound lies below ci_low")
    _refuse(table, "n", table["n"] < 0, "a count is not negative")
    _refuse(table, "null_p", (table["null_p"] < 0) | (table["null_p"] > 1), "a p-value lies in [0, 1]")
    _refuse(table, "status", table["status"] == "", "write 'ok' or a word that says why there is no score")
    silent = np.isnan(table["score"]) & (table["status"] == OK)
    _refuse(table, "score", silent, "an undefined score needs a status other than 'ok'")
    keys, counts = np.unique(np.stack([table["layer"], index]), axis=1, return_counts=True)
    if (counts > 1).any():
        layer, head = keys[:, counts > 1][:, 0]
        raise InputError(f"Row (layer {layer}, head {head}) occurs more than once; a head table has one row per head.")


def _refuse(table: Mapping[str, np.ndarray], column: str, bad: np.ndarray, why: str) -> None:
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        where = f"row {row} (layer {table['layer'][row]}, head {row_index(table)[row]})"
        value = table[column][row]
        raise InputError(f"Column {column!r} holds {value!s} in {where}: {why}.")


def _integers(name: str, values: np.ndarray) -> np.ndarray:
    whole = _floats(name, values)
    bad = np.flatnonzero(~np.isfinite(whole) | (whole != np.floor(whole)))
    if len(bad):
        raise InputError(f"Column {name!r} holds {whole[bad[0]]} in row {bad[0]}; it takes whole numbers.")
    return whole.astype(np.int64)


def _floats(name: str, values: np.ndarray) -> np.ndarray:
    if values.dtype == object:
        values = np.array([np.nan if value is None else value for value in values], dtype=object)
    try:
        return np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        for row, value in enumerate(values.tolist()):
            try:
                float(value)
            except (TypeError, ValueError):
                raise InputError(f"Column {name!r} holds {value!r} in row {row}; it takes numbers.") from None
        raise


def _texts(name: str, values: np.ndarray) -> np.ndarray:
    for row, value in enumerate(values.tolist()):
        if not isinstance(value, str):
            raise InputError(f"Column {name!r} holds {value!r} in row {row}; it takes text.")
    return np.array([str(value) for value in values], dtype=object)


def _extra(name: str, values: np.ndarray) -> np.ndarray:
    """Numbers, booleans or text: what every export format can hold."""
    if not name or not isinstance(name, str):
        raise InputError(f"Column name {name!r} is unusable; name columns with text.")
    if values.dtype.kind == "b":
        return values.astype(bool)
    if values.dtype.kind in "iu":
        return values.astype(np.int64)
    if values.dtype.kind == "f":
        return values.astype(np.float64)
    if values.dtype.kind in "UT" or (values.dtype == object and all(isinstance(value, str) for value in values)):
        return _texts(name, values.astype(object))
    if values.dtype == object:
        return _floats(name, values)
    raise InputError(f"Column {name!r} has type {values.dtype}; further columns hold numbers, booleans or text.")
