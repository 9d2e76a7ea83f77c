"""Trials of the store: many writers, kills, a broken disk, a jumping clock, two versions of the package."""

from __future__ import annotations

import errno
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from tests.store import workers
from tests.store.faults import failing
from tests.torture.tally import Tally
from workbench.errors import StoreError
from workbench.store import Store

ROOT = Path(__file__).parents[2]
WRITERS = 8


def _start(command: str, root: Path, name: str, seed: int, n: int, *, path: Path = ROOT) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-m", "tests.store.workers", command, str(root), name, str(seed), str(n)]
    return subprocess.Popen(arguments, cwd=path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _whole_lines(text: str) -> list[str]:
    """Without a last line that a kill cut off."""
    return [line for line in text.split("\n")[:-1] if line]


def _missing(store: Store, acknowledged: dict[str, list[str]]) -> int:
    lost = 0
    for name, lines in acknowledged.items():
        there = {f"{art.version} {art.digest}" for art in store.log(name)} if lines else set()
        lost += len(set(lines) - there)
    return lost


def _judge(store: Store, tally: Tally, acknowledged: dict[str, list[str]]) -> None:
    """Every acknowledged version is there, whole, and nothing else is wrong."""
    tally.lost += _missing(store, acknowledged)
    tally.bad += [str(problem) for problem in store.fsck()]
    for art in (version for name in acknowledged for version in store.log(name)):
        for payload in art.files():
            art.bytes(payload, verify=True)
            tally.did("payloads read back")
    store.gc(age=0)
    tally.bad += [f"left in staging: {left.name}" for left in (store.root / ".store" / "staging").glob("*")]


def writers(folder: Path, seconds: float, seed: int) -> Tally:
    """Eight processes write to one store; one is killed now and then, garbage is collected all along."""
    rng, tally, store = random.Random(seed), Tally(), Store(folder / "store")
    names = ["a/b", "c"]
    acknowledged: dict[str, list[str]] = {name: [] for name in names}

    def launch(number: int) -> tuple[str, subprocess.Popen[str]]:
        name = names[number % 2]
        return name, _start("write", store.root, name, rng.randrange(1, 10**6), 0)

    def end(name: str, process: subprocess.Popen[str]) -> None:
        process.send_signal(signal.SIGKILL)
        out, _ = process.communicate()
        acknowledged[name] += _whole_lines(out)

    running = [launch(number) for number in range(WRITERS)]
    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        time.sleep(rng.random() * 0.3)
        number = rng.randrange(WRITERS)
        end(*running[number])
        tally.broke("kill -9")
        running[number] = launch(number)
        store.gc(age=0)
        tally.did("collections")
    for name, process in running:
        end(name, process)
        tally.broke("kill -9")
    tally.did("commits acknowledged", sum(map(len, acknowledged.values())))
    tally.load["writers"] = WRITERS
    _judge(store, tally, acknowledged)
    return tally


def _versions(store: Store) -> set[str]:
    return {f"{art.ref} {art.digest}" for name in store.names() for art in store.log(name)}


def disk(folder: Path, seconds: float, seed: int) -> Tally:
    """A full, failing or read-only disk at a random call of a random action, until time is up."""
    rng, tally = random.Random(seed), Tally()
    kinds = {"disk full": (errno.ENOSPC, False), "I/O error": (errno.EIO, False), "read-only": (errno.EROFS, True)}
    stop, number = time.monotonic() + seconds, 0
    while time.monotonic() < stop:
        number += 1
        root = folder / str(number)
        label, before, action = rng.choice(workers.SCENARIOS)
        before(Store(root, durable=False))
        held = _versions(Store(root))
        kind = rng.choice(list(kinds))
        error, sticky = kinds[kind]
        with failing(rng.randint(1, 60), error=error, sticky=sticky):
            try:
                action(Store(root))
                tally.did("actions that went through")
            except StoreError as caught:
                tally.broke(kind)
                if "\n" in str(caught):
                    tally.bad.append(f"{label}: {caught}")
        gone = held - _versions(Store(root))
        tally.lost += len(gone) if label != "remove" else 0
        try:
            workers.check_survivor(Store(root, durable=False))
        except AssertionError as caught:
            tally.bad.append(f"{label} after {kind}: {caught}")
        shutil.rmtree(root)
    return tally


def clock(folder: Path, seconds: float, seed: int) -> Tally:
    """The clock jumps by up to twenty years, both ways, between and inside commits; garbage is collected meanwhile."""
    rng, tally, store = random.Random(seed), Tally(), Store(folder / "store", durable=False)
    acknowledged: dict[str, list[str]] = {"a/b": []}
    real, shift = time.time, [0.0]
    stop, number = time.monotonic() + seconds, 0
    with mock.patch.object(time, "time", lambda: real() + shift[0]):
        while time.monotonic() < stop:
            number += 1
            with store.stage("a/b", config={"number": number}) as out:
                out.bytes("own.bin", number.to_bytes(8, "big") * (workers.BIG // 8))
                shift[0] = rng.uniform(-1, 1) * 20 * 365 * 86400
                tally.broke("clock jumps")
                store.gc()  # this very commit is under way, and may look decades old
                out.json("summary", {"number": number})
            acknowledged["a/b"].append(f"{out.artifact.version} {out.artifact.digest}")
            tally.did("commits acknowledged")
    _judge(store, tally, acknowledged)
    versions = [int(line.split()[0]) for line in acknowledged["a/b"]]
    if versions != list(range(1, len(versions) + 1)):
        tally.bad.append("versions are not numbered in the order of their commits")
    return tally


@contextmanager
def _another_version(folder: Path) -> Any:
    """A copy of the package whose code is not quite the same."""
    copy = folder / "package"
    ignore = shutil.ignore_patterns("data", "__pycache__", "*.safetensors")
    shutil.copytree(ROOT / "workbench", copy / "workbench", ignore=ignore)
    shutil.copytree(ROOT / "tests" / "store", copy / "tests" / "store", ignore=ignore)
    (copy / "tests" / "__init__.py").write_text("")
    (copy / "workbench" / "store" / "more.py").write_text("")
    yield copy


def two_versions(folder: Path, seconds: float, seed: int) -> Tally:
    """Two versions of the package write to one store by turns and at once; each reads all of it."""
    rng, tally, store = random.Random(seed), Tally(), Store(folder / "store")
    acknowledged: dict[str, list[str]] = {"a/b": []}
    golden = ROOT / "tests" / "data" / "store_format_1"
    stop = time.monotonic() + seconds
    with _another_version(folder) as other:
        while not tally.load or time.monotonic() < stop:
            both = [_start("write", store.root, "a/b", rng.randrange(1, 10**6), 5, path=path) for path in (ROOT, other)]
            for process in both:
                out, err = process.communicate(timeout=120)
                if process.returncode:
                    tally.bad.append(err.strip().splitlines()[-1])
                acknowledged["a/b"] += _whole_lines(out)
            tally.did("pairs of writers")
    tally.did("commits acknowledged", len(acknowledged["a/b"]))
    _judge(store, tally, acknowledged)
    if golden.exists():
        copy = folder / "golden"
        shutil.copytree(golden, copy)
        old = Store(copy)
        before = {art.ref: art.digest for art in old.ls()}
        workers.commit(old, "new/one", 1)
        tally.lost += len(before.items() - {art.ref: art.digest for art in Store(copy).ls()}.items())
        tally.did("artifacts of format 1 read", len(before))
    return tally


def read_only(folder: Path, seconds: float, seed: int) -> Tally:
    """A store nobody may write to: everything can be read, every write is one sentence and leaves nothing."""
    tally, store = Tally(), Store(folder / "store")
    workers.commit(store, "a/b", 1)
    before = sorted(store.root.rglob("*"))
    writes = {
        "commit": lambda: workers.commit(store, "a/b", 2),
        "tag": lambda: store.tag("a/b", "paper"),
        "remove": lambda: store.remove("a/b@v1", why="test"),
        "push's other side": lambda: workers.commit(store, "c", 3),
    }
    changing = ("write", "mkdir", "rename", "link", "replace", "unlink", "rmdir", "chmod")
    for name, write in writes.items():
        with failing(1, error=errno.EROFS, sticky=True, only=changing):  # root may write anywhere, so it is played
            try:
                write()
                tally.bad.append(f"{name} went through")
            except StoreError as caught:
                tally.broke("refused writes")
                tally.bad += [str(caught)] if "\n" in str(caught) else []
            store.get("a/b").bytes("own.bin", verify=True)
            tally.did("payloads read back")
    if before != sorted(store.root.rglob("*")):
        tally.bad.append("a refused write left something")
    return tally


def machine(folder: Path, seconds: float, seed: int) -> Tally:
    """The store's operations in any order beside a dictionary (`tests/store/test_stateful.py`), until time is up."""
    from hypothesis import HealthCheck, Phase, settings
    from hypothesis.stateful import run_state_machine_as_test

    from tests.store.test_stateful import Shelf

    tally = Tally()
    stop = time.monotonic() + seconds
    quick = settings(
        max_examples=10,
        stateful_step_count=30,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=tuple(HealthCheck.__members__.values()),
    )
    while not tally.load or time.monotonic() < stop:
        try:
            run_state_machine_as_test(Shelf, settings=quick)
        except AssertionError as caught:
            tally.bad.append(f"store and dictionary differ: {str(caught)[:300]}")
        tally.did("sequences of up to 30 operations", quick.max_examples)
    return tally
