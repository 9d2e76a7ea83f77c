"""Parameters of the retrieval-head analysis: the keys that `params:` in a spec file may carry."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workbench.analyses.base import Params, PromptParams
from workbench.analyses.kept_patterns import KeptPatterns

Variant = Literal["wu", "wu_compat", "attention_mass", "qr"]


class CausalParams(Params):
    """The masking experiment: needle recall with the top heads masked against matched random heads.

    Attributes:
        ks: how many top heads to mask; None picks 1, 2, 5, 10, 20, 30, 50, 100 up to a quarter of all heads, and the
            number of heads at or above the threshold.
        kinds: `uniform` attention (the paper's mask) and `zero` output.
        scopes: `decode` masks from the last prompt token on (the paper's code), `all` the prompt too.
        draws: random head sets per k, matched layer by layer, without the masked heads.
        samples: at most this many of the samples that passed the gate.
        max_new_tokens: decoding steps at most, in all conditions alike; None takes twice the longest needle.
    """

    ks: tuple[int, ...] | None = None
    kinds: tuple[Literal["uniform", "zero"], ...] = ("uniform", "zero")
    scopes: tuple[Literal["decode", "all"], ...] = ("decode", "all")
    draws: int = Field(default=3, ge=1)
    samples: int = Field(default=20, ge=1)
    max_new_tokens: int | None = Field(default=None, ge=1)


class RetrievalParams(PromptParams):
    """Those of `PromptParams`, and:

    Attributes:
        variant: which score (see `score`).
        recall_gate: a sample counts when more than this percent of its needle's words were generated; 0 counts all.
        max_new_tokens: decoding steps at most.
        threshold: a head at or above this mean score is called a retrieval head (paper: 0.1).
        controls: random spans per sample that the null is drawn from.
        bootstrap: resamples for the intervals.
        batch_size: prompts of similar length decoded together, fewer when they are very long.
        causal: the masking experiment; null leaves it out.
        keep_patterns: attention rows of the best heads while they answer, as the table `attention`; null keeps none.
    """

    variant: Variant = "wu"
    recall_gate: float = Field(default=50.0, ge=0, le=100)
    max_new_tokens: int = Field(default=50, ge=1)
    threshold: float = Field(default=0.1, ge=0)
    controls: int = Field(default=99, ge=0)
    bootstrap: int = Field(default=1000, ge=1)
    batch_size: int = Field(default=16, ge=1)
    causal: CausalParams | None = CausalParams()
    keep_patterns: KeptPatterns | None = None
