"""Workers on Ray: a cluster that is there (`address`, or `RAY_ADDRESS`), else one on this machine for the time being.

Every task is a fresh Ray worker process (`max_calls=1`) with as many processors as it has threads. Ray itself retries
nothing: a task whose process or node dies is reported, listed as failed and run again on request. The package must be
installed on every node, and the store's folder be the same path everywhere.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from workbench.errors import InputError
from workbench.launch.engines import RETURNED
from workbench.launch.jobs import Task
from workbench.launch.options import LaunchOptions, processors
from workbench.launch.work import work

_OPTIONS = ("address", "num_gpus", "memory", "resources", "scheduling_strategy")


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
            self._join(address, threads * (options.workers or max(1, processors() // threads)))
        self.slots = options.workers
        try:
            self.remote = ray.remote(num_cpus=threads, max_retries=0, max_calls=1, **given)(work)
        except (ValueError, TypeError) as error:
            self.close()
            raise InputError(f"Ray refuses these options ({error}); correct --launch-option.") from error

    def _join(self, address: str | None, cpus: int) -> None:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            if address:
                self.ray.init(address=address, **quiet)
            else:
                self.ray.init(
                    address="local", num_cpus=cpus, include_dashboard=False, _node_ip_address="127.0.0.1", **quiet
                )
        except Exception as error:  # Ray raises plain ones when a node does not come up in time
            text = " ".join(str(error).split())[:200]
            what = f"There is no Ray cluster at {address!r}" if address else "Ray did not start on this machine"
            raise InputError(f"{what} ({text}); correct the address, or try again.") from error

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
        for handle in handles:
            self.ray.cancel(handle, force=True)
        if handles:
            self.ray.wait(handles, num_returns=len(handles), timeout=10)

    def close(self) -> None:
        if self.mine:
            self.ray.shutdown()
