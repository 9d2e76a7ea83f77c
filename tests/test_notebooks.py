"""Notebooks run top to bottom on a freshly filled store, and are committed without outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
QUICK = {"01_retrieval_heads": ("retrieval.yaml", ["data.n=10", "params.causal.draws=1"])}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_without_outputs(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_top_to_bottom(path, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    import workbench as wb

    spec, settings = QUICK[path.stem]
    monkeypatch.setenv("WORKBENCH_STORE", str(tmp_path / "store"))
    wb.run(ROOT / "experiments" / spec, overrides=settings, progress=False)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown = [output["data"] for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    assert any("application/vnd.plotly.v1+json" in data for data in shown), "the plots show themselves"
    assert any("<svg" in data.get("text/html", "") or "<table" in data.get("text/html", "") for data in shown)
