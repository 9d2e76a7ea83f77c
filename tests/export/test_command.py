"""`workbench export` on artifacts of a store: wide tables, other groups' formats, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench import published
from workbench.cli import main
from workbench.export import read
from workbench.store import Store
from workbench.tables import HeadTable

SCORES = np.random.default_rng(0).random((5, 3, 4)).astype(np.float32)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with retrieval/a (per-example scores), ablation/b (fewer heads), other/c (other model), duo/d (gates)."""
    monkeypatch.setenv("WORKBENCH_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    store = Store(durable=False)
    meta: dict[str, Any] = {"model": "m", "fingerprint": "sha256:1"}
    a = HeadTable.from_examples(SCORES, n_kv_heads=2, n_boot=10, **meta)
    b = HeadTable.from_scores(-SCORES[0], n_kv_heads=2, **meta).rows(slice(0, 10))
    c = HeadTable.from_scores(SCORES[0], n_kv_heads=2, model="n", fingerprint="sha256:2")
    d = HeadTable.from_scores(SCORES[0, :, :2], n_kv_heads=2, rows="kv_group", **meta)
    for name, table in {"retrieval/a": a, "ablation/b": b, "other/c": c, "duo/d": d}.items():
        with store.stage(name, config={"analysis": name}) as out:
            out.table("heads", table.to_arrow())
            if name == "retrieval/a":
                out.tensors("arrays", {"per_example": SCORES})
            out.table("samples", {"recall": [0.5, 1.0]})
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(["export", *arguments]) == code
    captured = capsys.readouterr()
    if code:
        assert captured.out == "" and captured.err.count("\n") == 1
        return captured.err
    return captured.out


def test_join_writes_one_wide_table_with_the_provenance_of_every_part(place, capsys):
    for ending in ("csv", "parquet", "md", "tex", "html", "json"):
        said(capsys, "--join", "retrieval/a", "ablation/b", "--ranks", "--digits", "0", "-o", f"t.{ending}")
        columns, _ = read.table(f"t.{ending}")
        assert list(columns)[2:] == ["retrieval/a.score", "retrieval/a.rank", "ablation/b.score", "ablation/b.rank"]
        assert len(columns["layer"]) == 12 and np.isnan(columns["ablation/b.score"]).sum() == 2
        known = json.loads(Path(f"t.{ending}.provenance.json").read_text())
        assert [part["ref"] for part in known["joined"]] == ["retrieval/a@v1", "ablation/b@v1"]
        assert known["table"]["meta"]["joined"]["ablation/b"]["missing"] == 2
    text = said(capsys, "--join", "retrieval/a", "ablation/b", "--columns", "score,ci_low", "--top", "1")
    assert text.startswith("layer,head,retrieval/a.score,retrieval/a.ci_low,ablation/b.score,ablation/b.ci_low\n")
    assert text.count("\n") in (2, 3)


def test_join_takes_published_files_and_other_models_only_when_told(place, capsys):
    published.to_wu_json(SCORES, place / "wu.json")
    assert "--across-models" in said(capsys, "--join", "retrieval/a", "other/c", code=2)
    assert "no fingerprint" in said(capsys, "--join", "retrieval/a", "wu:wu.json", code=2)
    text = said(capsys, "--join", "retrieval/a", "other/c", "wu:wu.json", "--across-models")
    assert text.startswith("layer,head,retrieval/a.score,other/c.score,wu:wu.json.score\n")
    assert "kv_group" in said(capsys, "--join", "retrieval/a", "duo/d", code=2)


def test_the_formats_of_other_groups_read_back_equal(place, capsys):
    said(capsys, "retrieval/a", "-f", "wu", "-o", "scores.json")
    assert np.array_equal(published.read_wu_per_example("scores.json"), SCORES)
    said(capsys, "duo/d", "-f", "duo", "-o", "gates.tsv")
    assert np.array_equal(published.read_duo_tsv("gates.tsv").matrix(), SCORES[0, :, :2])
    before = Path("scores.json").read_bytes(), Path("scores.json.provenance.json").read_bytes()
    said(capsys, "retrieval/a", "-f", "wu", "-o", "scores.json")
    assert before == (Path("scores.json").read_bytes(), Path("scores.json.provenance.json").read_bytes())
    assert json.loads(before[1])["ref"] == "retrieval/a@v1"
    assert said(capsys, "retrieval/a", "-f", "wu").encode().strip() == before[0].strip()


def test_latex_takes_a_caption_columns_and_the_best_heads(place, capsys):
    text = said(
        capsys, "retrieval/a", "-f", "tex", "--top", "3", "--columns", "layer,head,score", "--caption", "5% & up",
        "--label", "tab:a", "--digits", "2",
    )  # fmt: skip
    assert r"\caption{5\% \& up}" in text and r"\label{tab:a}" in text and text.count(r" \\") == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["retrieval/a", "ablation/b"], "--join"),
        (["--join", "retrieval/a"], "two tables"),
        (["--join", "retrieval/a", "retrieval/a@v1"], "given twice"),
        (["--join", "retrieval/a", "ablation/b", "--table", "samples"], "'samples'"),
        (["--join", "retrieval/a", "ablation/b", "--columns", "scor"], "'scor'"),
        (["retrieval/a", "--ranks"], "--join"),
        (["ablation/b", "-f", "wu"], "no scores of single examples"),
        (["retrieval/a", "-f", "duo"], "by_kv_group"),
        (["retrieval/a", "-f", "wu", "--top", "3"], "every head"),
        (["retrieval/a", "--caption", "x"], "LaTeX"),
        (["retrieval/a", "-f", "tex", "--label", "a b"], "'a b'"),
        (["retrieval/a", "-f", "tex", "--digits", "40"], "digits=40"),
        (["retrieval/a", "--columns", "scor"], "Did you mean 'score'"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(place, capsys, arguments, words):
    assert words in said(capsys, *arguments, code=2)
