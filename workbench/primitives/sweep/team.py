"""Several processes at one sweep: each computes the parts that nobody has, and all end with every part.

1. Every member runs the whole analysis, with the same folder for finished parts.
2. It computes its own share of the parts (every `of`-th) that are not there yet.
3. Then it waits for the others' parts for as long as they keep coming; when none has come for twice the time of its own
   slowest part, it computes a missing one itself, from the far end of their list, and looks again.

There are no locks and no messages: a part is a file that is whole or absent, the same bytes whoever made it, so that a
member which dies or never starts costs time and nothing else, and the merged sweep equals that of one process bit for
bit (same machine, same threads per process). It never knows what a part holds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from workbench.errors import InputError

Key = tuple[int, int]  # chunk of prompts, layer
Part = TypeVar("Part")

_PATIENCE = 2.0  # times the slowest own part
_LEAST = 0.2  # seconds; also how long who has no part of its own waits
_POLL = 0.02


@dataclass(frozen=True)
class Team:
    """Member `member` (from 0) of `of` processes that share the finished parts below `root`."""

    root: Path
    member: int
    of: int

    def owns(self, number: int, key: Key) -> bool:
        """Whether part `number` is this member's own; shifted by chunk, because low layers cost more."""
        return (number + key[0]) % self.of == self.member


_CURRENT: ContextVar[Team | None] = ContextVar("team", default=None)


def current() -> Team | None:
    """The team this process works in, if any."""
    return _CURRENT.get()


@contextmanager
def teamwork(root: str | Path, member: int, of: int) -> Iterator[Team]:
    """Inside the block, sweeps with a checkpoint share their parts with the other members.

    Parts stay on disk when a sweep is complete, since others may still need them: whoever formed the team removes
    `root` in the end.

    Raises:
        InputError: no such member.
    """
    if not 0 <= member < of:
        raise InputError(f"Member {member} of {of} does not exist; members are numbered from 0 to {of - 1}.")
    token = _CURRENT.set(Team(Path(root), member, of))
    try:
        yield Team(Path(root), member, of)
    finally:
        _CURRENT.reset(token)


def together(
    team: Team,
    keys: Sequence[Key],
    load: Callable[[Key], Part | None],
    make: Callable[[Key], Part],
) -> Iterator[tuple[Key, Part]]:
    """Every part once, in the order in which they come to be had; `make` also stores what it makes."""
    slowest = 0.0
    others: list[Key] = []
    for number, key in enumerate(keys):
        if not team.owns(number, key):
            others.append(key)
            continue
        part = load(key)
        if part is None:
            started = time.monotonic()
            part = make(key)
            slowest = max(slowest, time.monotonic() - started)
        yield key, part
    others.reverse()
    last_news = time.monotonic()
    while others:
        come = [(key, part) for key in others if (part := load(key)) is not None]
        if come:
            arrived = {key for key, _ in come}
            others = [key for key in others if key not in arrived]
            last_news = time.monotonic()
            yield from come
        elif time.monotonic() - last_news < max(_LEAST, _PATIENCE * slowest):
            time.sleep(_POLL)
        else:
            key = others.pop(0)
            yield key, make(key)
