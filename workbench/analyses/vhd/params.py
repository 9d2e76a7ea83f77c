"""Parameters of vision-aware head divergence and reinforcement; the paper's values are the defaults."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, field_validator

from workbench.analyses.base import Params, PromptParams

Without = Literal["removed", "masked", "mean_image"]
Variant = Literal["paper", "released"]


class VhrParams(Params):
    """Attributes:
    alpha: factor of the heads found, one or several (the alpha curve).
    layers: whose heads are reinforced; null is the paper's rule for 32 layers, layer 1 and the last 14, scaled to the
        model: layer 1 and the last 14/32.
    refresh: choose the heads anew at every generated token; the paper keeps those of the first.
    random_draws: how often as many random heads of the same layers are reinforced instead, by the same alphas.
    ablate: numbers of top heads (by VHD) to zero, each against as many random heads of the same layers.
    """

    alpha: tuple[float, ...] = (2.0,)
    layers: tuple[int, ...] | None = None
    refresh: bool = False
    random_draws: int = Field(default=3, ge=0)
    ablate: tuple[int, ...] = ()

    @field_validator("alpha", mode="before")
    @classmethod
    def _several(cls, value: object) -> object:
        return (value,) if isinstance(value, int | float) else value

    @field_validator("alpha")
    @classmethod
    def _finite(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or not all(math.isfinite(alpha) for alpha in value):
            raise ValueError("alpha must be one or more finite numbers")
        return value


class VhdParams(PromptParams):
    """Attributes:
    without: what the image is compared with: its tokens `removed` and positions renumbered (the paper), its tokens
        `masked` where they stand, or every image replaced by the mean of the dataset's.
    variant: `paper` (L2 distance), or `released`, what is known of the authors' code: squared distance, the outlier
        rule only in layers where the standard deviation of VHD over heads is above 1, that deviation unbiased, and the
        lower median.
    outliers: apply the outlier rule.
    top_k: heads per layer that T-VHD sums over; null is a quarter of them (the paper does not say).
    max_new_tokens: greedy tokens over which VHD is followed; 1 is the first step alone.
    controls: random deletions of text tokens per example, for the null. 0: no null.
    batch_size: images at once.
    bootstrap: resamples for the intervals.
    vhr: reinforce the heads found and evaluate what is said; null skips it.
    """

    without: Without = "removed"
    variant: Variant = "paper"
    outliers: bool = True
    top_k: int | None = Field(default=None, ge=1)
    max_new_tokens: int = Field(default=32, ge=1)
    controls: int = Field(default=4, ge=0)
    batch_size: int = Field(default=8, ge=1)
    bootstrap: int = Field(default=1000, ge=1)
    vhr: VhrParams | None = None
