"""By hand: one store on a network file system, written through two mounts of it at once (docs/launching.md).

    python -m tests.launch.two_mounts FIRST SECOND SECONDS

Each mount has caches of its own, so that writers of one see late what those of the other did, as on two nodes. First
what the file system itself holds, then eight writers that are killed now and then.
"""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.torture import stores
from tests.torture.tally import Tally
from workbench.store import Store


def promises(first: Path, second: Path) -> dict[str, str]:
    """What a writer through `second` meets where one through `first` was before it, and the other way round."""
    said = {}

    def attempt(name: str, action: Callable[[], Any]) -> None:
        try:
            done = action()
            said[name] = "done" if done is None else str(done)
        except OSError as error:
            said[name] = errno.errorcode.get(error.errno or 0, str(error))

    def here(path: Path, text: str) -> None:
        path.write_text(text)

    for path in (first / "old", first / "new"):
        path.mkdir()
        here(path / "file", path.name)
    (second / "new" / "file").read_text()
    attempt("rename a folder over a full one", lambda: (second / "old").rename(second / "new"))
    (first / "empty").mkdir()
    attempt("rename a folder over an empty one", lambda: (second / "old").rename(second / "empty"))
    here(first / "page", "1")
    (second / "page").read_text()
    here(first / ".page", "22")
    (first / ".page").replace(first / "page")
    begun = time.monotonic()
    while (second / "page").read_text() != "22" and time.monotonic() - begun < 60:
        time.sleep(0.05)
    said["a replaced file is seen through the other mount after"] = f"{time.monotonic() - begun:.1f} s"
    list(second.iterdir())
    here(first / "fresh", "")
    begun = time.monotonic()
    while second / "fresh" not in second.iterdir() and time.monotonic() - begun < 60:
        time.sleep(0.05)
    said["a new name is listed through the other mount after"] = f"{time.monotonic() - begun:.1f} s"
    attempt("exclusive creation of a taken name", lambda: os.close(os.open(second / "fresh", os.O_CREAT | os.O_EXCL)))
    attempt("link", lambda: os.link(second / "page", second / "twin"))
    attempt("link to a taken name", lambda: os.link(second / "page", second / "fresh"))
    attempt("links of one file", lambda: (first / "page").stat().st_nlink)
    for name, path, flags in (("file", "page", os.O_RDWR), ("folder", "empty", os.O_RDONLY)):
        handle = os.open(second / path, flags)
        attempt(f"fsync of a {name}", lambda handle=handle: os.fsync(handle))
        os.close(handle)
    return said


def writers(first: Path, second: Path, seconds: float) -> Tally:
    """`torture writers`, every second writer through the other mount, collections through both."""
    rng, tally = random.Random(0), Tally()
    views = [Store(first / "store"), Store(second / "store")]
    names = ["a/b", "c"]
    acknowledged: dict[str, list[str]] = {name: [] for name in names}

    def launch(number: int) -> tuple[str, Any]:
        name, view = names[number // 2 % 2], views[number % 2]
        return name, stores._start("write", view.root, name, rng.randrange(1, 10**6), 0)

    def end(name: str, process: Any) -> None:
        by_itself = process.poll()
        process.send_signal(signal.SIGKILL)
        out, err = process.communicate()
        acknowledged[name] += stores._whole_lines(out)
        if by_itself is not None:
            tally.bad.append(f"a writer gave up: {err.strip().splitlines()[-1:]}")

    running = [launch(number) for number in range(stores.WRITERS)]
    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        time.sleep(1 + rng.random())
        number = rng.randrange(stores.WRITERS)
        end(*running[number])
        tally.broke("kill -9")
        running[number] = launch(number)
        views[number % 2].gc(age=0)
    for name, process in running:
        end(name, process)
    tally.did("commits acknowledged", sum(map(len, acknowledged.values())))
    time.sleep(30)  # longer than any of the caches
    for view in views:
        stores._judge(view, tally, acknowledged)
    return tally


if __name__ == "__main__":
    one, other = (Path(folder) / f"trial-{os.getpid()}" for folder in sys.argv[1:3])
    one.mkdir()
    print(json.dumps(promises(one, other), indent=1))  # noqa: T201
    found = writers(one, other, float(sys.argv[3]))
    print(found)  # noqa: T201
