"""Words as vectors: many of them in few dimensions, none close to another.

A head can carry only as many dimensions as it is wide, so a planted vocabulary cannot be one-hot. The roots of the
lattices E8, E7 and E6 are 240, 126 and 72 unit vectors in 8, 7 and 6 dimensions whose inner products are 1, 1/2, 0,
-1/2 or -1 and nothing else: a query for one word scores 1 on it and at most 1/2 on any other, and a scale turns that
half into as much certainty as wanted. Numpy only.
"""

from __future__ import annotations

import itertools

import numpy as np
from jaxtyping import Float

from workbench.errors import InputError

ROOTS = {8: 240, 7: 126, 6: 72}
NEAREST = 0.5  # the largest inner product of two different roots


def codes(n: int, dim: int, rng: np.random.Generator, *, what: str = "words") -> Float[np.ndarray, "n dim"]:
    """`n` unit vectors whose pairwise inner products are at most `NEAREST`, drawn and ordered by `rng`.

    Up to `dim` vectors are orthonormal; more are roots of E6, E7 or E8 (`dim` 6, 7 or 8).

    Raises:
        InputError: so many do not fit.
    """
    if n <= dim:
        return np.eye(dim)[rng.permutation(dim)[:n]]
    if n > ROOTS.get(dim, dim):
        raise InputError(f"{n} {what} do not fit into {dim} dimensions; use at most {ROOTS.get(dim, dim)}.")
    roots = _roots(dim)
    return roots[rng.permutation(len(roots))[:n]]


def _roots(dim: int) -> Float[np.ndarray, "roots dim"]:
    """The roots of E8, or those orthogonal to one root (E7) or to two at 120 degrees (E6), in their own dimensions."""
    whole = []
    for i, j in itertools.combinations(range(8), 2):
        for a, b in itertools.product((1.0, -1.0), repeat=2):
            root = np.zeros(8)
            root[i], root[j] = a, b
            whole.append(root)
    halves = [np.array(signs) / 2 for signs in itertools.product((1.0, -1.0), repeat=8) if np.prod(signs) > 0]
    roots = np.stack([*whole, *halves]) / np.sqrt(2)  # (240, 8)
    if dim == 8:
        return roots
    first = np.array([1.0, -1.0, 0, 0, 0, 0, 0, 0])
    second = np.array([0, 1.0, -1.0, 0, 0, 0, 0, 0])
    left_out = np.stack([first, second])[: 8 - dim]
    kept = roots[(np.abs(roots @ left_out.T) < 1e-9).all(1)]
    # an orthonormal basis of what is orthogonal to the roots left out
    basis = np.linalg.qr(np.concatenate([left_out, np.eye(8)]).T)[0][:, 8 - dim :]
    return kept @ basis
