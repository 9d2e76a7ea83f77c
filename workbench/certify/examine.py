"""One analysis held to one truth of one model: ranking against the card, then masking against random heads."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import stats, tasks
from workbench.certify import behaviour, score
from workbench.errors import CapabilityError

if TYPE_CHECKING:
    from workbench.analyses.base import Analysis, Finding
    from workbench.certify.truths import Truth
    from workbench.models import Model

Head = tuple[int, int]
_UNKNOWN = float("nan")
SAME = 1e-9  # difference up to which a reported number is the one on the card
DRAWS = 5  # random head sets that masking is compared with


@dataclass(frozen=True)
class Verdict:
    """What came of it.

    Attributes:
        organism, instance: which model; `instance` is `shipped` or `seed N` for a freshly made one.
        analysis, claim, task: what was asked of it.
        n_true: how many heads are right.
        auroc, precision, recall: of the ranking (`score.Found`).
        threshold: least AUROC.
        success, success_masked, success_random: share of the examples on which the model does its task as it is, with
            the found heads masked, and with as many random heads of the same layers masked (mean of 5 draws).
        value, value_true: the number that the analysis reports and the one on the card, where there is one.
        verdict: `pass`, `miss` or `not applicable` (the model lacks what the analysis needs; `note` says what).
        found, true: the heads.
    """

    organism: str
    instance: str
    analysis: str
    claim: str
    task: str
    n_true: int
    threshold: float
    verdict: str
    seconds: float
    auroc: float = _UNKNOWN
    precision: float = _UNKNOWN
    recall: float = _UNKNOWN
    success: float = _UNKNOWN
    success_masked: float = _UNKNOWN
    success_random: float = _UNKNOWN
    value: float = _UNKNOWN
    value_true: float = _UNKNOWN
    note: str = ""
    found: tuple[Head, ...] = field(default=())
    true: tuple[Head, ...] = field(default=())

    def row(self) -> dict[str, Any]:
        """As a table row: heads as text, `2-6 1-3`."""
        heads = {name: " ".join(f"{a}-{b}" for a, b in getattr(self, name)) for name in ("found", "true")}
        return {**asdict(self), **heads}


def examine(
    model: Model, organism: str, instance: str, truth: Truth, analysis: Analysis, finding: Finding, *, seed: int
) -> Verdict:
    """Run `analysis` as `finding` says on the data of `truth` and judge what it returns."""
    started = time.perf_counter()
    block = {**truth.data, **finding.data}
    facts: dict[str, Any] = {
        "organism": organism,
        "instance": instance,
        "analysis": analysis.name,
        "claim": truth.claim,
        "task": _task(block),
        "n_true": len(truth.heads),
        "threshold": finding.min_auroc,
        "true": tuple(sorted(truth.heads)),
    }
    try:
        data = tasks.resolve(model, block, seed=seed)
        result = analysis(model, data, analysis.parse(finding.params), seed=seed)
    except CapabilityError as error:
        seconds = time.perf_counter() - started
        return Verdict(**facts, verdict="not applicable", seconds=seconds, note=str(error))
    found = score.agreement(result.heads, finding, truth.heads, truth.optional)
    masked = _masking(model, data, found.heads, truth, seed)
    passed = found.auroc >= finding.min_auroc  # NaN is a miss
    value = value_true = _UNKNOWN
    if truth.value is not None and finding.value is not None:
        value, value_true = finding.value(result), truth.value
        passed &= abs(value - value_true) < SAME
    return Verdict(
        **facts,
        auroc=found.auroc,
        precision=found.precision,
        recall=found.recall,
        **masked,
        value=value,
        value_true=value_true,
        verdict="pass" if passed else "miss",
        seconds=time.perf_counter() - started,
        found=found.heads,
    )


def _masking(model: Model, data: Any, heads: tuple[Head, ...], truth: Truth, seed: int) -> dict[str, Any]:
    """Success as it is, with `heads` masked, and with random heads masked instead."""
    rng = np.random.default_rng(seed)
    random = []
    for _ in range(DRAWS):
        drawn = stats.layer_matched_random(
            heads, model.n_heads, rng, exclude=truth.heads | truth.optional, shortage="nearest", n_layers=model.n_layers
        )
        random.append(behaviour.success(model, data, drawn))
    return {
        "success": behaviour.success(model, data),
        "success_masked": behaviour.success(model, data, heads) if heads else float("nan"),
        "success_random": float(np.mean(random)),
    }


def _task(block: dict[str, Any]) -> str:
    """The data in a word or two."""
    if "task" in block:
        extra = [str(block[key]) for key in ("corruption", "split") if key in block]
        return " ".join([str(block["task"]), *extra])
    if "tasks" in block:
        return " and ".join(map(str, block["tasks"]))
    form = next((key for key in ("samples", "pairs", "prompts", "file") if key in block), "data")
    return f"{form} of the card"
