"""Words and marks that the circuit tasks are made of, and a tokenizer with one token for each.

For organisms: a model that only knows `vocabulary("ioi")` can be asked the task `ioi` like any other model. Years are
split into pairs of digits (1732 is 17|32), as GPT-2 does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from workbench.errors import InputError, did_you_mean
from workbench.tasks.circuits import colored, docstring, ioi, letters, years
from workbench.tasks.circuits.compose import Task, render
from workbench.tasks.circuits.words import FILLERS

TASKS: dict[str, Task] = {
    task.name: task for task in (ioi.TASK, colored.TASK, years.TASK, docstring.TASK, letters.TASK)
}
PIECES = r"\d{2}|\w+|[^\w\s]+"  # a pair of digits, a word, or marks in a row
SPECIAL = ("<unk>", "<s>", "</s>")


def get(name: str) -> Task:
    """The task `name`, or a refusal."""
    if name not in TASKS:
        known = ", ".join(TASKS)
        raise InputError(f"There is no circuit task {name!r}.{did_you_mean(str(name), TASKS)} Available: {known}.")
    return TASKS[name]


def vocabulary(name: str, *, fillers: bool = False) -> list[str]:
    """Every word and mark of the prompts and answers of a task, sorted; with `fillers`, those of `prefix` too."""
    task = get(name)
    words = {word for pool, _ in task.pools.values() for word in pool} | set(FILLERS if fillers else ())
    first = {slot: task.pools[pool][0][0] for slot, pool in task.slots.items()}
    for pattern in task.phrasings:
        words.update(re.findall(PIECES, render(pattern, first).text))
    return sorted(words)


def word_tokenizer(words: Iterable[str], *, n_ctx: int | None = None) -> Any:
    """A fast tokenizer with a token per word of `words`, `<s>` as BOS in front, and `<unk>` for all others."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate((*SPECIAL, *dict.fromkeys(words)))}
    raw: Any = Tokenizer(models.WordLevel(ids, unk_token=SPECIAL[0]))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), "removed", invert=True)
    raw.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", ids["<s>"])]
    )
    options = {} if n_ctx is None else {"model_max_length": n_ctx}
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>", **options
    )
