"""Parameters of repair: the keys that `params:` in a spec file may carry. Free of torch, as a spec file is."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from workbench.analyses.base import Params, PromptParams

Heads = tuple[tuple[int, int], ...]


def check_distribution(value: dict[str, float] | None) -> dict[str, float] | None:
    """Weights of classes of tokens: none negative, in all 1."""
    if value is None:
        return value
    if not value or min(value.values()) < 0 or abs(sum(value.values()) - 1) > 1e-6:
        raise ValueError("attention to classes of tokens is given as shares that are not negative and sum to 1")
    return value


class FaultParams(Params):
    """Damage that is done first, so that there is something to repair.

    Attributes:
        heads: the damaged heads.
        kind: `uniform` attention at every position, `zero` output, or `attend`: a wrong row at `position`.
        attend: class of tokens -> share of the attention, for `attend`.
        position: `end`, or a span of the task, whose last token it then is.
    """

    heads: Heads = Field(min_length=1)
    kind: Literal["uniform", "zero", "attend"] = "uniform"
    attend: dict[str, float] | None = None
    position: str = "end"

    @field_validator("attend")
    @classmethod
    def _sums_to_one(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        return check_distribution(value)

    @model_validator(mode="after")
    def _attend_belongs_to_attend(self) -> FaultParams:
        if (self.attend is None) == (self.kind == "attend"):
            raise ValueError("`attend` belongs to the fault `attend`, which needs it")
        return self


class LikeParams(Params):
    """A row like the one that the head has on another task.

    Attributes:
        task: name of the other task among the data's `tasks`.
        classes: class of its tokens -> the class of this task's tokens that it stands for. The head gives the second
            what it gives the first; the rest of its attention stays with the other tokens.
        position: of the query there: `end`, or a span of that task, whose last token it then is.
    """

    task: str
    classes: dict[str, str] = Field(min_length=1)
    position: str = "end"


class RepairParams(PromptParams):
    """Attributes:
    heads: whose attention row is set.
    attend: class of tokens (`workbench.analyses.head_tools.classes`) -> share of the attention, divided evenly over
        the tokens of the class; the same for all `heads`.
    like: instead of `attend`: each head's row is made like its own on another task.
    position: of the query: `end`, or a span of the task, whose last token it then is.
    ablate: heads whose output is set to zero, at all positions.
    fault: damage done first; null for none.
    candidates: spans whose tokens are the possible answers, for the second accuracy; null for answer and wrong answer.
    watch: classes whose attention is tabled for every head; null for all.
    draws: the same intervention on random heads of the same layers.
    """

    heads: Heads = ()
    attend: dict[str, float] | None = None
    like: LikeParams | None = None
    position: str = "end"
    ablate: Heads = ()
    fault: FaultParams | None = None
    candidates: tuple[str, ...] | None = Field(default=None, min_length=1)
    watch: tuple[str, ...] | None = None
    draws: int = Field(default=20, ge=1)
    bootstrap: int = Field(default=1000, ge=1)

    @field_validator("attend")
    @classmethod
    def _sums_to_one(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        return check_distribution(value)

    @model_validator(mode="after")
    def _heads_and_attention(self) -> RepairParams:
        if self.attend is not None and self.like is not None:
            raise ValueError("`attend` and `like` both say what the heads attend to; choose one")
        if bool(self.heads) != (self.attend is not None or self.like is not None):
            raise ValueError("`heads` and `attend` (or `like`) go together: whose attention is set, and to what")
        both = set(self.heads) & set(self.ablate)
        if both:
            raise ValueError(f"head {list(min(both))} is both to attend and to be ablated; choose one")
        return self
