"""Malformed versions of a well-formed file: bytes flipped, cut and repeated; JSON values swapped for others."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

ODD: list[Any] = [
    None, True, -1, 0, 2**63, 1e400, "", "\u0000", "../../etc/passwd", "/etc/passwd", "a" * 5000, [], {}, [[]],
    {"": None},    "<script>alert(1)</script>", "organism:", "nan", "${HOME}", "!!python/object/apply:os.system [true]",
]  # fmt: skip


def some_bytes(rng: random.Random, data: bytes) -> bytes:
    """The data with a few bytes changed, or a part cut out, doubled or zeroed."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not out:
            break
        at, size = rng.randrange(len(out)), rng.choice((1, 1, 1, 4, 64))
        kind = rng.randrange(5)
        if kind == 0:
            out[at] = rng.randrange(256)
        elif kind == 1:
            del out[at : at + size]
        elif kind == 2:
            out[at:at] = out[at : at + size]
        elif kind == 3:
            out[at : at + size] = bytes(len(out[at : at + size]))
        else:
            del out[at:]
    return bytes(out)


def some_value(rng: random.Random, tree: Any) -> Any:
    """The tree with one value, key or element replaced, removed or doubled."""
    tree = copy.deepcopy(tree)
    places = list(_places(tree))
    if not places:
        return rng.choice(ODD)
    holder, key = rng.choice(places)
    kind = rng.randrange(4)
    if kind == 0 and isinstance(holder, dict):
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice(("x", "", "layer", f"{key}s"))] = holder.pop(key)
    elif kind == 2 and isinstance(holder, list):
        holder.append(holder[key])
    else:
        holder[key] = rng.choice(ODD)
    return tree


def some_json(rng: random.Random, tree: Any) -> bytes:
    """JSON text of a changed tree, now and then with changed bytes."""
    text = json.dumps(some_value(rng, tree)).encode()
    return some_bytes(rng, text) if rng.random() < 0.3 else text


def _places(tree: Any) -> Any:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items):
        yield tree, key
        yield from _places(value)
