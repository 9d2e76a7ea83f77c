"""``Artifact``, one committed version as people read it, and ``Stage``, one in the making.

Reading never trusts the disk: a file under 8 MiB is hashed before it is decoded, a larger one is checked for its size
(Parquet pages carry checksums of their own) and hashed on ``verify=True``. These classes must never decide when a
version exists; that is ``local.py``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from workbench.errors import CorruptArtifact, InputError, NotFound, StoreError, did_you_mean
from workbench.store import disk, payloads, refs

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import pyarrow as pa

ALWAYS_HASH_BELOW = 8 * 1024 * 1024
Decoded = TypeVar("Decoded")
Data = bytes  # inside the classes below, `bytes` is a method
Source = Path | Data


@dataclass(frozen=True)
class Artifact:
    """One immutable version. ``str(artifact)`` is its reference, ``name@vN``."""

    name: str
    version: int
    digest: str
    folder: Path
    manifest: dict[str, Any] = field(repr=False, compare=False)

    @property
    def ref(self) -> str:
        return f"{self.name}@v{self.version}"

    def __str__(self) -> str:
        return self.ref

    def _repr_html_(self) -> str:
        from workbench.store import views

        return views.artifact(self)

    @property
    def config(self) -> dict[str, Any]:
        return self.manifest["config"]

    @property
    def kind(self) -> str:
        return self.manifest["kind"]

    @property
    def created(self) -> str:
        return self.manifest["created"]

    @property
    def run_key(self) -> str | None:
        return self.manifest["run_key"]

    @property
    def summary(self) -> dict[str, Any]:
        return self.manifest.get("summary") or {}

    @property
    def removed(self) -> dict[str, str] | None:
        """``{"why", "at"}`` when the payloads were removed and only the record is left, else None."""
        return self.manifest.get("removed")

    @property
    def where(self) -> str:
        """The folder or address it is in, for people."""
        return str(self.folder)

    @property
    def origin(self) -> dict[str, Any] | None:
        """Where it was pulled from, ``{"url", "ref", "manifest", "created"}``; None when it was made here."""
        return self.manifest.get("origin")

    def part(self, *keys: str) -> dict[str, Any]:
        """The mapping below these keys of the manifest; empty where there is none, or something else."""
        found: Any = self.manifest
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found if isinstance(found, dict) else {}

    def files(self) -> dict[str, dict[str, Any]]:
        """File name -> ``{"sha256", "size"}``."""
        return {} if self.removed else dict(self.manifest["files"])

    def path(self, name: str | None = None) -> Path:
        """The plain file of that payload (or the version's folder), to open with anything."""
        if name is None:
            return self.folder
        return self._locate(name)[0]

    # -- payloads --------------------------------------------------------------------------------------------------

    def table(self, name: str, *, columns: list[str] | None = None, verify: bool = False) -> pa.Table:
        """The table ``name`` (``"heads"`` or ``"heads.parquet"``)."""
        return self._load(name, payloads.TABLE, lambda source: payloads.read_table(source, columns=columns), verify)

    def metadata(self, name: str) -> dict[str, Any]:
        """The metadata a table was stored with."""
        return payloads.metadata_of(self.table(name))

    def tensors(self, name: str, *, keys: list[str] | None = None, verify: bool = False) -> dict[str, np.ndarray]:
        """The arrays of ``name`` (``"arrays"`` or ``"arrays.safetensors"``), or only those in ``keys``."""
        return self._load(name, payloads.TENSORS, lambda source: payloads.read_tensors(source, keys=keys), verify)

    def json(self, name: str, *, verify: bool = False) -> Any:
        """The JSON value of ``name`` (``"summary"`` or ``"summary.json"``)."""
        return self._load(name, payloads.JSON, lambda source: payloads.read_json(_bytes(source)), verify)

    def bytes(self, name: str, *, verify: bool = False) -> Data:
        """The bytes of the file ``name``."""
        return self._load(name, "", _bytes, verify)

    def text(self, name: str, *, verify: bool = False) -> str:
        """The text of the file ``name``."""
        return self._load(name, "", lambda source: _bytes(source).decode(), verify)

    def _load(self, name: str, suffix: str, decode: Callable[[Source], Decoded], verify: bool) -> Decoded:
        path, entry = self._locate(_with_suffix(name, suffix))
        try:
            if entry["size"] < ALWAYS_HASH_BELOW:
                data = disk.read(path)  # hashed and decoded from one reading
                sound = len(data) == entry["size"] and hashlib.sha256(data).hexdigest() == entry["sha256"]
                source: Source = data
            else:
                sound = path.lstat().st_size == entry["size"] and not (verify and disk.sha256(path) != entry["sha256"])
                source = path
        except OSError as error:
            raise self._corrupt(path, f"cannot be read ({error.strerror})") from error
        if not sound:
            raise self._corrupt(path, "is not what was committed")
        try:
            return decode(source)
        except (payloads.Unreadable, UnicodeDecodeError) as error:
            if isinstance(source, Data):  # it is what was committed, and that is something else
                wanted = suffix or "text"
                raise InputError(f"{path.name} of {self.ref} does not hold {wanted}; read it with bytes().") from None
            raise self._corrupt(path, f"does not decode ({error})") from error

    def _locate(self, name: str) -> tuple[Path, dict[str, Any]]:
        if self.removed:
            raise NotFound(
                f"{self.ref} was removed at {self.removed['at']} ({self.removed['why']}); rerun it to have it."
            )
        entry = self.manifest["files"].get(name)
        if entry is None:
            held = sorted(self.manifest["files"])
            raise NotFound(
                f"{self.ref} has no file {name!r}.{did_you_mean(name, held)} It has {', '.join(held) or 'none'}."
            )
        path = self.folder / name
        if not disk.is_file(path):
            raise self._corrupt(path, "is missing or is not a plain file")
        return path, entry

    def _corrupt(self, path: Path, what: str) -> CorruptArtifact:
        return CorruptArtifact(f"{path} of {self.ref} {what}: run `workbench fsck` (`--repair` restores it if it can).")


class Stage:
    """An artifact in the making: add payloads, then leave the ``with`` block to commit.

    ``artifact`` is the committed version afterwards; ``is_new`` is False when equal content already was the latest.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self._folder = folder
        self._root = root
        self._names: list[str] = []
        self._artifact: Artifact | None = None
        self.is_new = False

    @property
    def artifact(self) -> Artifact:
        if self._artifact is None:
            raise StoreError("The artifact does not exist before its `with store.stage(...)` block has ended.")
        return self._artifact

    def table(self, name: str, data: Any, *, metadata: Mapping[str, Any] | None = None) -> None:
        """Add a table: a dict of columns, a pyarrow Table or a pandas DataFrame."""
        with self._adding(_with_suffix(name, payloads.TABLE)) as path:
            payloads.write_table(path, data, metadata=metadata)

    def tensors(self, name: str, tensors: Mapping[str, Any]) -> None:
        """Add arrays by name."""
        with self._adding(_with_suffix(name, payloads.TENSORS)) as path:
            payloads.write_tensors(path, tensors)

    def json(self, name: str, value: Any) -> None:
        """Add a JSON value; NaN becomes null, infinities the texts "Infinity" and "-Infinity"."""
        with self._adding(_with_suffix(name, payloads.JSON)) as path:
            disk.write_new(path, payloads.json_bytes(value, where=name), durable=False)

    def text(self, name: str, value: str) -> None:
        """Add a text file under its full name, such as ``map.html``."""
        self.bytes(name, value.encode())

    def bytes(self, name: str, data: Data) -> None:
        """Add a file under its full name."""
        with self._adding(name) as path:
            disk.write_new(path, data, durable=False)

    def path(self, name: str) -> Path:
        """A path to write the file ``name`` to with anything that writes files."""
        with self._adding(name) as path:
            return path

    @contextmanager
    def _adding(self, name: str) -> Iterator[Path]:
        if self._artifact is not None:
            raise StoreError(f"{self._artifact.ref} is committed; {name!r} can only go into a new version.")
        if refs.check_payload(name).lower() in [other.lower() for other in self._names]:
            raise InputError(f"The artifact already has a file {name!r}; give the second one another name.")
        path = self._folder / name
        try:
            with disk.explained(self._root):
                yield path
        except BaseException:
            disk.discard(path)  # so that a caller who catches the error can go on without this file
            raise
        self._names.append(name)

    def check(self) -> list[str]:
        """The payloads to commit; refuses promised files that were not written and strays that were."""
        with disk.explained(self._root):
            present = {entry.name: disk.is_file(entry) for entry in self._folder.iterdir()}
        for name in self._names:
            if not present.get(name):
                raise StoreError(f"{name!r} was promised by path() but is not a plain file; write it inside the block.")
        strays = sorted(set(present) - set(self._names))
        if strays:
            raise StoreError(f"{strays[0]!r} lies in the staging folder but was not added; use path({strays[0]!r}).")
        return list(self._names)

    def close(self, artifact: Artifact, is_new: bool) -> None:
        """Called once by the store when the version exists."""
        self._artifact, self.is_new = artifact, is_new


def _with_suffix(name: str, suffix: str) -> str:
    return name if not isinstance(name, str) or name.endswith(suffix) else name + suffix


def _bytes(source: Source) -> Data:
    return source if isinstance(source, bytes) else disk.read(source)
