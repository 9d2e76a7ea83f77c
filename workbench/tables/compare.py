"""How far two head tables agree: correlation of scores, overlap of the selected heads, and its significance.

The statistics themselves are in `overlap` and `stats`.

Only rows that are ok in both tables take part, and both selections are made among those, so that the overlap test has
one population. It must never know how the scores came about; it does refuse to compare what is not comparable.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import stats
from workbench.errors import InputError
from workbench.tables import overlap
from workbench.tables.schema import OK

if TYPE_CHECKING:
    from workbench.tables.table import HeadTable


@dataclass(frozen=True)
class Comparison:
    """Agreement of table A (`self`) and table B (`other`).

    Attributes:
        n: rows that are ok in both.
        pearson, spearman: correlation of the raw scores; negative when one table's `higher_is_more` is turned round.
        rule: how heads were selected in both.
        heads_a, heads_b, shared: the selections (best first) and what they share.
        jaccard: shared / union. a_in_b, b_in_a: share of one selection that lies in the other.
        p: probability of at least this overlap between random sets of these sizes (hypergeometric, exact).
        p_layer_matched: the same between random sets with as many heads in every layer as these have (exact).
        coefficient: shared / the smaller selection.
        weighted_jaccard: of |scores|, scaled to sum 1 in each table.
        rbo: rank-biased overlap of the two whole rankings (p = 0.9, so about the first ten ranks matter).
    """

    n: int
    pearson: float
    spearman: float
    rule: str
    heads_a: tuple[tuple[int, int], ...]
    heads_b: tuple[tuple[int, int], ...]
    shared: tuple[tuple[int, int], ...]
    jaccard: float
    a_in_b: float
    b_in_a: float
    p: float
    p_layer_matched: float
    coefficient: float
    weighted_jaccard: float
    rbo: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and tables."""
        return {name: list(map(list, v)) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


def compare(a: HeadTable, b: HeadTable, *, rule: str, allow_basis_mismatch: bool) -> Comparison:
    _check_comparable(a, b, allow_basis_mismatch)
    position = {key: row for row, key in enumerate(b.keys())}
    pairs = [
        (row, position[key])
        for row, key in enumerate(a.keys())
        if key in position and a["status"][row] == OK and b["status"][position[key]] == OK
    ]
    rows_a = np.array([pair[0] for pair in pairs], dtype=np.intp)
    rows_b = np.array([pair[1] for pair in pairs], dtype=np.intp)
    left, right = a.rows(rows_a), b.rows(rows_b)
    heads_a, heads_b = left.select(rule), right.select(rule)
    both = set(heads_a) & set(heads_b)
    population = dict(Counter(left["layer"].tolist()))
    sets = overlap.of_sets(heads_a, heads_b, population)
    return Comparison(
        n=len(pairs),
        pearson=stats.pearson(a["score"][rows_a], b["score"][rows_b]),
        spearman=stats.spearman(a["score"][rows_a], b["score"][rows_b]),
        rule=rule,
        heads_a=heads_a,
        heads_b=heads_b,
        shared=tuple(head for head in heads_a if head in both),
        jaccard=sets.jaccard,
        a_in_b=sets.a_in_b,
        b_in_a=sets.b_in_a,
        p=sets.p,
        p_layer_matched=sets.p_layer_matched,
        coefficient=sets.coefficient,
        weighted_jaccard=overlap.weighted_jaccard(a["score"][rows_a], b["score"][rows_b]),
        rbo=overlap.rank_biased_overlap(_ranking(left), _ranking(right)),
    )


def _ranking(table: HeadTable) -> list[tuple[int, int]]:
    keys = table.keys()
    return [keys[row] for row in np.argsort(table["rank"], kind="stable")]


def _check_comparable(a: HeadTable, b: HeadTable, allow_basis_mismatch: bool) -> None:
    if a.row_kind != b.row_kind:
        raise InputError(
            f"One table has a row per {a.row_kind}, the other per {b.row_kind}; "
            "turn the table of heads into kv groups with .by_kv_group('max') first."
        )
    if a.shape != b.shape:
        raise InputError(
            f"The tables are of different shapes, {a.shape[0]}x{a.shape[1]} and {b.shape[0]}x{b.shape[1]} "
            f"(layers x {a.row_kind}s); only tables of equally shaped models have heads in common."
        )
    if a.meta["basis"] != b.meta["basis"] and not allow_basis_mismatch:
        raise InputError(
            f"The tables were measured in different bases, {a.meta['basis']!r} and {b.meta['basis']!r}; "
            "pass allow_basis_mismatch=True to compare them all the same."
        )
