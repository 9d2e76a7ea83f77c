"""Tools for single heads: they add up, agree with formulas written by hand, and see what was planted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import workbench as wb
from tests.analyses.examples import dataset
from tests.reference import direct as reference
from tests.tiny import tiny, tiny_hf, tiny_tokenizer
from workbench.analyses.head_tools import attention_by_class, low_rank
from workbench.analyses.head_tools.direct import contributions
from workbench.errors import CapabilityError, InputError
from workbench.models.load import load_model


@pytest.fixture(scope="module")
def planted():
    model = wb.load_model("organism:planted-ioi")
    return model, wb.tasks.circuits.ioi(model, 8)


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gemma2", "olmo2", "neox"])
def test_heads_and_the_rest_add_up_to_the_logit_difference(arch):
    model = tiny(arch)
    data = dataset(model, "pairs", ragged=True)
    found = contributions(model, data)
    assert np.abs(found.residual).max() < 1e-5
    for row, pair in enumerate(data):
        with torch.no_grad():
            logits = tiny_hf(arch)(input_ids=torch.tensor([pair.clean])).logits[0, -1]
        if found.cap:
            assert arch == "gemma2"
            logits = found.cap * torch.atanh(logits / found.cap)
        assert found.total[row] == pytest.approx(float(logits[pair.answer] - logits[pair.wrong]), abs=1e-4)


@pytest.mark.parametrize("arch", ["gpt2", "llama", "olmo2"])
def test_direct_attribution_equals_the_formulas_on_raw_modules(arch):
    model, hf = tiny(arch), tiny_hf(arch)
    data = dataset(model, "pairs", n=2, ragged=True)
    found = contributions(model, data).heads
    for row, pair in enumerate(data):
        expected = reference.direct_effects(hf, arch, pair.clean, pair.answer, pair.wrong)
        np.testing.assert_allclose(found[row], expected, atol=1e-5)


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gemma2", "olmo2", "neox"])
def test_half_precision_is_split_to_its_own_rounding(arch, monkeypatch):
    from workbench.analyses.head_tools import direct

    monkeypatch.setattr(direct, "_COLUMNS_AT_ONCE", 10)  # an unembedding of several pieces, the last one smaller
    model = tiny(arch, dtype=torch.bfloat16)
    exact = load_model(tiny_hf(arch, dtype=torch.bfloat16).float(), tokenizer=tiny_tokenizer(), device="cpu")
    data = dataset(model, "pairs", ragged=True)
    found, want = contributions(model, data), contributions(exact, data)
    assert np.abs(found.heads - want.heads).mean() < 5e-2 * np.abs(want.heads).mean()
    assert np.abs(found.residual).max() < 5e-2 * np.abs(want.heads).max()
    assert found.cap == want.cap


def test_planted_movers_are_the_direct_heads(planted):
    model, data = planted
    result = wb.direct_logit_attribution(model, data)
    assert {tuple(row["at"]) for row in result.summary["strongest"][:3]} == {(3, 0), (3, 1), (4, 3)}
    assert result.heads.row(3, 1)["score"] < -2  # the negative mover
    assert result.heads["share"].sum() == pytest.approx(1, abs=1e-4)  # no MLP, no embedding writes to the logits
    assert result.summary["residual"] < 1e-4


def test_what_cannot_be_split_is_refused():
    with pytest.raises(CapabilityError, match="cannot be split"):
        contributions(tiny("bloom"), dataset(tiny("bloom"), "pairs"))


def test_attention_by_class_is_the_attention_of_the_model():
    model, hf = tiny("llama"), tiny_hf("llama")
    data = dataset(model, "pairs", n=2, ragged=True)
    table = attention_by_class(model, data, classes=["first", "itself", "previous"])
    for layer, head in ((0, 1), (2, 3)):
        rows = []
        for pair in data:
            with torch.no_grad():
                patterns = hf(input_ids=torch.tensor([pair.clean]), output_attentions=True).attentions
            rows.append(patterns[layer][0, head, -1][[0, -1, -2]].numpy())
        found = table[(table["layer"] == layer) & (table["head"] == head)]["attention"]
        np.testing.assert_allclose(found, np.mean(rows, axis=0), atol=1e-6)
    assert (table["even"].round(6) == round(np.mean([1 / pair.length for pair in data]), 6)).all()


def test_planted_heads_look_where_they_were_told_to(planted):
    model, data = planted
    table = attention_by_class(model, data, classes=["IO", "S1", "S2"]).set_index(["layer", "head", "class"])
    assert table.loc[(2, 3, "S2"), "attention"] > 0.99  # S-inhibition
    assert table.loc[(3, 0, "IO"), "attention"] > 0.99  # name mover
    with pytest.raises(InputError, match="no class 'S3'"):
        attention_by_class(model, data, classes=["S3"])


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_full_rank_changes_nothing_and_rank_zero_leaves_the_mean(arch):
    model = tiny(arch)
    data = dataset(model, "pairs", ragged=True)
    table = low_rank(model, data, [(1, 2)], ranks=[0, 2, model.d_head])
    full = table[table["rank"] == model.d_head]
    np.testing.assert_allclose(full["kept"], 1, atol=1e-4)
    np.testing.assert_allclose(full["variance"], 1)
    assert (table[table["rank"] == 0]["variance"] == 0).all()
    assert table.groupby("what")["variance"].is_monotonic_increasing.all()


def test_rank_zero_of_the_output_is_mean_ablation():
    from workbench.primitives.capture import capture
    from workbench.primitives.forward import forward
    from workbench.primitives.interventions import applied, mean, mean_z

    model = tiny("gpt2")
    data = dataset(model, "pairs")
    tokens = data.batch().clean
    values = mean_z(capture(model, tokens, ["blocks.1.attn.hook_z"]))
    with torch.no_grad(), applied(model, [mean([(1, 2)], values)]):
        logits = forward(model, tokens, logits_to_keep=1).logits[:, -1]
    expected = [float(row[pair.answer] - row[pair.wrong]) for row, pair in zip(logits, data, strict=True)]
    table = low_rank(model, data, [(1, 2)], what=["ov"], ranks=[0])
    assert table["metric"][0] == pytest.approx(np.mean(expected), abs=1e-5)


def test_a_planted_mover_needs_as_many_dimensions_as_there_are_names(planted):
    model, data = planted
    table = low_rank(model, data, [(3, 0)], what=["ov"], ranks=[2, 8])
    assert table["kept"][0] < 0.8 and table["kept"][1] == pytest.approx(1, abs=1e-3)
    both = low_rank(model, data, [(3, 0), (4, 3)], what=["ov"], ranks=[2], together=True)
    assert both["kept"][0] < table["kept"][0]
    with pytest.raises(InputError, match="Rank 23"):
        low_rank(model, data, [(3, 0)], ranks=[23])
