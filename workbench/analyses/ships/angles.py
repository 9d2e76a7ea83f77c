"""Generalised Ships (Zhou et al. 2024, eq. 11): how far an ablation turns the subspace that a set of prompts spans.

    M     [n, d]   row i: the hidden state of prompt i at its last token, after the final norm
    M = U S V^T    so the columns of U live in the space of the prompts, not of the features
    Ships(Q, h) = sum_{r = 1..rank} phi_r,  phi_r the principal angles between the first `rank` columns of U and of U_h

U comes from the n x n Gram matrix in float64, and each angle from its sine and its cosine together, so that angles of
1e-12 degrees are as precise as large ones (arccos of a float32 loses everything below 0.03 degrees). Arithmetic on
tensors only; it never knows a model.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.errors import InputError

JACKKNIFE_GROUPS = 20


def left_vectors(states: Float[Tensor, "*unit n d"], rank: int) -> Float[Tensor, "*unit n rank"]:
    """The first `rank` left singular vectors, float64."""
    return gram_vectors(gram(states), rank)


def gram(states: Float[Tensor, "*unit n d"]) -> Float[Tensor, "*unit n n"]:
    """M M^T in float64."""
    wide = states.double()
    return wide @ wide.mT


def gram_vectors(grams: Float[Tensor, "*unit n n"], rank: int) -> Float[Tensor, "*unit n rank"]:
    """Eigenvectors of the largest eigenvalues, the largest first; NaN where the matrix is not finite."""
    finite = grams.isfinite().all(dim=(-2, -1))
    vectors = torch.linalg.eigh(torch.where(finite[..., None, None], grams, 0.0)).eigenvectors
    leading = vectors[..., -rank:].flip(-1)
    return torch.where(finite[..., None, None], leading, torch.nan)


def principal_angles(u: Float[Tensor, "*unit n rank"], v: Float[Tensor, "*unit n rank"]) -> Float[Tensor, "*unit rank"]:
    """Angles between the spans of two orthonormal sets, in radians, the smallest first.

    Cosines are the singular values of u^T v, sines those of the part of v outside the span of u; the angle is their
    arctangent, precise at both ends.
    """
    cosines, sines = _svdvals(u.mT @ v), _svdvals(_outside(u, v)).flip(-1)
    return torch.atan2(sines, cosines)


def angle(u: Float[Tensor, "*unit n rank"], v: Float[Tensor, "*unit n rank"]) -> Float[Tensor, " *unit"]:
    """Ships(Q, h): the sum of the principal angles, in degrees."""
    return torch.rad2deg(principal_angles(u, v).sum(dim=-1))


def shares(u: Float[Tensor, "*unit n rank"], v: Float[Tensor, "*unit n rank"]) -> Float[Tensor, "*unit n"]:
    """How much each prompt has to do with the angle: n times its share of the squared sines, so their mean is 1.

    All zero where nothing turned.
    """
    squares = _outside(u, v).square().sum(dim=-1)
    total = squares.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, squares.shape[-1] * squares / total.clamp(min=torch.finfo(total.dtype).tiny), total)


def jackknife_stderr(base: Float[Tensor, "n n"], grams: Float[Tensor, "unit n n"], rank: int) -> Float[Tensor, " unit"]:
    """Standard error of the angle over prompts: leave out one prompt (of more than 20: one group) at a time.

    NaN where too few prompts are left to have `rank` vectors.
    """
    n = base.shape[-1]
    groups = min(n, JACKKNIFE_GROUPS)
    if groups < 2 or n - -(-n // groups) < rank:
        return grams.new_full(grams.shape[:1], torch.nan)
    found = []
    for group in range(groups):
        kept = torch.arange(n, device=base.device) % groups != group
        u = gram_vectors(base[kept][:, kept], rank)
        found.append(angle(u, gram_vectors(grams[:, kept][:, :, kept], rank)))
    values = torch.stack(found)
    return ((groups - 1) / groups * (values - values.mean(dim=0)).square().sum(dim=0)).sqrt()


def reference_angle(base: Float[Tensor, "n d"], states: Float[Tensor, "unit n d"]) -> Float[Tensor, " unit"]:
    """The angle as the authors' code has it: float32, the first vector only, arccos of the clamped cosine; degrees."""
    first = [torch.linalg.svd(m.float(), full_matrices=False).U[..., 0] for m in (base, states)]
    cosine = (first[0] * first[1]).sum(dim=-1).abs().clamp(max=1.0)
    return torch.rad2deg(torch.arccos(cosine)).double()


def check_rank(rank: int, n: int, d: int, *, what: str) -> None:
    """Refuse more angles than there are singular vectors, and as many as span the whole sample space: nothing turns."""
    if rank > min(n, d):
        raise InputError(
            f"rank={rank} asks for more singular vectors than {n} {what} of {d} features have; use at most {min(n, d)}."
        )
    if rank >= n:
        raise InputError(
            f"rank={rank} of {n} {what} is always an angle of 0, because so many vectors span all there is; give "
            f"at least {rank + 1} {what} in each group, or score each alone (ships: level query, sahara: measure kl)."
        )


def _outside(u: Tensor, v: Tensor) -> Tensor:
    """The part of v outside the span of u."""
    return v - u @ (u.mT @ v)


def _svdvals(matrix: Tensor) -> Tensor:
    finite = matrix.isfinite().all(dim=(-2, -1))
    values = torch.linalg.svdvals(torch.where(finite[..., None, None], matrix, 0.0))
    return torch.where(finite[..., None], values, torch.nan)
