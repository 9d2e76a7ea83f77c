"""How a sweep is cut into batches: prompts into chunks, each chunk's units into batches of rows.

The cut depends only on shapes and on the memory budget, and the budget only on the size of the machine, never on what
happens to be free: the same sweep is cut the same way every time, which is what makes a resumed run equal an
uninterrupted one bit for bit. It never runs a model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from workbench.errors import InputError
from workbench.primitives.sweep.cost import Shape
from workbench.primitives.sweep.prompts import Prompts

if TYPE_CHECKING:
    from workbench.models import Model

# Beyond so many tokens a CPU gains nothing from larger matrix products, and with tensors of more bytes it loses time on
# caches and on memory pages that come fresh from the system; below so few its products are not at their speed.
_CPU_TENSOR = 2**24  # bytes of the widest activation
_CPU_TOKENS = 512, 2048
_CPU_BUDGET = 2**30


@dataclass
class Plan:
    """The cut of a sweep.

    Attributes:
        chunks: example numbers that share a base run, of similar length.
        rows: rows of a batch at most; halved when memory runs out.
    """

    chunks: list[list[int]]
    rows: int


def budget_bytes(device: torch.device) -> int:
    """Working memory a sweep may use unless told otherwise: a share of the machine's, whatever else is running."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory * 0.35)
    try:
        ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not every system tells
        ram = 8 * _CPU_BUDGET
    return min(_CPU_BUDGET, ram // 8)


def make_plan(model: Model, prompts: Prompts, shape: Shape, *, n_layers: int, budget: int | None, other: bool) -> Plan:
    """Chunks and batch size for these prompts.

    Raises:
        InputError: a budget that is no number of bytes.
    """
    if budget is None:
        budget = budget_bytes(model.device)
    if budget <= 0:
        raise InputError(f"A memory budget of {budget} bytes holds nothing; leave it out to have one chosen.")
    n_pos = prompts.tokens.shape[1]
    itemsize = torch.empty((), dtype=model.dtype).element_size()
    rows = rows_at_once(model, shape, n_pos, budget=budget)
    kept = max(1, budget // 2 // shape.base_bytes(n_pos, n_layers, itemsize, other=other))
    size = min(len(prompts), rows, kept)
    by_length = sorted(range(len(prompts)), key=lambda i: (_length(prompts, i), i))
    return Plan([by_length[i : i + size] for i in range(0, len(by_length), size)], rows)


def rows_at_once(model: Model, shape: Shape, n_pos: int, *, budget: int | None = None) -> int:
    """Prompts of `n_pos` tokens that are best run together: what the budget holds, on a CPU what its caches like."""
    itemsize = torch.empty((), dtype=model.dtype).element_size()
    rows = (budget or budget_bytes(model.device)) // 2 // shape.row_bytes(n_pos, itemsize)
    if model.device.type == "cpu":
        few, many = _CPU_TOKENS
        tokens = _CPU_TENSOR // (max(shape.d_mlp, shape.n_heads * n_pos) * itemsize)
        rows = min(rows, min(max(tokens, few), many) // n_pos)
    return max(1, rows)


def out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch may help."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(text in str(error).lower() for text in ("out of memory", "can't allocate memory", "cannot allocate"))


def batches(n_units: int, n_examples: int, rows: int) -> Iterator[tuple[range, range]]:
    """Units x examples in batches of at most `rows` rows."""
    if rows >= n_examples:
        step = rows // n_examples
        for start in range(0, n_units, step):
            yield range(start, min(start + step, n_units)), range(n_examples)
        return
    for unit in range(n_units):
        for start in range(0, n_examples, rows):
            yield range(unit, unit + 1), range(start, min(start + rows, n_examples))


def _length(prompts: Prompts, i: int) -> int:
    return prompts.tokens.shape[1] if prompts.mask is None else int(prompts.mask[i].sum())
