"""Which words of a pool a tokenizer can be asked about: known, equally long in tokens, told apart by their first.

Patching compares prompts position by position and answers by one token, so a task may only use words that the
tokenizer treats alike. That depends on the tokenizer, hence pools are filtered for each: the same task then runs on an
organism that knows twelve names and on GPT-2. Knows tokenizers, and no task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workbench.errors import InputError


@dataclass(frozen=True)
class Pool:
    """Words that one tokenizer makes comparable.

    Attributes:
        words: in the order of the task's own list.
        tokens: first token of each, in context; all different unless there were too few such words.
        n_tokens: how many tokens each word has.
    """

    words: tuple[str, ...]
    tokens: tuple[int, ...]
    n_tokens: int

    def __len__(self) -> int:
        return len(self.words)

    def token(self, word: str) -> int:
        """First token of `word`."""
        return self.tokens[self.words.index(word)]


def unknown_id(model: Any) -> int | None:
    """Id that stands for every unknown word; None when the vocabulary has none."""
    tokenizer = getattr(model, "tokenizer", None) or model
    return getattr(tokenizer, "unk_token_id", None)


def added(model: Any, before: str, text: str) -> tuple[int, ...] | None:
    """Tokens that `text` adds to `before`; None when it changes those of `before` or holds an unknown word."""
    from workbench.models import encode

    front, whole = encode(model, before).ids, encode(model, before + text).ids
    rest = tuple(whole[len(front) :])
    if whole[: len(front)] != front or not rest or unknown_id(model) in rest:
        return None
    return rest


def comparable(
    model: Any, words: Sequence[str], *, before: str = "to ", n_tokens: int | None = None, least: int = 1
) -> Pool:
    """The largest set of `words` with equally many tokens, told apart by their first, when they follow `before`.

    Where that leaves fewer than `least` words (small vocabularies spell names letter by letter), words may share their
    first token; whoever makes a pair then has to see that its two answers differ.

    Args:
        before: text in front; a space at its end is counted to the word, as most vocabularies do.
        n_tokens: accept only this many; by default the number that most words have.
    """
    stem = before.rstrip(" ")
    space = before[len(stem) :]
    groups: dict[int, dict[str, int]] = {}  # number of tokens -> word -> first token
    for word in words:
        tokens = added(model, stem, space + word)
        if tokens is not None and n_tokens in (None, len(tokens)):
            groups.setdefault(len(tokens), {})[word] = tokens[0]
    if not groups:
        return Pool((), (), n_tokens or 1)
    firsts = {n: len(set(group.values())) for n, group in groups.items()}
    best = max(groups, key=lambda n: (len(groups[n]) >= least, firsts[n], len(groups[n]), -n))
    chosen = groups[best]
    if firsts[best] >= least:
        chosen = {word: token for token, word in {chosen[w]: w for w in reversed(chosen)}.items()}  # the first of each
        chosen = {word: chosen[word] for word in words if word in chosen}
    return Pool(tuple(chosen), tuple(chosen.values()), best)


def require(pool: Pool, least: int, *, task: str, what: str) -> Pool:
    """`pool`, or a refusal when it holds fewer than `least` words."""
    if len(pool) < least:
        found = ", ".join(pool.words) or "none"
        raise InputError(
            f"Task {task} needs {least} {what} that the tokenizer knows and gives equally many tokens, but it has "
            f"{len(pool)} ({found}); choose a model with a larger vocabulary, or another task."
        )
    return pool
