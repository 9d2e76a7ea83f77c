"""Retrieval heads (Wu et al. 2024, "Retrieval Head Mechanistically Explains Long-Context Factuality").

Paper: arXiv 2404.15574. The method:

1. Decode every needle sample greedily, once, reading each head's attention row at every step (`trace`).
2. Score each head on each sample, and again on random spans of the same prompt as the null (`score`).
3. Keep the samples whose needle was retrieved (`recall_gate`); a head's score is their mean.
4. Measure the paper's properties (`properties`) and mask the heads found (`causal`).

Deviations from the reference code, each switchable where a number depends on it: copied tokens form a set (`wu`; the
code's sum is `wu_compat`); the needle span is tracked in token space rather than searched; decoding ends at the end of
sequence; recall is ROUGE-1 without stemming; random controls exclude the heads they control for, layer by layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.analyses.base import Analysis, Finding, Result
from workbench.analyses.retrieval.params import CausalParams, RetrievalParams

if TYPE_CHECKING:
    from workbench.models import Model
    from workbench.tasks.samples import NeedleDataset

__all__ = ["ANALYSIS", "CausalParams", "RetrievalParams", "retrieval_heads", "run"]


def run(model: Model, data: NeedleDataset, params: RetrievalParams, seed: int) -> Result:
    """See `measure.measure`; imported here only, so that validating a spec does not load torch."""
    from workbench.analyses.retrieval.measure import measure

    return measure(model, data, params, seed)


def retrieval_heads(model: Model, data: NeedleDataset | None = None, *, seed: int = 0, **params: Any) -> Result:
    """Score every head of `model` as a retrieval head; the notebook form of `analysis: retrieval`.

    Args:
        data: needle samples; None makes the built-in needle task.
        params: fields of `RetrievalParams`.

    Example:
        >>> result = wb.retrieval_heads(model, wb.tasks.needle(model, n=20), recall_gate=0)  # doctest: +SKIP

    Raises:
        InputError: unusable data or an unknown parameter.
        CapabilityError: the model exposes no attention pattern.
    """
    if data is None:
        from workbench.tasks import needle

        data = needle(model, seed=seed)
    return ANALYSIS(model, data, ANALYSIS.parse(params), seed=seed)


ANALYSIS = Analysis(
    name="retrieval",
    paper="Wu et al. 2024, arXiv 2404.15574",
    params_type=RetrievalParams,
    data_kind="needle",
    requires=(),
    run=run,
    finds=(Finding("retrieval", params={"causal": None}),),
)
