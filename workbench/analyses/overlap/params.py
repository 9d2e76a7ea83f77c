"""Parameters of overlap: the keys that `params:` in a spec file may carry. Free of torch, as a spec file is."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from workbench.analyses import base
from workbench.analyses.base import PromptParams
from workbench.errors import InputError

Method = Literal["activation_patching", "path_patching", "attribution", "ablation", "circuit"]
_OURS = ("direction", "metric", "controls", "bootstrap", "batch_rows", "template", "edit", "corruptions", "ablation")


class OverlapParams(PromptParams):
    """Attributes:
    method: what scores heads: an analysis by that name, noising. `ablation` uses no corrupted prompts; `circuit` finds
        its circuits by its own rule, with edges.
    options: further parameters of that analysis (path_patching: {receivers: [...]}; circuit: {rule: top, ...}).
    corruptions: names of corruptions, for the tasks that have them; null for all that a task has.
    ablation: beside the corruptions, each head's `mean` over the prompts or `zero`; null for neither.
    metric: read at the last token, of `answer` (and `wrong`).
    share: a head is in a task's circuit when its |effect| is at least this share of the gap, under any of its views.
    min_gap: a view counts when the metric changes by more than this on average.
    controls: draws of each score's null; 0 leaves it out.
    permutations: of the nulls that shuffle scores within layers.
    draws: random circuits that each circuit is compared with, when run on the other tasks.
    keep: `mean` or `zero`: what heads outside a circuit put out when it is run alone; null leaves that out.
    """

    method: Method = "activation_patching"
    options: dict[str, Any] = Field(default_factory=dict)
    corruptions: tuple[str, ...] | None = None
    ablation: Literal["mean", "zero"] | None = "mean"
    metric: Literal["logit_diff", "prob", "log_prob"] = "logit_diff"
    share: float = Field(default=0.1, gt=0)
    min_gap: float = Field(default=0.05, ge=0)
    controls: int = Field(default=1, ge=0)
    bootstrap: int = Field(default=1000, ge=1)
    permutations: int = Field(default=999, ge=1)
    draws: int = Field(default=20, ge=0)
    keep: Literal["mean", "zero"] | None = "mean"
    batch_rows: int | None = Field(default=None, ge=1)

    @field_validator("options")
    @classmethod
    def _not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in value:
            if key in _OURS:
                raise ValueError(f"{key} is set by overlap itself; give it beside `options`")
        return value

    @model_validator(mode="after")
    def _options_of_the_method(self) -> OverlapParams:
        if self.method == "ablation" and self.ablation is None:
            raise ValueError("method ablation needs ablation: mean or zero")
        try:
            base.get(self.method).parse(self.options)
        except InputError as error:
            raise ValueError(str(error)) from None
        return self
