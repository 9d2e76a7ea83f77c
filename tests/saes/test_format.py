"""A folder in the SAELens layout gives the features that a hand gives, or is refused with a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.reference import saes as reference
from workbench.errors import InputError
from workbench.saes import load_sae, save_sae

X = torch.tensor([[1.0, 2.0], [-1.0, 0.5], [0.0, -3.0]])
HOOK = "blocks.1.hook_resid_post"


def weights(kind: str = "standard", **changes: Any) -> dict[str, torch.Tensor]:
    """d_in 2, d_sae 3, by hand."""
    made = {
        "W_enc": torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, 1.0]]),
        "W_dec": torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 1.0]]),
        "b_dec": torch.tensor([0.5, -0.5]),
    }
    vectors = {
        "standard": {"b_enc": [0.0, -1.0, 0.25]},
        "topk": {"b_enc": [0.0, -1.0, 0.25]},
        "jumprelu": {"b_enc": [0.0, -1.0, 0.25], "threshold": [0.6, 0.1, 2.5]},
        "gated": {"b_gate": [0.1, -2.0, 0.0], "b_mag": [0.0, 0.5, -1.0], "r_mag": [0.0, 0.5, -0.5]},
    }
    return {**made, **{k: torch.tensor(v) for k, v in vectors[kind].items()}, **changes}


def config(kind: str = "standard", **changes: Any) -> dict[str, Any]:
    """As SAELens 6 writes it; `metadata` keys in `changes` are merged."""
    metadata = {"sae_lens_version": "6.5.0", "hook_name": HOOK, "model_name": "tiny", **changes.pop("metadata", {})}
    made = {"architecture": kind, "d_in": 2, "d_sae": 3, "dtype": "float32", "device": "cpu"}
    made |= {"apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none"}
    return {**made, **({"k": 1} if kind == "topk" else {}), **changes, "metadata": metadata}


def folder(path: Path, settings: Any, tensors: dict[str, torch.Tensor]) -> Path:
    path.mkdir(exist_ok=True)
    (path / "cfg.json").write_text(json.dumps(settings))
    save_file(tensors, path / "sae_weights.safetensors")
    return path


HAND = {  # of X, computed on paper
    "standard": [[0.5, 1.5, 2.25], [0.0, 0.0, 2.75], [0.0, 0.0, 0.0]],
    "topk": [[0.0, 0.0, 2.25], [0.0, 0.0, 2.75], [0.0, 0.0, 0.0]],
    "jumprelu": [[0.0, 1.5, 0.0], [0.0, 0.0, 2.75], [0.0, 0.0, 0.0]],
    "gated": [[0.5, 2.5 * np.exp(0.5) + 0.5, 2 * np.exp(-0.5) - 1], [0.0, 0.0, 2.5 * np.exp(-0.5) - 1], [0.0] * 3],
}


@pytest.mark.parametrize("kind", list(HAND))
def test_features_are_those_computed_by_hand(tmp_path, kind):
    sae = load_sae(folder(tmp_path / "sae", config(kind), weights(kind)))
    found = sae.encode(X)
    torch.testing.assert_close(found, torch.tensor(HAND[kind], dtype=torch.float32))
    expected = found @ weights()["W_dec"] + weights()["b_dec"]
    torch.testing.assert_close(sae.reconstruct(X), expected)


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("kind", list(HAND))
def test_it_equals_the_slow_twin(tmp_path, kind, subtract):
    g = torch.Generator().manual_seed(3)
    tensors = {name: torch.randn(w.shape, generator=g) for name, w in weights(kind).items()}
    if "threshold" in tensors:
        tensors["threshold"] = tensors["threshold"].abs()
    settings = config(kind, apply_b_dec_to_input=subtract, **({"k": 2} if kind == "topk" else {}))
    sae = load_sae(folder(tmp_path / "sae", settings, tensors))
    x = torch.randn(20, 2, generator=g)
    plain = {name: w.double().numpy() for name, w in tensors.items()}
    slow = [reference.encode(row, plain, kind=kind, k=2, subtract=subtract) for row in x.double().tolist()]
    np.testing.assert_allclose(sae.encode(x).numpy(), slow, rtol=1e-5, atol=1e-5)
    out = [reference.decode(features, plain) for features in slow]
    np.testing.assert_allclose(sae.reconstruct(x).numpy(), out, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", list(HAND))
def test_what_is_written_is_read_back(tmp_path, kind):
    sae = load_sae(folder(tmp_path / "a", config(kind), weights(kind)))
    again = load_sae(save_sae(sae, tmp_path / "b"))
    assert torch.equal(again.encode(X), sae.encode(X))
    assert again.config == sae.config
    with pytest.raises(InputError, match="already"):
        save_sae(sae, tmp_path / "b")


def test_inputs_normalised_one_by_one_come_back_in_their_own_units(tmp_path):
    x = torch.tensor([[3.0, 4.0], [-2.0, 1.0]])
    sae = load_sae(folder(tmp_path / "a", config(normalize_activations="constant_norm_rescale"), weights()))
    plain = load_sae(folder(tmp_path / "b", config(), weights()))
    factor = 2**0.5 / x.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(sae.encode(x), plain.encode(x * factor))
    torch.testing.assert_close(sae.reconstruct(x), plain.reconstruct(x * factor) / factor)
    with pytest.raises(InputError, match="beside the features"):
        sae.decode(sae.encode(x))
    sae = load_sae(folder(tmp_path / "c", config(normalize_activations="layer_norm"), weights()))
    mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
    torch.testing.assert_close(sae.reconstruct(x), plain.reconstruct((x - mean) / (std + 1e-5)) * std + mean)


def test_topk_may_compare_features_by_what_they_write(tmp_path):
    x = torch.tensor([[2.0, 1.5]])  # pre-activations 1.5, 1, 0.75; what they write: 1.5, 2, 1.06
    plain = load_sae(folder(tmp_path / "a", config("topk"), weights("topk")))
    scaled = load_sae(folder(tmp_path / "b", config("topk", rescale_acts_by_decoder_norm=True), weights("topk")))
    assert plain.encode(x).nonzero().tolist() == [[0, 0]]
    torch.testing.assert_close(scaled.encode(x), torch.tensor([[0.0, 2.0, 0.0]]))
    torch.testing.assert_close(scaled.reconstruct(x), torch.tensor([[0.5, 2 - 0.5]]))


def test_files_from_before_version_6_are_read(tmp_path):
    flat = {
        "architecture": "standard",
        "d_in": 2,
        "d_sae": 3,
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 1},
        "hook_name": HOOK,
        "hook_layer": 1,
        "hook_head_index": None,
        "model_name": "gpt2-small",
        "normalize_activations": None,
        "l1_coefficient": 5,
        "finetuning_scaling_factor": False,
        "model_from_pretrained_kwargs": {"center_writing_weights": True},
    }
    tensors = {**weights(), "scaling_factor": torch.ones(3)}
    sae = load_sae(folder(tmp_path / "a", flat, tensors))
    assert (sae.config.architecture, sae.config.k, sae.config.trained_on) == ("topk", 1, "folded")
    torch.testing.assert_close(sae.encode(X), torch.tensor(HAND["topk"]))
    older = {"d_in": 2, "d_sae": 3, "hook_point": HOOK, "normalize_activations": False}
    assert load_sae(folder(tmp_path / "b", older, weights())).config.architecture == "standard"


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"architecture": "jump_relu"}, "Did you mean 'jumprelu'"),
        ({"architecture": "temporal"}, "'temporal' is not known"),
        ({"architecture": "abstopk", "k": 1}, r"'abstopk' is not known here\. Known"),
        ({"architecture": "batchtopk", "aux_loss_coefficient": 1.0}, "checkpoint of training.*save_inference_model"),
        ({"d_sae": 0}, "d_sae must be"),
        ({"d_in": 3}, r"shape \[2, 3\].*call for \[3, 3\]"),
        ({"normalize_activations": "expected_average_only_in"}, "folded into the weights"),
        ({"normalize_activations": "rms"}, "'rms' is not known"),
        ({"normalize_activations": "covariance_whitening"}, "'covariance_whitening' is not known"),
        ({"architecture": "transcoder"}, r"'transcoder' is not known here\. Known"),
        ({"reshape_activations": "hook_z"}, "but the hook point is"),
        ({"dtype": "int8"}, "'int8'"),
        ({"rescale_acts_by_decoder_norm": True}, "only known of top-k"),
        ({"use_skip": True}, "'use_skip' is not known"),
        ({"apply_b_dec_to_input": "yes"}, "true or false"),
        ({"metadata": {"hook_name": None}}, "names no hook point"),
        ({"metadata": {"hook_head_index": 3}}, "head 3 alone"),
        ({"metadata": {"hook_name_out": "blocks.1.hook_mlp_out"}}, "transcoders"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path, changes, part):
    with pytest.raises(InputError, match=part):
        load_sae(folder(tmp_path / "sae", config(**changes), weights()))


def test_wrong_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"cfg\.json cannot be read"):
        load_sae(tmp_path / "absent")
    path = folder(tmp_path / "a", config(), weights("gated"))
    with pytest.raises(InputError, match=r"unexpected b_gate|lacks b_enc"):
        load_sae(path)
    path = folder(tmp_path / "b", config(), weights(b_dec=torch.tensor([0.0, float("nan")])))
    with pytest.raises(InputError, match="not finite"):
        load_sae(path)
    (path / "sae_weights.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="not a safetensors file"):
        load_sae(path)
    (path / "cfg.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        load_sae(path)
    path = folder(tmp_path / "c", config("topk", k=4), weights("topk"))
    with pytest.raises(InputError, match="k between 1 and 3, not 4"):
        load_sae(path)
    path = folder(tmp_path / "d", config(), {**weights(), "scaling_factor": torch.tensor([1.0, 2.0, 1.0])})
    with pytest.raises(InputError, match="scaling_factor"):
        load_sae(path)
