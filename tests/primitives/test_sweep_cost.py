"""The cost model counts what is computed: checked against torch's own FLOP counter."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.primitives.cases import model, prompts
from workbench.primitives.forward import forward
from workbench.primitives.sweep import Readout, Shape, all_heads, estimate, exactness, sweep

KL = Readout("kl")


def counted(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("arch", ["gpt2", "llama", "neox", "gptj", "gemma2", "qwen3"])
def test_a_forward(arch):
    m, tokens = model(arch), prompts(2, 16)
    assert counted(lambda: forward(m, tokens)) == pytest.approx(2 * Shape.of(m).full(16, logits_at=16), rel=0.02)


@pytest.mark.parametrize("arch", ["gpt2", "llama", "neox", "gptj", "gemma2", "qwen3"])
@pytest.mark.parametrize("method", ["fork", "hooks"])
def test_a_sweep(arch, method):
    m, tokens = model(arch), prompts(3, 24)
    exactness(m)  # not part of a sweep's cost: once per model
    planned = estimate(m, tokens, units=all_heads(m), edit="zero", method=method, timed=False)
    found = counted(lambda: sweep(m, tokens, units=all_heads(m), edit="zero", metric=KL, method=method))
    assert found == pytest.approx(planned.flops, rel=0.03)
    if method == "fork":
        assert planned.speedup > 1.5


def test_the_estimate_says_how_many_forwards_and_how_long():
    m, tokens = model("gpt2"), prompts(3, 24)
    planned = estimate(m, tokens, units=all_heads(m), edit="uniform", controls=1)
    result = sweep(m, tokens, units=all_heads(m), edit="uniform", metric=KL, controls=1)
    assert planned.seconds and planned.seconds > 0 and result.cost.seconds and result.cost.seconds > 0
    assert {**planned.to_dict()} == result.cost.to_dict()
    assert "12 units x 3 examples x 2 edits by fork" in str(planned)
    assert planned.rows * planned.forwards >= 12 * 3 * 2


def test_a_smaller_budget_makes_smaller_batches():
    m, tokens = model("gpt2"), prompts(4, 24)
    wide = estimate(m, tokens, units=all_heads(m), edit="zero", timed=False)
    row = 2 * Shape.of(m).row_bytes(24, 4)
    narrow = estimate(m, tokens, units=all_heads(m), edit="zero", budget=2 * row, timed=False)
    assert narrow.rows == 2 < wide.rows
    assert narrow.forwards > wide.forwards and narrow.bytes < wide.bytes


def test_cost_grows_as_the_model_does():
    deep, shallow = model("gpt2"), Shape.of(model("gpt2"))
    assert deep.n_layers == len(shallow.mlp)
    way = exactness(deep).way
    assert way is not None
    costs = [shallow.fork(layer, 64, 1, way) for layer in range(deep.n_layers)]
    assert costs == sorted(costs, reverse=True), "the later the edit, the less is left to run"
    assert torch.tensor([shallow.full(n, logits_at=n) for n in (16, 32, 64)]).diff().min() > 0
