"""Figures of findings: every number of the tables is in them, nothing else is, and odd tables are drawn or refused."""

from __future__ import annotations

import json
import math
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench import plots
from workbench.errors import InputError
from workbench.tables import HeadTable

NAN = math.nan
EVIL = "<a href='javascript:alert(1)'>x</a>"

PAIRS = [
    {"level": "heads", "a": "x", "b": "y", "n_shared": 3, "jaccard": 0.375, "a_in_b": 0.4, "b_in_a": 0.8},
    {"level": "heads", "a": "x", "b": "z", "n_shared": 0, "jaccard": 0.0, "a_in_b": 0.0, "b_in_a": 0.0},
    {"level": "heads", "a": "y", "b": "z", "n_shared": 1, "jaccard": NAN, "a_in_b": NAN, "b_in_a": 0.5},
    {"level": "edges", "a": "x", "b": "y", "n_shared": 9, "jaccard": 0.9, "a_in_b": 0.9, "b_in_a": 0.9},
]
for row, p in zip(PAIRS, (0.01, 1.0, 0.5, 0.2), strict=True):
    row["p_layer_matched"] = p

NODES = {
    "node": ["0.1", "1.0", "1.1", "2.mlp"],
    "layer": [0, 1, 1, 2],
    "effect": [0.5, 0.4, NAN, 0.2],
    "role": ["previous token", "", "mover", ""],
}
EDGES = {
    "sender": ["0.1", "0.1", "1.0", "1.1", "2.mlp"],
    "receiver": ["1.0.q", "1.0.k", "2.mlp", "logits", "logits"],
    "effect": [1.0, -0.25, 0.5, NAN, 0.125],
    "view": ["flip", "flip", "mean", "mean", "mean"],
}


def table(score: Any, **options: Any) -> HeadTable:
    return HeadTable.from_scores(score, **{"n_kv_heads": None, "analysis": "test", "metric": "m", **options})


def named(fig: Any, name: str) -> Any:
    return next(trace for trace in fig.data if trace.name == name)


def grid(trace: Any) -> list[list[float | None]]:
    return [list(row) for row in trace.z]


# ---- matrix


def test_a_matrix_of_pairs_holds_every_pair_both_ways() -> None:
    fig: Any = plots.matrix(PAIRS)
    assert grid(fig.data[0]) == [[1.0, 0.375, 0.0], [0.375, 1.0, None], [0.0, None, 1.0]]
    assert list(fig.layout.xaxis.ticktext) == ["x", "y", "z"]
    assert (fig.data[0].zmin, fig.data[0].zmax) == (0.0, 1.0)
    assert fig.data[0].texttemplate
    hover = fig.data[0].text[1][0]
    assert "p 0.01" in hover and "n_shared 3" in hover and "jaccard 0.375" in hover
    assert sum(z is not None for row in fig.data[1].z for z in row) == 2  # the undefined ones are hatched
    edges: Any = plots.matrix(PAIRS, level="edges")
    assert grid(edges.data[0]) == [[1.0, 0.9], [0.9, 1.0]]


@pytest.mark.parametrize("statistic", ["contained_in", "a_in_b"])
def test_containment_is_of_the_row_in_the_column(statistic: str) -> None:
    fig: Any = plots.matrix(PAIRS, statistic=statistic)
    assert grid(fig.data[0]) == [[1.0, 0.4, 0.0], [0.8, 1.0, None], [0.0, 0.5, 1.0]]


def test_a_matrix_by_statistic_and_one_of_values_are_the_same_picture() -> None:
    wide = [
        {"statistic": "jaccard", "task": "x", "x": 1.0, "y": 0.375},
        {"statistic": "jaccard", "task": "y", "x": 0.375, "y": 1.0},
        {"statistic": "p_layer_matched", "task": "x", "x": NAN, "y": 0.01},
        {"statistic": "p_layer_matched", "task": "y", "x": 0.01, "y": NAN},
    ]
    one: Any = plots.matrix(wide)
    two: Any = plots.matrix([[1.0, 0.375], [0.375, 1.0]], ["x", "y"], p=[[None, 0.01], [0.01, None]])
    assert one.to_json() == two.to_json()
    assert "p 0.01" in one.data[0].text[0][1] and "p " not in one.data[0].text[0][0]
    signed: Any = plots.matrix([[1.0, -0.2], [-0.2, 1.0]], ["x", "y"], statistic="spearman")
    assert (signed.data[0].zmin, signed.data[0].zmax) == (-1.0, 1.0)
    alone: Any = plots.matrix([[None]], ["x"], statistic="p")
    assert grid(alone.data[0]) == [[None]]
    with pytest.raises(InputError, match=r"'jacard'\. Did you mean 'jaccard'"):
        plots.matrix(wide, statistic="jacard")


def test_what_is_no_matrix_is_refused() -> None:
    with pytest.raises(InputError, match="no column 'rbo'"):
        plots.matrix(PAIRS, statistic="rbo")
    with pytest.raises(InputError, match="There are no sets"):
        plots.matrix({"a": [], "b": [], "jaccard": []})
    with pytest.raises(InputError, match="There are no sets"):
        plots.matrix([], [])
    with pytest.raises(InputError, match="3 names need 3 x 3 values"):
        plots.matrix([[1.0]], ["x", "y", "z"])
    with pytest.raises(InputError, match="no square of numbers"):
        plots.matrix([[1.0], [1.0, 2.0]], ["x", "y"])
    with pytest.raises(InputError, match="A int cannot be drawn"):
        plots.matrix(3)


# ---- upset


def test_upset_counts_exclusive_intersections() -> None:
    sets = {"x": [(0, 1), (0, 2), (1, 1), (0, 1)], "y": [(0, 1), (1, 1)], "z": [(0, 1), (3, 3), (3, 4)], "none": []}
    fig: Any = plots.upset(sets)
    bars, sizes = named(fig, "shared"), named(fig, "size")
    assert list(bars.y) == [2, 1, 1, 1] and sum(bars.y) == len({m for members in sets.values() for m in members})
    assert list(sizes.x) == [3, 2, 3, 0]
    assert [re.sub(r"</?b>", "", text) for text in bars.customdata] == [
        "z alone<br>2: 3.3, 3.4",
        "x and y and z<br>1: 0.1",
        "x and y<br>1: 1.1",
        "x alone<br>1: 0.2",
    ]
    inked = named(fig, "members of")
    assert sorted(zip(inked.x, inked.y, strict=True)) == [(0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (3, 0)]
    assert list(fig.layout.yaxis2.ticktext) == ["x", "y", "z", "none"]


def test_upset_of_one_set_of_many_and_of_nothing() -> None:
    one: Any = plots.upset({"x": [(0, 0)]})
    assert list(named(one, "shared").y) == [1]
    many: Any = plots.upset({str(i): [(0, i)] for i in range(9)}, most=4)
    assert len(named(many, "shared").y) == 4 and "5 smaller ones not shown" in many.layout.title.text
    with pytest.raises(InputError, match="No set has a member"):
        plots.upset({"x": [], "y": []})
    with pytest.raises(InputError, match="There are no sets"):
        plots.upset({})


# ---- graph


def dots(fig: Any) -> dict[str, list[float | None]]:
    known = ("q", "k", "v", "into an MLP", "direct, to the logits")
    return {trace.name: list(trace.customdata) for trace in fig.data if trace.name in known}


def test_a_graph_draws_every_node_and_edge_by_what_is_read() -> None:
    fig: Any = plots.graph(NODES, EDGES)
    nodes = named(fig, "nodes")
    assert list(nodes.customdata) == [*NODES["node"], "logits"]
    assert dots(fig) == {"q": [1.0], "k": [-0.25], "into an MLP": [0.5], "direct, to the logits": [0.125, None]}
    y = dict(zip(nodes.customdata, nodes.y, strict=True))
    assert y["0.1"] < y["1.0"] == y["1.1"] < y["2.mlp"] < y["logits"]
    lines = [t for t in fig.data if t.mode == "lines" and t.hoverinfo == "skip"]
    assert {t.line.dash for t in lines if t.legendgroup == "k"} == {"dash"}  # a negative effect
    assert {t.line.dash for t in lines if t.legendgroup != "k"} == {"solid"}
    widths = {t.legendgroup: t.line.width for t in lines}
    assert widths["q"] > widths["mlp"] > widths["k"] > widths["logits"]
    assert len({t.line.color for t in lines}) == 4
    assert "effect -0.25" in named(fig, "k").text[0] and "view flip" in named(fig, "k").text[0]
    assert "effect undefined" in nodes.hovertext[2] and "role mover" in nodes.hovertext[2]


def test_an_edge_into_a_kv_group_reaches_its_heads_of_the_graph() -> None:
    nodes = {"node": ["0.0", "1.2", "1.3"], "layer": [0, 1, 1]}
    fig: Any = plots.graph(nodes, {"sender": ["0.0"] * 2, "receiver": ["1.1.v", "1.0.k"], "effect": [0.5, 1]}, group=2)
    assert dots(fig) == {"k": [1.0], "v": [0.5, 0.5]}
    assert list(named(fig, "nodes").customdata) == ["0.0", "1.2", "1.3", "1.0.k"]  # no reader: hollow
    assert len(plots.graph(nodes, {"sender": [], "receiver": [], "effect": []}).data) == 1


def test_a_graph_that_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="no nodes"):
        plots.graph({"node": [], "layer": []}, EDGES)
    with pytest.raises(InputError, match=r"leaves '7\.7'"):
        plots.graph(NODES, {"sender": ["7.7"], "receiver": ["logits"], "effect": [1.0]})
    with pytest.raises(InputError, match="no column 'sender'"):
        plots.graph(NODES, {"layer_a": [0]})


# ---- faithfulness, ROC, scatter


def test_faithfulness_has_the_curve_the_circuit_and_random_sets() -> None:
    curve = {"ablation": ["flip"] * 4 + ["mean"] * 2, "ranking": ["signed", "signed", "size", "size"] + ["size"] * 2}
    curve |= {"size": [1.0, 0.5, 0.5, 1.0, 0.5, 1.0], "f": [1.0, 0.75, 0.25, 1.0, NAN, 1.0]}
    draws = np.linspace(-0.2, 0.2, 41)
    sets = {"ablation": ["flip"] * 44, "set": ["full", "circuit", "complement"] + ["random"] * 41}
    sets |= {"share": [1.0, 0.5, 0.5] + [0.5] * 41, "f": [1.0, 0.9, 0.1, *draws], "stderr": [0.0, 0.1] + [NAN] * 42}
    fig: Any = plots.faithfulness(curve, sets)
    signed = named(fig, "signed")
    assert (list(signed.x), list(signed.y)) == ([0.5, 1.0], [0.75, 1.0])
    assert [list(t.y) for t in fig.data if t.name == "size"] == [[0.25, 1.0], [None, 1.0]]
    assert list(named(fig, "circuit").y) == [0.9]
    assert named(fig, "circuit").error_y.array == pytest.approx((0.196,))
    chance = named(fig, "random sets")
    assert chance.error_y.array == pytest.approx((0.19,)) and chance.error_y.arrayminus == pytest.approx((0.19,))
    assert sum(bool(t.showlegend) for t in fig.data if t.name == "size") == 1
    several: Any = plots.faithfulness(curve, {"set": ["random"] * 4, "share": [0.2, 0.2, 0.4, 0.4], "f": [0, 1, 2, 3]})
    assert not any(t.name == "random sets" for t in several.data)  # of no ablation that is drawn
    plain = {"size": [0.0, 1.0], "f": [0.0, 1.0]}
    banded: Any = plots.faithfulness(plain, {"set": ["random"] * 4, "share": [0.2, 0.2, 0.4, 0.4], "f": [0, 1, 2, 3]})
    assert banded.data[0].fill == "toself"
    with pytest.raises(InputError, match="no defined point"):
        plots.faithfulness({"size": [0.5], "f": [NAN]})
    with pytest.raises(InputError, match="no column 'f'"):
        plots.faithfulness({"k": [1], "size": [1]})


def test_roc_holds_the_points_and_their_area() -> None:
    points = {"method": ["good"] * 2 + ["bad"] * 2 + ["none"], "fpr": [0.0, 1.0, 1.0, 0.5, NAN]}
    points |= {"tpr": [1.0, 1.0, 1.0, 0.25, NAN], "threshold": [3.0, 1.0, 1.0, 2.0, NAN]}
    fig: Any = plots.roc(points)
    assert [trace.name for trace in fig.data] == ["chance (0.50)", "good (1.00)", "bad (0.38)"]
    assert list(fig.data[2].x) == [0.0, 0.5, 1.0, 1.0] and list(fig.data[2].y) == [0.0, 0.25, 1.0, 1.0]
    assert "threshold 2" in fig.data[2].text[1]
    assert "best 1 of 2" in plots.roc(points, most=1).layout.title.text
    with pytest.raises(InputError, match="'tpr' is no rate"):
        plots.roc({"fpr": [0.5], "tpr": [2.0]})
    with pytest.raises(InputError, match="no defined point"):
        plots.roc({"fpr": [], "tpr": []})


def test_scatter_places_every_head_that_both_tables_have() -> None:
    a, b = table([[0.1, 0.9], [0.5, NAN]]), table([[5.0, 9.0], [1.0, 3.0]])
    fig: Any = plots.scatter(a, b, names=("one", EVIL), rule="top 2")
    found = {tuple(k): xy for t in fig.data for k, *xy in zip(t.customdata, t.x, t.y, strict=True)}
    assert found == {(0, 0): [0.1, 5.0], (0, 1): [0.9, 9.0], (1, 0): [0.5, 1.0]}
    assert [trace.name for trace in fig.data] == ["only x (1)", "only y (1)", "both (1)"]
    assert "rank 1" in fig.data[2].text[0] and "L0 H1" in fig.data[2].text[0]
    assert fig.layout.title.text == "3 heads · Spearman 0.50 · selected by top 2"
    ranks: Any = plots.scatter(a, b, by="rank", rule="top 2")
    assert list(ranks.data[2].x) == [1.0] and ranks.layout.xaxis.autorange == "reversed"
    with pytest.raises(InputError, match="different shapes"):
        plots.scatter(a, table([[1.0]]))
    with pytest.raises(InputError, match="No head is defined in both"):
        plots.scatter(table([[NAN, 1.0]]), table([[1.0, NAN]]))
    with pytest.raises(InputError, match="by='size' is unknown"):
        plots.scatter(a, b, by="size")


# ---- all of them


def _figures() -> dict[str, Any]:
    return {
        "matrix": plots.matrix([{**PAIRS[0], "a": EVIL}]),
        "upset": plots.upset({EVIL: [(0, 0)], "y": [EVIL]}),
        "graph": plots.graph(
            {"node": [EVIL], "layer": [0], "role": [EVIL]},
            {"sender": [EVIL], "receiver": [EVIL + ".1.q"], "effect": [1.0], "view": [EVIL]},
        ),
        "faithfulness": plots.faithfulness({"size": [1.0], "f": [1.0], "ablation": [EVIL], "ranking": [EVIL]}),
        "roc": plots.roc({"fpr": [0.5], "tpr": [0.5], "method": [EVIL]}),
        "scatter": plots.scatter(table([[1.0, 2.0]], model=EVIL), table([[2.0, 1.0]]), rule="top 1"),
    }


@pytest.mark.parametrize("name", ["matrix", "upset", "graph", "faithfulness", "roc", "scatter"])
def test_every_figure_is_whole_offline_plain_json_and_escapes_text(name: str, tmp_path: Path) -> None:
    fig = _figures()[name]
    text = fig.to_json() or ""
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    drawn = {key: json.loads(text)["layout"].get(key) for key in ("title", "xaxis", "yaxis", "annotations")}
    words = ("name", "text", "hovertext", *(("customdata",) if name == "upset" else ()))  # what plotly shows
    shown = [str([trace.get(word) for word in words]) for trace in json.loads(text)["data"]]
    assert "<a href" not in str(drawn) + str(shown)
    plots.write(fig, tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert not re.search(r"<(script|link)[^>]*(src|href)=", page)
    assert page.count("cdn.plot.ly") <= 1  # plotly.js has it as the default source of geographic maps


def test_a_thousand_heads_are_drawn_quickly() -> None:
    heads = [(layer, head) for layer in range(32) for head in range(32)]
    rng = np.random.default_rng(0)
    a, b = (table(rng.normal(size=(32, 32))) for _ in range(2))
    nodes = {"node": [f"{layer}.{head}" for layer, head in heads], "layer": [layer for layer, _ in heads]}
    picks = rng.permutation(992)[:900]
    edges = {"sender": [nodes["node"][i] for i in picks], "effect": rng.normal(size=900)}
    edges["receiver"] = [f"{heads[i + 32][0]}.{heads[i + 32][1]}.q" for i in picks]
    start = time.process_time()
    graph: Any = plots.graph(nodes, edges)
    plots.scatter(a, b, rule="top 10%").to_json()
    plots.upset({str(i): [h for h in heads if rng.random() < 0.3] for i in range(6)}).to_json()
    plots.matrix(rng.random((60, 60)), [str(i) for i in range(60)]).to_json()
    graph.to_json()
    assert time.process_time() - start < 6
    assert len(graph.data) < 40
    assert sum(map(len, dots(graph).values())) == 400 and "the 400 strongest" in graph.layout.title.text
    strongest = np.sort(np.abs(edges["effect"]))[-400:]
    assert np.sort(np.abs(dots(graph)["q"])) == pytest.approx(strongest)
