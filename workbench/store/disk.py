"""The few file operations the store's promises rest on, each doing one thing durably and saying plainly why it failed.

Write a new file, hash and freeze a payload, flush a folder, turn an OSError into one sentence. Nothing here knows what
an artifact is, and nothing here decides when a version exists: that is ``local.py``.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from workbench.errors import StoreError

_CHUNK = 1 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}
_NO_DIR_FSYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}


def write_new(path: Path, data: bytes, *, durable: bool) -> None:
    """Write ``data`` to a file that must not exist yet, and flush it."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)


def freeze(path: Path, *, durable: bool) -> None:
    """Make a finished file read-only and flush it."""
    path.chmod(0o444)
    if durable:
        _flush(path, os.O_RDONLY)


def sync_dir(path: Path, *, durable: bool) -> None:
    """Flush a folder's entries, where the file system can."""
    if durable:
        try:
            _flush(path, os.O_RDONLY)
        except OSError as error:
            if error.errno not in _NO_DIR_FSYNC:
                raise


def _flush(path: Path, flags: int) -> None:
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read(path: Path) -> bytes:
    """All bytes of a regular file; a symbolic link is not followed (ELOOP)."""
    for pause in (0.1, 1.0, None):
        try:
            fd = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
            with os.fdopen(fd, "rb") as file:
                return file.read()
        except OSError as error:  # on a network file system: what was there has just been replaced elsewhere
            if error.errno != errno.ESTALE or pause is None:
                raise
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def sha256(path: Path) -> str:
    """64 hexadecimal digits of the file's sha256, read in pieces."""
    digest = hashlib.sha256()
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    with os.fdopen(fd, "rb", buffering=0) as file:
        buffer = bytearray(_CHUNK)
        view = memoryview(buffer)
        while count := file.readinto(buffer):
            digest.update(view[:count])
    return digest.hexdigest()


def is_file(path: Path) -> bool:
    """True for a regular file, not for a link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def is_dir(path: Path) -> bool:
    """True for a folder, not for a link to one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def make_dirs(path: Path, root: Path, *, durable: bool) -> None:
    """Create ``path`` and the missing folders between it and ``root``; refuse to pass through a link."""
    for folder in [*reversed([p for p in path.parents if p != root and root in p.parents]), path]:
        try:
            folder.mkdir()
        except FileExistsError:
            if not is_dir(folder):
                raise StoreError(
                    f"{folder} is in the way: the store needs a folder there; move the file or link aside."
                ) from None
        else:
            sync_dir(folder.parent, durable=durable)


def discard(path: Path) -> None:
    """Remove a private file or folder if possible; what is left is found by gc."""
    with suppress(OSError):
        if is_dir(path):
            import shutil  # 8 ms that a listing need not pay

            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def quarrel(error: OSError, root: Path, outcome: str) -> StoreError:
    """One sentence for an OSError: what happened, what became of the store, what to do."""
    where = f"the store {str(root)!r}"
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        text = f"No room to write to {where} ({reason}): {outcome}; free some space or choose another disk with"
        return StoreError(f"{text} WORKBENCH_STORE.")
    if error.errno in _FORBIDDEN:
        text = f"No permission to write to {where} ({reason}): {outcome}; make it writable or choose another place with"
        return StoreError(f"{text} WORKBENCH_STORE.")
    at = f" at {error.filename}" if error.filename else ""
    return StoreError(f"Writing to {where} failed{at} ({reason}): {outcome}; check the disk, then try again.")


@contextmanager
def explained(root: Path, outcome: str = "nothing was committed") -> Iterator[None]:
    """Turn an OSError inside the block into the StoreError of ``quarrel``."""
    try:
        yield
    except OSError as error:
        raise quarrel(error, root, outcome) from error
