"""One wide table out of several: a row per head, the columns of every result side by side.

An outer join on (layer, head), or on (layer, kv_group) where all tables are of kv groups. A head that a table does not
have is blank there, never 0, and counted. Tables of different models are refused, since their heads have nothing in
common but a number; so are tables measured in different bases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import InputError
from workbench.export.frame import BOOL, FLOAT, INT, TEXT, Frame

if TYPE_CHECKING:
    from workbench.tables import HeadTable

_WHOLE = ("n", "rank")  # floats in memory because they may be undefined


def join(
    tables: Mapping[str, HeadTable],
    *,
    columns: Sequence[str] = ("score",),
    ranks: bool = False,
    top: int | None = None,
    across_models: bool = False,
) -> Frame:
    """The heads of all tables with the columns of each, for `export.write`.

    Args:
        tables: name -> head table; a column becomes `NAME.COLUMN`.
        columns: which columns to take from every table.
        ranks: also each table's `rank`, made in that table alone.
        top: keep heads that are among the `top` best of at least one table, the best-ranked first; otherwise all heads
            in the order of the model.
        across_models: join tables of different models or bases, or whose model is not known, all the same.

    Returns:
        A frame whose `meta["joined"]` says of every table what it measures, how many rows it has, how many heads it
        lacks (`missing`) and for how many of its rows the score is not defined (`undefined`).

    Raises:
        InputError: fewer than two tables, a column that one lacks, or tables that do not belong together.
    """
    if len(tables) < 2:
        raise InputError(f"A join needs two tables or more, but got {', '.join(map(repr, tables)) or 'none'}.")
    if top is not None and (isinstance(top, bool) or not isinstance(top, int) or top < 1):
        raise InputError(f"top={top!r} is unusable; give a whole number of heads from 1 up.")
    _check_alike(tables, across_models)
    wanted: dict[str, None] = dict.fromkeys([*columns, *(["rank"] if ranks else [])])
    by_key = {name: {key: row for row, key in enumerate(table.keys())} for name, table in tables.items()}
    keys = _ordered(tables, by_key, top)
    index = "head" if next(iter(tables.values())).row_kind == "head" else "kv_group"
    out: dict[str, list[Any]] = {"layer": [key[0] for key in keys], index: [key[1] for key in keys]}
    kinds, groups = {"layer": INT, index: INT}, {}
    for name, table in tables.items():
        rows = [by_key[name].get(key) for key in keys]
        for column in wanted:
            whole = f"{name}.{column}"
            out[whole], kinds[whole] = _picked(column, table[column], rows)
            groups[whole] = (name, column)
    everywhere = set().union(*by_key.values())
    joined = {name: _about(table, len(everywhere)) for name, table in tables.items()}
    models = {table.meta["model"] for table in tables.values()}
    meta = {"analysis": f"join of {', '.join(tables)}", "model": models.pop() if len(models) == 1 else ""}
    return Frame(out, kinds, {**meta, "joined": joined, "heads": len(everywhere)}, groups=groups)


def _check_alike(tables: Mapping[str, HeadTable], across_models: bool) -> None:
    first, *others = tables
    for name in others:
        a, b = tables[first], tables[name]
        if a.row_kind != b.row_kind:
            raise InputError(
                f"{first!r} has a row per {a.row_kind} and {name!r} per {b.row_kind}; join tables of one kind, or turn "
                "heads into kv groups with .by_kv_group() first."
            )
        if across_models:
            continue
        if not (a.meta["fingerprint"] and b.meta["fingerprint"]):
            silent = name if a.meta["fingerprint"] else first
            raise InputError(
                f"{silent!r} does not say which model it is of (no fingerprint), so its heads may not be the other "
                "table's; join them all the same with across_models=True (--across-models)."
            )
        for key, what in (("fingerprint", "models"), ("basis", "bases")):
            if a.meta[key] != b.meta[key]:
                said = [f"{table.meta['model']} {table.meta[key]}".strip()[:60] for table in (a, b)]
                raise InputError(
                    f"{first!r} and {name!r} are of different {what} ({said[0]} and {said[1]}); join them all the same "
                    "with across_models=True (--across-models)."
                )


def _ordered(
    tables: Mapping[str, HeadTable], by_key: Mapping[str, Mapping[tuple[int, int], int]], top: int | None
) -> list[tuple[int, int]]:
    keys = sorted(set().union(*by_key.values()))
    if top is None:
        return keys
    best = {key: min(_rank(table, by_key[name].get(key)) for name, table in tables.items()) for key in keys}
    return sorted((key for key in keys if best[key] <= top), key=lambda key: (best[key], key))


def _rank(table: HeadTable, row: int | None) -> float:
    rank = math.nan if row is None else float(table["rank"][row])
    return math.inf if math.isnan(rank) else rank


def _picked(column: str, values: np.ndarray, rows: list[int | None]) -> tuple[list[Any], str]:
    kind = INT if column in _WHOLE else {"f": FLOAT, "i": INT, "b": BOOL}.get(values.dtype.kind, TEXT)
    picked = [None if row is None else values[row] for row in rows]
    picked = [value.item() if isinstance(value, np.generic) else value for value in picked]
    picked = [None if isinstance(value, float) and math.isnan(value) else value for value in picked]
    return [int(value) if kind == INT and value is not None else value for value in picked], kind


def _about(table: HeadTable, n_heads: int) -> dict[str, Any]:
    said = {key: table.meta[key] for key in ("analysis", "metric", "unit", "model", "fingerprint", "basis")}
    counted = {"rows": len(table), "missing": n_heads - len(table), "undefined": int((~table.ok).sum())}
    return {**said, "higher_is_more": table.meta["higher_is_more"], **counted}
