"""What planted models are made of: codes that are never confused, a stream that norms leave alone, whole words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import workbench as wb
from tests.organisms import raw_heads
from workbench.errors import InputError
from workbench.models import encode
from workbench.organisms import planted
from workbench.organisms.planted import refusal
from workbench.organisms.planted.codes import NEAREST, ROOTS, codes
from workbench.organisms.planted.residual import CONSTANT, Residual
from workbench.organisms.planted.silence import last_logits, silenced
from workbench.organisms.planted.words import word_tokenizer
from workbench.organisms.planted.writing import ROPE_THETA, choose_slots, empty_gpt2, noise_head, write_head

RNG = np.random.default_rng


@pytest.mark.parametrize(("dim", "n"), ROOTS.items())
def test_codes_are_unit_vectors_no_two_of_which_are_close(dim: int, n: int) -> None:
    found = codes(n, dim, RNG(0))
    products = found @ found.T
    assert found.shape == (n, dim)
    assert np.diag(products) == pytest.approx(1.0)
    assert (products - 2 * np.eye(n)).max() <= NEAREST + 1e-9
    with pytest.raises(InputError, match=f"{n + 1} words do not fit"):
        codes(n + 1, dim, RNG(0))


def test_few_codes_are_orthonormal() -> None:
    found = codes(4, 5, RNG(0))
    assert found @ found.T == pytest.approx(np.eye(4))


def test_parts_of_the_stream_are_orthogonal_and_hidden_from_the_mean() -> None:
    stream = Residual(32, {"a": 5, "b": 3}, RNG(1), unread=True)
    rows = np.concatenate([stream["a"], stream["b"], stream.spare, stream.constant[None], stream.unread[None]])
    assert rows @ rows.T == pytest.approx(np.eye(len(rows)), abs=1e-12)
    assert rows.sum(1) == pytest.approx(0, abs=1e-12)
    with pytest.raises(InputError, match="use at least 13"):
        Residual(12, {"a": 5, "b": 3}, RNG(1), unread=True)


def test_a_norm_passes_the_stream_on_and_the_final_one_drops_the_constant() -> None:
    stream = Residual(32, {"a": 5}, RNG(1), unread=True)
    roles = 2 * stream["a"][0] - stream["a"][1]
    x = torch.from_numpy(roles + CONSTANT * stream.constant + stream.unread)
    normed = torch.nn.functional.layer_norm(x, (32,)).numpy()
    assert normed * stream.norm_weight == pytest.approx(x.numpy(), rel=0.003)
    assert normed * stream.final_norm_weight == pytest.approx(roles, rel=0.003, abs=1e-9)
    assert normed * stream.norm_weight @ stream.bias == pytest.approx(1, rel=0.003)


def test_words_have_one_token_each_and_bos_goes_to_the_front_once() -> None:
    tokenizer = word_tokenizer(["Sorry", ",", "I", "?", "bomb"], n_ctx=16)
    text = "Sorry, I saw bomb?"
    encoded, bos = encode(tokenizer, text), tokenizer.get_vocab()["<s>"]
    assert encoded.ids == tokenizer(text)["input_ids"] and encoded.ids.count(bos) == 1
    assert [text[a:b] for a, b in encoded.offsets] == ["", "Sorry", ",", "I", "saw", "bomb", "?"]
    assert encoded.ids[4] == tokenizer.unk_token_id
    assert tokenizer.decode(encoded.ids, skip_special_tokens=True) == "Sorry, I bomb?"
    for words, message in ((["it's"], "not one piece"), (["a", "b", "a"], "'a' occurs twice")):
        with pytest.raises(InputError, match=message):
            word_tokenizer(words, n_ctx=16)


def test_roles_and_noise_get_different_heads() -> None:
    placed, noisy = choose_slots({"x": 1, "y": 1}, 3, 4, None, RNG(0))
    assert {layer for layer, _ in placed.values()} == {1} and len({*placed.values(), *noisy}) == 12
    assert len(choose_slots({"x": 1}, 3, 4, 5, RNG(0))[1]) == 5
    with pytest.raises(InputError, match="not between 0 and 11"):
        choose_slots({"x": 1}, 3, 4, 12, RNG(0))


def test_a_head_does_in_gpt2_what_was_written() -> None:
    stream, rng = Residual(32, {"a": 4}, RNG(2)), RNG(3)
    model: Any = empty_gpt2(stream, word_tokenizer(["a", "b"], n_ctx=8), n_layers=2, d_head=8, n_ctx=8)
    head = noise_head(stream, 8, 1.0, rng)
    write_head(model, (1, 2), head)
    x = rng.standard_normal((5, 10)) @ stream.roles[:10] + CONSTANT * stream.constant
    scores = (x @ head.q.T) @ (x @ head.k.T).T
    weights = np.exp(scores - scores.max(1, keepdims=True)) * np.tri(5)
    want = (weights / weights.sum(1, keepdims=True)) @ x @ head.v.T @ head.o.T
    with torch.no_grad():
        got = model.transformer.h[1].attn(torch.from_numpy(x).float()[None])[0][0]
    assert got.numpy() == pytest.approx(want, abs=1e-4)


def test_a_head_does_in_llama_what_was_written() -> None:
    config = LlamaConfig(
        vocab_size=8, hidden_size=32, intermediate_size=4, num_hidden_layers=1, num_attention_heads=4, head_dim=8,
        max_position_embeddings=64, rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config).eval()
    stream, rng = Residual(32, {"a": 4}, RNG(2)), RNG(3)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.ones_(model.model.layers[0].input_layernorm.weight)
    torch.nn.init.ones_(model.model.layers[0].post_attention_layernorm.weight)
    head = noise_head(stream, 8, 1.0, rng)
    head.q[[0, 4]] = head.k[[0, 4]] = 0  # the one rotary pair that turns
    write_head(model, (0, 2), head)
    x = rng.standard_normal((5, 10)) @ stream.roles[:10]
    normed = x / np.sqrt((x**2).mean(1, keepdims=True))
    scores = (normed @ head.q.T) @ (normed @ head.k.T).T
    weights = np.exp(scores - scores.max(1, keepdims=True)) * np.tri(5)
    want = x + (weights / weights.sum(1, keepdims=True)) @ normed @ head.v.T @ head.o.T
    torch.nn.init.ones_(model.model.norm.weight)
    with torch.no_grad():
        out = model.model(inputs_embeds=torch.from_numpy(x).float()[None]).last_hidden_state[0].numpy()
    assert out == pytest.approx(want / np.sqrt((want**2).mean(1, keepdims=True)), abs=1e-4)


@pytest.mark.parametrize("kind", ["zero", "uniform"])
def test_heads_off_in_the_weights_are_heads_off_by_hooks(kind) -> None:
    model, tokenizer, slots, _ = refusal.weights(seed=4)
    rows = [tokenizer(text)["input_ids"] for text in refusal.requests(4, refusal.HARMFUL)]
    heads, before = [*slots.values(), (0, 1)], last_logits(model, rows)
    with silenced(model, heads, kind):
        got = last_logits(model, rows)
    with raw_heads.off(model, heads, kind):
        assert torch.allclose(last_logits(model, rows), got, atol=1e-5)
    assert torch.equal(last_logits(model, rows), before) and not torch.allclose(got, before, atol=0.1)


def test_a_fresh_instance_is_a_folder_that_loads(tmp_path: Path) -> None:
    folder = planted.build("planted-refusal", tmp_path / "fresh", seed=11, n_noise_heads=3, width=48)
    model = wb.load_model(folder)
    assert not model.capabilities.missing and model.n_heads == 6
    assert (folder / "README.md").read_text(encoding="utf-8").startswith("# organism:planted-refusal")
    assert model.fingerprint != wb.load_model("organism:planted-refusal", probe=False).fingerprint
