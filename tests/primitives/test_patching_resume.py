"""Patching and path patching that are killed go on where they were and give the same bits; what they cost is known."""

from __future__ import annotations

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
from workbench.errors import InputError
from workbench.primitives import batches
from workbench.primitives.patching import Patched, estimate_cells, patch_cells, sites
from workbench.primitives.paths import PathPatched, PathRuns, all_senders
from workbench.primitives.sweep.readout import Readout

ROOT = Path(__file__).parents[2]
N = 5
KINDS = ["cells", "heads", "paths"]


def readouts() -> dict[str, Readout]:
    return {"logit_diff": counting(N)}


def run(kind: str, folder: Path | None, length: int = 12) -> Patched | PathPatched:
    """Two rows at a time; `heads` is left to the sweep."""
    m = model("llama")
    base, other = prompts(N, length, 0), prompts(N, length, 100)
    if kind == "paths":
        both = PathRuns.of(m, base, other, batch_rows=2)
        return both.patch(readouts(), receivers=["2.3.q", "2.0.v"], senders=all_senders(m), checkpoint=folder)
    size = None if kind == "heads" else 2
    return patch_cells(m, base, other, sites(m, "z"), readouts(), batch_rows=size, checkpoint=folder)


def slow(kind: str, folder: str) -> None:
    """What the killed process runs."""
    Counting.pause = 0.2 if kind == "heads" else 0.05
    run(kind, Path(folder))


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.safetensors"))


@pytest.mark.parametrize("kind", KINDS)
def test_kill_9_then_the_same_patching_gives_the_same_bits(tmp_path, kind):
    whole = run(kind, None)
    all_calls = Counting.calls
    code = f"from tests.primitives.test_patching_resume import slow; slow({kind!r}, {str(tmp_path)!r})"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment)
    deadline = time.time() + 120
    while not parts(tmp_path) and time.time() < deadline and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was killed in the middle"
    assert parts(tmp_path)
    resumed = run(kind, tmp_path)
    assert Counting.calls < all_calls, "finished parts are not computed again"
    np.testing.assert_array_equal(resumed.values["logit_diff"], whole.values["logit_diff"])
    np.testing.assert_array_equal(resumed.base["logit_diff"], whole.base["logit_diff"])
    assert not parts(tmp_path), "what is finished leaves nothing behind"


@pytest.mark.parametrize("kind", ["cells", "paths"])
def test_another_question_does_not_take_these_parts(tmp_path, monkeypatch, kind):
    save = batches.Checkpoint.save

    def failing(self, *args):
        save(self, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(batches.Checkpoint, "save", failing)
    with pytest.raises(KeyboardInterrupt):
        run(kind, tmp_path)
    monkeypatch.undo()
    (left,) = parts(tmp_path)
    other = run(kind, tmp_path, length=11)
    np.testing.assert_array_equal(other.values["logit_diff"], run(kind, None, length=11).values["logit_diff"])
    assert parts(tmp_path) == [left]
    left.write_bytes(b"half a file")
    np.testing.assert_array_equal(run(kind, tmp_path).values["logit_diff"], run(kind, None).values["logit_diff"])


@pytest.mark.parametrize("kind", ["cells", "paths"])
def test_out_of_memory_halves_the_batch(monkeypatch, kind):
    whole = run(kind, None)
    from workbench.primitives import frozen, patching

    module = patching if kind == "cells" else frozen
    honest, tried = module.run_from, []

    def failing(m, base, start, rows, **options):
        tried.append(len(rows))
        if len(rows) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(m, base, start, rows, **options)

    monkeypatch.setattr(module, "run_from", failing)
    np.testing.assert_allclose(run(kind, None).values["logit_diff"], whole.values["logit_diff"], atol=1e-5)
    assert max(tried) > 1 == min(tried)


def test_whole_heads_are_left_to_the_sweep_and_agree_with_cells():
    heads, cells = run("heads", None), run("cells", None)
    assert (heads.method, cells.method) == ("sweep", "fork")
    np.testing.assert_allclose(heads.values["logit_diff"], cells.values["logit_diff"], atol=1e-5)
    np.testing.assert_allclose(heads.other["logit_diff"], cells.other["logit_diff"], atol=1e-6)


@pytest.mark.parametrize("arch", ["olmo2", "gpt2"])
def test_where_heads_cannot_be_forked_it_is_said(arch, monkeypatch):
    from workbench.primitives.sweep import request
    from workbench.primitives.sweep.exactness import Exactness

    m = model(arch)
    base, other = prompts(N, 8, 0), prompts(N, 8, 100)
    fast = patch_cells(m, base, other, sites(m, "z", layers=[1]), readouts())
    monkeypatch.setattr(request, "exactness", lambda _: Exactness(None, "forking is not exact here"))
    slow_way = patch_cells(m, base, other, sites(m, "z", layers=[1]), readouts())
    assert (slow_way.method, slow_way.notes) == ("hooks", ("forking is not exact here",))
    np.testing.assert_allclose(slow_way.values["logit_diff"], fast.values["logit_diff"], atol=2e-5)


def test_what_it_costs_is_known_before():
    m = model("llama")
    base = prompts(N, 12)
    both = PathRuns.of(m, base, prompts(N, 12, 100))
    high, low = (both.estimate(receivers=[name], senders=[(0, 0)]) for name in ("2.0.q", "1.0.q"))
    into_logits = both.estimate(receivers="logits", senders=[(0, 0)])
    assert into_logits.flops < min(high.flops, low.flops) and max(high.flops, low.flops) < high.reference_flops
    assert high.seconds is not None and "about" in str(high)
    cells = sites(m, "q")
    once, thrice = (estimate_cells(m, base, cells, controls=c) for c in (0, 2))
    assert thrice.flops == 3 * once.flops and once.units == 12
    assert estimate_cells(m, base, cells, batch_rows=2).forwards > once.forwards
    assert run("cells", None).cost.to_dict()["flops"] > run("heads", None).cost.to_dict()["flops"]
    with pytest.raises(InputError, match="at least one metric"):
        patch_cells(m, base, base, cells, {})
