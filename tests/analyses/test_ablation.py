"""The ablation analysis: effects equal the slow twin's, and the null is a random edit of equal size."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from tests.analyses.examples import dataset
from tests.reference import ablation as reference
from tests.tiny import tiny, tiny_hf
from workbench import analyses, stats
from workbench.analyses.ablation import ablation
from workbench.errors import CapabilityError, InputError
from workbench.primitives.sweep import METRICS

ANALYSIS = analyses.get("ablation")


@cache
def subject(arch: str = "llama"):
    model = tiny(arch)
    return model, tiny_hf(arch), dataset(model, "pairs", 4)


@pytest.mark.parametrize("metric", METRICS)
def test_the_score_is_the_change_of_the_metric(metric):
    model, hf, data = subject()
    batch = data.batch()
    result = ablation(model, data, metric=metric, controls=0, bootstrap=10)
    base = reference.logits(hf, batch.clean)
    before = np.array(reference.metric(metric, base, base, batch.answer, batch.wrong))
    for layer, head in ((0, 1), (1, 2), (2, 0)):
        after = reference.edited(hf, batch.clean, None, [(layer, head)], lambda le, h, z, v: torch.zeros_like(z))
        want = np.array(reference.metric(metric, after, base, batch.answer, batch.wrong)) - before
        np.testing.assert_allclose(result.per_example[:, layer, head], want, atol=1e-5)
        assert result.heads.row(layer, head)["score"] == pytest.approx(want.mean(), abs=1e-5)
    assert result.heads.meta["higher_is_more"] == (metric in ("kl", "rank", "loss"))
    np.testing.assert_allclose(result.arrays["base"], before, atol=1e-5)


@pytest.mark.parametrize("edit", ["zero", "uniform", "mean", "resample", "scale"])
def test_every_edit_runs_and_reports_itself(edit):
    model, _, data = subject()
    options = {"alpha": 0.0} if edit == "scale" else {}
    result = ablation(model, data, edit=edit, bootstrap=10, **options)
    assert edit in result.heads.meta["metric"]
    assert result.summary["method"] == "fork" and not result.summary["notes"]
    assert np.isfinite(result.per_example).all()
    if edit == "scale":
        zero = ablation(model, data, edit="zero", bootstrap=10)
        np.testing.assert_allclose(result.per_example, zero.per_example, atol=1e-5)


def test_the_null_is_paired_and_q_is_corrected_over_heads():
    model, _, data = subject()
    result = ablation(model, data, controls=3, seed=2)
    null = result.arrays["null_per_example"].astype(float)
    np.testing.assert_allclose(result.heads.matrix("null_mean"), null.mean(axis=0), atol=1e-6)
    p = stats.sign_flip_p(result.per_example - null, alternative="less", seed=2)
    np.testing.assert_allclose(result.heads.matrix("null_p"), p, atol=1e-12)
    np.testing.assert_allclose(result.heads.matrix("q"), stats.benjamini_hochberg(p), atol=1e-12)
    other = ablation(model, data, controls=3, seed=3)
    np.testing.assert_array_equal(other.per_example, result.per_example)
    assert np.abs(other.arrays["null_per_example"] - null).max() > 1e-3


def test_without_controls_there_is_no_null():
    model, _, data = subject()
    result = ablation(model, data, controls=0)
    assert np.isnan(result.heads["null_p"]).all() and np.isnan(result.heads["q"]).all()
    assert result.summary["n_significant"] is None


def test_the_normalised_effect_is_a_share_of_the_base_metric():
    model, _, data = subject()
    result = ablation(model, data)
    share = result.heads.matrix() / result.arrays["base"].mean()
    np.testing.assert_allclose(result.heads.matrix("normalised"), share, rtol=1e-5)
    assert np.isnan(ablation(model, data, metric="kl").heads["normalised"]).all(), "the base KL is zero"


def test_kv_groups_are_ablated_together():
    model, hf, data = subject()
    batch = data.batch()
    result = ablation(model, data, unit="kv_group")
    assert result.heads.row_kind == "kv_group" and result.heads.shape == (3, 2)
    after = reference.edited(hf, batch.clean, None, [(1, 2), (1, 3)], lambda le, h, z, v: torch.zeros_like(z))
    base = reference.logits(hf, batch.clean)
    want = np.subtract(*(reference.metric("logit_diff", x, base, batch.answer, batch.wrong) for x in (after, base)))
    np.testing.assert_allclose(result.per_example[:, 1, 1], want, atol=1e-5)


def test_the_cost_is_in_the_summary_and_the_seconds_are_not():
    model, _, data = subject()
    cost = ablation(model, data).summary["cost"]
    assert cost["speedup"] > 1 and cost["units"] == 12 and cost["forwards"] > 0 and cost["bytes"] > 0
    assert "seconds" not in cost


def test_a_smaller_memory_changes_rounding_only():
    model, _, data = subject()
    whole, small = ablation(model, data), ablation(model, data, memory_mb=0.2)
    assert small.summary["cost"]["rows"] < whole.summary["cost"]["rows"]
    np.testing.assert_allclose(small.per_example, whole.per_example, atol=1e-5)


def test_what_cannot_be_ablated_is_named():
    model, _, data = subject()
    with pytest.raises(InputError, match="alpha"):
        ablation(model, data, edit="scale")
    with pytest.raises(InputError, match="at least one pair"):
        ablation(model, dataset(model, "needle"))
    with pytest.raises(InputError, match="second example as long"):
        ablation(model, data[:1], edit="resample")
    with pytest.raises(CapabilityError, match="head_axis_ok"):
        ablation(tiny("deepseek_v3"), data)
