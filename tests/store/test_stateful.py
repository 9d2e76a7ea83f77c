"""A store beside a dictionary: whatever is done in whatever order, both say the same."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from workbench.errors import NotFound, StoreError
from workbench.store import Store

NAMES = st.sampled_from(["a", "a/b", "c"])
VALUES = st.integers(0, 3)
TAGS = st.sampled_from(["paper", "old"])


class Shelf(RuleBasedStateMachine):
    """``model[name]`` is the list of values by version (None once removed); ``tags[name]`` maps tag to version."""

    def __init__(self):
        super().__init__()
        self.root = Path(tempfile.mkdtemp()) / "store"
        self.model: dict[str, list[int | None]] = {}
        self.tags: dict[str, dict[str, int]] = {}

    def teardown(self):
        shutil.rmtree(self.root.parent)

    @initialize()
    def open(self):
        self.store = Store(self.root, durable=False)

    @rule()
    def reopen(self):
        self.open()

    def latest(self, name):
        live = [i for i, value in enumerate(self.model.get(name, []), 1) if value is not None]
        return live[-1] if live else None

    @rule(name=NAMES, value=VALUES, force=st.booleans())
    def commit(self, name, value, force):
        latest = self.latest(name)
        same = latest is not None and self.model[name][latest - 1] == value and not force
        with self.store.stage(name, config={"value": value}, force=force, run_key=f"{name}{value}") as out:
            out.bytes("big.bin", bytes([value]) * 66_000)
        assert out.is_new is not same
        if not same:
            self.model.setdefault(name, []).append(value)
        assert out.artifact.version == (latest if same else len(self.model[name]))

    @rule(name=NAMES)
    def abandon(self, name):
        with pytest.raises(ZeroDivisionError), self.store.stage(name) as out:
            out.bytes("big.bin", b"x" * 66_000)
            raise ZeroDivisionError

    @precondition(lambda self: self.model)
    @rule(data=st.data(), tag=TAGS, force=st.booleans())
    def tag(self, data, tag, force):
        name = data.draw(st.sampled_from(sorted(self.model)))
        version = data.draw(st.integers(1, len(self.model[name])))
        standing = self.tags.setdefault(name, {}).get(tag)
        if self.model[name][version - 1] is None:
            with pytest.raises(NotFound):
                self.store.tag(f"{name}@v{version}", tag, force=force)
        elif standing not in (None, version) and not force:
            with pytest.raises(StoreError):
                self.store.tag(f"{name}@v{version}", tag)
        else:
            self.store.tag(f"{name}@v{version}", tag, force=force)
            self.tags[name][tag] = version

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data):
        name = data.draw(st.sampled_from(sorted(self.model)))
        version = data.draw(st.integers(1, len(self.model[name])))
        if version in self.tags.get(name, {}).values():
            with pytest.raises(StoreError, match="tagged"):
                self.store.remove(f"{name}@v{version}", why="test")
        else:
            self.store.remove(f"{name}@v{version}", why="test")
            self.model[name][version - 1] = None

    @precondition(lambda self: any(self.tags.values()))
    @rule(data=st.data())
    def untag(self, data):
        name, tag = data.draw(st.sampled_from([(n, t) for n, tags in sorted(self.tags.items()) for t in tags]))
        self.store.untag(name, tag)
        del self.tags[name][tag]

    @rule()
    def collect(self):
        self.store.gc(age=0)

    @rule()
    def check(self):
        assert self.store.fsck(repair=True) == []

    @invariant()
    def agrees(self):
        assert self.store.names() == sorted(name for name in self.model if self.latest(name))
        assert {art.name: art.version for art in self.store.ls()} == {n: self.latest(n) for n in self.store.names()}
        for name, values in self.model.items():
            log = self.store.log(name)
            assert [None if art.removed else art.config["value"] for art in reversed(log)] == values
            assert self.store.tags(name) == self.tags.get(name, {})
            for art in log:
                if not art.removed:
                    assert art.bytes("big.bin") == bytes([art.config["value"]]) * 66_000
            for value in range(4):
                found = self.store.find(name, run_key=f"{name}{value}")
                expected = [i for i, held in enumerate(values, 1) if held == value]
                assert (found.version if found else None) == (expected[-1] if expected else None)


TestShelf = Shelf.TestCase
TestShelf.settings = settings(
    max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
