"""Activation patching as an analysis: shares of the gap, their null, and what is undefined is said to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.primitives.cases import model, prompts, raw
from tests.reference import paths as slow
from workbench import stats
from workbench.analyses import get, pair_effects
from workbench.errors import CapabilityError, InputError
from workbench.tasks.pairs import PairDataset, PairSample

AP = get("activation_patching")
ROOT = Path(__file__).parents[2]
STORIES = ROOT.parent / "shared" / "models" / "stories260K"


def dataset(lengths=(9, 9, 9, 9), same=()):
    clean, corrupted = prompts(len(lengths), max(lengths), 0), prompts(len(lengths), max(lengths), 100)
    rows = [
        PairSample(str(i), tuple(c[:n].tolist()), tuple((c if i in same else d)[:n].tolist()), 10 + i, 40 + i)
        for i, (c, d, n) in enumerate(zip(clean, corrupted, lengths, strict=True))
    ]
    return PairDataset("test", tuple(rows))


def run(arch, data, seed=0, **params):
    options = {"bootstrap": 50, "streams": (), "min_gap": 0, **params}
    return AP(model(arch), data, AP.parse(options), seed=seed)


def diff(logits, data):
    rows = torch.arange(len(data))
    batch = data.batch()
    return (logits[rows, batch.answer] - logits[rows, batch.wrong]).double().numpy()


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_scores_are_shares_of_the_gap_by_raw_hooks(arch, direction):
    data, hf = dataset(), raw(arch)
    batch = data.batch()
    base, other = (batch.corrupted, batch.clean) if direction == "denoising" else (batch.clean, batch.corrupted)
    start, end = diff(slow.run(hf, base), data), diff(slow.run(hf, other), data)
    result = run(arch, data, direction=direction, controls=0)
    for layer, head in [(0, 1), (1, 2), (2, 3)]:
        patched = diff(slow.patch(hf, base, other, "z", layer, head), data)
        np.testing.assert_allclose(result.arrays["raw_per_example"][:, layer, head], patched - start, atol=2e-5)
        want = (patched - start) / (end - start)
        np.testing.assert_allclose(result.per_example[:, layer, head], want, rtol=1e-4, atol=1e-3)
        assert result.heads.matrix()[layer, head] == pytest.approx(want.mean(), rel=1e-4, abs=1e-3)


def test_noising_the_swapped_pairs_is_denoising_the_pairs():
    data = dataset()
    denoising = run("llama", data, direction="denoising", controls=0)
    noising = run("llama", data.swapped(), direction="noising", controls=0)
    np.testing.assert_allclose(noising.per_example, denoising.per_example, atol=1e-5)
    np.testing.assert_allclose(noising.arrays["raw_per_example"], -denoising.arrays["raw_per_example"], atol=1e-5)


def test_the_table_carries_raw_effects_a_null_and_adjusted_p():
    result = run("llama", dataset(), controls=2)
    heads = result.heads
    np.testing.assert_allclose(heads["raw_effect"], result.arrays["raw_per_example"].mean(0).ravel(), atol=1e-6)
    np.testing.assert_allclose(heads["q"], stats.benjamini_hochberg(heads["null_p"]))
    np.testing.assert_allclose(heads["null_mean"], result.arrays["null_per_example"].mean(0).ravel(), atol=1e-5)
    assert result.summary["n_counted"] == 4
    assert result.summary["method"] == "sweep" and result.summary["notes"] == []
    assert result.summary["cost"]["controls"] == 2
    assert heads.meta["direction"] == "denoising"
    assert np.isfinite(heads["null_p"]).all()


def test_another_seed_draws_another_null_and_nothing_else():
    data = dataset((9,) * 8)
    one, two = run("gpt2", data, seed=0), run("gpt2", data, seed=1)
    np.testing.assert_array_equal(one.per_example, two.per_example)
    assert not np.allclose(one.arrays["null_per_example"], two.arrays["null_per_example"])


def test_donors_are_other_examples_of_the_same_length():
    lengths = np.array([5, 7, 5, 5, 7, 9])
    for seed in range(20):
        take, found = pair_effects.donors(lengths, np.random.default_rng(seed))
        assert (take != np.arange(6))[:5].all() and sorted(take) == list(range(6))
        assert (lengths[take] == lengths).all()
        assert found.tolist() == [True] * 5 + [False]


def test_the_only_example_of_its_length_has_a_score_and_no_null():
    result = run("llama", dataset((9, 9, 7)))
    assert np.isfinite(result.per_example).all()
    assert np.isnan(result.arrays["null_per_example"][2]).all()
    assert np.isfinite(result.arrays["null_per_example"][:2]).all()


def test_pairs_that_do_not_differ_are_undefined_and_said_to_be():
    mixed = run("llama", dataset(same=(1,)))
    assert np.isnan(mixed.per_example[1]).all()
    assert (mixed.heads["n"] == 3).all() and mixed.heads.ok.all()
    assert mixed.tables["examples"]["counts"].tolist() == [True, False, True, True]
    none = run("llama", dataset(same=(0, 1, 2, 3)))
    assert set(none.heads["status"]) == {pair_effects.NO_GAP}
    assert np.isnan(none.heads["score"]).all()
    assert none.summary["strongest"] == []
    np.testing.assert_allclose(none.heads["raw_effect"], 0, atol=1e-5)


def test_k_and_v_have_a_row_per_kv_group():
    result = run("llama", dataset(), component="v", controls=1)
    assert result.heads.row_kind == "kv_group"
    assert result.heads.shape == (3, 2) == result.per_example.shape[1:]
    batch = dataset().batch()
    patched = slow.patch(raw("llama"), batch.corrupted, batch.clean, "v", 1, 1)
    start = slow.run(raw("llama"), batch.corrupted)
    want = diff(patched, dataset()) - diff(start, dataset())
    np.testing.assert_allclose(result.arrays["raw_per_example"][:, 1, 1], want, atol=2e-5)


@pytest.mark.parametrize("metric", ["logit_diff", "kl", "prob", "log_prob", "rank", "loss"])
def test_every_metric_gives_zero_for_nothing_and_one_for_everything(metric):
    data = dataset()
    result = run("llama", data, metric=metric, by_position=("resid_pre",), streams=("resid_post",), controls=0)
    defined = result.tables["examples"]["counts"].to_numpy()
    assert defined.any()
    streams = result.tables["streams"]
    np.testing.assert_allclose(streams["score"], 1, atol=1e-3)
    assert (result.tables["positions"]["n"] == defined.sum()).all()


def test_positions_go_one_by_one_and_the_last_layers_stream_counts_at_the_last():
    data = dataset((9, 7, 7, 9))
    table = run("llama", data, by_position=("resid_post", "z"), controls=0).tables["positions"]
    final = table[(table["component"] == "resid_post") & (table["layer"] == 2)].set_index("position")
    # position 6 is the last of the two short prompts, 8 of the two long ones, where 4 of 4 and 2 of 4 have a value
    assert final.loc[6, "score"] == pytest.approx(0.5, abs=1e-3) and final.loc[6, "n"] == 4
    assert final.loc[8, "score"] == pytest.approx(1, abs=1e-3) and final.loc[8, "n"] == 2
    assert final.loc[3, "score"] == pytest.approx(0, abs=1e-3)
    assert len(table[table["component"] == "z"]) == 9 * 12
    restricted = run("llama", data, positions=(-1,), streams=("resid_post",), controls=0)
    streams = restricted.tables["streams"].set_index("layer")
    assert streams.loc[2, "score"] == pytest.approx(1, abs=1e-3)


def test_a_stream_the_model_cannot_patch_is_left_out_and_named(monkeypatch):
    from workbench.primitives import separable

    def refuse(_):
        raise CapabilityError("its blocks are strange.")

    monkeypatch.setattr(separable, "require_outputs", refuse)
    result = run("llama", dataset(), streams=("attn_out", "resid_pre"), controls=0)
    assert set(result.tables["streams"]["component"]) == {"resid_pre"}
    assert result.summary["skipped"] == {"attn_out": "not run: its blocks are strange."}


def test_unusable_data_and_parameters_are_named():
    for nothing in (PairDataset("none", ()), [1, 2]):
        with pytest.raises(InputError, match="at least one pair"):
            run("llama", nothing)
    with pytest.raises(InputError, match="metric"):
        AP.parse({"metric": "logitdiff"})
    with pytest.raises(InputError, match="Did you mean 'direction'"):
        AP.parse({"directoin": "noising"})
    with pytest.raises(InputError, match="Position 40"):
        run("llama", dataset(), positions=(40,))
    with pytest.raises(CapabilityError, match="head by head"):
        run("olmo2", dataset(), component="q")


def test_the_smallest_gap_that_counts_depends_on_the_metric_and_is_recorded():
    assert AP.parse({}).min_gap == 0.05
    assert AP.parse({"metric": "prob"}).min_gap == 0.001
    assert AP.parse({"min_gap": 0.2}).min_gap == 0.2
    assert run("llama", dataset(), min_gap=1e9).summary["n_counted"] == 0


@pytest.mark.skipif(not STORIES.exists(), reason="the pretrained model is not beside this checkout")
@pytest.mark.parametrize("name", ["activation-patching", "path-patching"])
def test_the_shipped_spec_finds_the_head_that_carries_the_pronoun(name):
    import workbench as wb
    from workbench import tasks
    from workbench.experiments.spec import load_spec

    spec = load_spec(ROOT / "experiments" / f"{name}.yaml")
    stories = wb.load_model(str(STORIES))
    data = tasks.resolve(stories, spec.data)
    analysis = get(spec.analysis)
    params = analysis.parse({**spec.params, "controls": 0, "bootstrap": 20})
    result = analysis(stories, data, params, seed=spec.seed)
    examples = result.tables["examples"]
    assert (examples["clean"] > 2).all() and (examples["clean"] - examples["corrupted"] > 4).all()
    assert (examples["length"].value_counts() > 1).all()  # everybody has a donor for the null
    assert result.heads.top(2).keys() == ((4, 2), (4, 0))
    assert result.heads.top(1)["score"][0] > 0.4
