"""The arithmetic of retrieval scores on attention rows made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.analyses.retrieval import properties, score
from workbench.analyses.retrieval.causal import conditions, ladder
from workbench.analyses.retrieval.params import CausalParams
from workbench.errors import InputError

PROMPT = [0, 9, 5, 6, 7, 9, 8]  # the needle is 5 6 7 at [2, 5)
SPAN = (2, 5)


def keys(*per_step):
    """One layer, one head: the attended key of each step."""
    return np.array(per_step).reshape(-1, 1, 1)


def test_a_head_that_attends_to_each_needle_token_as_it_is_emitted_scores_one():
    copies = score.Copies.find(keys(2, 3, 4), [5, 6, 7], PROMPT)
    assert score.wu(copies, PROMPT, SPAN)[0, 0] == 1.0


def test_attending_to_the_needle_without_emitting_its_token_is_no_copy():
    copies = score.Copies.find(keys(3, 2, 4), [5, 6, 9], PROMPT)
    assert score.wu(copies, PROMPT, SPAN)[0, 0] == 0.0


def test_emitting_the_token_from_outside_the_needle_is_no_copy():
    prompt = [5, 9, 5, 6, 7]
    copies = score.Copies.find(keys(0), [5], prompt)
    assert score.wu(copies, prompt, (2, 5))[0, 0] == 0.0


def test_repetition_counts_once_in_the_paper_and_every_time_in_the_reference_code():
    copies = score.Copies.find(keys(2, 2, 2, 2), [5, 5, 5, 5], PROMPT)
    assert score.wu(copies, PROMPT, SPAN)[0, 0] == pytest.approx(1 / 3)
    assert score.wu_compat(copies, SPAN)[0, 0] == pytest.approx(4 / 3)


def test_a_needle_that_repeats_a_token_can_still_score_one():
    prompt = [0, 5, 6, 5]
    copies = score.Copies.find(keys(1, 2, 3), [5, 6, 5], prompt)
    assert score.wu(copies, prompt, (1, 4))[0, 0] == 1.0


def test_attention_on_generated_positions_never_counts():
    copies = score.Copies.find(keys(7, 8), [5, 6], PROMPT)  # keys beyond the prompt
    assert score.wu(copies, PROMPT, SPAN)[0, 0] == 0.0


def test_the_step_that_emits_the_stopping_newline_is_scored():
    prompt = [0, 5, 144]
    copies = score.Copies.find(keys(1, 2), [5, 144], prompt)
    assert score.wu_compat(copies, (1, 3))[0, 0] == 1.0


@pytest.mark.parametrize(("n_tokens", "early"), [(8, 0), (10, 0), (11, 1), (20, 1), (21, 2), (30, 2), (31, 3)])
def test_the_reference_span_finder_starts_early_on_long_needles(n_tokens, early):
    """Spec 1.9: a needle of u distinct tokens is found ceil(0.1 u) - 1 tokens before it starts."""
    needle = list(range(100, 100 + n_tokens))
    prompt = list(range(50)) + needle + list(range(60, 90))
    assert score.find_span_by_token_set(needle, prompt) == (50 - early, 50 - early + n_tokens)


def test_the_reference_span_finder_gives_an_empty_span_when_nothing_matches():
    assert score.find_span_by_token_set([1, 2, 3], [7, 8, 9]) == (-1, -1)
    copies = score.Copies.find(keys(0), [7], [7, 8, 9])
    assert score.wu_compat(copies, (-1, -1))[0, 0] == 0.0


@pytest.mark.parametrize(
    ("needle", "response", "percent"),
    [
        ("amber violet", "Amber and violet.", 100),
        ("amber violet", "amber amber", 50),
        ("amber amber", "amber", 50),
        ("amber", "", 0),
        ("...", "so ...", 100),
        ("...", "so", 0),
    ],
)
def test_needle_recall_is_unigram_recall(needle, response, percent):
    assert score.needle_recall(needle, response) == percent


def test_control_spans_keep_the_width_and_avoid_needle_and_bos():
    spans = score.control_spans(30, (10, 15), 200, np.random.default_rng(0))
    assert spans is not None
    assert ((spans[:, 1] - spans[:, 0]) == 5).all()
    assert ((spans[:, 1] <= 10) | (spans[:, 0] >= 15)).all()
    assert spans.min() >= 1
    assert spans.max() <= 30
    assert score.control_spans(8, (1, 7), 5, np.random.default_rng(0)) is None


def test_shares_follow_the_paper_s_bins():
    mean = np.array([[0.0, 0.05, 0.1, 0.49], [0.5, 1.0, 0.0, np.nan]])
    found = properties.shares(mean, 0.1)
    assert found["n_heads"] == 7
    assert found["n_retrieval_heads"] == 4
    assert found["share_zero"] == pytest.approx(2 / 7)
    assert found["share_below_threshold"] == pytest.approx(1 / 7)
    assert found["share_threshold_to_half"] == pytest.approx(2 / 7)
    assert found["share_half_and_above"] == pytest.approx(2 / 7)


def test_activation_frequency_counts_samples_above_zero():
    per_example = np.array([[[0.0, 0.2, np.nan]], [[0.0, 0.0, np.nan]]])
    np.testing.assert_array_equal(properties.activation_frequency(per_example), [[0.0, 0.5, np.nan]])


def test_random_heads_match_the_layers_and_avoid_retrieval_heads():
    ranked = [(layer, head) for layer in range(3) for head in range(8)]
    planned = conditions(ranked, 4, 8, CausalParams(ks=(2,), draws=20), np.random.default_rng(0))
    for condition in planned:
        if condition.group == "random":
            assert [layer for layer, _ in condition.heads] == [0, 0]
            assert not set(condition.heads) & set(ranked[:4])


def test_a_k_beyond_the_model_is_refused():
    with pytest.raises(InputError, match=r"causal\.ks contains 99"):
        conditions([(0, 0)], 0, 1, CausalParams(ks=(99,)), np.random.default_rng(0))
    assert ladder(3, 32) == (1, 2, 3, 5)
