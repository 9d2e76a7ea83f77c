"""A launch without processes: an engine that does the work here and now, or does to a task what a test says."""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.experiments.conftest import model_dir, spec_file, world  # noqa: F401 - fixtures
from workbench.launch import engines
from workbench.launch.jobs import Task, write
from workbench.launch.work import CARRIED, THREADS, work
from workbench.store import Store


@dataclass
class Inline:
    """`script` says by run's name what happens instead of the work: `die`, `interrupt`, `mute` (it is gone, and the
    engine does not know), `far` (it was on another machine, and the engine says that it is gone)."""

    slots: int | None = 2
    script: dict[str, str] = field(default_factory=dict)
    submitted: list[str] = field(default_factory=list)
    most: int = 0
    cancelled: list[str] = field(default_factory=list)
    closed: bool = False

    def submit(self, tasks: list[Task]) -> list[Any]:
        self.most = max(self.most, len(tasks))
        handles = []
        for task in tasks:
            self.submitted.append(task.job.name)
            said = self.script.get(task.job.name, "work")
            if said == "work":
                work(str(task.job.folder), task.member)
            else:
                task.start()
                if said == "mute":
                    write(task.folder / "started.json", {"host": socket.gethostname(), "pid": 2**22 + 1})
                elif said == "far":
                    write(task.folder / "started.json", {"host": "elsewhere", "pid": 1})
            handles.append((task, said))
        return handles

    def ended(self, handle: Any) -> str | None:
        _, said = handle
        if said == "interrupt":
            raise KeyboardInterrupt
        return None if said == "mute" else {"work": "the worker returned"}.get(said, "the worker was killed by SIGKILL")

    def cancel(self, handles: list[Any]) -> None:
        self.cancelled += [task.job.name for task, _ in handles]

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> Inline:
    """The engine that every launch gets."""
    engine = Inline()
    monkeypatch.setattr(engines, "start", lambda options, folder: engine)
    monkeypatch.setattr(sys, "argv", ["workbench", "run", "one.yaml"])
    for name in (*THREADS, *CARRIED):  # what workers set is undone with the test
        monkeypatch.setenv(name, "1")
    return engine


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", durable=False)
