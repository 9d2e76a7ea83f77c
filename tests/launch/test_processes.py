"""Workers as processes of this machine: killed, interrupted, orphaned, and two at one sweep."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.launch.real import ONE, SPEC, killing, launched, pid_of
from workbench.cli import main
from workbench.experiments import execute
from workbench.launch import Jobs, drive, read
from workbench.launch.engines.processes import how
from workbench.launch.jobs import _exists
from workbench.store import Store

NAME = "launch/ioi/model-organism-planted-ioi/edit-zero"


def test_how_a_process_ended() -> None:
    assert how(3) == "the worker exited with 3"
    assert how(-9) == "the worker was killed by SIGKILL" and how(-65) == "the worker was killed by signal 65"


def test_kill_9_one_of_two_at_a_sweep(tmp_path: Path) -> None:
    """The other does it all; the table is that of one process bit for bit."""
    store = Store(tmp_path / "store")
    asked = read([SPEC], sweeps=[ONE[1]], launch={"shards": 2, "workers": 2, "threads": 1})
    with killing(store, NAME, member=0) as killed:
        (run,) = drive(asked, store).runs
    assert killed and run.state == "done" and run.artifact is not None
    assert [task.state for task in run.job.tasks] == ["failed", "done"]
    assert run.job.tasks[0].ended["error"] == "the worker was killed by SIGKILL"
    assert not run.job.parts.exists() and not store.fsck()
    alone = execute(asked.specs[0], store=Store(tmp_path / "alone")).artifact
    assert run.artifact.digest == alone.digest


def test_kill_9_then_listed_then_retried(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path / "store")
    command = ["run", str(SPEC), *ONE, "--store", str(store.root)]
    with killing(store, NAME) as killed:
        assert main(command) == 1
    out = capfd.readouterr().out
    assert killed and f"{NAME}  failed: the worker was killed by SIGKILL" in out and "1 run: 0 done, 1 failed" in out
    (job,) = Jobs(store)
    assert f"{job.folder}/0/log" in out and store.names() == []
    assert main(command) == 1 and not pid_of(job), "a failed run is submitted on request only"
    assert main(["jobs", "--state", "failed", "--store", str(store.root)]) == 0
    assert "SIGKILL" in capfd.readouterr().out
    assert main([*command, "--retry"]) == 0
    assert f"{NAME}@v1" in capfd.readouterr().out and not store.fsck()


def test_interrupted_it_ends_its_workers(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    process, pid = launched(store)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.startswith("error: interrupted")
    assert not _exists(pid)
    assert [job.state(store) for job in Jobs(store)] == ["interrupted"] and store.names() == []


@pytest.mark.slow
def test_kill_9_of_the_command_leaves_the_worker_to_be_found(tmp_path: Path) -> None:
    """The same command watches the orphan to its end and computes nothing a second time."""
    store = Store(tmp_path / "store")
    process, _ = launched(store)
    process.kill()
    process.communicate(timeout=60)
    seen: list[str] = []
    board = drive(read([SPEC], sweeps=[ONE[1]]), store, watch=lambda board, run: seen.append(board.runs[0].state))
    assert seen[0] == "running" and board.runs[0].state == "done"
    assert len(store.log(NAME)) == 1 and board.runs[0].job.tasks[0].log.read_text().count("--- ") == 1
