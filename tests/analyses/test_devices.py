"""Every registered analysis on a model that is spread over three devices gives what it gives on one, to the last bit.

The devices are make-believe (`tests/simulated_devices.py`): they compute on the CPU and raise when tensors of different
devices meet. `tests/tiny_split.py` says where the parts of a model are.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tests.analyses.examples import QUICK, dataset
from tests.simulated_devices import device, simulated_devices
from tests.tiny import tiny
from tests.tiny_split import split_tiny, split_tiny_vision
from tests.tiny_vision import tiny_vision
from workbench import analyses
from workbench.models.model import Model
from workbench.primitives.attribution.wiring import wiring
from workbench.primitives.freezing import require_freezing
from workbench.primitives.separable import require_heads, require_outputs
from workbench.primitives.suffix import resumes_exactly
from workbench.primitives.sweep.exactness import exactness

# grouped queries and an unembedding of its own for all; learned positions and a tied one for those that read weights
CASES = [(name, "llama") for name in analyses.names()]
CASES += [(name, "gpt2") for name in ("attribution", "direct_logit_attribution", "path_patching", "retrieval")]
SAME_TO_ROUNDING = {"harmful_singular_values"}  # LAPACK's last bit depends on where in memory its matrix is


@pytest.fixture(autouse=True)
def devices() -> Iterator[None]:
    with simulated_devices():
        yield


@functools.cache
def models(sees: bool, arch: str) -> tuple[Model, Model]:
    """The same model on one device and on three; analyses leave nothing behind in them."""
    if sees:
        arch = {"gpt2": "llava", "llama": "llava-gqa"}[arch]
        return tiny_vision(arch), split_tiny_vision(arch)
    return tiny(arch), split_tiny(arch)


@pytest.mark.parametrize(("name", "arch"), CASES)
def test_three_devices_give_what_one_gives(name, arch):
    analysis = analyses.get(name)
    params = analysis.parse(QUICK[name])
    both = models(analysis.data_kind == "images", arch)
    want, got = (analysis(m, dataset(m, analysis.data_kind, ragged=True), params, seed=0) for m in both)
    assert got.heads.to_csv() == want.heads.to_csv()
    assert got.arrays.keys() == want.arrays.keys()
    for key, values in want.arrays.items():
        if key in SAME_TO_ROUNDING:
            np.testing.assert_allclose(got.arrays[key], values, rtol=1e-12)
        else:
            np.testing.assert_array_equal(got.arrays[key], values, err_msg=key)
    for key, table in want.tables.items():
        assert got.tables[key].equals(table), key
    assert told(got.summary) == told(want.summary), "nothing was given up on the way"


def told(summary: dict[str, Any]) -> str:
    """A summary without what the kind of machine decides: rows of a batch, and their memory."""
    cost = {key: value for key, value in summary.get("cost", {}).items() if key not in ("rows", "bytes")}
    return str({**summary, "cost": cost})


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_the_fast_ways_are_found_exact(arch):
    """A fast path that stumbles over devices is measured to be inexact, and the slow one gives the same numbers."""
    one, three = models(False, arch)
    assert three.capabilities == one.capabilities and three.capabilities.fork_exact
    assert exactness(three) == exactness(one) and exactness(three).way is not None
    assert resumes_exactly(three)
    assert wiring(three).graph == wiring(one).graph
    for mlps in ("recompute", "freeze"):
        require_freezing(three, mlps)
        require_freezing(three, mlps, mlps_send=True)
    require_heads(three)
    require_outputs(three)


# ---- the simulation itself


@pytest.mark.parametrize(
    "mix",
    [
        lambda a, b: a + b,
        lambda a, b: a @ b.T,
        lambda a, b: torch.stack([a, b]),
        lambda a, b: torch.where(b > 0, a, 0),
        lambda a, b: a[b.argsort(-1)],
        lambda a, b: a.add_(b),
        lambda a, b: a + b.cpu(),
        lambda a, b: a * b.sum(),
        lambda a, b: torch.lerp(a, b, 0.5),
    ],
)
def test_tensors_of_two_devices_do_not_meet(mix):
    a, b = (torch.arange(4.0).expand(4, 4).clone().to(device(k)) for k in (0, 1))
    with pytest.raises(RuntimeError, match="same device"):
        mix(a, b)


def test_an_analysis_that_mixes_devices_is_caught(monkeypatch):
    """A step that brings something from the tokens' device to every layer."""
    from workbench.primitives.sweep import base

    def careless(model, tokens, mask, layers):
        found = real(model, tokens, mask, layers)
        return {layer: z + z.new_zeros(1).to(model.device) for layer, z in found.items()}

    real = base.read_z
    monkeypatch.setattr(base, "read_z", careless)
    analysis, (_, model) = analyses.get("ablation"), models(False, "llama")
    with pytest.raises(RuntimeError, match="same device"):
        analysis(model, dataset(model, "pairs"), analysis.parse({"edit": "mean", "bootstrap": 20}), seed=0)


def test_what_cuda_allows_is_allowed():
    a = torch.arange(6.0).reshape(2, 3).to(device(0))
    assert torch.equal((a * torch.tensor(2.0)).cpu(), torch.arange(6.0).reshape(2, 3) * 2)
    assert a[torch.tensor([1])].device == device(0)
    b = torch.zeros(2, 3, device=device(1))
    b[:, 1] = a[:, 2]
    assert b.tolist() == [[0, 2, 0], [0, 5, 0]]
    with pytest.raises(TypeError, match="numpy"):
        a.numpy()
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, generator=torch.Generator(), device=device(0))


def test_a_move_is_a_copy():
    a = torch.zeros(3, device=device(0))
    for moved in (a.to(device(1)), a.cpu(), a.to(device=device(1), dtype=torch.float32)):
        moved += 1
    assert a.tolist() == [0, 0, 0]


def test_gradients_come_back_over_the_border():
    x = torch.arange(3.0).to(device(0)).requires_grad_()
    weight = torch.full((3,), 2.0, device=device(1))
    y = (x.to(device(1)) * weight).square().sum()
    (gradient,) = torch.autograd.grad(y, x)
    assert (y.device, gradient.device) == (device(1), device(0))
    assert gradient.tolist() == [0, 8, 16]
