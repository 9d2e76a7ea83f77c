"""The short form of `make torture`: every trial for a moment; nothing lost, nothing malformed accepted."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.torture.mutate import some_bytes, some_value
from tests.torture.trials import GUIDED, TRIALS


@pytest.mark.slow
@pytest.mark.parametrize("name", TRIALS)
def test_a_moment_of_each_trial(name: str, tmp_path: Path):
    tally = TRIALS[name](tmp_path, 2.0, 20261121)
    assert tally.lost == 0
    assert tally.bad == []
    assert tally.load or tally.inputs
    if tally.inputs:
        assert tally.refused > 0


# Inputs that guided fuzzing found and that were mended: what it says now must be a sentence, or right.
FOUND = {
    "headers": [b'{"__metadata__": {"format": null}, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'],
    "autoencoders": [
        b'\x01{"architecture": [], "d_in": 2, "d_sae": 3, "metadata": {"hook_name": "blocks.1.hook_resid_post"}}',
        b'\x01{"architecture": "topk", "activation_fn_kwargs": 7, "d_in": 2, "d_sae": 3, "metadata": {}}',
    ],
    "tables": [b"\x05<thead><tr><th>a<tr>text", b"\x00stderr,\x00ci_lo w,tat\ns."],
    "sweeps": [b"sed=.\n..4\xff\xff\xffF01..4"],
    "manifests": [
        b'{"commit": "\\ud800\\u001b[2J", "summary": {"\\u001b": 1}}',
        b'{"config": {"analysis": "x", "model": ["x"], "data": ["x"], "params": ["x"]}}',
        b'{"producer": {"model": ["x"], "packages": 7, "data": "x", "argv": 3}}',
        b"[" * 10_000,
    ],
}


@pytest.mark.parametrize("name", FOUND)
def test_what_guided_fuzzing_found(name: str, tmp_path: Path, monkeypatch):
    from tests.torture.fuzz_guided import Harness
    from tests.torture.targets import TARGETS

    monkeypatch.chdir(tmp_path)
    target = TARGETS[name](tmp_path)
    harness = Harness(tmp_path, target.read)
    for data in FOUND[name]:
        harness(data)
        if data.startswith(b"{") and name == "manifests":  # the page as it should be, but for this
            page = json.dumps({**json.loads(target.seeds[0]), **json.loads(data)}).encode()
            for more in range(6):  # every command in turn
                harness(page + b" " * more)
    assert harness.bad == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", GUIDED)
def test_what_guided_fuzzing_starts_from(name: str, tmp_path: Path, monkeypatch):
    """Its well-formed inputs are read, and each with its last byte gone is read or refused; no atheris needed."""
    from tests.torture.fuzz_guided import Harness
    from tests.torture.targets import TARGETS

    monkeypatch.chdir(tmp_path)  # targets go where they like
    monkeypatch.setenv("HOME", str(tmp_path))
    target = TARGETS[name.removeprefix("guided-")](tmp_path)
    harness = Harness(tmp_path, target.read)
    for data in target.seeds:
        harness(data)
        harness(data[:-1])
        if target.shape is not None:
            harness(target.shape(random.Random(0), data) or b"")
    assert harness.bad == {}
    assert harness.harmless > 0


def test_guided_fuzzing_finds_what_is_wrong(tmp_path: Path):
    """The harness on readers that fail in each way there is."""
    from tests.torture.fuzz_guided import Harness
    from workbench.errors import InputError

    def read(data: bytes) -> str | None:
        if data == b"lines":
            raise InputError("one\ntwo")
        if data == b"fine":
            raise InputError("one")
        return "a wrong number" if data == b"wrong" else str(1 / len(data))[9:]

    harness = Harness(tmp_path, read)
    for data in (b"lines", b"fine", b"wrong", b"", b"ok", b""):
        harness(data)
    assert (harness.inputs, harness.refused, harness.harmless, len(harness.bad)) == (6, 2, 2, 3)


def test_mutations_change_what_they_are_given():
    rng, data = random.Random(0), bytes(range(200))
    assert sum(some_bytes(rng, data) != data for _ in range(100)) > 95
    tree = {"a": [1, {"b": 2}], "c": "d"}
    assert sum(some_value(rng, tree) != tree for _ in range(100)) > 90
    assert tree == {"a": [1, {"b": 2}], "c": "d"}
