"""Greedy removal equals its slow twin, finds what was planted, and says how small a trained model's circuits are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.analyses.test_circuit import TASKS, truth
from tests.primitives.cases import model, prompts, raw
from tests.reference import circuit_run as slow
from workbench import analyses, organisms, tasks
from workbench.analyses.circuit import CircuitParams, views
from workbench.analyses.circuit.faithful import random_circuit
from workbench.analyses.circuit.greedy import removals
from workbench.errors import InputError
from workbench.models import load_model
from workbench.tasks import PairDataset, PairSample

CIRCUIT = analyses.get("circuit")
LEAN: dict[str, Any] = {"method": "greedy", "roles": False, "bootstrap": 20}


def test_every_removal_is_the_best_one_by_raw_hooks():
    tokens = {name: prompts(2, 6, seed) for name, seed in (("clean", 0), ("corrupted", 100))}
    data = PairDataset(
        "random",
        tuple(
            PairSample(
                str(i), tuple(tokens["clean"][i].tolist()), tuple(tokens["corrupted"][i].tolist()), 5 + i, 35 + i
            )
            for i in range(2)
        ),
    )
    m, hf = model("gpt2"), raw("gpt2")
    params = CircuitParams(**LEAN, min_gap=0.0, ablation="zero")
    for view in views.make(m, data, params).all:
        fills = [None if view.is_ablation else slow.outputs(hf, row[None]) for row in tokens["corrupted"]]

        def metric(keep, fills=fills):
            values = []
            for pair, row, fill in zip(data, tokens["clean"], fills, strict=True):
                logits = slow.run_circuit(hf, row[None], set(keep), fill, mlps=False)[0]
                values.append(float(logits[pair.answer] - logits[pair.wrong]))
            return float(np.mean(values))

        left = {(layer, head) for layer in range(m.n_layers) for head in range(m.n_heads)}
        empty, full = metric(()), metric(left)
        for got, f in removals(views.circuit_run(m, view, params), view, empty, full):
            assert set(got) < left and len(got) == len(left) - 1
            shares = {node: (metric(left - {node}) - empty) / (full - empty) for node in left}
            (gone,) = left - set(got)
            assert f == pytest.approx(shares[gone], abs=1e-4)
            assert abs(1 - f) <= min(abs(1 - share) for share in shares.values()) + 1e-4
            left = set(got)
        assert not left


@pytest.mark.parametrize("name", TASKS)
def test_what_was_planted_is_left(name):
    planted = load_model(f"organism:{name}")
    sees_all = {"planted-ioi": "redraw", "planted-colored": "context"}[name]
    data = tasks.resolve(planted, {"task": TASKS[name], "n": 12, "corruption": sees_all})
    params = {**LEAN, "faithfulness": None, "corruptions": [sees_all], "ablation": None}
    result = CIRCUIT(planted, data, CIRCUIT.parse(params), seed=0)
    heads, _ = truth(organisms.card(name))
    assert {tuple(head) for head in result.summary["heads"]} == heads
    assert not len(result.tables["edges"])


@pytest.mark.parametrize(("task", "n"), [("ioi", 32), ("colored_objects", 64)])
def test_in_a_trained_model_seven_of_24_heads_keep_the_answers_probability(task, n):
    multitask = load_model("organism:multitask")
    params = CircuitParams(**LEAN, metric="prob", corruptions=(), faithful=0.95, faithfulness=None)
    data, others = (tasks.circuits.task(task, multitask, n, split="held_out", seed=s) for s in (0, 1))
    found = CIRCUIT(multitask, data, params, seed=0).summary
    assert found["share_of_heads"] <= 0.3
    assert "removed one by one" in found["convention"]
    (view,) = views.make(multitask, others, params).all  # prompts by which they were not chosen
    run = views.circuit_run(multitask, view, params)
    circuit = [tuple(head) for head in found["heads"]]
    random = [random_circuit(circuit, run.nodes, np.random.default_rng(s)) for s in range(5)]
    kept, empty, *chance = run.measure([circuit, (), *random], {"m": view.readout})["m"].mean(axis=1)
    assert 0.9 <= (kept - empty) / (view.base.mean() - empty) <= 1.1
    assert (max(chance) - empty) / (view.base.mean() - empty) < 0.7


def test_without_corruptions_there_must_be_an_ablation():
    for wrong in ({"ablation": None}, {"method": "attribution"}):
        with pytest.raises(InputError, match="without corruptions"):
            CIRCUIT.parse({"method": "greedy", "corruptions": [], **wrong})
