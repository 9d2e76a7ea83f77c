"""What path patching costs before it starts: the FLOP model of `sweep.cost`, applied to passes 1 to 3 of `paths`.

Pass 2 runs the MLPs between sender and receiver (none where they are frozen and the stream takes a change as it is) and
the projections of each listening layer; into the logits at the last column only. Pass 3 runs every block from the
lowest receiver on, the last one at the position that is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from workbench.primitives.batches import n_batches
from workbench.primitives.receivers import Receiver, by_layer
from workbench.primitives.sweep.cost import Cost, Shape

if TYPE_CHECKING:
    from workbench.models import Model


def path_cost(
    model: Model,
    tokens: Sequence[int],
    starts: Sequence[int | None],
    receivers: Sequence[Receiver],
    *,
    straight: bool,
    size: int,
    controls: int = 0,
) -> Cost:
    """Cost of all senders; `starts` are the layers where they begin, None for those without a path."""
    shape, (n, n_pos) = Shape.of(model), tokens
    listeners = by_layer(receivers)
    running = [start for start in starts if start is not None]
    once = sum(_one_sender(shape, start, listeners, n_pos, straight) for start in running) * n
    whole = shape.full(n_pos, logits_at=n_pos)
    itemsize = torch.empty((), dtype=model.dtype).element_size()
    kept = 2 * shape.base_bytes(n_pos, model.n_layers, itemsize, other=False)
    passes = 2 if listeners else 1
    return Cost(
        method="frozen paths",
        units=len(running),
        examples=n,
        controls=controls,
        forwards=2 * -(-n // size) + passes * (1 + controls) * n_batches(starts, n, size),
        rows=size,
        flops=float(2 * n * shape.full(n_pos, logits_at=1) + once * (1 + controls)),
        reference_flops=float(3 * whole * len(running) * n * (1 + controls)),
        bytes=n * kept + size * shape.row_bytes(n_pos, itemsize),
    )


def _one_sender(
    shape: Shape, start: int, listeners: dict[tuple[int, str], list[int]], n_pos: int, straight: bool
) -> int:
    n_layers = len(shape.mlp)
    if not listeners:
        between = 0 if straight else sum(shape.mlp[start:])
        return 2 * (between + shape.unembed)
    heard = sorted({layer for layer, _ in listeners if layer >= start})
    above = 0 if straight else 2 * n_pos * sum(shape.mlp[start : heard[-1]])
    for layer in heard:
        parts = {part for at, part in listeners if at == layer}
        above += 2 * n_pos * (shape.q + shape.kv if parts - {"mlp"} else 0)
        above += 2 * n_pos * (shape.mlp[layer] if "mlp" in parts else 0)
    third = 2 * shape.unembed + sum(shape.block(layer, n_pos) for layer in range(heard[0], n_layers - 1))
    third += shape.block(-1, n_pos) if heard[-1] == n_layers - 1 else shape.last_block(n_pos)
    return above + third
