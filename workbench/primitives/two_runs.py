"""Two runs of the same prompts, position by position alike: checks, positions, donors, and the share of the gap.

Pure indexing and arithmetic on what patching, path patching and attribution have in common. Nothing here runs a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.errors import InputError
from workbench.primitives.forward import n_padding

if TYPE_CHECKING:
    from workbench.primitives.suffix import Run
    from workbench.primitives.sweep.readout import Readout


def share_of_gap(values: np.ndarray, base: np.ndarray, other: np.ndarray, *, least: float = 0.0) -> np.ndarray:
    """(value - base) / (other - base) per example; NaN where the two runs agree on the metric.

    Agree: the gap is at most `least`, or at most 1e-5 of the larger of the two, which is float32 rounding.
    """
    gap = other - base
    floor = np.maximum(least, 1e-5 * np.maximum(np.abs(base), np.abs(other)))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.abs(gap) > floor, (values - base) / gap, np.nan)


def places(
    n: int, n_pos: int, positions: Sequence[int] | None, attention_mask: Int[Tensor, "n pos"] | None
) -> tuple[Bool[Tensor, "n pos"], Bool[Tensor, " n"]]:
    """Columns of `positions` in every row, and which rows have all of them.

    0, 1, ... count from a row's first real token, -1, -2, ... from its last; None: every column, in every row.

    Raises:
        InputError: a position that no row has.
    """
    if positions is None:
        return torch.ones(n, n_pos, dtype=torch.bool), torch.ones(n, dtype=torch.bool)
    padding = torch.zeros(n, dtype=torch.long) if attention_mask is None else n_padding(attention_mask).cpu()
    columns = torch.zeros(n, n_pos, dtype=torch.bool)
    defined = torch.ones(n, dtype=torch.bool)
    for position in positions:
        column = padding + position if position >= 0 else torch.full((n,), n_pos + position)
        inside = (column >= padding) & (column < n_pos)
        if not bool(inside.any()):
            raise InputError(f"Position {position} is outside every prompt; the longest has {n_pos} tokens.")
        columns[torch.arange(n)[inside], column[inside]] = True
        defined &= inside
    return columns, defined


def measure(readout: Readout, logits: Float[Tensor, "batch vocab"], example: Tensor, base: Run) -> np.ndarray:
    """Metric of each row, float64; `base` is what KL compares with."""
    compared = base.logits[example.to(base.logits.device)] if readout.needs_base else None
    return readout(logits, example, compared).double().cpu().numpy()


def check_runs(base: Tensor, other: Tensor, attention_mask: Tensor | None) -> None:
    """Two runs that can be patched into one another.

    Raises:
        InputError: naming the shapes, or the row that is padded on the right.
    """
    if base.ndim != 2 or base.shape != other.shape or not base.numel():
        raise InputError(
            f"Both runs must be token rows of one shape [n, pos], not {list(base.shape)} and {list(other.shape)}."
        )
    if attention_mask is not None and attention_mask.shape != base.shape:
        raise InputError(f"The mask has shape {list(attention_mask.shape)}, but the runs have {list(base.shape)}.")
    if attention_mask is not None and not bool(attention_mask[:, -1].all()):
        row = int((attention_mask[:, -1] == 0).nonzero()[0])
        raise InputError(f"Example {row} is padded on the right; pad on the left, so that every prompt ends together.")


def donor_rows(donors: Sequence[int] | None, n: int) -> Int[Tensor, " n"]:
    take = torch.arange(n) if donors is None else torch.as_tensor(donors)
    if take.shape != (n,) or bool(((take < 0) | (take >= n)).any()):
        raise InputError(f"`donors` names one of {n} examples for each of them, not {donors!r}.")
    return take.long()


def measure_all(
    readouts: Mapping[str, Readout], logits: Float[Tensor, "batch vocab"], example: Tensor, base: Run
) -> dict[str, np.ndarray]:
    """Every metric of each row, by name, float64; `base` is what KL compares with."""
    return {name: measure(readout, logits, example, base) for name, readout in readouts.items()}
