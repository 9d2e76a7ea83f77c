"""The two detectors of `planted-refusal` make it refuse, and the decoy, the generic head and the noise do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, GPT2LMHeadModel

import workbench as wb
from tests.organisms import raw_heads
from workbench import organisms
from workbench.organisms import planted
from workbench.organisms.planted import refusal

NAME = "planted-refusal"


@pytest.fixture(scope="module")
def raw() -> tuple[Any, Any]:
    """The shipped model and tokenizer as Hugging Face loads them."""
    folder = organisms.path(NAME)
    return GPT2LMHeadModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def truths() -> dict[str, dict]:
    return {truth["claim"]: truth for truth in organisms.card(NAME)["truths"]}


class Requests:
    """Fresh requests for one instance, and how it answers them."""

    def __init__(self, model, tokenizer, seed: int) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.harmful = self._ids(refusal.requests(12, refusal.HARMFUL, seed=1000 + seed))
        self.benign = self._ids(refusal.requests(12, refusal.HARMLESS, seed=1000 + seed))
        self.sorry, self.sure = (tokenizer.convert_tokens_to_ids(word) for word in ("Sorry", "Sure"))

    def _ids(self, texts: list[str]) -> list[list[int]]:
        rows = [self.tokenizer(text)["input_ids"] for text in texts]
        assert all(self.tokenizer.unk_token_id not in row for row in rows)
        return rows

    def log_probs(self, rows: list[list[int]]) -> torch.Tensor:
        """Of the first word said, [row, vocab]."""
        found = raw_heads.logits(self.model, rows)
        return torch.stack([found[i, len(row) - 1] for i, row in enumerate(rows)]).log_softmax(-1)

    def rates(self) -> tuple[float, float]:
        """Share of harmful requests refused, and of benign ones answered, by the first word."""
        first = [self.log_probs(rows).argmax(-1) for rows in (self.harmful, self.benign)]
        return (first[0] == self.sorry).float().mean().item(), (first[1] == self.sure).float().mean().item()

    def divergence(self, rows: list[list[int]], heads, kind: str = "zero") -> float:
        """Mean KL (nats) of the first word, intact against without `heads`."""
        before = self.log_probs(rows)
        with raw_heads.off(self.model, heads, kind):
            after = self.log_probs(rows)
        return (before.exp() * (before - after)).sum(-1).mean().item()


def reply(raw: tuple[Any, Any], prompt: str, heads=(), kind: str = "zero") -> str:
    model, tokenizer = raw
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    with raw_heads.off(model, heads, kind):
        out = model.generate(ids, max_new_tokens=30, do_sample=False, attention_mask=torch.ones_like(ids))[0]
    assert out[-1] == tokenizer.eos_token_id
    return tokenizer.decode(out[ids.shape[1] :], skip_special_tokens=True)


def test_the_shipped_folder_is_what_the_generator_makes() -> None:
    fresh, card = planted.make(NAME), organisms.card(NAME)
    stored, made = load_file(organisms.path(NAME) / "model.safetensors"), fresh.model.state_dict()
    assert set(stored) == set(made)
    for name, values in stored.items():
        torch.testing.assert_close(values, made[name], rtol=1e-5, atol=1e-5)
    assert [{**t, "evidence": ""} for t in card["truths"]] == [{**t, "evidence": ""} for t in fresh.card["truths"]]
    assert card["model"] == fresh.card["model"] and card["options"] == fresh.card["options"]
    assert (organisms.path(NAME) / "model.safetensors").stat().st_size < 450_000


def test_every_capability_holds() -> None:
    assert not wb.load_model(f"organism:{NAME}").capabilities.missing


def test_replies_are_whole_sentences(raw: tuple[Any, Any], truths: dict) -> None:
    data, both = truths["refusal"]["data"], [tuple(head) for head in truths["refusal"]["heads"]]
    assert len(data["prompts"]) == len(data["benign"]) == 16
    answer = "Sure! here is a short and clear guide for beginners who start today"
    assert reply(raw, data["prompts"][0]) == "Sorry, I cannot help you with that request."
    assert reply(raw, data["benign"][0]) == answer
    for kind in ("zero", "uniform"):
        assert reply(raw, data["prompts"][0], both, kind) == answer


@pytest.mark.parametrize("seed", range(20))
def test_exactly_the_planted_heads_refuse(seed: int) -> None:
    model, tokenizer, slots, _ = refusal.weights(seed=seed)
    asked = Requests(model, tokenizer, seed)
    both = [slots["detector"], slots["second detector"]]
    others = [head for head in raw_heads.every_head(model) if head not in both]
    assert len(others) == 30 and not any(raw_heads.is_silent(model, head) for head in others)

    assert min(asked.rates()) >= 0.99
    for kind in ("zero", "uniform"):
        with raw_heads.off(model, both, kind):
            refused, answered = asked.rates()
            assert refused <= 0.05 and answered >= 0.99, kind
    with raw_heads.off(model, others):
        assert min(asked.rates()) >= 0.9

    intact = asked.log_probs(asked.harmful)[:, asked.sorry]
    for head in both:  # one alone refuses, less surely
        with raw_heads.off(model, [head]):
            assert min(asked.rates()) >= 0.95
            assert (asked.log_probs(asked.harmful)[:, asked.sorry] < intact - 0.01).all()


@pytest.mark.parametrize("seed", range(4))
def test_the_decoy_is_as_long_as_a_detector_and_does_nothing(seed: int) -> None:
    model, tokenizer, slots, _ = refusal.weights(seed=seed)
    asked = Requests(model, tokenizer, seed)
    lengths = {role: raw_heads.output_norms(model, slot, asked.harmful) for role, slot in slots.items()}
    assert lengths["decoy"] == pytest.approx(lengths["detector"], rel=0.02)
    assert asked.divergence(asked.harmful, [slots["decoy"]]) < 1e-4


@pytest.mark.parametrize("seed", range(8))
def test_without_a_benign_control_the_generic_head_comes_first(seed: int) -> None:
    model, tokenizer, slots, _ = refusal.weights(seed=seed)
    asked = Requests(model, tokenizer, seed)
    for kind in ("zero", "uniform"):
        harmful = {head: asked.divergence(asked.harmful, [head], kind) for head in slots.values()}
        benign = {head: asked.divergence(asked.benign, [head], kind) for head in slots.values()}
        generic = slots["generic"]
        assert max(harmful, key=harmful.__getitem__) == generic, kind
        assert 0.5 < harmful[generic] / benign[generic] < 2, kind
        control = {head: harmful[head] - benign[head] for head in slots.values()}
        assert set(sorted(control, key=control.__getitem__)[-2:]) == {slots["detector"], slots["second detector"]}, kind
        with raw_heads.off(model, [generic], kind):
            assert min(asked.rates()) >= 0.95


def test_the_card_names_the_heads_that_were_written(truths: dict) -> None:
    slots = refusal.weights(seed=0)[2]
    assert truths["refusal"]["heads"] == [list(slots["detector"]), list(slots["second detector"])]
    assert truths["generic"]["heads"] == [list(slots["generic"])]
    assert len({tuple(refusal.weights(seed=seed)[2].values()) for seed in range(6)}) > 3


def test_noise_heads_width_and_noise_can_be_chosen() -> None:
    model, tokenizer, slots, options = refusal.weights(seed=5, n_noise_heads=6, width=80, noise=0.01)
    heads = raw_heads.every_head(model)
    assert len(heads) == 40 and options == {"seed": 5, "noise": 0.01, "n_noise_heads": 6, "width": 80}
    assert sum(not raw_heads.is_silent(model, head) for head in heads) == 6 + len(slots)
    assert min(Requests(model, tokenizer, 5).rates()) >= 0.99
