"""Trials of remote stores: people push the same names at once, and their machines die on the way."""

from __future__ import annotations

import random
import shutil
import time
from contextlib import suppress
from pathlib import Path

from tests.store.far import Died, contents, dying, fill, place, pull_all, push_all
from tests.torture.tally import Tally
from workbench.store import Store


def pushes(folder: Path, seconds: float, seed: int) -> Tally:
    """Two people push versions of one name by turns, each cut off at a random call, some with half a file written."""
    rng, tally = random.Random(seed), Tally()
    stop, number = time.monotonic() + seconds, 0
    while time.monotonic() < stop:
        number += 1
        here = folder / str(number)
        here.mkdir(parents=True)
        url = place("memory", here)
        people = [fill(here / f"person{i}", numbers=tuple(rng.sample(range(1, 50), 2)), tag="paper") for i in range(2)]
        for _ in range(rng.randint(1, 6)):
            with suppress(Died), dying(rng.randint(1, 60), torn=rng.random() < 0.5) as calls:
                push_all(rng.choice(people), url)
                tally.did("pushes that ended")
                calls.clear()
            tally.broke("pushes cut off", int(bool(calls)))
        for person in people:
            push_all(person, url)
        wanted = set().union(*(contents(person)["a/b"] for person in people))
        there = contents(Store(url))["a/b"]
        tally.did("versions checked", len(wanted))
        tally.lost += len(wanted - there)
        tally.bad += [f"a version nobody made: {digest}" for digest in there - wanted]
        pulled = Store(here / "pulled", durable=False)
        pull_all(pulled, url)
        tally.lost += len(wanted - contents(pulled)["a/b"])
        tally.bad += [str(problem) for problem in pulled.fsck()]
        shutil.rmtree(here)
    return tally
