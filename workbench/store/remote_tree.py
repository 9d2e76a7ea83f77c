"""Reading a remote store: which versions there are, and their files fetched when they are opened.

Every file there is named by its content, so this reads without asking anyone: a version is a folder `NAME/@HASH` whose
MANIFEST.json has that sha256, and `NAME/vN` says which folder has number N. `docs/store-format.md` has the layout and
why it cannot lose anything. The methods are those of `local.Tree` that read.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.errors import CorruptArtifact, StoreError
from workbench.store import disk, manifest, refs
from workbench.store.artifact import Artifact
from workbench.store.remote_files import Remote

FORMAT = {"format": "remote-1", "hash": "sha256"}
_STORE_PAGE = manifest.to_json(FORMAT)
_FRESH = 5.0  # seconds for which a listing is believed when reading
_PAGE = re.compile(rf"(.+)/@([0-9a-f]{{64}})/{re.escape(refs.MANIFEST)}")
_CLAIM = re.compile(r"(.+)/(v[1-9][0-9]{0,8})")
_TAG = re.compile(r"(.+)/tags/([^/]+)")
_HASH = re.compile(rb"[0-9a-f]{64}\n")


def is_hash(data: bytes) -> bool:
    """Whether these are the bytes of a claim or a tag: a hash and a line's end."""
    return _HASH.fullmatch(data) is not None


@dataclass
class Snapshot:
    """What a listing showed. A page is None while it is being written, or when its bytes are not what they should be.

    `claims`: name -> number -> hash, damaged claims left out; `taken`: the highest number of a name that is claimed.
    """

    sizes: dict[str, int]
    pages: dict[str, dict[str, manifest.Manifest | None]] = field(default_factory=lambda: defaultdict(dict))
    claims: dict[str, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))
    taken: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    tags: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))

    def unclaimed(self, name: str) -> list[str]:
        """Whole versions without a number (their push was cut off just before its end), oldest first."""
        claimed = set(self.claims[name].values())
        left = [(page["created"], key) for key, page in self.pages[name].items() if page and key not in claimed]
        return [key for _, key in sorted(left)]

    def numbers(self, name: str) -> dict[int, str]:
        """Number -> hash; versions without a number get those that the next push will give them."""
        after = self.taken[name] + 1
        return {**self.claims[name], **dict(enumerate(self.unclaimed(name), start=after))}


class RemoteTree:
    """The reading side of a store at a URL."""

    def __init__(self, url: str) -> None:
        self.remote = Remote(url)
        self._snapshot: Snapshot | None = None
        self._read_at = 0.0
        self._known: dict[str, bytes] = {}  # pages and claims, which never change
        self._cache: tempfile.TemporaryDirectory[str] | None = None

    def snapshot(self) -> Snapshot:
        """What is there, or was a few seconds ago."""
        if self._snapshot is None or time.monotonic() - self._read_at > _FRESH:
            self.has_format()
            self._snapshot = self.look()
            self._read_at = time.monotonic()
        return self._snapshot

    def look(self, name: str = "") -> Snapshot:
        """What is there now, below `name` or everywhere."""
        found = Snapshot(self.remote.listing(name))
        places = {path: match for path in found.sizes if (match := _PAGE.fullmatch(path))}
        claims = {path: match for path in found.sizes if (match := _CLAIM.fullmatch(path))}
        tags = {path: match for path in found.sizes if (match := _TAG.fullmatch(path))}
        new = [path for path in (*places, *claims) if path not in self._known]
        read = self.remote.read_many([*new, *tags])
        self._known |= {path: data for path, data in read.items() if path in places or is_hash(data)}
        for path, match in places.items():
            if refs.is_name(match[1]):
                page = _page(self._known.get(path, b""), match[1], match[2], f"{self.remote.url}/{path}")
                found.pages[match[1]][match[2]] = page
                if page is None:
                    self._known.pop(path, None)  # may be whole next time
        for path, match in claims.items():
            number = refs.version_number(match[2]) or 0
            found.taken[match[1]] = max(found.taken[match[1]], number)
            if path in self._known and refs.is_name(match[1]):
                found.claims[match[1]][number] = self._known[path].decode().strip()
        for path, match in tags.items():
            if is_hash(read.get(path, b"")) and refs.is_tag(match[2]):  # no half-written ".x.part"
                found.tags[match[1]][match[2]] = read[path].decode().strip()
        return found

    def has_format(self) -> bool:
        """Whether a store was begun there; StoreError when it is one of another format."""
        page = self.remote.read("STORE.json")
        if page is None or (page != _STORE_PAGE and _STORE_PAGE.startswith(page)):
            return False  # nothing, or half of it: a push that was cut off where a put is not atomic
        try:
            said = json.loads(page)["format"]
        except (ValueError, KeyError, TypeError, RecursionError):
            said = None
        if said == manifest.FORMAT:
            raise StoreError(
                f"{self.remote.url} is a local store, not one that was pushed to; open its folder itself, or push to "
                "another address."
            )
        if said != FORMAT["format"]:
            raise StoreError(
                f"{self.remote.url}/STORE.json says format {said!r}; this workbench reads {FORMAT['format']!r}: "
                "install a newer one, or choose an empty place."
            )
        return True

    def begin(self) -> None:
        """Say what kind of store this is; whoever says so writes the same bytes."""
        if not self.remote.create("STORE.json", _STORE_PAGE) and self.remote.read("STORE.json") != _STORE_PAGE:
            self.remote.put("STORE.json", _STORE_PAGE)

    # -- what local.Tree reads too -----------------------------------------------------------------------------------

    def folders(self) -> list[str]:
        """Every name that has a version, sorted."""
        found = self.snapshot()
        return sorted(name for name in {*found.pages, *found.claims} if found.numbers(name))

    def versions(self, name: str) -> list[int]:
        """The version numbers, in order."""
        return sorted(self.snapshot().numbers(name))

    def key(self, name: str, version: int) -> str:
        """The hash that names the version's folder."""
        return self.snapshot().numbers(name)[version]

    def page(self, name: str, version: int) -> manifest.Manifest:
        """The checked manifest of a version, with its number here; CorruptArtifact when it cannot be trusted."""
        key = self.key(name, version)
        page = self.snapshot().pages[name].get(key)
        if page is None:
            raise CorruptArtifact(
                f"{self.remote.url}/{name}/@{key}/{refs.MANIFEST} is missing or damaged; push {name}@v{version} again "
                "from a store that has it."
            )
        return {**page, "version": version}

    def history(self, name: str) -> Iterator[tuple[int, manifest.Manifest | CorruptArtifact]]:
        """Versions from the newest to the oldest; a damaged manifest comes as the error it raised."""
        for version in reversed(self.versions(name)):
            try:
                yield version, self.page(name, version)
            except CorruptArtifact as error:
                yield version, error

    def tags(self, name: str) -> dict[str, int]:
        """Tag -> version."""
        found = self.snapshot()
        numbers = {key: number for number, key in sorted(found.numbers(name).items(), reverse=True)}
        return {tag: numbers[key] for tag, key in sorted(found.tags[name].items()) if key in numbers}

    def tag_target(self, name: str, tag: str) -> int:
        """The version a tag points to; OSError when there is none, as the local tree has it."""
        try:
            return self.tags(name)[tag]
        except KeyError:
            raise FileNotFoundError(tag) from None

    def artifact(self, page: manifest.Manifest) -> Artifact:
        """The version of a manifest that `page` gave, whose files are fetched when they are opened."""
        name, version = page["name"], page["version"]
        return RemoteArtifact(name, version, page["digest"] or "", self._folder(name, version), page, tree=self)

    def _folder(self, name: str, version: int) -> Path:
        if self._cache is None:
            self._cache = tempfile.TemporaryDirectory(prefix="workbench-remote-")
        return Path(self._cache.name) / self.key(name, version)

    def fetch(self, name: str, version: int, file: str, entry: dict[str, Any], target: Path) -> None:
        """Copy a payload to `target` and check that it is what was pushed."""
        path = f"{name}/@{self.key(name, version)}/{file}"
        if path not in self.snapshot().sizes:
            raise CorruptArtifact(self._damage(path, name, version, "is missing"))
        part = target.with_name(f".{target.name}.part")
        try:
            self.remote.fetch(path, part)
            if part.lstat().st_size != entry["size"] or disk.sha256(part) != entry["sha256"]:
                raise CorruptArtifact(self._damage(path, name, version, "is not what was pushed"))
            part.replace(target)
        finally:
            disk.discard(part)

    def _damage(self, path: str, name: str, version: int, what: str) -> str:
        return (
            f"{self.remote.url}/{path} {what}; delete it there and push {name}@v{version} again from a store that has "
            "it."
        )


@dataclass(frozen=True)
class RemoteArtifact(Artifact):
    """A version in a remote store; ``folder`` is where its files lie once they were fetched."""

    tree: RemoteTree = field(repr=False, compare=False)

    @property
    def where(self) -> str:
        return f"{self.tree.remote.url}/{self.name}/@{self.folder.name}"

    def path(self, name: str | None = None) -> Path:
        """A local copy of that payload; without a name, the folder with copies of all."""
        if name is None:
            for file in self.files():
                self._locate(file)
            return self.folder
        return super().path(name)

    def _locate(self, name: str) -> tuple[Path, dict[str, Any]]:
        entry = self.files().get(name)
        if entry is not None and not disk.is_file(self.folder / name):
            self.folder.mkdir(parents=True, exist_ok=True)
            self.tree.fetch(self.name, self.version, name, entry, self.folder / name)
        return super()._locate(name)


def _page(data: bytes, name: str, key: str, where: str) -> manifest.Manifest | None:
    """The manifest of that name whose bytes have the hash `key`; None for anything else."""
    if hashlib.sha256(data).hexdigest() != key:
        return None
    try:
        page = manifest.parse(data, where)
    except CorruptArtifact:
        return None
    return page if page["name"] == name else None
