"""How the runs of a launch stand: what the loop keeps up to date and whoever shows it reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from workbench.launch.jobs import Job, State
from workbench.store import Artifact


@dataclass
class Run:
    """How one run of the grid stands.

    Attributes:
        values: what its axes are set to.
        artifact: once it is done; `cached` when it was there before.
        error, log, said: of a failed one: the sentence, the log file and its last line.
    """

    name: str
    job: Job
    state: State
    values: dict[str, Any] = field(default_factory=dict)
    artifact: Artifact | None = None
    cached: bool = False
    seconds: float = 0.0
    error: str = ""
    log: str = ""
    said: str = ""

    def explain(self) -> None:
        """Why it failed, from what its first failed task left."""
        task = self.job.failure()
        if task is not None:
            self.error = str(task.ended.get("error") or "the worker vanished")
            self.log, self.said = str(task.log), task.last_line()


@dataclass
class Board:
    """All runs of a launch, in the order of the grid."""

    runs: list[Run]

    def count(self, state: State) -> int:
        return sum(run.state == state for run in self.runs)

    @property
    def over(self) -> bool:
        return all(run.state in ("done", "failed") for run in self.runs)
