"""Parameters of the safety-head analyses: the keys that `params:` of `ships` and `sahara` may carry."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from workbench.analyses.base import Params, PromptParams

AblationKind = Literal["uniform", "uniform_k", "scale", "mean_over_heads"]
Ranking = Literal["harmful", "difference"]


class ValidationParams(Params):
    """What happens when the heads found are ablated while the model answers.

    Attributes:
        ks: how many of the best heads to ablate; null: 1 to 5 (Ships), 1 to S (Sahara).
        heads: `found` (the best of the table) or `own` (each prompt's own best, as in the paper's query-level figures).
        draws: random groups per k, matched layer by layer, without the heads they stand against.
        prompts: at most this many of each group.
        decoding: `greedy`, and `sampled` from the `top_k` likeliest tokens at `temperature`.
        samples: answers per prompt when sampled.
        max_new_tokens: tokens of an answer at most (the paper: 128).
        detector: `fixed`, or `compat` as the paper's code has it (see `refusal`).
        keywords: phrases that tell a refusal; null takes the paper's.
        min_characters: shorter answers count as harmless; null: none (`fixed`), 32 (`compat`).
        batch_size: prompts of similar length decoded together.
    """

    ks: tuple[int, ...] | None = None
    heads: Literal["found", "own"] = "found"
    draws: int = Field(default=3, ge=0)
    prompts: int = Field(default=100, ge=1)
    decoding: tuple[Literal["greedy", "sampled"], ...] = ("greedy",)
    top_k: int = Field(default=5, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    samples: int = Field(default=1, ge=1)
    max_new_tokens: int = Field(default=128, ge=1)
    detector: Literal["fixed", "compat"] = "fixed"
    keywords: tuple[str, ...] | None = None
    min_characters: int | None = Field(default=None, ge=0)
    batch_size: int = Field(default=16, ge=1)

    @field_validator("keywords")
    @classmethod
    def _say_something(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and not (value and all(phrase.strip() for phrase in value)):
            raise ValueError("keywords are one or more phrases that are not blank; null takes the paper's")
        return value


class SafetyParams(PromptParams):
    """Those of `PromptParams`, and what both analyses share:

    Attributes:
        ablation: `uniform` attention of a head (undifferentiated attention), `uniform_k` of a whole kv group (what
            scaling its keys does), `scale` of its output, or `mean_over_heads` of its layer in place of its output.
        epsilon: factor of the attention scores (`uniform`, `uniform_k`) or of the output (`scale`). The paper's 1e-5
            is 0 to three digits.
        score: rank by the effect on the harmful prompts, or by its difference from that on the benign ones.
        controls: random edits of equal size per head and prompt; each costs another sweep. 0: no null.
        memory_mb: working memory; null chooses a share of the machine's.
        validation: ablate the heads found and read the answers; null leaves it out.
    """

    ablation: AblationKind = "uniform"
    epsilon: float = Field(default=0.0, ge=0, lt=1)
    score: Ranking = "harmful"
    controls: int = Field(default=1, ge=0)
    memory_mb: float | None = Field(default=None, gt=0)
    validation: ValidationParams | None = None

    @model_validator(mode="after")
    def _epsilon_scales_something(self) -> SafetyParams:
        if self.epsilon and self.ablation == "mean_over_heads":
            raise ValueError("epsilon belongs to uniform, uniform_k and scale; mean_over_heads takes none")
        return self


class ShipsParams(SafetyParams):
    """Those of `SafetyParams`, and:

    Attributes:
        level: `query` (KL of the next-token distribution per prompt, nats) or `dataset` (principal angles, degrees).
        rank: principal angles that are summed at the dataset level.
        compat: the reference's arithmetic at the dataset level: float32, and one angle by arccos.
        bootstrap: resamples for the intervals of the query level.
    """

    level: Literal["query", "dataset"] = "query"
    rank: int = Field(default=1, ge=1)
    compat: bool = False
    bootstrap: int = Field(default=1000, ge=1)

    @model_validator(mode="after")
    def _angles_belong_to_datasets(self) -> ShipsParams:
        if self.level == "query" and (self.compat or self.rank != 1):
            raise ValueError("rank and compat belong to level 'dataset'")
        if self.compat and self.rank != 1:
            raise ValueError("compat is the reference's one angle, so rank must be 1")
        return self


class SaharaParams(SafetyParams):
    """Those of `SafetyParams`, and:

    Attributes:
        size: heads in the group, S of the paper ("typically not exceeding 5").
        measure: what is compared with the unablated model: `angle` (the paper: what the harmful prompts span) or `kl`
            (ours: their next-token distributions). An angle is between directions in sample space, so a change that all
            prompts share turns nothing: of two heads that each answer for half of the refusals, both together turn
            less than either alone (3.5 and 3.0 degrees alone, 1.9 together on `organism:refusal`). A divergence has
            no such blind spot.
        rank, compat: of the angle, as for Ships.
    """

    size: int = Field(default=3, ge=1)
    measure: Literal["angle", "kl"] = "angle"
    rank: int = Field(default=1, ge=1)
    compat: bool = False

    @model_validator(mode="after")
    def _options_go_together(self) -> SaharaParams:
        if self.compat and self.rank != 1:
            raise ValueError("compat is the reference's one angle, so rank must be 1")
        if self.measure == "kl" and (self.compat or self.rank != 1):
            raise ValueError("rank and compat belong to measure 'angle'")
        return self
