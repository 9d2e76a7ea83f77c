"""``Store``: find, read and commit artifacts by name. The one class the rest of the workbench talks to.

It resolves references, hands out ``Artifact`` and ``Stage`` objects and answers questions about history (log, lineage,
staleness, cache hits) by reading manifests; there is no index to go stale. How a version comes to exist is
``local.py``, how damage is found is ``care.py``. It must never know what an analysis, a model or a table schema is.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import CorruptArtifact, InputError, NotFound, StoreError, did_you_mean
from workbench.store import care, disk, manifest, refs
from workbench.store.artifact import Artifact, Stage
from workbench.store.local import Tree
from workbench.store.remote_files import is_url

if TYPE_CHECKING:
    from workbench.store.remote import Transfer
    from workbench.store.remote_tree import RemoteTree

Reference = str | Artifact
Parent = str | Artifact | Mapping[str, str]


@dataclass(frozen=True)
class Ancestor:
    """One input, direct or not: ``state`` is "ok", "removed" or "absent" (not in this store)."""

    ref: str
    digest: str
    depth: int
    child: str
    state: str


@dataclass(frozen=True)
class Stale:
    """A direct input that has moved on: ``newest`` is the reference to use now, None when the input is gone."""

    ref: str
    newest: str | None
    reason: str


class Store:
    """A folder of versioned artifacts: ``Store()`` is ``$WORKBENCH_STORE`` or ``./artifacts``.

    An absent folder reads as an empty store; the first commit creates it. ``durable=False`` skips flushing to disk,
    for scratch stores that need not survive a power cut. A URL (``s3://bucket/prefix``) is a store others pushed to,
    which can be read; ``push`` and ``pull`` copy versions between the two kinds.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, durable: bool = True) -> None:
        text = os.fspath(path) if path is not None else os.environ.get("WORKBENCH_STORE") or "artifacts"
        self._tree: Tree | RemoteTree
        if is_url(text):
            from workbench.store.remote_tree import RemoteTree

            self._tree = RemoteTree(text)
        else:
            self._tree = Tree(Path(text).expanduser().absolute(), durable=durable)

    def __repr__(self) -> str:
        return f"Store({self.where!r})"

    def _repr_html_(self) -> str:
        from workbench.store import views

        return views.store(self)

    @property
    def where(self) -> str:
        """The folder or address, for people."""
        return str(self._tree.root) if isinstance(self._tree, Tree) else self._tree.remote.url

    @property
    def root(self) -> Path:
        """The folder on disk."""
        return self.writable().root

    def writable(self) -> Tree:
        """The tree on disk; StoreError for a store at a URL, which is only read."""
        if not isinstance(self._tree, Tree):
            raise StoreError(
                f"The store {self.where} can only be read; work in a local store and copy with `workbench push` and "
                "`workbench pull`."
            )
        return self._tree

    # -- finding ---------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Names with at least one version that is not removed, sorted."""
        return [name for name in self._tree.folders() if self._newest(name) is not None]

    def ls(self, prefix: str = "") -> list[Artifact]:
        """The latest artifact of every name (that starts with ``prefix``); damaged ones are named in a warning."""
        found = []
        for name in self._tree.folders():
            if name.startswith(prefix):
                newest = self._newest(name)
                if isinstance(newest, Artifact):
                    found.append(newest)
                elif newest:
                    warnings.warn(f"Left out of the listing: {newest}", stacklevel=2)
        return found

    def log(self, name: str) -> list[Artifact]:
        """All versions of a name, newest first, removed ones included (see ``Artifact.removed``)."""
        self._known(refs.check_name(name))
        found = []
        for _, page in self._tree.history(name):
            if isinstance(page, CorruptArtifact):
                warnings.warn(f"Left out of the log: {page}", stacklevel=2)
            else:
                found.append(self._artifact(page))
        return found

    def get(self, ref: Reference) -> Artifact:
        """Resolve ``name``, ``name@v3``, ``name@tag``, ``name@latest``, ``name@sha256:91c0`` or a digest prefix."""
        art = self._resolve(ref)
        if art.removed:
            raise NotFound(f"{art.ref} was removed at {art.removed['at']} ({art.removed['why']}); rerun it to have it.")
        return art

    __getitem__ = get

    def __contains__(self, ref: object) -> bool:
        try:
            self.get(ref)  # type: ignore[arg-type]
        except (NotFound, InputError):
            return False
        return True

    def find(self, name: str | None = None, *, run_key: str) -> Artifact | None:
        """The newest whole artifact with that run key (under ``name``, or anywhere), or None: a cache lookup."""
        self.writable()  # whoever asks is about to run something, and should hear now that it could not be kept
        found = []
        for folder in [refs.check_name(name)] if name else self._tree.folders():
            for _, page in self._tree.history(folder):
                if isinstance(page, CorruptArtifact) or page.get("removed") or page["run_key"] != run_key:
                    continue
                art = self._artifact(page)
                if _is_whole(art):
                    found.append(art)
                    break
        return max(found, key=lambda art: art.created, default=None)

    def _resolve(self, ref: Reference) -> Artifact:
        if isinstance(ref, Artifact):
            return self._artifact(self._tree.page(ref.name, self._has_version(ref.name, ref.version)))
        parsed = refs.parse(ref)
        if parsed.name is None:
            return self._by_digest(parsed.digest or "", ref)
        digits = refs.hex_prefix(ref)
        if digits and len(digits) >= refs.MIN_HEX and not self._tree.versions(ref):
            return self._by_digest(digits, ref)
        name = self._known(parsed.name)
        if parsed.digest:
            return self._by_digest(parsed.digest, ref, [name])
        if parsed.tag:
            return self._by_tag(name, parsed.tag, ref)
        if parsed.version:
            return self._artifact(self._tree.page(name, self._has_version(name, parsed.version)))
        newest = self._newest(name)
        if newest is None:
            raise NotFound(f"All versions of {name!r} were removed; `workbench log {name}` says why.")
        if isinstance(newest, CorruptArtifact):
            raise newest
        return newest

    def _known(self, name: str) -> str:
        if not self._tree.versions(name):
            names = self._tree.folders()
            here = "" if names else " The store is empty."
            raise NotFound(f"There is no artifact {name!r} in {self.where!r}.{did_you_mean(name, names)}{here}")
        return name

    def _has_version(self, name: str, version: int) -> int:
        held = self._tree.versions(self._known(name))
        if version not in held:
            last = f"v{held[0]} to v{held[-1]}" if len(held) > 1 else f"only v{held[0]}"
            raise NotFound(f"{name!r} has no version v{version}; it has {last}.")
        return version

    def _by_tag(self, name: str, tag: str, ref: str) -> Artifact:
        try:
            version = self._tree.tag_target(name, tag)
        except OSError:
            digits = refs.hex_prefix(tag)
            if digits and len(digits) >= refs.MIN_HEX:
                return self._by_digest(digits, ref, [name])
            held = list(self._tree.tags(name))
            hint = did_you_mean(tag, held) or (f" It has {', '.join(held)}." if held else " It has no tags.")
            raise NotFound(f"{name!r} has no tag {tag!r}.{hint}") from None
        return self._artifact(self._tree.page(name, self._has_version(name, version)))

    def _by_digest(self, digits: str, ref: str, names: list[str] | None = None) -> Artifact:
        found = [
            self._artifact(page)
            for name in (self._tree.folders() if names is None else names)
            for _, page in self._tree.history(name)
            if not isinstance(page, CorruptArtifact) and (page["digest"] or "").startswith(f"sha256:{digits}")
        ]
        if not found:
            raise NotFound(f"No artifact matches {ref!r} in {self.where!r}; `workbench ls` lists what there is.")
        if len({art.digest for art in found}) > 1:
            listing = ", ".join(f"{art.ref} ({art.digest[:19]})" for art in sorted(found, key=lambda art: art.ref)[:8])
            raise StoreError(f"{ref!r} is ambiguous: it matches {listing}; give more digits.")
        return max(found, key=lambda art: (not art.removed, art.created))

    def _newest(self, name: str) -> Artifact | CorruptArtifact | None:
        for _, page in self._tree.history(name):
            if isinstance(page, CorruptArtifact):
                return page
            if not page.get("removed"):
                return self._artifact(page)
        return None

    def _artifact(self, page: manifest.Manifest) -> Artifact:
        if not isinstance(self._tree, Tree):
            return self._tree.artifact(page)
        name, version = page["name"], page["version"]
        return Artifact(name, version, page["digest"] or "", self._tree.folder(name, version), page)

    # -- committing ------------------------------------------------------------------------------------------------

    @contextmanager
    def stage(
        self,
        name: str,
        *,
        config: Any = None,
        inputs: Iterable[Parent] = (),
        producer: Mapping[str, Any] | None = None,
        kind: str = "result/1",
        run_key: str | None = None,
        timing: Mapping[str, Any] | None = None,
        summary: Any = None,
        force: bool = False,
    ) -> Iterator[Stage]:
        """Stage payloads in the block; leaving it commits them as the next version, an exception leaves no trace.

        Content equal to the latest version (same digest and run key) yields that version again, unless ``force``.
        """
        draft = manifest.draft(
            name,
            config=config,
            inputs=[self._parent(item) for item in inputs],
            producer=producer,
            kind=kind,
            run_key=run_key,
            timing=timing,
            summary=summary,
        )
        tree = self.writable()
        with ExitStack() as stack:
            with disk.explained(tree.root):
                tree.create()
                folder = stack.enter_context(tree.private_folder())
            stage = Stage(folder, tree.root)
            yield stage
            names = stage.check()
            with disk.explained(tree.root):
                page, is_new = tree.commit(folder, draft, names, force=force)
            stage.close(self._artifact(page), is_new)

    def _parent(self, item: Parent) -> Mapping[str, str]:
        if isinstance(item, Mapping):
            if not {"ref", "digest"} <= set(item):
                raise InputError(f"Input {dict(item)!r} needs the keys 'ref' and 'digest'.")
            return item
        art = item if isinstance(item, Artifact) else self.get(item)
        return {"ref": art.ref, "digest": art.digest}

    def tag(self, ref: Reference, tag: str, *, force: bool = False) -> Artifact:
        """Point ``tag`` at a version; a tag that points elsewhere moves only with ``force``."""
        tree = self.writable()
        art = self.get(ref)
        with disk.explained(tree.root, "the tag was not set"):
            tree.set_tag(art.name, art.version, refs.check_tag(tag), force=force)
        return art

    def untag(self, name: str, tag: str) -> None:
        """Take a tag away; the version stays."""
        tree = self.writable()
        with disk.explained(tree.root, "the tag was not removed"):
            try:
                tree.drop_tag(self._known(refs.check_name(name)), refs.check_tag(tag))
            except FileNotFoundError:
                raise NotFound(f"{name!r} has no tag {tag!r}.{did_you_mean(tag, self.tags(name))}") from None

    def tags(self, name: str) -> dict[str, int]:
        """Tag -> version number."""
        return self._tree.tags(refs.check_name(name))

    # -- elsewhere -------------------------------------------------------------------------------------------------

    def push(self, refs: Sequence[str] | None, url: str, *, move_tags: bool = False) -> list[Transfer]:
        """Copy versions (None: all) to the store at ``url``; see ``workbench.store.remote.push``."""
        from workbench.store import remote

        return list(remote.push(self, refs, url, move_tags=move_tags))

    def pull(self, refs: Sequence[str] | None, url: str, *, move_tags: bool = False) -> list[Transfer]:
        """Copy versions (None: all) from the store at ``url``; see ``workbench.store.remote.pull``."""
        from workbench.store import remote

        return list(remote.pull(self, refs, url, move_tags=move_tags))

    # -- history ---------------------------------------------------------------------------------------------------

    def lineage(self, ref: Reference) -> list[Ancestor]:
        """Everything the artifact was made from, nearest first, each once."""
        art = self.get(ref)
        found: list[Ancestor] = []
        seen: set[str] = set()
        level: list[tuple[str, manifest.Manifest]] = [(art.ref, art.manifest)]
        index: dict[str, Artifact] | None = None
        depth = 0
        while level:
            depth, deeper = depth + 1, []
            for child, page in level:
                for parent in page["inputs"]:
                    if parent["digest"] in seen:
                        continue
                    seen.add(parent["digest"])
                    held = self._at(parent)
                    if held is None:
                        index = self._digests() if index is None else index
                        held = index.get(parent["digest"])
                    state = "absent" if held is None else "removed" if held.removed else "ok"
                    name = held.ref if held else parent["ref"]
                    found.append(Ancestor(name, parent["digest"], depth, child, state))
                    if held:
                        deeper.append((held.ref, held.manifest))
            level = deeper
        return found

    def _at(self, parent: Mapping[str, str]) -> Artifact | None:
        """The input where its own reference says it is; None if something else (or nothing) is there."""
        try:
            held = self._resolve(parent["ref"])
        except (StoreError, InputError):
            return None
        return held if held.digest == parent["digest"] else None

    def _digests(self) -> dict[str, Artifact]:
        found: dict[str, Artifact] = {}
        for name in self._tree.folders():
            for _, page in self._tree.history(name):
                if not isinstance(page, CorruptArtifact) and page["digest"]:
                    art = self._artifact(page)
                    if art.digest not in found or found[art.digest].removed:
                        found[art.digest] = art
        return found

    def stale(self, ref: Reference) -> list[Stale]:
        """The direct inputs that have a newer version of other content, or are gone; empty when up to date."""
        out = []
        for parent in self.get(ref).manifest["inputs"]:
            name = parent["ref"].partition("@")[0]
            newest = self._newest(name) if refs.is_name(name) else None
            if newest is None:
                out.append(Stale(parent["ref"], None, f"{parent['ref']} is gone from this store"))
            elif isinstance(newest, CorruptArtifact):
                out.append(Stale(parent["ref"], None, str(newest)))
            elif newest.digest != parent["digest"]:
                out.append(Stale(parent["ref"], newest.ref, f"{newest.ref} is newer than {parent['ref']}"))
        return out

    def diff(self, a: Reference, b: Reference) -> dict[str, Any]:
        """What differs between two artifacts: config, inputs, producer, summary (``key: [a, b]``) and files."""
        left, right = self.get(a), self.get(b)
        out: dict[str, Any] = {"a": left.ref, "b": right.ref, "same": left.digest == right.digest}
        for part in ("kind", "config", "inputs", "producer", "summary", "run_key"):
            old, new = ({part: art.manifest.get(part)} for art in (left, right))
            changes = manifest.differences(old, new)
            out[part] = {key.removeprefix(f"{part}."): change for key, change in changes.items()}
        files_a, files_b = left.files(), right.files()
        out["files"] = {
            name: "added" if name not in files_a
            else "removed" if name not in files_b
            else "same" if files_a[name]["sha256"] == files_b[name]["sha256"]
            else "changed"
            for name in sorted({*files_a, *files_b})
        }  # fmt: skip
        return out

    # -- care ------------------------------------------------------------------------------------------------------

    def fsck(self, *, fast: bool = False, repair: bool = False) -> list[care.Problem]:
        """Check every byte of the store (``fast``: only that files exist with their sizes); empty means sound.

        ``repair`` restores files from a sound copy and moves the rest of the damage to ``.store/quarantine``;
        nothing is ever deleted.
        """
        tree = self.writable()
        with disk.explained(tree.root, "the repair stopped half-way"):
            return care.fsck(tree, fast=fast, repair=repair)

    def gc(self, *, age: float = care.DAY) -> care.Freed:
        """Remove what no version refers to: staging left by dead writers for ``age`` seconds, unshared objects."""
        tree = self.writable()
        with disk.explained(tree.root, "some left-overs remain"):
            return care.gc(tree, age=age)

    def remove(self, ref: Reference, why: str) -> Artifact:
        """Remove the payloads of a version; its number, config, inputs and digest stay on record with ``why``."""
        tree = self.writable()
        art = self._resolve(ref)
        with disk.explained(tree.root, f"{art.ref} is only partly removed"):
            return self._artifact(care.remove(tree, art.name, art.version, why))


def _is_whole(art: Artifact) -> bool:
    """All payloads are there with their sizes (bytes are checked when they are read)."""
    for name, entry in art.files().items():
        path = art.folder / name
        if not disk.is_file(path) or path.lstat().st_size != entry["size"]:
            return False
    return True
