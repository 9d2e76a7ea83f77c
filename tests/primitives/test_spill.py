"""Activations on disk are the activations, to the bit, and the budget holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny import tiny
from workbench.errors import InputError
from workbench.primitives.capture import capture, names
from workbench.primitives.spill import Spill


def tokens() -> torch.Tensor:
    return torch.randint(4, 64, (2, 20), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_spilled_activations_equal_kept_ones_bit_for_bit(arch: str, dtype: torch.dtype, tmp_path: Path):
    model = tiny(arch, dtype=dtype)
    wanted = [*names(model, "z"), *names(model, "pattern"), *names(model, "resid_pre")]
    kept = capture(model, tokens(), wanted)
    one = kept[wanted[0]].numel() * kept[wanted[0]].element_size()
    for budget in (0, one, 10**9):
        spill = Spill(budget, tmp_path / str(budget))
        found = capture(model, tokens(), wanted, spill=spill)
        assert all(torch.equal(found[name], kept[name]) for name in wanted)
        assert spill.held <= budget
        assert len(spill.files) == {0: len(wanted), one: len(wanted) - 1, 10**9: 0}[budget]


def test_one_spill_serves_many_calls_under_one_budget(tmp_path: Path):
    model, spill = tiny("llama"), Spill(0, tmp_path)
    first = capture(model, tokens(), names(model, "z"), spill=spill)
    second = capture(model, tokens().flip(1), names(model, "z"), spill=spill)
    assert len(spill.files) == 2 * model.n_layers
    assert not torch.equal(*(found[names(model, "z")[0]] for found in (first, second)))


def test_a_folder_of_ones_own_stays_and_a_temporary_one_goes(tmp_path: Path):
    model = tiny("llama")
    mine = Spill(0, tmp_path)
    capture(model, tokens(), names(model, "z"), spill=mine)
    temporary = Spill(0)
    found = capture(model, tokens(), names(model, "z"), spill=temporary)
    folder = temporary.folder
    del temporary
    assert folder.exists()  # a tensor still lies there
    value = float(next(iter(found.values())).sum())
    assert value == value
    del found
    assert not folder.exists()
    assert len(list(tmp_path.iterdir())) == model.n_layers


def test_trouble_with_the_disk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match="below zero"):
        Spill(-1)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be spilled to"):
        Spill(0, tmp_path / "file" / "below")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("workbench.primitives.spill.save_file", full)
    with pytest.raises(InputError, match="No space left on device"):
        Spill(0, tmp_path).keep(torch.zeros(3))
