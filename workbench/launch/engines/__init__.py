"""Who starts workers: processes on this machine, submitit (SLURM), Ray. An engine knows tasks, not what they do."""

from __future__ import annotations

from typing import Any, Protocol

from workbench.launch.jobs import Task
from workbench.launch.options import LaunchOptions

RETURNED = "the worker returned"  # and should have left word itself


class Engine(Protocol):
    """Attributes:
    slots: tasks at once; None where the engine has a queue of its own.
    """

    slots: int | None

    def submit(self, tasks: list[Task]) -> list[Any]:
        """Hand tasks over; a handle for each."""
        ...

    def ended(self, handle: Any) -> str | None:
        """None while a task is queued or running, else how its process ended, in words."""
        ...

    def cancel(self, handles: list[Any]) -> None:
        """End the tasks, within seconds."""
        ...

    def close(self) -> None:
        """Give back what the engine holds."""
        ...


def start(options: LaunchOptions, folder: str) -> Engine:
    """The engine that `options.launcher` names; `folder` is for its own files, on the shared file system.

    Raises:
        InputError: its package is not installed, or it refuses an option.
    """
    if options.launcher == "local":
        from workbench.launch.engines.processes import Processes

        return Processes(options)
    if options.launcher == "submitit":
        from workbench.launch.engines.slurm import Slurm

        return Slurm(options, folder)
    from workbench.launch.engines.on_ray import OnRay

    return OnRay(options)
