"""Overlap statistics against scipy, against enumeration, and against what they must be by definition."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from workbench import stats
from workbench.errors import InputError
from workbench.tables import HeadTable, overlap

HEADS = [(layer, head) for layer in range(3) for head in range(3)]


def some(rng: np.random.Generator, k: int) -> set[tuple[int, int]]:
    return {HEADS[i] for i in rng.permutation(len(HEADS))[:k]}


def test_set_statistics_are_their_definitions():
    a, b = {(0, 0), (0, 1), (1, 0)}, {(0, 0), (1, 0), (1, 1), (2, 2)}
    found = overlap.of_sets(a, b, overlap.heads_per_layer(3, 3))
    assert (found.n_a, found.n_b, found.n_shared) == (3, 4, 2)
    assert (found.jaccard, found.a_in_b, found.b_in_a) == pytest.approx((2 / 5, 2 / 3, 2 / 4))
    assert (found.coefficient, found.expected) == pytest.approx((2 / 3, 12 / 9))
    assert found.p == pytest.approx(scipy_stats.hypergeom.sf(1, 9, 3, 4))
    nothing = overlap.of_sets(set(), b, overlap.heads_per_layer(3, 3))
    assert math.isnan(nothing.a_in_b) and math.isnan(nothing.coefficient) and nothing.p == 1


@pytest.mark.parametrize("seed", range(5))
def test_the_layer_matched_null_is_what_all_permutations_within_layers_give(seed):
    rng = np.random.default_rng(seed)
    a, b = some(rng, 4), some(rng, 5)
    within = [[(layer, h) for h in order] for layer in range(3) for order in itertools.permutations(range(3))]
    counts = []
    for chosen in itertools.product(within[:6], within[6:12], within[12:]):
        moved = dict(zip(HEADS, itertools.chain(*chosen), strict=True))
        counts.append(len(a & {moved[head] for head in b}))
    null = overlap.matched_distribution(a, b, overlap.heads_per_layer(3, 3), overlap.layer_of)
    assert null == pytest.approx(np.bincount(counts, minlength=len(null)) / len(counts))
    found = overlap.of_sets(a, b, overlap.heads_per_layer(3, 3))
    assert found.p_layer_matched == pytest.approx(np.mean(np.array(counts) >= len(a & b)))
    assert found.expected_layer_matched == pytest.approx(np.mean(counts))


def test_a_circuit_crowded_in_one_layer_is_no_news_to_the_layer_matched_null():
    crowded = {(0, 0), (0, 1), (0, 2)}
    found = overlap.of_sets(crowded, crowded, {0: 3, 1: 30})
    assert found.p < 1e-3 and found.p_layer_matched == 1


def test_one_layer_is_the_hypergeometric_null():
    a, b = {(0, i) for i in range(7)}, {(0, i) for i in range(5, 15)}
    found = overlap.of_sets(a, b, {0: 40})
    assert found.p_layer_matched == pytest.approx(found.p)
    assert found.p == pytest.approx(scipy_stats.hypergeom.sf(1, 40, 7, 10))


def test_weighted_jaccard_of_sets_is_jaccard_and_ignores_scale_and_sign():
    a, b = np.array([1.0, 1, 0, 0]), np.array([1.0, 0, 1, 0])
    assert overlap.weighted_jaccard(a, b) == pytest.approx(1 / 3)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=20), rng.normal(size=20)
    assert overlap.weighted_jaccard(x, y) == pytest.approx(overlap.weighted_jaccard(-3 * x, 0.1 * np.abs(y)))
    by_hand = [np.abs(v) / np.abs(v).sum() for v in (x, y)]
    expected = sum(map(min, *by_hand)) / sum(map(max, *by_hand))
    assert overlap.weighted_jaccard(x, y) == pytest.approx(expected)
    assert overlap.weighted_jaccard(np.array([1.0, np.nan]), np.array([2.0, 5.0])) == 1
    assert math.isnan(overlap.weighted_jaccard(np.zeros(2), np.ones(2)))


@pytest.mark.parametrize("seed", range(3))
def test_rank_statistics_are_their_sums(seed):
    rng = np.random.default_rng(seed)
    a, b = (rng.permutation(12).tolist() for _ in range(2))
    each = [len(set(a[:d]) & set(b[:d])) / d for d in range(1, 13)]
    assert overlap.average_overlap(a, b) == pytest.approx(np.mean(each))
    assert overlap.average_overlap(a, b, depth=4) == pytest.approx(np.mean(each[:4]))
    stopped = 0.2 * sum(0.8**d * agreed for d, agreed in enumerate(each))
    assert overlap.rank_biased_overlap(a, b, p=0.8, extrapolate=False) == pytest.approx(stopped)
    # a ranking of everything agrees wholly at its end, so what lies beyond is the rest of the weights
    assert overlap.rank_biased_overlap(a, b, p=0.8) == pytest.approx(stopped + 0.8**12)
    assert overlap.rank_biased_overlap(a, a) == pytest.approx(1)
    assert overlap.rank_biased_overlap([1, 2], [3, 4]) == 0


def test_a_ranking_with_an_item_twice_is_refused():
    with pytest.raises(InputError, match="twice"):
        overlap.average_overlap([1, 1], [1, 2])


def test_the_shuffled_null_is_exact_when_small_and_close_when_drawn():
    layers = np.array([0, 0, 0, 1, 1])
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=5), rng.normal(size=5)
    observed = overlap.weighted_jaccard(a, b)
    every = [
        overlap.weighted_jaccard(a, np.concatenate([b[list(one)], b[list(two)]]))
        for one in itertools.permutations(range(3))
        for two in itertools.permutations((3, 4))
    ]
    exact = np.mean([value >= observed - 1e-12 for value in every])
    assert overlap.shuffled_p(overlap.weighted_jaccard, a, b, layers) == pytest.approx(exact)
    drawn = [overlap.shuffled_p(overlap.weighted_jaccard, a, b, layers, n_perm=10, seed=s) for s in range(60)]
    assert np.mean(drawn) == pytest.approx(exact, abs=0.1)


def test_the_shuffled_null_of_spearman_within_one_layer_is_scipys_permutation_test():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=6), rng.normal(size=6)
    assert stats.spearman(a, b) == pytest.approx(scipy_stats.spearmanr(a, b).statistic)
    exact = scipy_stats.permutation_test(
        (b,),
        lambda y: scipy_stats.spearmanr(a, y).statistic,
        permutation_type="pairings",
        alternative="greater",
        n_resamples=np.inf,
    ).pvalue
    assert overlap.shuffled_p(stats.spearman, a, b, np.zeros(6), n_perm=720) == pytest.approx(exact)


def test_the_curve_is_the_overlap_at_every_k_with_its_null():
    a, b = [HEADS[i] for i in (0, 4, 8, 1, 5)], [HEADS[i] for i in (0, 8, 4, 2, 3)]
    points = overlap.curve(a, b, overlap.heads_per_layer(3, 3))
    assert [p["shared"] for p in points] == [1, 1, 3, 3, 3]
    assert points[2]["jaccard"] == 1 and points[2]["p"] == pytest.approx(1 / 27)
    assert points[0]["p"] == pytest.approx(1 / 3)
    for point in points:
        found = overlap.of_sets(a[: point["k"]], b[: point["k"]], overlap.heads_per_layer(3, 3))
        assert point["p"] == pytest.approx(found.p_layer_matched)
        assert point["jaccard"] == pytest.approx(found.jaccard)
        assert 0 <= point["low"] <= point["high"] <= 1


def test_edges_are_matched_by_both_layers_and_input():
    population = overlap.edges_per_layer(3, 4, 2)
    # heads 0 -> layer 1 and 2, layer 1 -> layer 2: 4 senders x (4 q + 2 k + 2 v); and 4 per layer to the logits
    assert sum(population.values()) == 3 * 4 * 8 + 12
    edges = {("0.1", "1.2.q"), ("0.1", "1.1.k"), ("1.2", "logits")}
    found = overlap.of_sets(edges, {("0.1", "1.2.q"), ("1.2", "logits")}, population, overlap.edge_layers)
    assert found.n_shared == 2
    # one of 16 edges into q must be the same, and one of 4 to the logits
    assert found.p_layer_matched == pytest.approx(1 / 16 / 4)
    with_mlps = overlap.edges_per_layer(2, 2, 2, mlps=True)
    assert with_mlps["input", "0.mlp"] == 1 and with_mlps["0", "0.mlp"] == 2 and with_mlps["0.mlp", "1.q"] == 2


def test_tables_of_any_analysis_are_compared_with_the_new_statistics():
    rng = np.random.default_rng(0)
    a, b = (HeadTable.from_scores(rng.normal(size=(4, 4)), n_kv_heads=4) for _ in range(2))
    found = a.compare(b, rule="top 4")
    sets = overlap.of_sets(found.heads_a, found.heads_b, overlap.heads_per_layer(4, 4))
    assert (found.p, found.p_layer_matched) == pytest.approx((sets.p, sets.p_layer_matched))
    assert found.weighted_jaccard == pytest.approx(overlap.weighted_jaccard(a["score"], b["score"]))
    ranked = [tuple(t.top(16)) for t in (a, b)]
    assert found.rbo == pytest.approx(overlap.rank_biased_overlap(*ranked))
    assert a.compare(a).rbo == pytest.approx(1) and a.compare(a).weighted_jaccard == pytest.approx(1)
    assert {"jaccard", "a_in_b", "b_in_a", "p", "rbo", "weighted_jaccard"} <= found.to_dict().keys()
