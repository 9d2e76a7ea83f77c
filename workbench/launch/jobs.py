"""What is on disk about jobs: enough to run one anywhere, to say how it stands, and to go on after any kill.

    <store>/.launch/<run key>/job.json      what to run, self-contained: the resolved spec with its data inside
                              0/log         all that task 0 printed, every attempt
                              0/started.json, 0/beat, 0/ended.json
                              parts/        finished parts that the tasks of one job share (`shards`)

A job is one run (its run key is its folder's name), a task is one worker's share of it: one, or `shards` many. Files
are written by whoever knows: `started` and `beat` by the worker, `ended` by the worker or, when it died without a word,
by who watched it. No state is stored that the files do not show, so that there is none to repair; a file that is not,
to the bit, what was written counts as absent. A job is done when the store has its artifact. The folder begins with a
dot, so the store leaves it alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from workbench.errors import StoreError
from workbench.store import Artifact, Store, disk

State = Literal["pending", "running", "done", "failed", "lost", "interrupted"]

FORMAT = 2
BEAT = 5.0  # seconds between signs of life
STALE = 120.0  # seconds without one after which a worker elsewhere counts as dead


@dataclass(frozen=True)
class Task:
    """One worker's share of a job: member `member` of its shards."""

    job: Job
    member: int

    @property
    def folder(self) -> Path:
        return self.job.folder / str(self.member)

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def ended(self) -> dict[str, Any]:
        """`{"state", "error", "ref", "cached", "seconds"}` of the last attempt; empty while there is none."""
        return read(self.folder / "ended.json")

    @property
    def state(self) -> State:
        """`lost` is a worker that vanished without a word, watched by nobody."""
        ended = self.ended
        if ended:
            return ended["state"]
        started = read(self.folder / "started.json")
        if not started:
            return "pending"
        return "running" if self._alive(started) else "lost"

    @property
    def elsewhere(self) -> bool:
        """Whether its worker is, or was, on another machine."""
        return read(self.folder / "started.json").get("host", socket.gethostname()) != socket.gethostname()

    def _alive(self, started: Mapping[str, Any]) -> bool:
        if started.get("host") == socket.gethostname() and not _exists(int(started["pid"])):
            return False
        try:
            return time.time() - (self.folder / "beat").stat().st_mtime < STALE
        except OSError:
            return False

    def clear(self) -> None:
        """Back to pending; the log stays."""
        for name in ("started.json", "beat", "ended.json"):
            (self.folder / name).unlink(missing_ok=True)

    def prepare(self) -> None:
        """Make the folder and a fresh heading in the log, for the next attempt."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.clear()
        with self.log.open("a", encoding="utf-8") as log:
            log.write(
                f"--- {_now()} {self.job.name}" + (f", member {self.member}" if self.job.shards > 1 else "") + "\n"
            )

    def start(self, pid: int | None = None) -> None:
        """Called by the worker, or with the worker's `pid` by who has just started it on this machine."""
        if pid is None:  # SLURM may run a task a second time of itself
            (self.folder / "ended.json").unlink(missing_ok=True)
        self.beat()
        write(self.folder / "started.json", {"host": socket.gethostname(), "pid": pid or os.getpid(), "at": _now()})

    def beat(self) -> None:
        (self.folder / "beat").touch()

    def end(self, state: State, **facts: Any) -> None:
        """`facts`: error, ref, cached, seconds."""
        write(self.folder / "ended.json", {"state": state, **facts, "at": _now()})

    def last_line(self) -> str:
        """The last thing the log says, headings left out."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - 8192))
                lines = log.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return ""
        said = [line.strip() for line in lines if line.strip() and not line.startswith("--- ")]
        return said[-1][:300] if said else ""


@dataclass(frozen=True)
class Job:
    """One run, as recorded in its folder."""

    folder: Path
    record: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.record["config"]["name"]

    @property
    def run_key(self) -> str:
        return self.record["run_key"]

    @property
    def shards(self) -> int:
        return self.record["shards"]

    @property
    def parts(self) -> Path:
        return self.folder / "parts"

    @property
    def tasks(self) -> list[Task]:
        return [Task(self, member) for member in range(self.shards)]

    def state(self, store: Store) -> State:
        """From its tasks, and from the store whether what they made is still there."""
        states = [task.state for task in self.tasks]
        if "done" in states:
            if self.artifact(store) is not None:
                return "done"
            states = [state for state in states if state != "done"] or ["pending"]  # it was removed since
        order: tuple[State, ...] = ("running", "failed", "lost", "interrupted", "pending")
        return next(state for state in order if state in states)

    def artifact(self, store: Store) -> Artifact | None:
        """What it made, where that is in the store."""
        for task in self.tasks:
            ended = task.ended
            if ended.get("state") == "done":
                with suppress(StoreError):
                    if (found := store.get(ended["ref"])).run_key == self.run_key:
                        return found
        return store.find(self.name, run_key=self.run_key)

    def failure(self) -> Task | None:
        """The first task that failed, if any."""
        return next((task for task in self.tasks if task.state in ("failed", "lost")), None)

    def tidy(self) -> None:
        """Remove the shared parts, once nobody works on the job."""
        if self.parts.is_dir() and not any(task.state == "running" for task in self.tasks):
            shutil.rmtree(self.parts, ignore_errors=True)


class Jobs:
    """The jobs launched into a store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.root = store.root / ".launch"

    def folder(self, run_key: str) -> Path:
        return self.root / run_key.removeprefix("sha256:")[:32]

    def put(self, run_key: str, record: Mapping[str, Any], files: Mapping[str, str]) -> Job:
        """Record a job, over what was recorded of it before; `files` are the texts its data need."""
        folder = self.folder(run_key)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in files.items():
                (folder / name).write_text(text, encoding="utf-8")
            write(folder / "job.json", {"format": FORMAT, "run_key": run_key, **record})
        except OSError as error:
            raise StoreError(
                f"{folder} cannot be written ({error.strerror}); jobs are kept beside the store: make it writable, or "
                "choose another with --store."
            ) from error
        return Job(folder, read(folder / "job.json"))

    def open(self, folder: Path) -> Job | None:
        """The job of a folder; None where there is none, or one of another format."""
        record = read(folder / "job.json")
        return Job(folder, record) if record.get("format") == FORMAT else None

    def __iter__(self) -> Iterator[Job]:
        """All jobs, the newest first."""
        with suppress(OSError):
            files = [(file.stat().st_mtime, file.parent) for file in self.root.glob("*/job.json")]
            for _, folder in sorted(files, reverse=True):
                if (job := self.open(folder)) is not None:
                    yield job

    def forget(self, job: Job) -> None:
        """Remove what is kept about a job; its artifact stays."""
        shutil.rmtree(job.folder, ignore_errors=True)


def write(path: Path, record: Mapping[str, Any]) -> None:
    """A small JSON file that is whole or absent, with a seal over its content."""
    temp = path.with_name(f".{path.name}-{socket.gethostname()}-{os.getpid()}")
    plain = json.loads(json.dumps(dict(record)))  # as it will be read back
    temp.write_text(json.dumps({**plain, "seal": _seal(plain)}, ensure_ascii=False), encoding="utf-8")
    temp.replace(path)


def read(path: Path) -> dict[str, Any]:
    """What `write` wrote; empty when it is not there, or is no longer that."""
    try:
        found = json.loads(disk.read(path))
        seal = found.pop("seal")
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return {}
    return found if seal == _seal(found) else {}


def _seal(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return not _zombie(pid)


def _zombie(pid: int) -> bool:
    """A dead child whose parent has not asked yet; only Linux tells."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return False


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
