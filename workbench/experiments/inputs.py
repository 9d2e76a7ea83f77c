"""Make a spec self-contained: files it names become part of it, so that an artifact can be rerun from itself alone.

Samples, pairs, prompts, needles and a task's words are inlined as data; a haystack, which may be a book, becomes a text
file of its own that is stored beside the results. Paths are looked for in the spec file's folder first, then in the
current directory. It knows which keys of `data:` name files, and nothing of what is in them.
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
from workbench.tasks import checks, circuits, pope
from workbench.tasks.prompts import is_prompts, read_prompts

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
    if isinstance(data.get("tasks"), Mapping):
        return Inputs({**data, "tasks": {name: _block(block, spec) for name, block in data["tasks"].items()}})
    if isinstance(data.get("file"), str) and "images" in data:
        path = _find(data.pop("file"), spec, "data.file")
        data = {"samples": list(_rows(path, "questions file")), "name": path.stem, **data}
    if pope.is_images(data):
        return Inputs(_with_image_paths(data, spec))
    if isinstance(data.get("files"), str):
        data["files"] = circuits.mib_words(_find(data["files"], spec, "data.files"))
    if "corrupted_file" in data:
        path, other = (_find(_path(data, key), spec, f"data.{key}") for key in ("file", "corrupted_file"))
        data["pairs"] = circuits.colored_pairs(path, other, n=data.pop("n", None))
        data.setdefault("name", path.stem)
    if isinstance(data.get("file"), str):
        path = _find(data.pop("file"), spec, "data.file")
        data |= _explicit(path, prompts="benign_file" in data)
        data.setdefault("name", path.stem)
    if isinstance(data.get("benign_file"), str):
        path = _find(data.pop("benign_file"), spec, "data.benign_file")
        data["benign"] = read_prompts(path, what="benign prompts file")
    if isinstance(data.get("needles"), str):
        data["needles"] = list(_rows(_find(data["needles"], spec, "data.needles"), "needles file"))
    if isinstance(data.get("haystack"), str):
        _, text = checks.text_file(_find(data["haystack"], spec, "data.haystack"), what="haystack file")
        data["haystack"] = HAYSTACK
        return Inputs(data, {HAYSTACK: text})
    return Inputs(data)


def _block(block: Any, spec: Spec) -> Any:
    """The data block of one of several tasks, with its files inlined; pairs have no haystack to store beside them."""
    return gather(spec.model_copy(update={"data": block})).data if isinstance(block, Mapping) else block


def _with_image_paths(data: dict[str, Any], spec: Spec) -> dict[str, Any]:
    """Images stay where they are: their folder, or the paths of the rows, made absolute."""
    if isinstance(data.get("images"), str):
        return {**data, "images": str(_find(data["images"], spec, "data.images").absolute())}
    rows = [
        {**row, "image": str(_find(row["image"], spec, f"data.samples.{i}.image").absolute())}
        if isinstance(row, Mapping) and isinstance(row.get("image"), str)
        else row
        for i, row in enumerate(data["samples"])
    ]
    return {**data, "samples": rows}


def _explicit(path: Path, *, prompts: bool) -> dict[str, Any]:
    """What a data file holds, as the key that says so inline."""
    if prompts or is_prompts(path, None):
        return {"prompts": read_prompts(path)}
    rows = _rows(path, "samples file")
    if is_prompts(path, rows[0]):
        return {"prompts": read_prompts(path)}
    return {"pairs" if "clean" in rows[0] else "samples": rows}


def _rows(path: Path, what: str) -> list[Any]:
    rows = checks.json_lines(path, what=what)
    return list(rows.values()) if isinstance(rows, Mapping) else list(rows)


def _path(data: dict[str, Any], key: str) -> str:
    """The path under `key`, taken out of `data`."""
    path = data.pop(key, None)
    if not isinstance(path, str):
        raise InputError(f"data.{key} is the name of a file, not {path!r}; name both files, clean and corrupted.")
    return path


def _find(name: str, spec: Spec, key: str) -> Path:
    given = Path(name).expanduser()
    for folder in spec.folders:
        if (folder / given).exists():
            return folder / given
    tried = " or ".join(str(folder) for folder in spec.folders)
    raise InputError(f"{spec.source or 'spec'}: {key}: there is no file {name!r} in {tried}; correct the path.")
