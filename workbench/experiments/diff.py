"""How two artifacts differ: in what was asked, in how it was made, and in which heads scored what.

Reads manifests and head tables; computes nothing with a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from workbench.errors import InputError
from workbench.experiments.agreement import HeadDifference, compare_heads
from workbench.store import Artifact, Store
from workbench.tables import HeadTable

_UNINTERESTING = ("argv", "spec_file")  # always differ, never explain a number


@dataclass(frozen=True)
class Difference:
    """Two artifacts side by side.

    Attributes:
        same_content: their digests are equal.
        spec, provenance, summary: `{dotted key: [in a, in b]}` where they differ; None where one has no such key.
        files: payloads that were added, removed or changed.
        heads: differences of the head tables, None where they cannot be compared; `note` says why.
    """

    a: str
    b: str
    same_content: bool
    spec: dict[str, list[Any]]
    provenance: dict[str, list[Any]]
    summary: dict[str, list[Any]]
    files: dict[str, str]
    heads: HeadDifference | None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "heads": self.heads.to_dict() if self.heads else None}


def diff(a: str | Artifact, b: str | Artifact, *, store: Store | str | Path | None = None, top: int = 10) -> Difference:
    """Compare two artifacts given as references or as they are."""
    place = store if isinstance(store, Store) else Store(store)
    left, right = place.get(a), place.get(b)
    raw = place.diff(left, right)
    heads, note = _heads(left, right, top)
    return Difference(
        a=left.ref,
        b=right.ref,
        same_content=raw["same"],
        spec=_without(raw["config"], ("name",)),
        provenance=_without(raw["producer"], _UNINTERESTING),
        summary=raw["summary"],
        files={name: state for name, state in raw["files"].items() if state != "same"},
        heads=heads,
        note=note,
    )


def _heads(a: Artifact, b: Artifact, top: int) -> tuple[HeadDifference | None, str]:
    for artifact in (a, b):
        if "heads.parquet" not in artifact.files():
            return None, f"{artifact.ref} has no head table"
    left, right = HeadTable.from_arrow(a.table("heads")), HeadTable.from_arrow(b.table("heads"))
    try:
        found = compare_heads(left, right, top=top)
    except InputError as error:
        return None, str(error)
    bases = left.meta["basis"], right.meta["basis"]
    return found, "" if bases[0] == bases[1] else f"measured in different bases, {bases[0]} and {bases[1]}"


def _without(changes: Mapping[str, list[Any]], leave_out: tuple[str, ...]) -> dict[str, list[Any]]:
    return {key: pair for key, pair in changes.items() if key.split(".")[0] not in leave_out}
