"""Push and pull: versions copied between a local store and one at a URL, checked on both sides, never overwritten.

    push    payloads -> read back and hashed -> MANIFEST.json -> number -> tags
    pull    payloads -> hashed -> the next local number, in one rename -> tags

A version there lies in a folder named by the sha256 of its manifest, which holds the sha256 of its payloads: whoever
writes a file, and however often, writes the same bytes. So pushers need no lock, an interrupted push is finished by the
next one, and a reader takes for an artifact only what is complete. The number is claimed last, by a put that fails when
the number is taken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.errors import CorruptArtifact, StoreError
from workbench.store import disk, manifest, refs
from workbench.store.artifact import Artifact
from workbench.store.remote_tree import RemoteTree, Snapshot, is_hash

if TYPE_CHECKING:
    from pathlib import Path

    from workbench.store.local import Tree
    from workbench.store.store import Store

_README = """\
# Pushed artifacts

Written by `workbench push`; read with `workbench ls --store URL` or fetched with `workbench pull`.
Every version is a folder `NAME/@HASH` of ordinary files, where HASH is the sha256 of its MANIFEST.json;
`NAME/v3` holds the HASH of version 3 and `NAME/tags/paper` that of the version tagged `paper`.
"""
_TRIES = 1000


@dataclass(frozen=True)
class Transfer:
    """What became of one version.

    Attributes:
        ref, became: its reference where it came from and where it is now.
        is_new: False when it was there already.
        files, bytes: what was copied.
        tags: set (or found to be set) on it.
        kept: tags that were left pointing at another version there.
    """

    ref: str
    became: str
    is_new: bool
    files: int
    bytes: int
    tags: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


# -- push --------------------------------------------------------------------------------------------------------------


def push(store: Store, wanted: Sequence[str] | None, url: str, *, move_tags: bool = False) -> Iterator[Transfer]:
    """Copy versions (None: all) to the store at `url`, one after the other, oldest first.

    Raises:
        NotFound: a reference that the store does not have; nothing was copied then.
        CorruptArtifact: a payload is damaged here.
        StoreError: the place cannot be reached; what was copied stays, and the next push goes on from there.
    """
    store.writable()  # from one place elsewhere to another goes through a store here, which checks
    artifacts = _all(store) if wanted is None else [store.get(ref) for ref in wanted]
    tree = RemoteTree(url)
    if not tree.has_format():
        tree.remote.create("README.md", _README.encode())
        tree.begin()
    seen = tree.look() if wanted is None else None  # one listing tells of most that they are there
    for artifact in artifacts:
        yield _push(store, artifact, tree, seen, move_tags=move_tags)


def _push(store: Store, artifact: Artifact, tree: RemoteTree, seen: Snapshot | None, *, move_tags: bool) -> Transfer:
    with _read_here(artifact):
        page = disk.read(artifact.folder / refs.MANIFEST)
    found = seen if seen and _held(seen, artifact) else tree.look(artifact.name)
    held = _held(found, artifact)
    key = held or hashlib.sha256(page).hexdigest()
    moved = [
        _put_payload(artifact, name, f"{artifact.name}/@{key}", tree, found, trusted=held is not None)
        for name in artifact.files()
    ]
    if held is None:
        path = f"{artifact.name}/@{key}/{refs.MANIFEST}"
        tree.remote.put(path, page)
        _check_arrival(tree, path, key, len(page))
    number, found = _number(artifact.name, key, tree, found if held else tree.look(artifact.name))
    set_, kept = _push_tags(store, artifact, key, tree, found, move=move_tags)
    sent = [size for size in moved if size is not None]
    became = f"{artifact.name}@v{number}"
    return Transfer(artifact.ref, became, held is None, len(sent), sum(sent), tuple(set_), tuple(kept))


def _held(found: Snapshot, artifact: Artifact) -> str | None:
    """The folder of a version with the same content and run key, if the place has one."""
    for key, page in found.pages[artifact.name].items():
        if page and page["digest"] == artifact.digest and page["run_key"] == artifact.run_key:
            return key
    return None


def _put_payload(
    artifact: Artifact, name: str, folder: str, tree: RemoteTree, found: Snapshot, *, trusted: bool
) -> int | None:
    """Upload one payload unless it is there; its size, or None when it was."""
    entry, path = artifact.files()[name], f"{folder}/{name}"
    if found.sizes.get(path) == entry["size"] and (
        trusted or tree.remote.sha256(path, entry["size"]) == entry["sha256"]
    ):
        return None
    source = artifact.path(name)
    with _read_here(artifact):
        sound = source.lstat().st_size == entry["size"] and disk.sha256(source) == entry["sha256"]
    if not sound:
        raise CorruptArtifact(
            f"{source} of {artifact.ref} is not what was committed, so it was not pushed: run `workbench fsck "
            "--repair` first."
        )
    tree.remote.put(path, source)
    _check_arrival(tree, path, entry["sha256"], entry["size"])
    return entry["size"]


@contextmanager
def _read_here(artifact: Artifact) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CorruptArtifact(
            f"{error.filename or artifact.folder} of {artifact.ref} cannot be read ({error.strerror or error}): run "
            "`workbench fsck`."
        ) from error


def _check_arrival(tree: RemoteTree, path: str, sha256: str, size: int) -> None:
    if tree.remote.sha256(path, size) != sha256:
        raise StoreError(f"{tree.remote.url}/{path} did not arrive as it was sent; push again.")


def _number(name: str, key: str, tree: RemoteTree, found: Snapshot) -> tuple[int, Snapshot]:
    """The version's number there, claimed now if it has none; so are those of versions left without one."""
    for _ in range(_TRIES):
        numbers = {held: number for number, held in sorted(found.claims[name].items(), reverse=True)}
        if key in numbers:
            return numbers[key], found
        waiting = found.unclaimed(name)
        if not waiting:
            raise StoreError(f"{tree.remote.url}/{name}/@{key} vanished while it was being pushed; push again.")
        tree.remote.create(f"{name}/v{found.taken[name] + 1}", f"{waiting[0]}\n".encode())
        found = tree.look(name)  # whose claim it became is seen there, whatever `create` said
    raise StoreError(f"{tree.remote.url} gave no number to {name} in {_TRIES} tries; try again when it is quieter.")


def _push_tags(
    store: Store, artifact: Artifact, key: str, tree: RemoteTree, found: Snapshot, *, move: bool
) -> tuple[list[str], list[str]]:
    mine = [tag for tag, version in store.tags(artifact.name).items() if version == artifact.version]
    there = found.tags[artifact.name]
    set_, kept = [], []
    for tag in mine:
        path, data = f"{artifact.name}/tags/{tag}", f"{key}\n".encode()
        standing = there.get(tag)
        if standing is None:
            standing = key if tree.remote.create(path, data) else _standing(tree.remote.read(path))
        if standing not in (None, key) and not move:
            kept.append(tag)
            continue
        if standing != key:
            tree.remote.put(path, data)
        set_.append(tag)
    return set_, kept


def _standing(data: bytes | None) -> str | None:
    """What a tag points to; None for half a tag, of a push that was cut off where a put is not atomic."""
    return data.decode().strip() if data and is_hash(data) else None


# -- pull --------------------------------------------------------------------------------------------------------------


def pull(store: Store, wanted: Sequence[str] | None, url: str, *, move_tags: bool = False) -> Iterator[Transfer]:
    """Copy versions (None: all) from the store at `url` into the local one, oldest first; each gets a number here.

    The manifest's `origin` keeps where it came from: url, ref and manifest hash there, and when it was first made.

    Raises:
        NotFound: a reference that the place does not have; nothing was copied then.
        CorruptArtifact: a payload is damaged there; nothing of that version is kept.
        StoreError: the place cannot be reached, or this store cannot be written.
    """
    from workbench.store.store import Store

    there = Store(url)
    artifacts = _all(there) if wanted is None else [there.get(ref) for ref in wanted]
    for artifact in artifacts:
        found = _here(store, artifact, with_removed=wanted is None)
        if found is None or not found.removed:
            yield _pull(store, there, artifact, found, move_tags=move_tags)


def _here(store: Store, artifact: Artifact, *, with_removed: bool) -> Artifact | None:
    """A local version of the same content and run key, rather one that is not removed."""
    if not store.writable().versions(artifact.name):
        return None
    same = [
        other
        for other in store.log(artifact.name)
        if other.digest == artifact.digest and other.run_key == artifact.run_key
    ]
    return next((one for one in same if not one.removed), same[0] if same and with_removed else None)


def _pull(store: Store, there: Store, artifact: Artifact, found: Artifact | None, *, move_tags: bool) -> Transfer:
    is_new = found is None
    if found is None:
        tree = store.writable()
        with ExitStack() as stack:
            with disk.explained(tree.root):
                tree.create()
                folder = stack.enter_context(tree.private_folder())
            for name in artifact.files():
                _fetch(artifact, name, folder)
            with disk.explained(tree.root):
                page, is_new = _commit(tree, folder, _origin_of(artifact), list(artifact.files()))
        found = store.get(f"{page['name']}@v{page['version']}")
    set_, kept = _pull_tags(store, there, artifact, found, move=move_tags)
    sizes = [entry["size"] for entry in artifact.files().values()] if is_new else []
    return Transfer(artifact.ref, found.ref, is_new, len(sizes), sum(sizes), tuple(set_), tuple(kept))


def _fetch(artifact: Any, name: str, folder: Path) -> None:
    artifact.tree.fetch(artifact.name, artifact.version, name, artifact.files()[name], folder / name)


def _origin_of(artifact: Any) -> manifest.Manifest:
    """The manifest a copy starts from: what it is, and where it was fetched."""
    page = artifact.manifest
    dropped = ("version", "previous", "created", "commit", "seal", "files", "origin")
    origin = {
        "url": artifact.tree.remote.url,
        "ref": artifact.ref,
        "manifest": artifact.folder.name,
        "created": page.get("origin", page)["created"],
    }
    return {**{key: value for key, value in page.items() if key not in dropped}, "origin": origin}


def _pull_tags(
    store: Store, there: Store, artifact: Artifact, found: Artifact, *, move: bool
) -> tuple[list[str], list[str]]:
    set_, kept = [], []
    here = store.tags(found.name)
    for tag, version in there.tags(artifact.name).items():
        if version != artifact.version:
            continue
        if here.get(tag, found.version) == found.version or move:
            store.tag(found, tag, force=move)
            set_.append(tag)
        else:
            kept.append(tag)
    return set_, kept


def _all(store: Store) -> list[Artifact]:
    """Every version that is not removed, by name, oldest first."""
    return [art for name in store.names() for art in reversed(store.log(name)) if not art.removed]


def _commit(tree: Tree, folder: Path, draft: manifest.Manifest, names: list[str]) -> tuple[manifest.Manifest, bool]:
    """Commit fetched payloads under the digest they had where they came from.

    Raises:
        CorruptArtifact: they do not add up to that digest.
    """
    expected = draft["digest"]
    files = {name: {"sha256": disk.sha256(folder / name), "size": (folder / name).lstat().st_size} for name in names}
    if manifest.identity({**draft, "files": files}) != expected:
        raise CorruptArtifact(f"What was fetched of {draft['name']} does not add up to {expected}; nothing was kept.")
    return tree.commit(folder, draft, names)
