"""Safety heads in groups, Sahara (Zhou et al. 2024, algorithm 1): greedy search for the heads that refuse together.

Paper: arXiv 2410.13708. The method:

1. G = {}. For every head h outside G: how far does ablating G and h together turn what the prompts span, against the
   unablated model (generalised Ships, `ships.angles`)?
2. Add the head that turns it furthest to G; repeat until G has `size` heads (`search`).
3. Validate the group: attack success with its first 1 to `size` heads ablated (`ships.validate`).

The base run of a step has G ablated and is forked from each candidate's layer on, where the heads of G above are
ablated again: exact, at about half a forward per candidate. Added to the paper: every step's full table, ties, the same
angles on benign prompts, random edits of equal size as the null, and a search that goes on after an interruption.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.analyses.base import Analysis, Finding, Result
from workbench.analyses.ships.params import SaharaParams

if TYPE_CHECKING:
    from workbench.models import Model
    from workbench.tasks.prompts import PromptDataset

__all__ = ["ANALYSIS", "SaharaParams", "run", "sahara"]


def run(model: Model, data: PromptDataset, params: SaharaParams, seed: int) -> Result:
    """See `measure.measure`; imported here only, so that validating a spec does not load torch."""
    from workbench.analyses.sahara.measure import measure

    return measure(model, data, params, seed)


def sahara(model: Model, data: PromptDataset, *, seed: int = 0, **params: Any) -> Result:
    """Find a group of safety heads; the notebook form of `analysis: sahara`.

    Args:
        data: prompts, harmful and (for the control) benign; see `wb.tasks.prompts_from_texts`.
        params: fields of `SaharaParams`.

    Example:
        >>> result = wb.sahara(model, data, size=3, validation={"max_new_tokens": 32})  # doctest: +SKIP
        >>> result.summary["group"], result.tables["success"]  # doctest: +SKIP

    Raises:
        InputError: unusable data or an unknown parameter.
        CapabilityError: the model's head outputs cannot be edited faithfully.
    """
    return ANALYSIS(model, data, ANALYSIS.parse(params), seed=seed)


ANALYSIS = Analysis(
    name="sahara",
    paper="Zhou et al. 2024, arXiv 2410.13708",
    params_type=SaharaParams,
    data_kind="prompts",
    requires=("head_axis_ok", "head_ablation_ok"),
    run=run,
    finds=(Finding("refusal", {"score": "difference", "size": 1, "controls": 0}),),
)
