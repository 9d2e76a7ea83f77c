"""Looking after a store: find every damaged byte, take back wasted space, remove a version and keep its record.

``fsck`` reports and, asked to repair, restores from a sound copy or sets aside; it never deletes. ``gc`` deletes only
what provably no version refers to: abandoned staging and objects with a link count of 1. ``remove`` is the one way
payloads go, by the user's word. All three may run beside writers, so entries that vanish meanwhile are no news.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from workbench.errors import CorruptArtifact, InputError, StoreError
from workbench.store import disk, layout, manifest, refs
from workbench.store.local import Tree, is_live

DAY = 24 * 3600.0


@dataclass(frozen=True)
class Problem:
    """One thing wrong. ``kind``: changed, size, missing, extra, link, manifest, misplaced, format, tag, input, object,
    store.

    ``path`` is relative to the store; ``repaired`` says what a repair did about it, empty if nothing.
    """

    kind: str
    path: str
    ref: str
    detail: str
    repaired: str = ""
    sha256: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"{self.path}: {self.detail}" + (f" [{self.repaired}]" if self.repaired else "")


@dataclass(frozen=True)
class Freed:
    """What gc removed."""

    staging: int
    objects: int
    bytes: int


# -- fsck --------------------------------------------------------------------------------------------------------------


def fsck(tree: Tree, *, fast: bool = False, repair: bool = False) -> list[Problem]:
    """All problems of the store, in the order of the tree."""
    check = _Check(tree, fast=fast)
    problems = check.run()
    if not repair or not problems:
        return problems
    return _Repair(tree, check.sound).run(problems)


class _Check:
    """One pass over the tree. ``sound`` collects where good bytes lie, for the repair."""

    def __init__(self, tree: Tree, *, fast: bool) -> None:
        self.tree = tree
        self.fast = fast
        self.sound: dict[str, list[Path]] = {}
        self._digests: set[str] = set()
        self._inputs: list[tuple[str, str, dict[str, str]]] = []
        self._hashed: dict[tuple[int, int], str] = {}  # by inode: hard links are read once

    def run(self) -> list[Problem]:
        names = self.tree.folders()
        found: list[Problem] = []
        if names:
            found += self._store_page()
        for name in names:
            for version in self.tree.versions(name):
                found += self._version(name, version)
            found += self._tags(name)
        found += self._objects()
        for ref, path, parent in self._inputs:
            if parent["digest"] not in self._digests:
                detail = f"input {parent['ref']} ({parent['digest'][:19]}) is not in this store"
                found.append(Problem("input", path, ref, detail))
        return found

    def _store_page(self) -> list[Problem]:
        try:
            sound = disk.read(self.tree.root / "STORE.json") in layout.PAGES
        except OSError as error:
            return [
                Problem("store", "STORE.json", "", "missing" if error.errno == errno.ENOENT else str(error.strerror))
            ]
        return [] if sound else [Problem("store", "STORE.json", "", "is not what a store of this format says")]

    def _version(self, name: str, version: int) -> list[Problem]:
        folder, ref = self.tree.folder(name, version), f"{name}@v{version}"
        where = self._relative(folder / refs.MANIFEST)
        try:
            page = manifest.parse(disk.read(folder / refs.MANIFEST), where)
        except FileNotFoundError:
            return [Problem("manifest", where, ref, "missing")]
        except (OSError, CorruptArtifact) as error:
            return [Problem("manifest", where, ref, str(error).split(": run")[0].removeprefix(f"{where} "))]
        except StoreError as error:  # a newer format is not damage, and not ours to judge
            return [Problem("format", where, ref, str(error))]
        if (page["name"], page["version"]) != (name, version):
            owner = f"{page['name']}@v{page['version']}"
            return [Problem("misplaced", where, ref, f"belongs to {owner}; move the folder back")]
        if page["digest"]:
            self._digests.add(page["digest"])
            if page["digest"] != manifest.identity(page):
                return [Problem("manifest", where, ref, "digest does not match the content it describes")]
        removed = bool(page.get("removed"))
        if not removed:
            self._inputs += [(ref, where, parent) for parent in page["inputs"]]
        found = self._files(folder, ref, {} if removed else page["files"])
        if found and not removed:  # removed while we looked? then what is missing is meant to be
            with suppress(StoreError):
                if self.tree.page(name, version).get("removed"):
                    return []
        return found

    def _files(self, folder: Path, ref: str, files: dict[str, dict]) -> list[Problem]:
        found = []
        for name, entry in sorted(files.items()):
            problem = self._file(folder / name, entry)
            if problem:
                kind, detail = problem
                found.append(Problem(kind, self._relative(folder / name), ref, detail, sha256=entry["sha256"]))
        with suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name != refs.MANIFEST and entry.name not in files:
                    found.append(Problem("extra", self._relative(folder / entry.name), ref, "not in the manifest"))
        return found

    def _file(self, path: Path, entry: dict) -> tuple[str, str] | None:
        if not disk.is_file(path):
            gone = not os.path.lexists(path)
            return ("missing", "missing") if gone else ("link", "is not a plain file")
        size = path.lstat().st_size
        if size != entry["size"]:
            return "size", f"{size} bytes instead of {entry['size']}"
        if not self.fast:
            try:
                if self._sha256(path) != entry["sha256"]:
                    return "changed", "bytes differ from what was committed (sha256)"
            except OSError as error:
                return "changed", f"cannot be read ({error.strerror})"
        self.sound.setdefault(entry["sha256"], []).append(path)
        return None

    def _tags(self, name: str) -> list[Problem]:
        found = []
        folder = self.tree.root / name / "tags"
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path, ref = self._relative(folder / entry.name), f"{name}@{entry.name}"
                try:
                    version = self.tree.tag_target(name, entry.name)
                except CorruptArtifact:
                    found.append(Problem("tag", path, ref, "holds no version"))
                    continue
                except FileNotFoundError:
                    continue
                except OSError as error:
                    found.append(Problem("tag", path, ref, f"is not a plain file ({error.strerror})"))
                    continue
                if version not in self.tree.versions(name):
                    found.append(Problem("tag", path, ref, f"points to v{version}, which does not exist"))
                else:
                    with suppress(StoreError):
                        if self.tree.page(name, version).get("removed"):
                            found.append(Problem("tag", path, ref, f"points to v{version}, which was removed"))
        return found

    def _objects(self) -> list[Problem]:
        found = []
        for path in _objects(self.tree):
            try:
                if not os.path.lexists(path):
                    continue  # collected while we looked
                if not disk.is_file(path):
                    found.append(Problem("object", self._relative(path), "", "is not a plain file"))
                elif not self.fast and self._sha256(path) != path.name:
                    found.append(Problem("object", self._relative(path), "", "bytes differ from its name (sha256)"))
                else:
                    self.sound.setdefault(path.name, []).append(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                found.append(Problem("object", self._relative(path), "", f"cannot be read ({error.strerror})"))
        return found

    def _sha256(self, path: Path) -> str:
        found = path.lstat()
        inode = (found.st_dev, found.st_ino)
        if found.st_nlink == 1:
            return disk.sha256(path)
        if inode not in self._hashed:
            self._hashed[inode] = disk.sha256(path)
        return self._hashed[inode]

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.tree.root).as_posix()


class _Repair:
    """Restore from a sound copy, or set aside under ``.store/quarantine/<time>/`` at the same relative path."""

    def __init__(self, tree: Tree, sound: dict[str, list[Path]]) -> None:
        self.tree = tree
        self.sound = sound
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime()) + "-" + os.urandom(3).hex()
        self.quarantine = tree.inner / "quarantine" / stamp

    def run(self, problems: list[Problem]) -> list[Problem]:
        if self._damaged_store_page(problems):
            self._set_aside(self.tree.root / "STORE.json")
        self.tree.create()
        return [replace(problem, repaired=self._one(problem)) for problem in problems]

    def _one(self, problem: Problem) -> str:
        path = self.tree.root / problem.path
        if problem.kind in ("changed", "size", "link", "missing"):
            return self._restore(path, problem)
        if problem.kind in ("extra", "tag", "object"):
            return self._set_aside(path)
        if problem.kind == "manifest":
            return self._bury(path, problem)
        return "written anew" if problem.path == "STORE.json" else ""

    def _damaged_store_page(self, problems: list[Problem]) -> bool:
        lexists = os.path.lexists(self.tree.root / "STORE.json")
        return lexists and any(problem.path == "STORE.json" for problem in problems)

    def _restore(self, path: Path, problem: Problem) -> str:
        done = [self._set_aside(path)] if os.path.lexists(path) else []
        for source in self.sound.get(problem.sha256, []):
            try:
                if disk.sha256(source) != problem.sha256:  # a fast check saw only its size
                    continue
                with self.tree.private() as copy:
                    disk.write_new(copy, disk.read(source), durable=self.tree.durable)
                    disk.freeze(copy, durable=False)
                    copy.rename(path)
            except FileNotFoundError:
                continue
            disk.sync_dir(path.parent, durable=self.tree.durable)
            return "; ".join([*done, f"restored from {source.relative_to(self.tree.root).as_posix()}"])
        return "; ".join([*done, f"no sound copy; rerun it or `workbench rm {problem.ref}`"])

    def _set_aside(self, path: Path) -> str:
        target = self.quarantine / path.relative_to(self.tree.root)
        disk.make_dirs(target.parent, self.tree.root, durable=self.tree.durable)
        try:
            path.rename(target)
        except FileNotFoundError:
            return "gone meanwhile"
        disk.sync_dir(path.parent, durable=self.tree.durable)
        return f"moved to {target.relative_to(self.tree.root).as_posix()}"

    def _bury(self, page: Path, problem: Problem) -> str:
        """Without a trustworthy manifest the whole version goes aside; a tombstone keeps its number taken."""
        name, _, number = problem.ref.rpartition("@v")
        for entry in sorted(page.parent.iterdir()):
            self._set_aside(entry)
        record = {**manifest.draft(name), "version": int(number), "created": manifest.now(), "digest": None}
        aside = self.quarantine.relative_to(self.tree.root).as_posix()
        why = f"set aside by fsck in {aside}: MANIFEST.json {problem.detail}"
        self.tree.replace_manifest(name, int(number), manifest.tombstone(record, why))
        return f"the version was moved to {aside}"


# -- gc ----------------------------------------------------------------------------------------------------------------


def gc(tree: Tree, *, age: float = DAY) -> Freed:
    """Remove staging untouched for ``age`` seconds whose writer is not alive here, and objects nothing links to."""
    staging = objects = freed = 0
    if not disk.is_dir(tree.inner):
        return Freed(0, 0, 0)
    limit = time.time() - age
    for path in _listing(tree.staging):
        size, touched = _extent(path)
        if touched <= limit and not is_live(path.name):
            disk.discard(path)
            if not os.path.lexists(path):
                staging, freed = staging + 1, freed + size
    for path in _objects(tree):
        # A writer may link the object between these two calls: it then keeps its bytes and only the sharing is lost.
        with suppress(FileNotFoundError):
            found = path.lstat()
            if found.st_nlink == 1:
                path.unlink()
                objects, freed = objects + 1, freed + found.st_size
    return Freed(staging, objects, freed)


def _extent(path: Path) -> tuple[int, float]:
    """Bytes that would be freed and the newest modification time of a staging entry; it may vanish while we look."""
    size, touched = 0, 0.0
    inside = _listing(path) if disk.is_dir(path) else []
    for entry in [path, *inside]:
        with suppress(FileNotFoundError):
            found = entry.lstat()
            touched = max(touched, found.st_mtime)
            if entry.is_symlink() or not disk.is_dir(entry):
                size += found.st_size if found.st_nlink == 1 else 0
    return size, touched


def _listing(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _objects(tree: Tree) -> Iterator[Path]:
    for prefix in _listing(tree.objects):
        if disk.is_dir(prefix):
            yield from _listing(prefix)


# -- remove ------------------------------------------------------------------------------------------------------------


def remove(tree: Tree, name: str, version: int, why: str) -> manifest.Manifest:
    """Replace the manifest by a tombstone, then unlink the payloads. Repeating it finishes what a crash left."""
    if not isinstance(why, str) or not why.strip():
        raise InputError(f"Removing {name}@v{version} needs a reason, kept on record: why='superseded by v3', say.")
    page = tree.page(name, version)
    if not page.get("removed"):
        tagged = [tag for tag, target in tree.tags(name).items() if target == version]
        if tagged:
            raise StoreError(f"{name}@v{version} is tagged {tagged[0]!r}; move or remove the tag before the version.")
        page = manifest.tombstone(page, why.strip())
        tree.replace_manifest(name, version, page)
    folder = tree.folder(name, version)
    for payload in page["files"]:
        with suppress(FileNotFoundError):
            (folder / payload).unlink()
    disk.sync_dir(folder, durable=tree.durable)
    return page
