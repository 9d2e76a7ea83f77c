"""Patching equals raw hooks on whole forwards, and obeys the identities that define it."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from tests.primitives.cases import left_padded, model, n_hooks, prompts, raw, weights
from tests.reference import paths as slow
from workbench.errors import CapabilityError, InputError
from workbench.primitives import patching, suffix
from workbench.primitives.patching import Component, Site, patch_cells, share_of_gap, sites
from workbench.primitives.sweep.readout import Readout

ARCHES = ["gpt2", "llama", "neox", "qwen3", "gemma2", "mistral", "olmo2"]
N = 3


@functools.cache
def readouts(n=N):
    g = torch.Generator().manual_seed(5)
    answer, wrong = torch.randint(4, 30, (n,), generator=g), torch.randint(30, 60, (n,), generator=g)
    return {name: Readout(name, answer, wrong) for name in ("logit_diff", "kl", "prob", "log_prob", "rank", "loss")}


def runs(n=N, length=9, seed=0):
    return prompts(n, length, seed), prompts(n, length, seed + 100)


def logit_diff(logits, n=N):
    r = readouts(n)["logit_diff"]
    rows = torch.arange(n)
    return (logits[rows, r.answer] - logits[rows, r.wrong]).double().numpy()


PARTS = [("z", 1, 2), ("q", 1, 3), ("k", 1, 1), ("v", 2, 0), ("attn_out", 1, None), ("mlp_out", 0, None)]
PARTS += [("resid_pre", 1, None), ("resid_post", 1, None), ("z", 0, 0), ("v", 0, 1)]


@pytest.mark.parametrize("arch", ARCHES)
def test_every_component_equals_raw_hooks(arch):
    base, other = runs()
    parts = [p for p in PARTS if not (arch == "olmo2" and p[0] in "qkv")]  # one norm over all heads: refused below
    cells = [Site(Component(part), layer, index) for part, layer, index in parts]
    done = patch_cells(model(arch), base, other, cells, readouts())
    assert done.method == "fork"
    for row, (part, layer, index) in zip(done.values["logit_diff"], parts, strict=True):
        logits = slow.patch(raw(arch), base, other, part, layer, index)
        assert np.abs(row - logit_diff(logits)).max() < 1e-5 * max(1, float(logits.abs().max())), (part, layer, index)
    assert np.abs(done.effect("logit_diff")).min(axis=1).max() > 1e-3


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gemma2"])
def test_padded_batches_and_positions_equal_raw_hooks(arch):
    (base, mask, _), (other, _, _) = (left_padded(tokens, [0, 3, 2]) for tokens in runs())
    first = (mask == 0).sum(1)
    rows = torch.arange(N)
    second, last = torch.zeros_like(mask).bool(), torch.zeros_like(mask).bool()
    second[rows, first + 1], last[:, -1] = True, True
    cases = [("z", 1, 2, (1,), second), ("k", 1, 1, (1, -1), second | last), ("mlp_out", 1, None, (-1,), last)]
    cases += [("resid_pre", 1, None, None, None)]
    cells = [Site(Component(part), layer, index, positions) for part, layer, index, positions, _ in cases]
    done = patch_cells(model(arch), base, other, cells, readouts(), attention_mask=mask)
    for row, (part, layer, index, _, where) in zip(done.values["logit_diff"], cases, strict=True):
        logits = slow.patch(raw(arch), base, other, part, layer, index, mask, where)
        assert np.abs(row - logit_diff(logits)).max() < 1e-5 * max(1, float(logits.abs().max())), (part, where)


# not NeoX: there the bridge itself is 4e-7 from Hugging Face, before any patch, because it rotates in float32
@pytest.mark.parametrize("arch", ["gpt2", "llama", "qwen3", "gemma2"])
def test_in_float64_the_difference_is_rounding(arch):
    class Exact:  # the metrics of the workbench are float32
        needs_base = False

        def __call__(self, logits, rows, _):
            return logits[torch.arange(len(rows)), readouts()["logit_diff"].answer[rows]]

    base, other = runs()
    cells = [Site(Component(part), layer, index) for part, layer, index in PARTS]
    done = patch_cells(model(arch, torch.float64), base, other, cells, {"exact": Exact()})
    for row, (part, layer, index) in zip(done.values["exact"], PARTS, strict=True):
        want = slow.patch(raw(arch, torch.float64), base, other, part, layer, index)
        assert np.abs(row - Exact()(want, torch.arange(N), None).numpy()).max() < 1e-10, (part, layer, index)


def every_site(m):
    return [site for component in Component for site in sites(m, component)]


@pytest.mark.parametrize("arch", ["gpt2", "llama", "neox"])
def test_a_run_patched_with_itself_does_not_change(arch):
    base, _ = runs()
    done = patch_cells(model(arch), base, base, every_site(model(arch)), readouts())
    for name, values in done.values.items():
        np.testing.assert_allclose(values, np.broadcast_to(done.base[name], values.shape), atol=1e-5, err_msg=name)
    assert np.isnan(done.share("logit_diff")).all()  # no gap, no share


@pytest.mark.parametrize("arch", ["gpt2", "llama", "neox", "gemma2", "gptj", "opt"])
def test_all_heads_and_mlps_and_the_first_stream_give_the_other_run(arch):
    m, (base, other) = model(arch), runs()
    heads = [*sites(m, "z"), *sites(m, "mlp_out"), Site(Component.RESID_PRE, 0)]
    outputs = [*sites(m, "attn_out"), *sites(m, "mlp_out"), Site(Component.RESID_PRE, 0)]
    done = patch_cells(m, base, other, [heads, outputs, sites(m, "resid_pre"), sites(m, "resid_post")], readouts())
    for name in ("logit_diff", "log_prob", "prob"):
        want = np.broadcast_to(done.other[name], (4, N))
        np.testing.assert_allclose(done.values[name], want, atol=2e-5, err_msg=name)
    np.testing.assert_allclose(done.share("logit_diff"), 1, atol=1e-3)


def test_noising_a_pair_is_denoising_it_seen_from_the_other_side():
    m, (clean, corrupted) = model("llama"), runs()
    r = readouts()["logit_diff"]
    swapped = Readout("logit_diff", r.wrong, r.answer)
    cells = sites(m, "z")
    noising = patch_cells(m, clean, corrupted, cells, {"ld": r})
    denoising = patch_cells(m, clean, corrupted, cells, {"ld": swapped})  # base = corrupted side of the swapped pair
    np.testing.assert_allclose(noising.effect("ld"), -denoising.effect("ld"), atol=1e-6)
    np.testing.assert_allclose(noising.share("ld"), denoising.share("ld"), atol=1e-6)


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_a_padded_batch_equals_single_runs_in_any_order(arch):
    m = model(arch)
    (base, mask, alone), (other, _, others) = (left_padded(tokens, [0, 3, 2]) for tokens in runs())
    cells = [*sites(m, "z", layers=[1]), *sites(m, "v", layers=[0], positions=[2]), *sites(m, "resid_pre")]
    r = readouts()
    together = patch_cells(m, base, other, cells, r, attention_mask=mask)
    order = [2, 0, 1]
    shuffled = patch_cells(
        m,
        base[order],
        other[order],
        cells[::-1],
        {n: Readout(n, x.answer[order], x.wrong[order]) for n, x in r.items()},
        attention_mask=mask[order],
        batch_rows=4,
    )
    for name, values in together.values.items():
        np.testing.assert_allclose(shuffled.values[name][::-1], values[:, order], atol=1e-5, err_msg=name)
        for i in range(N):
            one = {n: Readout(n, x.answer[i : i + 1], x.wrong[i : i + 1]) for n, x in r.items()}
            single = patch_cells(m, alone[i], others[i], cells, one)
            np.testing.assert_allclose(single.values[name][:, 0], values[:, i], atol=1e-5, err_msg=name)


def test_donors_take_the_activation_of_another_example():
    m, (base, other) = model("llama"), runs()
    cells = sites(m, "z")
    given = patch_cells(m, base, other, cells, readouts(), donors=[1, 2, 0])
    moved = patch_cells(m, base, other[[1, 2, 0]], cells, readouts())
    np.testing.assert_allclose(given.values["logit_diff"], moved.values["logit_diff"], atol=1e-6)
    np.testing.assert_allclose(
        given.other["logit_diff"], patch_cells(m, base, other, cells[:1], readouts()).other["logit_diff"]
    )


def test_an_example_without_the_position_is_undefined_and_the_others_are_not():
    m = model("llama")
    (base, mask, _), (other, _, _) = (left_padded(tokens, [0, 3, 2]) for tokens in runs())
    done = patch_cells(m, base, other, [Site(Component.Z, 0, 0, (7,))], readouts(), attention_mask=mask)
    assert np.isnan(done.values["logit_diff"]).tolist() == [[False, True, True]]
    with pytest.raises(InputError, match="Position 9"):
        patch_cells(m, base, other, [Site(Component.Z, 0, 0, (9,))], readouts(), attention_mask=mask)
    with pytest.raises(InputError, match="Position -10"):
        patch_cells(m, base, other, [Site(Component.Z, 0, 0, (-10,))], readouts(), attention_mask=mask)


def test_where_blocks_cannot_be_resumed_whole_forwards_give_the_same(monkeypatch):
    m, (base, other) = model("gemma2"), runs()
    cells = [*sites(m, "z"), *sites(m, "k")]
    fork = patch_cells(m, base, other, cells, readouts())
    monkeypatch.setattr(patching, "resumes_exactly", lambda _: False)
    hooks = patch_cells(m, base, other, cells, readouts())
    assert (fork.method, hooks.method) == ("fork", "hooks")
    np.testing.assert_allclose(fork.values["logit_diff"], hooks.values["logit_diff"], atol=1e-5)


def test_nothing_is_left_on_the_model():
    m, (base, other) = model("llama"), runs()
    hooks, before = n_hooks(m), weights(m)
    patch_cells(m, base, other, sites(m, "z"), readouts())
    assert n_hooks(m) == hooks
    assert all(torch.equal(before[name], p) for name, p in m.bridge.original_model.named_parameters())
    assert not any("forward" in x.__dict__ for x in m.bridge.original_model.modules())
    assert torch.equal(suffix.record(m, base).logits, suffix.record(m, base).logits)


def test_what_a_model_cannot_do_is_refused():
    base, other = runs()
    with pytest.raises(CapabilityError, match="head by head"):
        patch_cells(model("olmo2"), base, other, sites(model("olmo2"), "q"), readouts())
    with pytest.raises(CapabilityError):
        patch_cells(model("deepseek_v3"), base, other, sites(model("deepseek_v3"), "z"), readouts())


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ([], "at least one cell"),
        ([()], "at least one site"),
        ([Site(Component.Z, 3, 0)], "no layer 3"),
        ([Site(Component.Z, 0, 4)], "head from 0 to 3"),
        ([Site(Component.Z, 0)], "head from 0 to 3"),
        ([Site(Component.K, 0, 2)], "kv group from 0 to 1"),
        ([Site(Component.MLP_OUT, 0, 1)], "whole layer"),
    ],
)
def test_a_cell_that_does_not_exist_is_named(cells, words):
    base, other = runs()
    with pytest.raises(InputError, match=words):
        patch_cells(model("llama"), base, other, cells, readouts())


def test_unusable_runs_are_named():
    m, (base, other) = model("llama"), runs()
    with pytest.raises(InputError, match="not a component"):
        sites(m, "zz")
    with pytest.raises(InputError, match="one shape"):
        patch_cells(m, base, other[:, 1:], sites(m, "z"), readouts())
    right = torch.ones_like(base)
    right[1, -1] = 0
    with pytest.raises(InputError, match="Example 1 is padded on the right"):
        patch_cells(m, base, other, sites(m, "z"), readouts(), attention_mask=right)
    with pytest.raises(InputError, match="donors"):
        patch_cells(m, base, other, sites(m, "z"), readouts(), donors=[0, 1, 3])


def test_the_share_is_undefined_where_there_is_no_gap():
    values, base, other = np.array([[1.0, 1.0, 3.0]]), np.array([0.0, 1.0, 3.0]), np.array([2.0, 1.0, 3.05])
    np.testing.assert_allclose(share_of_gap(values, base, other), [[0.5, np.nan, 0.0]])
    np.testing.assert_allclose(share_of_gap(values, base, other, least=0.1), [[0.5, np.nan, np.nan]])
