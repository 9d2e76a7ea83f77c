"""`workbench plot`: every kind from the tables it needs, and one sentence about what can be drawn where they lack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench.cli import main
from workbench.store import Store
from workbench.tables import HeadTable


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with a circuit, an overlap, a ROC table, plain heads twice, and an artifact without tables."""
    monkeypatch.setenv("WORKBENCH_STORE", str(tmp_path / "store"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    store = Store(tmp_path / "store")
    score = np.arange(8.0).reshape(2, 4)
    inside = {"in_x": score > 3, "in_y": score > 5, "in_circuit_size": score}

    def heads(score: np.ndarray, **extra: Any) -> Any:
        return HeadTable.from_scores(score, n_kv_heads=2, analysis="test", metric="m", extra=extra or None).to_arrow()

    with store.stage("plain") as out:
        out.table("heads", heads(score))
    with store.stage("other") as out:
        out.table("heads", heads(-score))
    with store.stage("wide") as out:
        out.table("heads", heads(np.ones((1, 2))))
    with store.stage("shared/tasks") as out:
        out.table("heads", heads(score, **inside))
        row = {"a": ["x"], "b": ["y"], "level": ["heads"], "jaccard": [0.5], "a_in_b": [0.5], "b_in_a": [1.0]}
        out.table("pairs", {**row, "p_layer_matched": [0.02]})
        out.table("curve", {"a": ["x"], "b": ["y"], "k": [1], "jaccard": [0.5]})
    with store.stage("found") as out:
        out.table("heads", heads(score))
        out.table("nodes", {"node": ["0.0", "1.1"], "layer": [0, 1], "role": ["", "mover"]})
        edges = {"sender": ["0.0", "1.1"], "receiver": ["1.0.k", "logits"]}
        out.table("edges", {**edges, "effect": [0.5, -0.25]})
        out.table("curve", {"ablation": ["mean"] * 2, "ranking": ["size"] * 2, "size": [0.0, 1.0], "f": [0.0, 1.0]})
        sets = {"ablation": ["mean"] * 2, "set": ["circuit", "random"], "share": [0.25, 0.25], "f": [0.9, 0.0]}
        out.table("faithfulness", {**sets, "stderr": [0.1, 0.1]})
    with store.stage("judged") as out:
        out.table("roc", {"method": ["m", "m"], "fpr": [0.0, 1.0], "tpr": [0.5, 1.0], "threshold": [2.0, 1.0]})
        out.table("edges", {"layer_a": [0], "score": [1.0]})  # another kind of edges
    with store.stage("nothing") as out:
        out.json("summary", {"a": 1})
    return tmp_path / "here"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are written, without writing 5 MB each."""
    from workbench import plots

    figures: list[Any] = []

    def write(fig: Any, path: Path, *, theme: str) -> None:
        assert theme == "light"
        figures.append(fig)
        Path(path).write_text("a figure")

    monkeypatch.setattr(plots, "write", write)
    return figures


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(["plot", *arguments]) == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        (["plain"], "plain-v1.html"),
        (["plain", "--kind", "bars"], "plain-v1.html"),
        (["shared/tasks", "--kind", "matrix"], "shared-tasks-v1-matrix.html"),
        (["shared/tasks", "--kind", "upset"], "shared-tasks-v1-upset.html"),
        (["plain", "--kind", "upset", "--rule", "top 3"], "plain-v1-upset.html"),
        (["found", "--kind", "graph"], "found-v1-graph.html"),
        (["found", "--kind", "faithfulness"], "found-v1-faithfulness.html"),
        (["judged", "--kind", "roc"], "judged-v1-roc.html"),
        (["plain", "other", "--kind", "scatter", "--rule", "top 3"], "scatter.html"),
        (["plain", "other", "found", "--kind", "upset"], "upset.html"),
        (["plain", "other", "found", "--kind", "matrix", "--column", "spearman"], "matrix.html"),
    ],
)
def test_every_kind_is_drawn(
    place: Path, drawn: list[Any], capsys: pytest.CaptureFixture[str], arguments: list[str], path: str
) -> None:
    assert run(capsys, *arguments).strip() == path
    assert (place / path).exists() and len(drawn) == 1


def test_what_is_drawn_is_what_the_tables_hold(
    place: Path, drawn: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "shared/tasks", "--kind", "matrix", "--column", "contained_in")
    assert [list(row) for row in drawn[-1].data[0].z] == [[1.0, 0.5], [1.0, 1.0]]
    run(capsys, "shared/tasks", "--kind", "upset")  # the sets of the result itself; numbers are no set
    assert list(drawn[-1].layout.yaxis2.ticktext) == ["x", "y"]
    assert [list(t.y) for t in drawn[-1].data if t.name == "shared"] == [[2, 2]]
    run(capsys, "shared/tasks", "--kind", "upset", "--rule", "top 3")
    assert list(drawn[-1].layout.yaxis2.ticktext) == ["shared/tasks@v1"]
    run(capsys, "found", "--kind", "graph")  # a kv group has two heads: 1.0.k is read by 1.1
    assert list(next(t for t in drawn[-1].data if t.name == "nodes").customdata) == ["0.0", "1.1", "logits"]
    run(capsys, "found", "--kind", "faithfulness")
    assert [list(t.y) for t in drawn[-1].data if t.name == "circuit"] == [[0.9]]
    run(capsys, "plain", "other", "--kind", "matrix", "--rule", "top 4")
    assert [list(row) for row in drawn[-1].data[0].z] == [[1.0, 0.0], [0.0, 1.0]]
    run(capsys, "plain", "other", "--kind", "scatter", "--column", "rank", "--rule", "top 3")
    assert drawn[-1].layout.xaxis.title.text == "plain: rank"


def test_json_names_the_file_and_the_results(place: Path, drawn: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    said = json.loads(run(capsys, "found", "--kind", "graph", "-o", "g.html", "--json"))
    assert said == {"path": "g.html", "kind": "graph", "ref": "found@v1"}
    said = json.loads(run(capsys, "plain", "other", "--kind", "upset", "--json"))
    assert said == {"path": "upset.html", "kind": "upset", "refs": ["plain", "other"]}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["judged", "--kind", "graph"], "has no table for --kind graph"),
        (["judged", "--kind", "graph"], "it can be drawn as roc."),
        (["judged"], "has no table for --kind heatmap"),
        (["shared/tasks", "--kind", "faithfulness"], "can be drawn as heatmap, bars, matrix, upset."),
        (["found", "--kind", "roc"], "can be drawn as heatmap, bars, upset, graph, faithfulness."),
        (["nothing", "--kind", "upset"], "it has no table that can be drawn"),
        (["plain", "--kind", "pie"], "choose heatmap, bars, needle"),
        (["plain", "--kind", "scater"], "Did you mean 'scatter'?"),
        (["plain", "--kind", "scatter"], "scatter draws two different results"),
        (["plain", "plain", "--kind", "scatter"], "scatter draws two different results"),
        (["plain", "other", "found", "--kind", "scatter"], "but got 3"),
        (["plain", "other"], "heatmap draws one result, but got 2"),
        (["plain", "other", "--kind", "scatter", "--column", "size"], "by='size' is unknown"),
        (["plain", "wide", "--kind", "scatter"], "different shapes"),
        (["plain", "judged", "--kind", "upset"], "has no head table"),
        (["plain", "other", "--kind", "upset", "--rule", "score > 99"], "No set has a member"),
        (["found", "--kind", "graph", "--column", "score"], "--column has no meaning for --kind graph"),
        (["plain", "--rule", "top 3"], "--rule has no meaning for --kind heatmap"),
        (["shared/tasks", "--kind", "matrix", "--column", "jacard"], "no column 'jacard'"),
        (["absent", "--kind", "graph"], "absent"),
        (["found", "--kind", "graph", "-o", "x.doc"], "x.doc"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_sentence(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    said = run(capsys, *arguments, code=2)
    assert words in said and said.startswith("error: ") and said.count("\n") == 1
    assert not [*place.iterdir()]


def test_a_file_is_whole_and_help_names_every_kind(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "found", "--kind", "graph")
    page = (place / "found-v1-graph.html").read_text()
    assert len(page) > 1_000_000 and "<script src" not in page
    said = run(capsys, "--help")
    for kind in ("heatmap", "bars", "matrix", "upset", "graph", "faithfulness", "roc", "scatter"):
        assert kind in said
