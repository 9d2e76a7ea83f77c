"""Where the paths of a spec may lead: nowhere but to places its reader knows about.

A spec file, or the spec that an artifact recorded, may come from anybody. A path it names is taken with its links
followed, and must lie in the spec's own folder, in the current directory, or below a folder that the user allowed
(`--allow DIR`, `$WORKBENCH_PATHS`). What the user typed himself is taken as given. Whatever reads a path of a spec goes
through here: data files, image folders and the images in them, autoencoders, model directories.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from workbench.errors import InputError

VARIABLE = "WORKBENCH_PATHS"
_MODEL = "model.path"
_LONGEST_HUB_NAME = 200  # twice what the hub allows; far less than a file's name may have


class PathRefused(InputError):
    """A spec names a path outside what it may read."""


@dataclass(frozen=True)
class Reach:
    """What paths of one spec may lead to.

    Attributes:
        source: the file the spec was read from; None for one that was written in Python, whose paths are all typed.
        typed: dotted keys that the user set himself (`--set`, `--sweep`, `--model`, overrides in Python).
        own: dotted keys that the spec file sets although they come as overrides do: those of its `sweep:`.
        allowed: folders that the user allowed.
        checked: every path was checked before, by who wrote the spec down: that of a job, in its worker.
    """

    source: Path | None = None
    typed: frozenset[str] = frozenset()
    own: frozenset[str] = frozenset()
    allowed: tuple[Path, ...] = ()
    checked: bool = False

    @classmethod
    def of(cls, source: str | Path | None, *, allow: Iterable[str | Path] = ()) -> Reach:
        """That of a spec file.

        Raises:
            InputError: an allowed folder is none.
        """
        return cls(None if source is None else Path(source).resolve()).allowing(allow)

    def allowing(self, folders: Iterable[str | Path]) -> Reach:
        """The same, and what lies below these folders.

        Raises:
            InputError: one of them is no folder.
        """
        found = []
        for folder in [folders] if isinstance(folders, str | Path) else folders:
            path = _expanded(folder)
            if path is None or not _is_dir(path):
                raise InputError(f"--allow {str(folder)!r} is no folder; name one that exists.")
            found.append(path.resolve())
        return replace(self, allowed=(*self.allowed, *found))

    def typing(self, keys: Iterable[str]) -> Reach:
        """The same, after the user set these keys."""
        new = {key for key in keys if not any(_within(key, own) or _within(own, key) for own in self.own)}
        return replace(self, typed=self.typed | new)

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where relative paths are looked for: the spec file's folder first, then the current directory."""
        here = Path.cwd()
        return (self.source.parent, here) if self.source is not None else (here,)

    @property
    def roots(self) -> tuple[Path, ...]:
        """What paths must lie in, links followed."""
        named = [_expanded(entry) for entry in os.environ.get(VARIABLE, "").split(os.pathsep) if entry]
        real = [_real(path) for path in (*self.folders, *named, *self.allowed) if path is not None]
        return tuple(dict.fromkeys(path for path in real if path is not None))

    def find(self, name: str, key: str) -> Path:
        """The file or folder that `key` names, as it is named: links are followed to judge it, not in what is returned.

        Raises:
            PathRefused: it leads where nobody allowed it.
            InputError: there is none.
        """
        given = _expanded(name)
        for found in [] if given is None else [folder / given for folder in self.folders]:
            if _exists(found):
                self.guard(found, key, name=name)
                return found
        tried = " or ".join(map(str, self.folders))
        raise InputError(f"{self._where}: {key}: there is no file {name!r} in {tried}; correct the path.")

    def find_model(self, path: str) -> str:
        """`model.path` as `load_model` should get it: a directory made absolute, an organism or hub name unchanged.

        Raises:
            PathRefused: the directory, or a file in it, leads where nobody allowed it.
            InputError: it can only be a directory, and is none.
        """
        if path.startswith("organism:"):
            return path
        given = _expanded(path)
        for found in [] if given is None else [folder / given for folder in self.folders]:
            if _is_dir(found):
                self.guard_folder(found, _MODEL, name=path)
                return str(found.resolve())
        is_hub_name = path[:1] not in (".", "~", "/") and path.count("/") <= 1 and len(path) <= _LONGEST_HUB_NAME
        if given is None or given.is_absolute() or not is_hub_name:
            tried = ", ".join(map(str, self.folders))
            raise InputError(
                f"The model directory {path!r} does not exist (looked from {tried}); correct `model.path`."
            )
        return path

    def guard(self, path: Path, key: str, *, name: str | None = None, beside: Path | None = None) -> None:
        """Refuse a path that leads outside, whether there is something or not.

        Args:
            name: what the spec calls it.
            beside: a folder that it may lie in as well, because that was judged already.

        Raises:
            PathRefused: naming key, path, where it leads and the remedy.
        """
        if self._is_free(key):
            return
        real = _real(path)
        name = str(path) if name is None else name
        if real is None:
            raise PathRefused(f"{self._where}: {key}: {_shown(name)} is no path that can be followed; correct it.")
        judged = None if beside is None else _real(beside)
        if any(real.is_relative_to(root) for root in (*self.roots, judged) if root is not None):
            return
        raise PathRefused(
            f"{self._where}: {key}: {_shown(name)} leads to {_shown(real)}, outside the spec's folder and the current "
            f"directory; if it may read there, add --allow {_shown(real.parent)} (in Python allow=[...], for good "
            f"${VARIABLE})."
        )

    def guard_folder(self, path: Path, key: str, *, name: str | None = None) -> None:
        """`guard` a folder and the links in it."""
        self.guard(path, key, name=name)
        if self._is_free(key):
            return
        try:
            links = [entry for entry in path.iterdir() if entry.is_symlink()]
        except OSError:  # not a folder, or not readable: whoever reads it says so
            return
        for link in links:
            self.guard(link, key, beside=path)

    def guard_inside(self, folder: Path, name: str, key: str) -> None:
        """`guard` what something in a folder that was judged already names, relative to that folder."""
        given = _expanded(name)
        self.guard(Path(name) if given is None else folder / given, key, name=name, beside=folder)

    def guard_params(self, params_type: type[BaseModel], params: Mapping[str, Any]) -> None:
        """Guard every parameter that is marked as a path, `Field(json_schema_extra={"path": True})`.

        Those are relative to the current directory, and are read as soon as parameters are validated.
        """
        for key, name in _paths_among(params_type, params, "params"):
            given = _expanded(name)
            self.guard_folder(Path(name) if given is None else Path.cwd() / given, key, name=name)

    def _is_free(self, key: str) -> bool:
        return self.checked or self.source is None or any(_within(key, typed) for typed in self.typed)

    @property
    def _where(self) -> str:
        return str(self.source or "spec")


def _paths_among(owner: type[BaseModel], values: Mapping[str, Any], at: str) -> Iterator[tuple[str, str]]:
    """Dotted key and value of the texts among `values` whose fields are marked as paths."""
    for name, field in owner.model_fields.items():
        value, extra = values.get(name), field.json_schema_extra
        if isinstance(value, str) and isinstance(extra, Mapping) and extra.get("path"):
            yield f"{at}.{name}", value
        if isinstance(value, Mapping):
            for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
                if isinstance(inner, type) and issubclass(inner, BaseModel):
                    yield from _paths_among(inner, value, f"{at}.{name}")


def _within(key: str, above: str) -> bool:
    """Whether the dotted `key` is `above` or below it."""
    return key == above or key.startswith(above + ".")


def _expanded(name: str | Path) -> Path | None:
    """With `~` replaced; None where there is no such home or the text is no path at all."""
    try:
        return None if "\0" in str(name) else Path(name).expanduser()
    except RuntimeError:
        return None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # too long, or in a folder that may not be looked into
        return False


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _real(path: Path) -> Path | None:
    """With every link followed; None for a loop of links, or a text that no file can be called."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):
        return None


def _shown(name: str | Path) -> str:
    text = str(name)
    return repr(text if len(text) <= 200 else f"{text[:200]}...")
