"""The standard circuit tasks as token-aligned pairs: IOI, coloured objects, greater-than, docstring, letters.

    data: {task: ioi, n: 32, corruption: third}

Each is made from patterns and pools of ours, filtered for the tokenizer at hand, so that one task runs on an organism
of a hundred words and on a pretrained model. Every task has at least two corruptions, because what a corruption leaves
alone it cannot find. Roles of tokens are in each pair's `spans`. Nothing here knows models beyond their tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench.errors import InputError
from workbench.tasks.circuits.compose import make
from workbench.tasks.circuits.layouts import colored_pairs, mib_ioi, mib_words
from workbench.tasks.circuits.vocabulary import TASKS, get, vocabulary, word_tokenizer
from workbench.tasks.pairs import PairDataset

OPTIONS = ("n", "corruption", "phrasing", "prefix", "split", "template", "seed")  # of every task; ioi has `files` too
REPORTED = ("changes", "split_by", "pools", "redrawn")  # what a recipe says of the data beside its options

__all__ = [
    "OPTIONS",
    "colored_objects",
    "colored_pairs",
    "corruptions",
    "docstring",
    "greater_than",
    "ioi",
    "letters",
    "mib_words",
    "names",
    "task",
    "vocabulary",
    "word_tokenizer",
]


def names() -> list[str]:
    """Names that `task:` may take."""
    return list(TASKS)


def corruptions(name: str) -> dict[str, str]:
    """Each corruption of a task and what it does, in words; the first is the default."""
    return dict(get(name).corruptions)


def task(
    name: str,
    model: Any,
    n: int = 32,
    *,
    corruption: str | None = None,
    phrasing: int | None = None,
    prefix: int = 0,
    split: str = "all",
    template: str | None = None,
    seed: int = 0,
    files: str | Path | Mapping[str, Any] | None = None,
) -> PairDataset:
    """`n` pairs of the task `name`, one of `names()`.

    Args:
        model: a `Model`, or anything `workbench.models.encode` takes (a tokenizer, say).
        corruption: what makes the corrupted prompt, one of `corruptions(name)`; the first of them by default. Equal
            seeds give equal clean prompts under every corruption.
        phrasing: use only this sentence (0-based); by default each prompt draws one.
        prefix: filler words in front of each prompt, which shift every position.
        split: `train` and `held_out` share no combination of the words that matter; `all` makes no difference.
        template: what surrounds each prompt (see `template.frame`).
        files: of `ioi`: a folder with the templates and words of the MIB benchmark (or those, as `mib_words` reads
            them), used instead of ours.

    Raises:
        InputError: an option is unusable, or the tokenizer cannot express the task.
    """
    options: dict[str, Any] = {"corruption": corruption, "phrasing": phrasing, "prefix": prefix, "split": split}
    options |= {"template": template, "seed": seed}
    if files is None:
        return make(get(name), model, n, **options)
    if name != "ioi":
        raise InputError(f"Task {name} has no published words to read; leave out `files`, which belongs to ioi.")
    words = files if isinstance(files, Mapping) else mib_words(files)
    made = make(mib_ioi(get(name), words), model, n, **options)
    return replace(made, meta={**made.meta, "files": dict(words)})


def ioi(model: Any, n: int = 32, **options: Any) -> PairDataset:
    """Indirect object identification; corruptions flip, third, redraw. Options as in `task`."""
    return task("ioi", model, n, **options)


def colored_objects(model: Any, n: int = 32, **options: Any) -> PairDataset:
    """Colour of one of three things; corruptions query, context, redraw. Options as in `task`."""
    return task("colored_objects", model, n, **options)


def greater_than(model: Any, n: int = 32, **options: Any) -> PairDataset:
    """A year later than the one named; corruptions 01, later. Options as in `task`."""
    return task("greater_than", model, n, **options)


def docstring(model: Any, n: int = 32, **options: Any) -> PairDataset:
    """The argument to describe next; corruptions definition, docstring, redraw. Options as in `task`."""
    return task("docstring", model, n, **options)


def letters(model: Any, n: int = 32, **options: Any) -> PairDataset:
    """The letter of the right option of three; corruptions fact, options. Options as in `task`."""
    return task("letters", model, n, **options)
