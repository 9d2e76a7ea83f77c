"""Sparse autoencoders one vector and one feature at a time, in plain Python: the slow twin of `workbench.saes.sae`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np


def encode(x: Sequence[float], weights: Mapping[str, np.ndarray], *, kind: str, k: int = 0, subtract: bool = True):
    """Feature activations of one vector."""
    d_in, d_sae = weights["W_enc"].shape
    inner = [x[i] - (weights["b_dec"][i] if subtract else 0.0) for i in range(d_in)]
    dots = [math.fsum(inner[i] * weights["W_enc"][i, f] for i in range(d_in)) for f in range(d_sae)]
    if kind == "gated":
        magnitude = [dots[f] * math.exp(weights["r_mag"][f]) + weights["b_mag"][f] for f in range(d_sae)]
        return [max(0.0, magnitude[f]) if dots[f] + weights["b_gate"][f] > 0 else 0.0 for f in range(d_sae)]
    pre = [dots[f] + weights["b_enc"][f] for f in range(d_sae)]
    if kind == "jumprelu":
        return [max(0.0, pre[f]) if pre[f] > weights["threshold"][f] else 0.0 for f in range(d_sae)]
    if kind == "topk":
        kept = sorted(range(d_sae), key=lambda f: -pre[f])[:k]
        return [max(0.0, pre[f]) if f in kept else 0.0 for f in range(d_sae)]
    return [max(0.0, p) for p in pre]


def decode(features: Sequence[float], weights: Mapping[str, np.ndarray]) -> list[float]:
    """What features write."""
    d_sae, d_in = weights["W_dec"].shape
    return [
        math.fsum([weights["b_dec"][i], *(features[f] * weights["W_dec"][f, i] for f in range(d_sae))])
        for i in range(d_in)
    ]
