"""The head table of the safety analyses: the score, the same on benign prompts, and their difference.

A head that changes every answer scores high on harmful prompts too; what a safety head has and a generic one lacks is
the difference. Either ranks the table (`params.score`), and both are always columns. Arithmetic on arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import stats
from workbench.tables import HeadTable

if TYPE_CHECKING:
    from workbench.analyses.ships.ablations import Ablation
    from workbench.models import Model

_Z = 1.959964  # 95% of a normal distribution


@dataclass(frozen=True)
class Measured:
    """Scores of one group of prompts, as grids.

    Attributes:
        per_example: `[n, layer, row]`, whose mean is the score.
        stderr: of the score, `[layer, row]`.
        null: `[n, layer, row]` (paired with the examples) or None; null_draws: `[draw, layer, row]` or None.
        against: where the score is a difference of two groups, what is beyond the null in each prompt of the one and
            of the other: both groups are samples, so the test shuffles which is which.
    """

    per_example: np.ndarray
    stderr: np.ndarray
    null: np.ndarray | None = None
    null_draws: np.ndarray | None = None
    against: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def score(self) -> np.ndarray:
        return stats.mean(self.per_example)


def grid(model: Model, ablation: Ablation, units: Any, values: np.ndarray) -> np.ndarray:
    """`[..., unit]` as `[..., layer, head or kv group]`; NaN where a layer has no heads."""
    full = np.full((*values.shape[:-1], model.n_layers, ablation.width(model)), np.nan)
    for number, unit in enumerate(units):
        full[(..., *ablation.row(model, unit))] = values[..., number]
    return full


def columns(harmful: Measured, benign: Measured | None) -> dict[str, np.ndarray]:
    """`harmful`, `benign`, `difference` and its standard error, `[layer, row]`; NaN without benign prompts."""
    nothing = np.full(harmful.score.shape, np.nan)
    other = nothing if benign is None else benign.score
    spread = nothing if benign is None else np.sqrt(harmful.stderr**2 + benign.stderr**2)
    return {
        "harmful": harmful.score,
        "benign": other,
        "difference": harmful.score - other,
        "difference_stderr": spread,
    }


def ranked(harmful: Measured, benign: Measured | None, score: str) -> Measured:
    """What the table is ranked by: the harmful prompts, or each of them less the mean of the benign ones."""
    if score == "harmful" or benign is None:
        return harmful
    null, draws = harmful.null, harmful.null_draws
    against = None
    if null is not None and benign.null is not None:
        against = harmful.per_example - null, benign.per_example - benign.null
        null = null - stats.mean(benign.null)
    if draws is not None and benign.null_draws is not None:
        draws = draws - benign.null_draws
    both = columns(harmful, benign)
    return Measured(harmful.per_example - benign.score, both["difference_stderr"], null, draws, against)


def head_table(
    measured: Measured,
    *,
    model: Model,
    ablation: Ablation,
    extra: dict[str, np.ndarray],
    meta: dict[str, Any],
    bootstrap: int | None,
    seed: int,
) -> HeadTable:
    """The table; `bootstrap` resamples prompts for the intervals, None takes 1.96 standard errors."""
    score = measured.score
    low, high = score - _Z * measured.stderr, score + _Z * measured.stderr
    if bootstrap is not None:
        low, high = stats.bootstrap_ci(measured.per_example, n_boot=bootstrap, seed=seed)
    null_mean, p = None, np.full(score.shape, np.nan)
    if measured.null is not None:
        null_mean = stats.mean(measured.null)
    if measured.against is not None:
        p = stats.shuffled_labels_p(*measured.against, alternative="greater", seed=seed)
    elif measured.null is not None:
        p = stats.sign_flip_p(measured.per_example - measured.null, alternative="greater", seed=seed)
    elif measured.null_draws is not None:
        null_mean = stats.mean(measured.null_draws)
        p = stats.empirical_p(score, measured.null_draws, alternative="greater")
    status = np.full(score.shape, "ok", dtype=object)
    status[np.isnan(score)] = "no attention heads, or logits that are not finite"
    facts = {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "basis": model.basis,
        "higher_is_more": True,
        **meta,
    }
    return HeadTable.from_scores(
        score,
        n_kv_heads=model.n_kv_heads,
        rows=ablation.rows,
        stderr=measured.stderr,
        ci_low=low,
        ci_high=high,
        n=(~np.isnan(measured.per_example)).sum(axis=0),
        null_mean=null_mean,
        null_p=p,
        status=status,
        extra={**extra, "q": stats.benjamini_hochberg(p)},
        meta=facts,
    )
