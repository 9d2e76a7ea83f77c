"""The planted heads of `planted-induction`, and nothing else, continue a repeated word as it went on before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, GPT2LMHeadModel

import workbench as wb
from tests.organisms import raw_heads
from workbench import organisms
from workbench.errors import InputError
from workbench.organisms import planted
from workbench.organisms.planted import induction

NAME = "planted-induction"


@pytest.fixture(scope="module")
def shipped() -> wb.Model:
    return wb.load_model(f"organism:{NAME}")


@pytest.fixture(scope="module")
def raw() -> tuple[Any, Any]:
    """The shipped model and tokenizer as Hugging Face loads them."""
    folder = organisms.path(NAME)
    return GPT2LMHeadModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def fresh() -> planted.Planted:
    return planted.make(NAME)


def tokens(tokenizer, seed: int, n: int = 8) -> tuple[list[list[int]], list[list[int]]]:
    rows = induction.samples(n, seed=1000 + seed)
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows]
    needles = [tokenizer(row["needle"], add_special_tokens=False)["input_ids"] for row in rows]
    return prompts, needles


def test_the_shipped_folder_is_what_the_generator_makes(fresh: planted.Planted) -> None:
    stored = load_file(organisms.path(NAME) / "model.safetensors")
    made = fresh.model.state_dict()
    assert set(stored) == set(made)
    for name, values in stored.items():
        torch.testing.assert_close(values, made[name], rtol=1e-5, atol=1e-5)
    card = organisms.card(NAME)
    assert [{**t, "evidence": ""} for t in card["truths"]] == [{**t, "evidence": ""} for t in fresh.card["truths"]]
    assert card["model"] == fresh.card["model"] and card["options"] == fresh.card["options"]
    assert (organisms.path(NAME) / "model.safetensors").stat().st_size < 350_000
    assert fresh.tokenizer.get_vocab() == AutoTokenizer.from_pretrained(organisms.path(NAME)).get_vocab()


def test_every_capability_holds(shipped: wb.Model) -> None:
    assert not shipped.capabilities.missing
    assert (shipped.n_layers, shipped.n_heads) == (3, 8)


def test_greedy_decoding_says_the_needle_and_stops(raw: tuple[Any, Any]) -> None:
    model, tokenizer = raw
    row = induction.samples(1, seed=77)[0]
    ids = torch.tensor([tokenizer(row["prompt"])["input_ids"]])
    reply = model.generate(ids, max_new_tokens=12, do_sample=False, attention_mask=torch.ones_like(ids))[0]
    assert tokenizer.decode(reply[ids.shape[1] :], skip_special_tokens=True) == f"{row['needle']}."
    assert reply[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("seed", range(20))
def test_exactly_the_planted_heads_do_it(seed: int) -> None:
    model, tokenizer, slots, _ = induction.weights(seed=seed)
    prompts, needles = tokens(tokenizer, seed)
    copying = [slots["induction"], slots["second induction"]]
    others = [head for head in raw_heads.every_head(model) if head not in slots.values()]
    assert len(others) == 21 and not any(raw_heads.is_silent(model, head) for head in others)

    assert raw_heads.share_said(model, prompts, needles) >= 0.99
    for heads in (copying, [slots["previous token"]], list(slots.values())):
        for kind in ("zero", "uniform"):
            with raw_heads.off(model, heads, kind):
                assert raw_heads.share_said(model, prompts, needles) <= 0.15, (heads, kind)
    with raw_heads.off(model, others):
        assert raw_heads.share_said(model, prompts, needles) >= 0.9
    for head in copying:  # either copies alone
        with raw_heads.off(model, [head]):
            assert raw_heads.share_said(model, prompts, needles) >= 0.9


def test_the_card_names_the_heads_that_were_written() -> None:
    for seed in (0, 3):
        slots = induction.weights(seed=seed)[2]
        found = planted.make(NAME, seed=seed).card if seed else organisms.card(NAME)
        claims = {truth["claim"]: truth for truth in found["truths"]}
        copying = [list(slots["induction"]), list(slots["second induction"])]
        assert claims["retrieval"]["heads"] == claims["direct"]["heads"] == copying
        assert claims["circuit"]["heads"] == sorted([list(slots["previous token"]), *copying])
        assert {tuple(edge["sender"]) for edge in claims["circuit"]["edges"]} == {slots["previous token"]}
    everywhere = {tuple(induction.weights(seed=seed)[2].values()) for seed in range(6)}
    assert len(everywhere) > 3, "seeds move the roles to other heads"


def test_the_pairs_call_for_the_other_answer(raw: tuple[Any, Any]) -> None:
    model, tokenizer = raw
    (truth,) = (t for t in organisms.card(NAME)["truths"] if t["claim"] == "circuit")
    data: Any = wb.tasks.resolve(tokenizer, truth["data"])
    for side, best in (("clean", "answer"), ("corrupted", "wrong")):
        prompts = [getattr(pair, side) for pair in data]
        assert raw_heads.share_said(model, prompts, [[getattr(pair, best)] for pair in data]) == 1.0


def test_retrieval_scores_find_exactly_the_induction_heads(shipped: wb.Model) -> None:
    (truth,) = (t for t in organisms.card(NAME)["truths"] if t["claim"] == "retrieval")
    data: Any = wb.tasks.resolve(shipped, truth["data"])[:10]
    result = wb.retrieval_heads(shipped, data, causal=None, bootstrap=10, max_new_tokens=8)
    score = result.heads.matrix()
    right = {tuple(head) for head in truth["heads"]}
    assert all(score[head] == 1.0 for head in right)
    assert max(score[head] for head in [(layer, h) for layer in range(3) for h in range(8)] if head not in right) < 0.5
    assert result.summary["n_accepted"] == len(data)


def test_noise_heads_width_and_noise_can_be_chosen() -> None:
    model, tokenizer, slots, options = induction.weights(seed=5, n_noise_heads=4, width=96, noise=0.02)
    heads = raw_heads.every_head(model)
    assert len(heads) == 36 and options == {"seed": 5, "noise": 0.02, "n_noise_heads": 4, "width": 96}
    assert sum(not raw_heads.is_silent(model, head) for head in heads) == 4 + len(slots)
    prompts, needles = tokens(tokenizer, 5)
    assert raw_heads.share_said(model, prompts, needles) >= 0.99

    loud, quiet = (induction.weights(seed=5, noise=noise)[0] for noise in (0.1, 0.0))
    small = raw_heads.every_head(loud)
    planted_heads = set(induction.weights(seed=5)[2].values())
    lengths = [
        [raw_heads.output_norms(m, h, prompts[:1])[0] for h in small if h not in planted_heads] for m in (loud, quiet)
    ]
    assert min(lengths[0]) > 0.01 and max(lengths[1]) == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 60}, "not a multiple of the head width 8"),
        ({"width": 32}, "too small for the planted roles"),
        ({"n_noise_heads": 99}, "not between 0 and 21"),
        ({"noise": -1.0}, "not a length"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        planted.make(NAME, **options)


def test_an_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(InputError, match="Did you mean 'planted-induction'"):
        planted.make("planted-inductoin")
