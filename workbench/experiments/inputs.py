"""Make a spec self-contained: files it names become part of it, so that an artifact can be rerun from itself alone.

Samples, pairs and needles are inlined as data; a haystack, which may be a book, becomes a text file of its own that is
stored beside the results. Paths are looked for in the spec file's folder first, then in the current directory. It knows
which keys of `data:` name files, and nothing of what is in them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from workbench.errors import InputError
from workbench.experiments.spec import Spec
from workbench.tasks import checks

HAYSTACK = "haystack.txt"


@dataclass(frozen=True)
class Inputs:
    """A spec's data without outside references.

    Attributes:
        data: the `data:` block; the only file names left are keys of `files`.
        files: text by file name, to be stored with the result.
    """

    data: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """`data` with the digest of every file beside it: what the run key is made of."""
        digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in self.files.items()}
        return {**self.data, "files": digests} if digests else self.data

    @contextmanager
    def folder(self) -> Iterator[Path | None]:
        """A folder that holds `files` while the dataset is made; None when there are none."""
        if not self.files:
            yield None
            return
        with TemporaryDirectory(prefix="workbench-data-") as name:
            for file, text in self.files.items():
                (Path(name) / file).write_text(text, encoding="utf-8")
            yield Path(name)


def gather(spec: Spec) -> Inputs:
    """Read every file that `spec.data` names.

    Raises:
        InputError: a file does not exist or cannot be read; the message names the key.
    """
    data = dict(spec.data)
    if isinstance(data.get("file"), str):
        path = _find(data.pop("file"), spec, "data.file")
        rows = list(_rows(path, "samples file"))
        data["pairs" if "clean" in rows[0] else "samples"] = rows
        data.setdefault("name", path.stem)
    if isinstance(data.get("needles"), str):
        data["needles"] = list(_rows(_find(data["needles"], spec, "data.needles"), "needles file"))
    if isinstance(data.get("haystack"), str):
        _, text = checks.text_file(_find(data["haystack"], spec, "data.haystack"), what="haystack file")
        data["haystack"] = HAYSTACK
        return Inputs(data, {HAYSTACK: text})
    return Inputs(data)


def _rows(path: Path, what: str) -> list[Any]:
    rows = checks.json_lines(path, what=what)
    return list(rows.values()) if isinstance(rows, Mapping) else list(rows)


def _find(name: str, spec: Spec, key: str) -> Path:
    given = Path(name).expanduser()
    for folder in spec.folders:
        if (folder / given).exists():
            return folder / given
    tried = " or ".join(str(folder) for folder in spec.folders)
    raise InputError(f"{spec.source or 'spec'}: {key}: there is no file {name!r} in {tried}; correct the path.")
