"""Workers on this machine: one process per task, so that a crash or a kill takes that task and no other.

A pool of long-lived workers (concurrent.futures, loky) would be given up as a whole when the system kills one of them,
and memory that one task leaves behind would count against the next; the two seconds of a fresh interpreter are cheap
beside a run. Workers have a session of their own: Ctrl-C reaches this process, which then ends them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from workbench.errors import InputError
from workbench.launch.jobs import Task
from workbench.launch.options import LaunchOptions
from workbench.launch.work import environment

# Without the current directory in front of the path, where a file of the user's could hide a package.
_PROGRAM = (
    "import sys; sys.path[:] = [p for p in sys.path if p]; from workbench.launch.work import main; sys.exit(main())"
)
_GRACE = 5.0  # seconds between asking and killing


class Processes:
    """The engine `local`."""

    def __init__(self, options: LaunchOptions) -> None:
        if options.options:
            raise InputError(f"--launcher local has no options, but was given {', '.join(options.options)}.")
        self.slots: int | None = options.workers

    def submit(self, tasks: list[Task]) -> list[subprocess.Popen[bytes]]:
        return [self._start(task) for task in tasks]

    def ended(self, handle: subprocess.Popen[bytes]) -> str | None:
        code = handle.poll()
        return None if code is None else how(code)

    def cancel(self, handles: list[subprocess.Popen[bytes]]) -> None:
        for handle in handles:
            handle.terminate()
        deadline = time.monotonic() + _GRACE
        for handle in handles:
            try:
                handle.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                handle.kill()
                handle.wait()

    def close(self) -> None:
        """Nothing is held."""

    def _start(self, task: Task) -> subprocess.Popen[bytes]:
        package = str(Path(__file__).parents[3])
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        variables = {**os.environ, **environment(task.job.record), "PYTHONPATH": os.pathsep.join(paths)}
        with task.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(task.job.folder), str(task.member)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=variables,
                start_new_session=True,
            )
        task.start(process.pid)  # now, so that another launch of the same runs sees it
        return process


def how(code: int) -> str:
    """An exit status in words."""
    if code >= 0:
        return f"the worker exited with {code}"
    try:
        return f"the worker was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"the worker was killed by signal {-code}"
