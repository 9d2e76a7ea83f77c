"""The spec of stories260K from file to artifact, again from the artifact, and found again without loading torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workbench.experiments import load_spec, rerun, run
from workbench.experiments.agreement import Level
from workbench.store import Store

ROOT = Path(__file__).parent.parent.parent
SPEC = ROOT / "experiments" / "retrieval-stories260k.yaml"
MODEL = ROOT.parent / "shared" / "models" / "stories260K"
SHORT = ["params.causal=null", "params.controls=19", "params.bootstrap=100"]

needs_stories = pytest.mark.skipif(not MODEL.exists(), reason="stories260K is not beside the repository")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("real") / "store", durable=False)


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_specs_are_valid(path: Path) -> None:
    spec = load_spec(path)
    assert spec.seed == 0 and spec.name


@needs_stories
def test_most_needles_of_stories260k_are_recalled_and_the_result_comes_out_again(store: Store) -> None:
    artifact = run(SPEC, store=store, overrides=SHORT, allow=[MODEL.parent], progress=False)
    assert artifact.summary["n_samples"] == 12 and artifact.summary["n_accepted"] == 10
    heads = artifact.table("heads")
    assert heads.num_rows == 40
    assert artifact.tensors("arrays")["per_example"].shape == (10, 5, 8)
    found = rerun(artifact, store=store, allow=[MODEL.parent])
    assert found.level == Level.BITWISE, [payload.to_dict() for payload in found.payloads]


@needs_stories
def test_a_stored_run_is_found_without_torch(store: Store) -> None:
    run(SPEC, store=store, overrides=SHORT, allow=[MODEL.parent], progress=False)
    settings = [word for override in SHORT for word in ("--set", override)]
    program = (
        "import sys; from workbench.cli import main; code = main(sys.argv[1:])\n"
        "heavy = {'torch', 'transformers', 'transformer_lens', 'pandas'} & set(sys.modules)\n"
        "sys.exit(f'{code} {heavy}' if code or heavy else 0)"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            program,
            "run",
            str(SPEC),
            "--allow",
            str(MODEL.parent),
            "--store",
            str(store.root),
            *settings,
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert "cached" in done.stdout
