"""Every format reads back to the table that was written, or to what it showed of it."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.export.test_formats import heads
from workbench import export
from workbench.errors import InputError
from workbench.export import files, read
from workbench.tables import HeadTable

FEW = settings(max_examples=25, deadline=None)
ENDINGS = {"csv": "csv", "parquet": "parquet", "md": "md", "latex": "tex", "html": "html", "json": "json"}
# Texts that every format can carry: printable, no runs of spaces, drawable by pdfLaTeX, and no lone dash.
PLAIN = st.text(st.sampled_from("aZ09 _|*[]<>&\"'`\\{}$#%^~-,;:.!?()éα"), max_size=12).map(
    lambda t: " ".join(t.split())
)


def equal(a: np.ndarray, b: np.ndarray) -> bool:
    return len(a) == len(b) and np.array_equal(a, b, equal_nan=a.dtype.kind == "f" and b.dtype.kind == "f")


@pytest.mark.parametrize("kind", export.FORMATS)
@pytest.mark.parametrize("part", ["all", "some rows", "kv groups"])
def test_heads_read_back_equal(tmp_path, kind, part):
    table = heads()
    table = {"all": table, "some rows": table.rows(slice(0, 5)), "kv groups": table.by_kv_group()}[part]
    path = tmp_path / f"t.{ENDINGS[kind]}"
    export.write(table, path, digits=None, provenance={"ref": "a@v1"})
    assert read.heads(path) == table


@FEW
@given(
    st.lists(st.tuples(st.floats(), PLAIN, st.booleans(), st.integers(-(2**53), 2**53)), min_size=1, max_size=6),
    st.sampled_from(export.FORMATS),
)
def test_any_columns_read_back_equal(tmp_path_factory, rows, kind):
    x, t, b, i = (list(values) for values in zip(*rows, strict=True))
    table = {"x_1": np.array(x), "t|%": t, "flag": np.array(b), "whole": np.array(i, dtype=np.int64)}
    path = tmp_path_factory.mktemp("r") / f"t.{ENDINGS[kind]}"
    export.write(table, path, digits=None, provenance={})
    columns, _ = read.table(path)
    assert list(columns) == list(table)
    assert equal(columns["x_1"], table["x_1"])
    assert columns["t|%"].tolist() == t
    assert columns["flag"].tolist() == b
    assert columns["whole"].tolist() == i


@pytest.mark.parametrize("kind", ["md", "latex", "html"])
def test_a_rounded_table_reads_back_as_it_shows_and_is_no_head_table(tmp_path, kind):
    table = heads()
    path = tmp_path / f"t.{ENDINGS[kind]}"
    export.write(table, path, provenance={})
    columns, meta = read.table(path)
    assert columns["score"].tolist()[0] == float(f"{table['score'][0]:.4g}")
    assert columns["rank"].tolist()[:3] == table["rank"].tolist()[:3]
    assert meta["model"] == "tiny"
    with pytest.raises(InputError, match="shows rounded numbers"):
        read.heads(path)
    files.sidecar_path(path).unlink()
    inferred, _ = read.table(path)
    for name in ("layer", "score", "status", "hot"):
        assert (
            inferred[name].tolist() == pytest.approx(columns[name].tolist(), nan_ok=True)
            if name == "score"
            else (inferred[name].tolist() == columns[name].tolist())
        )


def test_flags_and_counts_that_are_not_known_stay_unknown(tmp_path):
    table = pa.table({"flag": [True, None, False], "count": [1, None, 3], "x": [1.5, None, math.inf]})
    for kind, ending in ENDINGS.items():
        if kind == "parquet":
            continue
        export.write(table, tmp_path / f"t.{ending}", digits=None, provenance={})
        columns, _ = read.table(tmp_path / f"t.{ending}")
        assert columns["flag"].tolist() == [True, None, False], kind
        assert [math.isnan(value) for value in columns["count"]] == [False, True, False], kind
        assert columns["x"].tolist()[::2] == [1.5, math.inf] and math.isnan(columns["x"][1]), kind


def test_json_carries_lists_and_the_difference_between_no_text_and_an_empty_one(tmp_path):
    table = pa.table({"tokens": [[1, 2], [3, 4]], "text": ["", None], "looks": ["inf", "1"]})
    export.write(table, tmp_path / "t.json")
    columns, _ = read.table(tmp_path / "t.json")
    assert columns["tokens"].tolist() == [[1, 2], [3, 4]]
    assert columns["text"].tolist() == ["", None] and columns["looks"].tolist() == ["inf", "1"]


def test_what_is_no_file_of_ours_is_said(tmp_path):
    bad = {
        "a.json": "[1]",
        "b.json": json.dumps({"meta": {}, "columns": ["x"], "kinds": {}, "rows": [{}]}),
        "a.md": "hello\n",
        "a.tex": "\\begin{tabular}{l}\\end{tabular}",
        "b.tex": "% columns: [x\n\\midrule\n",
        "a.html": "<p>no table</p>",
        "a.docx": "",
        "c.csv": "flag\nmaybe\n",
    }
    for name, content in bad.items():
        (tmp_path / name).write_text(content)
        if name == "c.csv":
            export.write({"flag": [True]}, tmp_path / name, provenance={})
            text = (tmp_path / name).read_bytes().replace(b"true", b"maybe")
            (tmp_path / name).write_bytes(text)
            files.write_sidecar(tmp_path / name, text, {}, {"meta": {}, "columns": {"flag": "bool"}})
        with pytest.raises(InputError) as caught:
            read.table(tmp_path / name)
        assert "\n" not in str(caught.value) and (name in str(caught.value) or "docx" in str(caught.value))


def test_half_a_character_is_refused(tmp_path):
    with pytest.raises(InputError, match="no character"):
        export.write({"x": ["\ud800"]}, tmp_path / "t.csv")


def test_top_rows_read_back_in_the_order_of_the_model(tmp_path):
    table = HeadTable.from_scores([[0.1, 0.9, 0.5]], n_kv_heads=1)
    export.write(table, tmp_path / "t.json", top=2, provenance={})
    assert read.heads(tmp_path / "t.json").keys() == ((0, 1), (0, 2))


@pytest.mark.parametrize("kind", export.FORMATS)
def test_a_file_with_changed_bytes_is_refused_or_read_never_a_traceback(tmp_path, kind):
    path = tmp_path / f"t.{ENDINGS[kind]}"
    export.write(heads(), path, digits=None)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        content = bytearray(whole)
        for at in rng.integers(0, len(whole), size=rng.integers(1, 6)):
            content[at] = rng.choice(list(b'\x00\xff,"|&\\{}<>\n-0e9') if rng.random() < 0.8 else list(range(256)))
        path.write_bytes(bytes(content)[: len(whole) if rng.random() < 0.7 else rng.integers(len(whole))])
        for reader in (read.table, read.heads):
            try:
                reader(path)
            except InputError as error:
                assert "\n" not in str(error)
