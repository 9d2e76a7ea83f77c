"""Text to token ids with character offsets, and tokens as texts: the one way everything in the workbench tokenises.

The model's own tokenizer, no chat template, and the BOS token once at the front when the tokenizer has one, whether or
not the tokenizer would add it by itself. Offsets let a span of text become a span of tokens. It never knows what the
text is for.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workbench.errors import InputError


@dataclass(frozen=True)
class Encoded:
    """Token ids and, for each, the half-open span of characters it covers in the text ((0, 0) for the BOS token)."""

    ids: list[int]
    offsets: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.ids)


def bos_id(tokenizer: Any) -> int | None:
    """Id of the token that begins every prompt, or None when the vocabulary has none (Qwen)."""
    token_id = getattr(tokenizer, "bos_token_id", None)
    return None if token_id is None else int(token_id)


def unknown_id(model_or_tokenizer: Any) -> int | None:
    """Id that stands for every word outside the vocabulary; None when the tokenizer can spell any word."""
    tokenizer: Any = getattr(model_or_tokenizer, "tokenizer", model_or_tokenizer)
    token_id = getattr(tokenizer, "unk_token_id", None)
    ends = (bos_id(tokenizer), getattr(tokenizer, "eos_token_id", None))  # GPT-2 names its end of text so too
    return None if token_id is None or token_id in ends else int(token_id)


def encode(model_or_tokenizer: Any, text: str) -> Encoded:
    """Tokenise `text` without chat template; BOS once at the front when the tokenizer has one.

    A text that already begins with the BOS token's own string keeps that one. Nothing is truncated.
    """
    # a Model holds a tokenizer; a tokenizer holds none
    tokenizer: Any = getattr(model_or_tokenizer, "tokenizer", model_or_tokenizer)
    if not callable(tokenizer):
        raise InputError(
            f"{getattr(model_or_tokenizer, 'name', model_or_tokenizer)!r} has no tokenizer, so text cannot become "
            "tokens; pass tokenizer=... to load_model."
        )
    if not isinstance(text, str):
        raise InputError(f"Expected a text to tokenise, got {type(text).__name__}; pass a str.")
    if not getattr(tokenizer, "is_fast", True):
        raise InputError(
            f"The tokenizer {type(tokenizer).__name__} cannot report character offsets; convert it to the fast format "
            "(a tokenizer.json) and load that."
        )
    batch: Any = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False
    )
    ids = [int(i) for i in batch["input_ids"]]
    offsets = [(int(a), int(b)) for a, b in batch["offset_mapping"]]
    n_vocab = getattr(model_or_tokenizer, "n_vocab", None)
    if n_vocab and max(ids, default=0) >= n_vocab:  # on a GPU this would be a device assert that kills the process
        a, b = offsets[ids.index(max(ids))]
        raise InputError(
            f"The tokenizer gives {text[a:b]!r} the number {max(ids)}, but {model_or_tokenizer.name!r} has embeddings "
            f"for {n_vocab} tokens only; load the tokenizer that belongs to it."
        )
    bos = bos_id(tokenizer)
    if bos is not None and ids[:1] != [bos]:
        ids, offsets = [bos, *ids], [(0, 0), *offsets]
    return Encoded(ids, offsets)


def pieces(model_or_tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text that each token adds after the one before it: with the space it brings, special tokens by their names.

    A token that is part of a character is shown as the tokenizer shows it alone; without a tokenizer it is its number.
    """
    tokenizer: Any = getattr(model_or_tokenizer, "tokenizer", model_or_tokenizer)
    if tokenizer is None:
        return [str(token) for token in ids]

    def text(*some: int) -> str:
        return tokenizer.decode(list(some), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    found = [text(token) for token in ids[:1]]
    for before, token in itertools.pairwise(ids):
        start, both = text(before), text(before, token)
        found.append(both[len(start) :] if both.startswith(start) else text(token))
    return found
