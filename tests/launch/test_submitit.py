"""Workers through submitit, with its local executor: the pages' command, a killed worker, refused options."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launch.real import ONE, SPEC, killing
from workbench.cli import main
from workbench.errors import InputError
from workbench.launch import LaunchOptions, engines
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


@pytest.mark.parametrize("options", [{"cluster": "nowhere"}, {"nonsense": 1}, {"timeout_min": "long"}])
def test_what_submitit_refuses_is_a_sentence(tmp_path: Path, options: dict) -> None:
    with pytest.raises(InputError, match="submitit refuses these options"):
        engines.start(LaunchOptions(launcher="submitit", options=options), str(tmp_path))
