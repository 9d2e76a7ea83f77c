"""A file system that fails on demand: every ``os`` call is counted, and the k-th one dies, or reports an error.

Path methods, ``shutil.rmtree`` and our own code all look the functions up in ``os`` when they call them, so replacing
them there reaches everything. fsync is counted but not performed: these tests are about order, not about the disk.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CALLS = ("open", "write", "fsync", "link", "rename", "replace", "mkdir", "chmod", "unlink", "rmdir", "scandir", "stat")
DIE = -1


class Calls:
    """Counts calls; ``names`` is the trace of (call, first argument as text)."""

    def __init__(self) -> None:
        self.trace: list[tuple[str, str]] = []

    @property
    def count(self) -> int:
        return len(self.trace)


@contextmanager
def failing(at: int = 0, *, error: int = DIE, sticky: bool = False, only: tuple[str, ...] = CALLS) -> Iterator[Calls]:
    """Fail call number ``at`` (1-based; 0 never) with errno ``error`` or by dying; ``sticky``: and every later one."""
    calls = Calls()
    originals = {name: getattr(os, name) for name in CALLS}

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name not in only:
                return real(*args, **kwargs)
            calls.trace.append((name, str(args[0]) if args and isinstance(args[0], (str, Path)) else ""))
            if at and (calls.count == at or (sticky and calls.count > at)):
                if name == "write":  # the disk took half of it
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])
                if error == DIE:
                    os._exit(9)
                raise OSError(error, os.strerror(error), calls.trace[-1][1])
            return None if name == "fsync" else real(*args, **kwargs)

        return call

    for name, real in originals.items():
        replace_call(name, wrap(name, real))
    try:
        yield calls
    finally:
        for name, real in originals.items():
            replace_call(name, real)


def replace_call(name: str, function: Callable[..., Any]) -> None:
    """Put `function` where the ``os`` call is looked up: Python 3.10's pathlib keeps references of its own."""
    setattr(os, name, function)
    kept = getattr(pathlib, "_NormalAccessor", None)
    if name != "open" and name in vars(kept or object):  # its `open` is io's
        setattr(kept, name, staticmethod(function))
