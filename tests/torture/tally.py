"""The figures of one trial."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Tally:
    """Attributes:
    load: what was done, by kind (commits, reads, ...).
    faults: what was broken on purpose, by kind.
    inputs: malformed inputs tried; `refused` of them with one sentence, `harmless` ones read as valid.
    lost: acknowledged work that is gone; must be 0.
    bad: what must not happen: a traceback, a half-written file, a malformed thing accepted; must be empty.
    """

    load: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    inputs: int = 0
    refused: int = 0
    harmless: int = 0
    lost: int = 0
    bad: list[str] = field(default_factory=list)

    def did(self, what: str, n: int = 1) -> None:
        self.load[what] = self.load.get(what, 0) + n

    def broke(self, what: str, n: int = 1) -> None:
        self.faults[what] = self.faults.get(what, 0) + n

    @property
    def failed(self) -> bool:
        return bool(self.lost or self.bad)

    def row(self) -> list[str]:
        counts = [", ".join(f"{n:,} {what}" for what, n in kind.items()) or "-" for kind in (self.load, self.faults)]
        tried = f"{self.inputs:,} ({self.refused:,} refused)" if self.inputs else "-"
        return [*counts, tried, str(self.lost), str(len(self.bad))]


Trial = Callable[[Path, float, int], Tally]
"""`trial(folder, seconds, seed)`: an empty folder of its own, how long to go on, what to draw from."""
