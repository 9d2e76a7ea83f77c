"""What a needle dataset is: prompts in token space, with the spans of the needle and of the question tracked.

Analyses read nothing else about a dataset, so samples composed from the synthetic world, from a user's haystack and
from explicit prompts look the same to them. The file knows neither tokenizers nor models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from workbench.tasks.dataset import Dataset

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class NeedleSample:
    """One prompt that holds a needle.

    Attributes:
        id: unique within its dataset.
        tokens: the whole prompt, BOS included where the tokenizer has one.
        needle: half-open span `[a, b)` in `tokens` of the text that is to be retrieved.
        needle_text: that text; recall is measured against it.
        question: half-open span in `tokens` of the part that asks for it; empty when nothing follows the needle.
        needle_id: which needle it is; samples at other depths and lengths share it.
        depth: where the needle was asked to be, 0 = right after BOS, 1 = right before the question; None if unknown.
        nominal_length: the length asked for; None for explicit prompts.
        notes: what a reader should know, in words.
    """

    id: str
    tokens: tuple[int, ...]
    needle: tuple[int, int]
    needle_text: str
    question: tuple[int, int]
    needle_id: str
    depth: float | None = None
    nominal_length: int | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        a, b = self.needle
        c, d = self.question
        if not 0 <= a < b <= c <= d <= len(self.tokens):
            raise ValueError(f"spans {self.needle}, {self.question} do not fit a prompt of {len(self.tokens)} tokens")

    @property
    def length(self) -> int:
        """Number of tokens in the prompt."""
        return len(self.tokens)

    @property
    def needle_tokens(self) -> tuple[int, ...]:
        """Token ids of the needle, as they stand in the prompt."""
        return self.tokens[slice(*self.needle)]

    @property
    def position(self) -> float:
        """Where the needle really begins, as a fraction of the prompt."""
        return self.needle[0] / self.length


@dataclass(frozen=True)
class NeedleDataset(Dataset[NeedleSample]):
    """An immutable sequence of needle samples and the recipe that makes it again (`meta`, JSON-able)."""

    kind: ClassVar[str] = "needle"

    def counts(self) -> dict[str, Any]:
        return {"n_needles": len({sample.needle_id for sample in self.samples})}

    def to_frame(self) -> pd.DataFrame:
        """One row per sample, without the tokens."""
        import pandas as pd

        rows = [
            {
                "id": s.id,
                "needle_id": s.needle_id,
                "needle_text": s.needle_text,
                "length": s.length,
                "nominal_length": s.nominal_length,
                "depth": s.depth,
                "position": s.position,
                "needle_start": s.needle[0],
                "needle_stop": s.needle[1],
                "question_start": s.question[0],
                "question_stop": s.question[1],
                "notes": "; ".join(s.notes),
            }
            for s in self.samples
        ]
        return pd.DataFrame(rows)
