"""The organism `multitask` does four circuit tasks on prompts it never saw, and its circuits are what its card says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, GPT2LMHeadModel

import workbench as wb
from workbench import organisms
from workbench.primitives.forward import forward
from workbench.primitives.interventions import applied, mean
from workbench.tasks import circuits

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "organisms"))
import train_multitask_checks as checks  # pyright: ignore[reportMissingImports]
import train_multitask_data as training_data  # pyright: ignore[reportMissingImports]

FOLDER = Path(organisms.__file__).parent / "data" / "multitask"
CARD = organisms.card("multitask")
CHANCE = {"ioi": 1 / 2, "colored_objects": 1 / 3, "docstring": 1 / 4}
TRUTHS = {truth["data"]["task"]: truth for truth in CARD["truths"]}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def raw() -> Any:
    loaded: Any = GPT2LMHeadModel.from_pretrained(FOLDER, attn_implementation="eager")
    return loaded.eval()


@pytest.fixture(scope="module")
def model() -> Any:
    return wb.load_model("organism:multitask")


def test_it_is_small_and_its_card_agrees_with_it(raw):
    assert (FOLDER / "model.safetensors").stat().st_size <= 1_400_000
    shape, config = CARD["model"], raw.config
    assert shape["n_layers"] in (3, 4)
    assert shape["n_heads"] >= 8
    assert (shape["n_layers"], shape["n_heads"], shape["d_model"], shape["d_mlp"], shape["vocab_size"]) == (
        config.n_layer,
        config.n_head,
        config.n_embd,
        config.n_inner,
        config.vocab_size,
    )
    assert shape["n_parameters"] == sum(p.numel() for p in raw.parameters())
    assert CARD["name"] == "multitask"
    assert CARD["kind"] == "trained"


def test_it_passes_the_probe(model):
    flags = {key: value for key, value in model.capabilities.to_dict().items() if isinstance(value, bool)}
    assert all(flags.values()), flags


def test_training_is_stated_with_a_loss_curve_and_took_less_than_twenty_minutes():
    training = CARD["training"]
    assert training["cpu_seconds"] < 20 * 60
    losses = [row["loss"] for row in training["curve"]]
    assert losses[0]["induction"] > 3
    for name in checks.TASKS:
        of_task = [row[name] for row in losses if name in row]
        assert of_task[-1] < of_task[0]


@pytest.mark.parametrize("name", checks.TASKS)
def test_held_out_accuracy_is_as_stated_on_fresh_prompts(raw, tokenizer, name):
    data = circuits.task(name, tokenizer, 200, split="held_out", seed=31)
    found, stated = checks.figures(raw, data), CARD["accuracy"]["tasks"][name]
    assert found["accuracy"] >= 0.95
    assert found["accuracy"] == pytest.approx(stated["accuracy"], abs=0.04)
    if name == "greater_than":
        assert found["valid_mass"] >= 0.9
        assert found["valid_mass"] == pytest.approx(stated["valid_mass"], abs=0.03)


def test_no_training_prompt_holds_a_held_out_combination(tokenizer):
    examples = training_data.Examples(tokenizer, n=40, seed=5)
    for name, prompts in examples.prompts.items():
        seen = {pair.clean for pair in prompts}
        held_out = {pair.clean for pair in circuits.task(name, tokenizer, 40, split="held_out", seed=5)}
        assert not seen & held_out


@pytest.mark.parametrize("name", checks.TASKS)
def test_the_package_finds_the_circuit_on_prompts_the_card_was_not_measured_on(model, name):
    truth = TRUTHS[name]
    pairs = circuits.task(name, model, 48, split="held_out", corruption=truth["data"]["corruption"], seed=17)
    lost = -wb.ablation(model, pairs, edit="resample", controls=0, bootstrap=10).heads.matrix("normalised")
    named = {tuple(head) for head in truth["heads"]}
    optional = {tuple(head) for head in truth["optional"]}
    others = [head for head in checks.every_head(model.hf) if head not in named | optional]
    assert named
    assert not named & optional
    assert len(others) >= 8
    assert np.mean([lost[head] > lost[other] for head in named for other in others]) > 0.9  # AUROC


@pytest.mark.parametrize("name", checks.TASKS)
def test_without_its_circuit_a_task_is_gone_and_with_nothing_else_it_is_not(raw, tokenizer, name):
    truth, causal = TRUTHS[name], CARD["causal"][name]
    data = circuits.task(name, tokenizer, 100, split="held_out", seed=8)
    share = checks.Share(raw, data)
    heads = [tuple(head) for head in truth["heads"]]
    spared = [*heads, *(tuple(head) for head in truth["optional"])]
    without = share.left(heads)
    assert without == pytest.approx(causal["circuit_ablated"]["share_left"], abs=0.15)
    assert without < causal["random_heads_ablated"]["share_left"] - 0.3
    if name in CHANCE:  # for greater-than, any late year is right more often than not
        assert checks.figures(raw, data, heads)["accuracy"] < CHANCE[name] + 0.15
    else:
        assert without < 0.3
    assert share.left([head for head in checks.every_head(raw) if head not in spared]) > 0.7


def test_plain_hooks_and_the_package_agree_on_an_ablation(raw, model, tokenizer):
    data = circuits.ioi(tokenizer, 16, split="held_out")
    batch = data.batch()
    with torch.no_grad():
        means = checks.mean_outputs(raw, batch.clean)
    heads = ((0, 1), (1, 3), (2, 7))
    d_head = CARD["model"]["d_head"]
    values = {layer: means[layer].reshape(batch.clean.shape[1], -1, d_head) for layer, _ in heads}
    with applied(model, [mean(heads, values)]):
        through = forward(model, batch.clean, logits_to_keep=1).logits[:, -1]
    torch.testing.assert_close(through, checks.last_logits(raw, batch.clean, heads), atol=1e-4, rtol=1e-4)
