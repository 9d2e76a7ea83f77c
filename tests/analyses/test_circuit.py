"""Circuits: what was planted is found, with labels; what one corruption cannot see is said; the arithmetic holds."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analyses.examples import dataset
from tests.tiny import tiny
from workbench import analyses, organisms, tasks
from workbench.analyses.circuit import CircuitGraph, Edge, Node, curve, graph_of
from workbench.analyses.circuit.discover import Measured
from workbench.analyses.circuit.faithful import random_circuit, ratio
from workbench.analyses.circuit.params import CircuitParams
from workbench.analyses.circuit.table import head_table
from workbench.errors import InputError
from workbench.models import load_model

CIRCUIT = analyses.get("circuit")
TASKS = {"planted-ioi": "ioi", "planted-colored": "colored_objects"}
SEARCH_ONLY = {"faithfulness": None, "roles": False, "bootstrap": 20}


def truth(card):
    """Heads and edges of a card."""
    claim = next(t for t in card["truths"] if t["claim"] == "circuit")
    edges = set()
    for edge in claim["edges"]:
        to = edge["receiver"]
        edges.add(("{}.{}".format(*edge["sender"]), "logits" if to == "logits" else f"{to[0]}.{to[1]}.{edge['input']}"))
    return {tuple(head) for head in claim["heads"]}, edges


@pytest.fixture(scope="module")
def planted():
    return load_model("organism:planted-ioi")


@pytest.fixture(scope="module")
def shipped(planted):
    return {
        name: CIRCUIT(planted, tasks.resolve(planted, {"task": task, "n": 32}), seed=0) for name, task in TASKS.items()
    }


@pytest.mark.parametrize("name", TASKS)
def test_the_shipped_circuit_is_found_exactly(shipped, name):
    heads, edges = truth(organisms.card(name))
    graph = graph_of(shipped[name])
    assert set(graph.heads()) == heads
    assert graph.keys() == edges


@pytest.mark.parametrize(("seed", "noise"), [(101, 0.0), (102, 0.05)])
def test_fresh_circuits_are_found_exactly(seed, noise, tmp_path):  # bench/planted_circuits.py: 20 seeds of each
    from workbench.organisms.planted import ioi, ioi_evidence

    hf, tokenizer, slots, _ = ioi.assemble(seed=seed, noise=noise)
    hf.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    for task in TASKS.values():
        edges = set()
        for sender, receiver, part in ioi_evidence.EDGES[task]:
            to = "logits" if receiver == "logits" else "{}.{}.{}".format(*slots[receiver], part)
            edges.add(("{}.{}".format(*slots[sender]), to))
        data = tasks.resolve(model, {"task": task, "n": 16})
        graph = graph_of(CIRCUIT(model, data, CIRCUIT.parse(SEARCH_ONLY), seed=0))
        assert graph.keys() == edges
        assert set(graph.heads()) == {slots[role] for role in ioi_evidence.circuit(task)}


def test_roles_are_named_from_what_heads_do(shipped):
    same = {"shared mover": "mover", "name mover": "mover", "S-inhibition": "inhibition"}
    for name, result in shipped.items():
        roles = next(t for t in organisms.card(name)["truths"] if t["claim"] == "circuit")["roles"]
        want = {tuple(heads[0]): same.get(role, role) for role, heads in roles.items()}
        table = result.tables["roles"]
        got = {(layer, head): role for layer, head, role in table[["layer", "head", "role"]].to_numpy()}
        assert got == want
        assert table["basis"].str.contains(r"\d").all(), "a role never stands without its numbers"
        assert result.tables["evidence"]["n"].min() > 0


def test_which_corruption_sees_which_head_agrees_with_the_cards(shipped):
    for name, result in shipped.items():
        known = organisms.card(name)["visibility"]
        table = result.tables["visibility"]
        nodes = table[table["kind"] == "node"].set_index(["view", "sender"])
        for view in set(nodes.index.get_level_values(0)) - {"mean"}:
            for record in known[view]["heads"]:
                effect = nodes.loc[(view, "{}.{}".format(*record["head"])), "effect"]
                assert effect == pytest.approx(record["effect"], abs=2e-3)
            edges = table[(table["kind"] == "edge") & (table["view"] == view)]
            assert edges["alone"].sum() == known[view]["sees_edges"]
    assert shipped["planted-ioi"].summary["sees"]["flip"] == "5 of 7 heads, 7 of 9 edges"


def test_the_planted_circuit_is_faithful_complete_and_minimal(shipped):
    for result in shipped.values():
        for view, found in result.summary["faithfulness"].items():
            assert found["faithfulness"] == pytest.approx(1, abs=0.03), view
            assert abs(found["completeness"]) < 0.03
            assert found["accuracy"] == 1
            assert found["random"] < 0.3
        table = result.tables["minimality"]
        needed = table["marginal"].abs().groupby(table["node"]).max()
        assert (needed > 0.25).all(), "every planted head is needed under some ablation"
        full = result.tables["curve"].query("size == 1.0")
        np.testing.assert_allclose(full["f"], 1, atol=1e-5)


@pytest.mark.parametrize("params", [{"method": "activation_patching"}, {"method": "attribution", "n_edges": 40}])
def test_the_other_methods_find_the_planted_heads(planted, params):
    data = tasks.resolve(planted, {"task": "ioi", "n": 16})
    result = CIRCUIT(planted, data, CIRCUIT.parse({**SEARCH_ONLY, **params}), seed=0)
    heads, edges = truth(organisms.card("planted-ioi"))
    graph = graph_of(result)
    strongest = sorted(result.heads.keys(), key=lambda key: -abs(result.heads.matrix()[key]))[: len(heads)]
    if params["method"] == "activation_patching":
        assert set(graph.heads()) == heads == set(strongest)
        assert not graph.edges
    else:
        assert len(set(strongest) & heads) >= 5, "gradients miss what hard attention hides"
        assert {edge for edge in edges if edge[1] == "logits"} <= graph.keys()
        assert graph.only(graph.keys()).keys() == graph.keys()


def test_explicit_pairs_have_one_corruption_and_say_so():
    model = tiny("llama")
    data = dataset(model, "pairs")
    params = CIRCUIT.parse({**SEARCH_ONLY, "rule": "top", "top": 0.1, "receivers": "alone", "max_stages": 2})
    result = CIRCUIT(model, data, params, seed=0)
    assert "one corruption" in " ".join(result.summary["notes"])
    assert set(result.tables["views"]["view"]) <= {"given", "mean"}
    assert result.tables["edges"]["input"].isin(["q", "k", "v", "logits"]).all()
    with pytest.raises(InputError, match="come with their own"):
        CIRCUIT(model, data, CIRCUIT.parse({"corruptions": ["flip"]}), seed=0)
    same = tasks.pairs_from_samples(
        model, [{"clean": "the cat", "corrupted": "the cat", "answer": " dog", "wrong": " cat"}]
    )
    nothing = CIRCUIT(model, same, CIRCUIT.parse({"ablation": None}), seed=0)
    assert not nothing.heads.ok.any() and "too little" in " ".join(nothing.summary["notes"])


def test_mlps_can_be_nodes():
    model = tiny("gpt2")
    params = {"mlp_nodes": True, "mlps": "freeze", "rule": "top", "top": 0.2, "max_stages": 2, "bootstrap": 20}
    result = CIRCUIT(model, dataset(model, "pairs"), CIRCUIT.parse({**params, "faithfulness": {"draws": 1}}), seed=0)
    assert result.summary["mlp_layers"]
    full = result.tables["faithfulness"].query("set == 'full'")
    assert (full["n_nodes"] == model.n_layers * (model.n_heads + 1)).all()
    with pytest.raises(InputError, match="mlps: freeze"):
        CIRCUIT.parse({"mlp_nodes": True})


def test_a_graph_survives_its_tables():
    nodes = (Node("0.1", 0.5, 0.1, 2, "other", ("flip", "mean")), Node("1.0", -0.2, 0.1, 1), Node("0.mlp", 0.0, 0.0))
    edges = (Edge("1.0", "logits", -0.2, 0.1, 1, "flip", ("flip",)), Edge("0.1", "1.0.k", 0.5, 0.1, 2, "mean"))
    graph = CircuitGraph(nodes, edges, 2)
    assert CircuitGraph.from_frames(*graph.to_frames(), group=2) == graph
    assert graph.heads() == ((0, 1), (1, 0)) and graph.mlps() == (0,)
    assert graph.readers("1.0.k") == ("1.0",)
    part = graph.only([edges[0].key])
    assert part.is_subset(graph) and not graph.is_subset(part)
    assert [node.name for node in part.nodes] == ["1.0"]
    assert part.union(graph) == graph
    assert not graph.only([edges[1].key]).edges, "without its way to the logits an edge does nothing"
    with pytest.raises(InputError, match="not in the circuit"):
        CircuitGraph((), edges)
    with pytest.raises(InputError, match="lacks the column 'stage'"):
        CircuitGraph.from_frames(graph.to_frames()[0].drop(columns="stage"), graph.to_frames()[1])


numbers = st.floats(-3, 3, allow_nan=False)


@given(st.lists(numbers, min_size=2, max_size=8), st.data())
@settings(max_examples=60, deadline=None)
def test_areas_are_integrals(f, data):
    sizes = sorted(data.draw(st.sets(st.floats(0.001, 1), min_size=len(f), max_size=len(f))))
    f = np.array(f)
    width = sizes[-1] - sizes[0]
    assert curve.cpr(sizes, np.ones(len(f))) == pytest.approx(width)
    assert curve.cmd(sizes, np.ones(len(f))) == 0
    assert curve.cpr(sizes, f) == pytest.approx(np.trapezoid(f, sizes) if hasattr(np, "trapezoid") else 0, abs=1e-9)
    assert curve.cmd(sizes, f) >= abs(width - curve.cpr(sizes, f)) - 1e-9
    assert curve.cpr(sizes, 2 * f) == pytest.approx(2 * curve.cpr(sizes, f), abs=1e-9)


@given(numbers, numbers, numbers)
@settings(max_examples=60, deadline=None)
def test_faithfulness_is_zero_when_empty_and_one_when_full(kept, empty, full):
    if abs(full - empty) < 1e-3:
        assert math.isnan(curve.faithfulness(np.array([kept]), empty, empty)[0])
        return
    ends = curve.faithfulness(np.array([empty, full, kept]), empty, full)
    assert ends[:2] == pytest.approx([0, 1])
    assert ends[2] * (full - empty) + empty == pytest.approx(kept, abs=1e-9)


def test_uncertainty_of_a_ratio_is_that_of_the_bootstrap():
    rng = np.random.default_rng(0)
    full, empty = rng.normal(10, 1, 400), rng.normal(0, 1, 400)
    kept = 0.6 * full + 0.4 * empty + rng.normal(0, 1, 400)
    value, error = ratio(kept, empty, full)
    draws = [
        (kept[i].mean() - empty[i].mean()) / (full[i] - empty[i]).mean() for i in rng.integers(400, size=(500, 400))
    ]
    assert value == pytest.approx(0.6, abs=0.03)
    assert error == pytest.approx(np.std(draws), rel=0.15)


def test_random_circuits_match_layer_by_layer():
    nodes = [(layer, head) for layer in range(3) for head in (0, 1, 2, 3, -1)]
    circuit = [(0, 1), (2, 0), (2, 3), (1, -1)]
    drawn = random_circuit(circuit, nodes, np.random.default_rng(0))
    count = [sum(at == layer and head >= 0 for at, head in drawn) for layer in range(3)]
    assert count == [1, 0, 2] and sum(head < 0 for _, head in drawn) == 1
    assert [curve.n_kept(size, 20) for size in (0.001, 0.02, 0.05, 0.5, 1)] == [0, 0, 1, 10, 20]


@pytest.mark.parametrize(("receivers", "views"), [(1, 1), (4, 2), (10, 3)])
def test_the_strongest_of_many_effects_is_no_finding_by_itself(receivers, views):
    """Of heads without any effect 38 and 58% had p below .05, when their strongest of 8 and 30 was tested as one."""
    rng = np.random.default_rng(0)
    names = [f"{layer}.{head}" for layer in range(3) for head in range(8)]
    found = Measured([f"v{i}" for i in range(views)], names, 1)
    for r in range(receivers):
        found.add("logits" if r == 0 else f"2.{r}.q", 1, rng.normal(size=(views, len(names), 32)))
    model = SimpleNamespace(n_layers=3, n_heads=8, n_kv_heads=8, name="m", fingerprint="f", basis="raw")
    heads, _ = head_table(model, found, CircuitGraph(), CircuitParams(bootstrap=5), 0)  # type: ignore[arg-type]
    assert (heads["null_p"] < 0.05).sum() <= 3  # of 24
    assert not (heads["q"] < 0.05).any()
