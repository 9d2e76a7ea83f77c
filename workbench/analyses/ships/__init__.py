"""Safety heads, Ships (Zhou et al. 2024, "On the Role of Attention Heads in Large Language Model Safety").

Paper: arXiv 2410.13708. The method:

1. Ablate one head at a time, by undifferentiated attention or by scaling its output (`ablations`).
2. Query level (eq. 9): Ships(x, h) = KL(p || p without h), nats, of the next token at the last prompt position.
   Dataset level (eq. 11): principal angles between what the prompts span with and without the head (`angles`).
3. Validate: ablate the heads found, let the model answer, and count refusals (`refusal`, `generate`, `validate`).

Added to the paper: the same score on benign prompts with their difference, random edits of equal size as the null, a
noise floor, degenerate answers told from successful attacks, random groups, and the benign prompts still answered.
Deviations from the reference code: KL from log-softmax without the constant 1e-12; scores are made uniform after
biases, norms and rotary embedding; keys are ablated by kv group; angles in float64 (`compat`: float32 and arccos).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.analyses.base import Analysis, Finding, Result
from workbench.analyses.ships.params import SafetyParams, ShipsParams, ValidationParams

if TYPE_CHECKING:
    from workbench.models import Model
    from workbench.tasks.prompts import PromptDataset

__all__ = ["ANALYSIS", "SafetyParams", "ShipsParams", "ValidationParams", "run", "ships"]


def run(model: Model, data: PromptDataset, params: ShipsParams, seed: int) -> Result:
    """See `measure.measure`; imported here only, so that validating a spec does not load torch."""
    from workbench.analyses.ships.measure import measure

    return measure(model, data, params, seed)


def ships(model: Model, data: PromptDataset, *, seed: int = 0, **params: Any) -> Result:
    """Score every head of `model` as a safety head; the notebook form of `analysis: ships`.

    Args:
        data: prompts, harmful and (for the control) benign; see `wb.tasks.prompts_from_texts`.
        params: fields of `ShipsParams`.

    Example:
        >>> data = wb.tasks.prompts_from_texts(model, ["..."], benign=["..."])  # doctest: +SKIP
        >>> wb.ships(model, data, score="difference").heads.top(5)  # doctest: +SKIP

    Raises:
        InputError: unusable data or an unknown parameter.
        CapabilityError: the model's head outputs cannot be edited faithfully.
    """
    return ANALYSIS(model, data, ANALYSIS.parse(params), seed=seed)


ANALYSIS = Analysis(
    name="ships",
    paper="Zhou et al. 2024, arXiv 2410.13708",
    params_type=ShipsParams,
    data_kind="prompts",
    requires=("head_axis_ok", "head_ablation_ok"),
    run=run,
    finds=(Finding("refusal", {"score": "difference", "controls": 0, "bootstrap": 100}),),
)
