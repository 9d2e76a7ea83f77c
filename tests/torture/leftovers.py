"""Trials of what unfinished work leaves behind: parts of a sweep, records of jobs. Damaged, they count as absent."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

from tests.torture.mutate import some_bytes, some_json
from tests.torture.tally import Tally


def damaged(rng: random.Random, data: bytes, others: list[bytes]) -> tuple[str, bytes]:
    """The bytes with something done to them, and what that was."""
    kind = rng.choice(["changed", "one bit", "cut off", "another's", "zeros", "empty"])
    if kind == "one bit":
        at = rng.randrange(len(data))
        return kind, data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    return kind, {
        "changed": some_bytes(rng, data),
        "cut off": data[: rng.randrange(len(data))],
        "another's": rng.choice(others),
        "zeros": bytes(len(data)),
        "empty": b"",
    }[kind]


def parts(folder: Path, seconds: float, seed: int) -> Tally:
    """Finished parts of a sweep, damaged or in each other's places: what is read back is what was written, or nothing.

    And a whole sweep of a small model over such parts, now and then: the same numbers bit for bit.
    """
    import numpy as np
    import torch

    from tests.primitives.test_sweep_resume import run
    from workbench.primitives.sweep.checkpoint import Checkpoint

    rng, tally = random.Random(seed), Tally()
    torch.manual_seed(seed)
    keys = [(chunk, layer) for chunk in range(3) for layer in range(3)]
    whole = run(None)
    stop, again = time.monotonic() + seconds, 0.0
    while time.monotonic() < stop:
        kept = Checkpoint(folder / "parts", seed)
        made = {key: {"values": torch.randn(4, 3), "controls": torch.randn(2)} for key in keys}
        for key, tensors in made.items():
            kept.save(*key, tensors)
        assert kept.folder is not None
        files = sorted(kept.folder.iterdir())
        held = [file.read_bytes() for file in files]
        for file, data in zip(files, held, strict=True):
            kind, changed = damaged(rng, data, held)
            file.write_bytes(changed)
            tally.broke(kind)
        for key in keys:
            tally.inputs += 1
            found = kept.load(*key)
            if found is None:
                tally.refused += 1
            elif set(found) != set(made[key]) or not all(torch.equal(found[n], made[key][n]) for n in found):
                tally.bad.append(f"part {key} came back as something else")
            else:
                tally.harmless += 1
        if time.monotonic() > again:
            shutil.rmtree(folder / "sweep", ignore_errors=True)
            _leave_parts(folder / "sweep", run)
            left = sorted((folder / "sweep").glob("*/*.safetensors"))
            data = [file.read_bytes() for file in left]
            for file in left:
                file.write_bytes(damaged(rng, file.read_bytes(), data)[1])
            if not np.array_equal(run(folder / "sweep").values, whole.values, equal_nan=True):
                tally.bad.append("a sweep over damaged parts has other numbers")
            tally.did("sweeps over damaged parts")
            again = time.monotonic() + max(seconds / 10, 1)
    return tally


def _leave_parts(folder: Path, run: Any) -> None:
    """A sweep that is killed when it has written three parts."""
    from unittest import mock

    from workbench.primitives.sweep import engine

    honest, written = engine.Checkpoint.save, []

    def dying(self: Any, *args: Any) -> None:
        honest(self, *args)
        written.append(args)
        if len(written) == 3:
            raise KeyboardInterrupt

    with mock.patch.object(engine.Checkpoint, "save", dying):
        try:
            run(folder)
        except KeyboardInterrupt:
            return


def jobs(folder: Path, seconds: float, seed: int) -> Tally:
    """What is beside the store about launched jobs, damaged: no traceback, and nobody's result taken for another's."""
    from workbench.launch import jobs as on_disk
    from workbench.launch.work import work
    from workbench.store import Store

    rng, tally = random.Random(seed), Tally()
    store = Store(folder / "store", durable=False)
    kept = on_disk.Jobs(store)
    for number in (1, 2, 3):
        with store.stage("a/b", config={"number": number}, run_key=f"key{number}") as out:
            out.json("summary", {"number": number})
        job = kept.put(f"key{number}", {"config": {"name": "a/b"}, "shards": 2, "launcher": "local"}, {})
        for task in job.tasks:
            task.prepare()
            task.start()
            task.end("done" if task.member else "failed", ref=f"a/b@v{number}", error="x", cached=False, seconds=1.0)
    files = sorted(file for file in kept.root.rglob("*.json"))
    good = {file: file.read_bytes() for file in files}
    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        changed = rng.sample(files, rng.randint(1, 3))
        for file in changed:
            same = [data for other, data in good.items() if other.name == file.name]
            kind, data = damaged(rng, good[file], same)
            file.write_bytes(data if rng.random() < 0.6 else some_json(rng, json.loads(good[file])))
            tally.broke(kind)
        tally.inputs += 1
        try:
            listed = list(kept)
            tally.refused += len(listed) < 3
            for job in listed:
                _ = job.state(store), job.failure(), [task.last_line() for task in job.tasks]
                made = job.artifact(store)
                if made is not None and made.run_key != job.run_key:
                    tally.bad.append(f"{job.run_key} is said to have made {made.ref}")
            for file in changed:
                if file.name == "job.json" and not on_disk.read(file) and work(str(file.parent), 0) != "failed":
                    tally.bad.append("a worker went on with a damaged record")
        except Exception as caught:
            tally.bad.append(f"{type(caught).__name__}: {str(caught)[:200]}")
        for file, data in good.items():
            file.write_bytes(data)
    return tally
