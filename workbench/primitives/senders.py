"""Who speaks at the start of a path: heads and MLPs, alone or in sets; and when anything writes or reads the stream.

A sender is a pair (layer, head), or (layer, MLP) for the MLP of a layer; sets of them send together. With l the layer,
attention reads the stream at 2l and writes it at 2l + 1, an MLP reads it at 2l + 1 (in a parallel block at 2l) and
writes it at 2l + 2, the logits read it at the end. A path exists from what writes to what reads no earlier. Bookkeeping
on integers; nothing here runs a model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

from workbench.errors import CapabilityError, InputError
from workbench.primitives.receivers import Receiver
from workbench.primitives.sweep.units import Head, Unit, all_heads, checked

if TYPE_CHECKING:
    from workbench.models import Model

MLP = -1  # in place of a head's number
Sender: TypeAlias = "str | Head | Iterable[str | Head]"  # as callers write one


def all_senders(model: Model, *, mlps: bool = True) -> list[Unit]:
    """Every head alone and, with `mlps`, every MLP alone, in the order in which they write."""
    found: list[Unit] = list(all_heads(model))
    if mlps:
        found += [((layer, MLP),) for layer in range(model.n_layers) if _has_mlp(model, layer)]
    return sorted(found, key=lambda unit: (writes_at(unit[0]), unit))


def parse_senders(model: Model, senders: Iterable[Sender]) -> tuple[Unit, ...]:
    """Senders from pairs or from names (`9.6` a head, `9.mlp` an MLP); each is a set, ordered by when it writes.

    Raises:
        InputError: a name that is none, or a head or layer that the model does not have.
        CapabilityError: an MLP in a block without an MLP module.
    """
    made: list[Unit] = []
    for given in senders:
        parts = {_part(one) for one in ([given] if _is_one(given) else given)}  # type: ignore[union-attr]
        heads = tuple(part for part in parts if part[1] != MLP)
        if heads or not parts:
            checked(model, [heads])
        for layer, _ in parts - set(heads):
            if not 0 <= layer < model.n_layers:
                raise InputError(f"There is no layer {layer} in {model.name!r}; it has 0 to {model.n_layers - 1}.")
            if not _has_mlp(model, layer):
                raise CapabilityError(f"Model {model.name!r} has no MLP module in layer {layer}.")
        made.append(tuple(sorted(parts, key=lambda part: (writes_at(part), part))))
    if not made:
        raise InputError("Path patching needs at least one sender; all_senders(model) gives every head and MLP.")
    return tuple(made)


def sender_name(part: Head) -> str:
    """`9.6` or `9.mlp`."""
    layer, head = part
    return f"{layer}.mlp" if head == MLP else f"{layer}.{head}"


def writes_at(part: Head) -> int:
    """When a head or MLP writes the stream."""
    layer, head = part
    return 2 * layer + (2 if head == MLP else 1)


def reads_at(model: Model, receiver: Receiver) -> int:
    """When a receiver reads the stream."""
    if receiver.layer is None:
        return 2 * model.n_layers
    parallel = model.capabilities.fork_point == "resid_post"  # there an MLP reads what attention reads
    return 2 * receiver.layer + (receiver.part == "mlp" and not parallel)


def _is_one(given: Any) -> bool:
    return isinstance(given, str) or (
        isinstance(given, (tuple, list)) and len(given) == 2 and all(isinstance(i, int) for i in given)
    )


def _part(given: Any) -> Head:
    if isinstance(given, str):
        if found := re.fullmatch(r"\s*(\d+)\.(\d+|mlp)\s*", given):
            return int(found[1]), MLP if found[2] == "mlp" else int(found[2])
    elif _is_one(given):
        return int(given[0]), int(given[1])
    raise InputError(f'{given!r} is not a sender; write "9.6" or (9, 6) for a head, "9.mlp" for an MLP.')


def _has_mlp(model: Model, layer: int) -> bool:
    from torch import nn

    return isinstance(getattr(model.bridge.blocks[layer], "mlp", None), nn.Module)
