"""Several members at one sweep: every part once, no waiting for the dead, the same bits as one process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.primitives.cases import model, prompts
from workbench.errors import InputError
from workbench.primitives.sweep import Readout, Shape, all_heads, default_root, sweep
from workbench.primitives.sweep.team import Key, Team, current, teamwork, together

N = 5


def run(folder=None, **options):
    """A sweep in several chunks and batches, one part per chunk and layer."""
    m = model("llama")
    budget = 2 * 2 * Shape.of(m).row_bytes(12, 4)
    metric = Readout("logit_diff", torch.arange(5, 5 + N), torch.arange(15, 15 + N))
    chosen = {"units": all_heads(m), "edit": "zero", "controls": 1, "budget": budget, **options}
    return sweep(m, prompts(N, 12), metric=metric, checkpoint=folder, **chosen)


def keys(chunks: int, layers: int) -> list[Key]:
    return [(chunk, layer) for chunk in range(chunks) for layer in range(layers)]


@given(chunks=st.integers(1, 5), layers=st.integers(1, 6), of=st.integers(1, 7))
def test_every_part_has_exactly_one_owner(tmp_path_factory, chunks, layers, of):
    members = [Team(tmp_path_factory.getbasetemp(), member, of) for member in range(of)]
    for number, key in enumerate(keys(chunks, layers)):
        assert sum(member.owns(number, key) for member in members) == 1


@settings(max_examples=15, deadline=None)
@given(
    layers=st.integers(1, 5),
    of=st.integers(1, 4),
    alive=st.sets(st.integers(0, 3), min_size=1),
    pause=st.sampled_from([0.0, 0.001]),
)
def test_whoever_lives_ends_with_every_part(tmp_path_factory, layers, of, alive, pause):
    """Members as threads over one dict instead of one folder; those not `alive` never start."""
    shelf: dict[Key, str] = {}
    made: list[Key] = []
    got: dict[int, list[Key]] = {}

    def make(key: Key) -> str:
        time.sleep(pause)
        made.append(key)
        return shelf.setdefault(key, f"part {key}")

    def work(member: int) -> None:
        team = Team(tmp_path_factory.getbasetemp(), member, of)
        found = list(together(team, keys(2, layers), shelf.get, make))
        assert all(part == f"part {key}" for key, part in found)
        got[member] = [key for key, _ in found]

    workers = sorted({member % of for member in alive})
    threads = [threading.Thread(target=work, args=(member,)) for member in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == workers
    for found in got.values():
        assert sorted(found) == keys(2, layers), "each part once"
    assert len(made) <= len(keys(2, layers)) * len(workers)


def test_the_merged_sweep_is_that_of_one_process(tmp_path):
    whole = run()
    with teamwork(tmp_path, 0, 2):
        assert default_root() == tmp_path
        alone = run(tmp_path)  # the other never comes
    stamps = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*/*.safetensors")}
    assert stamps, "a team's parts stay"
    with teamwork(tmp_path, 1, 2):
        late = run(tmp_path)
    assert stamps == {file: file.stat().st_mtime_ns for file in tmp_path.glob("*/*.safetensors")}, "nothing was redone"
    for found in (alone, late):
        for name in ("values", "base", "controls"):
            assert np.array_equal(getattr(found, name), getattr(whole, name), equal_nan=True), name
    assert current() is None


def test_two_at_once_share_the_work(tmp_path):
    """Two members in two threads: together they make few more parts than there are."""
    calls: dict[int, int] = {0: 0, 1: 0}
    shelf: dict[Key, int] = {}
    barrier = threading.Barrier(2)

    def member(number: int) -> Callable[[], None]:
        def make(key: Key) -> int:
            time.sleep(0.02)
            calls[number] += 1
            return shelf.setdefault(key, number)

        def work() -> None:
            barrier.wait()
            assert len(list(together(Team(tmp_path, number, 2), keys(1, 12), shelf.get, make))) == 12

        return work

    threads = [threading.Thread(target=member(number)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert min(calls.values()) >= 5 and sum(calls.values()) <= 14


def test_a_member_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(InputError, match="Member 2 of 2"), teamwork(tmp_path, 2, 2):
        pass
