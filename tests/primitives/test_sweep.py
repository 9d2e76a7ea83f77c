"""A sweep gives, for every unit and prompt, what a full forward with hooks on the raw modules gives."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.primitives.cases import left_padded, n_hooks, prompts, weights
from tests.reference import ablation as reference
from tests.tiny import PAD, tiny, tiny_hf
from workbench.errors import CapabilityError, InputError
from workbench.models import Model, load_model
from workbench.primitives.forward import forward
from workbench.primitives.sweep import METRICS, Edit, Readout, all_heads, all_kv_groups, exactness, sweep
from workbench.primitives.sweep.edit import shuffled

# the package exports a function of the module's name
exactness_module = importlib.import_module("workbench.primitives.sweep.exactness")
STORIES = Path(__file__).parents[3] / "shared" / "models" / "stories260K"
ARCHS = ("gpt2", "llama", "neox", "gptj", "qwen3", "gemma2", "olmo2", "mistral", "gptoss")
EDITS = ("zero", "scale", "mean", "resample", "patch", "uniform")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
N, LENGTH = 3, 12


@cache
def pair(arch: str, dtype: torch.dtype) -> tuple[Model, torch.nn.Module]:
    """The model under test, and the raw one with equal weights."""
    if arch == "stories260K":
        from transformers import AutoModelForCausalLM

        hf = AutoModelForCausalLM.from_pretrained(STORIES, dtype=dtype, attn_implementation="eager").eval()
        return load_model(str(STORIES), device="cpu", dtype=str(dtype).removeprefix("torch.")), hf
    return tiny(arch, dtype=dtype), tiny_hf(arch, dtype=dtype)


def likely(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The two likeliest tokens: their rank is not decided by rounding, as it is among hundreds of equal ones."""
    return logits.argsort(descending=True)[:, :2].T


def own_precision(softmax):
    """Hugging Face rounds NeoX's attention to float32 in a float64 model; TransformerLens does not."""
    return lambda x, dim=-1, dtype=None: softmax(x, dim=dim, dtype=x.dtype if x.dtype is torch.float64 else dtype)


def edit_of(kind: str) -> Edit:
    return Edit(kind, alpha=-0.5) if kind == "scale" else Edit(kind)


def wanted(hf, tokens: Tensor, mask: Tensor | None, other: Tensor, kind: str, units) -> Tensor:
    """Logits `[unit, example, vocab]` by the reference. `other` holds, for resampling, the shuffled prompts."""
    z, _ = reference.read(hf, tokens, mask)
    z_other, _ = reference.read(hf, other, mask)
    real = torch.ones_like(tokens) if mask is None else mask

    def new(layer: int, head: int, old: Tensor, v: Tensor) -> Tensor:
        if kind == "zero":
            return torch.zeros_like(old)
        if kind == "scale":
            return -0.5 * old
        if kind == "mean":
            chosen = z[layer][:, :, head][real.bool()]
            return chosen.double().mean(0).to(old.dtype).expand_as(old)
        if kind == "uniform":
            return reference.even(hf, layer, v, mask)
        return z_other[layer][:, :, head]

    return torch.stack([reference.edited(hf, tokens, mask, unit, new) for unit in units])


def check(result, want: Tensor, base: Tensor, name: str, answer: Tensor, wrong: Tensor, tolerance: float) -> None:
    expected = [reference.metric(name, rows, base, answer, wrong) for rows in want]
    assert np.abs(result.values - np.array(expected)).max() <= tolerance
    assert np.abs(result.base - reference.metric(name, base, base, answer, wrong)).max() <= tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("arch", [*ARCHS, "stories260K"])
def test_every_edit_of_every_head_equals_raw_hooks(arch, dtype, monkeypatch):
    if arch == "stories260K" and not STORIES.exists():
        pytest.skip("needs the shared model stories260K")
    if arch == "gptoss" and dtype is torch.float64:
        pytest.skip("torch has no float64 kernel for its experts")
    model, hf = pair(arch, dtype)
    if arch == "neox" and dtype is torch.float64:
        monkeypatch.setattr(torch.nn.functional, "softmax", own_precision(torch.nn.functional.softmax))
    tokens, other = prompts(N, LENGTH), prompts(N, LENGTH, seed=1)
    forward(model, tokens)  # TransformerLens leaves hooks of its own behind at a model's first forward
    before, hooks = weights(model), n_hooks(model)
    units = all_heads(model)
    base = reference.logits(hf, tokens)
    answer, wrong = likely(base)
    for kind in EDITS:
        source = tokens[shuffled(torch.zeros(N), 0)] if kind == "resample" else other
        want = wanted(hf, tokens, None, source, kind, units)
        for name in METRICS:
            result = sweep(
                model,
                tokens,
                units=units,
                edit=edit_of(kind),
                metric=Readout(name, answer, wrong),
                other=other if kind == "patch" else None,
            )
            assert result.method == "fork"
            check(result, want, base, name, answer, wrong, TOLERANCE[dtype])
    assert n_hooks(model) == hooks
    assert all(torch.equal(before[name], weight) for name, weight in weights(model).items())


def masks(side: str) -> tuple[Tensor, Tensor]:
    """A batch of three prompts of different length, padded on one side, and its mask."""
    tokens = prompts(N, LENGTH)
    if side == "left":
        padded, mask, _ = left_padded(tokens, [4, 0, 2])
        return padded, mask
    mask = (torch.arange(LENGTH)[None] < torch.tensor([LENGTH - 4, LENGTH, LENGTH - 2])[:, None]).long()
    return tokens * mask + PAD * (1 - mask), mask


@pytest.mark.parametrize("kind", ["zero", "mean", "uniform", "patch"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("arch", ["gpt2", "llama", "neox", "gemma2", "mistral", "gptoss"])
def test_a_padded_batch_equals_raw_hooks(arch, side, kind):
    model, hf = pair(arch, torch.float32)
    tokens, mask = masks(side)
    other = prompts(N, LENGTH, seed=1)
    units = all_heads(model)[::3]
    base = reference.logits(hf, tokens, mask)
    answer, wrong = likely(base)
    want = wanted(hf, tokens, mask, other, kind, units)
    readout = Readout("logit_diff", answer, wrong)
    given = other if kind == "patch" else None
    result = sweep(model, tokens, units=units, edit=kind, metric=readout, attention_mask=mask, other=given)
    check(result, want, base, "logit_diff", answer, wrong, 1e-5)
    for i in range(N):  # and what the prompt alone gives, whatever shares its batch
        if kind == "mean":
            continue
        real = mask[i].bool()
        alone = sweep(
            model,
            tokens[i : i + 1, real],
            units=units,
            edit=kind,
            metric=Readout("logit_diff", answer[i : i + 1], wrong[i : i + 1]),
            other=None if given is None else given[i : i + 1, real],
        )
        np.testing.assert_allclose(result.values[:, i], alone.values[:, 0], atol=2e-5)


@pytest.mark.parametrize("arch", ["gpt2", "llama", "neox", "gemma2", "olmo2"])
@pytest.mark.parametrize("kind", EDITS)
def test_sets_of_heads_in_one_layer_and_across_layers(arch, kind):
    model, hf = pair(arch, torch.float32)
    tokens, other = prompts(N, LENGTH), prompts(N, LENGTH, seed=1)
    units = [((1, 0), (1, 3)), ((0, 1), (2, 2)), ((0, 0), (0, 2), (1, 1), (2, 3)), ((2, 0), (2, 1))]
    base = reference.logits(hf, tokens)
    answer, wrong = likely(base)
    source = tokens[shuffled(torch.zeros(N), 0)] if kind == "resample" else other
    want = wanted(hf, tokens, None, source, kind, units)
    if kind == "scale":  # of what the lower edit leaves, which is what `new` above is given
        want = torch.stack(
            [reference.edited(hf, tokens, None, unit, lambda le, h, old, v: -0.5 * old) for unit in units]
        )
    given = other if kind == "patch" else None
    for method in ("fork", "hooks"):
        result = sweep(
            model,
            tokens,
            units=units,
            edit=edit_of(kind),
            metric=Readout("logit_diff", answer, wrong),
            other=given,
            method=method,
        )
        assert result.method == method
        check(result, want, base, "logit_diff", answer, wrong, 1e-5)


def test_a_kv_group_is_its_query_heads():
    model, _ = pair("llama", torch.float32)
    assert all_kv_groups(model)[:3] == [((0, 0), (0, 1)), ((0, 2), (0, 3)), ((1, 0), (1, 1))]
    assert all_kv_groups(pair("gpt2", torch.float32)[0]) == all_heads(pair("gpt2", torch.float32)[0])


@pytest.mark.parametrize("method", ["fork", "hooks"])
@pytest.mark.parametrize("arch", ["gpt2", "llama", "neox", "gemma2"])
def test_a_control_is_a_random_push_as_long_as_the_edit(arch, method):
    model, hf = pair(arch, torch.float32)
    tokens = prompts(N, LENGTH)
    base = reference.logits(hf, tokens)
    answer, wrong = likely(base)
    units = [((0, 1),), ((2, 3),)]
    readout = Readout("logit_diff", answer, wrong)
    result = sweep(model, tokens, units=units, edit="zero", metric=readout, controls=2, seed=5, method=method)
    z, _ = reference.read(hf, tokens)
    for draw in range(2):
        for number, ((layer, head),) in enumerate(units):
            length = reference.write(hf, layer, head, z[layer][:, :, head]).norm(dim=-1, keepdim=True)
            pushes = [np.random.default_rng([5, draw, number, i]).standard_normal(32) for i in range(N)]
            way = torch.tensor(np.stack([p / np.linalg.norm(p) for p in pushes]), dtype=torch.float32)
            got = reference.metric(
                "logit_diff", reference.pushed(hf, tokens, None, layer, length * way[:, None]), base, answer, wrong
            )
            np.testing.assert_allclose(result.controls[draw, number], got, atol=1e-5)
    again = sweep(model, tokens, units=units[1:], edit="zero", metric=readout, seed=5, method=method)
    np.testing.assert_array_equal(again.values[0], result.values[1])


def test_changing_nothing_changes_nothing():
    model, _ = pair("gpt2", torch.float64)
    tokens = prompts(N, LENGTH)
    result = sweep(model, tokens, units=all_heads(model), edit=Edit("scale", alpha=1.0), metric=Readout("kl"))
    assert np.abs(result.values).max() < 1e-12
    patched = sweep(model, tokens, units=all_heads(model), edit="patch", other=tokens, metric=Readout("kl"))
    assert np.abs(patched.values).max() < 1e-12


def test_where_a_fork_is_not_exact_it_runs_hooks_and_says_so(monkeypatch):
    model, hf = tiny("llama", seed=3), tiny_hf("llama", seed=3)
    honest = exactness_module.run_fork
    monkeypatch.setattr(exactness_module, "run_fork", lambda *args: honest(*args) + 1e-2)
    tokens = prompts(N, LENGTH)
    base = reference.logits(hf, tokens)
    answer, wrong = likely(base)
    readout = Readout("logit_diff", answer, wrong)
    result = sweep(model, tokens, units=all_heads(model), edit="zero", metric=readout)
    assert result.method == "hooks"
    assert "not exact" in result.notes[0] and "full forwards" in result.notes[0]
    check(result, wanted(hf, tokens, None, tokens, "zero", all_heads(model)), base, "logit_diff", answer, wrong, 1e-5)
    with pytest.raises(CapabilityError, match="cannot be forked"):
        sweep(model, tokens, units=all_heads(model), edit="zero", metric=readout, method="fork")


def test_a_model_whose_heads_cannot_be_edited_is_refused():
    model, _ = pair("deepseek_v3", torch.float32)
    with pytest.raises(CapabilityError, match="head_axis_ok"):
        sweep(model, prompts(), units=[(0, 0)], edit="zero", metric=Readout("kl"))


def test_half_precision_agrees_with_hooks_to_its_rounding():
    model, _ = pair("llama", torch.bfloat16)
    tokens = prompts(N, LENGTH)
    assert exactness(model).way is not None
    forked, hooked = (
        sweep(model, tokens, units=all_heads(model), edit="zero", metric=Readout("kl"), method=method).values
        for method in ("fork", "hooks")
    )
    assert np.corrcoef(forked.ravel(), hooked.ravel())[0, 1] > 0.98


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"units": [(9, 0)]}, r"no head \(9, 0\)"),
        ({"units": []}, "at least one unit"),
        ({"units": [3]}, "set of"),
        ({"edit": "zeroes"}, "Did you mean 'zero'"),
        ({"edit": "patch"}, "needs `other`"),
        ({"edit": "resample", "attention_mask": "ragged"}, "second example as long"),
        ({"budget": 0}, "holds nothing"),
        ({"attention_mask": torch.ones(2, 3)}, "attention_mask"),
        ({"attention_mask": torch.zeros(N, LENGTH).long()}, "all padding"),
        ({"units": [((0, 0), (1, 0))], "controls": 1}, "one layer"),
        ({"metric": lambda logits, rows: logits[:, 0], "checkpoint": "/nowhere"}, "key"),
    ],
)
def test_what_cannot_be_swept_is_named(options, message):
    model, _ = pair("gpt2", torch.float32)
    if options.get("attention_mask") is not None and isinstance(options["attention_mask"], str):
        options = {**options, "attention_mask": masks("left")[1]}
    with pytest.raises(InputError, match=message):
        sweep(
            model, prompts(N, LENGTH), **{"units": all_heads(model), "edit": "zero", "metric": Readout("kl"), **options}
        )


def test_a_metric_that_needs_a_token_asks_for_it():
    with pytest.raises(InputError, match="wrong token"):
        Readout("logit_diff", answer=torch.tensor([1]))
    with pytest.raises(InputError, match="Did you mean"):
        Readout("logit_dif")
    with pytest.raises(InputError, match="needs alpha"):
        Edit("scale")
