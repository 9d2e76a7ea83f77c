"""The variants: each a score per head with its spread over seeds and examples and its null. Arithmetic on arrays.

    node         published: codes used on positives and never on negatives
    edge         published: how often the head is in the pairs of heads with most code pairs of that kind
    divergence   ours: Jensen-Shannon divergence of the distributions of codes, less its mean under shuffled labels
    paired       ours: mean over pairs of the distance between the head's outputs on the clean and the corrupted prompt

The null of the first three shuffles the labels of all examples that count. `paired` is the same under any labels; its
null is the distance between a clean prompt and another clean prompt, which says whether the pair differs in more than
prompts differ anyhow, and no more than that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from workbench import stats
from workbench.analyses.sae_circuits import codes as c
from workbench.errors import InputError

if TYPE_CHECKING:
    from workbench.analyses.sae_circuits.activations import Outputs
    from workbench.analyses.sae_circuits.params import SaeCircuitsParams
    from workbench.analyses.sae_circuits.trained import Codes


@dataclass
class Scored:
    """One variant, heads in a row.

    Attributes:
        score: `[head]`, mean over seeds.
        by_seed: `[seed, head]`; one row where there are no seeds.
        spread: `[head]` standard deviation over bootstrap resamples of the examples, mean over seeds.
        shares: `[example, head]`, whose mean over the defined entries is the score.
        null: `[draw, head]` scores under shuffled labels, mean over seeds; empty for `paired`.
        null_mean, null_p: `[head]`.
        extra: further arrays.
    """

    score: np.ndarray
    by_seed: np.ndarray
    spread: np.ndarray
    shares: np.ndarray
    null: np.ndarray
    null_mean: np.ndarray
    null_p: np.ndarray
    extra: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def stderr(self) -> np.ndarray:
        """Of the examples and of the seeds together."""
        over_seeds = np.nan_to_num(stats.stderr(self.by_seed)) if len(self.by_seed) > 1 else 0.0
        return np.sqrt(self.spread**2 + over_seeds**2)


@dataclass
class Labelled:
    """Codes of every seed with the labels of the examples; `counted` `[seed, n]` says which of them count."""

    codes: Codes
    positive: np.ndarray
    params: SaeCircuitsParams
    seed: int

    def __post_init__(self) -> None:
        self.coded = [c.Coded.of(one) for one in self.codes.codes]

    def sides(self, *, held_out: bool) -> list[tuple[np.ndarray, np.ndarray]]:
        """Weights of positives and negatives, by seed.

        Raises:
            InputError: no positive or no negative is left out of the training of some autoencoder.
        """
        found = []
        for trained in self.codes.trained_on:
            counted = ~trained if held_out else np.ones_like(trained)
            sides = tuple((counted & side).astype(np.float64) for side in (self.positive, ~self.positive))
            if not all(side.any() for side in sides):
                raise InputError(
                    f"held_out needs positives and negatives that were not among the {int(trained.sum())} examples an "
                    f"autoencoder was trained on, of {len(trained)}; give more examples or lower train_examples."
                )
            found.append((sides[0], sides[1]))
        return found

    def draws(self, positive: np.ndarray, negative: np.ndarray, number: int) -> dict[str, tuple[np.ndarray, ...]]:
        """Weights of both sides under shuffled labels and under the bootstrap; the same draws for every seed."""
        return {
            "null": c.permuted(positive, negative, number, np.random.default_rng([self.seed, 1])),
            "boot": c.resampled(positive, negative, self.params.bootstrap, np.random.default_rng([self.seed, 2])),
        }


def node(data: Labelled, *, held_out: bool, normalise: bool) -> Scored:
    by_seed, null, spread, shares = [], [], [], []
    n = len(data.positive)
    for coded, (on, off) in zip(data.coded, data.sides(held_out=held_out), strict=True):
        drawn = data.draws(on, off, data.params.permutations)
        by_seed.append(c.node(coded, on[None], off[None], normalise=normalise)[0])
        null.append(c.node(coded, *drawn["null"], normalise=normalise))
        spread.append(c.node(coded, *drawn["boot"], normalise=normalise).std(axis=0, ddof=1))
        shares.append(c.node_shares(coded, on, off, normalise=normalise))
    per_example = np.where(data.positive[:, None], np.mean(shares, axis=0) * data.positive.sum(), np.nan)
    assert len(per_example) == n
    return _with_null(np.array(by_seed), spread, per_example, np.mean(null, axis=0))


def divergence(data: Labelled, *, held_out: bool) -> Scored:
    by_seed, null, spread, shares = [], [], [], []
    for coded, (on, off) in zip(data.coded, data.sides(held_out=held_out), strict=True):
        drawn = data.draws(on, off, data.params.permutations)
        shuffled = c.divergence(coded, *drawn["null"])
        bias = shuffled.mean(axis=0)
        by_seed.append(c.divergence(coded, on[None], off[None])[0] - bias)
        null.append(shuffled - bias)
        spread.append(c.divergence(coded, *drawn["boot"]).std(axis=0, ddof=1))
        shares.append(c.divergence_shares(coded, on, off) * len(on) - bias)
    return _with_null(np.array(by_seed), spread, np.mean(shares, axis=0), np.mean(null, axis=0))


def edge(data: Labelled, *, held_out: bool, nulls: bool) -> Scored:
    """`extra["pairs"]` is U `[head, head]`, mean over seeds; null and spread only with `nulls`."""
    params = data.params
    by_seed, null, spread, unique = [], [], [], []

    def score(coded: c.Coded, on: np.ndarray, off: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = c.pairs_unique(coded, on > 0, off > 0, normalise=params.normalise)
        return found, c.edge(found, top=params.top_pairs, ties=params.edge_ties)

    for coded, (on, off) in zip(data.coded, data.sides(held_out=held_out), strict=True):
        found, listed = score(coded, on, off)
        unique.append(found)
        by_seed.append(listed)
        if nulls:
            rng = np.random.default_rng([data.seed, 3])
            null.append(
                [score(coded, *w)[1] for w in zip(*c.permuted(on, off, params.edge_permutations, rng), strict=True)]
            )
            resamples = c.resampled(on, off, params.edge_permutations + 1, rng)
            spread.append(np.std([score(coded, *w)[1] for w in zip(*resamples, strict=True)], axis=0, ddof=1))
    scores = np.array(by_seed)
    per_example = np.tile(scores.mean(axis=0), (len(data.positive), 1))
    nothing = np.full(scores.shape[1], np.nan)
    shuffled = np.mean(null, axis=0) if nulls else np.empty((0, scores.shape[1]))
    made = _with_null(scores, spread if nulls else [nothing], per_example, shuffled)
    made.extra = {"pairs": np.mean(unique, axis=0), "pairs_sd": np.std(unique, axis=0)}
    return made


def paired(out: Outputs, n: int) -> Scored:
    """From the distances of `Outputs`; of `n` examples, those of the pairs' clean prompts have a value.

    Raises:
        InputError: the data are no pairs.
    """
    if out.change is None or out.elsewhere is None:
        raise InputError("variant 'paired' needs pairs; give a task of pairs, or take variant 'divergence'.")
    score = out.change.mean(axis=0)
    per_example = np.full((n, len(score)), np.nan)
    per_example[: len(out.change)] = out.change
    few = len(out.change) < 2
    spread = np.full_like(score, np.nan) if few else stats.stderr(out.change)
    p = stats.sign_flip_p(out.change - out.elsewhere, alternative="greater")
    return Scored(score, score[None], spread, per_example, np.empty((0, len(score))), stats.mean(out.elsewhere), p)


def _with_null(by_seed: np.ndarray, spread: list[np.ndarray], shares: np.ndarray, null: np.ndarray) -> Scored:
    score = by_seed.mean(axis=0)
    if not len(null):
        nothing = np.full_like(score, np.nan)
        return Scored(score, by_seed, np.mean(spread, axis=0), shares, null, nothing, nothing)
    p = stats.empirical_p(score, null, alternative="greater")
    return Scored(score, by_seed, np.mean(spread, axis=0), shares, null, null.mean(axis=0), p)
