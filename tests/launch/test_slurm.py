"""What SLURM's commands say, and what is made of it; the commands here are scripts that answer as SLURM does. A cluster
of three nodes was tried by hand (docs/launching.md)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from workbench.launch.engines import queue as queue_module
from workbench.launch.engines.queue import Queue

submitit = pytest.importorskip("submitit", reason="submitit is not installed: pip install 'workbench[slurm]'")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `squeue`, `sacct` and `scancel`, which print the files of those names and note how they were
    called in `calls`; without its file, a command fails."""
    for name in ("squeue", "sacct", "scancel"):
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/calls\nexec cat {tmp_path}/{name} 2>/dev/null\n')
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(queue_module, "_EVERY", 0.0)
    return tmp_path


def test_a_job_is_gone_when_two_looks_miss_it(slurm: Path) -> None:
    queue = Queue()
    (slurm / "squeue").write_text("12_0 RUNNING\n12_1 PENDING\n")
    assert (queue.state("12_0"), queue.state("12_1")) == ("RUNNING", "PENDING")
    (slurm / "squeue").write_text("12_1 RUNNING\n")
    assert queue.state("12_0") is None and queue.state("12_0") == "GONE" and queue.state("12_1") == "RUNNING"
    (slurm / "squeue").write_text("12_0 PENDING\n")
    assert queue.state("12_0") == "PENDING", "SLURM put it back"


def test_a_silent_controller_says_nothing_of_the_jobs(slurm: Path) -> None:
    queue = Queue()
    assert [queue.state("7") for _ in range(3)] == [None] * 3
    (slurm / "squeue").write_text("7 RUNNING\n")
    assert queue.state("7") == "RUNNING"
    (slurm / "squeue").unlink()
    assert [queue.state("7") for _ in range(3)] == ["RUNNING"] * 3
    queue.cancel(["7"], over=lambda: True)  # and cancelling is no error


def test_the_outcome_is_what_the_accounts_say(slurm: Path) -> None:
    assert Queue().outcome("12_0") == ""
    (slurm / "sacct").write_text("OUT_OF_MEMORY\n")
    assert Queue().outcome("12_0") == "out_of_memory"


def test_pending_jobs_are_cancelled_before_running_ones_are_asked(slurm: Path) -> None:
    (slurm / "scancel").write_text("")
    Queue().cancel(["12_0", "12_1"], over=lambda: True)
    assert (slurm / "calls").read_text().splitlines() == [
        "scancel --quiet --state=PENDING 12_0 12_1",
        "scancel --quiet --signal=INT 12_0 12_1",
        "scancel --quiet 12_0 12_1",
    ]
