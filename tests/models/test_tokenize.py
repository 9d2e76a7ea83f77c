"""BOS once, offsets that point into the text, nothing added or cut."""

from __future__ import annotations

import pytest

from tests.tiny import BOS, tiny, tiny_hf, tiny_tokenizer
from workbench.errors import InputError
from workbench.models import Encoded, bos_id, encode, load_model
from workbench.models.tokenize import pieces

TEXT = "Alice ran to Paris ."


@pytest.mark.parametrize("adds_bos", [False, True])
def test_bos_is_there_once_whoever_adds_it(adds_bos: bool):
    tokenizer = tiny_tokenizer(adds_bos=adds_bos)
    assert tokenizer(TEXT)["input_ids"].count(BOS) == int(adds_bos)
    encoded = encode(tokenizer, TEXT)
    assert encoded.ids[0] == BOS and encoded.ids.count(BOS) == 1 and len(encoded) == 6
    assert encoded.offsets[0] == (0, 0)
    assert [TEXT[a:b] for a, b in encoded.offsets[1:]] == TEXT.split()


def test_a_text_that_begins_with_the_bos_string_keeps_that_one():
    assert encode(tiny_tokenizer(), "<bos> Alice").ids == encode(tiny_tokenizer(), "Alice").ids


def test_no_bos_where_the_tokenizer_has_none_even_after_the_bridge_invented_one():
    tokenizer = tiny_tokenizer(bos=False)
    model = load_model(tiny_hf("qwen2"), tokenizer=tokenizer, name="no-bos")
    assert bos_id(tokenizer) is None and bos_id(model.tokenizer) is None
    assert len(encode(model, TEXT)) == 5


def test_model_and_tokenizer_give_the_same():
    model = tiny("gpt2")
    assert encode(model, TEXT) == encode(model.tokenizer, TEXT)
    assert encode(model, "") == Encoded([BOS], [(0, 0)])
    assert model.bridge.to_tokens(TEXT)[0].tolist() == encode(model, TEXT).ids


def test_long_texts_are_not_truncated():
    assert len(encode(tiny("gpt2"), "the " * 700)) == 701


def test_without_tokenizer_or_text_it_is_an_input_error():
    with pytest.raises(InputError, match=r"'bare' has no tokenizer.*tokenizer="):
        encode(load_model(tiny_hf("gpt2"), name="bare"), TEXT)
    with pytest.raises(InputError, match="got int"):
        encode(tiny_tokenizer(), 3)  # type: ignore[arg-type]


def byte_level():
    """A tokenizer whose vocabulary is single bytes, so that a character may be several tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_pieces_bring_their_spaces_and_put_together_are_the_text():
    tokenizer = tiny_tokenizer()
    assert pieces(tokenizer, encode(tokenizer, TEXT).ids) == ["<bos>", " Alice", " ran", " to", " Paris", " ."]
    assert pieces(tiny("gpt2"), [BOS]) == ["<bos>"] and pieces(tokenizer, []) == []
    assert pieces(type("Bare", (), {"tokenizer": None})(), [3, 1]) == ["3", "1"]
    spelt = byte_level()
    assert "".join(pieces(spelt, spelt("a cat.")["input_ids"])) == "a cat."
    broken = pieces(spelt, spelt("né")["input_ids"])
    assert len(broken) == 3 and broken[0] == "n", "half a character is shown as the tokenizer shows it"


def test_a_token_that_the_model_has_no_embedding_for_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["zebra"])
    model = load_model(tiny_hf("llama"), tokenizer=tokenizer, name="small", probe=False)
    assert model.n_vocab == 64 and len(encode(tokenizer, "the zebra")) == 3
    with pytest.raises(InputError, match=r"gives 'zebra' the number 64, but 'small' has embeddings for 64 tokens only"):
        encode(model, "the zebra")
