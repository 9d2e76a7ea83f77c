"""Head sets that a ranking can be held to: published ones, a user's own, or what an organism's card says is true.

The published sets are facts from the papers, given as (layer, head). Sources disagree by a head or two, which in a
circuit of six moves an AUC by several points; so each version has a name of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from workbench.models import Model

Head = tuple[int, int]
ORGANISM = "organism"


@dataclass(frozen=True)
class Reference:
    """Heads taken to be the circuit; `optional` ones are neither right nor wrong."""

    name: str
    heads: frozenset[Head]
    source: str
    optional: frozenset[Head] = frozenset()


_IOI = (
    *((2, 2), (4, 11)),  # previous token
    *((0, 1), (3, 0), (0, 10)),  # duplicate token
    *((5, 5), (6, 9), (5, 8), (5, 9)),  # induction
    *((7, 3), (7, 9), (8, 6), (8, 10)),  # S-inhibition
    *((10, 7), (11, 10)),  # negative mover
    *((9, 9), (9, 6), (10, 0)),  # name mover
    *((10, 10), (10, 6), (10, 2), (10, 1), (11, 2), (11, 9), (9, 7)),  # backup name mover, with one of the two below
)
_PUBLISHED = {
    "ioi-gpt2-small": ((*_IOI, (11, 3)), "gpt2 (12x12), IOI; O'Neill & Bui 2024, data file"),
    "ioi-gpt2-small-wang": ((*_IOI, (9, 0)), "gpt2 (12x12), IOI; Wang et al. 2022, backup (9,0) for (11,3)"),
    "greater-than-gpt2-small": (
        ((0, 3), (0, 5), (0, 1), (5, 5), (6, 1), (6, 9), (7, 10), (8, 11), (9, 1)),
        "gpt2 (12x12), greater-than; as in ACDC and O'Neill & Bui 2024",
    ),
    "greater-than-gpt2-small-hanna": (
        ((9, 1), (8, 11), (8, 8), (7, 10), (6, 9), (5, 5), (5, 1)),
        "gpt2 (12x12), greater-than; text of Hanna et al. 2023",
    ),
    "docstring-attn-only-4l": (
        ((0, 5), (1, 0), (1, 4), (2, 0), (3, 0), (3, 6)),
        "attn-only-4l (4x8), docstring; O'Neill & Bui 2024",
    ),
    "docstring-attn-only-4l-acdc": (
        ((0, 5), (1, 2), (1, 4), (2, 0), (3, 0), (3, 6)),
        "attn-only-4l (4x8), docstring; Conmy et al. 2023 (ACDC)",
    ),
}
# Mean ROC AUC and its standard deviation over 10 trials (O'Neill & Bui 2024), for standing beside one's own.
PAPER_AUC: dict[str, dict[str, tuple[float, float]]] = {
    "ioi": {"node": (0.868, 0.008), "edge": (0.840, 0.024)},
    "greater_than": {"node": (0.855, 0.036), "edge": (0.873, 0.020)},
    "docstring": {"node": (0.869, 0.038), "edge": (0.896, 0.017)},
}


def names() -> list[str]:
    """Published head sets."""
    return sorted(_PUBLISHED)


def published(name: str) -> Reference:
    """A published head set.

    Raises:
        InputError: none has that name.
    """
    if name not in _PUBLISHED:
        known = [*names(), ORGANISM]
        raise InputError(
            f"There is no reference {name!r}.{did_you_mean(name, known)} Give {ORGANISM!r}, a list of heads, a .json "
            f"file, or one of {', '.join(names())}."
        )
    heads, source = _PUBLISHED[name]
    return Reference(name, frozenset(heads), source)


def read_heads(path: str | Path) -> list[Head]:
    """Heads of a JSON file: a list of [layer, head] or "layer-head", or an object with such keys (`head_score` files,
    or `{"heads": [...]}`)."""
    try:
        content = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError:
        raise InputError(f"There is no reference file {str(path)!r}; correct the path.") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"Line {error.lineno} of {str(path)!r} is not JSON ({error.msg}); write a list of heads."
        ) from None
    if isinstance(content, Mapping):
        content = content["heads"] if "heads" in content else list(content)
    return heads_of(content, where=repr(str(path)))


def heads_of(given: Any, *, where: str = "reference") -> list[Head]:
    """(layer, head) pairs from `[[0, 1]]` or `["0-1"]`.

    Raises:
        InputError: naming the entry that is no head.
    """
    if isinstance(given, (str, Mapping)) or not isinstance(given, Iterable):
        raise InputError(f"{where} must hold a list of heads like [[0, 1], [2, 3]], not {given!r}.")
    found = []
    for entry in given:
        parts = entry.split("-") if isinstance(entry, str) else entry
        try:
            layer, head = (int(part) for part in parts)
        except (TypeError, ValueError):
            raise InputError(f'{where}: {entry!r} is no head; write [layer, head] or "layer-head".') from None
        found.append((layer, head))
    return found


def resolve(given: Any, model: Model, recipe: Mapping[str, Any]) -> Reference | None:
    """The reference that a parameter names, checked against the model.

    Args:
        given: None, `organism`, a published name, or heads.
        recipe: of the data; its `task` picks among an organism's circuits.

    Raises:
        InputError: unknown name, no such card or truth, or a head that the model does not have.
    """
    if given is None:
        return None
    if given == ORGANISM:
        found = _of_organism(model, recipe)
    elif isinstance(given, str):
        found = published(given)
    else:
        found = Reference("given", frozenset(heads_of(given)), "given as heads")
    for layer, head in sorted(found.heads | found.optional):
        if not (0 <= layer < model.n_layers and 0 <= head < model.n_heads):
            raise InputError(
                f"The reference {found.name!r} has head ({layer}, {head}), but {model.name!r} has {model.n_layers} "
                f"layers of {model.n_heads} heads; choose a reference for this model."
            )
    return found


def _of_organism(model: Model, recipe: Mapping[str, Any]) -> Reference:
    from workbench import organisms

    if model.organism is None:
        raise InputError(f"{model.name!r} was not loaded as organism:NAME, so it has no card; give reference as heads.")
    card = organisms.card(model.organism)
    truths = [truth for truth in card.get("truths", ()) if truth.get("claim") == "circuit"]
    same = [truth for truth in truths if truth["data"].get("task") == recipe.get("task")]
    if not same:
        tasks = ", ".join(str(truth["data"].get("task")) for truth in truths) or "none"
        raise InputError(
            f"The card of {model.organism!r} names no circuit for these data (it does for tasks: {tasks}); give "
            "reference as heads."
        )
    truth = same[0]
    heads, optional = (frozenset(heads_of(truth.get(key, ()))) for key in ("heads", "optional"))
    return Reference(
        f"{model.organism}: {truth['data'].get('task', 'pairs')}", heads, str(truth.get("how", "")), optional
    )
