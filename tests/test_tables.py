"""The head table: what it refuses, how it ranks and selects, and what it says of two tables."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from workbench.errors import InputError
from workbench.tables import COLUMNS, HeadTable

FEW = settings(max_examples=40, deadline=None)
NAN = math.nan


def table(score, **options) -> HeadTable:
    return HeadTable.from_scores(score, **{"n_kv_heads": None, "analysis": "test", "metric": "m", **options})


def test_rows_are_heads_in_order_with_the_columns_of_the_schema():
    heads = table([[0.1, 0.4], [0.3, 0.2]], n_kv_heads=1)
    assert tuple(heads.columns) == COLUMNS
    assert heads.keys() == ((0, 0), (0, 1), (1, 0), (1, 1))
    assert heads["rank"].tolist() == [4, 1, 2, 3]
    assert heads["kv_group"].tolist() == [0, 0, 0, 0]
    assert heads.matrix().tolist() == [[0.1, 0.4], [0.3, 0.2]]
    assert set(heads.meta) == {"analysis", "metric", "unit", "model", "fingerprint", "basis", "higher_is_more"}
    assert list(heads) == list(heads.keys())


def test_query_heads_know_their_kv_group():
    assert table(np.zeros((1, 8)), n_kv_heads=2)["kv_group"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert table(np.zeros((1, 8)))["kv_group"].tolist() == [-1] * 8
    with pytest.raises(InputError, match="8 heads cannot be split into n_kv_heads=3"):
        table(np.zeros((1, 8)), n_kv_heads=3)


def test_an_undefined_score_is_not_zero_and_not_ranked():
    heads = table([[NAN, -5.0], [2.0, NAN]])
    assert heads["status"].tolist() == ["undefined", "ok", "ok", "undefined"]
    assert np.isnan(heads["rank"][[0, 3]]).all()
    assert heads["rank"][[1, 2]].tolist() == [2, 1]
    assert heads.select("top 4") == ((1, 0), (0, 1))
    assert heads.select("score < 100") == ((1, 0), (0, 1))
    assert len(heads.top(10)) == 2


def test_ranking_follows_the_direction_and_ties_go_to_the_earlier_head():
    assert table([[1.0, 3.0, 2.0]], higher_is_more=False).select("top 2") == ((0, 0), (0, 2))
    assert table([[5.0, 5.0, 5.0]])["rank"].tolist() == [1, 2, 3]
    assert table([[5.0, 5.0, 5.0]], higher_is_more=False)["rank"].tolist() == [1, 2, 3]


@FEW
@given(st.lists(st.lists(st.sampled_from([0.0, 1.0, 2.0, -1.0, NAN]), min_size=4, max_size=4), min_size=1, max_size=4))
def test_ranks_are_a_permutation_in_score_order(score):
    heads = table(score)
    ok = heads.ok
    ranked = heads["score"][ok][np.argsort(heads["rank"][ok])]
    assert sorted(heads["rank"][ok]) == list(range(1, ok.sum() + 1))
    assert (np.diff(ranked) <= 0).all()


def test_rows_given_in_any_order_end_up_sorted():
    heads = HeadTable.build({"layer": [1, 0, 0], "head": [0, 1, 0], "score": [3.0, 2.0, 1.0], "note": ["c", "b", "a"]})
    assert heads.keys() == ((0, 0), (0, 1), (1, 0))
    assert heads["note"].tolist() == ["a", "b", "c"]
    assert not heads.complete
    assert np.isnan(heads.matrix()[1, 1])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"layer": [0], "head": [0]}, "needs a 'score' column"),
        ({"layer": [0], "score": [0.0]}, "needs a 'head' column"),
        ({"layer": [0, 0], "head": [0, 0], "score": [1.0, 2.0]}, r"\(layer 0, head 0\) occurs more than once"),
        ({"layer": [0, 1], "head": [0], "score": [1.0, 2.0]}, "'head' has shape"),
        ({"layer": [0], "head": [0.5], "score": [1.0]}, "'head' holds 0.5 in row 0"),
        ({"layer": [-1], "head": [0], "score": [1.0]}, "'layer' holds -1 in row 0"),
        ({"layer": [0, 0], "head": [-1, 0], "score": [1.0, 1.0]}, "'head' holds -1"),
        ({"layer": [0], "head": [0], "score": ["high"]}, "'score' holds 'high' in row 0"),
        ({"layer": [0], "head": [0], "score": [NAN], "status": ["ok"]}, "undefined score needs a status"),
        ({"layer": [0], "head": [0], "score": [1.0], "null_p": [1.5]}, r"'null_p' holds 1.5 .* \[0, 1\]"),
        ({"layer": [0], "head": [0], "score": [1.0], "stderr": [-1]}, "'stderr' holds -1.0"),
        ({"layer": [0], "head": [0], "score": [1.0], "ci_low": [2], "ci_high": [1]}, "'ci_high' holds 1.0"),
        ({"layer": [0], "head": [0], "score": [1.0], "status": [""]}, "'status' holds  in row 0"),
        ({"layer": [0], "head": [0], "score": [1.0], "status": [3]}, "'status' holds .*3.* in row 0"),
    ],
)
def test_a_bad_table_is_refused_naming_column_and_row(columns, message):
    with pytest.raises(InputError, match=message):
        HeadTable.build(columns)


def test_misspelt_keywords_and_wrong_shapes_are_named():
    with pytest.raises(InputError, match="Did you mean 'metric'"):
        HeadTable.from_scores([[1.0]], n_kv_heads=1, metrik="x")
    with pytest.raises(InputError, match=r"'null_p' has shape \(2,\)"):
        table([[1.0]], null_p=[0.1, 0.2])
    with pytest.raises(InputError, match=r"shape \(3,\); give \[n_layers, n_heads\]"):
        table([1.0, 2.0, 3.0])
    with pytest.raises(InputError, match="extra column 'score' is part of the schema"):
        table([[1.0]], extra={"score": [[1.0]]})
    with pytest.raises(InputError, match="higher_is_more='yes' should be true or false"):
        table([[1.0]], higher_is_more="yes")
    with pytest.raises(InputError, match="cannot be written as JSON"):
        table([[1.0]], meta={"when": object()})
    with pytest.raises(InputError, match=r"Did you mean 'score'"):
        table([[1.0]])["scor"]


def test_a_table_cannot_be_changed_in_place():
    heads = table([[1.0, 2.0]])
    with pytest.raises(ValueError, match="read-only"):
        heads["score"][0] = 7.0


def test_extra_columns_and_metadata_are_kept():
    heads = table(
        [[0.0, 1.0]], extra={"role": [["mover", "none"]], "hits": [[3, 4]], "hot": [[True, False]]}, meta={"seed": 3}
    )
    assert heads["role"].tolist() == ["mover", "none"]
    assert heads["hits"].dtype == np.int64
    assert heads["hot"].dtype == bool
    assert heads.meta["seed"] == 3
    assert heads.matrix("role").tolist() == [["mover", "none"]]
    assert heads.row(0, 1)["hits"] == 4
    with pytest.raises(InputError, match=r"no row for head \(3, 0\)"):
        heads.row(3, 0)


# ----------------------------------------------------------------------------------------------------- from examples


def test_examples_give_mean_error_interval_count_and_p():
    rng = np.random.default_rng(0)
    values = rng.normal(1.0, 1.0, size=(40, 2, 3))
    values[:10, 0, 0] = NAN
    values[:, 1, 2] = NAN
    heads = HeadTable.from_examples(values, null=rng.normal(0.0, 1.0, size=values.shape), n_kv_heads=3, metric="m")
    seen = values[10:, 0, 0]
    first = heads.row(0, 0)
    assert first["score"] == pytest.approx(seen.mean())
    assert first["stderr"] == pytest.approx(scipy_stats.sem(seen))
    assert first["n"] == 30
    assert first["ci_low"] < first["score"] < first["ci_high"]
    assert first["null_p"] < 0.05
    last = heads.row(1, 2)
    assert math.isnan(last["score"]) and last["status"] == "undefined" and last["n"] == 0
    assert math.isnan(last["null_mean"]) and math.isnan(last["null_p"])


def test_q_is_over_the_rows_that_were_tested():
    heads = table([[1.0, 2.0, 3.0]], null_p=[[0.01, NAN, 0.04]], extra={"role": [["a", "b", "c"]]})
    with_q = heads.with_q()
    np.testing.assert_allclose(with_q["q"], [0.02, NAN, 0.04])
    assert list(with_q.columns) == [*heads.columns, "q"] and with_q.meta == heads.meta
    assert np.isnan(table([[1.0]]).with_q()["q"]).all() and "q" not in heads.columns


def test_same_seed_same_table():
    values = np.random.default_rng(1).random((15, 2, 2))
    make = [HeadTable.from_examples(values, null=values[::-1], n_kv_heads=2, seed=seed) for seed in (3, 3, 4)]
    assert make[0] == make[1]
    assert make[0] != make[2]


def test_null_draws_give_an_empirical_p_in_the_direction_of_the_score():
    values = np.full((4, 1, 2), 0.9)
    draws = np.linspace(0, 1, 99)[:, None, None] * np.ones((1, 1, 2))
    more = HeadTable.from_examples(values, null_draws=draws, n_kv_heads=2)
    less = HeadTable.from_examples(values, null_draws=draws, n_kv_heads=2, higher_is_more=False)
    assert more["null_p"][0] == pytest.approx(0.11, abs=0.011)
    assert less["null_p"][0] == pytest.approx(0.90, abs=0.011)
    assert more["null_mean"] == pytest.approx(0.5)
    with pytest.raises(InputError, match="not both"):
        HeadTable.from_examples(values, null=values, null_draws=draws, n_kv_heads=2)
    with pytest.raises(InputError, match="paired with"):
        HeadTable.from_examples(values, null=draws, n_kv_heads=2)


def test_no_example_at_all_leaves_every_head_undefined():
    heads = HeadTable.from_examples(np.zeros((0, 2, 2)), n_kv_heads=2, status="no sample passed the gate")
    assert np.isnan(heads["score"]).all()
    assert set(heads["status"]) == {"no sample passed the gate"}
    assert heads.select("top 3") == ()


# --------------------------------------------------------------------------------------------------------- selection


def test_selection_rules():
    heads = table([[0.05, 0.10, 0.80, 0.30]], null_p=[[0.9, 0.5, 0.001, 0.02]], extra={"calls": [[1, 2, 3, 4]]})
    assert heads.select("score >= 0.1") == ((0, 2), (0, 3), (0, 1))
    assert heads.select("score>.1") == ((0, 2), (0, 3))
    assert heads.select("top 1") == heads.select("TOP 1") == ((0, 2),)
    assert heads.select("top 50%") == ((0, 2), (0, 3))
    assert heads.select("top 2%") == ((0, 2),)  # never fewer than one
    assert heads.select("p < 0.05") == ((0, 2), (0, 3))
    assert heads.select("q < 0.03") == ((0, 2),)  # 0.02 becomes 0.04 of four tests
    assert heads.select("score >= 1e-1 and calls != 2") == ((0, 2), (0, 3))
    assert heads.select("top 3 and calls >= 4") == ((0, 3),)
    assert heads.select(np.array([[True, False, False, True]])) == ((0, 3), (0, 0))
    assert heads.select([True, False, True, False]) == ((0, 2), (0, 0))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("best 5", "not understood at 'best 5'"),
        ("", "not understood"),
        ("top", "not understood"),
        ("top 0", "top 0"),
        ("top 2.5", "top 2.5"),
        ("top 0%", "0%"),
        ("top 200%", "200%"),
        ("scor > 1", "Did you mean 'score'"),
        ("status == 1", "'status', which is no numeric column"),
        ("score > 1 or score < 0", "not understood"),
        ("__import__('os')", "not understood"),
        ("score > nan", "not understood"),
    ],
)
def test_rules_outside_the_grammar_are_refused(rule, message):
    with pytest.raises(InputError, match=message):
        table([[1.0]]).select(rule)


def test_masks_of_the_wrong_kind_are_refused():
    with pytest.raises(InputError, match=r"shape \(3,\); give \(1, 2\)"):
        table([[1.0, 2.0]]).select([True, False, True])
    with pytest.raises(InputError, match="must be boolean"):
        table([[1.0, 2.0]]).select([0, 1])


def test_top_is_a_table_best_first():
    best = table([[0.1, 0.4], [0.3, 0.2]]).top(3)
    assert list(best) == [(0, 1), (1, 0), (1, 1)]
    assert best["rank"].tolist() == [1, 2, 3]
    assert best.shape == (2, 2)
    for bad in (0, -1, 2.5, True, "3"):
        with pytest.raises(InputError, match="whole number"):
            table([[1.0]]).top(bad)


# -------------------------------------------------------------------------------------------------------- comparison


def test_a_table_agrees_with_itself_and_not_with_noise():
    rng = np.random.default_rng(0)
    a, b = table(rng.normal(size=(8, 8))), table(rng.normal(size=(8, 8)))
    same = a.compare(a)
    assert (same.n, same.jaccard, same.a_in_b, same.b_in_a) == (64, 1.0, 1.0, 1.0)
    assert same.pearson == pytest.approx(1.0) and same.spearman == pytest.approx(1.0)
    assert same.p == pytest.approx(1 / math.comb(64, 10))
    other = a.compare(b, rule="top 25%")
    assert other.pearson == pytest.approx(scipy_stats.pearsonr(a["score"], b["score"]).statistic)
    assert other.p > 0.01
    assert set(other.shared) == set(other.heads_a) & set(other.heads_b)
    assert isinstance(other.to_dict()["heads_a"][0], list)


def test_only_heads_defined_in_both_tables_are_compared():
    a = table([[9.0, 1.0, 2.0, NAN]])
    b = table([[NAN, 1.0, 2.0, 9.0]])
    found = a.compare(b, rule="top 1")
    assert found.n == 2
    assert found.heads_a == found.heads_b == ((0, 2),)
    assert found.p == pytest.approx(0.5)


def test_incomparable_tables_are_refused_with_the_way_out():
    a = table(np.zeros((2, 4)), n_kv_heads=2)
    with pytest.raises(InputError, match="2x4 and 3x4"):
        a.compare(table(np.zeros((3, 4))))
    folded = table(np.zeros((2, 4)), basis="folded")
    with pytest.raises(InputError, match="'raw' and 'folded'; pass allow_basis_mismatch=True"):
        a.compare(folded)
    assert a.compare(folded, allow_basis_mismatch=True).n == 8
    groups = table(np.zeros((2, 2)), rows="kv_group")
    with pytest.raises(InputError, match=r"by_kv_group"):
        a.compare(groups)
    assert a.by_kv_group().compare(groups).n == 4


# --------------------------------------------------------------------------------------------------------- kv groups


def test_a_table_of_kv_groups_is_keyed_by_group():
    groups = table([[0.5, 0.9], [0.1, NAN]], rows="kv_group")
    assert groups.row_kind == "kv_group"
    assert groups["head"].tolist() == [-1] * 4
    assert groups.select("top 2") == ((0, 1), (0, 0))
    assert groups.matrix()[1, 0] == 0.1


def test_heads_reduce_to_their_best_or_mean_group():
    heads = table([[1.0, 3.0, NAN, 5.0], [NAN, NAN, 2.0, 4.0]], n_kv_heads=2)
    assert heads.by_kv_group().matrix()[0].tolist() == [3.0, 5.0]
    assert heads.by_kv_group("mean").matrix()[0].tolist() == [2.0, 5.0]
    assert heads.by_kv_group()["status"].tolist() == ["ok", "ok", "undefined", "ok"]
    lower = table([[1.0, 3.0]], n_kv_heads=1, higher_is_more=False)
    assert lower.by_kv_group().matrix().tolist() == [[1.0]]
    with pytest.raises(InputError, match="does not know its kv groups"):
        table([[1.0, 3.0]]).by_kv_group()


# ------------------------------------------------------------------------------------------------------------ display


def test_the_notebook_view_escapes_every_text_and_runs_no_script():
    evil = "<script>alert(1)</script>"
    heads = table([[0.1, NAN]], status=[["ok", evil]], model=evil, metric=evil, unit=evil, extra={evil: [[1, 2]]})
    view = heads._repr_html_()
    assert "<script" not in view
    assert "&lt;script&gt;" in view
    assert "<table" in view and "H1: &lt;script&gt;" in view


def test_the_prompt_view_says_what_the_table_is():
    text = repr(table([[0.1, NAN]], model="gpt2", unit="nats"))
    assert "m (nats), gpt2; 1 layers x 2 heads, 1 of 2 ok" in text
    assert "stderr" not in text  # undefined in every row
    assert "0 of 1 ok" in repr(table([[NAN]]))


def test_the_pandas_view_has_nullable_counts():
    frame = table([[0.1, NAN]], n=[[3, 0]]).df
    assert list(frame.columns) == list(COLUMNS)
    assert str(frame["rank"].dtype) == "Int64"
    assert frame["rank"].isna().tolist() == [False, True]


def test_importing_the_table_stays_light():
    heavy = ("torch", "pandas", "scipy", "plotly", "sklearn", "pyarrow", "transformers", "transformer_lens")
    code = (
        "import sys; import workbench.tables, workbench.plots, workbench.published, workbench.export; "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
