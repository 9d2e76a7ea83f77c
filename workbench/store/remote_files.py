"""A folder somewhere else, reached through fsspec, in the few operations a store needs there.

List, read, put, put only if absent, fetch: each is one step that a crash leaves done or not done, and each failure is
one sentence. fsspec is imported only here, and a protocol's own package (s3fs for S3) by fsspec. This module must never
know what an artifact is.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from workbench.errors import InputError, StoreError

CHUNK = 8 << 20
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")


def is_url(text: str) -> bool:
    """True for what names a place elsewhere (`s3://bucket/prefix`) rather than a local folder."""
    return "://" in text


def public(url: str) -> str:
    """The address without a user's name and password, for messages and records."""
    return re.sub(r"://[^/]*@", "://", url).rstrip("/")


class Remote:
    """The files below one URL; paths are relative to it, with forward slashes."""

    def __init__(self, url: str) -> None:
        if not _URL.fullmatch(url):
            raise InputError(f"{url!r} is no address of a remote store; write for instance s3://bucket/prefix.")
        self.url = public(url)
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise StoreError(f"{self.url} needs fsspec: pip install 'workbench[remote]'.") from error
        with self._explained("cannot be opened"):
            # Listings must be fresh.
            self.fs, root = url_to_fs(url, use_listings_cache=False)
        self.root = root.rstrip("/")
        self.local = "file" in _protocols(self.fs)

    # -- reading ---------------------------------------------------------------------------------------------------

    def listing(self, below: str = "") -> dict[str, int]:
        """Path -> size in bytes, of every file (below a folder); empty when nothing is there yet."""
        with self._explained("cannot be listed"):
            self.fs.invalidate_cache()
            found = self.fs.find(self._at(below) if below else self.root, detail=True) or {}
        start = len(self.root) + 1
        return {path[start:]: int(info["size"]) for path, info in found.items() if path[start:]}

    def read(self, path: str) -> bytes | None:
        """The bytes of a small file, None when there is none."""
        with self._explained("cannot be read"):
            try:
                return self.fs.cat_file(self._at(path))
            except FileNotFoundError:
                return None

    def read_many(self, paths: Iterable[str]) -> dict[str, bytes]:
        """The bytes of small files, those that vanished left out; all at once where the protocol can."""
        wanted = {self._at(path): path for path in paths}
        if not wanted:
            return {}
        with self._explained("cannot be read"):
            found = self.fs.cat(list(wanted), on_error="return")
            for value in found.values():
                if isinstance(value, Exception) and not isinstance(value, FileNotFoundError):
                    raise value
        return {wanted[path]: value for path, value in found.items() if isinstance(value, bytes)}

    def sha256(self, path: str, size: int) -> str | None:
        """64 hexadecimal digits of what lies there, read back (in pieces if large); None when there is nothing."""
        if size <= CHUNK:
            data = self.read(path)
            return None if data is None else hashlib.sha256(data).hexdigest()
        digest = hashlib.sha256()
        with self._explained("cannot be read"):
            try:
                with self.fs.open(self._at(path), "rb", block_size=CHUNK) as file:
                    while piece := file.read(CHUNK):
                        digest.update(piece)
            except FileNotFoundError:
                return None
        return digest.hexdigest()

    def fetch(self, path: str, target: Path) -> None:
        """Copy a file to the local path `target`."""
        with self._explained(f"cannot be read ({path})"):
            self.fs.get_file(self._at(path), str(target))

    # -- writing ---------------------------------------------------------------------------------------------------

    def put(self, path: str, source: Path | bytes) -> None:
        """Make a file of these bytes; a reader meets all of them or none (one request, or a rename)."""
        with self._explained("cannot be written"):
            if self.local:
                with self._beside(path, source) as temp:
                    temp.replace(self._at(path))
            elif isinstance(source, bytes):
                self.fs.pipe_file(self._at(path), source)
            else:
                self.fs.put_file(str(source), self._at(path))

    def create(self, path: str, data: bytes) -> bool:
        """Make a file unless one is there; False when one is, be it one that this very call made.

        Atomic on S3 (`If-None-Match: *`), on disks (a hard link) and wherever fsspec's mode "create" is.
        """
        with self._explained("cannot be written"):
            try:
                if self.local:
                    with self._beside(path, data) as temp:
                        os.link(temp, self._at(path))
                else:
                    self.fs.pipe_file(self._at(path), data, mode="create")
            except FileExistsError:
                return False
            except PermissionError:
                raise
            except OSError:  # S3 has several words for "someone else is at it"; our own may have arrived, too
                if self.fs.exists(self._at(path)):
                    return False
                raise
        return True

    def _at(self, path: str) -> str:
        return f"{self.root}/{path}"

    @contextmanager
    def _beside(self, path: str, source: Path | bytes) -> Iterator[Path]:
        """A hidden file with these bytes in the folder of `path`, flushed; removed at the end if still there."""
        target = Path(self._at(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        temp = target.with_name(f".{secrets.token_hex(8)}.part")
        try:
            with temp.open("xb") as file:
                if isinstance(source, bytes):
                    file.write(source)
                else:
                    with source.open("rb") as origin:
                        while piece := origin.read(CHUNK):
                            file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            yield temp
        finally:
            with suppress(OSError):
                temp.unlink()

    @contextmanager
    def _explained(self, outcome: str) -> Iterator[None]:
        """Turn whatever a protocol raises into one sentence; only calls of fsspec stand inside."""
        try:
            yield
        except StoreError:
            raise
        except ImportError as error:
            raise StoreError(
                f"{self.url} needs a package that is not installed ({_line(error)}); for S3: pip install "
                "'workbench[remote]'."
            ) from error
        except Exception as error:
            raise StoreError(f"{self.url} {outcome}: {_why(error)}") from error


def _why(error: Exception) -> str:
    name, said = type(error).__name__, _line(error)
    if "credential" in f"{name} {said}".lower():
        return f"no credentials ({said}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
    if isinstance(error, PermissionError):
        return f"access was refused ({said}); check the credentials and what they may do there."
    if isinstance(error, FileNotFoundError):
        return f"it does not exist ({said}); create the bucket or folder, or correct the address."
    if "Protocol not known" in said:
        return f"{said}; use s3://, file://, memory:// or another protocol of fsspec."
    if "onnect" in name or "Timeout" in name or "onnect" in said:
        return f"no connection ({said}); check the network and the endpoint (AWS_ENDPOINT_URL), then try again."
    return f"{said or name}; what was finished stays, so try again."


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
