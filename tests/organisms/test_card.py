"""The organism `retrieval` is what its card says: small, offline, and able to answer needles it never saw."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from workbench import organisms
from workbench.errors import InputError
from workbench.tasks import needle, prose

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "organisms"))
import retrieval_checks as checks  # pyright: ignore[reportMissingImports]

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(organisms.path("retrieval"))


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    loaded = LlamaForCausalLM.from_pretrained(organisms.path("retrieval"), attn_implementation="eager")
    return loaded.eval()  # type: ignore[return-value]


@pytest.fixture(scope="module")
def card() -> dict:
    return organisms.card("retrieval")


def test_names_paths_and_an_error_with_a_suggestion() -> None:
    assert "retrieval" in organisms.names()
    assert organisms.path("organism:retrieval") == organisms.path("retrieval")
    with pytest.raises(InputError, match="Did you mean 'retrieval'"):
        organisms.path("retreival")


def test_it_is_small_and_complete() -> None:
    folder = organisms.path("retrieval")
    assert sum(f.stat().st_size for f in folder.iterdir()) < 2_000_000
    assert {f.name for f in folder.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "card.json",
        "README.md",
    }


def test_the_card_agrees_with_the_model(card: dict, model: LlamaForCausalLM, tokenizer) -> None:
    config = model.config
    shape = card["model"]
    assert shape["n_layers"] == config.num_hidden_layers and shape["n_heads"] == config.num_attention_heads
    assert shape["n_kv_heads"] == config.num_key_value_heads and shape["d_head"] == config.head_dim
    assert shape["n_parameters"] == sum(p.numel() for p in model.parameters())
    assert shape["vocab_size"] == config.vocab_size == len(tokenizer)
    assert shape["n_ctx"] == config.max_position_embeddings
    assert card["name"] == "retrieval" and card["kind"] == "trained"
    assert card["training"]["seconds"] < 15 * 60 and card["training"]["loss_curve"]
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_the_tokenizer_speaks_the_whole_language(tokenizer) -> None:
    text = prose.text(400) + " " + prose.needles(1)[0]["question"]
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" :", ":") == text
    assert set(prose.vocabulary()) <= set(tokenizer.get_vocab())


def test_recall_of_held_out_needles_at_every_depth(model: LlamaForCausalLM, tokenizer) -> None:
    data = needle(tokenizer, 60, lengths=256, depths=DEPTHS, seed=101)
    found = checks.recall(model, data)
    for depth in DEPTHS:
        values = [found[s.id] for s in data if s.depth == depth]
        assert sum(values) / len(values) >= 0.95, depth


def test_masking_the_heads_on_the_card_stops_retrieval_and_masking_others_does_not(
    card: dict, model, tokenizer
) -> None:
    data = needle(tokenizer, 20, lengths=128, depths=DEPTHS, seed=102)
    heads = [(h["layer"], h["head"]) for h in card["retrieval_heads"]]
    others = [checks.matched_random(heads, model.config.num_attention_heads, seed) for seed in range(2)]
    assert checks.mean_recall(model, data) >= 0.95
    for kind in ("zero", "uniform"):
        assert checks.mean_recall(model, data, heads=heads, kind=kind, scope="decode") < 0.2
        assert sum(checks.mean_recall(model, data, heads=o, kind=kind, scope="decode") for o in others) / 2 > 0.8


def test_the_heads_on_the_card_are_those_with_the_highest_score(card: dict, model, tokenizer) -> None:
    score = checks.wu_scores(model, needle(tokenizer, 20, lengths=128, depths=DEPTHS, seed=103))
    heads = {(h["layer"], h["head"]) for h in card["retrieval_heads"]}
    order = score.flatten().argsort(descending=True)[: len(heads)].tolist()
    assert {divmod(i, score.shape[1]) for i in order} == heads
