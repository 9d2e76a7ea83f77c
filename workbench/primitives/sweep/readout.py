"""Metrics by name, bound to the tokens they are about: what a sweep reads off the logits of the last real token.

`metrics` holds the arithmetic; a `Readout` picks each row's tokens and says which direction means "more". It never
knows where the logits come from.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import InputError, did_you_mean
from workbench.primitives import metrics

_UNITS = {
    "logit_diff": "logits",
    "kl": "nats",
    "prob": "probability",
    "log_prob": "nats",
    "rank": "tokens",
    "loss": "nats",
}
METRICS = tuple(_UNITS)


@dataclass(frozen=True, eq=False)
class Readout:
    """One metric of the next-token distribution, per example.

    Attributes:
        name: `logit_diff` (answer against wrong), `kl` (of the base run from this one), `prob`, `log_prob`, `rank` or
            `loss` (-log_prob) of the answer.
        answer, wrong: token of every example of the sweep.
    """

    name: str
    answer: Int[Tensor, " n"] | None = None
    wrong: Int[Tensor, " n"] | None = None

    def __post_init__(self) -> None:
        if self.name not in METRICS:
            raise InputError(
                f"There is no metric {self.name!r}.{did_you_mean(str(self.name), METRICS)} Choose one of "
                f"{', '.join(METRICS)}."
            )
        lacking = [
            what
            for what, needed in (("answer", self.name != "kl"), ("wrong", self.name == "logit_diff"))
            if needed and getattr(self, what) is None
        ]
        if lacking:
            raise InputError(f"The metric {self.name!r} needs the {lacking[0]} token of every example.")

    @property
    def needs_base(self) -> bool:
        """Whether the logits of the base run are compared with."""
        return self.name == "kl"

    @property
    def unit(self) -> str:
        return _UNITS[self.name]

    @property
    def harm_is_more(self) -> bool:
        """Whether a worse model has a higher value: an ablation that matters moves the metric in this direction."""
        return self.name in ("kl", "rank", "loss")

    def key(self) -> list[Any]:
        """JSON-able; equal for readouts that measure the same."""
        tokens = [None if t is None else hashlib.sha256(_int64(t).tobytes()).hexdigest() for t in self._tokens()]
        return [self.name, *tokens]

    def __call__(
        self,
        logits: Float[Tensor, "batch vocab"],
        rows: Int[Tensor, " batch"],
        base: Float[Tensor, "batch vocab"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """Value of each row; `rows` are example numbers, `base` the base run's logits of the same examples."""
        if self.name == "kl":
            assert base is not None
            return metrics.kl(base, logits)
        answer, wrong = (None if t is None else t.to(logits.device)[rows.to(logits.device)] for t in self._tokens())
        assert answer is not None
        if self.name == "logit_diff":
            assert wrong is not None
            return metrics.logit_diff(logits, answer, wrong)
        if self.name == "prob":
            return metrics.prob(logits, answer)
        if self.name == "rank":
            return metrics.rank(logits, answer)
        log_prob = metrics.log_prob(logits, answer)
        return -log_prob if self.name == "loss" else log_prob

    def _tokens(self) -> tuple[Tensor | None, Tensor | None]:
        return tuple(None if t is None else torch.as_tensor(t) for t in (self.answer, self.wrong))  # type: ignore


def _int64(tokens: Tensor) -> Any:
    return tokens.cpu().long().numpy()
