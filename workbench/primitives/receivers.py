"""Who listens at the end of a path: q of a head, k or v of a kv group, an MLP, or the logits.

Names, as spec files write them, and what a model must have for them to exist. Free of torch, so that a spec file can be
checked without it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from workbench.errors import CapabilityError, InputError

if TYPE_CHECKING:
    from workbench.models import Model

Part = Literal["q", "k", "v", "mlp", "logits"]
Key = tuple[int, str]  # layer and part of a receiver


@dataclass(frozen=True)
class Receiver:
    """`9.6.q` is q of head 6 in layer 9, `9.2.k` is k of kv group 2, `9.mlp` is an MLP, `logits` the output."""

    part: Part
    layer: int | None = None
    index: int | None = None

    def __str__(self) -> str:
        return ".".join(str(x) for x in (self.layer, self.index, self.part) if x is not None)


LOGITS = Receiver("logits")


def parse_receivers(names: str | Receiver | Iterable[str | Receiver]) -> tuple[Receiver, ...]:
    """Receivers from their names, each once; whether a model has them is checked where they are used.

    Raises:
        InputError: a name that is none, or `logits` together with others.
    """
    given = [names] if isinstance(names, str | Receiver) else list(names)
    found = tuple(dict.fromkeys(name if isinstance(name, Receiver) else _parse(name) for name in given))
    if not found:
        raise InputError('Path patching needs at least one receiver, "logits" or "9.6.q" for example.')
    if LOGITS in found and len(found) > 1:
        other = next(receiver for receiver in found if receiver != LOGITS)
        raise InputError(
            f'"logits" replaces the whole final stream, so {str(other)!r} beside it has no say; run them apart.'
        )
    return found


def existing(model: Model, receivers: tuple[Receiver, ...]) -> tuple[Receiver, ...]:
    """The receivers, once they are known to be in the model.

    Raises:
        InputError: a layer, head or kv group that it does not have.
        CapabilityError: an MLP in a block without an MLP module.
    """
    from torch import nn

    for receiver in receivers:
        if receiver.layer is None:
            continue
        if not 0 <= receiver.layer < model.n_layers:
            raise InputError(
                f"The receiver {str(receiver)!r} names layer {receiver.layer}, but {model.name!r} has layers 0 to "
                f"{model.n_layers - 1}."
            )
        if receiver.part == "mlp":
            if not isinstance(getattr(model.bridge.blocks[receiver.layer], "mlp", None), nn.Module):
                raise CapabilityError(f"Model {model.name!r} has no MLP module in layer {receiver.layer}.")
            continue
        n = model.n_heads if receiver.part == "q" else model.n_kv_heads
        if not 0 <= cast(int, receiver.index) < n:
            kv = "" if receiver.part == "q" else f"; {receiver.part} belongs to kv groups"
            raise InputError(
                f"The receiver {str(receiver)!r} names {receiver.index}, but {model.name!r} has 0 to {n - 1}{kv}."
            )
    return receivers


def by_layer(receivers: Iterable[Receiver]) -> dict[Key, list[int]]:
    """Heads or kv groups by layer and part; an empty list for an MLP; nothing for the logits."""
    grouped: dict[Key, list[int]] = {}
    for receiver in receivers:
        if receiver.layer is not None:
            grouped.setdefault((receiver.layer, receiver.part), [])
            if receiver.index is not None:
                grouped[receiver.layer, receiver.part].append(receiver.index)
    return grouped


def _parse(name: Any) -> Receiver:
    text = str(name).strip()
    if text == "logits":
        return LOGITS
    if found := re.fullmatch(r"(\d+)\.mlp", text):
        return Receiver("mlp", int(found[1]))
    if found := re.fullmatch(r"(\d+)\.(\d+)\.([qkv])", text):
        return Receiver(cast(Part, found[3]), int(found[1]), int(found[2]))
    raise InputError(
        f'{name!r} is not a receiver; write "logits", "9.6.q" (head), "9.2.k" or "9.2.v" (kv group), or "9.mlp".'
    )
