"""Running only a circuit equals raw hooks, one set and one prompt at a time; and the empty and the whole circuit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.primitives.cases import left_padded, model, prompts, raw
from tests.reference import circuit_run as slow
from workbench.errors import InputError
from workbench.primitives.circuit_run import CircuitRun, complement
from workbench.primitives.senders import MLP
from workbench.primitives.sweep.readout import Readout

N, PADDING = 3, [0, 3, 2]
SETS = [
    [],
    [(0, 1), (1, 2), (2, 0)],
    [(0, 0), (0, 1), (0, 2), (0, 3), (1, 3), (2, 1), (2, 2), (0, MLP), (2, MLP)],
    [(layer, head) for layer in range(3) for head in (MLP, 0, 1, 2, 3)],
]


def readouts():
    g = torch.Generator().manual_seed(5)
    answer, wrong = torch.randint(4, 30, (N,), generator=g), torch.randint(30, 60, (N,), generator=g)
    return {"m": Readout("logit_diff", answer, wrong), "kl": Readout("kl")}


@pytest.mark.parametrize("mlps", [False, True])
@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_a_circuit_alone_equals_raw_hooks(arch, mlps):
    hf, m, metric = raw(arch), model(arch), readouts()["m"]
    (base, mask, alone), (other, _, other_alone) = (left_padded(prompts(N, 9, s), PADDING) for s in (0, 100))
    fills = {
        "resample": (other, [slow.outputs(hf, tokens) for tokens in other_alone]),
        "mean": ("mean", slow.means(hf, alone)),
        "zero": ("zero", [None] * N),
    }
    sets = [[node for node in nodes if mlps or node[1] != MLP] for nodes in SETS]
    for name, (fill, slow_fill) in fills.items():
        run = CircuitRun.of(m, base, fill, attention_mask=mask, mlps=mlps, batch_rows=5)
        got = run.measure(sets, readouts())["m"]
        for s, nodes in enumerate(sets):
            keep = {(layer, None if head == MLP else head) for layer, head in nodes}
            for i in range(N):
                logits = slow.run_circuit(hf, alone[i], keep, slow_fill[i], mlps=mlps)
                want = float(logits[0, metric.answer[i]] - logits[0, metric.wrong[i]])
                assert abs(got[s, i] - want) < 1e-5 * max(1, float(logits.abs().max())), (name, nodes, i)


def test_all_nodes_are_the_model_and_none_the_other_run():
    m, (base, other) = model("llama"), (prompts(N, 9, 0), prompts(N, 9, 100))
    run = CircuitRun.of(m, base, other)
    full = run.full(readouts())
    np.testing.assert_allclose(run.measure([run.nodes], readouts())["m"][0], full["m"], atol=1e-5)
    assert np.abs(full["kl"]).max() < 1e-6
    nothing = CircuitRun.of(m, base, base).empty(readouts())
    np.testing.assert_allclose(nothing["m"], full["m"], atol=1e-5)
    assert len(complement(run.nodes, [(0, 1)])) == len(run.nodes) - 1


def test_what_is_no_node_is_refused():
    m, base = model("gpt2"), prompts(N, 9, 0)
    run = CircuitRun.of(m, base, "mean")
    with pytest.raises(InputError, match="mlps is off"):
        run.measure([[(0, MLP)]], readouts())
    with pytest.raises(InputError, match=r"head \(0, 9\)"):
        run.measure([[(0, 9)]], readouts())
    with pytest.raises(InputError, match="median"):
        CircuitRun.of(m, base, "median")  # type: ignore[arg-type]
