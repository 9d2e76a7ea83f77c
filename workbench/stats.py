"""Intervals, null distributions and overlap tests, on plain numpy arrays.

Every function here is arithmetic on arrays whose first axis is examples, draws or heads; nothing knows what a model or
a table is. Whatever is random takes a seed or a `numpy.random.Generator`, so that the same input gives the same bytes.
NaN always means "undefined for this example" and is left out, never counted as zero. This module must never import
torch, pandas or (at import time) scipy.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable
from statistics import NormalDist
from typing import Literal

import numpy as np

from workbench.errors import InputError

Alternative = Literal["greater", "less", "two-sided"]
Head = tuple[int, int]

_BLOCK = 4_000_000  # float64 entries held at once by the resampling loops: 32 MB


# ------------------------------------------------------------------------------------------------ means and intervals


def mean(values: np.ndarray) -> np.ndarray:
    """Mean over axis 0 of the defined entries; NaN where there is none."""
    total, count = _sum_and_count(values)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def stderr(values: np.ndarray) -> np.ndarray:
    """Standard error of the mean over axis 0 (n - 1 in the variance).

    NaN where fewer than two entries are defined, or one is infinite.
    """
    values = np.asarray(values, dtype=np.float64)
    _, count = _sum_and_count(values)
    usable = (count > 1) & ~np.isinf(values).any(axis=0)
    square = np.nansum((np.where(usable, values, np.nan) - mean(np.where(usable, values, np.nan))) ** 2, axis=0)
    return np.sqrt(np.divide(square, count * (count - 1.0), out=np.full(square.shape, np.nan), where=usable))


def bootstrap_ci(
    values: np.ndarray, *, confidence: float = 0.95, n_boot: int = 1000, seed: int | np.random.Generator = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of the mean over axis 0, for all trailing axes at once.

    One set of resamples serves every head, so the cost is one matrix product `[n_boot, n] @ [n, heads]`, done in blocks
    of heads of about 32 MB. NaN where fewer than two entries are defined, or one is infinite.

    With NaN entries, each head's mean is over the defined entries of the resample.
    """
    _check_fraction("confidence", confidence)
    values = np.asarray(values, dtype=np.float64)
    n = values.shape[0]
    if n_boot < 1:
        raise InputError(f"n_boot={n_boot} draws no resample; 1000 is usual.")
    if n < 2:
        return np.full(values.shape[1:], np.nan), np.full(values.shape[1:], np.nan)
    flat = values.reshape(n, -1)
    low = np.full(flat.shape[1], np.nan)
    high = low.copy()
    rng = np.random.default_rng(seed)
    weight = rng.multinomial(n, np.full(n, 1.0 / n), size=n_boot).astype(np.float64)  # [n_boot, n]
    tails = [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0]
    step = max(1, _BLOCK // max(n_boot, n))
    for start in range(0, flat.shape[1], step):
        block = flat[:, start : start + step]
        defined = ~np.isnan(block)
        total = weight @ np.where(np.isfinite(block), block, 0.0)  # [n_boot, block]
        count = np.full_like(total, n) if defined.all() else weight @ defined.astype(np.float64)
        draw = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
        usable = (defined.sum(axis=0) > 1) & ~np.isinf(block).any(axis=0)
        quantile = np.nanquantile if np.isnan(draw[:, usable]).any() else np.quantile
        if usable.any():
            edge = quantile(draw[:, usable], tails, axis=0)
            low[start : start + step][usable], high[start : start + step][usable] = edge
    return low.reshape(values.shape[1:]), high.reshape(values.shape[1:])


def wilson(successes: float, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion; (NaN, NaN) when n is 0.

    Where a unit was tried several times, its share of successes counts: the units are the sample, not the trials.
    """
    _check_fraction("confidence", confidence)
    if not 0 <= successes <= n:
        raise InputError(f"{successes} successes of {n} trials is impossible; give 0 <= successes <= n.")
    if n == 0:
        return math.nan, math.nan
    z = NormalDist().inv_cdf((1.0 + confidence) / 2.0)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At the ends the formula gives 0 and 1 only up to rounding.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


# --------------------------------------------------------------------------------------------------------- p-values


def sign_flip_p(
    differences: np.ndarray,
    *,
    alternative: Alternative = "greater",
    n_perm: int = 9999,
    seed: int | np.random.Generator = 0,
) -> np.ndarray:
    """P-value of "the paired differences have mean 0" by flipping their signs, for all trailing axes at once.

    Args:
        differences: `[n, ...]`, one value minus its paired baseline per row; NaN rows are left out. Where one is
            infinite, sums of both signs cannot be compared, and p is NaN.
        n_perm: all `2**n` flips are enumerated when that is no more than `n_perm + 1`, and the p-value is exact;
            otherwise `n_perm` random flips are drawn and p = (1 + hits) / (1 + n_perm), never 0.
    """
    _check_alternative(alternative)
    differences = np.asarray(differences, dtype=np.float64)
    n = differences.shape[0]
    if n == 0:
        return np.full(differences.shape[1:], np.nan)
    flat = differences.reshape(n, -1)
    undefined = np.isnan(flat).all(axis=0) | np.isinf(flat).any(axis=0)
    flat = np.where(np.isfinite(flat), flat, 0.0)
    observed = flat.sum(axis=0)
    slack = 1e-12 * np.abs(flat).sum(axis=0)  # equal sums reached in another order count as ties
    exact = 2**n <= n_perm + 1
    total = 2**n if exact else n_perm
    rng = np.random.default_rng(seed)
    hits = np.zeros(flat.shape[1])
    rows = max(1, _BLOCK // max(flat.shape[1], n))
    for start in range(0, total, rows):
        stop = min(start + rows, total)
        if exact:
            bits = np.arange(start, stop)[:, None] >> np.arange(n)[None, :]
        else:
            bits = rng.integers(0, 2, size=(stop - start, n))
        flipped = (1.0 - 2.0 * (bits & 1)) @ flat  # [rows, heads]
        hits += _as_extreme(flipped, observed, alternative, slack).sum(axis=0)
    p = hits / total if exact else (1.0 + hits) / (1.0 + total)
    p[undefined] = np.nan
    return p.reshape(differences.shape[1:])


def shuffled_labels_p(
    a: np.ndarray,
    b: np.ndarray,
    *,
    alternative: Alternative = "greater",
    n_perm: int = 9999,
    seed: int | np.random.Generator = 0,
) -> np.ndarray:
    """P-value of "which of two groups a value belongs to says nothing", on mean(a) - mean(b), for all trailing axes.

    Args:
        a, b: `[n_a, ...]` and `[n_b, ...]`; NaN entries are left out.
        n_perm: random relabellings; p = (1 + hits) / (1 + n_perm). NaN where a group has no defined entry.
    """
    _check_alternative(alternative)
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    both = np.concatenate([a, b]).reshape(len(a) + len(b), -1)
    defined, values = ~np.isnan(both), np.nan_to_num(both, nan=0.0, posinf=np.inf, neginf=-np.inf)
    total, count = values.sum(axis=0), defined.sum(axis=0)

    def difference(in_a: np.ndarray) -> np.ndarray:  # [draw, example] of 0 and 1 -> [draw, head]
        sums, n = in_a @ values, in_a @ defined.astype(np.float64)
        means = [
            np.divide(part, k, out=np.full(part.shape, np.nan), where=k > 0)
            for part, k in ((sums, n), (total - sums, count - n))
        ]
        return means[0] - means[1]

    labels = (np.arange(len(both)) < len(a)).astype(np.float64)
    observed = difference(labels[None])[0]
    slack = 1e-12 * np.abs(values).sum(axis=0)  # equal differences reached in another order count as ties
    rng = np.random.default_rng(seed)
    hits = np.zeros(both.shape[1])
    drawn = np.zeros(both.shape[1])
    rows = max(1, _BLOCK // max(both.shape))
    for start in range(0, n_perm, rows):
        found = difference(rng.permuted(np.tile(labels, (min(rows, n_perm - start), 1)), axis=1))
        hits += _as_extreme(found, observed, alternative, slack).sum(axis=0)
        drawn += (~np.isnan(found)).sum(axis=0)
    return np.where(np.isnan(observed), np.nan, (1.0 + hits) / (1.0 + drawn)).reshape(a.shape[1:])


def empirical_p(observed: np.ndarray, draws: np.ndarray, *, alternative: Alternative = "greater") -> np.ndarray:
    """P-value of a statistic among draws of it under the null: (1 + hits) / (1 + n_draws).

    `observed` is `[...]`, `draws` is `[n_draws, ...]`. Two-sided compares distances from the mean of the draws. NaN
    draws are left out; NaN where nothing is defined, and where distances from an infinite mean would be compared.
    """
    _check_alternative(alternative)
    observed, draws = np.asarray(observed, dtype=np.float64), np.asarray(draws, dtype=np.float64)
    if draws.shape[1:] != observed.shape:
        raise InputError(
            f"Null draws have shape {draws.shape}, but the observed statistic has {observed.shape}; "
            f"give [n_draws, {', '.join(map(str, observed.shape))}]."
        )
    if alternative == "two-sided":
        centre = mean(draws)
        centre = np.where(np.isinf(centre), np.nan, centre)
        draws, observed = draws - centre, observed - centre
    hits = _as_extreme(draws, observed, alternative, 0.0).sum(axis=0)
    p = (1.0 + hits) / (1.0 + (~np.isnan(draws)).sum(axis=0))
    return np.where(np.isnan(observed) | np.isnan(draws).all(axis=0), np.nan, p)


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg adjusted p-values (q), same shape; NaN entries are no tests and stay NaN."""
    p = np.asarray(p, dtype=np.float64)
    q = np.full(p.shape, np.nan)
    tested = ~np.isnan(p)
    m = int(tested.sum())
    if m == 0:
        return q
    order = np.argsort(p[tested], kind="stable")
    scaled = p[tested][order] * m / np.arange(1, m + 1)
    adjusted = np.empty(m)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    q[tested] = adjusted
    return q


# ------------------------------------------------------------------------------------------- agreement of two rankings


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation over entries defined in both; NaN when fewer than two or when one side is constant."""
    a, b = np.ravel(a).astype(np.float64), np.ravel(b).astype(np.float64)
    both = np.isfinite(a) & np.isfinite(b)
    a, b = a[both], b[both]
    if a.size < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    a, b = (a - a.mean()) / np.abs(a).max(), (b - b.mean()) / np.abs(b).max()  # scaled: squares cannot overflow
    norm = math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))
    return float(np.clip((a @ b) / norm, -1.0, 1.0)) if norm else math.nan


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman correlation (ties share their mean rank) over entries defined in both."""
    a, b = np.ravel(a).astype(np.float64), np.ravel(b).astype(np.float64)
    both = ~(np.isnan(a) | np.isnan(b))
    return pearson(_mean_ranks(a[both]), _mean_ranks(b[both]))


def jaccard(a: Collection[Head], b: Collection[Head]) -> float:
    """|a & b| / |a | b|; NaN when both are empty."""
    a, b = set(a), set(b)
    return len(a & b) / len(a | b) if a | b else math.nan


def containment(a: Collection[Head], b: Collection[Head]) -> float:
    """Share of `a` that lies in `b`; NaN when `a` is empty."""
    a, b = set(a), set(b)
    return len(a & b) / len(a) if a else math.nan


def hypergeometric_overlap_p(overlap: int, size_a: int, size_b: int, population: int) -> float:
    """Probability that two random sets of these sizes share at least `overlap` of `population` heads (exact)."""
    if not (0 <= size_a <= population and 0 <= size_b <= population and 0 <= overlap <= min(size_a, size_b)):
        raise InputError(
            f"An overlap of {overlap} between sets of {size_a} and {size_b} out of {population} heads is impossible; "
            "give overlap <= both sizes <= population."
        )
    ways = sum(
        math.comb(size_a, i) * math.comb(population - size_a, size_b - i)
        for i in range(overlap, min(size_a, size_b) + 1)
    )
    return ways / math.comb(population, size_b)  # exact integers up to this one division


# ------------------------------------------------------------------------------------------------------ random controls


def layer_matched_random(
    heads: Iterable[Head],
    n_heads: int,
    rng: np.random.Generator | int,
    *,
    exclude: Iterable[Head] = (),
    shortage: Literal["error", "nearest"] = "error",
    n_layers: int | None = None,
) -> tuple[Head, ...]:
    """Draw a control set: as many random heads in every layer as `heads` has there, none of them in `heads`.

    Heads in `heads` or `exclude` are never drawn. When a layer has too few others, `shortage="error"` raises and
    `shortage="nearest"` (which needs `n_layers`) takes the missing ones from the nearest layers that have heads to
    spare, the lower layer first at equal distance; it raises only when the whole model has too few.

    Returns:
        The control heads, sorted, as many as `heads`.
    """
    wanted = {(int(layer), int(head)) for layer, head in heads}
    taken = wanted | {(int(layer), int(head)) for layer, head in exclude}
    _check_heads(wanted, n_heads, n_layers)
    if shortage not in ("error", "nearest"):
        raise InputError(f"shortage={shortage!r} is unknown; use 'error' or 'nearest'.")
    if shortage == "nearest" and n_layers is None:
        raise InputError("shortage='nearest' needs n_layers to know which other layers exist; pass n_layers.")
    rng = np.random.default_rng(rng)
    need = Counter(layer for layer, _ in wanted)
    drawn: set[Head] = set()
    missing: list[int] = []

    def draw(layer: int, count: int) -> int:
        """Add up to `count` free heads of `layer`; return how many could not be had."""
        free = [head for head in range(n_heads) if (layer, head) not in taken and (layer, head) not in drawn]
        chosen = rng.permutation(len(free))[:count]
        drawn.update((layer, free[int(i)]) for i in chosen)
        return count - len(chosen)

    for layer in sorted(need):
        short = draw(layer, need[layer])
        if short and shortage == "error":
            raise InputError(
                f"Layer {layer} has only {need[layer] - short} heads left for a control of {need[layer]}; exclude "
                "fewer heads, or pass shortage='nearest' and n_layers to fill up from neighbouring layers."
            )
        missing += [layer] * short
    for layer in missing:  # own layers come first everywhere, so that one layer's fill does not rob another
        others = sorted(range(n_layers or 0), key=lambda other, layer=layer: (abs(other - layer), other))
        if not any(draw(other, 1) == 0 for other in others):
            raise InputError(
                f"A control of {len(wanted)} heads cannot be drawn: only {len(drawn)} of the model's heads are neither "
                "selected nor excluded; select or exclude fewer heads."
            )
    return tuple(sorted(drawn))


# -------------------------------------------------------------------------------------------------------------- helpers


def _sum_and_count(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(values, dtype=np.float64)
    return np.asarray(np.nansum(values, axis=0)), np.asarray((~np.isnan(values)).sum(axis=0))


def _as_extreme(draws: np.ndarray, observed: np.ndarray, alternative: Alternative, slack: np.ndarray | float):
    if alternative == "greater":
        return draws >= observed - slack
    if alternative == "less":
        return draws <= observed + slack
    return np.abs(draws) >= np.abs(observed) - slack


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2.0)[inverse]


def _check_fraction(name: str, value: float) -> None:
    if not 0.0 < value < 1.0:
        raise InputError(f"{name}={value} is not between 0 and 1; 0.95 is usual.")


def _check_alternative(alternative: str) -> None:
    if alternative not in ("greater", "less", "two-sided"):
        raise InputError(f"alternative={alternative!r} is unknown; use 'greater', 'less' or 'two-sided'.")


def _check_heads(heads: Iterable[Head], n_heads: int, n_layers: int | None) -> None:
    for layer, head in heads:
        if not 0 <= head < n_heads or layer < 0 or (n_layers is not None and layer >= n_layers):
            shape = f"{n_layers} layers x {n_heads} heads" if n_layers is not None else f"{n_heads} heads per layer"
            raise InputError(f"Head ({layer}, {head}) does not exist in a model of {shape}; indices count from 0.")
