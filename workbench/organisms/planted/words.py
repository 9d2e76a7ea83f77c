"""A tokenizer of whole words for planted models: one token per word or punctuation mark.

Text is cut at white space and punctuation; a word that is not in the vocabulary becomes <unk>. BOS goes to the front by
itself, once. Decoding puts no space before punctuation.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from workbench.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")  # ids 0 to 3


def word_tokenizer(words: Iterable[str], *, n_ctx: int, more_special: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """A fast tokenizer of `words`, after the special tokens `SPECIAL` and `more_special` (an image token, say).

    Raises:
        InputError: a word occurs twice, or would be cut into pieces.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words, more = list(words), list(more_special)
    special = [*SPECIAL, *more]
    cut = pre_tokenizers.Whitespace()
    for word in words:
        if [piece for piece, _ in cut.pre_tokenize_str(word)] != [word]:
            raise InputError(f"The word {word!r} is not one piece of text; use letters and digits, or one mark.")
    if len({*special, *words}) != len(special) + len(words):
        twice = next(word for word in words if [*special, *words].count(word) > 1)
        raise InputError(f"The word {twice!r} occurs twice in the vocabulary; name it once.")
    vocabulary = {word: i for i, word in enumerate([*special, *words])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = cut  # type: ignore[assignment]
    raw.decoder = decoders.WordPiece(prefix="##", cleanup=True)  # type: ignore[assignment]  # no space before a mark
    raw.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=n_ctx,
        **({"additional_special_tokens": more} if more else {}),
    )
