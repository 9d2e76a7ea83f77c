"""The statistics against scipy, brute force and their own definitions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from workbench import stats
from workbench.errors import InputError

FEW = settings(max_examples=40, deadline=None)
numbers = st.integers(-800, 800).map(lambda eighths: eighths / 8)


def test_undefined_examples_are_left_out_and_never_counted_as_zero():
    values = np.array([[1.0, np.nan, np.nan], [3.0, 4.0, np.nan], [np.nan, 6.0, np.nan]])
    assert stats.mean(values)[:2].tolist() == [2.0, 5.0]
    assert stats.stderr(values)[:2] == pytest.approx([1.0, 1.0])
    assert np.isnan(stats.mean(values)[2])
    assert np.isnan(stats.stderr(values)[2])


@FEW
@given(st.lists(numbers, min_size=2, max_size=30))
def test_standard_error_is_scipys(values):
    assert stats.stderr(np.array(values)) == pytest.approx(scipy_stats.sem(values), abs=1e-9)


def test_standard_error_of_one_example_is_undefined():
    assert np.isnan(stats.stderr(np.ones((1, 2, 2)))).all()


@pytest.mark.parametrize("values", [[np.inf, 1.0, 2.0], [1.0, -np.inf, 2.0], [np.inf, -np.inf, 1.0]])
def test_an_infinite_example_leaves_no_spread_and_no_p_value_of_its_own_head_alone(values):
    both = np.array([values, [1.0, 2.0, 3.0]]).T
    alone = np.array([[1.0, 2.0, 3.0]]).T
    with np.errstate(all="raise", invalid="ignore"):
        for found, finite in (
            (stats.stderr(both), stats.stderr(alone)),
            (stats.bootstrap_ci(both)[0], stats.bootstrap_ci(alone)[0]),
            (stats.sign_flip_p(both), stats.sign_flip_p(alone)),
        ):
            assert np.isnan(found[0])
            assert found[1] == finite[0]
    assert np.isnan(stats.empirical_p(np.array([1.0]), both[:, :1], alternative="two-sided")[0])


def test_bootstrap_interval_covers_the_true_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    values = rng.normal(0.3, 1.0, size=(60, 40, 25))
    low, high = stats.bootstrap_ci(values, n_boot=400, seed=1)
    assert low.shape == (40, 25)
    assert ((low < 0.3) & (high > 0.3)).mean() == pytest.approx(0.94, abs=0.025)


def test_bootstrap_agrees_with_a_loop_over_resamples():
    rng = np.random.default_rng(3)
    values = rng.exponential(size=(25, 3))
    low, high = stats.bootstrap_ci(values, n_boot=4000, seed=0)
    draws = np.array([values[rng.integers(0, 25, 25)].mean(axis=0) for _ in range(4000)])
    expected = np.quantile(draws, [0.025, 0.975], axis=0)
    assert low == pytest.approx(expected[0], rel=0.06)
    assert high == pytest.approx(expected[1], rel=0.06)


def test_bootstrap_is_the_same_whatever_the_block_size(monkeypatch):
    values = np.random.default_rng(0).normal(size=(20, 7, 5))
    values[:5, 2, 2] = np.nan
    whole = stats.bootstrap_ci(values, n_boot=100, seed=4)
    monkeypatch.setattr(stats, "_BLOCK", 300)
    blocks = stats.bootstrap_ci(values, n_boot=100, seed=4)
    assert np.allclose(whole, blocks, rtol=1e-12, atol=0)


def test_bootstrap_leaves_heads_without_two_examples_undefined():
    values = np.full((5, 3), np.nan)
    values[0, 1] = 1.0
    values[:2, 2] = 1.0, 2.0
    low, high = stats.bootstrap_ci(values)
    assert np.isnan(low[:2]).all() and np.isnan(high[:2]).all()
    assert 1.0 <= low[2] <= high[2] <= 2.0
    assert np.isnan(stats.bootstrap_ci(np.zeros((0, 2)))[0]).all()


@FEW
@given(st.integers(0, 60), st.integers(1, 60), st.sampled_from([0.9, 0.95, 0.99]))
def test_wilson_is_scipys(successes, n, confidence):
    successes = min(successes, n)
    ours = stats.wilson(successes, n, confidence=confidence)
    theirs = scipy_stats.binomtest(successes, n).proportion_ci(confidence_level=confidence, method="wilson")
    assert ours == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_wilson_of_nothing_is_undefined_and_impossible_counts_are_refused():
    assert all(math.isnan(edge) for edge in stats.wilson(0, 0))
    with pytest.raises(InputError, match="7 successes of 3"):
        stats.wilson(7, 3)
    with pytest.raises(InputError, match="confidence=95"):
        stats.wilson(1, 3, confidence=95)


@FEW
@given(st.lists(numbers, min_size=1, max_size=8), st.sampled_from(["greater", "less", "two-sided"]))
def test_sign_flip_is_exact_for_few_examples(differences, alternative):
    x = np.array(differences)
    sums = np.array([np.dot(signs, x) for signs in itertools.product([1, -1], repeat=len(x))])
    slack = 1e-9 * (1 + np.abs(x).sum())
    expected = {
        "greater": np.mean(sums >= x.sum() - slack),
        "less": np.mean(sums <= x.sum() + slack),
        "two-sided": np.mean(np.abs(sums) >= abs(x.sum()) - slack),
    }[alternative]
    assert stats.sign_flip_p(x, alternative=alternative) == pytest.approx(expected)


def test_sign_flip_by_sampling_agrees_with_the_exact_test_and_is_never_zero():
    x = np.random.default_rng(0).normal(0.5, 1, size=(12, 3))
    exact = stats.sign_flip_p(x, n_perm=2**12)
    drawn = stats.sign_flip_p(x, n_perm=4000, seed=1)
    assert drawn == pytest.approx(exact, abs=0.02)
    assert (stats.sign_flip_p(np.full((40, 2), 1.0), n_perm=99) == 0.01).all()


def test_sign_flip_ignores_undefined_pairs():
    x = np.array([[1.0, np.nan], [2.0, np.nan], [np.nan, np.nan], [0.5, np.nan]])
    p = stats.sign_flip_p(x)
    assert p[0] == pytest.approx(1 / 8)
    assert np.isnan(p[1])
    assert np.isnan(stats.sign_flip_p(np.zeros((0, 2)))).all()


def test_sign_flip_p_values_are_uniform_under_the_null():
    x = np.random.default_rng(5).normal(size=(30, 2000))
    p = stats.sign_flip_p(x, n_perm=499, seed=2)
    assert (p <= 0.05).mean() == pytest.approx(0.05, abs=0.015)


def test_shuffled_labels_agree_with_every_relabelling():
    a, b = np.array([3.0, 1.5, 2.0]), np.array([1.0, 2.5, 0.5, 0.0])
    both, seen = np.concatenate([a, b]), a.mean() - b.mean()
    splits = [list(chosen) for chosen in itertools.combinations(range(7), 3)]
    found = [both[chosen].mean() - np.delete(both, chosen).mean() for chosen in splits]
    exact = {"greater": np.mean(np.array(found) >= seen - 1e-12), "less": np.mean(np.array(found) <= seen + 1e-12)}
    for p, expected in zip(
        (
            stats.shuffled_labels_p(a, b, n_perm=20_000, seed=1),
            stats.shuffled_labels_p(a, b, alternative="less", n_perm=20_000, seed=1),
        ),
        exact.values(),
        strict=True,
    ):
        assert p == pytest.approx(expected, abs=0.01)


def test_shuffled_labels_leave_undefined_entries_out_and_are_never_zero():
    a = np.array([[1.0, np.nan], [1.0, np.nan], [np.nan, np.nan]])
    b = np.array([[0.0, 0.0], [0.0, 0.0]])
    p = stats.shuffled_labels_p(a, b, n_perm=999)
    assert p[0] == pytest.approx(stats.shuffled_labels_p(a[:2, 0], b[:, 0], n_perm=999), abs=0.06)
    assert np.isnan(p[1]) and p[0] > 0
    assert stats.shuffled_labels_p(np.ones(40), np.zeros(40), n_perm=99) == 0.01


@pytest.mark.parametrize("sizes", [(20, 20), (30, 8), (16, 4)])
def test_shuffled_labels_find_a_difference_where_there_is_none_as_often_as_they_say(sizes):
    rng = np.random.default_rng(0)
    a, b = (rng.exponential(size=(n, 2000)) for n in sizes)
    assert (stats.shuffled_labels_p(a, b, n_perm=499) <= 0.05).mean() == pytest.approx(0.05, abs=0.015)


def test_empirical_p_counts_the_observation_itself():
    draws = np.arange(99.0)[:, None] * np.ones((1, 3))
    p = stats.empirical_p(np.array([1000.0, 97.5, np.nan]), draws)
    assert p[:2] == pytest.approx([0.01, 0.02])
    assert np.isnan(p[2])
    assert stats.empirical_p(np.array([-1.0]), draws[:, :1], alternative="less") == pytest.approx(0.01)
    assert stats.empirical_p(np.array([49.0]), draws[:, :1], alternative="two-sided") == pytest.approx(1.0)
    with pytest.raises(InputError, match="shape"):
        stats.empirical_p(np.zeros(2), np.zeros((5, 3)))
    with pytest.raises(InputError, match="'more'"):
        stats.empirical_p(np.zeros(2), np.zeros((5, 2)), alternative="more")  # type: ignore[arg-type]


@FEW
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_benjamini_hochberg_is_scipys(p):
    assert stats.benjamini_hochberg(np.array(p)) == pytest.approx(scipy_stats.false_discovery_control(p), abs=1e-12)


def test_untested_heads_do_not_count_as_tests():
    p = np.array([[0.01, np.nan], [0.04, np.nan]])
    q = stats.benjamini_hochberg(p)
    assert q[:, 0] == pytest.approx([0.02, 0.04])
    assert np.isnan(q[:, 1]).all()
    assert np.isnan(stats.benjamini_hochberg(np.array([np.nan]))).all()


@FEW
@given(st.lists(st.tuples(st.integers(-5, 5), numbers), min_size=3, max_size=30))
def test_correlations_are_scipys(pairs):
    a, b = (np.array(side, dtype=float) for side in zip(*pairs, strict=True))
    if np.ptp(a) == 0 or np.ptp(b) < 1e-6:
        return
    assert stats.pearson(a, b) == pytest.approx(scipy_stats.pearsonr(a, b).statistic, abs=1e-6)
    assert stats.spearman(a, b) == pytest.approx(scipy_stats.spearmanr(a, b).statistic, abs=1e-6)


def test_correlation_with_a_constant_is_undefined():
    assert math.isnan(stats.pearson(np.ones(5), np.arange(5)))
    assert math.isnan(stats.spearman(np.array([1.0]), np.array([2.0])))


@FEW
@given(st.integers(1, 40), st.data())
def test_hypergeometric_overlap_is_scipys(population, data):
    a = data.draw(st.integers(0, population))
    b = data.draw(st.integers(0, population))
    overlap = data.draw(st.integers(max(0, a + b - population), min(a, b)))
    expected = scipy_stats.hypergeom.sf(overlap - 1, population, a, b)
    assert stats.hypergeometric_overlap_p(overlap, a, b, population) == pytest.approx(expected, rel=1e-9)


def test_impossible_overlaps_are_refused():
    with pytest.raises(InputError, match="overlap of 5"):
        stats.hypergeometric_overlap_p(5, 3, 10, 20)


def test_set_overlaps():
    a, b = [(0, 1), (0, 2), (1, 1)], [(0, 1), (3, 3)]
    assert stats.jaccard(a, b) == pytest.approx(1 / 4)
    assert stats.containment(a, b) == pytest.approx(1 / 3)
    assert stats.containment(b, a) == pytest.approx(1 / 2)
    assert math.isnan(stats.jaccard([], [])) and math.isnan(stats.containment([], a))


heads_in = st.sets(st.tuples(st.integers(0, 4), st.integers(0, 7)), max_size=12)


@FEW
@given(heads_in, heads_in, st.integers(0, 1000))
def test_control_heads_match_layers_and_avoid_the_heads_they_control_for(heads, exclude, seed):
    taken = heads | exclude
    enough = all(
        sum(layer == at for layer, _ in heads) <= 8 - sum(layer == at for layer, _ in taken) for at in range(5)
    )
    if not enough:
        with pytest.raises(InputError, match="shortage='nearest'"):
            stats.layer_matched_random(heads, 8, seed, exclude=exclude)
    else:
        drawn = stats.layer_matched_random(heads, 8, seed, exclude=exclude)
        assert sorted(layer for layer, _ in drawn) == sorted(layer for layer, _ in heads)
        assert drawn == stats.layer_matched_random(heads, 8, seed, exclude=exclude)
        assert not set(drawn) & taken
    if 40 - len(taken) >= len(heads):
        filled = stats.layer_matched_random(heads, 8, seed, exclude=exclude, shortage="nearest", n_layers=5)
        assert len(set(filled)) == len(heads)
        assert not set(filled) & taken


def test_a_full_layer_is_filled_up_from_its_neighbours():
    heads = [(2, h) for h in range(4)]
    drawn = stats.layer_matched_random(heads, 4, 0, shortage="nearest", n_layers=5)
    assert drawn == ((1, 0), (1, 1), (1, 2), (1, 3))
    with pytest.raises(InputError, match="cannot be drawn"):
        stats.layer_matched_random([(0, 0), (0, 1)], 3, 0, shortage="nearest", n_layers=1)


def test_every_free_head_is_drawn_equally_often():
    rng = np.random.default_rng(0)
    drawn = [stats.layer_matched_random([(0, 0), (0, 3)], 6, rng) for _ in range(600)]
    counts = np.bincount([head for pair in drawn for _, head in pair], minlength=6)
    assert counts[[0, 3]].tolist() == [0, 0]
    assert counts[[1, 2, 4, 5]] == pytest.approx(300, abs=60)


def test_heads_that_do_not_exist_are_named():
    with pytest.raises(InputError, match=r"\(1, 9\) does not exist"):
        stats.layer_matched_random([(1, 9)], 8, 0)
    with pytest.raises(InputError, match="needs n_layers"):
        stats.layer_matched_random([(1, 1)], 8, 0, shortage="nearest")
