"""How much two selections or rankings of heads (or typed edges) share, and how much chance would make them share.

    A, B sets out of N; a, b rankings; w = |score| / sum |score|
    jaccard            |A & B| / |A | B|
    a_in_b, b_in_a     |A & B| / |A|,  |A & B| / |B|         containment, each way
    coefficient        |A & B| / min(|A|, |B|)
    weighted jaccard   sum min(w_A, w_B) / sum max(w_A, w_B)
    average overlap    mean over d of A_d = |top_d(a) & top_d(b)| / d
    rank-biased        (1 - p) sum_d p^(d-1) A_d + p^D A_D     Webber et al. 2010; the last term is what lies beyond D

Two nulls. `p`: both sets drawn from all N (hypergeometric). `p_layer_matched`: heads shuffled within their layer, since
circuits crowd in some layers. The overlap is then a sum over layers of hypergeometric numbers, so its distribution is
had exactly, by convolution, however large the model. For statistics of scores, `shuffled_p` shuffles in fact: every
permutation where these are few, otherwise random ones.

An edge is a pair of names (sender, receiver): `1.4` a head, `1.mlp`, `input`; `2.3.q`, `2.1.k`, `2.1.v`, `2.mlp`,
`logits`. Its "layer" is the layer of both ends and the input. Arithmetic only; it never knows what the numbers mean.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import permutations, product
from typing import Any

import numpy as np

from workbench import stats
from workbench.errors import InputError

Item = Any  # a head (layer, head), or an edge (sender, receiver)
Stratum = Any  # hashable
ScoreStatistic = Callable[[np.ndarray, np.ndarray], float]


# --------------------------------------------------------------------------------------------------------- statistics


def coefficient(a: Collection[Item], b: Collection[Item]) -> float:
    """|a & b| / min(|a|, |b|); NaN when one is empty."""
    a, b = set(a), set(b)
    return len(a & b) / min(len(a), len(b)) if a and b else math.nan


def weighted_jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Of |scores|, each side scaled to sum 1, over entries defined in both; NaN when one side is all zero."""
    a, b = _both(np.abs(a), np.abs(b))
    if not a.sum() or not b.sum():
        return math.nan
    a, b = a / a.sum(), b / b.sum()
    return float(np.minimum(a, b).sum() / np.maximum(a, b).sum())


def agreements(a: Sequence[Item], b: Sequence[Item]) -> np.ndarray:
    """`[depth]`: A_d for d = 1 to the length of the shorter ranking.

    Raises:
        InputError: an item is ranked twice.
    """
    for ranking in (a, b):
        if len(set(ranking)) < len(ranking):
            raise InputError("A ranking names every item once, but one of these names an item twice.")
    seen_a: set[Item] = set()
    seen_b: set[Item] = set()
    shared = np.zeros(min(len(a), len(b)))
    for d, (x, y) in enumerate(zip(a, b, strict=False)):
        before = shared[d - 1] if d else 0.0
        seen_a.add(x)
        seen_b.add(y)
        shared[d] = before + (x in seen_b) + (y in seen_a and x != y)
    return shared / np.arange(1, len(shared) + 1)


def average_overlap(a: Sequence[Item], b: Sequence[Item], depth: int | None = None) -> float:
    """Mean of A_d down to `depth` (default: the shorter ranking); NaN when there is nothing."""
    found = agreements(a, b)[:depth]
    return float(found.mean()) if len(found) else math.nan


def rank_biased_overlap(a: Sequence[Item], b: Sequence[Item], *, p: float = 0.9, extrapolate: bool = True) -> float:
    """Agreement of two rankings that counts the top most; NaN when there is nothing.

    Args:
        p: weight of each rank against the one before; about 1 / (1 - p) ranks matter.
        extrapolate: take the agreement at the last depth to go on below it, so that equal rankings give 1. Without,
            the sum stops there.
    """
    if not 0 < p < 1:
        raise InputError(f"p={p} of rank-biased overlap must lie between 0 and 1; 0.9 is usual.")
    found = agreements(a, b)
    if not len(found):
        return math.nan
    total = (1 - p) * float(found @ p ** np.arange(len(found)))
    return total + float(found[-1]) * p ** len(found) if extrapolate else total


# --------------------------------------------------------------------------------------------------------------- nulls


def matched_distribution(
    a: Collection[Item], b: Collection[Item], population: Mapping[Stratum, int], stratum: Callable[[Item], Stratum]
) -> np.ndarray:
    """`[x]`: probability of an overlap of x when items are shuffled within their stratum. Exact.

    Args:
        population: how many items each stratum has.

    Raises:
        InputError: a set holds more items of a stratum than there are.
    """
    in_a, in_b = Counter(map(stratum, set(a))), Counter(map(stratum, set(b)))
    total = np.ones(1)
    for where in sorted(in_a.keys() | in_b.keys(), key=str):
        n, k, m = population.get(where, 0), in_a[where], in_b[where]
        if k > n or m > n:
            raise InputError(f"A set of {max(k, m)} items was given for layer {where}, which has {n}.")
        ways = [math.comb(k, x) * math.comb(n - k, m - x) / math.comb(n, m) for x in range(min(k, m) + 1)]
        total = np.convolve(total, ways)
    return total


def tail(distribution: np.ndarray, overlap: int) -> float:
    """P(X >= overlap)."""
    return float(min(1.0, distribution[overlap:].sum()))


def shuffled_p(
    statistic: ScoreStatistic,
    a: np.ndarray,
    b: np.ndarray,
    layers: np.ndarray,
    *,
    n_perm: int = 999,
    seed: int | np.random.Generator = 0,
) -> float:
    """P-value of `statistic(a, b)` being as large as it is when `b` is shuffled within layers.

    All permutations are enumerated when they are no more than `n_perm + 1` (the p is exact); otherwise `n_perm` random
    ones are drawn, and p = (1 + hits) / (1 + n_perm). NaN where the statistic is undefined.

    Args:
        a, b: scores of the same heads; entries undefined in either are left out.
        layers: layer of each head.
    """
    a, b, layers = np.ravel(a).astype(float), np.ravel(b).astype(float), np.ravel(layers)
    kept = ~(np.isnan(a) | np.isnan(b))
    a, b, layers = a[kept], b[kept], layers[kept]
    observed = statistic(a, b)
    if math.isnan(observed):
        return math.nan
    slack = 1e-12 * max(1.0, abs(observed))
    groups = [np.flatnonzero(layers == layer) for layer in np.unique(layers)]
    count = math.prod(math.factorial(len(group)) for group in groups)
    if count <= n_perm + 1:
        draws = [statistic(a, b[order]) for order in _orders(groups, len(b))]
        return float(np.mean([draw >= observed - slack for draw in draws]))
    rng = np.random.default_rng(seed)
    hits = 0
    for _ in range(n_perm):
        order = np.arange(len(b))
        for group in groups:
            order[group] = rng.permutation(group)
        hits += statistic(a, b[order]) >= observed - slack
    return (1 + hits) / (1 + n_perm)


def _orders(groups: Sequence[np.ndarray], n: int) -> Iterator[np.ndarray]:
    """Every permutation of 0..n-1 that stays within the groups."""
    for chosen in product(*(permutations(group.tolist()) for group in groups)):
        order = np.arange(n)
        for group, images in zip(groups, chosen, strict=True):
            order[group] = images
        yield order


# ---------------------------------------------------------------------------------------------------------------- sets


@dataclass(frozen=True)
class SetOverlap:
    """Overlap of two sets.

    Attributes:
        n_a, n_b, n_shared: sizes.
        jaccard, a_in_b, b_in_a, coefficient: see the top of this file.
        expected, p: overlap of two random sets of these sizes, and the chance that it is at least `n_shared`.
        expected_layer_matched, p_layer_matched: the same with as many items in every layer as the sets have.
    """

    n_a: int
    n_b: int
    n_shared: int
    jaccard: float
    a_in_b: float
    b_in_a: float
    coefficient: float
    expected: float
    p: float
    expected_layer_matched: float
    p_layer_matched: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def layer_of(head: Item) -> int:
    """Stratum of a head."""
    return int(head[0])


def heads_per_layer(n_layers: int, n_heads: int) -> dict[Stratum, int]:
    """The population of heads."""
    return dict.fromkeys(range(n_layers), n_heads)


def edge_layers(edge: tuple[str, str]) -> tuple[str, str]:
    """Stratum of an edge: ("0", "2.q") for 0.3 -> 2.1.q. Ends that are no heads are their own ("1.mlp", "logits")."""
    sender, receiver = edge
    parts = receiver.split(".")
    into = receiver if len(parts) < 3 else f"{parts[0]}.{parts[2]}"
    return (sender if not sender.rsplit(".", 1)[-1].isdigit() else sender.split(".")[0]), into


def edges_per_layer(n_layers: int, n_heads: int, n_kv_heads: int, *, mlps: bool = False) -> dict[Stratum, int]:
    """The population of edges: from heads to q, k, v of later layers and to the logits.

    With `mlps` also from the input, and from and to MLPs (each of which reads the attention of its own layer).
    """
    receivers = [(layer, f"{layer}.{part}", n) for layer in range(n_layers) for part, n in _inputs(n_heads, n_kv_heads)]
    sizes: dict[Stratum, int] = {}
    for below in range(n_layers):
        for layer, into, n in receivers:
            if below < layer:
                sizes[str(below), into] = n_heads * n
        sizes[str(below), "logits"] = n_heads
    if mlps:
        for layer, into, n in [*receivers, *((at, f"{at}.mlp", 1) for at in range(n_layers)), (n_layers, "logits", 1)]:
            sizes["input", into] = n
            for below in range(layer):
                sizes[f"{below}.mlp", into] = n
        for layer in range(n_layers):
            for below in range(layer + 1):
                sizes[str(below), f"{layer}.mlp"] = n_heads
    return sizes


def _inputs(n_heads: int, n_kv_heads: int) -> tuple[tuple[str, int], ...]:
    return ("q", n_heads), ("k", n_kv_heads), ("v", n_kv_heads)


def of_sets(
    a: Collection[Item],
    b: Collection[Item],
    population: Mapping[Stratum, int],
    stratum: Callable[[Item], Stratum] = layer_of,
) -> SetOverlap:
    """Overlap of two sets of heads (or edges), with both nulls.

    Args:
        population: items by stratum, such as `heads_per_layer(12, 12)`; all of them together are N.
    """
    a, b = set(a), set(b)
    shared, n = len(a & b), sum(population.values())
    matched = matched_distribution(a, b, population, stratum)
    return SetOverlap(
        n_a=len(a),
        n_b=len(b),
        n_shared=shared,
        jaccard=stats.jaccard(a, b),
        a_in_b=stats.containment(a, b),
        b_in_a=stats.containment(b, a),
        coefficient=coefficient(a, b),
        expected=len(a) * len(b) / n if n else math.nan,
        p=stats.hypergeometric_overlap_p(shared, len(a), len(b), n),
        expected_layer_matched=float(matched @ np.arange(len(matched))),
        p_layer_matched=tail(matched, shared),
    )


def curve(
    a: Sequence[Item],
    b: Sequence[Item],
    population: Mapping[Stratum, int],
    *,
    stratum: Callable[[Item], Stratum] = layer_of,
    ks: Sequence[int] | None = None,
    confidence: float = 0.95,
) -> list[dict[str, float]]:
    """Overlap of the k best of two rankings, for every k, with the layer-matched null.

    Returns:
        Per k: k, shared, jaccard, expected (Jaccard of the mean overlap), low, high (central band of the Jaccard under
        the null) and p. Where the two top-k sets hold as many heads in every layer as it has, nothing can be learned
        and p is 1.
    """
    depth = min(len(a), len(b))
    rows = []
    for k in range(1, depth + 1) if ks is None else ks:
        if not 1 <= k <= depth:
            raise InputError(f"k={k} is not between 1 and {depth}, the length of the shorter ranking.")
        null = matched_distribution(a[:k], b[:k], population, stratum)
        shared = len(set(a[:k]) & set(b[:k]))
        below = np.cumsum(null)
        low, high = (int(np.searchsorted(below, q - 1e-12)) for q in ((1 - confidence) / 2, (1 + confidence) / 2))
        expected = float(null @ np.arange(len(null)))
        rows.append(
            {
                "k": k,
                "shared": shared,
                "jaccard": _as_jaccard(shared, k),
                "expected": _as_jaccard(expected, k),
                "low": _as_jaccard(min(low, len(null) - 1), k),
                "high": _as_jaccard(min(high, len(null) - 1), k),
                "p": tail(null, shared),
            }
        )
    return rows


def _as_jaccard(shared: float, k: int) -> float:
    return shared / (2 * k - shared)


def _both(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.ravel(a).astype(np.float64), np.ravel(b).astype(np.float64)
    kept = ~(np.isnan(a) | np.isnan(b))
    return a[kept], b[kept]
