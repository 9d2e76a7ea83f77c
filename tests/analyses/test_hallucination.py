"""CHAIR and POPE figures by hand, and against the counts of their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from workbench.analyses.hallucination import Counts, answer, chair, count, pope, separation
from workbench.tasks.captions import mentioned, mentions

WORLD = ("cat", "dog", "hot dog", "red circle")


def test_objects_are_counted_once_and_by_their_longest_name() -> None:
    text = "A cat and two cats beside a hot dog ."
    assert mentioned(text, WORLD) == ("cat", "hot dog")
    assert [(text[a:b], name) for name, a, b in mentions(text, WORLD)] == [
        ("cat", "cat"),
        ("cats", "cat"),
        ("hot dog", "hot dog"),
    ]
    assert count(text, ["cat", "dog"], WORLD) == Counts(hits=1, false=1, shown=2, words=10)


def test_chair_by_hand() -> None:
    captions = [Counts(2, 1, 2, 10), Counts(1, 0, 3, 20), Counts(0, 1, 1, 6)]
    found = chair(captions, n_boot=200)
    assert found["n"] == 3 and found["chair_s"] == pytest.approx(2 / 3)
    assert found["chair_i"] == pytest.approx(2 / 5) and found["precision"] == pytest.approx(3 / 5)
    assert found["recall"] == pytest.approx(3 / 6) and found["words"] == 12
    assert found["f1"] == pytest.approx(2 * 0.6 * 0.5 / 1.1)
    for name in ("chair_i", "chair_s", "recall", "f1"):
        assert found[f"{name}_low"] <= found[name] <= found[f"{name}_high"]
    assert math.isnan(chair([Counts(0, 0, 1, 4), Counts(0, 0, 2, 4)], n_boot=10)["chair_i"])


def test_pope_by_hand() -> None:
    said, truth = ["yes", "yes", "no", None, "no"], ["yes", "no", "no", "yes", "yes"]
    found = pope(said, truth, n_boot=200)
    assert found["accuracy"] == pytest.approx(2 / 5) and found["yes_ratio"] == pytest.approx(2 / 5)
    assert found["precision"] == pytest.approx(1 / 2) and found["recall"] == pytest.approx(1 / 3)
    assert found["f1"] == pytest.approx(2 * 0.5 / 3 / (0.5 + 1 / 3)) and found["unanswered"] == pytest.approx(1 / 5)
    assert 0 <= found["accuracy_low"] < found["accuracy"] < found["accuracy_high"] <= 1


def test_saying_the_same_three_times_is_no_more_evidence() -> None:
    """Draws of random heads are pooled: with every caption counted, intervals were too narrow by the root of draws."""
    captions = [Counts(2, 1, 2, 10), Counts(1, 0, 3, 20), Counts(0, 1, 1, 6), Counts(3, 0, 3, 9)]
    once, thrice = chair(captions, n_boot=200), chair(captions * 3, of=[*"abcd"] * 3, n_boot=200)
    assert thrice.pop("n") == 3 * once.pop("n") and thrice == pytest.approx(once)
    said, truth = ["yes", "yes", "no", None], ["yes", "no", "no", "yes"]
    once, thrice = pope(said, truth, n_boot=200), pope(said * 3, truth * 3, of=[*"abcd"] * 3, n_boot=200)
    assert thrice.pop("n") == 3 * once.pop("n") and thrice == pytest.approx(once)


def test_answers_are_read_as_words() -> None:
    assert [answer(text) for text in ("Yes, a cat.", "There is no cat", "Nothing", "know")] == ["yes", "no", None, None]


def test_separation_is_the_rank_statistic() -> None:
    rng = np.random.default_rng(0)
    low, high = rng.normal(0, 1, 300).tolist(), rng.normal(1, 1, 200).tolist()
    found = separation(low, high, n_boot=200)
    assert found["cohens_d"] == pytest.approx(1, abs=0.25) and found["auroc"] == pytest.approx(0.76, abs=0.05)
    assert 0 < found["difference_low"] < found["difference"] < found["difference_high"]
    assert separation([1.0, 1.0], [1.0, 1.0])["auroc"] == 0.5
    assert math.isnan(separation([1.0], [2.0, 3.0])["auroc"])
