"""`bench/large.py` runs every analysis on a model it makes, says what each took, and notices numbers that are none."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from workbench import analyses

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(ROOT / "bench"))
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in ("large", "large_checkpoint", "held")})
    sys.path.remove(str(ROOT / "bench"))


def test_every_analysis_has_a_row_with_numbers(bench, tmp_path, monkeypatch):
    table = tmp_path / "table.md"
    arguments = ["--size", "tiny", "--folder", str(tmp_path), "--spill", "64", "--long", "256", "-o", str(table)]
    monkeypatch.setattr(sys, "argv", ["large.py", *arguments])
    bench.large.main()
    text = table.read_text()
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in text.splitlines() if line.startswith("| `")}
    assert set(rows) == {f"`{name}`" for name in analyses.names()}
    for name, (_, seconds, _, memory, said) in rows.items():
        if analyses.get(name.strip("`")).data_kind == "images":
            assert "not run: it needs images" in said
        else:
            assert float(seconds) >= 0, name
            assert float(memory) >= 0, name
            assert " scored" in said, (name, said)
            assert "NOT SANE" not in said, (name, said)
    assert "random weights" in text
    assert "in memory" in text.split("activations to disk")[1]
    assert "4 steps decoded" in text.split("retrieval scores")[1]


def test_a_checkpoint_is_made_once_and_holds_what_its_shape_says(bench, tmp_path):
    path = bench.large_checkpoint.checkpoint(tmp_path, "tiny")
    made = {file: file.stat().st_mtime_ns for file in path.iterdir()}
    assert bench.large_checkpoint.checkpoint(tmp_path, "tiny") == path
    assert {file: file.stat().st_mtime_ns for file in path.iterdir()} == made
    from workbench.models import estimate_memory

    found = estimate_memory(path, dtype="bfloat16")
    assert (found.n_parameters, found.weights) == (shape_of(bench).n_weights, 2 * shape_of(bench).n_weights)


def shape_of(bench):
    return bench.large_checkpoint.SHAPES["tiny"]


def test_the_named_shapes_have_as_many_weights_as_the_models_they_are_named_after(bench):
    shapes = bench.large_checkpoint.SHAPES
    assert shapes["1b"].n_weights == 1_100_048_384  # TinyLlama-1.1B
    assert shapes["7b"].n_weights == 7_241_732_096  # Mistral-7B


def test_memory_that_is_held_is_seen_whatever_becomes_of_it(bench):
    with bench.held.held("cpu") as took:
        torch.ones(2**24)  # 64 MiB, for a moment
    assert took.peak > 50 * 2**20
    assert took.left < 20 * 2**20
    with bench.held.held("cpu") as took:
        kept = torch.ones(2**24)
    assert took.left > 50 * 2**20
    del kept


def test_numbers_that_are_none_are_not_called_sane(bench):
    heads = {"score": np.array([1.0, np.nan]), "status": np.array(["ok", "undefined"])}
    arrays = {"per_example": np.array([1.0, 2.0])}
    assert bench.large.verdict(SimpleNamespace(heads=heads, arrays=arrays)) == "1 of 2 scored, 1 undefined"
    arrays["per_example"][0] = np.inf
    assert bench.large.verdict(SimpleNamespace(heads=heads, arrays=arrays)).endswith("NOT SANE: per_example")
    heads["status"][1] = "ok"
    arrays["per_example"][0] = 0
    assert bench.large.verdict(SimpleNamespace(heads=heads, arrays=arrays)).endswith("NOT SANE: status")
