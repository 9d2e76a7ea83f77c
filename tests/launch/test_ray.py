"""Workers on a Ray cluster of two nodes: a killed one is listed and retried, a stopped command stops its workers,
nothing is lost, nothing stays behind."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.real import until
from workbench.errors import InputError
from workbench.launch import LaunchOptions, engines

ROOT = Path(__file__).parents[2]
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install 'workbench[ray]'"
)


@needs_ray
@pytest.mark.slow
def test_two_nodes_a_killed_worker_and_a_stopped_command(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "LAUNCH_TEST": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.launch.ray_cluster", str(tmp_path)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=300)
    finally:
        until(lambda: not descendants(str(tmp_path)), 30)  # a worker of Ray's takes a moment to see that it is over
        left = descendants(str(tmp_path))
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    assert process.returncode == 0, said
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["killed"] == 1 and found["codes"] == [1, 0], said
    assert found["after"] == {"edit-zero": "done", "edit-mean": "failed"}
    assert found["errors"][0].startswith("Ray says WorkerCrashedError")
    assert found["at_once"] == 2, "each task takes a node of its own"
    assert found["names"] == [f"launch/ioi/model-organism-planted-ioi/edit-{edit}" for edit in ("mean", "zero")]
    assert found["problems"] == 0 and found["open"] == []
    assert left == {}, "Ray's processes end with the cluster"
    interrupted, terminated, killed, finished = found["stopped"]
    for how in (interrupted, terminated):
        assert how["code"] == 130 and how["said"].startswith("error: interrupted"), how
        assert how["state"] == "interrupted" and how["worker"] == "gone", how
        assert how["names"] == [] and how["staging"] == 0, how
    assert killed["code"] == -signal.SIGKILL and killed["worker"] == "gone" and killed["state"] == "lost", killed
    assert finished == {"code": 0}, "the same command goes on, whatever stopped it"


def descendants(mark: str) -> dict[int, str]:
    """Living processes that inherited the mark, whoever adopted them, and what they are."""
    import psutil

    found = {}
    for process in psutil.process_iter():
        try:
            if process.environ().get("LAUNCH_TEST") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = " ".join(process.cmdline())[:200]
        except psutil.Error:
            continue
    return found


@needs_ray
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999"])
def test_an_address_where_nobody_listens_is_refused_at_once(tmp_path: Path, address: str) -> None:
    with pytest.raises(InputError, match=f"There is no Ray cluster at '{address}'"):
        engines.start(LaunchOptions(launcher="ray", options={"address": address}), str(tmp_path))


@needs_ray
def test_what_ray_is_not_passed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Ray is not passed 'partition'"):
        engines.start(LaunchOptions(launcher="ray", options={"partition": "gpu"}), str(tmp_path))


@pytest.mark.parametrize(("launcher", "package"), [("ray", "ray"), ("submitit", "submitit")])
def test_an_engine_that_is_not_installed(tmp_path: Path, monkeypatch, launcher: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    extra = "slurm" if launcher == "submitit" else launcher
    with pytest.raises(InputError, match=rf"needs {package}; run `pip install 'workbench\[{extra}\]'`"):
        engines.start(LaunchOptions.model_validate({"launcher": launcher}), str(tmp_path))
