"""Tokenizers small enough to make in a test: one token per word, and pieces that carry their spaces."""

from __future__ import annotations

from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from workbench.tasks import prose


@cache
def word_level() -> Any:
    """The synthetic English and some words of the tests, a token per word, with a BOS token."""
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *prose.vocabulary(), "in", "Rome", "Ann"])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@cache
def byte_pairs() -> Any:
    """Byte-level pairs as in GPT-2, where a token carries the space before it; no BOS token."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    raw.train_from_iterator([prose.text(20000, seed=9)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw)


@cache
def spaces_marked() -> Any:
    """Pieces as in SentencePiece (a word begins with ▁), with a BOS token."""
    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    raw.train_from_iterator([prose.text(20000, seed=9), " ".join(prose.vocabulary())], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@cache
def stops_with_line_breaks() -> Any:
    """A token per word, except that a full stop and the line break after it are one token, as in Llama 3."""
    words = ["<unk>", "<s>", ".\n", *prose.vocabulary()]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"\.\n|\w+|[^\w\s]"), "removed", invert=True)
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", bos_token="<s>")


TOKENIZERS = {"word_level": word_level, "byte_pairs": byte_pairs, "spaces_marked": spaces_marked}


class Limited:
    """What a `Model` is to a task: a tokenizer and a number of positions."""

    def __init__(self, n_ctx: int) -> None:
        self.tokenizer = word_level()
        self.n_ctx = n_ctx
