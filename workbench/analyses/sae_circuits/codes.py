"""What the codes of positives and negatives say of a head: node, edge and divergence scores. Arithmetic on arrays.

    P_h, N_h       the codes that head h uses on positives, on negatives
    node           |P_h \\ N_h|, normalised: / |P_h u N_h|                                     O'Neill & Bui 2024
    edge           U_ij = pairs of codes of i and j that occur together on some positive and on no negative,
                   normalised: / (pairs on positives + pairs on negatives); a head's score is how often it is in the
                   top k entries of all ordered pairs, sorted by U                            O'Neill & Bui 2024
    divergence     Jensen-Shannon divergence (bits) of the distributions of codes             ours

Counts are of weighted examples, so that the same functions serve the data (weights 0 and 1), permuted labels and
bootstrap resamples. Nothing here knows where codes come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Ties = Literal["shared", "first"]


@dataclass(frozen=True)
class Coded:
    """Codes of all heads as indicators.

    Attributes:
        used: `[example, code]` 0 or 1; a column is one code of one head, columns of a head side by side.
        first: column at which each head begins.
        head: of each column.
        at: `[example, head]` column of the code that is used.
    """

    used: np.ndarray
    first: np.ndarray
    head: np.ndarray
    at: np.ndarray

    @classmethod
    def of(cls, codes: np.ndarray) -> Coded:
        """From `[example, head]` integers."""
        at = np.empty(codes.shape, dtype=np.int64)
        first, head = [], []
        total = 0
        for h in range(codes.shape[1]):
            values, inverse = np.unique(codes[:, h], return_inverse=True)
            first.append(total)
            head += [h] * len(values)
            at[:, h] = total + inverse.ravel()
            total += len(values)
        used = np.zeros((len(codes), total), dtype=np.float32)
        np.put_along_axis(used, at, 1.0, axis=1)
        return cls(used, np.array(first), np.array(head), at)

    def counts(self, weights: np.ndarray) -> np.ndarray:
        """`[draw, code]`: how often each code is used; `weights` is `[draw, example]`."""
        return weights.astype(np.float32) @ self.used

    def per_head(self, values: np.ndarray) -> np.ndarray:
        """`[draw, head]`: the sum over the codes of each head."""
        return np.add.reduceat(values, self.first, axis=1)


def node(coded: Coded, positive: np.ndarray, negative: np.ndarray, *, normalise: bool = False) -> np.ndarray:
    """`[draw, head]`: number of codes used on positives and never on negatives."""
    on, off = coded.counts(positive) > 0, coded.counts(negative) > 0
    unique = coded.per_head((on & ~off).astype(np.float64))
    if not normalise:
        return unique
    seen = coded.per_head((on | off).astype(np.float64))
    return np.divide(unique, seen, out=np.zeros_like(unique), where=seen > 0)


def node_shares(coded: Coded, positive: np.ndarray, negative: np.ndarray, *, normalise: bool = False) -> np.ndarray:
    """`[example, head]`: a unique code counts 1, shared by the examples that use it. Their sum is `node`."""
    on, off = coded.counts(positive[None])[0], coded.counts(negative[None])[0]
    worth = np.where((on > 0) & (off == 0), 1.0 / np.maximum(on, 1e-12), 0.0)
    if normalise:
        seen = coded.per_head(((on + off) > 0).astype(np.float64)[None])[0]
        worth = worth / np.maximum(seen, 1)[coded.head]
    return worth[coded.at] * positive[:, None]


def divergence(coded: Coded, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """`[draw, head]`: Jensen-Shannon divergence of the codes on positives and on negatives, bits, 0 to 1."""
    p, q = _distribution(coded, positive), _distribution(coded, negative)
    middle = (p + q) / 2
    return coded.per_head((_bits(p, middle) + _bits(q, middle)) / 2)


def divergence_shares(coded: Coded, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """`[example, head]`: log ratio of the used code's share on its side to its share overall; sums to `divergence`."""
    p, q = (_distribution(coded, side[None])[0] for side in (positive, negative))
    middle = np.maximum((p + q) / 2, 1e-300)
    logs = [np.log2(np.maximum(side, 1e-300) / middle)[coded.at] for side in (p, q)]
    weight = [side / max(side.sum(), 1) / 2 for side in (positive, negative)]
    return logs[0] * weight[0][:, None] + logs[1] * weight[1][:, None]


def pairs_unique(coded: Coded, positive: np.ndarray, negative: np.ndarray, *, normalise: bool = False) -> np.ndarray:
    """`[head, head]` U of the edge score; 0 on the diagonal. `positive`, `negative` mark the examples of each side."""
    n_heads = coded.at.shape[1]
    on, off = (coded.used[side.astype(bool)] for side in (positive, negative))
    ends = [*coded.first[1:], coded.used.shape[1]]
    found = np.zeros((n_heads, n_heads))
    for i, (a, b) in enumerate(zip(coded.first, ends, strict=True)):  # one head's codes at a time: memory
        together, against = on[:, a:b].T @ on > 0, off[:, a:b].T @ off > 0
        found[i] = coded.per_head((together & ~against).sum(axis=0, dtype=np.float64)[None])[0]
        if normalise:
            every = together.sum(axis=0, dtype=np.float64) + against.sum(axis=0)
            found[i] /= np.maximum(coded.per_head(every[None])[0], 1)
    np.fill_diagonal(found, 0)
    return found


def edge(unique: np.ndarray, *, top: float = 0.5, ties: Ties = "shared") -> np.ndarray:
    """`[head]`: how often each head is among the first `top * n_heads^2` entries of the sorted ordered pairs.

    A pair enters with both its heads, so half as many pairs are taken. Pairs that tie at the cut share the places left
    (`shared`), or those that come first in the matrix take them (`first`), which favours low layers.
    """
    n_heads = len(unique)
    entries = int(top * n_heads**2)
    flat = unique.ravel()
    if ties == "first":
        order = np.argsort(-flat, kind="stable")
        listed = np.stack([order // n_heads, order % n_heads], axis=1).ravel()[:entries]
        return np.bincount(listed, minlength=n_heads).astype(np.float64)
    places = entries / 2
    cut = np.sort(flat)[::-1][min(max(int(np.ceil(places)) - 1, 0), len(flat) - 1)]
    above, level = flat > cut, flat == cut
    weight = (above + level * (places - above.sum()) / level.sum()).reshape(unique.shape)
    return weight.sum(axis=0) + weight.sum(axis=1)


def softmax(score: np.ndarray, *, by_layer: bool = False) -> np.ndarray:
    """Over all heads of `[layer, head]`, or over layers for each head index (the authors' `across_layer`)."""
    shifted = score - (score.max(axis=0) if by_layer else score.max())
    grown = np.exp(shifted)
    return grown / (grown.sum(axis=0) if by_layer else grown.sum())


def permuted(
    positive: np.ndarray, negative: np.ndarray, n_draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """`[draw, example]` weights of both sides with the labels shuffled among the examples that count."""
    counted = np.flatnonzero(positive + negative > 0)
    n_positive = int((positive > 0).sum())
    drawn = np.zeros((2, n_draws, len(positive)))
    for i in range(n_draws):
        order = rng.permutation(counted)
        drawn[0, i, order[:n_positive]] = 1
        drawn[1, i, order[n_positive:]] = 1
    return drawn[0], drawn[1]


def resampled(
    positive: np.ndarray, negative: np.ndarray, n_draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """`[draw, example]` weights of bootstrap resamples, each side drawn from itself."""
    return tuple(
        rng.multinomial(int(side.sum()), side / side.sum(), size=n_draws).astype(np.float64)
        for side in (positive, negative)
    )


def _distribution(coded: Coded, weights: np.ndarray) -> np.ndarray:
    return coded.counts(weights).astype(np.float64) / np.maximum(weights.sum(axis=1, keepdims=True), 1)


def _bits(p: np.ndarray, middle: np.ndarray) -> np.ndarray:
    return p * np.log2(np.maximum(p, 1e-300) / np.maximum(middle, 1e-300))
