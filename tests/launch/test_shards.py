"""A sweep that workers share is the sweep, bit for bit, for every analysis that may be sharded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.analyses.examples import QUICK, dataset, tiny_model
from workbench import analyses
from workbench.experiments import put
from workbench.launch.drive import SHARDED
from workbench.primitives.sweep.team import teamwork
from workbench.store import Store


@pytest.mark.parametrize("name", SHARDED)
def test_half_by_one_worker_half_by_another(name: str, tmp_path: Path) -> None:
    analysis = analyses.get(name)
    model = tiny_model(analysis.data_kind, "llama")
    data, params = dataset(model, analysis.data_kind), analysis.parse(QUICK[name])
    store = Store(tmp_path / "store", durable=False)
    alone = put(analysis(model, data, params, seed=0), "result", store=store)

    with teamwork(tmp_path / "parts", 0, 2):
        analysis(model, data, params, seed=0)
    parts = sorted((tmp_path / "parts").glob("*/*.safetensors"))
    assert parts, f"{name} keeps no parts, so it has nothing to share"
    theirs, mine = parts[::2], parts[1::2]
    for part in mine:
        part.unlink()
    stamps = [part.stat().st_mtime_ns for part in theirs]
    with teamwork(tmp_path / "parts", 1, 2):
        merged = analysis(model, data, params, seed=0)
    assert all(part.exists() for part in mine) and stamps == [part.stat().st_mtime_ns for part in theirs]
    again = put(merged, "result", store=store)
    assert (again.version, again.digest) == (1, alone.digest), "every table and array has the same bytes"
