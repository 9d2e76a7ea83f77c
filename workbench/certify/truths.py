"""What an organism's card says is true of it, checked and typed. It opens no weights and runs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workbench.errors import InputError

Head = tuple[int, int]


@dataclass(frozen=True)
class Truth:
    """One claim about a model.

    Attributes:
        claim: what the heads do, in the words of `Finding.claim`.
        data: the data block on which they do it.
        heads: all of them.
        optional: heads that are neither right nor wrong when found, such as backups.
        how: `planted`, `trained in` or `found`.
        value: a number that is true beside the heads (of `overlap`: the Jaccard index of two circuits); None for none.
    """

    claim: str
    data: Mapping[str, Any]
    heads: frozenset[Head]
    optional: frozenset[Head]
    how: str
    value: float | None = None


def read(card: Mapping[str, Any]) -> tuple[Truth, ...]:
    """The truths of a card; none where it has none.

    Raises:
        InputError: a truth lacks a key or names a head that the model does not have.
    """
    return tuple(_truth(record, card) for record in card.get("truths", ()))


def _truth(record: Mapping[str, Any], card: Mapping[str, Any]) -> Truth:
    name = card.get("name", "?")
    lacking = [key for key in ("claim", "data", "heads") if not record.get(key)]
    if lacking:
        raise InputError(f"A truth in the card of {name!r} lacks {', '.join(lacking)}; every truth needs all three.")
    heads, optional = (frozenset((int(a), int(b)) for a, b in record.get(key, ())) for key in ("heads", "optional"))
    model = card["model"]
    for layer, head in sorted(heads | optional):
        if not (0 <= layer < model["n_layers"] and 0 <= head < model["n_heads"]):
            raise InputError(f"The card of {name!r} names head ({layer}, {head}), which the model does not have.")
    value = record.get("value")
    value = None if value is None else float(value)
    return Truth(str(record["claim"]), dict(record["data"]), heads, optional, str(record.get("how", "")), value)
