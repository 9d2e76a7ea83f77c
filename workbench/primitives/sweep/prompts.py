"""The prompts of a sweep as tensors: tokens, mask, and the column where each example is read.

Pure indexing: take some examples, leave out columns that are padding in all of them, repeat them for a batch of units.
It never knows a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from workbench.errors import InputError
from workbench.primitives.forward import n_padding


@dataclass(frozen=True)
class Prompts:
    """A batch of prompts.

    Attributes:
        rows: number of each example in the sweep.
        mask: None when there is no padding.
        last: column of each example's last real token, where the metric is read.
        other: tokens of the second run of the same examples (`patch`, `resample`).
    """

    rows: Int[Tensor, " n"]
    tokens: Int[Tensor, "n pos"]
    mask: Int[Tensor, "n pos"] | None
    last: Int[Tensor, " n"]
    other: Int[Tensor, "n pos"] | None = None

    @classmethod
    def checked(cls, tokens: Tensor, mask: Tensor | None, other: Tensor | None) -> Prompts:
        """All examples of a sweep.

        Raises:
            InputError: shapes that do not fit, or an example without a real token.
        """
        if tokens.ndim != 2 or 0 in tokens.shape or tokens.is_floating_point():
            raise InputError(f"A sweep needs tokens of shape [example, pos], not {list(tokens.shape)}.")
        for name, given in (("attention_mask", mask), ("other", other)):
            if given is not None and given.shape != tokens.shape:
                raise InputError(
                    f"`{name}` has shape {list(given.shape)}, but the tokens have {list(tokens.shape)}; give one entry "
                    f"per token."
                )
        n, width = tokens.shape
        if mask is not None:
            mask = mask.to(tokens.device).long()
            if not bool(mask.any(dim=1).all()):
                empty = int((~mask.any(dim=1)).nonzero()[0])
                raise InputError(f"Example {empty} is all padding; leave it out.")
            last = width - 1 - mask.flip(1).argmax(dim=1)
        else:
            last = torch.full((n,), width - 1, device=tokens.device)
        return cls(torch.arange(n), tokens.long(), mask, last, other)._without_idle_mask()

    @property
    def padding(self) -> Int[Tensor, " n"]:
        """Padding columns in front of each example."""
        return torch.zeros(len(self), dtype=torch.long) if self.mask is None else n_padding(self.mask).cpu()

    @property
    def ends_aligned(self) -> bool:
        """Whether every example is read at the last column."""
        return bool((self.last == self.tokens.shape[1] - 1).all())

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, which: Sequence[int]) -> Prompts:
        """Some of the examples, in this order, without the columns that are padding in all of them."""
        some = self._picked(torch.as_tensor(which))
        if some.mask is None:
            return some
        real = some.mask.any(dim=0).nonzero()[:, 0]
        first, end = int(real[0]), int(real[-1]) + 1
        other = None if some.other is None else some.other[:, first:end]
        cut = Prompts(some.rows, some.tokens[:, first:end], some.mask[:, first:end], some.last - first, other)
        return cut._without_idle_mask()

    def slice(self, start: int, stop: int) -> Prompts:
        """Examples start to stop, columns as they are."""
        return self._picked(torch.arange(start, min(stop, len(self))))

    def repeat(self, times: int) -> Prompts:
        """All examples, `times` over."""
        return self._picked(torch.arange(len(self)).repeat(times)) if times > 1 else self

    def to(self, device: torch.device) -> Prompts:
        """The same on a device (`rows` stay on the CPU)."""
        mask = None if self.mask is None else self.mask.to(device)
        other = None if self.other is None else self.other.to(device)
        return Prompts(self.rows, self.tokens.to(device), mask, self.last.to(device), other)

    def _picked(self, which: Tensor) -> Prompts:
        at = which.to(self.tokens.device)
        mask = None if self.mask is None else self.mask[at]
        other = None if self.other is None else self.other[at]
        return Prompts(self.rows[which], self.tokens[at], mask, self.last[at], other)

    def _without_idle_mask(self) -> Prompts:
        if self.mask is None or not bool(self.mask.bool().all()):
            return self
        return Prompts(self.rows, self.tokens, None, self.last, self.other)


def at_columns(values: Tensor, columns: Int[Tensor, " batch"], axis: int) -> Tensor:
    """Each row's entry at its column; the axis stays, with length 1. `values` has the batch, or 1, in front."""
    axis %= values.ndim
    if bool((columns == values.shape[axis] - 1).all()):
        return values.narrow(axis, values.shape[axis] - 1, 1)
    values = values.expand(len(columns), *values.shape[1:]) if values.shape[0] == 1 else values
    shape = [1] * values.ndim
    shape[0] = len(columns)
    return values.take_along_dim(columns.to(values.device).view(shape), dim=axis)
