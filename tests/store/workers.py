"""Processes that write to a store, for the tests to race and to kill: ``python workers.py COMMAND ROOT NAME SEED N``.

Imports nothing heavy, so that hundreds can be started. Each acknowledged commit is one line on standard output,
written only after the store said it exists.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

from tests.store.faults import failing
from workbench.errors import StoreError
from workbench.store import Store

BIG = 66_000  # above the 64 KiB from which payloads are shared


def commit(store: Store, name: str, number: int, *, shared: int = 0) -> str:
    """One artifact with a small payload, a large one of its own and a large one that others have too."""
    with store.stage(name, config={"number": number}, summary={"number": number}) as out:
        out.json("summary", {"number": number})
        out.bytes("own.bin", number.to_bytes(8, "big") * (BIG // 8))
        out.bytes("shared.bin", bytes([shared % 256]) * BIG)
    return f"{out.artifact.version} {out.artifact.digest}"


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def write(root: str, name: str, seed: int, n: int) -> None:
    """Commit ``n`` different artifacts, or for ever if ``n`` is 0."""
    store, number = Store(root), seed * 1_000_000
    while n == 0 or number < seed * 1_000_000 + n:
        number += 1
        say(commit(store, name, number, shared=number % 3))


def churn(root: str, name: str, seed: int, n: int) -> None:
    """Remove random versions and collect garbage until told to stop by a closed standard input."""
    store, rng, removed, passes = Store(root), random.Random(seed), 0, 0
    end = time.monotonic() + n
    while time.monotonic() < end:
        store.gc(age=0)
        passes += 1
        versions = [art for art in store.log(name) if not art.removed] if name in store.names() else []
        if len(versions) > 3:
            try:
                store.remove(rng.choice(versions[1:]), why="test")
                removed += 1
            except StoreError as error:
                say(f"error {error}")
    say(f"removed {removed} passes {passes}")


def die_at_every_call(root: str, name: str, seed: int, n: int) -> None:
    """Fork a child for every k; it dies at its k-th call. The parent says how far each scenario went."""
    for label, before, action in SCENARIOS:
        k = 0
        while True:
            k += 1
            folder = Path(root) / f"{label}-{k}"
            store = Store(folder, durable=False)
            before(store)
            pid = os.fork()
            if pid == 0:
                with failing(k):
                    action(Store(folder))
                os._exit(0)
            if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
                break
            check_survivor(Store(folder, durable=False))
        say(f"{label} {k - 1}")


def check_survivor(store: Store) -> None:
    """What must hold after any death or error: sound, complete, collectable, and ready for the next commit."""
    problems = [problem for problem in store.fsck() if problem.kind not in LEFT_BY_HALF_A_REMOVE]
    assert not problems, problems
    numbers = [art.version for art in store.log("a/b")] if "a/b" in store.names() else []
    assert numbers == list(range(len(numbers), 0, -1)), numbers
    for art in store.ls():
        for payload in art.files():
            art.bytes(payload)
    store.gc(age=0)
    staging = store.root / ".store" / "staging"
    assert not staging.exists() or not list(staging.iterdir())
    assert commit(store, "a/b", 777).split()[0] == str(len(numbers) + 1)
    assert not [problem for problem in store.fsck() if problem.kind not in LEFT_BY_HALF_A_REMOVE]
    assert (store.root / "README.md").exists()


LEFT_BY_HALF_A_REMOVE = {"extra"}  # payloads of a version already on record as removed


def nothing(store: Store) -> None:
    """An absent store."""


def one_version(store: Store) -> None:
    commit(store, "a/b", 1)


def two_tagged(store: Store) -> None:
    commit(store, "a/b", 1)
    commit(store, "a/b", 2)
    store.tag("a/b@v1", "paper")


SCENARIOS = [
    ("first-commit", nothing, lambda store: commit(store, "a/b", 1)),
    ("second-commit", one_version, lambda store: commit(store, "a/b", 2)),
    ("same-again", one_version, lambda store: commit(store, "a/b", 1)),
    ("tag", two_tagged, lambda store: store.tag("a/b", "new")),
    ("move-tag", two_tagged, lambda store: store.tag("a/b", "paper", force=True)),
    ("remove", two_tagged, lambda store: store.remove("a/b@v2", why="test")),
    ("gc", two_tagged, lambda store: store.gc(age=0)),
]
COMMANDS = {"write": write, "churn": churn, "die": die_at_every_call}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
