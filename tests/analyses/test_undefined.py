"""An undefined value is never ranked, never taken for 0 and never averaged in."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from workbench.analyses import overlap
from workbench.analyses.circuit import roles, scores, table
from workbench.analyses.circuit.discover import Measured
from workbench.analyses.circuit.graph import CircuitGraph
from workbench.analyses.circuit.params import CircuitParams
from workbench.analyses.overlap import agree
from workbench.analyses.overlap.effects import TaskEffects, View, visibility
from workbench.analyses.retrieval import properties
from workbench.analyses.sae_circuits import tables as sae_tables
from workbench.analyses.ships import measure as ships
from workbench.analyses.var import measure as var
from workbench.primitives import attribution

NAN = float("nan")


def by_view(*jaccard: float) -> dict[str, Any]:
    rows = [{"a": "x", "view_a": str(i), "b": "y", "view_b": "0", "jaccard": value} for i, value in enumerate(jaccard)]
    pairs = pd.DataFrame([{"level": "heads", "a": "x", "b": "y", "jaccard": 0.5}])
    return {"pairs": pairs, "by_view": pd.DataFrame(rows)}


def test_two_views_that_show_no_head_are_not_the_lowest_overlap():
    found = overlap._summary([], by_view(NAN, 0.5, 0.25))
    assert found["lowest_with_one_view_each"]["jaccard"] == 0.25
    assert "lowest_with_one_view_each" not in overlap._summary([], by_view(NAN, NAN))


def task_effects(*views: np.ndarray) -> TaskEffects:
    made = [
        View(f"v{i}", "corruption", "", share=share[None], null=None, clean=1.0, other=0.0)
        for i, share in enumerate(views)
    ]
    return TaskEffects("task", None, tuple(made), (), 0.1)  # type: ignore[arg-type]


def test_a_head_s_best_view_is_one_in_which_it_has_an_effect():
    task = task_effects(np.array([[NAN, NAN]]), np.array([[0.0, NAN]]))
    assert task.best.tolist() == [[1, 0]]
    np.testing.assert_array_equal(task.effect, [[0.0, NAN]])


def test_a_head_without_an_effect_is_in_no_circuit_however_low_the_bar():
    task = replace(task_effects(np.array([[NAN, 0.0]])), share=0.0)
    assert task.circuit() == ((0, 1),)
    assert agree._inside(task, np.ones((1, 1))).tolist() == [[[False, True]]]
    assert visibility(task, {(0, 0), (0, 1)})["sees"].tolist() == [False, True]


def measured(share: Any) -> Measured:
    found = Measured(["one", "two"], ["0.0", "0.1"], 1)
    found.add("logits", 1, np.array(share))  # [view, sender, example]
    found.passes["logits"] = np.array([[False, False], [True, False]])
    found.q["logits"] = np.full((2, 2), NAN)
    return found


def test_an_edge_has_the_effect_of_a_view_that_defines_it():
    (edge,) = measured([[[NAN], [NAN]], [[0.5], [NAN]]])._edges("logits", [0, 1])
    assert (edge.effect, edge.view) == (0.5, "two")


def test_a_head_without_another_one_to_compare_with_has_no_null():
    model = SimpleNamespace(n_layers=1, n_heads=2, n_kv_heads=2, name="m", fingerprint="f", basis="raw")
    found = measured([[[NAN], [NAN]], [[0.5], [NAN]]])
    heads, arrays = table.head_table(model, found, CircuitGraph((), (), 1), CircuitParams(bootstrap=5), 0)  # type: ignore[arg-type]
    assert heads["score"][0] == 0.5 and np.isnan(arrays["null_per_example"]).all()
    assert np.isnan(heads["null_mean"]).all() and np.isnan(heads["null_p"]).all()


def test_attention_that_no_prompt_allows_is_not_said_to_be_zero():
    seen = {"anywhere>previous": 0.5, "repeated>earlier": NAN}
    assert roles._looks(seen) == roles.Role("previous token", "attention from anywhere to previous 0.50")
    assert roles._looks({}).name == "other" and "0.00" not in roles._looks({}).basis


def test_an_undefined_prompt_takes_no_edge_away(monkeypatch):
    graph = SimpleNamespace(senders=["s0", "s1"], receivers=["r0"], exists=lambda: np.ones((2, 1), dtype=bool))
    made = torch.tensor([[[0.1], [0.9]], [[NAN], [NAN]]])  # [example, sender, receiver]
    monkeypatch.setattr(attribution, "wiring", lambda _: SimpleNamespace(graph=graph))
    monkeypatch.setattr(attribution, "edge_scores", lambda *_, **__: SimpleNamespace(scores=made))
    monkeypatch.setattr(attribution, "bytes_per_example", lambda *_: 1)
    monkeypatch.setattr(scores, "sender", lambda node: node)
    monkeypatch.setattr(scores, "receiver", lambda node: node)
    tokens = torch.zeros(2, 3, dtype=torch.long)
    view = SimpleNamespace(tokens=tokens, runs=SimpleNamespace(base=SimpleNamespace(tokens=tokens)), base=[0.0, 0.0])
    view.readout, view.share = None, lambda effect: effect
    views = SimpleNamespace(all=(view,), names=["v"], mask=None)
    model = SimpleNamespace(n_heads=1, n_kv_heads=1)
    params = SimpleNamespace(n_edges=1.5, batch_rows=None, steps=1)
    found = scores.attribution(model, views, params)  # type: ignore[arg-type]
    assert found.passes["r0"].tolist() == [[False, True]]


def test_the_best_heads_of_a_method_are_those_that_have_a_score():
    made = sae_tables.Tables(SimpleNamespace(n_layers=2, n_heads=2), None, None, None, 0, None)  # type: ignore[arg-type]
    assert made._judged(np.array([[NAN, 0.2], [0.7, NAN]]), None)["top"] == "1-0 0-1"


def test_a_head_whose_output_is_not_finite_has_no_change_with_another_image():
    def seen(z: list[float]) -> Any:
        return SimpleNamespace(z=torch.tensor(z).reshape(1, 1, -1, 1), pattern=torch.zeros(1, 1, len(z), 2))

    change, _ = var._changes(seen([0.0, NAN, 1.0]), seen([0.0, 1.0, 3.0]))
    np.testing.assert_array_equal(change[0, 0].numpy(), np.array([0.0, NAN, 1.0], dtype=np.float32))


@pytest.mark.parametrize(("floor", "highest"), [([NAN, NAN], NAN), ([NAN, 1e-7], 1e-7)])
def test_a_noise_floor_that_is_not_finite_is_no_floor_of_zero(monkeypatch, floor, highest):
    samples = [SimpleNamespace(group="harmful")] * 2
    data = type("Data", (list,), {"batch": lambda self: None})(samples)
    kl = np.full((2, 1, 1), 0.5)
    monkeypatch.setattr(ships, "_kl", lambda *_: (np.zeros((1, 2)), None, {}))
    monkeypatch.setattr(ships, "grid", lambda *_: kl)
    monkeypatch.setattr(ships, "noise_floor", lambda *_: np.array(floor))
    found = ships._query_level(None, data, SimpleNamespace(units=lambda _: []), None, 0)  # type: ignore[arg-type]
    np.testing.assert_equal(found["summary"]["noise_floor"], highest)
    assert found["extra"]["above_floor"].all() == (not np.isnan(highest))


def test_shares_of_no_heads_are_undefined():
    found = properties.shares(np.full((2, 2), NAN), 0.1)
    assert found["n_heads"] == 0
    assert all(np.isnan(value) for key, value in found.items() if key.startswith("share_"))
