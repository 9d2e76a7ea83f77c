"""Parameters of where the model looks; the papers' values are the defaults."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workbench.analyses.base import PromptParams
from workbench.analyses.kept_patterns import KeptPatterns

Method = Literal["attention", "relative", "gradient", "pure_gradient"]
GENERAL = "Describe the image."


class ImageAttentionParams(PromptParams):
    """Attributes:
    region: what a head should look at: what the question is `about`, or all `objects` whose regions are known.
    methods: maps to make: at `layer` the mean over heads of the attention (`attention`), that over the same for a
        general prompt (`relative`), the mean of attention times its positive gradient (`gradient`); of the whole model
        the slope at the pixels over that for the general prompt (`pure_gradient`).
    layer: of the maps; null is the paper's layer 14 of 32, in proportion.
    general: the prompt that `relative` and `pure_gradient` compare with; `template` goes around it.
    crop_base: side in pixels of the smallest window of the table `crops`; null is that of the model's input.
    batch_size: images at once.
    bootstrap: resamples for the intervals.
    keep_patterns: attention of the best heads at the end of the first prompts with a region, as the table `attention`,
        with what the model saw; null keeps none.
    """

    region: Literal["about", "objects"] = "about"
    methods: tuple[Method, ...] = ("attention", "relative", "gradient", "pure_gradient")
    layer: int | None = Field(default=None, ge=0)
    general: str = GENERAL
    crop_base: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=8, ge=1)
    bootstrap: int = Field(default=1000, ge=1)
    keep_patterns: KeptPatterns | None = None
