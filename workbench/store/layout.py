"""The store's own furniture: STORE.json that says which format this is, README.md for people, and their creation.

Creation is idempotent and safe to race: every step either finds its result or makes it appear whole, so a writer killed
half-way leaves nothing the next one cannot finish. Nothing here knows about versions.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.errors import CorruptArtifact, StoreError
from workbench.store import disk, manifest

if TYPE_CHECKING:
    from workbench.store.local import Tree

README = """\
# Artifact store

Results of experiments, one folder per version: `NAME/v1/`, `NAME/v2/`, ... Each holds ordinary files and a
MANIFEST.json that says what was run, from what, by which code, and the sha256 of every file.

    import pandas; pandas.read_parquet("NAME/v1/heads.parquet")
    from safetensors.numpy import load_file; load_file("NAME/v1/arrays.safetensors")

`NAME/tags/paper` is a text file that holds the version it points to. Versions never change: do not edit, move or
delete them by hand (`workbench fsck` would tell). `.store/` is housekeeping; nothing in it is a result.
The format is described in docs/store-format.md of the workbench.
"""


def _page(*, hardlink: bool) -> bytes:
    probe = {"hardlink": hardlink, "dir_rename_excl": True}
    return manifest.to_json({"format": manifest.FORMAT, "hash": "sha256", "probe": probe})


PAGES = (_page(hardlink=True), _page(hardlink=False))  # all that STORE.json can say in this format


def check_format(root: Path) -> None:
    """Refuse a store of a format we do not know; an absent one is fine."""
    path = root / "STORE.json"
    try:
        found = json.loads(disk.read(path))["format"]
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise StoreError(f"The store path {str(root)!r} is a file; name a folder.") from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}); check its permissions and the disk.") from error
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CorruptArtifact(
            f"{path} is damaged: delete it (it holds nothing unique and is written anew), then run "
            "`workbench fsck --repair`."
        ) from None
    if found != manifest.FORMAT:
        raise StoreError(f"{path} says format {found!r}; this workbench reads {manifest.FORMAT}: install a newer one.")


def create(tree: Tree) -> None:
    """Create whatever is absent; an existing README.md is kept."""
    root = tree.root
    if disk.is_file(root / "STORE.json") and disk.is_dir(tree.staging):
        return
    _make_root(root, durable=tree.durable)
    for folder in (tree.inner, tree.staging, tree.objects):
        disk.make_dirs(folder, root, durable=tree.durable)
    if not (root / "README.md").exists():
        tree.place(root / "README.md", README.encode())
    if not (root / "STORE.json").exists():
        tree.place(root / "STORE.json", _page(hardlink=_has_hard_links(tree)))


def _make_root(root: Path, *, durable: bool) -> None:
    missing = [folder for folder in (root, *root.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        disk.sync_dir(folder.parent, durable=durable)
    if not root.is_dir():
        raise StoreError(f"The store path {str(root)!r} is a file; name a folder.")


def _has_hard_links(tree: Tree) -> bool:
    """Try what the promises need on this file system; refuse one that lets a commit overwrite another."""
    with tree.private_folder() as mine, tree.private_folder() as taken:
        disk.write_new(taken / "file", b"x", durable=False)
        try:
            os.link(taken / "file", mine / "link")
            hardlink = True
        except OSError:
            hardlink = False
        with suppress(OSError):
            mine.rename(taken)
            raise StoreError(
                f"The file system of {str(tree.root)!r} lets a folder replace another, so two writers could "
                "overwrite each other; choose a local disk with WORKBENCH_STORE."
            )
        return hardlink
