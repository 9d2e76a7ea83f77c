"""A sweep gives, for every unit and prompt, what a full forward with hooks on the raw modules gives."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.primitives.cases import left_padded, n_hooks, prompts, weights
from tests.reference import ablation as reference
from tests.tiny import tiny, tiny_hf
from workbench.errors import CapabilityError, InputError
from workbench.models import Model, load_model
from workbench.primitives.sweep.edit import shuffled
from workbench.primitives.sweep import METRICS, Edit, Readout, all_heads, all_kv_groups, exactness, sweep

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
