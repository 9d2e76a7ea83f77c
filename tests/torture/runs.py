"""A trial of whole runs: `workbench run` killed at any moment, what it left damaged, and then run to the end."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

from tests.torture.leftovers import damaged
from tests.torture.tally import Tally
from workbench.store import Store

ROOT = Path(__file__).parents[2]
SIGNALS = {"kill -9": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}
SPEC = """\
name: ablation/torture
analysis: ablation
model: {path: organism:planted-ioi, dtype: float32, device: cpu}
data: {task: ioi, n: 64}
params: {edit: zero, controls: 8, bootstrap: 100}
"""


def killed(folder: Path, seconds: float, seed: int) -> Tally:
    """A run that was killed on the way and whose finished parts were damaged ends bit for bit as a quiet one does."""
    from workbench.experiments import run

    rng, tally = random.Random(seed), Tally()
    spec = folder / "spec.yaml"
    spec.write_text(SPEC)

    def finish(number: str) -> str:
        with mock.patch.dict(os.environ, WORKBENCH_CACHE=str(folder / number / "cache")):
            return run(spec, store=Store(folder / number / "store"), progress=False).digest

    quiet = finish("quiet")
    number, stop = 0, time.monotonic() + seconds
    while not tally.load or time.monotonic() < stop:
        number += 1
        here = folder / str(number)
        here.mkdir()
        for _ in range(rng.randint(1, 2)):
            name = rng.choice(list(SIGNALS))
            tally.broke(name, _start_and_kill(spec, here, rng, SIGNALS[name]))
            _damage_parts(here / "cache", rng, tally)
            store = Store(here / "store")
            tally.bad += [f"after {name}: {problem}" for problem in store.fsck()]
            tally.lost += any(art.digest != quiet for name in store.names() for art in store.log(name))
        if finish(str(number)) != quiet:
            tally.bad.append(f"another result than that of the quiet run after {number} rounds")
        tally.did("runs finished")
        shutil.rmtree(here)
    return tally


def _start_and_kill(spec: Path, here: Path, rng: random.Random, how: signal.Signals) -> bool:
    """Whether it was killed: while it starts, or once it has left a finished part; not if it ended before."""
    process = subprocess.Popen(
        [sys.executable, "-m", "workbench", "run", str(spec), "--store", str(here / "store")],
        cwd=ROOT,
        env={**os.environ, "WORKBENCH_CACHE": str(here / "cache")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    latest = time.monotonic() + (rng.uniform(0.3, 8) if rng.random() < 0.3 else 60)
    while process.poll() is None and time.monotonic() < latest and not _parts(here / "cache"):
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.2))
    is_alive = process.poll() is None
    process.send_signal(how)
    process.wait()
    return is_alive


def _parts(cache: Path) -> list[Path]:
    return sorted(cache.glob("sweeps/*/*.safetensors"))


def _damage_parts(cache: Path, rng: random.Random, tally: Tally) -> None:
    left = _parts(cache)
    held = [file.read_bytes() for file in left]
    for file in left:
        if rng.random() < 0.5:
            file.write_bytes(damaged(rng, file.read_bytes(), held)[1])
            tally.broke("parts damaged")
