"""What is submitted, what is not, and how runs stand afterwards, whatever happened to their workers."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from pathlib import Path

import pytest

from tests.experiments.fake import World
from tests.launch.conftest import Inline
from workbench.errors import InputError
from workbench.experiments import execute, load_spec
from workbench.launch import Jobs, drive, read
from workbench.launch import jobs as jobs_module
from workbench.store import Store


def asked(spec_file: Path, *sweeps: str, **launch):
    return read([spec_file], sweeps=sweeps, launch=launch or {"launcher": "local"})


def states(board) -> dict[str, str]:
    return {run.name.removeprefix("fake/one/"): run.state for run in board.runs}


def test_a_grid_goes_into_the_store(spec_file: Path, store: Store, inline: Inline, world: World) -> None:
    told = []
    board = drive(asked(spec_file, "seed=0..2"), store, watch=lambda board, run: told.append(run and run.state))
    assert states(board) == {"seed-0": "done", "seed-1": "done", "seed-2": "done"}
    assert sorted(store.names()) == ["fake/one/seed-0", "fake/one/seed-1", "fake/one/seed-2"]
    assert [run.artifact and run.artifact.ref for run in board.runs] == [f"fake/one/seed-{s}@v1" for s in range(3)]
    assert told.count("done") == 3 and inline.most == 2 and inline.closed
    assert not store.fsck()


def test_a_launched_run_is_the_run(spec_file: Path, store: Store, inline: Inline, tmp_path: Path) -> None:
    """Same digest, run key and record as `workbench run` in this process gives."""
    (run,) = drive(asked(spec_file), store).runs
    plain = execute(load_spec(spec_file), store=Store(tmp_path / "other")).artifact
    assert run.artifact is not None
    assert (run.artifact.digest, run.artifact.name) == (plain.digest, plain.name)
    for key in ("run_key", "config"):
        assert run.artifact.manifest[key] == plain.manifest[key]
    for key in ("spec_file", "argv", "code"):
        assert run.artifact.manifest["producer"][key] == plain.manifest["producer"][key]


def test_only_what_is_missing_is_submitted(spec_file: Path, store: Store, inline: Inline, world: World) -> None:
    execute(load_spec(spec_file, overrides=["seed=1", "name=by-hand"]), store=store)
    drive(asked(spec_file, "seed=0..1"), store)
    assert inline.submitted == ["fake/one/seed-0"], "found under another name"
    board = drive(asked(spec_file, "seed=0..2"), store)
    assert inline.submitted == ["fake/one/seed-0", "fake/one/seed-2"]
    assert [run.cached for run in board.runs] == [True, True, False]
    assert len(world.calls) == 3
    store.remove("fake/one/seed-2", "wrong")
    assert states(drive(asked(spec_file, "seed=2"), store)) == {"seed-2": "done"} and len(world.calls) == 4
    drive(asked(spec_file, "seed=2"), store, force=True)
    assert store.get("fake/one/seed-2").version == 3


def test_two_points_that_are_one_run(spec_file: Path, store: Store, inline: Inline, world: World) -> None:
    (board,) = [drive(asked(spec_file, "model=../models/tiny,../models/../models/tiny"), store)]
    assert len(world.calls) == 1 and len(board.runs) == 1


def test_a_dead_worker_fails_its_run_alone(spec_file: Path, store: Store, inline: Inline) -> None:
    inline.script = {"fake/one/seed-1": "die"}
    grid = asked(spec_file, "seed=0..2")
    board = drive(grid, store)
    assert states(board) == {"seed-0": "done", "seed-1": "failed", "seed-2": "done"}
    failed = board.runs[1]
    assert failed.error == "the worker was killed by SIGKILL" and Path(failed.log).is_file()

    inline.script, inline.submitted = {}, []
    assert states(drive(grid, store))["seed-1"] == "failed" and inline.submitted == [], "only on request"
    board = drive(grid, store, retry=True)
    assert states(board)["seed-1"] == "done" and inline.submitted == ["fake/one/seed-1"]
    assert Path(failed.log).read_text().count("--- ") == 2, "the log keeps every attempt"


def test_an_error_is_a_sentence_and_its_log(
    spec_file: Path, store: Store, inline: Inline, monkeypatch: pytest.MonkeyPatch
) -> None:
    import workbench.models

    grid, load = asked(spec_file, "seed=0..1"), workbench.models.load_model

    def broken(*args, **kwargs):
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr(workbench.models, "load_model", broken)
    board = drive(grid, store)
    assert [run.error for run in board.runs] == ["ZeroDivisionError: of all things"] * 2
    assert "Traceback" in Path(board.runs[0].log).read_text() and board.runs[0].said.endswith("of all things")

    def refused(*args, **kwargs):
        raise InputError("The model is no model; give another.")

    monkeypatch.setattr(workbench.models, "load_model", refused)
    board = drive(grid, store, retry=True)
    assert board.runs[0].error == "The model is no model; give another."
    assert "Traceback" not in Path(board.runs[0].log).read_text().rpartition("--- ")[2]
    monkeypatch.setattr(workbench.models, "load_model", load)
    assert set(states(drive(grid, store, retry=True)).values()) == {"done"}


def test_interrupted_it_goes_on_with_the_rest(spec_file: Path, store: Store, inline: Inline, world: World) -> None:
    inline.script = {"fake/one/seed-1": "interrupt"}
    grid = asked(spec_file, "seed=0..2")
    with pytest.raises(KeyboardInterrupt):
        drive(grid, store)
    assert "fake/one/seed-1" in inline.cancelled and inline.closed
    assert store.names() == ["fake/one/seed-0"]
    assert {job.name[-1]: job.state(store) for job in Jobs(store)} == {"0": "done", "1": "interrupted", "2": "pending"}
    inline.script, inline.submitted = {}, []
    assert set(states(drive(grid, store)).values()) == {"done"}
    assert inline.submitted == ["fake/one/seed-1", "fake/one/seed-2"] and len(world.calls) == 3


def started(store: Store, name: str, **facts) -> None:
    """Make the job of that name look as if a worker had begun."""
    job = next(job for job in Jobs(store) if job.name == name)
    (task,) = job.tasks
    task.clear()
    task.start()
    jobs_module.write(task.folder / "started.json", {"host": socket.gethostname(), "pid": os.getpid(), **facts})


def test_who_watched_was_killed_and_its_worker_too(spec_file: Path, store: Store, inline: Inline) -> None:
    inline.script = {"fake/one/seed-0": "interrupt"}
    grid = asked(spec_file, "seed=0")
    with pytest.raises(KeyboardInterrupt):
        drive(grid, store)
    started(store, "fake/one/seed-0", pid=2**22 + 1)
    assert [job.state(store) for job in Jobs(store)] == ["lost"]
    inline.script = {}
    assert states(drive(grid, store)) == {"seed-0": "done"}, "a run that vanished is missing, not failed"


def test_a_worker_elsewhere_is_dead_when_it_is_silent(spec_file: Path, store: Store, inline: Inline) -> None:
    inline.script = {"fake/one/seed-0": "interrupt"}
    with pytest.raises(KeyboardInterrupt):
        drive(asked(spec_file, "seed=0"), store)
    started(store, "fake/one/seed-0", host="elsewhere", pid=1)
    (job,) = Jobs(store)
    assert job.state(store) == "running"
    long_ago = job.tasks[0].folder.stat().st_mtime - 2 * jobs_module.STALE
    os.utime(job.tasks[0].folder / "beat", (long_ago, long_ago))
    assert job.state(store) == "lost"


def test_what_another_launch_runs_is_watched(
    spec_file: Path, store: Store, inline: Inline, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    inline.script = {"fake/one/seed-0": "interrupt"}
    grid = asked(spec_file, "seed=0")
    with pytest.raises(KeyboardInterrupt):
        drive(grid, store)
    started(store, "fake/one/seed-0")  # by this very process, which lives
    (job,) = Jobs(store)
    inline.submitted, seen = [], []

    def watch(board, run) -> None:
        seen.append(board.runs[0].state)
        if len(seen) == 3:
            artifact = execute(load_spec(spec_file, overrides=["name=fake/one/seed-0"]), store=store).artifact
            job.tasks[0].end("done", ref=artifact.ref)

    monkeypatch.setattr(sys.modules["workbench.launch.drive"], "_ELSEWHERE", 0.0)
    board = drive(grid, store, watch=watch)
    assert seen[0] == "running" and states(board) == {"seed-0": "done"} and inline.submitted == []


def test_what_another_launch_began_meanwhile_is_not_begun_again(
    spec_file: Path, store: Store, inline: Inline, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two people launch the same sweep: whoever comes to a run second watches it."""
    inline.slots = 1
    monkeypatch.setattr(sys.modules["workbench.launch.drive"], "_ELSEWHERE", 0.0)

    def watch(board, run) -> None:
        if run is not None and run.name.endswith("seed-0") and run.state == "done":
            started(store, "fake/one/seed-1")  # by this very process, which lives
        elif run is not None and run.name.endswith("seed-1") and run.state == "running":
            artifact = execute(load_spec(spec_file, overrides=["name=fake/one/seed-1", "seed=1"]), store=store).artifact
            run.job.tasks[0].end("done", ref=artifact.ref)

    board = drive(asked(spec_file, "seed=0..1"), store, watch=watch)
    assert set(states(board).values()) == {"done"} and inline.submitted == ["fake/one/seed-0"]
    assert len(world.calls) == 2


def test_a_worker_that_the_queue_lost(
    spec_file: Path, store: Store, inline: Inline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["workbench.launch.drive"], "_LATE", 0.2)
    inline.script = {"fake/one/seed-1": "mute"}
    board = drive(asked(spec_file, "seed=0..1"), store)
    assert states(board) == {"seed-0": "done", "seed-1": "failed"} and board.runs[1].error == "the worker vanished"
    assert inline.cancelled == ["fake/one/seed-1"]


@pytest.mark.parametrize("word_arrives", [True, False])
def test_the_word_of_a_worker_afar_may_be_late(
    spec_file: Path, store: Store, inline: Inline, monkeypatch: pytest.MonkeyPatch, word_arrives: bool
) -> None:
    """What it wrote shows here when the cache of the network file system is over."""
    monkeypatch.setattr(sys.modules["workbench.launch.drive"], "_LATE_FROM_AFAR", 0.5)
    inline.script = {"fake/one/seed-0": "far"}
    looks = []

    def watch(board, run) -> None:
        looks.append(run)
        if word_arrives and len(looks) == 4:
            artifact = execute(load_spec(spec_file, overrides=["name=fake/one/seed-0"]), store=store).artifact
            board.runs[0].job.tasks[0].end("done", ref=artifact.ref)

    (run,) = drive(asked(spec_file, "seed=0"), store, watch=watch).runs
    assert (run.state, run.error) == (("done", "") if word_arrives else ("failed", "the worker was killed by SIGKILL"))


def test_the_machine_where_it_runs_must_be_the_same(
    spec_file: Path, store: Store, inline: Inline, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.experiments import identity

    grid = asked(spec_file)
    submit = inline.submit

    def elsewhere(tasks):
        with monkeypatch.context() as there:
            there.setattr(identity, "device_kind", lambda requested: "cuda")
            return submit(tasks)

    inline.submit = elsewhere  # type: ignore[method-assign]
    (run,) = drive(grid, store).runs
    assert run.error.startswith("device is cuda here and cpu where it was launched; say which with --device")
    assert store.names() == []


def test_files_of_the_data_travel_with_the_job(spec_file: Path, store: Store, inline: Inline) -> None:
    """The worker needs the job's folder alone."""
    data = spec_file.with_name("mine.jsonl")
    data.write_text('{"prompt": "a red kite and a red", "needle": "red kite"}\n')
    spec_file.write_text("analysis: fake\nmodel: ../models/tiny\ndata: {file: mine.jsonl}\n")
    grid = asked(spec_file)
    submit = inline.submit

    def late(tasks):
        data.unlink()
        spec_file.unlink()
        return submit(tasks)

    inline.submit = late  # type: ignore[method-assign]
    assert drive(grid, store).runs[0].state == "done"


def test_shards_are_for_sweeps_over_heads(spec_file: Path, store: Store, inline: Inline) -> None:
    with pytest.raises(InputError, match="fake is not one sweep over heads"):
        drive(asked(spec_file, shards=2), store)


def test_nothing_runs_when_one_is_wrong(spec_file: Path, store: Store, inline: Inline, world: World) -> None:
    with pytest.raises(InputError, match="does not exist"):
        drive(asked(spec_file, "model=../models/tiny,../models/none"), store)
    assert inline.submitted == [] and not store.root.exists()


def test_jobs_are_beside_the_store_and_not_in_it(
    spec_file: Path, store: Store, inline: Inline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "of-mine-alone")
    drive(asked(spec_file, "seed=0..1"), store)
    kept = Jobs(store)
    assert len(list(kept)) == 2 and not store.fsck() and len(store.names()) == 2
    for job in kept:
        assert "of-mine-alone" not in (job.folder / "job.json").read_text()
        kept.forget(job)
    assert list(kept) == [] and len(store.names()) == 2
    (kept.root / "junk").mkdir()
    (kept.root / "junk" / "job.json").write_text("{")
    assert list(kept) == []
    shutil.rmtree(kept.root)
    assert set(states(drive(asked(spec_file, "seed=0..1"), store)).values()) == {"done"}
