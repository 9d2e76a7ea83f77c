"""Coverage-guided fuzzing of what reads: `python -m tests.torture.fuzz_guided [--seconds 60] [TARGET ...]`.

Mutation alone (`inputs.py`) tries what we thought of; here atheris (libFuzzer) watches which lines an input reaches and
goes on from those that reach new ones. Every target runs in a process of its own, because libFuzzer owns the one it is
in, and leaves its figures in a file. Needs `pip install atheris` (Linux; not among our extras); `make torture` says so
where it is missing.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.torture.tally import Tally

ROOT = Path(__file__).parents[2]
NAMES = ("specs", "manifests", "headers", "autoencoders", "tables", "sweeps", "references", "paths", "jobs")
WATCHED = ["workbench", "yaml", "csv"]  # packages whose lines count as reached
LARGEST = 1 << 14
SLOWEST = 20  # seconds for one input, after which it counts as hanging


def is_there() -> bool:
    """Whether atheris is installed."""
    return importlib.util.find_spec("atheris") is not None


def guided(name: str) -> Callable[[Path, float, int], Tally]:
    """The trial of one target, as `trials.TRIALS` holds them."""

    def trial(folder: Path, seconds: float, seed: int) -> Tally:
        tally, figures = Tally(), folder / "figures.json"
        command = [sys.executable, "-m", "tests.torture.fuzz_guided", "--child", str(folder), str(seconds), str(seed)]
        done = subprocess.run([*command, name], cwd=ROOT, capture_output=True, text=True, check=False)
        if figures.exists():
            found = json.loads(figures.read_text())
            tally.inputs, tally.refused, tally.harmless = found["inputs"], found["refused"], found["harmless"]
            tally.bad += found["bad"]
        reached = re.findall(r"cov: (\d+)", done.stderr)
        if reached:
            tally.did("branches reached", int(reached[-1]))
        if done.returncode or not figures.exists():  # hung, out of memory, or killed by what it read
            tally.bad.append(f"the process ended with {done.returncode}: {done.stderr[-1500:]}")
        return tally

    return trial


class Harness:
    """Counts what became of the inputs, and keeps one example of each way to fail."""

    def __init__(self, folder: Path, read: Callable[[bytes], Any]) -> None:
        self.file, self.read = folder / "figures.json", read
        self.inputs = self.refused = self.harmless = 0
        self.bad: dict[str, str] = {}
        self.written = 0.0

    def __call__(self, data: bytes) -> None:
        from workbench.errors import WorkbenchError

        self.inputs += 1
        try:
            wrong = self.read(data)
        except WorkbenchError as error:
            self.refused += 1
            if "\n" in str(error) or not str(error):
                self.keep("not one sentence", f"{str(error)[:200]!r}", data)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a library in Rust panics with one of its own
            where = [f"{f.filename}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)]
            ours = [place for place in where if "/workbench/" in place] or where
            self.keep(f"{type(error).__name__} at {ours[-1]}", f"{type(error).__name__}: {str(error)[:200]}", data)
        else:
            self.harmless += 1
            if wrong:
                self.keep(str(wrong)[:40], str(wrong), data)
        if time.monotonic() - self.written > 1:
            self.write()

    def keep(self, kind: str, what: str, data: bytes) -> None:
        if kind not in self.bad:
            self.bad[kind] = f"{kind}: {what}: {data[:600]!r}"
            self.write()

    def write(self) -> None:
        self.written = time.monotonic()
        names = ("inputs", "refused", "harmless")
        figures = {**{name: getattr(self, name) for name in names}, "bad": list(self.bad.values())}
        temp = self.file.with_suffix(".new")
        temp.write_text(json.dumps(figures))
        temp.replace(self.file)


def child(folder: Path, seconds: float, seed: int, name: str) -> None:
    """Fuzz one target until time is up; never returns."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=WATCHED, enable_loader_override=False):
        from tests.torture import targets

        target = targets.TARGETS[name](folder)
        harness = Harness(folder, target.read)
        for data in target.seeds:  # imports what is imported late
            harness(data)
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, data in enumerate(target.seeds):
        (corpus / str(number)).write_bytes(data)
    words = folder / "words"
    words.write_text("".join(f'"{word}"\n' for word in target.words))

    def mutated(data: bytes, most: int, number: int) -> bytes:
        rng = random.Random(number)
        if target.shape is not None and rng.random() < 0.5:
            changed = target.shape(rng, data)
            if changed is not None and len(changed) <= most:
                return changed
        return atheris.Mutate(data, most)

    flags = [
        *(f"-max_total_time={max(1, int(seconds))}", f"-max_len={LARGEST}", f"-timeout={SLOWEST}", f"-seed={seed + 1}"),
        *("-rss_limit_mb=3000", f"-dict={words}", f"-artifact_prefix={folder}/"),
    ]
    options: dict[str, Any] = {} if target.shape is None else {"custom_mutator": mutated}
    atheris.Setup(["fuzz", *flags, str(corpus)], harness, **options)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"default all: {', '.join(NAMES)}")
    parser.add_argument("--seconds", type=float, default=60, help="of each target")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--child", nargs=3, metavar=("FOLDER", "SECONDS", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not is_there():
        parser.error("atheris is not installed; pip install atheris")
    unknown = sorted(set(args.targets) - set(NAMES))
    if unknown:
        parser.error(f"no target {unknown[0]!r}; there are {', '.join(NAMES)}")
    if args.child:
        folder, seconds, seed = args.child
        child(Path(folder), float(seconds), int(seed), args.targets[0])
    failed = False
    for name in args.targets or NAMES:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="guided-") as folder:
            tally = guided(name)(Path(folder), args.seconds, args.seed)
        print("  ".join((name, f"{time.monotonic() - started:.0f} s", *tally.row())), flush=True)
        for problem in tally.bad:
            print(f"    {problem}", flush=True)
        failed |= tally.failed
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
