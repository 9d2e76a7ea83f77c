"""Workers on Ray: a cluster that is there (`address`, or `RAY_ADDRESS`), else one on this machine for the time being.

Every task is a fresh Ray worker process (`max_calls=1`) with as many processors as it has threads. Ray itself retries
nothing: a task whose process or node dies is reported, listed as failed and run again on request. The package must be
installed on every node, and the store's folder be the same path everywhere.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from workbench.errors import InputError
from workbench.launch.engines import RETURNED
from workbench.launch.jobs import Task
from workbench.launch.options import LaunchOptions, processors
from workbench.launch.work import work

_OPTIONS = ("address", "num_gpus", "memory", "resources", "scheduling_strategy")
_GRACE = 5.0  # seconds between asking and killing
_KNOCK = 10.0  # seconds


class OnRay:
    """The engine `ray`."""

    def __init__(self, options: LaunchOptions) -> None:
        address = options.options.get("address") or os.environ.get("RAY_ADDRESS")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
        if address is None:  # read when ray is imported: a cluster of one machine listens on 127.0.0.1 alone
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        try:
            import ray
        except ImportError:
            raise InputError("--launcher ray needs ray; run `pip install 'workbench[ray]'`.") from None
        given = dict(options.options)
        if unknown := sorted(set(given) - set(_OPTIONS)):
            raise InputError(f"Ray is not passed {unknown[0]!r}; --launch-option takes {', '.join(_OPTIONS)}.")
        self.ray, self.mine = ray, not ray.is_initialized()
        given.pop("address", None)
        threads = options.threads or 1
        if self.mine:
            _knock(address)
            self._join(address, threads * (options.workers or max(1, processors() // threads)))
        self.slots = options.workers
        try:
            self.remote = ray.remote(num_cpus=threads, max_retries=0, max_calls=1, **given)(work)
        except (ValueError, TypeError) as error:
            self.close()
            raise InputError(f"Ray refuses these options ({error}); correct --launch-option.") from error

    def _join(self, address: str | None, cpus: int) -> None:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if not address:
            quiet |= {"num_cpus": cpus, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        for last in (bool(address), True):  # Ray gives its own processes 15 seconds: too few on a busy machine
            try:
                with _sigterm_kept():
                    self.ray.init(address=address or "local", **quiet)
                return
            except Exception as error:  # Ray raises plain ones when a node does not come up in time
                if last:
                    text = " ".join(str(error).split())[:200]
                    what = f"There is no Ray cluster at {address!r}" if address else "Ray did not start on this machine"
                    raise InputError(f"{what} ({text}); correct the address, or try again.") from error
                self.ray.shutdown()

    def submit(self, tasks: list[Task]) -> list[Any]:
        return [self.remote.remote(str(task.job.folder), task.member) for task in tasks]

    def ended(self, handle: Any) -> str | None:
        ready, _ = self.ray.wait([handle], timeout=0)
        if not ready:
            return None
        try:
            self.ray.get(handle)
        except self.ray.exceptions.RayError as error:
            return f"Ray says {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return RETURNED

    def cancel(self, handles: list[Any]) -> None:
        for force in (False, True):  # a KeyboardInterrupt in the task, then the end of its process
            for handle in handles:
                self.ray.cancel(handle, force=force)
            if handles:
                _, handles = self.ray.wait(handles, num_returns=len(handles), timeout=_GRACE)

    def close(self) -> None:
        if self.mine:
            self.ray.shutdown()


def _knock(address: str | None) -> None:
    """Refuse `host:port` where nobody listens; Ray would try for many minutes, and say so in dozens of lines."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK).close()
        except (OSError, OverflowError) as error:
            raise InputError(
                f"There is no Ray cluster at {address!r} ({error}); correct the address, or start one with `ray start`."
            ) from error


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself when it starts (a report of its own, exit code 15); it is the launch's to handle."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
