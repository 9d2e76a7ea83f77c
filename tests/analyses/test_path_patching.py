"""Path patching as an analysis: shares of the gap along direct paths, per sender, and per edge."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from tests.analyses.test_activation_patching import dataset, diff
from tests.primitives.cases import model, raw
from tests.reference import paths as slow
from workbench.analyses import get
from workbench.errors import InputError

PP = get("path_patching")


def run(arch, data, seed=0, **params):
    return PP(model(arch), data, PP.parse({"bootstrap": 50, "min_gap": 0, "controls": 0, **params}), seed=seed)


@pytest.mark.parametrize("mlps", ["recompute", "freeze"])
@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_scores_are_shares_of_the_gap_by_three_raw_passes(arch, mlps):
    data, hf = dataset(), raw(arch)
    batch = data.batch()
    start, end = diff(slow.run(hf, batch.clean), data), diff(slow.run(hf, batch.corrupted), data)
    names, receivers = ["2.3.q", "2.1.v"], [("q", 2, 3), ("v", 2, 1)]
    result = run(arch, data, receivers=names, mlps=mlps)
    for layer, head in [(0, 1), (1, 2)]:
        patched = diff(slow.path_patch(hf, batch.clean, batch.corrupted, (layer, head), receivers, mlps), data)
        np.testing.assert_allclose(result.arrays["raw_per_example"][:, layer, head], patched - start, atol=2e-5)
        want = (patched - start) / (end - start)
        np.testing.assert_allclose(result.per_example[:, layer, head], want, rtol=1e-4, atol=1e-3)
    assert result.heads.meta["mlps"] == result.summary["mlps"] == mlps
    assert result.heads.meta["receivers"] == "2.3.q, 2.1.v"


def test_heads_without_a_path_have_no_score_and_say_why():
    heads = run("llama", dataset(), receivers=["1.0.q"]).heads
    assert heads.ok.tolist() == [True] * 4 + [False] * 8
    assert set(heads["status"][4:]) == {"no path to a receiver"}
    assert np.isnan(heads["score"][4:]).all()


def test_edges_are_the_receivers_one_by_one():
    data = dataset()
    both = run("llama", data, receivers=["2.3.q", "1.0.q", "1.mlp"])
    edges = both.tables["edges"]
    assert edges.groupby("receiver").size().to_dict() == {"1.0.q": 4, "1.mlp": 8, "2.3.q": 8}
    alone = run("llama", data, receivers="1.0.q")
    np.testing.assert_allclose(edges[edges["receiver"] == "1.0.q"]["score"], alone.heads["score"][:4], atol=1e-6)
    np.testing.assert_allclose(alone.tables["edges"]["score"], alone.heads["score"][:4], atol=1e-6)
    assert "edges" not in run("llama", data, receivers=["2.3.q", "1.0.q"], edges=False).tables


def test_denoising_is_noising_the_swapped_pairs():
    data = dataset()
    noising, denoising = run("gpt2", data), run("gpt2", data.swapped(), direction="denoising")
    np.testing.assert_allclose(noising.per_example, denoising.per_example, atol=1e-5)


def test_the_null_lets_each_sender_speak_as_on_another_example():
    result = run("llama", dataset(), controls=2)
    heads = result.heads
    assert np.isfinite(heads["null_p"]).all() and np.isfinite(heads["q"]).all()
    assert result.arrays["null_per_example"].shape == result.per_example.shape
    again = run("llama", dataset(), controls=2, seed=3)
    assert not np.allclose(again.arrays["null_per_example"], result.arrays["null_per_example"])


def test_a_batch_of_several_lengths_equals_single_runs():
    data = dataset((9, 6, 8))
    options = {"receivers": ["2.0.k", "1.3.q"], "positions": [-2, -1], "receiver_positions": [-1]}
    together = run("gpt2", data, **options)
    alone = [run("gpt2", data[i : i + 1], **options).per_example[0] for i in range(3)]
    np.testing.assert_allclose(together.per_example, np.stack(alone), atol=1e-3)


def test_receivers_are_checked_when_the_spec_is_read():
    for wrong, words in [(["9.6"], "not a receiver"), (["logits", "1.0.q"], "run them apart"), ([], "at least one")]:
        with pytest.raises(InputError, match=words):
            PP.parse({"receivers": wrong})
    assert PP.parse({"receivers": "logits"}).receivers == ("logits",)
    params = PP.parse({"receivers": ["9.6.q"], "positions": [-1]})
    assert PP.parse(yaml.safe_load(yaml.safe_dump(params.model_dump(mode="json")))) == params
    with pytest.raises(InputError, match="layer 9"):
        run("llama", dataset(), receivers=["9.0.q"])
