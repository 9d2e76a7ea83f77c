"""The built-in tiny models whose answer is known, as folders in Hugging Face format with a card.

`organism:NAME` loads `path(NAME)` through the same code as a user's own model. The card states what the model does, how
well, which heads do it and how that was measured; tests hold the cards to it. Importing this loads no model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workbench.errors import InputError, did_you_mean

_DATA = Path(__file__).parent / "data"


def names() -> list[str]:
    """Names of the built-in organisms."""
    return sorted(folder.name for folder in _DATA.iterdir() if (folder / "card.json").exists())


def path(name: str) -> Path:
    """Folder of the weights of the organism `name` (a leading `organism:` is accepted).

    Two organisms may be two tasks on one set of weights: a card's `weights` then names the other.

    Raises:
        InputError: there is no organism of that name.
    """
    return _DATA / str(card(name).get("weights", name.removeprefix("organism:")))


def card(name: str) -> dict[str, Any]:
    """The organism's card: task, measured accuracy, ground truth or found heads, and how it was made.

    Raises:
        InputError: there is no organism of that name.
    """
    bare = name.removeprefix("organism:")
    if bare not in names():
        hint = did_you_mean(bare, names())
        raise InputError(f"There is no organism {bare!r}.{hint} Available: {', '.join(names())}.")
    return read_card(_DATA / bare)


def read_card(folder: Path) -> dict[str, Any]:
    """The card in an organism's folder, shipped or freshly made."""
    return json.loads((folder / "card.json").read_text(encoding="utf-8"))
