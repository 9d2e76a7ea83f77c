"""`analysis: attribution` reports shares of the gap, tidy edges, and how well its approximation holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.primitives.cases import model, raw
from tests.reference.attribution import Twin
from workbench import analyses, tasks
from workbench.errors import CapabilityError, InputError

ATTRIBUTION = analyses.get("attribution")
STORIES = Path(__file__).parents[3] / "shared" / "models" / "stories260K"
CLEAN = [
    "the red cat saw a big fish in the house of Bob . who lost",
    "the blue dog hid one small tree in Paris and Emma saw",
    "Alice ran to the river when David lost a white key in Rome and found",
    "a green bird is two of the city where Carol hid the number",
]
SWAPS = [("cat", "dog"), ("tree", "book"), ("river", "garden"), ("bird", "fish")]


def data(arch, lengths=False):
    """Pairs in the tiny vocabulary, of one length unless `lengths`."""
    texts = CLEAN if lengths else [" ".join(text.split()[:11]) for text in CLEAN]
    pairs = [
        {"clean": text, "corrupted": text.replace(*swap), "answer": " cat", "wrong": " secret"}
        for text, swap in zip(texts, SWAPS, strict=True)
    ]
    return tasks.pairs_from_samples(model(arch), pairs)


def run(arch, dataset=None, seed=0, **params):
    options = {"bootstrap": 20, "spot_check": 4, "steps": 3, "min_gap": 0, **params}
    return ATTRIBUTION(model(arch), dataset or data(arch), ATTRIBUTION.parse(options), seed=seed)


def twin(arch, pair, direction):
    base, other = (pair.clean, pair.corrupted) if direction == "noising" else (pair.corrupted, pair.clean)
    return Twin(arch, raw(arch), list(base), list(other), lambda logits: logits[pair.answer] - logits[pair.wrong])


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("method", ["attribution_patching", "eap_ig"])
def test_scores_are_the_twins_as_shares_of_the_gap(method, direction):
    pairs = data("llama", lengths=True)
    result = run("llama", pairs, method=method, direction=direction, rule="left")
    path = (1.0,)
    if method == "eap_ig":  # published: from the corrupted run on, the clean one left out
        path = (0, 1 / 3, 2 / 3) if direction == "noising" else (1 / 3, 2 / 3, 1)
    for i, pair in enumerate(pairs):
        slow = twin("llama", pair, direction)
        want = np.array([[slow.node("head", layer, head, path) for head in range(4)] for layer in range(3)])
        gap = float(slow.seen["other"]["value"] - slow.seen["base"]["value"])
        np.testing.assert_allclose(result.arrays["raw_per_example"][i], want, atol=1e-5 * np.abs(want).max())
        np.testing.assert_allclose(result.per_example[i], want / gap, atol=1e-4 * np.abs(want / gap).max())
    assert result.heads.meta["metric"].endswith(f"approximate effect ({method})")


@pytest.mark.parametrize("arch", ["llama", "neox", "olmo2"])
def test_edges_are_tidy_and_equal_the_twin(arch):
    pairs = data(arch)
    result = run(arch, pairs, method="eap")
    edges, groups = result.tables["edges"], model(arch).n_kv_heads
    assert not edges.duplicated(list(edges.columns[:7])).any()
    assert set(edges["receiver_input"]) == {"q", "k", "v", "mlp", "logits"}
    assert edges.query("receiver_input == 'k'")["receiver_kv_group"].max() == groups - 1
    assert (edges.query("receiver_input in ('k', 'v', 'mlp', 'logits')")["receiver_head"] == -1).all()
    assert np.isfinite(edges["score"]).all() and np.isfinite(edges["stderr"]).all()
    slow = [twin(arch, pair, "noising") for pair in pairs]
    for _, edge in edges.sample(12, random_state=0).iterrows():
        sender = (edge.sender_kind, edge.sender_layer, edge.sender_head)
        index = edge.receiver_head if edge.receiver_input == "q" else edge.receiver_kv_group
        receiver = (edge.receiver_input, edge.receiver_layer, index)
        gaps = [float(s.seen["other"]["value"] - s.seen["base"]["value"]) for s in slow]
        raws = [s.edge(sender, receiver) for s in slow]
        shares = np.array(raws) / gaps
        scale = np.abs(edges["score"]).max()
        assert abs(edge.score - shares.mean()) < 1e-4 * scale
        assert abs(edge.stderr - shares.std(ddof=1) / 2) < 1e-4 * max(scale, edges["stderr"].max())
        assert abs(edge.raw_effect - np.mean(raws)) < 1e-4 * np.abs(edges["raw_effect"]).max()


def test_what_edges_say_of_a_head():
    result = run("llama", method="eap")
    edges = result.tables["edges"].assign(size=lambda frame: frame["score"].abs())
    row = result.heads.row(1, 3)
    out = edges.query("sender_kind == 'head' and sender_layer == 1 and sender_head == 3")
    into = edges.query("receiver_layer == 1 and receiver_kv_group == 1 and receiver_head in (-1, 3)")
    assert set(into["receiver_input"]) == {"q", "k", "v"}
    assert row["edges_out"] == pytest.approx(out["size"].sum())
    assert row["edges_in"] == pytest.approx(into["size"].sum())
    assert row["strongest_edge"] == pytest.approx(max(out["size"].max(), into["size"].max()))
    assert row["score"] == pytest.approx(out["score"].sum(), abs=1e-4)


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_the_spot_check_of_nodes_is_activation_patching(direction):
    pairs = data("llama", lengths=True)
    result = run("llama", pairs, direction=direction, spot_check=6)
    patching = analyses.get("activation_patching")
    options = {"direction": direction, "streams": (), "controls": 0, "min_gap": 0, "bootstrap": 20}
    exact = patching(model("llama"), pairs, patching.parse(options), seed=0).heads.matrix()
    check = result.tables["spot_check"]
    assert list(check["chosen"]) == ["top"] * 6 + ["random"] * 6
    heads = check.query("kind == 'head'")
    np.testing.assert_allclose(heads["exact"], exact[heads["layer"], heads["head"]], atol=1e-4 * np.abs(exact).max())
    scores = result.heads.matrix()
    np.testing.assert_allclose(heads["approximate"], scores[heads["layer"], heads["head"]])
    strongest = result.tables["nodes"].query("kind != 'input'")["score"].abs().nlargest(6)
    np.testing.assert_allclose(check["approximate"].abs()[:6], strongest)


def test_the_summary_says_how_good_the_approximation_is():
    found = run("gpt2", method="eap").summary
    assert found["approximation"] == "first order, gradient at the base run"
    assert found["spot_check"]["n"] == 8
    assert {"spearman", "pearson", "spearman_random", "same_sign", "largest_error"} < set(found["spot_check"])
    assert found["n_edges"] == len(run("gpt2", method="eap").tables["edges"])
    assert "spot_check" not in run("gpt2", spot_check=0).tables
    assert "norm follows attention" in run("gemma2", method="eap").summary["notes"][0]


def test_how_examples_are_batched_does_not_matter():
    pairs = data("gpt2", lengths=True)
    whole, one = (run("gpt2", pairs, method="eap", batch_rows=rows) for rows in (None, 1))
    np.testing.assert_allclose(one.per_example, whole.per_example, rtol=1e-3, atol=1e-5)
    scale = whole.tables["edges"]["score"].abs().max()
    np.testing.assert_allclose(one.tables["edges"]["score"], whole.tables["edges"]["score"], atol=1e-4 * scale)
    np.testing.assert_allclose(one.tables["spot_check"]["exact"], whole.tables["spot_check"]["exact"], atol=1e-4)


def test_the_null_takes_another_examples_base_run():
    pairs = data("llama")
    result = run("llama", pairs, method="attribution_patching", controls=1, seed=3)
    null = result.arrays["null_per_example"]
    swapped = [
        Twin("llama", raw("llama"), list(a.clean), list(b.clean), lambda x, a=a: x[a.answer] - x[a.wrong])
        for a in pairs
        for b in pairs
        if a is not b
    ]
    for i in range(4):  # one of the three others
        gap = result.tables["examples"]["corrupted"][i] - result.tables["examples"]["clean"][i]
        candidates = [slow.node("head", 2, 1) / gap for slow in swapped[3 * i : 3 * i + 3]]
        assert min(abs(null[i, 2, 1] - value) for value in candidates) < 1e-4
    assert np.isfinite(result.heads["null_p"]).all() and np.isfinite(result.heads["q"]).all()


def test_one_position_of_many():
    pairs = data("llama")
    everywhere = run("llama", pairs, method="attribution_patching").arrays["raw_per_example"]
    parts = [run("llama", pairs, method="attribution_patching", positions=[p]) for p in range(pairs[0].length)]
    total = sum(part.arrays["raw_per_example"] for part in parts)
    np.testing.assert_allclose(total, everywhere, atol=1e-4)


def test_the_level_follows_the_method_and_is_recorded():
    assert ATTRIBUTION.parse({}).level == "node"
    assert ATTRIBUTION.parse({"method": "eap"}).level == "edge"
    assert ATTRIBUTION.parse({"method": "eap_ig", "level": "edge"}).level == "edge"
    with pytest.raises(InputError, match="eap scores no nodes; take the method attribution_patching"):
        ATTRIBUTION.parse({"method": "eap", "level": "node"})
    with pytest.raises(InputError, match="attribution_patching scores no edges; take the method eap"):
        ATTRIBUTION.parse({"method": "attribution_patching", "level": "edge"})


def test_kl_is_refused_with_its_reason():
    with pytest.raises(InputError, match=r"'metric' is 'kl', but the KL divergence .* gradient is zero"):
        ATTRIBUTION.parse({"metric": "kl"})
    with pytest.raises(InputError, match="whole number"):
        ATTRIBUTION.parse({"metric": "rank"})


def test_edges_of_a_model_wired_otherwise_are_refused():
    with pytest.raises(CapabilityError, match="level: node"):
        run("bloom", method="eap")
    assert run("bloom").heads.ok.all()


@pytest.mark.skipif(not STORIES.exists(), reason="the pretrained model is not beside this checkout")
def test_a_pretrained_model():
    """Who the story is about: the edges found are real, and integrated gradients see the whole effect of the input."""
    import yaml

    import workbench as wb

    loaded = wb.load_model(str(STORIES))
    spec = yaml.safe_load((Path(__file__).parents[2] / "experiments" / "attribution.yaml").read_text())
    pairs = tasks.resolve(loaded, spec["data"])
    result = ATTRIBUTION(loaded, pairs, ATTRIBUTION.parse({**spec["params"], "steps": 5}), seed=0)
    nodes = result.tables["nodes"]
    assert nodes["score"][0] == pytest.approx(1, abs=0.02), "completeness"
    assert result.summary["spot_check"]["spearman"] > 0.8
    assert result.heads.top(2).keys() == ((4, 2), (4, 0))
