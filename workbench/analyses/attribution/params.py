"""Parameters of attribution: the keys that `params:` in a spec file may carry. Free of torch, as a spec file is."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from workbench.analyses import pair_effects as pairs

Method = Literal["attribution_patching", "eap", "eap_ig"]
Level = Literal["node", "edge"]
_LEVELS: dict[str, tuple[Level, ...]] = {
    "attribution_patching": ("node",),
    "eap": ("edge",),
    "eap_ig": ("node", "edge"),
}


class AttributionParams(pairs.PairParams):
    """Those of `PairParams`, and:

    Attributes:
        method: where gradients are taken: at the base run (`attribution_patching`, `eap`) or on the way (`eap_ig`).
        level: `node` or `edge`; null for what the method is about (`eap_ig`: nodes).
        steps: points of the path, for `eap_ig`.
        rule: where in its step a gradient is taken: `midpoint`, or `left` or `right` counted from the corrupted run.
        metric: must have a gradient, so not `kl` (zero at the base run) or `rank`.
        spot_check: how many of the strongest entries, and as many random others, are patched exactly; 0 for none.
        controls: draws of the null; with `eap_ig` each costs as much as the scores, otherwise a forward pass.
    """

    direction: pairs.Direction = "noising"
    method: Method = "eap_ig"
    level: Level | None = None
    steps: int = Field(default=10, ge=1)
    rule: Literal["midpoint", "left", "right"] = "midpoint"
    metric: Literal["logit_diff", "prob", "log_prob", "loss"] = "logit_diff"
    spot_check: int = Field(default=10, ge=0)

    @field_validator("metric", mode="before")
    @classmethod
    def _has_a_gradient(cls, value: Any) -> Any:
        if value in ("kl", "rank"):
            from workbench.primitives.attribution import NOT_DIFFERENTIABLE

            raise PydanticCustomError("no_gradient", "{why}", {"why": NOT_DIFFERENTIABLE[value]})
        return value

    @model_validator(mode="before")
    @classmethod
    def _level_of_the_method(cls, values: Any) -> Any:
        """The level actually used becomes part of the parameters, as a result carries them."""
        if not isinstance(values, dict) or values.get("level") is not None:
            return values
        method = values.get("method", cls.model_fields["method"].default)
        levels = _LEVELS.get(method, ()) if isinstance(method, str) else ()
        return {**values, "level": levels[0]} if levels else values

    @field_validator("level")
    @classmethod
    def _level_fits(cls, value: Level | None, info: Any) -> Level | None:
        method = info.data.get("method")
        if value is not None and method in _LEVELS and value not in _LEVELS[method]:
            instead = "attribution_patching" if value == "node" else "eap"
            why = f"{method} scores no {value}s; take the method {instead}, or eap_ig, which scores both"
            raise PydanticCustomError("level", "{why}", {"why": why})
        return value
