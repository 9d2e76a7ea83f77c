"""Faithfulness and its areas, as the MIB benchmark defines them. Arithmetic on a handful of numbers.

    f(C) = (m(C) - m(empty)) / (m(full) - m(empty))     m: the metric, mean over prompts first
    CPR  = integral of f over circuit size              higher is better; can exceed 1
    CMD  = integral of |1 - f| over circuit size        lower is better, 0 perfect

Trapezoid on a linear axis, from the smallest size to the largest, sizes as shares of all nodes. CPR takes the ranking
by signed score, CMD the one by its size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def faithfulness(kept: Float[np.ndarray, " circuit"], empty: float, full: float) -> Float[np.ndarray, " circuit"]:
    """f from means of the metric; NaN where the empty circuit does as well as the model."""
    gap = full - empty
    return (np.asarray(kept, dtype=np.float64) - empty) / gap if gap else np.full(np.shape(kept), np.nan)


def cpr(sizes: Sequence[float], f: Sequence[float] | np.ndarray) -> float:
    """Integrated circuit performance ratio."""
    return _area(sizes, np.asarray(f, dtype=np.float64))


def cmd(sizes: Sequence[float], f: Sequence[float] | np.ndarray) -> float:
    """Integrated circuit-model distance."""
    return _area(sizes, np.abs(1.0 - np.asarray(f, dtype=np.float64)))


def n_kept(size: float, n_nodes: int) -> int:
    """How many nodes a share of them is, rounded."""
    return int(np.floor(size * n_nodes + 0.5))


def _area(sizes: Sequence[float], values: np.ndarray) -> float:
    x = np.asarray(sizes, dtype=np.float64)
    return float(np.sum(np.diff(x) * (values[1:] + values[:-1]) / 2))
