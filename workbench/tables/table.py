"""The `HeadTable` class: one row per attention head (or kv group), with its metadata.

Constructors turn arrays into validated rows and methods answer questions about them; what leaves Python does so through
`handover`. A table never changes after construction. It must never know which analysis filled it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from workbench import stats
from workbench.errors import InputError, did_you_mean
from workbench.tables import rules, schema
from workbench.tables.compare import Comparison, compare
from workbench.tables.handover import HandOver

if TYPE_CHECKING:
    import pyarrow as pa

Head = tuple[int, int]
Rows = Literal["head", "kv_group"]


class HeadTable(HandOver):
    """Scores of attention heads: columns, metadata and the questions one asks of them.

    `columns` maps names to read-only numpy arrays of one length: layer, head, kv_group, score, stderr, ci_low, ci_high,
    n, null_mean, null_p, rank, status, then further columns. Rows are sorted by (layer, head); rank 1 is the best score
    among the rows whose status is "ok", in the direction of `meta["higher_is_more"]`, ties to the earlier head. An
    undefined score is NaN with another status, never 0. A table of kv groups has head -1 in every row and is sorted and
    keyed by (layer, kv_group). `meta` holds analysis, metric, unit (of the score: "nats", "degrees", ...), model,
    fingerprint, basis, higher_is_more, and whatever else was given.
    """

    columns: dict[str, np.ndarray]
    meta: dict[str, Any]
    shape: tuple[int, int]  # layers x heads (or kv groups) of the model, as far as the rows tell

    def __init__(
        self,
        columns: Mapping[str, Any],
        meta: Mapping[str, Any] | None = None,
        *,
        shape: tuple[int, int] | None = None,
        _sort: bool = True,
    ) -> None:
        self.meta = schema.check_meta(meta or {})
        self.columns = schema.check_columns(columns, higher_is_more=self.meta["higher_is_more"], sort=_sort)
        index = schema.row_index(self.columns)
        seen = (int(self["layer"].max()) + 1, int(index.max()) + 1) if len(self) else (0, 0)
        self.shape = (int(shape[0]), int(shape[1])) if shape is not None else seen
        if any(have > room for have, room in zip(seen, self.shape, strict=True)):
            raise InputError(
                f"The rows need a shape of at least {seen[0]}x{seen[1]}, but shape={self.shape} was given."
            )

    # ------------------------------------------------------------------------------------------------ construction

    @classmethod
    def build(cls, columns: Mapping[str, Any], meta: Mapping[str, Any] | None = None) -> HeadTable:
        """From flat columns; `layer`, `head` and `score` are needed, the rest defaults to undefined."""
        return cls(columns, meta)

    @classmethod
    def from_scores(
        cls,
        score: Any,
        *,
        n_kv_heads: int | None,
        rows: Rows = "head",
        stderr: Any = None,
        ci_low: Any = None,
        ci_high: Any = None,
        n: Any = None,
        null_mean: Any = None,
        null_p: Any = None,
        status: Any = None,
        extra: Mapping[str, Any] | None = None,
        meta: Mapping[str, Any] | None = None,
        **meta_keys: Any,
    ) -> HeadTable:
        """From grids.

        Args:
            score: `[n_layers, n_heads]`, or `[n_layers, n_kv_heads]` with `rows="kv_group"`. NaN: undefined.
            n_kv_heads: query heads share kv heads in groups of n_heads / n_kv_heads; None when not known.
            stderr, ci_low, ci_high, n, null_mean, null_p, status: grids of the same shape, or one value for all.
            extra: further columns by name, grids of the same shape.
            meta_keys: analysis, metric, unit, model, fingerprint, basis, higher_is_more; others go in `meta`.

        Raises:
            InputError: naming the argument whose shape does not fit.
        """
        schema.check_meta_keywords(meta_keys)
        grid = np.asarray(score, dtype=np.float64)
        if grid.ndim != 2:
            raise InputError(f"Scores have shape {grid.shape}; give [n_layers, n_heads].")
        n_layers, width = grid.shape
        layer, index = (axis.ravel() for axis in np.indices(grid.shape))
        if rows not in ("head", "kv_group"):
            raise InputError(f"rows={rows!r} is unknown; use 'head' or 'kv_group'.")
        columns: dict[str, Any] = {"layer": layer, "score": grid.ravel()}
        if rows == "head":
            columns |= {"head": index, "kv_group": _kv_groups(index, width, n_kv_heads)}
        else:
            columns |= {"kv_group": index}
        given = {"stderr": stderr, "ci_low": ci_low, "ci_high": ci_high, "n": n}
        given |= {"null_mean": null_mean, "null_p": null_p, "status": status}
        _check_extra_names(extra or {})
        for name, value in {**given, **(extra or {})}.items():
            if value is not None:
                columns[name] = _flat(name, value, grid.shape)
        return cls(columns, {**(meta or {}), **meta_keys}, shape=(n_layers, width))

    @classmethod
    def from_examples(
        cls,
        per_example: Any,
        *,
        n_kv_heads: int | None,
        null: Any = None,
        null_draws: Any = None,
        confidence: float = 0.95,
        n_boot: int = 1000,
        n_perm: int = 9999,
        seed: int = 0,
        rows: Rows = "head",
        status: Any = None,
        extra: Mapping[str, Any] | None = None,
        meta: Mapping[str, Any] | None = None,
        **meta_keys: Any,
    ) -> HeadTable:
        """From per-example scores: mean, standard error, bootstrap interval, n and the comparison with a null.

        Args:
            per_example: `[n_examples, n_layers, n_heads]`; NaN where an example does not define a head's score.
            null: same shape, a baseline paired with each example; p by flipping the signs of the differences.
            null_draws: `[n_draws, n_layers, n_heads]`, the mean score redrawn under the null; p = (1 + hits) / (1 + n).
                Both p-values are one-sided, in the direction of `higher_is_more`.
            confidence, n_boot: of the percentile bootstrap over examples.
        """
        values = np.asarray(per_example, dtype=np.float64)
        if values.ndim != 3:
            raise InputError(f"Per-example scores have shape {values.shape}; give [n_examples, n_layers, n_heads].")
        if null is not None and null_draws is not None:
            raise InputError("Give null= (paired baseline) or null_draws= (draws of the mean), not both.")
        score = stats.mean(values)
        low, high = stats.bootstrap_ci(values, confidence=confidence, n_boot=n_boot, seed=seed)
        null_mean, null_p = None, None
        more = {**(meta or {}), **meta_keys}.get("higher_is_more", True)
        alternative = "greater" if more else "less"
        if null is not None:
            baseline = np.asarray(null, dtype=np.float64)
            if baseline.shape != values.shape:
                raise InputError(f"null has shape {baseline.shape}, but the scores it is paired with {values.shape}.")
            # An example takes part only where both sides are defined.
            null_mean = stats.mean(np.where(np.isnan(values), np.nan, baseline))
            null_p = stats.sign_flip_p(values - baseline, alternative=alternative, n_perm=n_perm, seed=seed)
        elif null_draws is not None:
            draws = np.asarray(null_draws, dtype=np.float64)
            null_p = stats.empirical_p(score, draws, alternative=alternative)
            null_mean = stats.mean(draws)
        return cls.from_scores(
            score,
            n_kv_heads=n_kv_heads,
            rows=rows,
            stderr=stats.stderr(values),
            ci_low=low,
            ci_high=high,
            n=(~np.isnan(values)).sum(axis=0),
            null_mean=null_mean,
            null_p=null_p,
            status=status,
            extra=extra,
            meta=meta,
            **meta_keys,
        )

    @classmethod
    def from_arrow(cls, table: pa.Table, meta: Mapping[str, Any] | None = None) -> HeadTable:
        """From a pyarrow table; metadata come from its schema unless given."""
        from workbench.export import arrow

        return cls._from_read(*arrow.columns_and_meta(table), meta)

    @classmethod
    def from_parquet(cls, path: str | Path, meta: Mapping[str, Any] | None = None) -> HeadTable:
        """The table that `to_parquet` wrote, or any Parquet file with the columns of one."""
        from workbench.export import read

        return cls._from_read(*read.parquet(path), meta)

    @classmethod
    def from_csv(cls, path: str | Path, meta: Mapping[str, Any] | None = None) -> HeadTable:
        """The table that `to_csv` wrote.

        Metadata and column types come from the provenance file beside it; without one, or with `meta` given, types are
        inferred from the text.
        """
        from workbench.export import read

        return cls._from_read(*read.csv(path, ignore_sidecar=meta is not None), meta)

    @classmethod
    def _from_read(
        cls, columns: Mapping[str, Any], found: Mapping[str, Any], meta: Mapping[str, Any] | None
    ) -> HeadTable:
        full = dict(found if meta is None else meta)
        shape = full.pop("shape", None)  # written only for tables that do not cover their model
        return cls(columns, full, shape=shape)

    # --------------------------------------------------------------------------------------------------- questions

    def __len__(self) -> int:
        return len(self.columns["score"])

    def __getitem__(self, column: str) -> np.ndarray:
        if column not in self.columns:
            raise InputError(
                f"The table has no column {column!r}.{did_you_mean(column, self.columns)} "
                f"Columns: {', '.join(self.columns)}."
            )
        return self.columns[column]

    def __iter__(self) -> Iterator[Head]:
        """The (layer, head) of each row, so that a table can be passed wherever heads are wanted."""
        return iter(self.keys())

    def __eq__(self, other: object) -> bool:
        """Equal metadata and columns, NaN equal to NaN."""
        if not isinstance(other, HeadTable):
            return NotImplemented
        same = self.meta == other.meta and list(self.columns) == list(other.columns) and self.shape == other.shape
        return same and all(_same(values, other.columns[name]) for name, values in self.columns.items())

    __hash__ = None  # type: ignore[assignment]  # compared by content

    @property
    def row_kind(self) -> Rows:
        """ "head", or "kv_group" when every head is -1."""
        return "kv_group" if schema.rows_are_kv_groups(self.columns) else "head"

    @property
    def n_layers(self) -> int:
        return self.shape[0]

    @property
    def n_heads(self) -> int:
        """Rows per layer: query heads, or kv groups in a table of those."""
        return self.shape[1]

    @property
    def complete(self) -> bool:
        """Whether every head of the model has its row."""
        return len(self) == self.shape[0] * self.shape[1]

    @property
    def ok(self) -> np.ndarray:
        """Boolean mask of the rows with a valid score."""
        return self.columns["status"] == schema.OK

    def keys(self) -> tuple[Head, ...]:
        """(layer, head) of each row, in row order; (layer, kv_group) in a table of kv groups."""
        index = schema.row_index(self.columns)
        return tuple((int(layer), int(head)) for layer, head in zip(self["layer"], index, strict=True))

    def row(self, layer: int, head: int) -> dict[str, Any]:
        """One row as plain values.

        Raises:
            InputError: the table has no such row.
        """
        at = np.flatnonzero((self["layer"] == layer) & (schema.row_index(self.columns) == head))
        if not len(at):
            raise InputError(
                f"The table has no row for {self.row_kind} ({layer}, {head}); it covers {self.n_layers} layers x "
                f"{self.n_heads} {self.row_kind}s, counted from 0."
            )
        return {name: _plain(values[at[0]]) for name, values in self.columns.items()}

    def matrix(self, column: str = "score") -> np.ndarray:
        """`[n_layers, n_heads]` of a column; NaN (or "" for text) where there is no row. Of a flag: 0.0 and 1.0."""
        values = self[column]
        grid = np.full(self.shape, "" if values.dtype == object else np.nan, dtype=_grid_type(values))
        grid[self["layer"], schema.row_index(self.columns)] = values
        return grid

    def rows(self, which: Any) -> HeadTable:
        """The sub-table of these row numbers or this row mask, ranked anew among themselves."""
        return HeadTable({name: values[which] for name, values in self.columns.items()}, self.meta, shape=self.shape)

    def top(self, k: int = 10) -> HeadTable:
        """The k best rows, best first (the one table not sorted by head); iterate over it for (layer, head) pairs."""
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise InputError(f"top({k!r}) is unusable; ask for a whole number of heads from 1 up.")
        order = np.argsort(self["rank"], kind="stable")  # NaN ranks come last
        best = order[: min(int(k), int(self.ok.sum()))]
        return HeadTable(
            {name: values[best] for name, values in self.columns.items()}, self.meta, shape=self.shape, _sort=False
        )

    def select(self, rule: str | np.ndarray | Sequence[bool]) -> tuple[Head, ...]:
        """Heads that a rule picks, best first.

        Args:
            rule: `"top 5"`, `"top 2%"` (of the rows that are ok), `"score >= 0.1"`, `"q < 0.05 and score > 0"` (see
                `workbench.tables.rules`), or a boolean mask over rows or `[n_layers, n_heads]`. Rules pick only rows
                that are ok; a mask picks whatever it marks, undefined rows last.
        """
        keep = rules.matches(rule, self.columns) if isinstance(rule, str) else self._row_mask(rule)
        order = np.argsort(self["rank"], kind="stable")
        keys = self.keys()
        return tuple(keys[row] for row in order if keep[row])

    def compare(self, other: HeadTable, *, rule: str = "top 10", allow_basis_mismatch: bool = False) -> Comparison:
        """Agreement with another table of an equally shaped model: correlations, and overlap of what `rule` selects.

        Raises:
            InputError: different shapes, heads against kv groups, or different bases without `allow_basis_mismatch`.
        """
        return compare(self, other, rule=rule, allow_basis_mismatch=allow_basis_mismatch)

    def with_q(self) -> HeadTable:
        """The same with the column `q`: Benjamini-Hochberg over the p of all rows; NaN where nothing was tested."""
        columns = {**self.columns, "q": stats.benjamini_hochberg(self["null_p"])}
        return HeadTable(columns, self.meta, shape=self.shape)

    def by_kv_group(self, how: Literal["max", "mean"] = "max") -> HeadTable:
        """One row per kv group: the best ("max", in the direction of `higher_is_more`) or mean score of its ok heads.

        Intervals and nulls of single heads say nothing of their group and are dropped.
        """
        if how not in ("max", "mean"):
            raise InputError(f"by_kv_group({how!r}) is unknown; use 'max' or 'mean'.")
        if self.row_kind == "kv_group":
            return self
        if (self["kv_group"] < 0).any():
            raise InputError("The table does not know its kv groups (kv_group is -1); build it with n_kv_heads.")
        n_groups = int(self["kv_group"].max()) + 1 if len(self) else 0
        grid = np.full((self.n_layers, n_groups), np.nan)
        best = np.nanmax if self.meta["higher_is_more"] else np.nanmin
        score = np.where(self.ok, self["score"], np.nan)
        for layer in range(self.n_layers):
            for group in range(n_groups):
                members = score[(self["layer"] == layer) & (self["kv_group"] == group)]
                if not np.isnan(members).all():
                    grid[layer, group] = best(members) if how == "max" else np.nanmean(members)
        meta = {**self.meta, "metric": f"{how} over kv group of {self.meta['metric']}"}
        return HeadTable.from_scores(grid, n_kv_heads=n_groups, rows="kv_group", meta=meta)

    def _row_mask(self, mask: Any) -> np.ndarray:
        mask = np.asarray(mask)
        if mask.dtype != bool:
            raise InputError(f"A selection mask must be boolean, not {mask.dtype}; for a rule, pass text like 'top 5'.")
        if mask.shape == self.shape and mask.ndim == 2:
            return mask[self["layer"], schema.row_index(self.columns)]
        if mask.shape != (len(self),):
            raise InputError(f"The selection mask has shape {mask.shape}; give {self.shape} or ({len(self)},).")
        return mask


def _kv_groups(head: np.ndarray, n_heads: int, n_kv_heads: int | None) -> np.ndarray:
    if n_kv_heads is None:
        return np.full(head.shape, -1)
    if n_kv_heads < 1 or n_heads % n_kv_heads:
        raise InputError(f"{n_heads} heads cannot be split into n_kv_heads={n_kv_heads} equal groups.")
    return head // (n_heads // n_kv_heads)


def _check_extra_names(extra: Mapping[str, Any]) -> None:
    for name in extra:
        if name in schema.COLUMNS:
            raise InputError(f"extra column {name!r} is part of the schema; pass it as {name}=, or rename it.")


def _flat(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(value)
    if array.ndim == 0:
        return np.full(shape, value, dtype=object if array.dtype.kind == "U" else None).ravel()
    if array.shape != shape:
        raise InputError(f"{name!r} has shape {array.shape}, but the scores have {shape}; give one value per head.")
    return array.ravel()


def _grid_type(values: np.ndarray) -> Any:
    return object if values.dtype == object else np.float64


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
