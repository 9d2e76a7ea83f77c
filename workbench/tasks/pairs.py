"""Clean and corrupted prompts, token by token alike, with the answer and the wrong answer: what circuit methods read.

Patching moves an activation from one run to the same position of another, so the two prompts of a pair must have as
many tokens; that is checked here, once, and never again. `answer` and `wrong` are the first token each text adds to
the clean prompt when the two are tokenised together, because in many vocabularies that is not the token of the answer
alone. The file knows tokenizers and how many positions a model has, and nothing of patching.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from workbench.errors import InputError, did_you_mean
from workbench.tasks import checks
from workbench.tasks.dataset import Dataset
from workbench.tasks.template import Frame, frame

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Bool, Int
    from torch import Tensor

UNUSABLE = ("refuse", "drop")
PAIR_KEYS = ("clean", "corrupted", "answer", "wrong", "id")
_PAD = 0  # any id will do: the mask takes it out


@dataclass(frozen=True)
class PairSample:
    """One pair of prompts.

    Attributes:
        id: unique within its dataset.
        clean, corrupted: token ids of the two prompts, equally many, BOS included where the tokenizer has one.
        answer: token that should follow the clean prompt.
        wrong: token it is compared with, the one that the corrupted prompt calls for.
        notes: what a reader should know, in words.
        spans: role of a token in the task -> its half-open span, the same in both prompts ("S2": (9, 10), "end").
        answers, wrongs: all right and all wrong answers, where there are several; otherwise empty.
    """

    id: str
    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    answer: int
    wrong: int
    notes: tuple[str, ...] = ()
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict, hash=False)
    answers: tuple[int, ...] = ()
    wrongs: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.clean) != len(self.corrupted) or not self.clean:
            raise ValueError(f"prompts of {len(self.clean)} and {len(self.corrupted)} tokens are no pair")

    @property
    def length(self) -> int:
        """Number of tokens of either prompt."""
        return len(self.clean)

    @property
    def changed(self) -> tuple[int, ...]:
        """Positions at which the two prompts differ."""
        return tuple(i for i, (a, b) in enumerate(zip(self.clean, self.corrupted, strict=True)) if a != b)

    def swapped(self) -> PairSample:
        """The same pair seen from the other side: clean and corrupted, answer and wrong exchanged."""
        return replace(
            self,
            clean=self.corrupted,
            corrupted=self.clean,
            answer=self.wrong,
            wrong=self.answer,
            answers=self.wrongs,
            wrongs=self.answers,
        )


@dataclass(frozen=True)
class PairBatch:
    """Pairs as tensors, padded on the left.

    Attributes:
        clean, corrupted: token ids.
        mask: which of them are real, the same for both.
        answer, wrong: token ids.
    """

    clean: Int[Tensor, "n pos"]
    corrupted: Int[Tensor, "n pos"]
    mask: Bool[Tensor, "n pos"]
    answer: Int[Tensor, " n"]
    wrong: Int[Tensor, " n"]

    @property
    def padded(self) -> bool:
        """Whether any position is padding."""
        return not bool(self.mask.all())


@dataclass(frozen=True)
class PairDataset(Dataset[PairSample]):
    """An immutable sequence of pairs and the recipe that makes it again (`meta`, JSON-able)."""

    kind: ClassVar[str] = "pairs"

    def batch(self, indices: Sequence[int] | None = None) -> PairBatch:
        """These pairs (default: all), in this order, as tensors; shorter ones padded on the left."""
        import torch

        chosen = self.samples if indices is None else [self.samples[i] for i in indices]
        if not chosen:
            raise InputError("A batch needs at least one pair; add some to the dataset or name their indices.")
        longest = max(sample.length for sample in chosen)

        def pad(rows: list[tuple[int, ...]]) -> Tensor:
            return torch.tensor([(_PAD,) * (longest - len(row)) + row for row in rows])

        return PairBatch(
            clean=pad([s.clean for s in chosen]),
            corrupted=pad([s.corrupted for s in chosen]),
            mask=torch.tensor([[i >= longest - s.length for i in range(longest)] for s in chosen]),
            answer=torch.tensor([s.answer for s in chosen]),
            wrong=torch.tensor([s.wrong for s in chosen]),
        )

    def swapped(self) -> PairDataset:
        """Every pair with clean and corrupted, answer and wrong exchanged."""
        return self.with_samples(tuple(s.swapped() for s in self.samples), swapped=True)

    def digested(self) -> Any:
        optional = ("spans", "answers", "wrongs")  # a pair without them has the digest it always had
        return [{k: v for k, v in asdict(s).items() if v or k not in optional} for s in self.samples]

    def to_frame(self) -> pd.DataFrame:
        """One row per pair, without the tokens."""
        import pandas as pd

        rows = [
            {
                "id": s.id,
                "length": s.length,
                "n_changed": len(s.changed),
                "first_changed": s.changed[0] if s.changed else None,
                "answer": s.answer,
                "wrong": s.wrong,
                "notes": "; ".join(s.notes),
            }
            for s in self.samples
        ]
        return pd.DataFrame(rows)


def pairs_from_samples(
    model: Any,
    pairs: Sequence[Mapping[str, Any]],
    *,
    template: str | None = None,
    name: str = "pairs",
    origins: Sequence[str] | None = None,
    unusable: str = "refuse",
) -> PairDataset:
    """Tokenise explicit pairs `{clean, corrupted, answer, wrong[, id]}`.

    Args:
        model: a `Model`, or anything `workbench.models.encode` takes (a tokenizer, say).
        pairs: all four are texts; `answer` and `wrong` as they would continue the clean prompt (" Mary", space first).
        template: what surrounds each prompt (see `template.frame`); nothing by default.
        origins: what to call each pair in a message (lines of a file, say); default "Pair 0", "Pair 1", ...
        unusable: what becomes of a pair that this tokenizer does not make comparable (prompts of unequal length, one
            first token for both answers): `refuse` the data, or `drop` it; `meta["dropped"]` then counts them.

    Raises:
        InputError: a pair is unusable; the message names it by index and id. Or all of them are dropped.
    """
    if unusable not in UNUSABLE:
        raise InputError(f"unusable must be refuse or drop, not {unusable!r}.{did_you_mean(str(unusable), UNUSABLE)}")
    if isinstance(pairs, str | Mapping) or not isinstance(pairs, Sequence) or not pairs:
        raise InputError("pairs must be a list with at least one {clean, corrupted, answer, wrong}.")
    if origins is None:
        origins = [f"Pair {index}" for index in range(len(pairs))]
    around = frame(model, template)
    made: list[PairSample] = []
    kept: list[str] = []
    first: _NotComparable | None = None
    for index, (row, origin) in enumerate(zip(pairs, origins, strict=True)):
        try:
            made.append(_pair(model, row, index, origin, around))
            kept.append(origin)
        except _NotComparable as error:
            if unusable == "refuse":
                raise InputError(f"{error} Data with `unusable: drop` leave such pairs out.") from None
            first = first or error
    if first is not None and not made:
        raise InputError(f"None of the {len(pairs)} pairs is usable with this tokenizer. {first}")
    checks.distinct_ids([pair.id for pair in made], kept)
    recipe: dict[str, Any] = {"pairs": [dict(row) for row in pairs]}
    if template is not None:
        recipe["template"] = template
    if unusable == "drop":
        recipe |= {"unusable": unusable, "dropped": len(pairs) - len(made)}
    return PairDataset(name=name, samples=tuple(made), meta=recipe)


class _NotComparable(InputError):
    """A pair that is well written, but not for this tokenizer."""


def _pair(model: Any, row: Any, index: int, origin: str, around: Frame) -> PairSample:
    from workbench.models import encode

    name = row.get("id") if isinstance(row, Mapping) else None
    where = origin if name is None else f"{origin} ({name!r})"
    clean, corrupted, answer, wrong = (checks.required_text(row, key, where=where) for key in PAIR_KEYS[:4])
    checks.known_keys(row, PAIR_KEYS, where=where)
    clean, corrupted = (f"{around.before}{prompt}{around.after}" for prompt in (clean, corrupted))

    ids, others = tuple(encode(model, clean).ids), tuple(encode(model, corrupted).ids)
    if len(ids) != len(others):
        raise _NotComparable(
            f"{where}: the clean prompt has {len(ids)} tokens and the corrupted one {len(others)}; reword one of them, "
            "because patching goes position by position."
        )
    n_ctx = getattr(model, "n_ctx", None)
    if n_ctx is not None and len(ids) > n_ctx:
        raise InputError(f"{where} has {len(ids)} tokens, but the model has {n_ctx} positions; shorten the prompts.")
    right = _first_token(model, clean, ids, answer, "answer", where)
    foil = _first_token(model, clean, ids, wrong, "wrong", where)
    if right == foil:
        raise _NotComparable(
            f"{where}: answer {answer!r} and wrong {wrong!r} begin with the same token ({right}) after the prompt; "
            "choose two that differ in their first token."
        )
    notes = []
    if ids == others:
        notes.append("clean and corrupted are the same tokens, so no effect can be measured")
    return PairSample(
        id=str(index) if name is None else str(name),
        clean=ids,
        corrupted=others,
        answer=right,
        wrong=foil,
        notes=tuple(notes),
    )


def _first_token(model: Any, prompt: str, ids: tuple[int, ...], text: str, key: str, where: str) -> int:
    """The token that `text` adds first to `prompt` when the two are tokenised together."""
    from workbench.models import encode, unknown_id

    joint = tuple(encode(model, prompt + text).ids)
    if joint[: len(ids)] != ids:
        raise InputError(
            f"{where}: {key} {text!r} changes how the end of the prompt is tokenised; move a space or word between the "
            "two (a prompt should not end in a space)."
        )
    if len(joint) == len(ids):
        raise InputError(f"{where}: {key} {text!r} adds no token to the prompt; give it text the tokenizer keeps.")
    if joint[len(ids)] == unknown_id(model):
        raise InputError(f"{where}: the model's vocabulary lacks the {key} {text!r}; choose a word it knows.")
    return joint[len(ids)]
