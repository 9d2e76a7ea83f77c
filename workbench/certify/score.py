"""How well a head table finds a known set of heads: area under the ROC curve, precision and recall. Arithmetic only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from workbench.analyses.base import Finding
    from workbench.tables import HeadTable

Head = tuple[int, int]


@dataclass(frozen=True)
class Found:
    """Agreement of a ranking with the truth.

    Attributes:
        auroc: probability that a true head outranks another one, ties counting half; NaN where either set is empty.
        precision: share of `heads` that is true. `heads` are as many as there are true ones, optional heads skipped.
        recall: share of the true heads that is in `heads`; with equally many of both the two are equal, unless the
            table has fewer defined rows than there are true heads.
        heads: the highest ranking.
    """

    auroc: float
    precision: float
    recall: float
    heads: tuple[Head, ...]


def strength(table: HeadTable, finding: Finding) -> np.ndarray:
    """`[row]` what the finding ranks by, more is more; -inf where the table has no value."""
    values = np.asarray(table[finding.column], dtype=np.float64)
    if finding.magnitude:
        values = np.abs(values)
    elif not table.meta.get("higher_is_more", True):
        values = -values
    return np.where(table.ok & ~np.isnan(values), values, -np.inf)


def agreement(table: HeadTable, finding: Finding, heads: frozenset[Head], optional: frozenset[Head]) -> Found:
    """Hold a table to the truth; heads in `optional` count neither way."""
    from sklearn.metrics import roc_auc_score

    keys = table.keys()
    value = strength(table, finding)
    counted = [row for row, key in enumerate(keys) if key not in optional]
    true = np.array([keys[row] in heads for row in counted])
    value = value[counted]
    floor = np.where(np.isneginf(value), np.nanmin(value[np.isfinite(value)], initial=0.0) - 1.0, value)
    auroc = float(roc_auc_score(true, floor)) if 0 < true.sum() < len(true) else float("nan")
    order = [i for i in np.argsort(-value, kind="stable") if np.isfinite(value[i])][: int(true.sum())]
    picked = tuple(keys[counted[i]] for i in order)
    hits = sum(key in heads for key in picked)
    return Found(auroc, hits / len(picked) if picked else float("nan"), hits / max(len(heads), 1), picked)
