"""The properties Wu et al. report of retrieval heads (sections 2 and 3), measured on per-sample scores.

Sparse and universal: how many heads score at all. Dynamic: how often each head is active at all. By condition: score
per needle, length and depth. Intrinsic: two models' tables correlate (`HeadTable.compare`). Causal: see `causal`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    import pandas as pd


def shares(mean: Float[np.ndarray, "layer head"], threshold: float) -> dict[str, float | int]:
    """Share of heads that never score, score below `threshold`, from there to .5, and from .5 up (paper, figure 3).

    Of the heads that have a score; NaN where none has one.
    """
    scored = mean[~np.isnan(mean)]
    n = len(scored) or np.nan
    strong = max(threshold, 0.5)
    return {
        "n_heads": len(scored),
        "n_retrieval_heads": int((scored >= threshold).sum()),
        "share_zero": float((scored == 0).sum() / n),
        "share_below_threshold": float(((scored > 0) & (scored < threshold)).sum() / n),
        "share_threshold_to_half": float(((scored >= threshold) & (scored < strong)).sum() / n),
        "share_half_and_above": float((scored >= strong).sum() / n),
    }


def activation_frequency(per_example: Float[np.ndarray, "example layer head"]) -> Float[np.ndarray, "layer head"]:
    """Fraction of samples on which each head scores above 0 (paper, section 3.2); NaN where it has no score."""
    if not len(per_example):
        return np.full(per_example.shape[1:], np.nan)
    active = (per_example > 0).mean(axis=0)
    return np.where(np.isnan(per_example).any(axis=0), np.nan, active)


def by_condition(samples: pd.DataFrame, per_example: Float[np.ndarray, "example layer head"]) -> pd.DataFrame:
    """Mean score of every head per needle, length and depth, one tidy row each.

    `samples` has one row per example with columns needle_id, length, depth. Columns of the result: by (`needle`,
    `length` or `depth`), value, layer, head, score, n.
    """
    import pandas as pd

    columns = {"needle": "needle_id", "length": "length", "depth": "depth"}
    n_layers, n_heads = per_example.shape[1:]
    layer, head = np.divmod(np.arange(n_layers * n_heads), n_heads)
    parts = []
    for by, column in columns.items():
        for value in sorted(samples[column].dropna().unique()):
            members = (samples[column] == value).to_numpy()
            mean = per_example[members].mean(axis=0).ravel()
            part = {"by": by, "value": str(value), "layer": layer, "head": head, "score": mean, "n": int(members.sum())}
            parts.append(pd.DataFrame(part))
    empty = {"by": [], "value": [], "layer": [], "head": [], "score": [], "n": []}
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(empty)


def recall_grid(samples: pd.DataFrame) -> pd.DataFrame:
    """Needle recall by length and depth: the needle-in-a-haystack heatmap. Columns: length, depth, recall, n."""
    grid = samples.groupby(["length", "depth"], dropna=False, as_index=False)
    return grid.agg(recall=("recall", "mean"), n=("recall", "size"))
