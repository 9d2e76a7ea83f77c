"""`workbench run` with a sweep or a launcher, and `workbench jobs`: what they print, and their exit codes."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.experiments.fake import World
from tests.launch.conftest import Inline, inline, model_dir, spec_file, store, world  # noqa: F401 - fixtures
from workbench.cli import launch, main
from workbench.launch.board import Board, Run
from workbench.store import Store


@pytest.fixture
def run(store: Store, spec_file: Path, inline: Inline, capfd: pytest.CaptureFixture[str]) -> Any:  # noqa: F811
    """`run("--sweep", ...)` is `workbench run one.yaml --sweep ...`; the exit code and what was printed."""

    def command(*arguments: str, verb: str = "run") -> tuple[int, str, str]:
        words = [verb, *([str(spec_file)] if verb == "run" else []), *arguments, "--store", str(store.root)]
        code = main(words)
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return command


def test_runs_appear_as_they_finish(run: Any) -> None:
    code, out, err = run("--sweep", "seed=0..1,params.variant=plain,fancy")
    assert code == 0 and err == ""
    lines = out.splitlines()
    assert lines[0].startswith("fake/one/seed-0/variant-plain@v1  sha256:") and lines[0].endswith(" s")
    assert len(lines) == 5 and lines[-1] == "4 runs: 4 done"
    code, out, _ = run("--sweep", "seed=0..2", "--sweep", "params.variant=plain,fancy")
    assert code == 0 and out.count("cached") == 4 and out.endswith("6 runs: 6 done (4 of them before)\n")


def test_one_run_shows_its_figures(run: Any) -> None:
    code, out, _ = run("--launcher", "local")
    assert code == 0 and "n_samples" in out and out.endswith("1 run: 1 done\n")


def test_failures_are_listed_with_their_log(run: Any, inline: Inline) -> None:  # noqa: F811
    inline.script = {"fake/one/seed-1": "die"}
    code, out, _ = run("--sweep", "seed=0..1")
    assert code == 1 and "fake/one/seed-1  failed: the worker was killed by SIGKILL" in out
    assert "2 runs: 1 done, 1 failed (--retry submits them again)" in out
    log = next(line.split()[1] for line in out.splitlines() if line.startswith("  log"))
    assert Path(log).is_file()
    code, out, _ = run(verb="jobs")
    assert code == 0 and out.count("fake/one/seed-") == 3 and "SIGKILL" in out
    code, out, _ = run("--state", "failed", verb="jobs")
    assert "seed-1" in out and "seed-0" not in out
    inline.script = {}
    code, out, _ = run("--sweep", "seed=0..1", "--retry")
    assert code == 0 and out.endswith("2 runs: 2 done (1 of them before)\n")


def test_json_is_all_there_is_on_stdout(run: Any, inline: Inline) -> None:  # noqa: F811
    inline.script = {"fake/one/seed-1": "die"}
    code, out, err = run("--sweep", "seed=0..1", "--json")
    first, second = json.loads(out)
    assert code == 1 and err == ""
    assert first["state"] == "done" and first["values"] == {"seed": 0} and first["ref"] == "fake/one/seed-0@v1"
    assert second["state"] == "failed" and second["error"] and Path(second["log"]).is_file()
    _, out, _ = run("--json", verb="jobs")
    assert {job["state"] for job in json.loads(out)} == {"done", "failed"}


def test_interrupted(run: Any, inline: Inline) -> None:  # noqa: F811
    inline.script = {"fake/one/seed-1": "interrupt"}
    code, _, err = run("--sweep", "seed=0..1")
    assert code == 130 and err.startswith("error: interrupted; finished runs are kept")


def test_forgetting_jobs_keeps_artifacts(run: Any, store: Store) -> None:  # noqa: F811
    assert "nothing was launched" in run(verb="jobs")[1]
    run("--sweep", "seed=0..1")
    assert "forgotten" in run("--forget", verb="jobs")[1]
    assert "nothing was launched" in run(verb="jobs")[1]
    assert len(store.names()) == 2


def test_without_any_of_it_runs_are_made_here(run: Any, inline: Inline, world: World) -> None:  # noqa: F811
    code, out, _ = run()
    assert code == 0 and "fake/one@v1" in out and inline.submitted == [] and len(world.calls) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--retry"], "--retry is for runs that were launched"),
        (["--sweep", "sede=0..1"], "Did you mean 'seed'"),
        (["--sweep", "params.variant=plain,fency"], "params.variant"),
        (["--launcher", "locl"], "'locl' is none of local, submitit, ray. Did you mean 'local'"),
        (["--workers", "0"], "--workers: 0 does not fit"),
        (["--launcher", "local", "--launch-option", "x"], "write it as key=value"),
        (["--shards", "2"], "fake is not one sweep over heads"),
        (["--shards", "2", "--force"], "fake is not one sweep"),
    ],
)
def test_bad_input_is_one_sentence(run: Any, world: World, arguments: list[str], says: str) -> None:  # noqa: F811
    code, out, err = run(*arguments)
    assert code == 2 and out == "" and err.count("\n") == 1 and says in err and world.calls == []


def test_a_state_that_is_none(run: Any) -> None:
    code, _, err = run("--state", "faild", verb="jobs")
    assert code == 2 and "Did you mean 'failed'" in err


def test_the_live_table(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", screen)
    job: Any = None
    runs = [Run(f"grid/seed-{i}", job, state) for i, state in enumerate(["done", "running", "failed", "pending"])]  # type: ignore[arg-type]
    runs += [Run(f"grid/seed-{i}", job, "running") for i in range(4, 20)]
    runs[2].error = "the worker was killed by SIGKILL"
    table = launch._Table(as_json=False)
    table.watch(Board(runs), runs[1])
    text = screen.getvalue()
    assert "1 pending  17 running  1 done  1 failed" in text and "SIGKILL" in text and "... and 6 more" in text
    assert all(len(line) < 80 for line in text.splitlines())
    table.clear()
    assert screen.getvalue().endswith("\033[14A\033[J")
