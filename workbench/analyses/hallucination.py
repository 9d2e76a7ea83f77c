"""How much of what a model says of an image is there: CHAIR for captions, POPE's figures for yes-no questions.

    CHAIR-I   mentions of objects that are not in the image, over all mentions (each object once per caption)
    CHAIR-S   captions with at least one such mention, over all captions
    recall    objects of the image that are mentioned, over all objects of the images
    F1        of recall and precision = 1 - CHAIR-I

Counts are pooled over captions. Intervals: Wilson where a caption or an answer counts, else the percentile bootstrap.
The images (or questions) are the sample: what was said of one several times goes together. Texts, names and counts in,
figures out; it never knows a model or how a text was made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench import stats
from workbench.tasks.captions import mentioned

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Counts:
    """One caption: objects rightly mentioned, objects made up, objects that the image shows, words."""

    hits: int
    false: int
    shown: int
    words: int


def count(text: str, objects: Iterable[str], vocabulary: Iterable[str]) -> Counts:
    """Counts of one caption; only names of `vocabulary` count as mentions."""
    said, drawn = set(mentioned(text, vocabulary)), set(objects)
    return Counts(len(said & drawn), len(said - drawn), len(drawn), len(text.split()))


def chair(
    captions: Sequence[Counts], *, of: Sequence[Any] | None = None, n_boot: int = 1000, seed: int = 0
) -> dict[str, float]:
    """CHAIR and its company over captions: `n`, and each figure with `_low` and `_high`; NaN where undefined.

    Args:
        of: the image that each caption describes; default each another one.
    """
    table = np.array([[c.hits, c.false, c.shown, c.words] for c in captions], dtype=float).reshape(-1, 4)
    units, bad = _units(of, len(table)), table[:, 1] > 0
    found: dict[str, float] = {"n": len(table), "chair_s": _over(bad.sum(), len(table))}
    found["chair_s_low"], found["chair_s_high"] = _wilson(bad, units)
    for name, figure in _POOLED.items():
        found |= _bootstrapped(name, _by_unit(table, units), figure, n_boot, seed)
    found["words"] = _over(table[:, 3].sum(), len(table))
    return found


def paired(
    captions: np.ndarray, others: np.ndarray, *, n_boot: int = 1000, seed: int = 0
) -> tuple[dict[str, float], dict[str, float]]:
    """How captions differ from others of the same images: CHAIR-I relatively (-0.25: a quarter less), F1 absolutely.

    Args:
        captions, others: `[image, 4]` hits, false, shown, words (of several captions of an image their sums). An image
            is resampled with all that was said of it, so that the intervals are those of the difference.

    Returns:
        For CHAIR-I and for F1 `value`, `low`, `high`; NaN where CHAIR-I of the others is 0 or undefined.
    """

    def change(mine: Any, theirs: Any) -> tuple[Any, Any]:
        a, b = _POOLED["chair_i"](mine), _POOLED["chair_i"](theirs)
        return _over(a - b, b), _POOLED["f1"](mine) - _POOLED["f1"](theirs)

    values = change(captions.sum(axis=0), others.sum(axis=0))
    weight = _resamples(len(captions), n_boot, seed)
    draws = change(weight @ captions, weight @ others)
    found = []
    for value, drawn in zip(values, draws, strict=True):
        drawn = drawn[np.isfinite(drawn)]
        low, high = np.quantile(drawn, [0.025, 0.975]) if len(captions) > 1 and len(drawn) else (np.nan, np.nan)
        found.append({"value": float(value), "low": float(low), "high": float(high)})
    return found[0], found[1]


def answer(text: str) -> str | None:
    """The first "yes" or "no" in an answer; None for neither.

    POPE's own script reads the first sentence only: "no" where it has a word No, no or not, and anything else is "yes".
    """
    words = "".join(c if c.isalpha() else " " for c in text.lower()).split()
    return next((word for word in words if word in ("yes", "no")), None)


def pope(
    answers: Sequence[str | None],
    truths: Sequence[str],
    *,
    of: Sequence[Any] | None = None,
    n_boot: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """Accuracy, F1 (of "yes"), precision, recall and the share of "yes", each with `_low` and `_high`.

    An answer that is neither yes nor no is wrong, and counts as a no for precision and recall; `unanswered` is their
    share. POPE's own script counts it as a yes: where the share is large, published figures are not comparable.

    Args:
        of: the question that each answer is to; default each another one.
    """
    n, units = len(truths), _units(of, len(truths))
    yes = np.array([said == "yes" for said in answers], dtype=bool)
    positive = np.array([truth == "yes" for truth in truths], dtype=bool)
    right = np.array([said == truth for said, truth in zip(answers, truths, strict=True)], dtype=bool)
    found: dict[str, float] = {"n": n}
    for name, hits in {"accuracy": right, "yes_ratio": yes}.items():
        found[name] = _over(hits.sum(), n)
        found[f"{name}_low"], found[f"{name}_high"] = _wilson(hits, units)
    # as captions of one object: a yes mentions it, and it is there or not
    table = np.stack([yes & positive, yes & ~positive, positive, np.ones(n)], axis=1).astype(float)
    for name in ("precision", "recall", "f1"):
        found |= _bootstrapped(name, _by_unit(table, units), _POOLED[name], n_boot, seed)
    found["unanswered"] = _over(sum(said is None for said in answers), n)
    return found


def separation(low: Sequence[float], high: Sequence[float], *, n_boot: int = 1000, seed: int = 0) -> dict[str, float]:
    """How far two samples lie apart: means, Cohen's d, and the chance that one of `high` is above one of `low`.

    The interval is of the difference of means, both samples resampled. NaN where a sample is too small.
    """
    a, b = np.asarray(low, dtype=float), np.asarray(high, dtype=float)
    found = {"n_low": len(a), "n_high": len(b), "mean_low": _mean(a), "mean_high": _mean(b)}
    found["difference"] = found["mean_high"] - found["mean_low"]
    if min(len(a), len(b)) < 2:
        return {**found, **dict.fromkeys(("difference_low", "difference_high", "cohens_d", "auroc"), float("nan"))}
    rng = np.random.default_rng([seed, 7])
    draws = [rng.choice(b, len(b)).mean() - rng.choice(a, len(a)).mean() for _ in range(n_boot)]
    found["difference_low"], found["difference_high"] = map(float, np.quantile(draws, [0.025, 0.975]))
    pooled = ((len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)) / (len(a) + len(b) - 2)
    found["cohens_d"] = _over(found["difference"], float(np.sqrt(pooled)))
    above = (b[:, None] > a).mean() + 0.5 * (b[:, None] == a).mean()
    return {**found, "auroc": float(above)}


# columns: hits, false, shown, words
_POOLED: dict[str, Callable[[Any], Any]] = {
    "chair_i": lambda s: _over(s[..., 1], s[..., 0] + s[..., 1]),
    "precision": lambda s: _over(s[..., 0], s[..., 0] + s[..., 1]),
    "recall": lambda s: _over(s[..., 0], s[..., 2]),
    "f1": lambda s: _over(2 * s[..., 0], s[..., 0] + s[..., 1] + s[..., 2]),
}


def _bootstrapped(name: str, table: np.ndarray, figure: Callable, n_boot: int, seed: int) -> dict[str, float]:
    """A ratio of sums over captions with its percentile interval; one set of resamples for all figures."""
    value = float(figure(table.sum(axis=0)))
    if len(table) < 2:
        return {name: value, f"{name}_low": float("nan"), f"{name}_high": float("nan")}
    draws = figure(_resamples(len(table), n_boot, seed) @ table)
    draws = draws[np.isfinite(draws)]
    low, high = np.quantile(draws, [0.025, 0.975]) if len(draws) else (np.nan, np.nan)
    return {name: value, f"{name}_low": float(low), f"{name}_high": float(high)}


def _units(of: Sequence[Any] | None, n: int) -> np.ndarray:
    """Number of the unit that each of `n` texts belongs to, in the order in which units come."""
    if of is None:
        return np.arange(n)
    number: dict[Any, int] = {}
    return np.array([number.setdefault(unit, len(number)) for unit in of], dtype=int)


def _by_unit(table: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Sums of the rows of each unit."""
    sums = np.zeros((int(units.max(initial=-1)) + 1, table.shape[1]))
    np.add.at(sums, units, table)
    return sums


def _wilson(hits: np.ndarray, units: np.ndarray) -> tuple[float, float]:
    """Of the share of hits, with each unit's own share counted once."""
    sums = _by_unit(np.stack([hits, np.ones(len(hits))], axis=1).astype(float), units)
    return stats.wilson(float((sums[:, 0] / sums[:, 1]).sum()), len(sums), confidence=_CONFIDENCE)


def _resamples(n: int, n_boot: int, seed: int) -> np.ndarray:
    """How often each of `n` captions is drawn, `[n_boot, n]`."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_boot)


def _over(part: Any, whole: Any) -> Any:
    """Quotient, NaN over zero; scalars give a float."""
    part, whole = np.asarray(part, dtype=float), np.asarray(whole, dtype=float)
    out = np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, np.nan), where=whole != 0)
    return float(out) if out.ndim == 0 else out


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
