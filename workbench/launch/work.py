"""What a worker does with one task: compute the run, commit it to the store, and leave word how it went.

The same function runs in a process of its own on this machine, in a SLURM job and in a Ray task. It says that it
started, gives a sign of life every few seconds, prints into the task's log, and never raises: how it ended is written
beside the log. The run is looked up in the store first, because another worker may have finished it meanwhile.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from workbench.errors import InputError, WorkbenchError
from workbench.launch.jobs import BEAT, Job, Task, read

# Variables that decide what a worker reads and how; secrets are not among them, so none is written to disk.
CARRIED = ("HF_HUB_OFFLINE", "HF_HOME", "HF_HUB_CACHE", "TOKENIZERS_PARALLELISM", "WORKBENCH_CACHE")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def environment(record: Mapping[str, Any]) -> dict[str, str]:
    """What a worker's environment must say before torch is imported."""
    return {**record["environment"], **dict.fromkeys(THREADS, str(record["threads"]))}


def work(folder: str, member: int) -> str:
    """Do task `member` of the job in `folder`; returns how it ended."""
    task = Task(Job(Path(folder), read(Path(folder) / "job.json")), member)
    with _printing_into(task.log):
        if not task.job.record:
            task.end("failed", error=f"{task.job.folder / 'job.json'} is damaged; launch it again")
            return task.state
        os.environ.update(environment(task.job.record))
        if Path(task.job.record["folder"]).is_dir():  # parameters may name files relative to it
            os.chdir(task.job.record["folder"])
        task.start()
        started = time.perf_counter()
        try:
            with _beating(task):
                ref, cached = _run(task)
        except KeyboardInterrupt:
            print("interrupted", flush=True)  # noqa: T201 - into the log
            task.end("interrupted")
        except Exception as error:
            _complain(error)
            sentence = str(error) if isinstance(error, WorkbenchError) else f"{type(error).__name__}: {error}"
            task.end("failed", error=" ".join(sentence.split()), seconds=time.perf_counter() - started)
        else:
            print(ref, flush=True)  # noqa: T201
            task.end("done", ref=ref, cached=cached, seconds=time.perf_counter() - started)
    return task.state


def main() -> int:
    """Entry of a local worker process: `FOLDER MEMBER`."""
    signal.signal(signal.SIGTERM, _interrupt)
    return 0 if work(sys.argv[1], int(sys.argv[2])) == "done" else 1


def _run(task: Task) -> tuple[str, bool]:
    """The artifact's reference, and whether it was there already."""
    from workbench.experiments.paths import Reach
    from workbench.experiments.run import fulfil, prepare
    from workbench.experiments.spec import build
    from workbench.store import Store

    job, record = task.job, task.job.record
    sys.argv = list(record["argv"])  # the command that asked for this, for the artifact's record
    spec = build(record["config"], reach=Reach(job.folder / "job.json", checked=True))
    ready = prepare(spec, model_path=record["model_path"])
    if ready.run_key != job.run_key:
        raise InputError(_differs(record, ready.device, ready.fingerprint))
    ready.spec._reach = Reach(Path(record["source"]) if record["source"] else None)
    shared = nullcontext()
    if job.shards > 1:
        from workbench.primitives.sweep.team import teamwork

        shared = teamwork(job.parts, task.member, job.shards)
    with shared:
        outcome = fulfil(ready, store=Store(record["store"]), force=record["force"], say=_say)
    return outcome.artifact.ref, outcome.cached


def circumstances(device: str, fingerprint: str) -> dict[str, Any]:
    """What the run key holds of the machine, to say what differs on another."""
    from workbench.experiments import identity

    packages = identity.package_versions(identity.NUMERIC_PACKAGES)
    return {"device": device, "model": fingerprint, "code": identity.code_version(), **packages}


def _differs(record: Mapping[str, Any], device: str, fingerprint: str) -> str:
    then, now = record["circumstances"], circumstances(device, fingerprint)
    changed = [
        f"{key} is {str(now.get(key))[:19]} here and {str(then.get(key))[:19]} where it was launched"
        for key in {**then, **now}
        if then.get(key) != now.get(key)
    ]
    if any(text.startswith("device") for text in changed):
        return f"{changed[0]}; say which with --device, so that it is the same run everywhere."
    return f"This is another run on this machine: {'; '.join(changed) or 'the data changed'}; launch it again."


@contextmanager
def _beating(task: Task) -> Iterator[None]:
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(BEAT):
            task.beat()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def _printing_into(log: Path) -> Iterator[None]:
    """Everything this process prints, native libraries included, into the log."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [(stream, os.dup(stream)) for stream in (1, 2)]
    into = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    before = sys.stdout, sys.stderr
    try:
        for stream, _ in kept:
            os.dup2(into, stream)
        # a worker of Ray has put its own objects in the place of these
        with os.fdopen(os.dup(into), "a", buffering=1, encoding="utf-8", errors="replace") as text:
            sys.stdout = sys.stderr = text
            yield
    finally:
        sys.stdout, sys.stderr = before
        os.close(into)
        for stream, was in kept:
            os.dup2(was, stream)
            os.close(was)


def _complain(error: Exception) -> None:
    if isinstance(error, WorkbenchError):
        _say(f"error: {error}")
    else:
        traceback.print_exception(type(error), error, error.__traceback__)
        sys.stderr.flush()


def _say(message: str) -> None:
    print(message, flush=True)  # noqa: T201 - into the log


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
