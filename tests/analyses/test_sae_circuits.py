"""The method on models: what it reads, what it finds where the answer is known, and what it says of itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from tests.analyses.examples import dataset
from tests.tiny import tiny
from workbench import analyses, organisms, tasks
from workbench.analyses.base import Finding
from workbench.analyses.sae_circuits.activations import outputs, right
from workbench.certify import truths
from workbench.certify.examine import examine
from workbench.errors import CapabilityError, InputError
from workbench.models import load_model
from workbench.organisms import planted
from workbench.tasks import contrast_from_pairs, contrast_from_texts

QUICK = {"n_features": 20, "epochs": 20, "seeds": 2, "permutations": 50, "bootstrap": 10, "methods": []}
PAIRED = Finding("circuit", {**QUICK, "variant": "paired", "epochs": 1})


def resolved(model: Any, block: dict[str, Any]) -> Any:
    """A dataset of whatever kind the block describes."""
    return tasks.resolve(model, block)


@pytest.fixture(scope="module")
def planted_ioi():
    return load_model("organism:planted-ioi")


@pytest.fixture(scope="module")
def result(planted_ioi):
    data = resolved(planted_ioi, {"task": "ioi", "n": 24, "corruption": "redraw"})
    methods = ["mean_difference", "norm", "layer_index", "activation_patching", "attribution_patching", "eap_ig"]
    params = {**QUICK, "reference": "organism", "ig_steps": 3, "methods": methods}
    return wb.sae_circuits(planted_ioi, data, **params)


def by_hand(model, tokens):
    """`[pos, head, d_model]` of one prompt, by a hook on each raw output projection."""
    seen = []
    handles = [
        block.attn.c_proj.register_forward_pre_hook(lambda module, args: seen.append((args[0][0], module.weight)))
        for block in model.hf.transformer.h
    ]
    try:
        with torch.no_grad():
            model.hf(torch.tensor([tokens]))
    finally:
        for handle in handles:
            handle.remove()
    n = model.n_heads
    return torch.cat(
        [
            torch.einsum("phd,hdm->phm", z.reshape(len(tokens), n, -1), weight.reshape(n, -1, weight.shape[-1]))
            for z, weight in seen
        ],
        dim=1,
    )


@pytest.mark.parametrize("positions", ["mean", "last"])
def test_head_outputs_and_their_changes_equal_raw_hooks(positions):
    model = tiny("gpt2")
    data = contrast_from_pairs(dataset(model, "pairs", ragged=True))
    found = outputs(model, data, positions=positions)
    assert found.change is not None and found.elsewhere is not None
    slow = [by_hand(model, sample.tokens) for sample in data]
    for i, one in enumerate(slow):
        expected = one.mean(dim=0) if positions == "mean" else one[-1]
        torch.testing.assert_close(found.x[i], expected, rtol=1e-4, atol=1e-5)
    for i in range(3):
        moved = slow[i] - slow[i + 3]
        moved = moved[-1:] if positions == "last" else moved
        np.testing.assert_allclose(found.change[i], moved.square().sum(dim=(0, 2)).sqrt(), rtol=1e-4, atol=1e-5)
    assert np.isnan(found.elsewhere).all(), "no two prompts of one length here"


def test_everything_stands_side_by_side(result):
    table = result.tables["methods"].set_index("method")
    assert {"node", "edge", "divergence", "paired", "node_held_out", "mean_difference", "eap_ig"} <= set(table.index)
    assert (table["status"] == "ok").all() and table["auc"].between(0, 1).all()
    assert table.at["activation_patching", "auc"] == table.at["paired", "auc"] == 1
    assert table.at["node", "auc_null_mean"] > 0.6, "shuffled labels rank the heads almost as well"
    assert result.summary["assumption"]["right_on_positives"] == 1
    assert result.summary["assumption"]["answers_on_negatives"] == 0
    assert result.summary["status"].startswith("no better than"), "the mean difference finds all heads"
    assert result.summary["paper_auc"]["node"]["mean"] == 0.868
    roc = result.tables["roc"].query("method == 'node'")
    assert roc["tpr"].iloc[-1] == roc["fpr"].iloc[-1] == 1 and roc["threshold"].is_monotonic_decreasing
    assert result.arrays["codes"].shape == (2, 48, 5, 4)
    assert len(result.tables["edges"]) == 190 and len(result.tables["training"]) == 20


@pytest.mark.parametrize("variant", ["edge", "divergence", "paired"])
def test_every_variant_has_its_uncertainty_and_null(planted_ioi, variant):
    data = resolved(planted_ioi, {"task": "ioi", "n": 12, "corruption": "third"})
    params = {**QUICK, "edge_permutations": 5, "threshold": 0.05, "held_out": variant == "divergence"}
    heads = wb.sae_circuits(planted_ioi, data, variant=variant, **params).heads
    for column in ("score", "stderr", "null_mean", "null_p"):
        assert np.isfinite(heads[column]).all(), column
    assert heads.meta["variant"] == variant
    np.testing.assert_array_equal(heads["selected"], heads["softmax"] >= 0.05)


CIRCUITS = [("planted-ioi", None), ("planted-colored", None), ("planted-induction", None), ("siit-ioi", None)]
FRESH = [(name, 3001 + i) for i, (name, _) in enumerate(CIRCUITS[:3])]


@pytest.mark.parametrize(("name", "seed"), CIRCUITS + FRESH)
def test_the_paired_variant_finds_circuits_known_by_construction(name, seed, tmp_path):
    if seed is None:
        card, model = organisms.card(name), load_model(f"organism:{name}")
    else:
        folder = planted.build(name, tmp_path / name, seed=seed)
        card, model = organisms.read_card(folder), load_model(str(folder))
    (truth,) = [truth for truth in truths.read(card) if truth.claim == "circuit"]
    verdict = examine(model, name, str(seed), truth, analyses.get("sae_circuits"), PAIRED, seed=0)
    assert verdict.verdict == "pass", verdict
    assert verdict.success_masked < verdict.success_random


def test_equal_groups_are_no_better_than_their_null():
    model = tiny("gpt2")
    data = dataset(model, "contrast", n=8)
    found = wb.sae_circuits(model, data, **QUICK)
    assert found.summary["status"].startswith("no better than label permutation")


def test_explicit_prompts_have_no_patching_and_the_table_says_so():
    model = tiny("gpt2")
    found = wb.sae_circuits(model, dataset(model, "contrast"), **{**QUICK, "methods": ["norm", "eap_ig"]})
    table = found.tables["methods"].set_index("method")
    assert table.at["eap_ig", "status"].startswith("not run:") and "pairs" in table.at["eap_ig", "status"]
    assert table.at["norm", "status"] == "ok" and "paired" not in table.index
    with pytest.raises(InputError, match="variant 'paired' needs pairs"):
        wb.sae_circuits(model, dataset(model, "contrast"), variant="paired", **QUICK)


@pytest.mark.parametrize(
    ("reference", "message"),
    [("organism", "not loaded as organism"), ("ioi-gpt2-small", "choose a reference for this model"), ("x", "'x'")],
)
def test_a_reference_that_does_not_fit_is_refused(reference, message):
    model = tiny("gpt2")
    with pytest.raises(InputError, match=message):
        wb.sae_circuits(model, dataset(model, "contrast"), reference=reference, **QUICK)


def test_data_without_two_groups_are_refused():
    model = tiny("gpt2")
    with pytest.raises(InputError, match="positives and negatives"):
        wb.sae_circuits(model, dataset(model, "prompts"), **QUICK)
    with pytest.raises(InputError, match="positives and negatives"):
        wb.sae_circuits(model, dataset(model, "contrast")[:3], **QUICK)
    with pytest.raises(InputError, match="negatives must be a list"):
        tasks.resolve(model, {"positives": ["the cat"]})
    with pytest.raises(InputError, match=r"positives\[1\]"):
        contrast_from_texts(model, ["the cat", " "], ["the dog"])


def test_pairs_become_positives_and_negatives_in_order(planted_ioi):
    pairs = resolved(planted_ioi, {"task": "ioi", "n": 3, "corruption": "third"})
    data = contrast_from_pairs(pairs)
    assert [s.group for s in data] == ["positive"] * 3 + ["negative"] * 3
    assert [s.tokens for s in data] == [p.clean for p in pairs] + [p.corrupted for p in pairs]
    assert data.describe()["recipe"]["negatives"] == "corrupted prompts of the pairs (corruption third)"
    assert data.n_positive == 3 and data.digest() == contrast_from_pairs(pairs).digest() != data[:2].digest()


def test_a_ranking_upside_down_says_so():
    """On the induction circuit each head says one thing clearly, so codes differ least where it matters most."""
    model = load_model("organism:planted-induction")
    (truth,) = [truth for truth in truths.read(organisms.card("planted-induction")) if truth.claim == "circuit"]
    params = {**QUICK, "variant": "divergence", "methods": ["mean_difference"]}
    found = wb.sae_circuits(model, resolved(model, truth.data), reference="organism", **params)
    assert found.summary["auc"]["divergence"] < 0.25
    assert found.summary["status"].startswith("no better than label permutation")
    assert found.summary["status"].endswith("the reference ranks below the other heads")


def test_a_broken_model_is_not_wrong_on_every_prompt_but_refused():
    model = tiny("llama")
    before = model.hf.model.norm.weight[3].clone()
    data = contrast_from_pairs(dataset(model, "pairs"))
    with torch.no_grad():
        model.hf.model.norm.weight[3] = float("nan")
    try:
        with pytest.raises(CapabilityError, match="not finite"):
            right(model, data)
    finally:
        with torch.no_grad():
            model.hf.model.norm.weight[3] = before
