"""The residual stream of a planted model: named orthogonal subspaces, and the constant that holds its norm.

Every role writes and reads its own subspace, so that what a head does is exactly what was written into it. The
subspaces lie in general position (a seeded random rotation): no neuron of theirs means anything by itself.

A layer norm divides by the length of its input, which would make every role depend on every other. So each token
carries a large constant of length C in the first two neurons (+ and -, so that the mean LayerNorm removes is zero).
With the norm's weight at C / sqrt(width), norm(x) = x up to |x|^2 / 2 C^2, a tenth of a percent; RMSNorm alike. The
constant also serves as the input of every bias. The final norm's weight is zero in those two neurons, so hidden states
after it hold the roles alone, and the unembedding has no bias. Numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from workbench.errors import InputError

CONSTANT = 40.0  # C: the length of the constant; roles have lengths of about 1


class Residual:
    """Orthonormal rows for each named part of a stream `width` wide.

    With `unread`, neurons 2 and 3 hold one more direction, which no noise head touches and the final norm drops.

    Example:
        >>> stream = Residual(64, {"word": 7, "copied": 7}, np.random.default_rng(0))
        >>> stream["word"].shape, stream.constant.shape
        ((7, 64), (64,))

    Attributes:
        constant: unit row of the constant; `CONSTANT * constant` belongs into every position.
        unread: unit row that reaches nothing (zeros unless asked for).
        spare: rows of no part, where nothing planted reads.
    """

    def __init__(self, width: int, parts: Mapping[str, int], rng: np.random.Generator, *, unread: bool = False) -> None:
        self.width = width
        self._dropped = 4 if unread else 2  # neurons that the final norm drops
        needed = self._dropped + 1 + sum(parts.values())
        if width < needed:
            raise InputError(f"width {width} is too small for the planted roles; use at least {needed}.")
        self.constant: Float[np.ndarray, " width"] = _opposed(width, 0)
        self.unread: Float[np.ndarray, " width"] = _opposed(width, 2) if unread else np.zeros(width)

        free = width - self._dropped
        random = np.concatenate([np.ones((free, 1)), rng.standard_normal((free, free - 1))], axis=1)
        basis = np.zeros((free - 1, width))  # the first column of q is the mean that LayerNorm removes
        basis[:, self._dropped :] = np.linalg.qr(random)[0].T[1:]
        self._parts: dict[str, Float[np.ndarray, "dim width"]] = {}
        start = 0
        for name, dim in parts.items():
            self._parts[name] = basis[start : start + dim]
            start += dim
        self.spare: Float[np.ndarray, "rest width"] = basis[start:]

    def __getitem__(self, name: str) -> Float[np.ndarray, "dim width"]:
        """Rows of part `name`: `x @ self[name].T` reads it, `values @ self[name]` writes it."""
        return self._parts[name]

    @property
    def roles(self) -> Float[np.ndarray, "dim width"]:
        """Rows of all parts and of the spare ones: everything except the constant, the mean and `unread`."""
        return np.concatenate([*self._parts.values(), self.spare])

    @property
    def bias(self) -> Float[np.ndarray, " width"]:
        """Row that reads 1 at every position: the input of a head's bias (the unembedding cannot see it)."""
        return self.constant / CONSTANT

    @property
    def norm_weight(self) -> Float[np.ndarray, " width"]:
        """Weight of every layer norm but the final one, so that norm(x) = x."""
        return np.full(self.width, CONSTANT / np.sqrt(self.width))

    @property
    def final_norm_weight(self) -> Float[np.ndarray, " width"]:
        """Weight of the final norm: norm(x) = x without the constant and `unread`."""
        weight = self.norm_weight
        weight[: self._dropped] = 0.0
        return weight


def _opposed(width: int, first: int) -> Float[np.ndarray, " width"]:
    """Unit row with + in neuron `first` and - in the next."""
    row = np.zeros(width)
    row[first], row[first + 1] = 1 / np.sqrt(2), -1 / np.sqrt(2)
    return row
