"""Submit what is missing, watch it, and say how every run of a grid stands.

1. Prepare every run: gather its files, hash its model, make its run key. What is wrong shows before anything runs.
2. A run that the store has is done. One that failed before stays failed unless it is to be retried. One that another
   launch is working on is watched, not started twice. Everything else is missing, and is submitted.
3. Hand tasks to the engine as it has room; whenever one ends, read what it left, and tell the watcher.
4. Interrupted, end the workers and go: finished runs are in the store, the same command goes on with the rest.

It knows neither how an engine starts workers nor how runs are shown.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workbench.errors import InputError
from workbench.experiments import identity
from workbench.experiments.run import Prepared, prepare, stored
from workbench.launch import engines
from workbench.launch.board import Board, Run
from workbench.launch.engines import RETURNED
from workbench.launch.grid import Asked
from workbench.launch.jobs import Job, Jobs, State, Task
from workbench.launch.options import LaunchOptions
from workbench.launch.work import CARRIED, circumstances
from workbench.store import Store

# Analyses whose sweeps over heads keep finished parts on disk, which is what workers share.
SHARDED = ("ablation", "activation_patching", "path_patching", "sahara", "ships")
_POLL = 0.1
_LATE = 10.0  # seconds between a worker's end and its word about it
_LATE_FROM_AFAR = 70.0  # the same on another machine: caches of a network file system keep a folder for a minute
_ELSEWHERE = 2.0  # seconds between looks at tasks that another launch runs


Watch = Callable[[Board, Run | None], None]


def drive(
    asked: Asked,
    store: Store,
    *,
    retry: bool = False,
    force: bool = False,
    device: str | None = None,
    watch: Watch | None = None,
) -> Board:
    """Run everything that was asked for and is missing; returns when nothing is pending or running any more.

    Args:
        retry: submit runs again that failed before.
        force: compute every run again, as its next version.
        device: instead of the specs' `model.device`.
        watch: called with the board and the run that just changed its state, or None now and then.

    Raises:
        InputError: a run that cannot be prepared, or options that do not go together.
        KeyboardInterrupt: after the workers were ended.
    """
    options, watch = asked.launch or LaunchOptions(), watch or _unwatched
    _check(asked, options, force)
    jobs = Jobs(store)
    fingerprints: dict[Any, str] = {}
    ready = [prepare(spec, device=device, fingerprints=fingerprints) for spec in asked.specs]
    options = options.on(len({one.run_key for one in ready}) * options.shards)
    board = Board([])
    held = {art.manifest["run_key"] for name in store.names() for art in store.log(name)}
    missing: dict[str, Run] = {}
    for one, values in zip(ready, asked.values, strict=True):
        run = _standing(one, values, jobs, store, options, held, force=force, retry=retry)
        if run.state == "pending" and one.run_key in missing:
            run = missing[one.run_key]  # two points of the grid that are one run
        elif run.state == "pending":
            missing[one.run_key] = run
        board.runs.append(run)
    board.runs = list({id(run): run for run in board.runs}.values())
    for run in board.runs:
        watch(board, run)
    if not board.over:
        with _stoppable():
            _Drive(board, store, options, str(jobs.root / "engine"), watch).go()
    return board


def _check(asked: Asked, options: LaunchOptions, force: bool) -> None:
    if options.shards == 1:
        return
    for spec in asked.specs:
        if spec.analysis not in SHARDED:
            raise InputError(
                f"{spec.name}: {spec.analysis} is not one sweep over heads that workers could share; leave --shards "
                f"out (it is for {', '.join(SHARDED)})."
            )
    if force:
        raise InputError("--force and --shards do not go together: every worker would make a version; leave one out.")


def _standing(
    ready: Prepared,
    values: dict[str, Any],
    jobs: Jobs,
    store: Store,
    options: LaunchOptions,
    held: set[str],
    *,
    force: bool,
    retry: bool,
) -> Run:
    """How a run stands before this launch; a missing one is recorded as a job and pending."""
    name = ready.spec.name
    found = stored(ready, store) if ready.run_key in held and not force else None
    old = jobs.open(jobs.folder(ready.run_key))
    if old is not None and found is None and not force:
        state = old.state(store)
        if state == "running":
            return Run(name, old, "running", values)
        if state == "failed" and not retry:
            run = Run(name, old, "failed", values)
            run.explain()
            return run
    if found is not None:
        job = old or Job(jobs.folder(ready.run_key), {"shards": 1, "run_key": ready.run_key, "config": {"name": name}})
        return Run(name, job, "done", values, artifact=found, cached=True)
    record = {
        "config": {**ready.spec.config(), "data": ready.inputs.data},
        "source": str(ready.spec.source) if ready.spec.source else None,
        "model_path": ready.model_path,
        "store": str(store.root),
        "folder": str(Path.cwd()),
        "force": force,
        "shards": options.shards,
        "threads": options.threads,
        "launcher": options.launcher,
        "values": values,
        "argv": identity.command(),
        "environment": {key: os.environ[key] for key in CARRIED if key in os.environ},
        "circumstances": circumstances(ready.device, ready.fingerprint),
    }
    job = jobs.put(ready.run_key, record, ready.inputs.files)
    for task in job.tasks:
        task.prepare()
    return Run(name, job, "pending", values)


class _Drive:
    """The loop: tasks that wait, tasks with the engine, tasks that another launch runs."""

    def __init__(self, board: Board, store: Store, options: LaunchOptions, folder: str, watch: Watch) -> None:
        self.board, self.store, self.watch = board, store, watch
        self.waiting = [(run, task) for run in board.runs if run.state == "pending" for task in run.job.tasks]
        self.elsewhere = [run for run in board.runs if run.state == "running"]
        self.flying: list[tuple[Run, Task, Any]] = []
        self.engine = engines.start(options, folder)
        self.silent: dict[int, float] = {}  # since when
        self.looked = 0.0

    def go(self) -> None:
        try:
            while self.waiting or self.flying or self.elsewhere:
                self._submit()
                self._collect()
                self._look_elsewhere()
                self.watch(self.board, None)
                time.sleep(_POLL)
        except BaseException:
            self._abandon()
            raise
        finally:
            self.engine.close()

    def _submit(self) -> None:
        self.waiting = [(run, task) for run, task in self.waiting if run.state not in ("done", "failed")]
        slots = self.engine.slots
        room = len(self.waiting) if slots is None else max(0, slots - len(self.flying))
        batch, self.waiting = self.waiting[:room], self.waiting[room:]
        taken = {id(run): run for run, task in batch if task.state != "pending"}  # another launch was faster
        if taken:
            batch, self.waiting = ([one for one in part if id(one[0]) not in taken] for part in (batch, self.waiting))
            self.elsewhere += taken.values()
            for run in taken.values():
                self._becomes(run, "running")
        if batch:
            handles = self.engine.submit([task for _, task in batch])
            self.flying += [(run, task, handle) for (run, task), handle in zip(batch, handles, strict=True)]

    def _collect(self) -> None:
        still, over = [], []
        for run, task, handle in self.flying:
            how = self._how_it_ended(task, handle)
            if how is None:
                still.append((run, task, handle))
                if run.state == "pending" and task.state == "running":
                    self._becomes(run, "running")
                continue
            if not task.ended:  # it died without a word
                task.end("failed", error=how)
            over.append((run, task))
        self.flying = still
        for run, task in over:
            self._ended(run, task)

    def _how_it_ended(self, task: Task, handle: Any) -> str | None:
        """What the engine says, once the task's own word has had time to arrive; None while it goes on."""
        how = self.engine.ended(handle)
        vanished = how is None and task.state == "lost"  # a queue may not know that a worker is gone
        if task.ended or not (how or vanished):
            self.silent.pop(id(task), None)
            return how
        afar = task.elsewhere
        if how not in (None, RETURNED) and not afar:  # this machine hides nothing
            return how
        since = self.silent.setdefault(id(task), time.monotonic())
        if time.monotonic() - since < (_LATE_FROM_AFAR if afar else _LATE):
            return None
        if vanished:
            self.engine.cancel([handle])
        return how or "the worker vanished"

    def _ended(self, run: Run, task: Task) -> None:
        more = any(other is run for other, _, _ in self.flying) or any(other is run for other, _ in self.waiting)
        ended = task.ended
        if ended["state"] == "done" and run.state != "done":
            run.artifact, run.cached = run.job.artifact(self.store), bool(ended.get("cached"))
            run.seconds = float(ended.get("seconds", 0.0))
            self._becomes(run, "done")
        elif ended["state"] != "done" and run.state != "done" and not more:
            if ended["state"] == "interrupted":  # by somebody else: this launch would not be here
                task.end("failed", error="the worker was asked to stop")
            run.explain()
            self._becomes(run, "failed")
        if not any(other is run for other, _, _ in self.flying):
            run.job.tidy()

    def _look_elsewhere(self) -> None:
        if not self.elsewhere or time.monotonic() - self.looked < _ELSEWHERE:
            return
        self.looked = time.monotonic()
        for run in list(self.elsewhere):
            state = run.job.state(self.store)
            if state == "running":
                continue
            self.elsewhere.remove(run)
            if state == "done":
                run.artifact = run.job.artifact(self.store)
                self._becomes(run, "done")
            elif state == "failed":
                run.explain()
                self._becomes(run, "failed")
            else:  # it vanished, or was interrupted there
                run.state = "pending"
                for task in run.job.tasks:
                    task.prepare()
                    self.waiting.append((run, task))

    def _becomes(self, run: Run, state: State) -> None:
        run.state = state
        self.watch(self.board, run)

    def _abandon(self) -> None:
        """End the workers; what they had not finished is to be submitted again."""
        going = [task for _, task, _ in self.flying if not task.ended]
        self.engine.cancel([handle for _, _, handle in self.flying])
        for task in going:  # a library may have made an error of its own of the interruption
            if not task.ended or task.ended["state"] != "done":
                task.end("interrupted")


def _unwatched(_board: Board, _run: Run | None) -> None:
    """Nobody looks."""


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM ends a launch as Ctrl-C does, where signals can be handled."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
