"""A ranking of heads held to a reference: ROC and its area, precision and recall, F1. Arithmetic on arrays.

auc        probability that a head of the reference outranks another one, ties counting half
f1         2 P R / (P + R) at the best threshold
paper_f1   2 TPR (1 - FPR) / (TPR + 1 - FPR) at its best threshold: what O'Neill & Bui call F1
"""

from __future__ import annotations

from typing import Any

import numpy as np


def auc(score: np.ndarray, true: np.ndarray) -> float:
    """Area under the ROC curve from mean ranks; NaN where the reference has all heads or none. Undefined scores rank
    below all others."""
    from scipy.stats import rankdata

    return _area(rankdata(_floored(score)), np.asarray(true, dtype=bool).ravel())


def _area(ranks: np.ndarray, true: np.ndarray) -> float:
    n, m = int(true.sum()), int((~true).sum())
    if not n or not m:
        return float("nan")
    return float((ranks[true].sum() - n * (n + 1) / 2) / (n * m))


def curve(score: np.ndarray, true: np.ndarray) -> dict[str, np.ndarray]:
    """One entry per distinct threshold, from the highest: a head is picked when its score is at least the threshold."""
    score, true = _floored(score), np.asarray(true, dtype=bool).ravel()
    threshold = np.unique(score)[::-1]
    picked = score[None] >= threshold[:, None]
    hits, misses = (picked & true).sum(axis=1), (picked & ~true).sum(axis=1)
    n, m = max(int(true.sum()), 1), max(int((~true).sum()), 1)
    tpr, fpr = hits / n, misses / m
    precision = hits / np.maximum(hits + misses, 1)
    f1 = 2 * hits / (2 * hits + misses + (n - hits))
    low = tpr + 1 - fpr
    paper = np.divide(2 * tpr * (1 - fpr), low, out=np.zeros_like(low), where=low > 0)
    return {"threshold": threshold, "tpr": tpr, "fpr": fpr, "precision": precision, "f1": f1, "paper_f1": paper}


def judged(score: np.ndarray, true: np.ndarray, *, n_perm: int = 999, seed: int = 0) -> dict[str, Any]:
    """AUC with its p-value under shuffled heads, average precision, and both F1 at their best thresholds."""
    from scipy.stats import rankdata

    ranks, true = rankdata(_floored(score)), np.asarray(true, dtype=bool).ravel()
    area = _area(ranks, true)
    if np.isnan(area):
        return dict.fromkeys(("auc", "auc_p", "average_precision", "f1", "f1_threshold", "paper_f1"), float("nan"))
    points = curve(score, true)
    steps = np.diff(np.concatenate([[0.0], points["tpr"]]))
    rng = np.random.default_rng(seed)
    drawn = [_area(ranks, rng.permutation(true)) for _ in range(n_perm)]
    best = int(np.argmax(points["f1"]))
    return {
        "auc": area,
        "auc_p": (1 + sum(one >= area - 1e-12 for one in drawn)) / (1 + n_perm),
        "average_precision": float((steps * points["precision"]).sum()),
        "f1": float(points["f1"][best]),
        "f1_threshold": float(points["threshold"][best]),
        "paper_f1": float(points["paper_f1"].max()),
    }


def _floored(score: np.ndarray) -> np.ndarray:
    score = np.asarray(score, dtype=np.float64).ravel()
    low = np.nanmin(score, initial=0.0) - 1.0
    return np.where(np.isnan(score), low, score)
