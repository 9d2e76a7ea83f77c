"""Workers through submitit, with its local executor: the pages' command, a killed worker, refused options."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.launch.real import ONE, SPEC, killing, launched
from workbench.cli import main
from workbench.errors import InputError
from workbench.launch import Jobs, LaunchOptions, engines
from workbench.store import Store

pytest.importorskip("submitit", reason="submitit is not installed: pip install 'workbench[slurm]'")
NAME = "launch/ioi/model-organism-planted-ioi/edit-zero"


def test_kill_9_then_retried(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path / "store")
    command = ["run", str(SPEC), *ONE, "--launcher", "submitit", "--launch-option", "cluster=local"]
    command += ["--store", str(store.root)]
    with killing(store, NAME) as killed:
        assert main(command) == 1
    assert killed and f"{NAME}  failed: submitit says that job" in capfd.readouterr().out
    assert store.names() == []
    assert main([*command, "--retry"]) == 0
    assert f"{NAME}@v1" in capfd.readouterr().out and not store.fsck()


@pytest.mark.slow
def test_out_of_time_it_waits_and_goes_on(tmp_path: Path) -> None:
    """SLURM's warning, which submitit answers by putting the job back into the queue."""
    store = Store(tmp_path / "store")
    process, worker = launched(store, "--launcher", "submitit", "--launch-option", "cluster=local")
    (job,) = Jobs(store)
    os.kill(worker, signal.SIGUSR2)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and f"{NAME}@v1" in out, out + err
    log = job.tasks[0].log.read_text()
    assert log.count("Calling checkpoint method") == 1 and log.count(": loading") == 2 and log.count("--- ") == 1
    assert job.state(store) == "done" and not store.fsck()


@pytest.mark.parametrize("options", [{"cluster": "nowhere"}, {"nonsense": 1}, {"timeout_min": "long"}])
def test_what_submitit_refuses_is_a_sentence(tmp_path: Path, options: dict) -> None:
    with pytest.raises(InputError, match="submitit refuses these options"):
        engines.start(LaunchOptions(launcher="submitit", options=options), str(tmp_path))
