"""`workbench run` in worker processes: its options, the live table, what is said of each run; and `workbench jobs`."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli.options import DebugOption, JsonOption, StoreOption
from workbench.cli.output import emit, emit_facts, emit_json, emit_table
from workbench.errors import InputError

if TYPE_CHECKING:
    from workbench.launch import Asked
    from workbench.launch.board import Board, Run
    from workbench.store import Artifact, Store

SweepOption = Annotated[
    list[str] | None,
    typer.Option("--sweep", metavar="K=V,V", help="A run per value, e.g. seed=0..4 or model=organism:a,organism:b."),
]
LauncherOption = Annotated[str | None, typer.Option(metavar="NAME", help="local, submitit (SLURM) or ray.")]
WorkersOption = Annotated[
    int | None, typer.Option(help="Workers at once; default: one per processor, no limit on a cluster.")
]
ThreadsOption = Annotated[int | None, typer.Option(help="CPU threads of each worker; default: OMP_NUM_THREADS.")]
ShardsOption = Annotated[int | None, typer.Option(help="Workers that share each run (sweeps over heads only).")]
EngineOption = Annotated[
    list[str] | None,
    typer.Option("--launch-option", metavar="K=V", help="For SLURM or Ray, e.g. slurm_partition=gpu or address=auto."),
]
RetryOption = Annotated[
    bool, typer.Option("--retry", help="Submit runs again that failed before; `workbench jobs` lists them.")
]

_MOST = 12  # rows of the live table
_EVERY = 0.5  # seconds between redraws


def register(app: typer.Typer) -> None:
    app.command("jobs", short_help="List what was launched.")(jobs)


def given(**options: Any) -> dict[str, Any]:
    """The launch options that were given, as a spec's `launch:` block has them."""
    from workbench.experiments.yaml_input import parse_assignment

    found = {key: value for key, value in options.items() if value is not None and key != "options"}
    if options["options"]:
        found["options"] = dict(parse_assignment(text) for text in options["options"])
    return found


def no_retry(retry: bool) -> None:
    """Refuse `--retry` where nothing is launched."""
    if retry:
        raise InputError("--retry is for runs that were launched; add --launcher local (or submitit, ray).")


def run(asked: Asked, store: Store, *, retry: bool, force: bool, device: str | None, as_json: bool) -> int:
    """Launch, show runs as they finish, list failures; 1 when one failed."""
    from workbench.launch import drive

    table = _Table(as_json=as_json)
    try:
        board = drive(asked, store, retry=retry, force=force, device=device, watch=table.watch)
    finally:
        table.clear()
    failed = [run for run in board.runs if run.state == "failed"]
    if as_json:
        emit_json([_record(run) for run in board.runs])
    else:
        for run in failed:
            emit(f"{run.name}  failed: {run.error}")
            emit_facts({"log": _near(run.log), "last line": run.said if run.said != run.error else ""}, indent="  ")
        cached = sum(run.cached for run in board.runs)
        parts = [f"{board.count('done')} done" + (f" ({cached} of them before)" if cached else "")]
        parts += [f"{len(failed)} failed (--retry submits them again)"] if failed else []
        emit(f"{len(board.runs)} run{'s' if len(board.runs) != 1 else ''}: {', '.join(parts)}")
    return 1 if failed else 0


def jobs(
    state: Annotated[str | None, typer.Option(help="Only pending, running, done, failed, lost or interrupted.")] = None,
    forget: Annotated[bool, typer.Option("--forget", help="Remove records and logs of those not running.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
    _debug: DebugOption = False,
) -> None:
    """List what was launched into the store, the newest first, with the log of each; artifacts stay whatever is
    forgotten here."""
    from typing import get_args

    from workbench.errors import did_you_mean
    from workbench.launch import Jobs
    from workbench.launch.jobs import State
    from workbench.store import Store

    if state is not None and state not in get_args(State):
        known = get_args(State)
        raise InputError(f"--state {state} is none of {', '.join(known)}.{did_you_mean(state, known)}")
    place = Store(store)
    kept = Jobs(place)
    rows = []
    for job in kept:
        now = job.state(place)
        if state is not None and now != state:
            continue
        failed = job.failure() if now in ("failed", "lost") else None
        artifact = job.artifact(place) if now == "done" else None
        error = failed.ended.get("error") or "the worker vanished" if failed else None
        log = (failed or job.tasks[0]).log
        rows.append(
            {
                "name": job.name,
                "state": now,
                "launcher": job.record.get("launcher"),
                "shards": job.shards,
                "ref": artifact.ref if artifact else None,
                "error": error,
                "log": str(log),
            }
        )
        if forget and now != "running":
            kept.forget(job)
    if as_json:
        emit_json(rows)
        return
    shown = [
        (row["name"], row["state"], row["launcher"], row["ref"] or row["error"], _near(row["log"])) for row in rows
    ]
    emit_table(("run", "state", "launcher", "result", "log"), shown, empty="nothing was launched into this store")
    if forget and rows:
        emit("forgotten; the artifacts are where they were")


def entry(artifact: Artifact, *, cached: bool, seconds: float) -> dict[str, Any]:
    """What `run --json` says of a finished run."""
    return {
        "ref": artifact.ref,
        "name": artifact.name,
        "version": artifact.version,
        "digest": artifact.digest,
        "path": str(artifact.folder),
        "cached": cached,
        "seconds": round(seconds, 3),
        "summary": artifact.summary,
    }


def show(entry: dict[str, Any], name: str, *, figures: bool = True) -> None:
    """A finished run in words; `name` is what the spec called it."""
    how = "cached" if entry["cached"] else f"{entry['seconds']:.1f} s"
    emit(f"{entry['ref']}  {entry['digest'][:19]}  {how}")
    if entry["name"] != name:
        emit(f"  this very run is stored under that name; --force makes {name} as well")
    if figures:
        fit = {key: value for key, value in entry["summary"].items() if isinstance(value, (int, float, str, bool))}
        emit_facts(fit, indent="  ")


def _record(run: Run) -> dict[str, Any]:
    if run.artifact is not None:
        made = entry(run.artifact, cached=run.cached, seconds=run.seconds)
        return {"run": run.name, "state": run.state, "values": run.values, **made}
    facts = {"error": run.error, "log": run.log, "last_line": run.said}
    return {"run": run.name, "state": run.state, "values": run.values, **facts}


class _Table:
    """Finished runs line by line on stdout; below them, on a terminal, how many wait and what is running."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.live = sys.stderr.isatty()
        self.height, self.drawn, self.started = 0, 0.0, time.monotonic()
        self.since: dict[str, float] = {}

    def watch(self, board: Board, changed: Run | None) -> None:
        now = time.monotonic()
        if changed is not None and changed.state == "running":
            self.since[changed.name] = now
        if changed is not None and changed.state == "done" and changed.artifact is not None and not self.as_json:
            self.clear()
            made = entry(changed.artifact, cached=changed.cached, seconds=changed.seconds)
            show(made, changed.name, figures=len(board.runs) == 1)
            sys.stdout.flush()
        if self.live and (changed is not None or now - self.drawn > _EVERY):
            self._draw(board, now)

    def clear(self) -> None:
        if self.height:
            sys.stderr.write(f"\033[{self.height}A\033[J")
            sys.stderr.flush()
            self.height = 0

    def _draw(self, board: Board, now: float) -> None:
        self.clear()
        counts = "  ".join(f"{board.count(s)} {s}" for s in ("pending", "running", "done", "failed"))  # type: ignore[arg-type]
        busy = [run for run in board.runs if run.state in ("running", "failed")]
        busy.sort(key=lambda run: run.state)
        lines = [f"{counts}  {now - self.started:.0f} s"]
        for run in busy[:_MOST]:
            took = f"{now - self.since[run.name]:.0f} s" if run.name in self.since and run.state == "running" else ""
            lines.append(f"  {run.state:8}{took:>7}  {run.name}  {run.error}")
        if len(busy) > _MOST:
            lines.append(f"  ... and {len(busy) - _MOST} more")
        width = shutil.get_terminal_size().columns - 1
        sys.stderr.write("".join(line[:width] + "\n" for line in lines))
        sys.stderr.flush()
        self.height, self.drawn = len(lines), now


def _near(path: str) -> str:
    """A path as short as it can be said from here."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path
