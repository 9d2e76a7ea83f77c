"""How two artifacts differ: in what was asked, in how it was made, and in which heads scored what.

Reads manifests and head tables; computes nothing with a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import InputError
from workbench.experiments import record
from workbench.experiments.agreement import HeadDifference, compare_heads, flatten
from workbench.store import Artifact, Store
from workbench.tables import HeadTable

_ABSENT = None
_UNINTERESTING = ("argv", "spec_file")  # always differ, never explain a number


@dataclass(frozen=True)
class Difference:
    """Two artifacts side by side.

    Attributes:
        spec, provenance, summary: `{dotted key: (in a, in b)}` where they differ; None where one has no such key.
        heads: differences of the head tables, None where they cannot be compared; `note` says why.
    """

    a: str
    b: str
    same_content: bool
    spec: dict[str, tuple[Any, Any]]
    provenance: dict[str, tuple[Any, Any]]
    summary: dict[str, tuple[Any, Any]]
    heads: HeadDifference | None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        def listed(pairs: Mapping[str, tuple[Any, Any]]) -> dict[str, list[Any]]:
            return {key: list(pair) for key, pair in pairs.items()}

        return {
            "a": self.a,
            "b": self.b,
            "same_content": self.same_content,
            "spec": listed(self.spec),
            "provenance": listed(self.provenance),
            "summary": listed(self.summary),
            "heads": self.heads.to_dict() if self.heads else None,
            "note": self.note,
        }


def diff(a: str | Artifact, b: str | Artifact, *, store: Store | str | Path | None = None, top: int = 10) -> Difference:
    """Compare two artifacts given as references or as they are."""
    place = store if isinstance(store, Store) else Store(store)
    left = place[a] if isinstance(a, str) else a
    right = place[b] if isinstance(b, str) else b
    heads, note = _heads(left, right, top)
    return Difference(
        a=left.ref,
        b=right.ref,
        same_content=left.digest == right.digest,
        spec=_pairs(left.manifest.get("config"), right.manifest.get("config"), leave_out=("name",)),
        provenance=_pairs(left.manifest.get("producer"), right.manifest.get("producer"), leave_out=_UNINTERESTING),
        summary=_pairs(left.manifest.get("summary"), right.manifest.get("summary")),
        heads=heads,
        note=note,
    )


def _heads(a: Artifact, b: Artifact, top: int) -> tuple[HeadDifference | None, str]:
    for artifact in (a, b):
        if "heads.parquet" not in artifact.manifest["files"]:
            return None, f"{artifact.ref} has no head table"
    left, right = HeadTable.from_arrow(a.table("heads")), HeadTable.from_arrow(b.table("heads"))
    try:
        found = compare_heads(left, right, top=top)
    except InputError as error:
        return None, str(error)
    bases = left.meta["basis"], right.meta["basis"]
    return found, "" if bases[0] == bases[1] else f"measured in different bases, {bases[0]} and {bases[1]}"


def _pairs(a: Any, b: Any, *, leave_out: tuple[str, ...] = ()) -> dict[str, tuple[Any, Any]]:
    left, right = flatten(a or {}), flatten(b or {})
    keys = dict.fromkeys([*left, *right])
    kept = (key for key in keys if key.split(".")[0] not in leave_out and key != "")
    return {
        key: (left.get(key, _ABSENT), right.get(key, _ABSENT))
        for key in kept
        if left.get(key, _ABSENT) != right.get(key, _ABSENT)
    }
