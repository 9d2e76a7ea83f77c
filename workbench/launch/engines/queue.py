"""What SLURM's queue says of our jobs, and how they are taken out of it.

submitit asks the accounting (sacct) alone, which many clusters do not run: a job that was cancelled, or whose node
died, would be waited for forever. The queue itself (squeue) is always there; the accounting is asked for the reason.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterable

_EVERY = 10.0  # seconds between looks
_GRACE = 10.0  # seconds between asking running jobs and killing them
_AT_ONCE = 500  # ids in one command


class Queue:
    """The jobs of this user, looked up by id (`12`, or `12_3` in an array)."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.looked = float("-inf")
        self.missing: dict[str, float] = {}  # which look first missed a job

    def state(self, job: str) -> str | None:
        """PENDING, RUNNING, ...; "GONE" once two looks in a row did not find it; None while nothing is known.

        Two, because a controller that restarts, and a job that has just been submitted, may be missed once.
        """
        if time.monotonic() - self.looked > _EVERY:
            self._look()
        if job in self.states:
            self.missing.pop(job, None)
            return self.states[job]
        return "GONE" if self.missing.setdefault(job, self.looked) < self.looked else None

    def _look(self) -> None:
        said = _said(["squeue", "--me", "--noheader", "--array", "--format=%i %T"])
        if said is not None:  # otherwise the controller does not answer, which says nothing of the jobs
            self.states = dict(line.split(maxsplit=1) for line in said.splitlines() if line.strip())
            self.looked = time.monotonic()

    def outcome(self, job: str) -> str:
        """How a job that is gone ended (timeout, out_of_memory, cancelled by 1000); empty without accounting."""
        said = _said(["sacct", "--noheader", "--allocations", "--parsable2", "--format=State", f"--jobs={job}"])
        return (said or "").strip().lower()

    def cancel(self, jobs: Iterable[str], over: Callable[[], bool]) -> None:
        """Pending ones at once; running ones first get a Ctrl-C, which SLURM's own cancelling is not: submitit ignores
        SIGTERM, and would be killed half a minute later. `over` says that nobody is at work any more."""
        jobs = list(jobs)
        _each(["scancel", "--quiet", "--state=PENDING"], jobs)
        _each(["scancel", "--quiet", "--signal=INT"], jobs)
        deadline = time.monotonic() + _GRACE
        while not over() and time.monotonic() < deadline:
            time.sleep(0.1)
        _each(["scancel", "--quiet"], jobs)


def _each(command: list[str], jobs: list[str]) -> None:
    for start in range(0, len(jobs), _AT_ONCE):
        _said([*command, *jobs[start : start + _AT_ONCE]])


def _said(command: list[str]) -> str | None:
    """Its standard output; None when it fails or does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
