"""Places for the tests of remote stores: in memory, on disk, an S3 server, and protocols that fail at a chosen call."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec.core

from workbench.store import Store
from workbench.store.remote import Transfer

CALLS = ("find", "cat_file", "cat", "open", "get_file", "pipe_file", "put_file", "exists")
BIG = 70_000


class Died(BaseException):
    """The process is gone: nothing may catch this."""


def place(kind: str, folder: Path) -> str:
    """The address of an empty place of that kind."""
    if kind == "s3":
        return f"s3://lab/{uuid.uuid4().hex}"
    return f"memory://{uuid.uuid4().hex}/lab" if kind == "memory" else f"file://{folder / 'far'}"


def fill(folder: Path, name: str = "a/b", numbers: tuple[int, ...] = (1, 2), tag: str | None = None) -> Store:
    """A local store with a version for every number; the last is tagged."""
    store = Store(folder, durable=False)
    for number in numbers:
        with store.stage(name, config={"number": number}, run_key=f"key{number}", summary={"number": number}) as out:
            out.table("heads", {"layer": [0, 1], "head": [0, 0], "score": [float(number), 0.5]})
            out.bytes("big.bin", number.to_bytes(7, "big") * (BIG // 7))
    if tag:
        store.tag(f"{name}@v{len(numbers)}", tag)
    return store


def contents(store: Store) -> dict[str, set[str]]:
    """Name -> digests of its versions, every payload read and checked."""
    found: dict[str, set[str]] = {}
    for name in store.names():
        for art in store.log(name):
            assert sum(len(art.bytes(file, verify=True)) for file in art.files()) > BIG
            found.setdefault(name, set()).add(art.digest)
    return found


def push_all(store: Store, url: str, **options: Any) -> list[Transfer]:
    return store.push(None, url, **options)


def pull_all(store: Store, url: str, **options: Any) -> list[Transfer]:
    return store.pull(None, url, **options)


class Through:
    """A file system of fsspec whose calls go through `meddle(number, name, arguments, real)`."""

    def __init__(self, real: Any, meddle: Callable[..., Any]) -> None:
        self._real, self._meddle = real, meddle

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._real, name)
        if name not in CALLS:
            return value
        return lambda *args, **kwargs: self._meddle(name, args, kwargs, value)


@contextmanager
def meddling(meddle: Callable[..., Any]) -> Iterator[None]:
    """Every file system opened inside goes through `meddle`."""
    real = fsspec.core.url_to_fs

    def url_to_fs(url: str, **options: Any) -> tuple[Any, str]:
        fs, root = real(url, **options)
        return Through(fs, meddle), root

    fsspec.core.url_to_fs = url_to_fs
    try:
        yield
    finally:
        fsspec.core.url_to_fs = real


@contextmanager
def dying(at: int, *, torn: bool) -> Iterator[list[str]]:
    """Call number `at` kills the process; with `torn`, a write leaves half of its bytes. Yields the calls made."""
    made: list[str] = []

    def meddle(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], real: Callable[..., Any]) -> Any:
        made.append(name)
        if len(made) == at:
            if torn and name == "pipe_file":
                real(args[0], args[1][: len(args[1]) // 2], **kwargs)
            elif torn and name == "put_file":
                half = Path(f"{args[0]}.half")
                half.write_bytes(Path(args[0]).read_bytes()[:-1] + b"?")  # the right size, the wrong bytes
                real(str(half), args[1])
                half.unlink()
            raise Died
        return real(*args, **kwargs)

    with meddling(meddle):
        yield made
