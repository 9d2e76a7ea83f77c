"""Items x examples as rows of batches, grouped by the layer where computing begins; finished layers are kept on disk.

What activation patching and path patching share: the cut into batches, which depends on the request alone; half of it
when memory runs out; one file per finished layer, so that a killed run goes on with the next one and gives the same
bits. It never knows what an item is or what is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.primitives.sweep.checkpoint import Checkpoint
from workbench.primitives.sweep.plan import out_of_memory
from workbench.primitives.sweep.team import Key
from workbench.progress import bar

Work = Callable[[int, np.ndarray, Tensor], Mapping[str, np.ndarray]]


def measured(
    work: Work,
    starts: Sequence[int | None],
    n: int,
    names: Sequence[str],
    *,
    size: int,
    kept: Checkpoint,
    label: str,
) -> dict[str, Float[np.ndarray, "item example"]]:
    """What `work(start, item of each row, example of each row)` gives, by name, for every item and example.

    Args:
        starts: first layer that an item computes; None for one that is not computed at all (its values are NaN).
        size: rows of a batch at most.
    """
    values = {name: np.full((len(starts), n), np.nan) for name in names}
    size = min(size, kept.sizes.get("rows", size))
    items = {
        s: np.array([i for i, t in enumerate(starts) if t == s]) for s in sorted({s for s in starts if s is not None})
    }
    with bar(n * sum(start is not None for start in starts), label) as shown:
        made: set[int] = set()

        def make(key: Key) -> dict[str, Tensor]:
            nonlocal size
            found, size = _layer(work, key[1], items[key[1]], n, names, size, kept, shown)
            made.add(key[1])
            return {name: torch.from_numpy(value) for name, value in found.items()}

        for (_, start), part in kept.parts([(0, start) for start in items], make):
            for name in names:
                values[name][items[start]] = part[name].numpy()
            if start not in made:
                shown.update(len(items[start]) * n)
    kept.remove()
    return values


def rows(items: np.ndarray, n: int, size: int) -> Iterator[tuple[np.ndarray, Int[Tensor, " batch"]]]:
    """Item and example of every row of every batch, examples innermost."""
    item, example = np.repeat(items, n), np.tile(np.arange(n), len(items))
    for at in range(0, len(item), size):
        yield item[at : at + size], torch.from_numpy(example[at : at + size])


def n_batches(starts: Sequence[int | None], n: int, size: int) -> int:
    """How many batches `measured` makes."""
    groups: dict[int, int] = {}
    for start in starts:
        if start is not None:
            groups[start] = groups.get(start, 0) + n
    return sum(-(-count // size) for count in groups.values())


def _layer(
    work: Work,
    start: int,
    items: np.ndarray,
    n: int,
    names: Sequence[str],
    size: int,
    kept: Checkpoint,
    shown: Any,
) -> tuple[dict[str, np.ndarray], int]:
    """Values `[item, example]` of the items of one layer, and the batch size that memory had room for."""
    while True:
        try:
            parts = []
            for item, example in rows(items, n, size):
                parts.append(work(start, item, example))
                shown.update(len(item))
            return {name: np.concatenate([p[name] for p in parts]).reshape(len(items), n) for name in names}, size
        except (RuntimeError, MemoryError) as error:
            if size <= 1 or not out_of_memory(error):
                raise
        size //= 2
        kept.save_sizes(rows=size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
