"""Plain prompts in two groups, `harmful` and `benign`: what safety-head analyses read.

The groups are the user's: `prompts` (the ones a safe model refuses) and, as their control, `benign`. Prompts come
inline or from the files that the field exchanges (CSV, JSON, JSONL). Around each goes a template, if one is asked for:
`chat`, or text such as the paper's `"## Query:{prompt}\n## Answer:"`. The file knows tokenizers and how many positions
a model has, and nothing of what is done with the prompts; no harmful prompt is in the package.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from workbench.errors import InputError, did_you_mean
from workbench.tasks import checks
from workbench.tasks.dataset import Dataset
from workbench.tasks.template import frame, framed_tokens

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Bool, Int
    from torch import Tensor

Group = Literal["harmful", "benign"]
GROUPS: tuple[Group, ...] = ("harmful", "benign")
# What published files call the prompt, whatever the case, the first that is there: ours; AdvBench (goal, target) and
# JailbreakBench (Goal, Target, ...); refusal_direction (instruction, category); the safety-head paper's own files.
PROMPT_KEYS = ("prompt", "goal", "instruction", "query", "input")
_BESIDES = {"id", "index", "target", "category", "behavior", "source", *PROMPT_KEYS}
_PAD = 0  # any id will do: the mask takes it out


@dataclass(frozen=True)
class PromptSample:
    """One prompt.

    Attributes:
        id: unique within its dataset.
        text: as the user wrote it, without the template.
        tokens: the whole prompt with its template, BOS included where the tokenizer has one.
        group: `harmful` (a safe model refuses it) or `benign`.
    """

    id: str
    text: str
    tokens: tuple[int, ...]
    group: Group = "harmful"

    def __post_init__(self) -> None:
        if not self.tokens or self.group not in GROUPS:
            raise ValueError(f"a prompt of {len(self.tokens)} tokens in group {self.group!r} is none")

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.tokens)


@dataclass(frozen=True)
class PromptBatch:
    """Prompts as tensors, padded on the left.

    Attributes:
        tokens: token ids.
        mask: which of them are real.
    """

    tokens: Int[Tensor, "n pos"]
    mask: Bool[Tensor, "n pos"]

    @property
    def padded(self) -> bool:
        """Whether any position is padding."""
        return not bool(self.mask.all())

    @classmethod
    def of(cls, prompts: Sequence[tuple[int, ...]]) -> PromptBatch:
        """Token ids of prompts, one or more, as tensors."""
        import torch

        longest = max(map(len, prompts))
        rows = [(_PAD,) * (longest - len(tokens)) + tokens for tokens in prompts]
        mask = [[column >= longest - len(tokens) for column in range(longest)] for tokens in prompts]
        return cls(torch.tensor(rows), torch.tensor(mask))


@dataclass(frozen=True)
class PromptDataset(Dataset[PromptSample]):
    """An immutable sequence of prompts and the recipe that makes it again (`meta`, JSON-able)."""

    kind: ClassVar[str] = "prompts"

    def only(self, group: Group) -> PromptDataset:
        """The prompts of one group; it may have none."""
        if group not in GROUPS:
            raise InputError(f"There is no group {group!r} of prompts.{did_you_mean(str(group), GROUPS)}")
        return self.with_samples(tuple(sample for sample in self.samples if sample.group == group), only=group)

    def batch(self) -> PromptBatch:
        """All prompts, in order, as tensors; shorter ones padded on the left."""
        if not self.samples:
            raise InputError(f"The dataset {self.name!r} has no prompts to batch; add some.")
        return PromptBatch.of([sample.tokens for sample in self.samples])

    def counts(self) -> dict[str, Any]:
        return {"n_by_group": {group: len(self.only(group)) for group in GROUPS}}

    def to_frame(self) -> pd.DataFrame:
        """One row per prompt, without the tokens."""
        import pandas as pd

        rows = [{"id": s.id, "group": s.group, "length": s.length, "text": s.text} for s in self.samples]
        return pd.DataFrame(rows, columns=["id", "group", "length", "text"])


def prompts_from_texts(
    model: Any,
    prompts: Sequence[str],
    *,
    benign: Sequence[str] = (),
    template: str | None = None,
    n: int | None = None,
    name: str = "prompts",
) -> PromptDataset:
    """Tokenise prompts, the harmful ones first.

    Args:
        model: a `Model`, or anything `workbench.models.encode` takes (a tokenizer, say).
        prompts: texts of the group `harmful`; where nothing is harmful, simply the prompts.
        benign: texts of the control group.
        template: what surrounds each prompt (see `template.frame`); nothing by default.
        n: at most this many of each group, from the front.

    Raises:
        InputError: a prompt is unusable; the message says which.
    """
    if n is not None:
        checks.whole_number(n, what="n")
    given = {"prompts": prompts, "benign": benign}
    for key, texts in given.items():
        if isinstance(texts, str | Mapping) or not isinstance(texts, Sequence):
            raise InputError(f"{key} must be a list of texts, not {texts!r}.")
    if not prompts:
        raise InputError("prompts must hold at least one text.")
    around = frame(model, template)
    samples = []
    for group, (key, texts) in zip(GROUPS, given.items(), strict=True):
        for i, text in enumerate(texts[:n]):
            tokens = framed_tokens(model, text, around, where=f"{key}[{i}]")
            samples.append(PromptSample(f"{group}-{i}", text, tokens, group))
    recipe: dict[str, Any] = {"prompts": list(prompts)}
    recipe |= {"benign": list(benign)} if benign else {}
    recipe |= {key: value for key, value in (("template", template), ("n", n)) if value is not None}
    return PromptDataset(name=name, samples=tuple(samples), meta=recipe)


def read_prompts(path: str | Path, *, base_dir: str | Path | None = None, what: str = "prompts file") -> list[str]:
    """The prompts in a file, in order, repetitions kept.

    `.csv` has a header; `.json` is a list, `.jsonl` one entry per line, of texts or of objects. A column or key of
    `PROMPT_KEYS` holds the prompt, in any case: so files in the layouts of AdvBench, JailbreakBench and
    refusal_direction can be read as they are.

    Raises:
        InputError: naming the file, the line or entry, and the key.
    """
    found, content = checks.text_file(path, base_dir=base_dir, what=what)
    content = content.removeprefix("\ufeff")
    readers = {".csv": _csv, ".json": _json, ".jsonl": _jsonl}
    if found.suffix.lower() not in readers:
        raise InputError(f"The {what} {str(found)!r} is of no known kind; save it as .csv, .json or .jsonl.")
    rows = readers[found.suffix.lower()](content, repr(str(found)))
    if not rows:
        raise InputError(f"The {what} {str(found)!r} holds no prompts; write at least one.")
    return [_text(row, where) for where, row in rows]


def is_prompts(path: str | Path, first: Any) -> bool:
    """Whether a data file holds plain prompts, by its name and, for JSONL, its first entry."""
    if Path(str(path)).suffix.lower() in (".csv", ".json"):
        return True
    if not isinstance(first, Mapping):
        return isinstance(first, str)
    keys = {str(key).lower() for key in first}
    return bool(keys & set(PROMPT_KEYS)) and keys <= _BESIDES


def _text(row: Any, where: str) -> str:
    """The prompt of one entry."""
    if isinstance(row, str):
        row = {"prompt": row}
    if not isinstance(row, Mapping):
        raise InputError(f"{where} must be a text or an object, not {type(row).__name__}.")
    names = {str(key).strip().lower(): key for key in row}
    key = next((names[known] for known in PROMPT_KEYS if known in names), None)
    if key is None:
        raise InputError(
            f"{where} has no prompt: its keys are {', '.join(map(repr, row)) or 'none'}; name one of them "
            f"{', '.join(PROMPT_KEYS[:-1])} or {PROMPT_KEYS[-1]}."
        )
    return checks.required_text(row, key, where=where)


def _csv(content: str, file: str) -> list[tuple[str, Any]]:
    reader = csv.DictReader(io.StringIO(content, newline=""), strict=True)
    rows: list[tuple[str, Any]] = []
    try:
        for row in reader:
            row.pop(None, None)  # type: ignore[call-overload]  # fields beyond the header
            rows.append((f"Line {reader.line_num} of {file}", row))
    except csv.Error as error:
        raise InputError(
            f"Line {reader.line_num} of {file} is not CSV ({error}); quote texts that hold commas."
        ) from None
    return rows


def _json(content: str, file: str) -> list[tuple[str, Any]]:
    try:
        entries = json.loads(content)
    except json.JSONDecodeError as error:
        raise InputError(
            f"Line {error.lineno} of {file} is not JSON ({error.msg}); write one list of prompts."
        ) from None
    if not isinstance(entries, list):
        raise InputError(f"{file} holds one {type(entries).__name__}, not a list; write a list of prompts.")
    return [(f"Entry {i} of {file}", entry) for i, entry in enumerate(entries)]


def _jsonl(content: str, file: str) -> list[tuple[str, Any]]:
    rows = []
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            where = f"Line {number} of {file}"
            try:
                rows.append((where, json.loads(line)))
            except json.JSONDecodeError as error:
                raise InputError(f"{where} is not JSON ({error.msg}); write one prompt per line.") from None
    return rows
