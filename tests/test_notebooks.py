"""Notebooks are committed without outputs, read the store alone, and run top to bottom on what the specs put there."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
from pathlib import Path

import pytest

import workbench as wb
from workbench.experiments import load_spec
from workbench.experiments.run import execute as execute_spec
from workbench.experiments.run import prepare

ROOT = Path(__file__).parents[1]
_SPEC = importlib.util.spec_from_file_location("execute", ROOT / "notebooks" / "execute.py")
assert _SPEC is not None and _SPEC.loader is not None
runner = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(runner)

NOTEBOOKS = runner.notebooks()
SPECS = sorted({pair for path in NOTEBOOKS for pair in runner.needs(path).items()})
SMALL = {  # what `make notebooks` runs in full
    "retrieval.yaml": ["data.n=10", "params.causal.draws=1", "params.causal.samples=4"],
    "ships.yaml": ["data.n=8", "params.validation.max_new_tokens=12"],
    "sahara.yaml": ["data.n=8", "params.validation.max_new_tokens=12"],
    "vhd.yaml": ["data.n=8"],
    "vhr-short.yaml": ["data.n=8", "params.vhr.random_draws=1"],
    "var.yaml": ["data.n=12", "params.redistribution.random_draws=1"],
    "image-attention.yaml": ["data.n=8"],
    "circuit-planted.yaml": ["data.n=16"],
    "circuit-ioi.yaml": ["data.n=8", "params.faithfulness.greedy=false", "params.faithfulness.sizes=[0.1,0.3,1.0]"],
    "overlap.yaml": ["params.draws=4"],
    "overlap-multitask.yaml": ["params.draws=4"],
    "repair.yaml": ["data.n=12", "params.draws=4"],
    "repair-multitask.yaml": ["data.n=12", "params.draws=4"],
    "sae-circuits.yaml": ["data.n=32", "params.seeds=1"],
    "sae-features-planted.yaml": ["params.train.steps=150", "params.n_features=8"],
}


def code_of(path: Path) -> list[str]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_there_is_a_tour_and_a_notebook_per_family():
    assert [path.stem[:2] for path in NOTEBOOKS] == [f"{number:02d}" for number in range(9)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_without_outputs_and_without_paths_of_a_machine(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert notebook["metadata"]["language_info"] == {"name": "python"}, "no version of the machine it was edited on"
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"""["'`(\s](/(home|work|root|tmp|Users|usr|opt|mnt)/|[A-Za-z]:\\\\)""", text), "absolute path"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_compute_nothing_but_by_the_spec_of_a_missing_result(path):
    first, *others = code_of(path)
    assert 'wb.store("../artifacts")' in first and 'wb.run(f"../experiments/{spec}", store=store)' in first
    called = {
        ast.unparse(node.func) for code in others for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)
    }
    banned = {"run", "load_model", "rerun", "execute", *(name.replace("-", "_") for name in wb.analyses.names())}
    assert not called & {f"wb.{name}" for name in banned} and "wb.retrieval_heads" not in called
    assert "torch" not in "\n".join(others)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_say_what_is_measured_what_would_falsify_it_and_what_it_does_not_show(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    assert "not* show" in text or "not show" in text
    if path.stem[:2] not in ("00", "08"):  # those two are about the tool
        assert "what is measured" in text.lower() and "null" in text and "$$" in text and "fals" in text


@pytest.mark.parametrize(("name", "spec"), SPECS, ids=[spec for _, spec in SPECS])
def test_a_notebook_asks_for_what_the_command_line_makes(name, spec, monkeypatch):
    monkeypatch.chdir(ROOT / "notebooks")
    here = prepare(load_spec(f"../experiments/{spec}"))
    monkeypatch.chdir(ROOT)
    there = prepare(load_spec(f"experiments/{spec}"))
    assert here.spec.name == name
    assert here.run_key == there.run_key


@pytest.mark.slow
def test_a_spec_run_from_a_notebook_is_the_artifact_of_the_command_line(tmp_path, monkeypatch, capsys):
    from workbench.cli import main

    settings = ["data.n=4", "params.controls=1"]
    arguments = ["run", "experiments/path-patching-planted.yaml", "--store", str(tmp_path), "--json"]
    monkeypatch.chdir(ROOT)
    assert main([*arguments, *(word for setting in settings for word in ("--set", setting))]) == 0
    capsys.readouterr()
    made = wb.store(tmp_path)["path_patching/planted-ioi"]
    monkeypatch.chdir(ROOT / "notebooks")
    spec = load_spec("../experiments/path-patching-planted.yaml", overrides=settings)
    found = execute_spec(spec, store=wb.store(tmp_path))
    assert found.cached
    assert (found.artifact.ref, found.artifact.digest, found.artifact.run_key) == (made.ref, made.digest, made.run_key)
    assert wb.run("../experiments/path-patching-planted.yaml", store=tmp_path, overrides=settings) == made


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """A folder with `experiments`, an empty `notebooks` to run in, and a store, as a checkout has them."""
    root = tmp_path_factory.mktemp("checkout")
    (root / "notebooks").mkdir()
    (root / "experiments").symlink_to(ROOT / "experiments")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_top_to_bottom(path, place):
    runner.fill(place / "artifacts", runner.needs(path).values(), SMALL)
    versions = {artifact.ref for artifact in wb.store(place / "artifacts").ls()}
    runner.fill(place / "artifacts", runner.needs(path).values(), SMALL)  # finds every run, and makes no new version
    notebook = runner.execute(path, place / "notebooks")
    shown = [output["data"] for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    pages = [data["text/html"] for data in shown if "text/html" in data]
    assert any("application/vnd.plotly.v1+json" in data for data in shown), "the plots show themselves"
    assert any("<table" in page for page in pages), "results show themselves"
    assert not any(re.search(r"<script|cdn\.|https?://(?!www\.w3\.org/2000/svg)", page) for page in pages), "network"
    assert {artifact.ref for artifact in wb.store(place / "artifacts").ls()} == versions, "it only read the store"


def test_a_notebook_that_fails_is_named_and_fails_the_call(tmp_path, monkeypatch, capsys):
    cells = ["SPECS = {}", "1 / 0"]
    page = {
        "cells": [
            {
                "cell_type": "code",
                "id": f"c{at}",
                "metadata": {},
                "source": code,
                "outputs": [],
                "execution_count": None,
            }
            for at, code in enumerate(cells)
        ],
        "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    (tmp_path / "bad.ipynb").write_text(json.dumps(page), encoding="utf-8")
    monkeypatch.setattr(runner, "HERE", tmp_path)
    assert runner.main([]) == 1
    said = capsys.readouterr()
    assert "FAILED" in said.out and "bad.ipynb" in said.err and "ZeroDivisionError" in said.err
    with pytest.raises(SystemExit):
        runner.main(["no such notebook"])


def test_lab_listens_on_this_machine_only_and_keeps_its_token():
    dry = ["make", "-n", "--no-print-directory", "lab"]  # the suite may itself be run by make
    done = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, check=True)
    command = done.stdout[done.stdout.index("jupyter lab") :].replace("\\\n", " ").split()
    assert "--ServerApp.ip=127.0.0.1" in command and command[-1] == "notebooks"
    assert not re.search(r"token|password|allow_remote|allow_origin|0\.0\.0\.0|disable_check_xsrf", " ".join(command))
