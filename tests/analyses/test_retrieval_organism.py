"""On a model that truly retrieves, the analysis finds the heads that do it, and masking them breaks retrieval."""

from __future__ import annotations

import pytest

import workbench as wb
from workbench import organisms


@pytest.fixture(scope="module")
def result():
    model = wb.load_model("organism:retrieval", device="cpu")
    data = wb.tasks.needle(model, n=12, lengths=[128, 256], depths=[0, 0.5, 1], seed=7)
    return wb.retrieval_heads(model, data, max_new_tokens=16, causal={"ks": [3, 4], "draws": 3})


def test_needles_are_recalled_at_every_depth(result):
    assert result.summary["needle_recall"] >= 95
    assert result.tables["recall_grid"]["recall"].min() >= 80


def test_the_found_heads_are_the_ones_on_the_card(result):
    listed = organisms.card("retrieval")["retrieval_heads"]
    truth = {(int(row["layer"]), int(row["head"])) for row in listed}
    assert set(result.heads.top(len(truth)).keys()) == truth
    assert all(result.heads.row(*head)["null_p"] <= 0.01 for head in truth)


def test_few_heads_retrieve_and_most_never_do(result):
    assert 1 <= result.summary["n_retrieval_heads"] <= 6
    assert result.summary["share_zero"] > 0.3


@pytest.mark.parametrize("kind", ["zero", "uniform"])
@pytest.mark.parametrize("scope", ["decode", "all"])
def test_masking_the_top_heads_loses_the_needle_and_random_heads_do_not(result, kind, scope):
    curve = result.tables["causal_curve"]
    at = curve[(curve["kind"] == kind) & (curve["scope"] == scope) & (curve["k"] == 3)].set_index("group")["recall"]
    assert at["top"] < 20
    assert at["random"] > 80
