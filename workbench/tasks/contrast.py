"""Two groups of prompts, positives and negatives: what methods read that ask where a model tells the two apart.

    data: {positives: [...], negatives: [...]}     explicit prompts
    data: {task: ioi, corruption: third}           clean prompts against corrupted ones (`contrast_from_pairs`)

On a positive the model can be right, on a negative it cannot: the discrete-SAE method assumes that. A corruption that
leaves no answer (ioi: redraw, third) keeps to it; one that merely moves the answer elsewhere (ioi: flip;
colored_objects: query, context) does not, and its two groups may look alike from the outside. The file knows
tokenizers and how many positions a model has, and nothing of what is done with the prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from workbench.errors import InputError
from workbench.tasks.dataset import Dataset
from workbench.tasks.pairs import PairDataset
from workbench.tasks.prompts import PromptBatch
from workbench.tasks.template import frame, framed_tokens

if TYPE_CHECKING:
    import pandas as pd

Side = Literal["positive", "negative"]
_KEYS: dict[str, Side] = {"positives": "positive", "negatives": "negative"}


@dataclass(frozen=True)
class ContrastSample:
    """One prompt.

    Attributes:
        id: unique within its dataset.
        tokens: the whole prompt with its template, BOS included where the tokenizer has one.
        group: `positive` or `negative`.
        text: as the user wrote it; empty where the prompt came as tokens.
    """

    id: str
    tokens: tuple[int, ...]
    group: Side
    text: str = ""

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.tokens)


@dataclass(frozen=True)
class ContrastDataset(Dataset[ContrastSample]):
    """An immutable sequence, positives first, and the recipe that makes it again (`meta`, JSON-able).

    Attributes:
        pairs: where positives and negatives are the two prompts of pairs: these pairs, in the order of both groups.
    """

    kind: ClassVar[str] = "contrast"
    pairs: PairDataset | None = None

    def with_samples(self, samples: tuple[ContrastSample, ...], **meta: Any) -> ContrastDataset:
        return replace(super().with_samples(samples, **meta), pairs=None)  # they no longer stand in the pairs' order

    @property
    def n_positive(self) -> int:
        return sum(sample.group == "positive" for sample in self.samples)

    def batch(self, indices: Sequence[int] | None = None) -> PromptBatch:
        """These prompts (default: all), in this order, as tensors; shorter ones padded on the left."""
        chosen = self.samples if indices is None else [self.samples[i] for i in indices]
        if not chosen:
            raise InputError("A batch needs at least one prompt; add some to the dataset or name their indices.")
        return PromptBatch.of([sample.tokens for sample in chosen])

    def counts(self) -> dict[str, Any]:
        return {"n_positive": self.n_positive, "n_negative": len(self) - self.n_positive}

    def to_frame(self) -> pd.DataFrame:
        """One row per prompt, without the tokens."""
        import pandas as pd

        rows = [{"id": s.id, "group": s.group, "length": s.length, "text": s.text} for s in self.samples]
        return pd.DataFrame(rows, columns=["id", "group", "length", "text"])


def contrast_from_texts(
    model: Any,
    positives: Sequence[str],
    negatives: Sequence[str],
    *,
    template: str | None = None,
    name: str = "contrast",
) -> ContrastDataset:
    """Tokenise two groups of prompts.

    Args:
        model: a `Model`, or anything `workbench.models.encode` takes (a tokenizer, say).
        positives: texts on which the model can be right.
        negatives: texts on which it cannot.
        template: what surrounds each prompt (see `template.frame`); nothing by default.

    Raises:
        InputError: a group is empty or a prompt is unusable; the message says which.
    """
    given = {"positives": positives, "negatives": negatives}
    for key, texts in given.items():
        if isinstance(texts, str | Mapping) or not isinstance(texts, Sequence) or not texts:
            raise InputError(f"{key} must be a list with at least one text, not {texts!r}.")
    around = frame(model, template)
    samples = tuple(
        ContrastSample(f"{group}-{i}", framed_tokens(model, text, around, where=f"{key}[{i}]"), group, text)
        for key, group in _KEYS.items()
        for i, text in enumerate(given[key])
    )
    recipe: dict[str, Any] = {key: list(texts) for key, texts in given.items()}
    if template is not None:
        recipe["template"] = template
    return ContrastDataset(name, samples, recipe)


def contrast_from_pairs(pairs: PairDataset) -> ContrastDataset:
    """Clean prompts as positives and corrupted prompts as negatives, pair by pair in the same order."""
    samples = [ContrastSample(f"positive-{pair.id}", pair.clean, "positive") for pair in pairs]
    samples += [ContrastSample(f"negative-{pair.id}", pair.corrupted, "negative") for pair in pairs]
    corruption = pairs.meta.get("corruption")
    how = "corrupted prompts of the pairs" + (f" (corruption {corruption})" if corruption else "")
    meta = {**pairs.meta, "positives": "clean prompts of the pairs", "negatives": how}
    return ContrastDataset(pairs.name, tuple(samples), meta, pairs)
