"""Wide tables: an outer join that invents no number and joins no heads of different models."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench import export
from workbench.errors import InputError
from workbench.export import join, read
from workbench.tables import HeadTable

NAN = math.nan
SAME: dict[str, Any] = {"fingerprint": "sha256:1", "model": "m"}


def table(scores, **options: Any) -> HeadTable:
    return HeadTable.from_scores(scores, n_kv_heads=1, **{**SAME, **options})


def test_missing_heads_are_blank_and_counted():
    a = table([[0.1, NAN], [0.3, 0.4]])
    b = table([[1.0, 2.0], [3.0, 4.0]]).rows(slice(1, 3))
    frame = join({"a": a, "b/c": b}, ranks=True)
    assert list(frame.columns) == ["layer", "head", "a.score", "a.rank", "b/c.score", "b/c.rank"]
    assert frame.columns["a.score"] == [0.1, None, 0.3, 0.4]
    assert frame.columns["a.rank"] == [3, None, 2, 1]
    assert frame.columns["b/c.score"] == [None, 2.0, 3.0, None]
    assert frame.columns["b/c.rank"] == [None, 2, 1, None]
    said = frame.meta["joined"]
    assert (said["a"]["missing"], said["a"]["undefined"]) == (0, 1)
    assert (said["b/c"]["missing"], said["b/c"]["undefined"]) == (2, 0)
    assert frame.meta["model"] == "m"


def test_top_keeps_heads_that_are_high_in_any_table():
    a = table([[0.1, 0.9, 0.5, 0.0]])
    b = table([[0.8, 0.0, 0.1, 0.7]], higher_is_more=True)
    frame = join({"a": a, "b": b}, top=1)
    assert frame.columns["head"] == [0, 1]
    assert join({"a": a, "b": b}, top=2).columns["head"] == [0, 1, 2, 3]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sets(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1), min_size=2, max_size=4))
def test_a_join_is_what_looking_each_head_up_gives(keys):
    rng = np.random.default_rng(0)
    tables = {}
    for number, held in enumerate(keys):
        rows = sorted(held)
        columns = {"layer": [k[0] for k in rows], "head": [k[1] for k in rows], "score": rng.random(len(rows))}
        tables[f"t{number}"] = HeadTable(columns, SAME, shape=(3, 4))
    frame = join(tables)
    joined = list(zip(frame.columns["layer"], frame.columns["head"], strict=True))
    assert joined == sorted(set().union(*keys))
    for name, one in tables.items():
        for row, key in enumerate(joined):
            expected = one.row(*key)["score"] if key in set(one) else None
            assert frame.columns[f"{name}.score"][row] == expected
        assert frame.meta["joined"][name]["missing"] == len(joined) - len(one)


@pytest.mark.parametrize("kind", ["csv", "parquet", "md", "tex", "html", "json"])
def test_a_wide_table_reads_back_from_every_format(tmp_path, kind):
    a = table([[0.1, NAN], [0.3, 0.4]])
    frame = join({"retrieval/a": a, "b@v2": a.rows(slice(0, 3))}, columns=["score", "stderr", "status"], ranks=True)
    path = tmp_path / f"t.{kind}"
    export.write(frame, path, digits=None, provenance={"joined": []})
    columns, meta = read.table(path)
    assert list(columns) == list(frame.columns)
    for name, values in frame.columns.items():
        got = columns[name].tolist()
        if frame.kinds[name] == "text":
            assert [value or "" for value in got] == [value or "" for value in values], name
        else:
            assert [None if value != value else value for value in got] == values, name
    assert meta["joined"]["b@v2"]["missing"] == 1
    before = path.read_bytes(), (tmp_path / f"t.{kind}.provenance.json").read_bytes()
    export.write(frame, path, digits=None, provenance={"joined": []})
    assert before == (path.read_bytes(), (tmp_path / f"t.{kind}.provenance.json").read_bytes())
    json.loads(before[1])


def test_tables_that_do_not_belong_together_are_refused():
    a, grid = table([[0.1, 0.2]]), [[0.5, 0.6]]
    cases = {
        "different models": table(grid, fingerprint="sha256:2"),
        "different bases": table(grid, basis="folded"),
        "no fingerprint": table(grid, fingerprint=""),
        "row per head and 'b' per kv_group": HeadTable.from_scores(grid, n_kv_heads=2, rows="kv_group", **SAME),
    }
    for words, other in cases.items():
        with pytest.raises(InputError, match=words):
            join({"a": a, "b": other})
        if "kv_group" not in words:
            assert join({"a": a, "b": other}, across_models=True).columns["b.score"] == [0.5, 0.6]
    for bad, words in (({"a": a}, "two tables"), ({}, "none")):
        with pytest.raises(InputError, match=words):
            join(bad)
    with pytest.raises(InputError, match="no column 'scor'"):
        join({"a": a, "b": a}, columns=["scor"])
    with pytest.raises(InputError, match="top=0"):
        join({"a": a, "b": a}, top=0)


def test_kv_groups_join_on_their_groups():
    groups = HeadTable.from_scores([[0.1, 0.2]], n_kv_heads=2, rows="kv_group", **SAME)
    frame = join({"a": groups, "b": groups})
    assert list(frame.columns) == ["layer", "kv_group", "a.score", "b.score"]
