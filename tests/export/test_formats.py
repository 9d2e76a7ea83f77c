"""Exports: what is written reads back the same, what is shown is escaped, and no half file is ever seen."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench import export
from workbench.errors import InputError
from workbench.export import files
from workbench.tables import HeadTable

FEW = settings(max_examples=30, deadline=None)
NAN = math.nan
EVIL = "<img src=x onerror=alert(1)>&\"'|*_${}%#~^\\[`\n"


def heads(**options) -> HeadTable:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(12, 3, 4)) / 3
    values[:, 1, 2] = NAN
    extra = {"role": rng.choice(["mover", "", "none", "007"], size=(3, 4)), "hits": np.arange(12).reshape(3, 4)}
    extra |= {"hot": rng.random((3, 4)) > 0.5, "share": np.where(rng.random((3, 4)) > 0.7, NAN, 1e-9)}
    names = {"analysis": "retrieval", "metric": "score", "model": "tiny", "fingerprint": "sha256:00", **options}
    return HeadTable.from_examples(values, null=values[::-1], n_kv_heads=2, extra=extra, meta={"seed": 1}, **names)


# --------------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_written_table_reads_back_equal(tmp_path, kind):
    table = heads()
    path = tmp_path / f"heads.{kind}"
    export.write(table, path, provenance={"ref": "retrieval/tiny@v1"})
    back = HeadTable.from_csv(path) if kind == "csv" else HeadTable.from_parquet(path)
    assert back == table
    assert back.meta["seed"] == 1


def test_arrow_and_the_store_s_way_through_it_keep_everything():
    table = heads()
    assert HeadTable.from_arrow(table.to_arrow()) == table
    assert table.to_arrow().schema.field("rank").type == pa.int64()
    assert table.to_arrow()["rank"].null_count == 1
    bare = pa.table(dict(table.columns))  # columns alone, without our metadata
    assert HeadTable.from_arrow(bare, meta=table.meta) == table


@FEW
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=6))
def test_every_float_survives_csv_exactly(tmp_path_factory, scores):
    table = HeadTable.from_scores([scores], n_kv_heads=None, analysis="a", metric="m")
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    table.to_csv(path, provenance={})
    assert HeadTable.from_csv(path) == table


def test_csv_without_provenance_is_read_by_what_the_text_shows(tmp_path):
    table = heads()
    table.to_csv(tmp_path / "t.csv")
    assert not files.sidecar_path(tmp_path / "t.csv").exists()
    back = HeadTable.from_csv(tmp_path / "t.csv", meta=table.meta)
    for name in ("score", "rank", "hits", "hot", "share", "status"):
        assert np.array_equal(back[name], table[name], equal_nan=back[name].dtype.kind == "f"), name
    assert HeadTable.from_csv(tmp_path / "t.csv").meta["analysis"] == "unknown"


def test_a_part_of_a_model_remembers_the_shape_of_the_whole(tmp_path):
    part = heads().rows(slice(0, 5))
    part.to_parquet(tmp_path / "p.parquet")
    part.to_csv(tmp_path / "p.csv", provenance={})
    assert HeadTable.from_parquet(tmp_path / "p.parquet") == HeadTable.from_csv(tmp_path / "p.csv") == part
    assert HeadTable.from_parquet(tmp_path / "p.parquet").shape == (3, 4)


def test_kv_groups_survive_both_formats(tmp_path):
    groups = heads().by_kv_group()
    groups.to_parquet(tmp_path / "g.parquet")
    groups.to_csv(tmp_path / "g.csv", provenance={})
    assert HeadTable.from_parquet(tmp_path / "g.parquet") == HeadTable.from_csv(tmp_path / "g.csv") == groups


def test_json_is_strict_and_complete():
    table = HeadTable.from_scores([[math.inf, NAN, 0.1]], n_kv_heads=1, n=[[1, 0, 3]])
    whole = json.loads(table.to_json() or "", parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert [row["score"] for row in whole["rows"]] == ["inf", None, 0.1]
    assert [row["rank"] for row in whole["rows"]] == [1, None, 2]
    assert whole["meta"]["basis"] == "raw"


# ---------------------------------------------------------------------------------------------------------- provenance


def test_exporting_again_gives_the_same_bytes(tmp_path):
    table, provenance = heads(), {"ref": "a@v1", "config": {"x": np.float32(0.5), "y": NAN}}
    for kind in export.FORMATS:
        for folder in ("a", "b"):
            export.write(table, tmp_path / folder / f"t.{kind}", provenance=provenance)
        for name in (f"t.{kind}", f"t.{kind}.provenance.json"):
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    entry = json.loads((tmp_path / "a" / "t.md.provenance.json").read_text())
    assert entry["ref"] == "a@v1"
    assert entry["config"] == {"x": 0.5, "y": None}
    assert entry["table"]["meta"]["model"] == "tiny"


def test_a_table_changed_by_hand_no_longer_claims_its_provenance(tmp_path):
    path = tmp_path / "t.csv"
    heads().to_csv(path, provenance={})
    path.write_text(path.read_text().replace("ok", "fine", 1))
    with pytest.raises(InputError, match=r"was changed after 't\.csv\.provenance\.json'"):
        HeadTable.from_csv(path)
    assert HeadTable.from_csv(path, meta={}).row(0, 0)["status"] == "fine"


def test_a_foreign_provenance_file_is_named(tmp_path):
    heads().to_csv(tmp_path / "t.csv")
    for content in ("[]", "{", '{"file": {}}', '{"file": {"sha256": "x"}, "table": {"meta": 3}}'):
        (tmp_path / "t.csv.provenance.json").write_text(content)
        with pytest.raises(InputError, match="not a provenance file of ours"):
            HeadTable.from_csv(tmp_path / "t.csv")


# --------------------------------------------------------------------------------------------------- tables for reading


def test_markdown_is_rounded_and_keeps_its_columns():
    text = HeadTable.from_scores([[0.123456, NAN]], n_kv_heads=None, extra={"role": [["a|b", "*x*"]]}).to_markdown()
    assert text is not None
    lines = text.splitlines()
    assert "0.1235" in lines[2] and "123456" not in text
    assert r"a\|b" in lines[2] and r"\*x\*" in lines[3]
    assert "–" in lines[3]
    assert len({line.replace(r"\|", "").count("|") for line in lines}) == 1


def test_top_keeps_the_best_heads_best_first():
    table = HeadTable.from_scores([[0.1, 0.9, 0.5]], n_kv_heads=1)
    shown = [line.split("|")[2].strip() for line in (table.to_markdown(top=2) or "").splitlines()[2:]]
    assert shown == ["1", "2"]
    assert (table.to_latex(top=1) or "").count(r"\\") == 2


def test_html_stands_alone_and_is_escaped():
    table = HeadTable.from_scores([[0.5, NAN]], n_kv_heads=1, model=EVIL, metric=EVIL, extra={EVIL: [[EVIL, "x"]]})
    page = table.to_html() or ""
    assert "<img" not in page and "<script" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert page.startswith("<!DOCTYPE html>")


def test_the_heatmap_of_a_page_shows_the_whole_model_whatever_rows_are_listed():
    page = HeadTable.from_scores([[0.5, 0.25, 0.75]], n_kv_heads=1).to_html(top=1) or ""
    assert page.count("<tr>") == 2
    assert "L0 H1: 0.25" in page and "no row" not in page


# ------------------------------------------------------------------------------------------------------- other tables


def test_tables_that_hold_no_heads_export_too(tmp_path):
    table = pa.table(
        {"id": ["a", "b"], "recall": [0.25, None], "tokens": [[1, 2], []], "n": pa.array([1, 2], pa.int32())}
    )
    rows = list(csv.reader(io.StringIO(str(export.write(table, None, "csv")))))
    assert rows == [["id", "recall", "tokens", "n"], ["a", "0.25", "[1, 2]", "1"], ["b", "", "[]", "2"]]
    export.write(table, tmp_path / "t.parquet")
    assert pq.read_table(tmp_path / "t.parquet").equals(table)
    for kind in ("md", "latex", "html", "json"):
        assert "0.25" in str(export.write(table, None, kind))
    assert export.write(table, None, "csv", top=1, columns=["n", "id"]) == "n,id\n1,a\n"
    assert export.write(table.to_pandas(), None, "csv", columns=["id"]) == "id\na\nb\n"
    assert export.write({"x": np.array([1.5, NAN]), "y": [True, False]}, None, "csv") == "x,y\n1.5,true\n,false\n"
    assert export.write({}, None, "csv") == "\n"


def test_what_cannot_be_exported_is_said_in_one_sentence(tmp_path):
    table = heads()
    cases = [
        (lambda: export.write(table, None, "cvs"), "Did you mean 'csv'"),
        (lambda: export.write(table, tmp_path / "t.xlsx"), "'xlsx' .from the ending"),
        (lambda: export.write(table, None), "Say which format"),
        (lambda: export.write(table, tmp_path, "csv"), "is a folder"),
        (lambda: export.write(table, None, "csv", columns=["scor"]), "Did you mean 'score'"),
        (lambda: export.write({"a": [1], "b": [1, 2]}, None, "csv"), "different lengths"),
        (lambda: export.write(3, None, "csv"), "A int cannot be exported"),
        (lambda: export.write({"a": [1]}, None, "csv", top=0), "top=0"),
        (lambda: export.write({"a": [1, "x"]}, None, "parquet"), "Parquet cannot hold"),
        (lambda: export.write(table, tmp_path / "t.csv", provenance={"x": object()}), "cannot be written as JSON"),
        (lambda: HeadTable.from_csv(tmp_path / "none.csv"), "cannot be read"),
        (lambda: HeadTable.from_parquet(tmp_path / "bad.parquet"), "no readable Parquet"),
        (lambda: HeadTable.from_csv(tmp_path / "ragged.csv"), "3 cells in row 3, but 2 columns"),
        (lambda: HeadTable.from_csv(tmp_path / "twice.csv"), "names the column .* twice"),
        (lambda: HeadTable.from_csv(tmp_path / "empty.csv"), "is empty"),
        (lambda: HeadTable.from_csv(tmp_path / "binary.csv"), "no readable CSV"),
        (lambda: export.write(table, tmp_path / "bad.parquet" / "t.csv"), "cannot be written"),
    ]
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "ragged.csv").write_text("a,b\n1,2\n1,2,3\n")
    (tmp_path / "twice.csv").write_text("a,a\n1,2\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    for act, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            act()
        assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------------------------------- files


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        heads().to_csv(path)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["t.csv"]


def test_exported_files_take_the_usual_permissions(tmp_path):
    old = os.umask(0o022)
    try:
        heads().to_csv(tmp_path / "t.csv")
    finally:
        os.umask(old)
    assert (tmp_path / "t.csv").stat().st_mode & 0o777 == 0o644


def test_a_flipped_bit_in_a_parquet_file_is_noticed(tmp_path):
    path = tmp_path / "t.parquet"
    heads().to_parquet(path)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 4] ^= 0x10
    path.write_bytes(raw)
    with pytest.raises(InputError, match="no readable Parquet"):
        HeadTable.from_parquet(path)


def test_export_of_a_large_model_takes_well_under_a_second(tmp_path):
    table = HeadTable.from_scores(np.random.default_rng(0).normal(size=(80, 64)), n_kv_heads=8)
    start = time.process_time()
    for kind in export.FORMATS:
        export.write(table, tmp_path / f"t.{kind}", provenance={})
    assert time.process_time() - start < 4.0  # six formats of 5120 rows


def test_export_imports_nothing_heavy(tmp_path):
    heads().to_parquet(tmp_path / "h.parquet")
    code = (
        "import sys; from workbench.tables import HeadTable\n"
        f"t = HeadTable.from_parquet({str(tmp_path / 'h.parquet')!r})\n"
        "for kind in ('csv', 'md', 'latex', 'html', 'json'):\n"
        f"    getattr(t, 'to_' + {{'md': 'markdown'}}.get(kind, kind))({str(tmp_path)!r} + '/o.' + kind)\n"
        "print([m for m in ('torch', 'pandas', 'scipy', 'plotly', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
