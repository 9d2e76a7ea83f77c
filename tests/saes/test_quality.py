"""Where an autoencoder fits, and what the report says of ones whose reconstruction is known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.tiny import tiny, tiny_hf
from workbench.errors import InputError
from workbench.saes import Sae, SaeConfig, find_place, report
from workbench.saes.corpus import as_rows
from workbench.saes.place import fit
from workbench.saes.quality import require_good

HOOK = "blocks.1.hook_resid_post"


def perfect(width: int, hook_name: str = HOOK, **changes) -> Sae:
    """2 d features, x and -x in every coordinate: the reconstruction is the input."""
    eye = torch.eye(width)
    weights = {"W_enc": torch.cat([eye, -eye], 1), "W_dec": torch.cat([eye, -eye]), "b_dec": torch.zeros(width)}
    config = SaeConfig("standard", width, 2 * width, hook_name, flatten_heads=hook_name.endswith("z"), **changes)
    return Sae(config, {**weights, "b_enc": torch.zeros(2 * width)})


@pytest.fixture(scope="module")
def model():
    return tiny("llama")


@pytest.fixture(scope="module")
def prompts():
    g = torch.Generator().manual_seed(0)
    return as_rows([torch.randint(4, 64, (n,), generator=g).tolist() for n in (9, 6, 12)])


@pytest.mark.parametrize(
    "hook_name", [HOOK, "blocks.0.hook_resid_pre", "blocks.2.attn.hook_z", "blocks.1.hook_mlp_out"]
)
def test_a_perfect_autoencoder_loses_nothing(model, prompts, hook_name):
    sae = perfect(32, hook_name)
    place = fit(model, sae)
    found = report(model, place, sae, *prompts, rows=2)
    assert found.explained_variance == pytest.approx(1)
    assert found.l0 == pytest.approx(32)
    assert found.loss_sae == pytest.approx(found.loss_clean, abs=1e-5)
    for share in (found.loss_recovered, found.loss_recovered_mean):
        assert math.isnan(share) or share == pytest.approx(1, abs=1e-3)
    assert (found.n_tokens, found.n_prompts, found.n_features) == (27, 3, 64)


def test_an_autoencoder_of_the_mean_explains_nothing(model, prompts):
    from workbench.saes.place import activations

    place = find_place(model, HOOK)
    tokens, mask = prompts
    mean = activations(model, place, tokens, mask)[mask].mean(0)
    sae = perfect(32)
    sae = Sae(sae.config, {**sae.weights, "W_dec": torch.zeros(64, 32), "b_dec": mean})
    found = report(model, place, sae, tokens, mask)
    assert found.explained_variance == pytest.approx(0, abs=1e-5)
    assert found.loss_sae == pytest.approx(found.loss_mean, abs=1e-5)
    with pytest.raises(InputError, match=r"explains -?0\.00 of the variance .* allow_poor"):
        require_good(found, min_explained_variance=0.5, min_loss_recovered=0.5, allow_poor=False)
    assert require_good(found, min_explained_variance=0.5, min_loss_recovered=0.5, allow_poor=True)
    dead = Sae(sae.config, {**sae.weights, "b_enc": torch.full((64,), -100.0)})
    assert report(model, place, dead, tokens, mask).n_dead == 64


def test_losses_equal_a_plain_loop_on_the_raw_model(model, prompts):
    """Slow twin: one prompt at a time, a forward hook on the raw module, the loss by hand."""
    tokens, mask = prompts
    g = torch.Generator().manual_seed(1)
    sae = perfect(32)
    sae = Sae(sae.config, {**sae.weights, "b_dec": 0.3 * torch.randn(32, generator=g)})
    found = report(model, fit(model, sae), sae, tokens, mask, rows=2)
    hf = tiny_hf("llama")
    totals = {"clean": 0.0, "sae": 0.0, "zero": 0.0}
    changes = {"clean": lambda x: x, "sae": sae.reconstruct, "zero": torch.zeros_like}
    count = 0
    for row, keep in zip(tokens, mask, strict=True):
        ids = row[keep][None]
        count += ids.shape[1] - 1
        for name, change in changes.items():

            def edit(_module, _args, output, change=change):
                return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

            handle = hf.model.layers[1].register_forward_hook(edit)
            with torch.no_grad():
                logits = hf(ids).logits[0].double()
            handle.remove()
            totals[name] -= float(logits.log_softmax(-1)[torch.arange(ids.shape[1] - 1), ids[0, 1:]].sum())
    got = {"clean": found.loss_clean, "sae": found.loss_sae, "zero": found.loss_zero}
    for name, total in totals.items():
        assert got[name] == pytest.approx(total / count, rel=1e-4), name


def test_an_autoencoder_that_does_not_fit_is_refused(model):
    for hook_name, part in {
        "blocks.1.hook_resid_mid": "cannot be applied at",
        "blocks.9.hook_resid_post": "has no hook",
        "resid": "cannot be applied at",
    }.items():
        with pytest.raises(InputError, match=part):
            find_place(model, hook_name)
    with pytest.raises(InputError, match=r"width 16, but .* has 32"):
        fit(model, perfect(16))
    with pytest.raises(InputError, match="has 4 x 8"):
        fit(model, perfect(16, "blocks.1.attn.hook_z"))
    folded = perfect(32, trained_on="folded")
    with pytest.raises(InputError, match=r"folded weights .* has raw ones; enable"):
        fit(model, folded)
    assert fit(model, folded, any_basis=True).width == 32
    assert fit(model, perfect(32, trained_on="raw")).layer == 1
    with pytest.raises(InputError, match=r"raw weights .* has folded ones"):
        fit(replace(model, basis="folded"), perfect(32, trained_on="raw"))


def test_a_normed_sublayer_output_is_refused():
    with pytest.raises(InputError, match="a norm of it"):
        find_place(tiny("gemma2"), "blocks.1.hook_attn_out")
    assert find_place(tiny("gemma2"), "blocks.1.hook_resid_post").width == 32
