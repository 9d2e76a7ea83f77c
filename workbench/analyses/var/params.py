"""Parameters of visual attention sinks and their redistribution; the paper's values are the defaults."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workbench.analyses.base import Params, PromptParams

Convention = Literal["paper", "released"]


class RedistributionParams(Params):
    """Attributes:
    p: of the sinks' attention, the share moved to other image tokens; in the `released` convention the share kept.
    from_sinks: whose attention is moved: `all` sinks, those of the text (BOS) too, as the released code does, or only
        the `visual` ones.
    random_draws: how often as many random heads per query are treated instead.
    all_heads: also try every head, without selection.
    max_new_tokens: of the captions or answers that are compared.
    """

    p: float = Field(default=0.6, ge=0, le=1)
    from_sinks: Literal["all", "visual"] = "all"
    random_draws: int = Field(default=3, ge=0)
    all_heads: bool = True
    max_new_tokens: int = Field(default=32, ge=1)


class VarParams(PromptParams):
    """Attributes:
    tau: a coordinate is massive, and a token a sink, where |x_d / RMS(x)| exceeds it. At width d it cannot exceed
        sqrt(d), so that models narrower than tau ** 2 have no sinks in this sense.
    dimensions: sink dimensions; null finds them: those whose median over examples exceeds tau at the anchor, in at
        least one layer from `first_layer` on.
    anchor: position of the known text sink, 0 for BOS.
    first_layer: layers before it have no sinks (massive activations arise in the first layers).
    convention: of rho, of p and of the last layer. `paper`: a head is image-centric when at least rho of its image
        attention is on tokens that are no sinks, p is what is moved, and the last layer is left alone. `released`:
        when at most rho is on sinks, p is what stays, and the last layer is treated too.
    rho: paper: 0.8 in general, 0.5 against hallucination, 0.9 for vision-centric questions.
    min_mass: an image-centric head gives the image at least this much attention.
    batch_size: images at once.
    bootstrap: resamples for the intervals.
    redistribution: move attention off the sinks while captions or answers are written, and judge them; null skips it.
    """

    tau: float = Field(default=20.0, gt=0)
    dimensions: tuple[int, ...] | None = None
    anchor: int = Field(default=0, ge=0)
    first_layer: int = Field(default=2, ge=0)
    convention: Convention = "paper"
    rho: float = Field(default=0.5, ge=0, le=1)
    min_mass: float = Field(default=0.2, ge=0, le=1)
    batch_size: int = Field(default=8, ge=1)
    bootstrap: int = Field(default=1000, ge=1)
    redistribution: RedistributionParams | None = None
