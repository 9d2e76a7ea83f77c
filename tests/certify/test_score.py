"""A ranking is held to the truth by AUROC, precision and recall; undefined rows never help."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.analyses.base import Finding
from workbench.certify.score import agreement
from workbench.tables import HeadTable

META = {"analysis": "a", "metric": "m", "unit": "u", "model": "x", "fingerprint": "f", "basis": "raw"}


def table(scores: list[list[float]], *, higher_is_more: bool = True) -> HeadTable:
    return HeadTable.from_scores(np.array(scores), n_kv_heads=2, meta={**META, "higher_is_more": higher_is_more})


def test_a_perfect_ranking_has_auroc_one() -> None:
    found = agreement(table([[0.0, 3.0], [2.0, 1.0]]), Finding("x"), frozenset({(0, 1), (1, 0)}), frozenset())
    assert (found.auroc, found.precision, found.recall) == (1.0, 1.0, 1.0)
    assert found.heads == ((0, 1), (1, 0))


def test_a_reversed_ranking_has_auroc_zero_and_lower_is_more_turns_it() -> None:
    truth = frozenset({(0, 0)})
    scores = [[0.0, 3.0], [2.0, 1.0]]
    assert agreement(table(scores), Finding("x"), truth, frozenset()).auroc == 0.0
    assert agreement(table(scores, higher_is_more=False), Finding("x"), truth, frozenset()).auroc == 1.0


def test_ties_count_half() -> None:
    found = agreement(table([[1.0, 1.0], [1.0, 1.0]]), Finding("x"), frozenset({(0, 0)}), frozenset())
    assert found.auroc == 0.5


def test_magnitude_finds_heads_that_work_against_the_answer() -> None:
    truth = frozenset({(0, 0), (1, 0)})
    scores = [[-5.0, 0.1], [4.0, 0.2]]
    assert agreement(table(scores), Finding("x"), truth, frozenset()).auroc == 0.5
    assert agreement(table(scores), Finding("x", magnitude=True), truth, frozenset()).auroc == 1.0


def test_optional_heads_count_neither_way() -> None:
    found = agreement(table([[9.0, 3.0], [2.0, 1.0]]), Finding("x"), frozenset({(0, 1)}), frozenset({(0, 0)}))
    assert (found.auroc, found.heads) == (1.0, ((0, 1),))


def test_an_undefined_score_of_a_true_head_ranks_last() -> None:
    found = agreement(table([[np.nan, 3.0], [2.0, 1.0]]), Finding("x"), frozenset({(0, 0), (0, 1)}), frozenset())
    assert found.auroc == pytest.approx(0.5)
    assert found.heads == ((0, 1), (1, 0))


def test_nothing_defined_is_no_finding() -> None:
    status = np.full((1, 2), "undefined", dtype=object)
    empty = HeadTable.from_scores(
        np.full((1, 2), np.nan), n_kv_heads=2, status=status, meta={**META, "higher_is_more": True}
    )
    found = agreement(empty, Finding("x"), frozenset({(0, 0)}), frozenset())
    assert found.heads == ()
    assert found.recall == 0.0
    assert found.auroc == 0.5  # all tied
