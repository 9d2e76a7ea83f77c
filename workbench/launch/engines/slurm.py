"""Workers through submitit: SLURM where there is one, else submitit's own local executor.

submitit hands a task over by pickling a function and its arguments into its folder; what is pickled is the name of
a class and a path, and nothing of it reaches the store. Options are submitit's: `slurm_partition`, `timeout_min`, ...
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workbench.errors import InputError
from workbench.launch.engines import RETURNED
from workbench.launch.engines.queue import Queue
from workbench.launch.jobs import Job, Task, read
from workbench.launch.options import LaunchOptions, processors
from workbench.launch.work import work

_MINUTES = 24 * 60


class Patient:
    """`work`, as submitit is given it: out of time or preempted, a job goes back into the queue and goes on from its
    finished parts when it comes to run again (for lack of time as often as `slurm_max_num_timeout` says, 3)."""

    def __call__(self, folder: str, member: int) -> str:
        return work(folder, member)

    def checkpoint(self, folder: str, member: int) -> Any:
        """Called by submitit in the middle of the work, which it then leaves by SystemExit."""
        from submitit.helpers import DelayedSubmission

        Task(Job(Path(folder), read(Path(folder) / "job.json")), member).clear()
        return DelayedSubmission(self, folder, member)


class Slurm:
    """The engine `submitit`."""

    def __init__(self, options: LaunchOptions, folder: str) -> None:
        try:
            import submitit
        except ImportError:
            raise InputError("--launcher submitit needs submitit; run `pip install 'workbench[slurm]'`.") from None
        logging.getLogger("submitit").setLevel(logging.ERROR)  # it says every minute that accounting is off
        given = dict(options.options)
        cluster = given.pop("cluster", None)
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
            settings = {"name": "workbench", "timeout_min": _MINUTES, "cpus_per_task": options.threads, **given}
            if self.executor.cluster == "slurm" and options.workers:
                settings.setdefault("slurm_array_parallelism", options.workers)
            self.executor.update_parameters(**settings)
        except (ValueError, TypeError, NameError, AssertionError, RuntimeError) as error:
            text = " ".join(str(error).split())
            raise InputError(f"submitit refuses these options ({text}); correct --launch-option.") from error
        self.queue = Queue() if self.executor.cluster == "slurm" else None
        # its local executor starts everything at once
        self.slots = None if self.queue else options.workers or processors()

    def submit(self, tasks: list[Task]) -> list[tuple[Any, Task]]:
        from submitit.core.utils import FailedJobError

        try:
            # the local executor's own processes inherit stderr, and end with a traceback when they are interrupted
            with _complaints_into(Path(self.executor.folder) / "submitit.log"):
                if len(tasks) == 1:
                    handles = [self.executor.submit(Patient(), str(tasks[0].job.folder), tasks[0].member)]
                else:
                    with self.executor.batch():  # one job array
                        handles = [self.executor.submit(Patient(), str(task.job.folder), task.member) for task in tasks]
        except FailedJobError as error:
            text = " ".join(str(error).split())[:300]
            raise InputError(f"The cluster refuses the jobs ({text}); correct --launch-option.") from error
        return list(zip(handles, tasks, strict=True))

    def ended(self, handle: tuple[Any, Task]) -> str | None:
        job, task = handle
        if task.ended:  # sooner than the queue says it; without accounting in SLURM, it never does
            return RETURNED
        if self.queue and not job.paths.result_pickle.exists():
            return _queued(self.queue, job, task)
        if not job.done():
            return None
        if job.exception() is None:
            return RETURNED
        return f"submitit says that job {job.job_id} is {str(job.state).lower()}"

    def cancel(self, handles: list[tuple[Any, Task]]) -> None:
        if self.queue:
            jobs = [job.job_id for job, _ in handles]
            self.queue.cancel(jobs, over=lambda: not any(task.state == "running" for _, task in handles))
            return
        for job, _ in handles:
            job.cancel(check=False)

    def close(self) -> None:
        """Nothing is held."""


def _queued(queue: Queue, job: Any, task: Task) -> str | None:
    state = queue.state(job.job_id)
    if state == "PENDING" and task.state == "lost":  # its node died, and SLURM put it back
        task.clear()
    if state != "GONE":
        return None
    outcome = queue.outcome(job.job_id) or "no longer in the queue"
    return f"SLURM says that job {job.job_id} is {outcome}{_complaint(Path(job.paths.stderr))}"


def _complaint(log: Path) -> str:
    """The last error that SLURM wrote into submitit's log: `srun: error: n2: task 0: Killed`."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    errors = [line.strip() for line in lines if line.startswith(("srun: error:", "slurmstepd"))]
    return f" ({errors[-1]})" if errors else ""


@contextmanager
def _complaints_into(log: Path) -> Iterator[None]:
    """What processes started inside the block say on stderr goes into `log`."""
    sys.stderr.flush()
    kept, into = os.dup(2), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.dup2(into, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(into)
