"""Masks on head outputs, next to plain hooks on the raw model; and that a learned one finds a circuit."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from tests.analyses.examples import dataset
from tests.tiny import tiny
from workbench import organisms, tasks
from workbench.analyses.sae_circuits import evaluate, masks
from workbench.errors import InputError
from workbench.models import load_model
from workbench.tasks import PairDataset, PairSample


@pytest.fixture(scope="module")
def model():
    return tiny("gpt2")


@pytest.fixture(scope="module")
def data(model):
    return dataset(model, "pairs", 5, ragged=True)


@contextmanager
def masked(model, m, other=None, seen=None):
    """Each head's output times m `[layer, head]`, plus what is left of `other`; what it was goes to `seen`."""
    handles = []
    for layer, block in enumerate(model.hf.transformer.h):

        def put(module, args, layer=layer):
            z = args[0].unflatten(-1, (model.n_heads, -1))
            if seen is not None:
                seen.append(z.detach())
            mixed = z * m[layer][:, None]
            if other is not None:
                mixed = mixed + other[layer] * (1 - m[layer])[:, None]
            return (mixed.flatten(-2),)

        handles.append(block.attn.c_proj.register_forward_pre_hook(put))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def logits(model, tokens):
    return model.hf(torch.tensor([tokens])).logits[0, -1]


def test_hisp_is_the_gradient_at_the_open_mask(model, data):
    slow = np.zeros((model.n_layers, model.n_heads))
    for pair in data:
        m = torch.ones(model.n_layers, model.n_heads, requires_grad=True)
        with masked(model, m), torch.enable_grad():
            out = logits(model, pair.clean)
            (gradient,) = torch.autograd.grad(out[pair.answer] - out[pair.wrong], m)
        slow += gradient.abs().numpy() / len(data)
    np.testing.assert_allclose(masks.hisp(model, data.batch()), slow, rtol=1e-3, atol=1e-6)


def test_a_mask_mixes_the_two_prompts(model, data):
    m = torch.rand(model.n_layers, model.n_heads, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    m[0, :2] = torch.tensor([0.0, 1.0])
    slow = []
    with torch.no_grad():
        for pair in data:
            seen: list[torch.Tensor] = []
            with masked(model, torch.ones_like(m), seen=seen):
                logits(model, pair.corrupted)
            base = logits(model, pair.clean).log_softmax(-1)
            with masked(model, m, seen):
                found = logits(model, pair.clean).log_softmax(-1)
            slow.append(float((base.exp() * (base - found)).sum()))
        mixing = masks._Masked(model, data.batch())
        rows = torch.arange(len(data))
        got = mixing.divergence(rows, m.expand(len(data), *m.shape))
        np.testing.assert_allclose(got.numpy(), slow, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(mixing.divergence(rows, torch.ones(len(data), *m.shape)), torch.zeros(len(data)))


def test_a_learned_mask_finds_the_circuit_and_is_the_same_again():
    model = load_model("organism:siit-ioi")
    pairs: Any = tasks.resolve(model, {"task": "ioi", "n": 16})
    batch = pairs.batch()
    found = [masks.subnetwork_probing(model, batch, steps=60, seed=0) for _ in range(2)]
    np.testing.assert_array_equal(found[0], found[1])
    true = np.zeros((model.n_layers, model.n_heads), dtype=bool)
    (truth,) = [truth for truth in organisms.card("siit-ioi")["truths"] if truth["claim"] == "circuit"]
    true[tuple(np.array(truth["heads"]).T)] = True
    assert evaluate.auc(found[0], true) == 1


def test_prompts_that_do_not_differ_leave_nothing_to_learn(model, data):
    same = PairDataset("same", tuple(PairSample(p.id, p.clean, p.clean, p.answer, p.wrong) for p in data))
    with pytest.raises(InputError, match="nothing to keep"):
        masks.subnetwork_probing(model, same.batch(), steps=1, seed=0)
