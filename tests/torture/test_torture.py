"""The short form of `make torture`: every trial for a moment; nothing lost, nothing malformed accepted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.torture.mutate import some_bytes, some_value
from tests.torture.trials import TRIALS


@pytest.mark.slow
@pytest.mark.parametrize("name", TRIALS)
def test_a_moment_of_each_trial(name: str, tmp_path: Path):
    tally = TRIALS[name](tmp_path, 2.0, 20261121)
    assert tally.lost == 0
    assert tally.bad == []
    assert tally.load or tally.inputs
    if tally.inputs:
        assert tally.refused > 0


def test_mutations_change_what_they_are_given():
    import random

    rng, data = random.Random(0), bytes(range(200))
    assert sum(some_bytes(rng, data) != data for _ in range(100)) > 95
    tree = {"a": [1, {"b": 2}], "c": "d"}
    assert sum(some_value(rng, tree) != tree for _ in range(100)) > 90
    assert tree == {"a": [1, {"b": 2}], "c": "d"}
