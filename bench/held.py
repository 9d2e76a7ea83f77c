"""What a block of code takes: seconds, and memory above what was in use before it.

On the CPU that is the process's anonymous memory, sampled every 3 ms from another thread: pages mapped from a file are
left out, since the system may drop them and read them again. On a GPU it is what torch allocated, to the byte.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Held:
    """What a block took: seconds by the clock and of all threads, the most bytes above what was in use before, and what
    was still in use after it."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak: int = 0
    left: int = 0

    @property
    def text(self) -> str:
        return f"{self.seconds:.1f} s ({self.cpu_seconds:.1f} CPU s), {self.peak / 2**30:.2f} GiB above"


@contextmanager
def held(device: str) -> Iterator[Held]:
    """Measure the block; the fields are filled when it ends, whatever ends it."""
    found = Held()
    _tidy()
    before = _allocated(device)
    highest, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(0.003):
            highest[0] = max(highest[0], _allocated("cpu"))

    watcher = threading.Thread(target=watch)
    if device == "cpu":
        watcher.start()
    else:
        _cuda().reset_peak_memory_stats()
    started, busy = time.perf_counter(), time.process_time()
    try:
        yield found
    finally:
        if device != "cpu":
            _cuda().synchronize()
            highest[0] = _cuda().max_memory_allocated()
        found.seconds, found.cpu_seconds = time.perf_counter() - started, time.process_time() - busy
        done.set()
        if device == "cpu":
            watcher.join()
        found.peak = max(highest[0], _allocated(device)) - before
        _tidy()
        found.left = _allocated(device) - before


def _allocated(device: str) -> int:
    if device != "cpu":
        return _cuda().memory_allocated()
    resident, mapped = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    return (resident - mapped) * os.sysconf("SC_PAGE_SIZE")


def _tidy() -> None:
    """Give back what is free, so that the next measurement starts from what is in use."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _cuda():
    import torch

    return torch.cuda
