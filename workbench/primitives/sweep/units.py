"""What a sweep goes over: units, each a set of heads that is edited together.

A unit is a tuple of (layer, head) pairs: one head, the query heads of a kv group, or any set. Everything here is
bookkeeping on integers; it never knows what will be done to the heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from workbench.errors import InputError
from workbench.primitives.algebra import zero

if TYPE_CHECKING:
    from workbench.models import Model

Head = tuple[int, int]
Unit = tuple[Head, ...]


def attention_layers(model: Model) -> list[int]:
    """Layers whose block has attention heads (hybrid models have others too)."""
    return [layer for layer in range(model.n_layers) if f"blocks.{layer}.attn.hook_z" in model.bridge.hook_dict]


def all_heads(model: Model) -> list[Unit]:
    """Every head alone, by layer and head."""
    return [((layer, head),) for layer in attention_layers(model) for head in range(model.n_heads)]


def all_kv_groups(model: Model) -> list[Unit]:
    """The query heads of every kv group together, by layer and group."""
    width = model.n_heads // model.n_kv_heads
    return [
        tuple((layer, group * width + i) for i in range(width))
        for layer in attention_layers(model)
        for group in range(model.n_kv_heads)
    ]


def checked(model: Model, units: Iterable[Any]) -> tuple[Unit, ...]:
    """Units as sorted tuples of heads that exist.

    Raises:
        InputError: no unit, an empty one, or a head the model does not have.
    """
    made: list[Unit] = []
    for unit in units:
        heads = zero(_one_head_or_many(unit)).heads  # pairs of integers, each once
        for layer, head in heads:
            if not (0 <= layer < model.n_layers and 0 <= head < model.n_heads):
                raise InputError(
                    f"There is no head ({layer}, {head}) in {model.name!r}; layers are 0 to {model.n_layers - 1}, "
                    f"heads 0 to {model.n_heads - 1}."
                )
        made.append(tuple(sorted(heads)))
    if not made:
        raise InputError("A sweep needs at least one unit; all_heads(model) gives every head.")
    return tuple(made)


def by_lowest_layer(units: Sequence[Unit]) -> dict[int, list[int]]:
    """Unit numbers by the layer at which their edit begins, ascending."""
    groups: dict[int, list[int]] = {}
    for number, unit in enumerate(units):
        groups.setdefault(unit[0][0], []).append(number)
    return dict(sorted(groups.items()))


def in_layer(unit: Unit, layer: int) -> list[int]:
    """Heads of the unit in one layer."""
    return [head for at, head in unit if at == layer]


def in_one_layer(unit: Unit) -> bool:
    return unit[0][0] == unit[-1][0]


def _one_head_or_many(unit: Any) -> Any:
    """`(3, 1)` is short for `((3, 1),)`."""
    try:
        pair = tuple(unit)
    except TypeError:
        raise InputError(f"A unit is a set of (layer, head) pairs, not {unit!r}.") from None
    return [pair] if len(pair) == 2 and all(isinstance(i, int) for i in pair) else pair
