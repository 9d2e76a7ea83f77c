"""Random edits as large as the real ones: what any change of that size at that place would do.

For each draw, unit and example one random direction of the residual stream; at every position it is as long as the
real edit's (z' - z) W_O there. Seeded by (seed, draw, unit, example), so it does not depend on what shares a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def directions(
    units: Sequence[int], examples: Sequence[int], d_model: int, *, draw: int, seed: int
) -> Float[Tensor, "unit example d_model"]:
    """Unit vectors, float64, on the CPU."""
    made = np.empty((len(units), len(examples), d_model))
    for i, unit in enumerate(units):
        for j, example in enumerate(examples):
            made[i, j] = np.random.default_rng([seed, draw, unit, example]).standard_normal(d_model)
    return torch.from_numpy(made / np.linalg.norm(made, axis=-1, keepdims=True))


def of_equal_norm(
    delta: Float[Tensor, "unit example pos d_model"], direction: Float[Tensor, "unit example d_model"]
) -> Float[Tensor, "unit example pos d_model"]:
    """`direction`, scaled at each position to the length of `delta` there."""
    length = torch.linalg.vector_norm(delta, dim=-1, keepdim=True)
    return length * direction.to(device=delta.device, dtype=delta.dtype)[:, :, None]
