"""How far two artifacts agree, payload by payload: bitwise, numerically, in ranking, or not.

Pure comparison of tables, arrays and JSON values; it reads artifacts and computes nothing with a model. `rerun` asks it
whether a recomputation confirms what is stored, `diff` how two results differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import InputError
from workbench.tables import HeadTable

if TYPE_CHECKING:
    import pyarrow as pa

    from workbench.store import Artifact


class Level(IntEnum):
    """Degrees of agreement, worst first."""

    DIFFERENT = 0
    RANK = 1  # the same heads in nearly the same order
    ALLCLOSE = 2
    BITWISE = 3

    @property
    def word(self) -> str:
        return {0: "different", 1: "rank-stable", 2: "allclose", 3: "bitwise"}[int(self)]


@dataclass(frozen=True)
class Tolerance:
    """When numbers count as close, and when rankings count as stable."""

    rtol: float = 1e-4
    atol: float = 1e-6
    spearman: float = 0.99
    jaccard: float = 0.8
    top: int = 10


@dataclass(frozen=True)
class Agreement:
    """Verdict on one payload. `max_abs` is the largest absolute difference of its numbers, None when shapes differ."""

    payload: str
    level: Level
    max_abs: float | None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "level": self.level.word}


@dataclass(frozen=True)
class HeadDifference:
    """How two head tables of the same shape differ; heads defined in both count."""

    max_abs: float
    spearman: float
    jaccard: float
    top: int
    n: int
    changed: tuple[dict[str, Any], ...]  # layer, head, before, after, change: largest changes first

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "changed": list(self.changed)}


def overall(agreements: Iterable[Agreement]) -> Level:
    """The verdict on the whole: the worst payload, except that stable head ranks outweigh changed side tables."""
    agreements = list(agreements)
    worst = min((a.level for a in agreements), default=Level.DIFFERENT)
    heads = next((a.level for a in agreements if a.payload == "heads.parquet"), Level.DIFFERENT)
    return worst if worst >= Level.ALLCLOSE else min(heads, Level.RANK)


def agree(old: Artifact, new: Artifact, tolerance: Tolerance | None = None) -> list[Agreement]:
    """Compare every payload of two artifacts; one that only one of them has is `different`."""
    tolerance = tolerance or Tolerance()
    names = sorted({*_digests(old), *_digests(new)}, key=lambda name: (name != "heads.parquet", name))
    return [_payload(name, old, new, tolerance) for name in names]


def _digests(artifact: Artifact) -> dict[str, str]:
    return {name: entry["sha256"] for name, entry in artifact.files().items()}


def _payload(name: str, old: Artifact, new: Artifact, tolerance: Tolerance) -> Agreement:
    before, after = _digests(old).get(name), _digests(new).get(name)
    if before is None or after is None:
        return Agreement(name, Level.DIFFERENT, None, "only in the " + ("new one" if before is None else "stored one"))
    if before == after:
        old.bytes(name, verify=True)  # the manifest's word is not enough: what lies on the disk must still be that
        return Agreement(name, Level.BITWISE, 0.0)
    stem, _, kind = name.rpartition(".")
    if kind == "parquet":
        a, b = old.table(stem), new.table(stem)
        found = _arrays(name, _columns(a), _columns(b), tolerance)
        if name == "heads.parquet" and found.level < Level.ALLCLOSE:
            return _ranking(found, HeadTable.from_arrow(a), HeadTable.from_arrow(b), tolerance)
        return found
    if kind == "safetensors":
        return _arrays(name, old.tensors(stem), new.tensors(stem), tolerance)
    if kind == "json":
        return _arrays(name, flatten(old.json(stem)), flatten(new.json(stem)), tolerance)
    return Agreement(name, Level.DIFFERENT, None, "bytes differ")


def _ranking(found: Agreement, old: HeadTable, new: HeadTable, tolerance: Tolerance) -> Agreement:
    """The verdict on head tables whose numbers differ: are the same heads in the same order?"""
    try:
        ranks = compare_heads(old, new, top=tolerance.top)
    except InputError as error:  # of another shape
        return replace(found, note=str(error))
    stable = ranks.spearman >= tolerance.spearman and ranks.jaccard >= tolerance.jaccard and ranks.n == old.ok.sum()
    note = f"Spearman {ranks.spearman:.4f}, top-{ranks.top} Jaccard {ranks.jaccard:.2f}"
    return replace(found, level=Level.RANK if stable else Level.DIFFERENT, note=note)


def _columns(table: pa.Table) -> dict[str, np.ndarray]:
    """Columns as arrays; by way of Python values, because Arrow's own conversion imports pandas."""
    import pyarrow as pa

    found: dict[str, np.ndarray] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        numeric = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
        found[name] = np.array([math.nan if numeric and value is None else value for value in column.to_pylist()])
    return found


def _arrays(name: str, old: Mapping[str, Any], new: Mapping[str, Any], tolerance: Tolerance) -> Agreement:
    """Compare named columns, tensors or scalars; the payload is as good as its worst member."""
    if set(old) != set(new):
        odd = sorted(set(old) ^ set(new))
        return Agreement(name, Level.DIFFERENT, None, f"only one has {', '.join(odd[:5])}")
    level, largest, note = Level.BITWISE, 0.0, ""
    for key in old:
        a, b = np.asarray(old[key]), np.asarray(new[key])
        if a.shape != b.shape:
            return Agreement(name, Level.DIFFERENT, None, f"{key}: shape {a.shape} became {b.shape}")
        found, change = _values(a, b, tolerance)
        largest = max(largest, change)
        if found < level:
            level, note = found, f"first in {key}" if found == Level.DIFFERENT else ""
    return Agreement(name, level, largest, note)


def _values(a: np.ndarray, b: np.ndarray, tolerance: Tolerance) -> tuple[Level, float]:
    """Level and largest absolute difference of two arrays of one shape; NaN equals NaN, text must be equal."""
    numeric = a.dtype.kind in "fiub" and b.dtype.kind in "fiub"
    if not numeric:
        same = all(_equal(x, y) for x, y in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True))
        return (Level.BITWISE, 0.0) if same else (Level.DIFFERENT, 0.0)
    x, y = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        change = np.abs(x - y)
    change = change[np.isfinite(change)]
    largest = float(change.max()) if change.size else 0.0
    if a.dtype == b.dtype and np.array_equal(x, y, equal_nan=True):
        return Level.BITWISE, 0.0
    close = np.allclose(x, y, rtol=tolerance.rtol, atol=tolerance.atol, equal_nan=True)
    return (Level.ALLCLOSE if close else Level.DIFFERENT), largest


def _equal(x: Any, y: Any) -> bool:
    if isinstance(x, float) and isinstance(y, float) and math.isnan(x) and math.isnan(y):
        return True
    if isinstance(x, np.ndarray) or isinstance(y, np.ndarray):
        return np.array_equal(np.asarray(x), np.asarray(y))
    return bool(x == y)


def compare_heads(old: HeadTable, new: HeadTable, *, top: int = 10, most: int = 10) -> HeadDifference:
    """Differences of two head tables, matched by head, over the rows that are ok in both.

    Raises:
        InputError: the tables have no rows in common that could be compared.
    """
    agreement = old.compare(new, rule=f"top {top}", allow_basis_mismatch=True)
    before, after = _scores(old), _scores(new)
    shared = sorted(before.keys() & after.keys())
    change = np.array([after[head] - before[head] for head in shared])
    order = [int(i) for i in np.argsort(-np.abs(change), kind="stable") if change[i] != 0]
    identical = not order
    return HeadDifference(
        max_abs=float(np.abs(change).max(initial=0.0)),
        spearman=1.0 if identical else agreement.spearman,  # undefined for constant scores
        jaccard=1.0 if identical else agreement.jaccard,
        top=min(top, len(shared)),
        n=len(shared),
        changed=tuple(
            {
                "layer": shared[i][0],
                "head": shared[i][1],
                "before": before[shared[i]],
                "after": after[shared[i]],
                "change": float(change[i]),
            }
            for i in order[:most]
        ),
    )


def _scores(table: HeadTable) -> dict[tuple[int, int], float]:
    return {head: float(score) for head, score, ok in zip(table.keys(), table["score"], table.ok, strict=True) if ok}


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested JSON as `{dotted key: scalar}`; empty containers stay as themselves, so that they are compared too."""
    if isinstance(value, Mapping) and value:
        items: Iterable[tuple[str, Any]] = ((str(k), v) for k, v in value.items())
    elif isinstance(value, (list, tuple)) and value:
        items = ((str(i), v) for i, v in enumerate(value))
    else:
        return {prefix: str(value) if isinstance(value, (dict, list, tuple)) else value}
    flat: dict[str, Any] = {}
    for key, inner in items:
        flat.update(flatten(inner, f"{prefix}.{key}" if prefix else key))
    return flat
