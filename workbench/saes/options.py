"""How an autoencoder is trained: a small frozen record, validated at the edge, free of torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class TrainOptions(BaseModel):
    """Attributes:
    architecture: `topk`, or `standard` with an L1 penalty.
    d_sae: number of features; null for `expansion` times the width of the activation.
    k: features kept per token (topk).
    l1: weight of the sum of activations against the squared error, both per dimension of activations scaled to a mean
        norm of sqrt(d_in) (standard).
    steps, batch: gradient steps, and vectors in each.
    buffer: vectors that are held and shuffled at a time.
    lr, warmup, decay: Adam's step, steps until it is reached, last share of the steps in which it goes to 0.
    dead: what is done about features that have not been active for `dead_after` steps: `aux` lets them reconstruct the
        error (topk's usual remedy), `resample` points them at badly reconstructed vectors (that of standard),
        `auto` takes the usual one.
    aux: weight of the auxiliary loss.
    checkpoint_every: steps between states on disk, where training keeps any.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Literal["topk", "standard"] = "topk"
    d_sae: int | None = Field(default=None, ge=1)
    expansion: int = Field(default=4, ge=1)
    k: int = Field(default=8, ge=1)
    l1: float = Field(default=1.0, ge=0)
    steps: int = Field(default=2000, ge=1)
    batch: int = Field(default=1024, ge=1)
    buffer: int = Field(default=65536, ge=1)
    lr: float = Field(default=2e-3, gt=0)
    warmup: int = Field(default=100, ge=0)
    decay: float = Field(default=0.3, ge=0, le=1)
    dead: Literal["auto", "aux", "resample", "none"] = "auto"
    dead_after: int = Field(default=200, ge=1)
    aux: float = Field(default=1 / 32, ge=0)
    checkpoint_every: int = Field(default=500, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> TrainOptions:
        if self.architecture == "topk" and self.d_sae is not None and self.k > self.d_sae:
            raise ValueError(f"k is {self.k}, but there are only {self.d_sae} features; lower k")
        return self

    @property
    def remedy(self) -> str:
        """What is done about dead features, `auto` resolved."""
        if self.dead != "auto":
            return self.dead
        return "aux" if self.architecture == "topk" else "resample"

    def n_features(self, d_in: int) -> int:
        return self.d_sae if self.d_sae is not None else self.expansion * d_in
