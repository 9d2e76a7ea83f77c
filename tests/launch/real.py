"""Real workers on a built-in model: what the tests of the three launchers share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from workbench.launch import Jobs
from workbench.launch.jobs import Job, read
from workbench.store import Store

SPEC = Path(__file__).parents[2] / "experiments" / "launch.yaml"
ONE = ["--sweep", "model=organism:planted-ioi,params.edit=zero"]


def pid_of(job: Job, member: int = 0) -> int | None:
    """The process of a task that has started and not ended."""
    task = job.tasks[member]
    return None if task.ended else read(task.folder / "started.json").get("pid")


def until(true: Callable[[], object], seconds: float = 120) -> bool:
    """Wait for it; False when it did not come."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.02)
    return False


@contextmanager
def killing(store: Store, name: str, member: int = 0) -> Iterator[list[int]]:
    """Inside the block the first worker at the run whose name ends so is killed with SIGKILL as soon as it started."""
    killed: list[int] = []
    stop = threading.Event()

    def watch() -> None:
        while not killed and not stop.is_set():
            for job in Jobs(store):
                if job.name.endswith(name) and member < job.shards and (pid := pid_of(job, member)):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join()


def launched(store: Store, *options: str) -> tuple[subprocess.Popen[str], int]:
    """The command in a process of its own, and the process of its worker, which has begun to compute."""
    root = str(SPEC.parents[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "workbench", "run", str(SPEC), *ONE, *options, "--store", str(store.root)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a suite that was started in the background ignores Ctrl-C, and so would whatever it starts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    computing = lambda job: pid_of(job) and job.tasks[0].last_line().endswith("heads")  # noqa: E731
    assert until(lambda: any(computing(job) for job in Jobs(store))), process.communicate(timeout=1)
    (job,) = Jobs(store)
    pid = pid_of(job)
    assert pid is not None
    return process, pid
