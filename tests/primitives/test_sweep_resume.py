"""A sweep that is killed goes on where it was and gives the same bits; one that runs out of memory goes on smaller."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.primitives.cases import model, prompts
from tests.primitives.counting import Counting, counting
from workbench.primitives.sweep import Readout, Shape, all_heads, sweep

engine = importlib.import_module("workbench.primitives.sweep.engine")
ROOT = Path(__file__).parents[2]
N = 5


def readout() -> Readout:
    return Readout("logit_diff", torch.arange(5, 5 + N), torch.arange(15, 15 + N))


def run(folder: Path | None, metric: Readout | None = None, **options):
    """A sweep in several chunks and batches."""
    m = model("llama")
    budget = 2 * 2 * Shape.of(m).row_bytes(12, 4)  # two rows at a time
    settings = {"units": all_heads(m), "edit": "zero", "controls": 1, "budget": budget, **options}
    return sweep(m, prompts(N, 12), metric=metric or readout(), checkpoint=folder, **settings)


def slow(folder: str) -> None:
    """What the killed process runs."""
    Counting.pause = 0.05
    run(Path(folder), counting(N))


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.safetensors"))


def test_kill_9_then_the_same_sweep_gives_the_same_bits(tmp_path):
    whole = run(None)
    code = f"from tests.primitives.test_sweep_resume import slow; slow({str(tmp_path)!r})"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment)
    deadline = time.time() + 120
    while len(parts(tmp_path)) < 2 and time.time() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was killed in the middle"
    done = len(parts(tmp_path))
    assert done >= 2
    fresh = counting(N)
    run(None, fresh)
    all_calls = Counting.calls
    resumed = run(tmp_path, counting(N))
    assert Counting.calls < all_calls, "finished parts are not computed again"
    for name in ("values", "base", "controls"):
        np.testing.assert_array_equal(getattr(resumed, name), getattr(whole, name))
    assert not parts(tmp_path), "a finished sweep leaves nothing behind"


def stopped_after(n_parts: int, folder: Path, monkeypatch, **options) -> None:
    """Run until `n_parts` parts are on disk, then fail."""
    save = engine.Checkpoint.save

    def failing(self, *args):
        save(self, *args)
        if len(parts(folder)) == n_parts:
            raise KeyboardInterrupt

    monkeypatch.setattr(engine.Checkpoint, "save", failing)
    with pytest.raises(KeyboardInterrupt):
        run(folder, **options)
    monkeypatch.undo()


@pytest.mark.parametrize("kind", ["mean", "resample", "uniform"])
def test_every_edit_resumes(tmp_path, monkeypatch, kind):
    tokens_apart = {"edit": kind}
    whole = run(None, **tokens_apart)
    stopped_after(4, tmp_path, monkeypatch, **tokens_apart)
    resumed = run(tmp_path, **tokens_apart)
    np.testing.assert_array_equal(resumed.values, whole.values)
    np.testing.assert_array_equal(resumed.controls, whole.controls)


def test_a_damaged_part_is_computed_again(tmp_path, monkeypatch):
    whole = run(None)
    stopped_after(3, tmp_path, monkeypatch)
    parts(tmp_path)[0].write_bytes(b"half a file")
    np.testing.assert_array_equal(run(tmp_path).values, whole.values)


@pytest.mark.parametrize("how", ["last bit", "another part", "not sealed"])
def test_a_part_that_can_be_read_but_is_not_what_was_written_is_computed_again(tmp_path, monkeypatch, how):
    from safetensors.torch import load, save

    whole = run(None)
    stopped_after(3, tmp_path, monkeypatch)
    first, second, *_ = parts(tmp_path)
    data = first.read_bytes()
    first.write_bytes({
        "last bit": data[:-1] + bytes([data[-1] ^ 1]),
        "another part": second.read_bytes(),
        "not sealed": save({name: value + 1 for name, value in load(data).items()}),
    }[how])  # fmt: skip
    np.testing.assert_array_equal(run(tmp_path).values, whole.values)


def test_another_sweep_does_not_take_these_parts(tmp_path, monkeypatch):
    stopped_after(3, tmp_path, monkeypatch)
    other = run(tmp_path, edit="uniform")
    np.testing.assert_array_equal(other.values, run(None, edit="uniform").values)
    assert len(parts(tmp_path)) == 3, "the first sweep's parts are still there"


def out_of_memory_above(rows: int, monkeypatch, error: Exception) -> list[int]:
    """Make forks of more than `rows` rows fail; returns the sizes that were tried."""
    honest, tried = engine.run_fork, []

    def failing(m, batch, start, way):
        tried.append(len(batch))
        if len(batch) > rows:
            raise error
        return honest(m, batch, start, way)

    monkeypatch.setattr(engine, "run_fork", failing)
    return tried


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_the_batch_and_says_so(monkeypatch, error):
    whole = run(None, budget=None)
    tried = out_of_memory_above(3, monkeypatch, error)
    result = run(None, budget=None)
    assert max(tried) > 3 >= min(tried)
    assert any("memory ran out" in note for note in result.notes)
    np.testing.assert_allclose(result.values, whole.values, atol=1e-5)
    np.testing.assert_allclose(result.controls, whole.controls, atol=1e-5)


def test_what_never_fits_and_what_is_no_memory_error_are_raised(monkeypatch):
    out_of_memory_above(0, monkeypatch, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        run(None)
    monkeypatch.undo()
    out_of_memory_above(0, monkeypatch, RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        run(None)


def test_the_base_run_is_cut_when_memory_runs_out(monkeypatch):
    whole = run(None, budget=None)
    honest = engine.run_base

    def failing(m, chunk, *args, piece, **options):
        if piece > 2:
            raise MemoryError
        return honest(m, chunk, *args, piece=piece, **options)

    monkeypatch.setattr(engine, "run_base", failing)
    result = run(None, budget=None)
    assert any("piece" in note for note in result.notes)
    np.testing.assert_allclose(result.values, whole.values, atol=1e-5)


def test_a_resumed_sweep_keeps_the_size_memory_had_room_for(tmp_path, monkeypatch):
    error = torch.OutOfMemoryError("CUDA out of memory")
    out_of_memory_above(3, monkeypatch, error)
    whole = run(None, budget=None)
    monkeypatch.undo()
    save = engine.Checkpoint.save
    out_of_memory_above(3, monkeypatch, error)

    def failing(self, *args):
        save(self, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(engine.Checkpoint, "save", failing)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, budget=None)
    monkeypatch.undo()
    resumed = run(tmp_path, budget=None)  # no error this time, and still the smaller batches
    np.testing.assert_array_equal(resumed.values, whole.values)


def test_what_shares_a_batch_is_decided_by_the_request_alone():
    first, second = run(None), run(None)
    np.testing.assert_array_equal(first.values, second.values)
    assert first.cost.to_dict() == second.cost.to_dict()
