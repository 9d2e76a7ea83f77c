"""The tree on disk and the one moment that matters: when a version exists.

A writer works in a private folder under ``.store/staging`` and then renames it to ``NAME/vN``. That single rename is
the commit: before it nothing is visible, after it everything is, and of two writers after the same N one gets it and
the other takes N + 1. No lock exists anywhere. Payloads of 64 KiB and more are hard-linked with ``.store/objects`` so
that equal bytes are stored once. Standard library only; this module must never know what is inside a payload.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from workbench.errors import CorruptArtifact, StoreError
from workbench.store import disk, layout, manifest, refs

SHARE_FROM = 64 * 1024  # smaller payloads are not worth a directory entry each
_TAKEN = {errno.EEXIST, errno.ENOTEMPTY}
_LIVE: set[str] = set()  # staging folders this process is writing to, so that gc leaves them alone at any age


class Tree:
    """A store folder. Reading one that is absent finds it empty; the first writer creates it."""

    def __init__(self, root: Path, *, durable: bool = True) -> None:
        self.root = root
        self.durable = durable
        self.inner = root / ".store"
        layout.check_format(root)

    def create(self) -> None:
        """Create whatever is absent of the store's own folders and files; safe to race and to repeat."""
        layout.create(self)

    def place(self, path: Path, data: bytes, *, frozen: bool = False) -> None:
        """Make a small file appear whole at ``path``, replacing what is there."""
        with self.private() as temp:
            disk.write_new(temp, data, durable=self.durable)
            if frozen:
                disk.freeze(temp, durable=False)
            temp.replace(path)
        disk.sync_dir(path.parent, durable=self.durable)

    @property
    def staging(self) -> Path:
        return self.inner / "staging"

    @property
    def objects(self) -> Path:
        return self.inner / "objects"

    # -- reading ---------------------------------------------------------------------------------------------------

    def folders(self) -> list[str]:
        """Every name that has a version folder, sound or not, sorted."""
        return sorted(self._walk(self.root, ""))

    def _walk(self, folder: Path, name: str) -> Iterator[str]:
        versioned = False
        for entry in _entries(folder):
            if not entry.is_dir(follow_symlinks=False):
                continue
            if refs.version_number(entry.name):
                versioned = True
            else:
                child = f"{name}/{entry.name}" if name else entry.name
                if refs.is_name(child):
                    yield from self._walk(folder / entry.name, child)
        if versioned and name:
            yield name

    def versions(self, name: str) -> list[int]:
        """The version numbers that are taken, in order; removed ones count."""
        numbers = [
            refs.version_number(entry.name) for entry in self._entries_of(name) if entry.is_dir(follow_symlinks=False)
        ]
        return sorted(number for number in numbers if number)

    def _entries_of(self, below: str) -> list[os.DirEntry[str]]:
        """Entries of a folder of the store; none when a link on the way leads who knows where."""
        path = self.root
        for part in below.split("/"):
            path = path / part
            if not _is_dir(path):
                return []
        return _entries(path)

    def folder(self, name: str, version: int) -> Path:
        return self.root / name / f"v{version}"

    def page(self, name: str, version: int) -> manifest.Manifest:
        """The checked manifest of a version, a tombstone included; CorruptArtifact when it cannot be trusted."""
        path = self.folder(name, version) / refs.MANIFEST
        try:
            data = disk.read(path)
        except (FileNotFoundError, NotADirectoryError):
            raise CorruptArtifact(f"{path} is missing: run `workbench fsck` to see the damage.") from None
        except OSError as error:
            raise CorruptArtifact(
                f"{path} cannot be read ({error.strerror}): run `workbench fsck` to see the damage."
            ) from error
        found = manifest.parse(data, str(path))
        if (found["name"], found["version"]) != (name, version):
            raise CorruptArtifact(
                f"{path} belongs to {found['name']}@v{found['version']}: move that folder back, then run "
                "`workbench fsck`."
            )
        return found

    def history(self, name: str, also: Iterable[int] = ()) -> Iterator[tuple[int, manifest.Manifest | CorruptArtifact]]:
        """Versions from the newest to the oldest, those in `also` with them even if the folder does not list them yet;
        a damaged manifest comes as the error it raised."""
        for version in sorted({*self.versions(name), *also}, reverse=True):
            try:
                yield version, self.page(name, version)
            except CorruptArtifact as error:
                yield version, error

    # -- committing ------------------------------------------------------------------------------------------------

    @contextmanager
    def private(self) -> Iterator[Path]:
        """A path under staging that nobody else will choose; what lies there at the end is removed."""
        # Host and pid tell gc, and people, whose it was.
        path = self.staging / f"{os.uname().nodename}-{os.getpid()}-{os.urandom(8).hex()}"
        _LIVE.add(path.name)
        try:
            yield path
        finally:
            _LIVE.discard(path.name)
            disk.discard(path)

    @contextmanager
    def private_folder(self) -> Iterator[Path]:
        """The same with a folder made there."""
        with self.private() as path:
            path.mkdir()
            yield path

    def commit(
        self, staging: Path, draft: manifest.Manifest, payloads: list[str], *, force: bool = False
    ) -> tuple[manifest.Manifest, bool]:
        """Turn a staging folder into the next version of ``draft["name"]``.

        Returns the manifest that stands for it and whether it is new: content equal to the latest version (same
        digest, same run key) is not stored again unless ``force``.
        """
        name = draft["name"]
        files = {payload: self._seal_payload(staging / payload) for payload in sorted(payloads)}
        draft = {**draft, "files": files, "created": manifest.now(), "commit": os.urandom(16).hex()}
        draft["digest"] = manifest.identity(draft)
        taken: set[int] = set()  # met in vain; a network file system may list them only seconds later
        while True:
            newest, previous, latest = self._standing(name, taken)
            if latest and not force and _same(latest, draft):
                return latest, False
            version = newest + 1
            mine = {**draft, "version": version, "previous": previous}
            page = staging / refs.MANIFEST
            page.unlink(missing_ok=True)
            disk.write_new(page, manifest.dump(mine), durable=self.durable)
            disk.freeze(page, durable=False)
            disk.sync_dir(staging, durable=self.durable)
            disk.make_dirs(self.root / name, self.root, durable=self.durable)
            if self._appear(staging, mine):
                self._settle(name, version)
                return mine, True
            taken.add(version)

    def _standing(self, name: str, taken: set[int]) -> tuple[int, str | None, manifest.Manifest | None]:
        """The newest number, the digest of the newest readable version, and the newest that is not removed."""
        newest, previous = 0, None
        for version, found in self.history(name, taken):
            newest = max(newest, version)
            if isinstance(found, CorruptArtifact):
                continue
            previous = previous or found["digest"]
            if not found.get("removed"):
                return newest, previous, found
        return newest, previous, None

    def _appear(self, staging: Path, mine: manifest.Manifest) -> bool:
        """The commit itself. False when another writer took the number first."""
        target = self.folder(mine["name"], mine["version"])
        try:
            staging.rename(target)
            return True
        except OSError as error:
            # A network file system may do the rename, lose the answer, and report an error for the repeat.
            with suppress(CorruptArtifact):
                if self.page(mine["name"], mine["version"])["commit"] == mine["commit"]:
                    return True
            # Some file systems have one error for all that goes wrong: sshfs says EPERM where a number is taken.
            if error.errno in _TAKEN or os.path.lexists(target):
                return False
            raise

    def _settle(self, name: str, version: int) -> None:
        try:
            disk.sync_dir(self.root / name, durable=self.durable)
        except OSError as error:
            outcome = f"{name}@v{version} is there, but may not survive a power cut"
            raise disk.quarrel(error, self.root, outcome) from error

    def _seal_payload(self, path: Path) -> dict[str, int | str]:
        """Hash, share and freeze one payload; return its entry in the manifest."""
        size, digest = path.lstat().st_size, disk.sha256(path)
        if size >= SHARE_FROM:
            with suppress(
                OSError, StoreError
            ):  # sharing is an economy: without hard links the payload is simply a file
                self._share(path, digest)
        disk.freeze(path, durable=self.durable)
        return {"sha256": digest, "size": size}

    def _share(self, path: Path, digest: str) -> None:
        """Make ``path`` one file with the object of the same bytes, which may be this one."""
        obj = self.object(digest)
        disk.make_dirs(obj.parent, self.root, durable=False)  # objects/ may be lost at any time without harm
        try:
            os.link(path, obj)
        except FileExistsError:
            if disk.sha256(obj) != digest:  # a damaged object must not spread; fsck will report it
                return
            with self.private() as twin:
                os.link(obj, twin)
                twin.replace(path)

    def object(self, digest: str) -> Path:
        return self.objects / digest[:2] / digest

    # -- tags and tombstones ---------------------------------------------------------------------------------------

    def tags(self, name: str) -> dict[str, int]:
        """Tag -> version, of the tags that can be read (fsck reports the others)."""
        found = {}
        for entry in self._entries_of(f"{name}/tags"):
            with suppress(StoreError, OSError):
                found[entry.name] = self.tag_target(name, entry.name)
        return dict(sorted(found.items()))

    def tag_target(self, name: str, tag: str) -> int:
        path = self.root / name / "tags" / tag
        if not _is_dir(path.parent):
            raise FileNotFoundError(path)
        version = refs.version_number(disk.read(path).decode("ascii", "replace").removesuffix("\n"))
        if not version:
            raise CorruptArtifact(
                f"{path} holds no version such as 'v3': run `workbench fsck --repair`, then tag anew."
            )
        return version

    def set_tag(self, name: str, version: int, tag: str, *, force: bool) -> None:
        """Create a tag, or move it with ``force``; a tag that exists never moves otherwise, whoever races."""
        folder = self.root / name / "tags"
        disk.make_dirs(folder, self.root, durable=self.durable)
        disk.make_dirs(self.staging, self.root, durable=self.durable)
        try:
            with self.private() as temp:
                disk.write_new(temp, f"v{version}\n".encode(), durable=self.durable)
                if force:
                    temp.replace(folder / tag)
                else:
                    self._link_or_write(temp, folder / tag)
        except FileExistsError:
            standing = self.tag_target(name, tag)
            if standing != version:
                raise StoreError(
                    f"Tag {tag!r} of {name!r} already points to v{standing}; move it with force=True (--force)."
                ) from None
        disk.sync_dir(folder, durable=self.durable)

    def _link_or_write(self, temp: Path, path: Path) -> None:
        try:
            os.link(temp, path)
        except FileExistsError:
            raise
        except OSError:  # no hard links here: exclusive creation still keeps a taken tag
            disk.write_new(path, disk.read(temp), durable=self.durable)

    def drop_tag(self, name: str, tag: str) -> None:
        (self.root / name / "tags" / tag).unlink()
        disk.sync_dir(self.root / name / "tags", durable=self.durable)

    def replace_manifest(self, name: str, version: int, page: manifest.Manifest) -> None:
        """Put a tombstone in the place of a manifest, in one step."""
        disk.make_dirs(self.staging, self.root, durable=self.durable)
        self.place(self.folder(name, version) / refs.MANIFEST, manifest.dump(page), frozen=True)


def _same(latest: manifest.Manifest, draft: manifest.Manifest) -> bool:
    # Without the run key, a run under new conditions with the old outcome would never become a cache hit.
    return latest["digest"] == draft["digest"] and draft["run_key"] in (None, latest["run_key"])


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Entries of a folder (none if absent), housekeeping and other dot files left out."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _unlisted(folder, error) from error


def _is_dir(path: Path) -> bool:
    try:
        return disk.is_dir(path)
    except OSError as error:
        raise _unlisted(path, error) from error


def _unlisted(folder: Path, error: OSError) -> StoreError:
    return StoreError(f"{folder} cannot be listed ({error.strerror}); check its permissions and the disk.")


def is_live(staging_name: str) -> bool:
    """True when a writer of this machine may still be using the staging entry of that name."""
    host, _, pid = staging_name.rpartition("-")[0].rpartition("-")
    if host != os.uname().nodename or not pid.isdigit():
        return False
    if int(pid) == os.getpid():
        return staging_name in _LIVE
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
