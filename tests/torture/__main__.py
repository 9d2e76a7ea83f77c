"""`python -m tests.torture [--seconds 60] [--seed N] [TRIAL ...]`: every trial in turn, its figures, the verdict."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.torture.fuzz_guided import is_there
from tests.torture.trials import GUIDED, TRIALS

HEAD = ("trial", "seconds", "load held", "faults injected", "inputs tried", "lost", "bad")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    every = {**TRIALS, **GUIDED}
    parser.add_argument("trials", nargs="*", metavar="TRIAL", help=f"default all: {', '.join(every)}")
    parser.add_argument("--seconds", type=float, default=60, help="of each trial; `writers` takes ten times as long")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    args = parser.parse_args()
    unknown = sorted(set(args.trials) - set(every))
    if unknown:
        parser.error(f"no trial {unknown[0]!r}; there are {', '.join(every)}")
    print(f"seed {args.seed}", flush=True)
    print("  ".join(HEAD))
    failed = False
    skipped = 0
    for name in args.trials or every:
        if name in GUIDED and not is_there():
            skipped += 1
            continue
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="torture-") as folder:
            tally = every[name](Path(folder), args.seconds * (10 if name == "writers" else 1), args.seed)
        print("  ".join((name, f"{time.monotonic() - started:.0f} s", *tally.row())), flush=True)
        for problem in tally.bad[:5]:
            print(f"    {problem}", flush=True)
        failed |= tally.failed
    if skipped:
        print(f"skipped: {skipped} trials of guided fuzzing, for which atheris is not installed (pip install atheris)")
    print("failed" if failed else "nothing lost, nothing malformed accepted, no traceback")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
