"""Which heads write and read features, and circuits of features: against plain hooks on the raw model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.analyses.examples import dataset
from tests.reference import sae_features as slow
from tests.tiny import tiny, tiny_hf
from workbench import analyses
from workbench.errors import CapabilityError, InputError
from workbench.saes import Sae, SaeConfig, save_sae

LAYER = 1
HOOK = f"blocks.{LAYER}.hook_resid_post"
FEATURES = (0, 3, 5)


def make(folder, *, hook_name=HOOK, d_in=32, d_sae=12, perfect=False, **changes):
    """A random autoencoder, or one whose reconstruction is its input, in a folder; its weights too."""
    g = torch.Generator().manual_seed(4)
    if perfect:
        eye = torch.eye(d_in)
        d_sae, w_enc = 2 * d_in, torch.cat([eye, -eye], 1)
        weights = {"W_enc": w_enc, "W_dec": w_enc.T.contiguous(), "b_enc": torch.zeros(d_sae)}
    else:
        w_dec = torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=g), dim=-1)
        weights = {"W_enc": torch.randn(d_in, d_sae, generator=g) / 3, "W_dec": w_dec}
        weights["b_enc"] = 0.2 * torch.randn(d_sae, generator=g)
    weights["b_dec"] = torch.zeros(d_in) if perfect else 0.1 * torch.randn(d_in, generator=g)
    config = SaeConfig(
        "standard", d_in, d_sae, hook_name, flatten_heads=hook_name.endswith("z"), trained_on="raw", **changes
    )
    return str(save_sae(Sae(config, weights), folder)), weights


@pytest.fixture(scope="module")
def model():
    return tiny("llama")


@pytest.fixture(scope="module")
def hf():
    return tiny_hf("llama")


@pytest.fixture(scope="module")
def data(model):
    return dataset(model, "pairs", 4, ragged=True)


@pytest.fixture(scope="module")
def sae(tmp_path_factory):
    return make(tmp_path_factory.mktemp("sae") / "random")


def params(folder, **changes):
    made = {
        "sae": folder,
        "features": FEATURES,
        "allow_poor": True,
        "directions": 2,
        "top": 12,
        "bootstrap": 20,
        "ablate": "zero",
        "batch_rows": 2,
        "circuit": {"steps": 3, "spot_check": 4, "random": 2, "min_gap": 0},
        **changes,
    }
    return analyses.get("sae_features").parse(made)


@pytest.fixture(scope="module")
def result(model, data, sae):
    return analyses.get("sae_features")(model, data, params(sae[0]), seed=0)


def row(table, **at):
    found = table
    for key, value in at.items():
        found = found[found[key] == value]
    assert len(found) == 1, at
    return found.iloc[0]


def test_heads_are_scored_by_what_they_write(model, hf, data, sae, result):
    encoder = sae[1]["W_enc"].T
    for layer in range(model.n_layers):
        for head in range(model.n_heads):
            at = (slice(None), layer, head)
            if layer > LAYER:
                assert np.isnan(result.per_example[at]).all()
                assert result.heads.row(layer, head)["status"] == "does not write there"
                continue
            for pair, got in zip(data, result.per_example[at], strict=True):
                wrote = slow.head_output(hf, torch.tensor(pair.clean), layer, head)
                strength = sum(float((wrote @ encoder[f]).abs().mean()) for f in FEATURES)
                assert got == pytest.approx(strength, rel=1e-4)


def test_writers_are_measured_directly_and_by_ablation(hf, data, sae, result):
    writers = result.tables["writers"]
    for f in FEATURES:
        for layer, head in ((0, 2), (1, 1)):
            direct = lost = tokens = 0.0
            for pair in data:
                ids = torch.tensor(pair.clean)
                before = slow.encode(slow.stream(hf, ids, LAYER), sae[1])[:, f]
                after = slow.encode(slow.stream(hf, ids, LAYER, slow.without_head(hf, layer, head)), sae[1])[:, f]
                on = before > 0
                wrote = slow.head_output(hf, ids, layer, head) @ sae[1]["W_enc"][:, f]
                direct, lost = direct + float(wrote[on].sum()), lost + float((before - after)[on].sum())
                tokens += int(on.sum())
            found = row(writers, feature=f, layer=layer, head=head)
            assert found["direct"] == pytest.approx(direct / tokens, rel=1e-3, abs=1e-5)
            assert found["ablation"] == pytest.approx(lost / tokens, rel=1e-3, abs=1e-5)
            assert found["direct_stderr"] > 0 and found["ablation_stderr"] > 0 and found["null"] > 0


def test_direct_parts_and_the_rest_of_the_stream_make_the_feature(model, hf, data, sae):
    """Completeness: the pre-activation is what heads, MLPs, the embedding and the bias write along e_f."""
    ids = torch.tensor(data[0].clean)
    mlps = []

    def keep(out):
        mlps.append(out[0])
        return out

    points = [(block.mlp, "post", keep) for block in hf.model.layers[: LAYER + 1]]
    x = slow.stream(hf, ids, LAYER, *points)
    heads = sum(slow.head_output(hf, ids, layer, h) for layer in range(LAYER + 1) for h in range(model.n_heads))
    torch.testing.assert_close(heads + sum(mlps) + hf.model.embed_tokens(ids), x, rtol=1e-4, atol=1e-4)


def test_readers_are_measured_directly_and_by_taking_the_feature_out(model, hf, data, sae, result):
    readers = result.tables["readers"]
    block = hf.model.layers[LAYER + 1]
    assert set(readers["layer"]) == {LAYER + 1}
    for f in FEATURES:
        for what, n_rows in (("q", model.n_heads), ("k", model.n_kv_heads), ("v", model.n_kv_heads)):
            total, direct, tokens = torch.zeros(n_rows), torch.zeros(n_rows), 0

            def cut(out, f=f):
                return out - slow.encode(out, sae[1])[..., f, None] * sae[1]["W_dec"][f]

            for pair in data:
                ids = torch.tensor(pair.clean)
                x = slow.stream(hf, ids, LAYER)
                on = slow.encode(x, sae[1])[:, f] > 0
                was = slow.inputs_of(hf, ids, LAYER + 1, what)
                now = slow.inputs_of(hf, ids, LAYER + 1, what, (hf.model.layers[LAYER], "post", cut))
                total += ((was - now).norm(dim=-1) / was.norm(dim=-1))[on].sum(0)
                linear = getattr(block.self_attn, f"{what}_proj")
                change = linear(block.input_layernorm(x)) - linear(block.input_layernorm(cut(x)))
                direct += (change.view(len(ids), n_rows, -1).norm(dim=-1) / was.norm(dim=-1))[on].sum(0)
                tokens += int(on.sum())
            for head in range(model.n_heads):
                index = head if what == "q" else model.kv_group(head)
                found = row(readers, feature=f, layer=LAYER + 1, head=head)
                assert found[f"total_{what}"] == pytest.approx(float(total[index]) / tokens, rel=1e-3)
                assert found[f"direct_{what}"] == pytest.approx(float(direct[index]) / tokens, rel=1e-3)


def test_effects_of_features_equal_the_slow_twin(hf, data, sae, result):
    numbers, effects = result.arrays["feature_numbers"], result.arrays["feature_effects"]
    for i, pair in enumerate(data):
        clean, corrupted = torch.tensor(pair.clean), torch.tensor(pair.corrupted)
        features, error = slow.feature_effects(hf, clean, corrupted, LAYER, sae[1], pair.answer, pair.wrong, 3)
        np.testing.assert_allclose(effects[i], features[numbers].numpy(), rtol=1e-3, atol=1e-5)
        assert result.arrays["error_effects"][i] == pytest.approx(float(error), rel=1e-3, abs=1e-5)


def test_the_curve_and_the_spot_check_equal_the_slow_twin(hf, data, sae, result):
    curve, spot = result.tables["circuit_curve"], result.tables["circuit_spot_check"]
    order = [f for f in result.tables["circuit_features"]["feature"] if f >= 0]
    size = 2
    kept, gap, out, into = {True: 0.0, False: 0.0}, 0.0, 0.0, 0.0
    for pair in data:
        clean = torch.tensor(pair.clean)
        x, other = slow.stream(hf, clean, LAYER), slow.stream(hf, torch.tensor(pair.corrupted), LAYER)
        change = slow.encode(x, sae[1]) - slow.encode(other, sae[1])
        error = x - other - change @ sae[1]["W_dec"]

        def value(at, clean=clean, pair=pair):
            with torch.no_grad():
                return float(slow.logit_diff(hf, clean, LAYER, at, pair.answer, pair.wrong))

        part = change[:, order[:size]] @ sae[1]["W_dec"][order[:size]]
        gap += value(x) - value(other)
        for with_error in (True, False):
            kept[with_error] += value(other + part + (error if with_error else 0)) - value(other)
        alone = change[:, order[:1]] @ sae[1]["W_dec"][order[:1]]
        out, into = out + value(x) - value(x - alone), into + value(other + alone) - value(other)
    for with_error, total in kept.items():
        got = row(curve, n_features=size, error=with_error)
        assert got["faithfulness"] == pytest.approx(total / gap, rel=1e-3)
        assert got["ci_low"] <= got["ci_high"] and np.isfinite(got["random_mean"])
    strongest = row(spot, feature=order[0])
    assert strongest["taken_out"] == pytest.approx(out / len(data), rel=1e-3, abs=1e-5)
    assert strongest["put_in"] == pytest.approx(into / len(data), rel=1e-3, abs=1e-5)
    assert strongest["both"] == pytest.approx((out + into) / 2 / len(data), rel=1e-3, abs=1e-5)
    assert set(result.summary["circuit"]["spot_check"]) == {"both", "taken_out", "put_in"}
    everything = row(curve, n_features=len(order), error=True)
    assert everything["faithfulness"] == pytest.approx(1, abs=1e-4)
    assert row(curve, n_features=0, error=False)["faithfulness"] == pytest.approx(0, abs=1e-5)


def test_a_perfect_autoencoder_leaves_the_error_nothing(model, data, tmp_path):
    folder, _ = make(tmp_path / "perfect", perfect=True)
    circuit = {"steps": 40, "spot_check": 0, "random": 1, "min_gap": 0, "sizes": [64]}
    got = analyses.get("sae_features")(
        model, data, params(folder, read=False, ablate=None, allow_poor=False, circuit=circuit), seed=0
    )
    assert got.summary["sae"]["explained_variance"] == pytest.approx(1)
    found = got.summary["circuit"]
    assert found["share_of_error"] == pytest.approx(0, abs=1e-4)
    assert found["sum_of_effects"] == pytest.approx(found["gap"], rel=0.02), "all effects together are the gap"
    without_error = row(got.tables["circuit_curve"], n_features=64, error=False)
    assert without_error["faithfulness"] == pytest.approx(1, abs=1e-3)


def test_an_example_alone_gives_what_it_gives_in_a_batch(model, data, sae):
    analysis = analyses.get("sae_features")
    options = params(sae[0], circuit=None, read=False, ablate=None)
    together = analysis(model, data, options, seed=0)
    alone = [analysis(model, data[i : i + 1], options, seed=0).per_example[0] for i in range(len(data))]
    np.testing.assert_allclose(together.per_example, np.stack(alone), rtol=1e-4, atol=1e-5)
    assert together.heads.meta["level"] == "example"


def test_a_head_that_writes_nothing_scores_nothing(tmp_path):
    """Also on a GPT-2 with biases, at z: each head has its own part of the encoder direction."""
    hf: Any = tiny_hf("gpt2")
    with torch.no_grad():
        hf.transformer.h[0].attn.c_proj.weight[8:16] = 0  # the rows of head 1
    from tests.tiny import tiny_tokenizer
    from workbench.models import load_model

    model = load_model(hf, tokenizer=tiny_tokenizer(), name="gpt2", device="cpu")
    data = dataset(model, "pairs", 3)
    folder, _ = make(tmp_path / "a")
    options = {"circuit": None, "read": False}
    got = analyses.get("sae_features")(model, data, params(folder, **options), seed=0)
    assert got.heads.matrix()[0, 1] == 0 and (got.heads.matrix()[0, [0, 2, 3]] > 0).all()
    assert (got.tables["writers"].query("layer == 0 and head == 1")["ablation"].abs() < 1e-5).all()
    folder, weights = make(tmp_path / "z", hook_name="blocks.1.attn.hook_z")
    got = analyses.get("sae_features")(model, data, params(folder), seed=0)
    assert got.heads.ok.reshape(3, 4).tolist() == [[False] * 4, [True] * 4, [False] * 4]
    from workbench.primitives.capture import capture

    z = capture(model, data.batch().clean, ["blocks.1.attn.hook_z"])["blocks.1.attn.hook_z"]
    each = torch.einsum("nphe,hef->nphf", z, weights["W_enc"].view(4, 8, -1)[:, :, list(FEATURES)])
    np.testing.assert_allclose(got.per_example[:, 1], each.abs().mean(1).sum(-1).numpy(), rtol=1e-4)


def test_mean_ablation_and_mean_removal_run(model, data, sae):
    circuit = {"steps": 2, "removed": "mean", "spot_check": 2, "random": 1, "min_gap": 0}
    got = analyses.get("sae_features")(model, data, params(sae[0], ablate="mean", circuit=circuit), seed=0)
    order = got.arrays["feature_numbers"]
    assert row(got.tables["circuit_curve"], n_features=len(order), error=True)["faithfulness"] == pytest.approx(
        1, abs=1e-4
    )
    assert np.isfinite(got.tables["writers"]["ablation"]).all()


def test_what_cannot_be_done_is_refused(model, data, sae, tmp_path):
    analysis = analyses.get("sae_features")
    with pytest.raises(InputError, match=r"explains .* of the variance"):
        analysis(model, data, params(sae[0], allow_poor=False), seed=0)
    with pytest.raises(InputError, match="says itself where it belongs"):
        analysis(model, data, params(sae[0], hook=HOOK), seed=0)
    with pytest.raises(InputError, match="12 is not one"):
        analysis(model, data, params(sae[0], features=[12]), seed=0)
    with pytest.raises(InputError, match="at least one pair"):
        analysis(model, [], params(sae[0]), seed=0)
    with pytest.raises(InputError, match=r"cfg\.json cannot be read"):
        params(str(tmp_path / "absent"))
    kept = params(sae[0]).model_dump()["sae_digest"]
    assert kept.startswith("sha256:")
    with pytest.raises(InputError, match="is another"):
        params(sae[0], sae_digest="sha256:0")
    with pytest.raises(InputError, match="give both or neither"):
        params(None, sae_digest=kept)
    normalised, _ = make(tmp_path / "norm", normalize_activations="layer_norm")
    with pytest.raises(InputError, match="normalises every input"):
        analysis(model, data, params(normalised), seed=0)
    gemma = tiny("gemma2")
    with pytest.raises(CapabilityError, match="heads_sum_to_attn_out"):
        analysis(gemma, dataset(gemma, "pairs", 2), params(sae[0]), seed=0)
    no_gap = analysis(model, data, params(sae[0], circuit={"min_gap": 1e6}, read=False, ablate=None), seed=0)
    assert no_gap.summary["circuit"]["status"].startswith("not run")
