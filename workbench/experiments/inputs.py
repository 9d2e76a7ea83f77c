"""Make a spec self-contained: files it names become part of it, so that an artifact can be rerun from itself alone.

Samples, pairs, prompts, needles and a task's words are inlined as data; a haystack, which may be a book, becomes a text
file of its own that is stored beside the results. Where paths are looked for and may lead is decided in `paths`. This
module knows which keys of `data:` name files, and nothing of what is in them.
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
from workbench.experiments.paths import Reach
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
        InputError: a file does not exist, cannot be read, or lies where the spec may not read; the message names the
            key.
    """
    return _gathered(dict(spec.data), spec.reach, "data")


def _gathered(data: dict[str, Any], reach: Reach, at: str) -> Inputs:
    """`data` is the block at the dotted key `at`, and is changed."""
    if isinstance(data.get("tasks"), Mapping):  # of pairs alone, so there is no haystack to store beside them
        blocks = {
            name: _gathered(dict(block), reach, f"{at}.tasks.{name}").data if isinstance(block, Mapping) else block
            for name, block in data["tasks"].items()
        }
        return Inputs({**data, "tasks": blocks})
    if isinstance(data.get("file"), str) and "corrupted_file" not in data:
        path = reach.find(data["file"], f"{at}.file")
        if pope.is_images({**data, "file": path}):
            del data["file"]
            rows = list(_rows(path, "questions file"))
            return Inputs(_with_images({"samples": rows, "name": path.stem, **data}, reach, at, beside=path.parent))
    elif pope.is_images(data):
        return Inputs(_with_images(data, reach, at))
    if isinstance(data.get("files"), str):
        folder = reach.find(data["files"], f"{at}.files")
        reach.guard_folder(folder, f"{at}.files")
        data["files"] = circuits.mib_words(folder)
    if "corrupted_file" in data:
        path, other = (reach.find(_path(data, key), f"{at}.{key}") for key in ("file", "corrupted_file"))
        data["pairs"] = circuits.colored_pairs(path, other, n=data.pop("n", None))
        data.setdefault("name", path.stem)
    if isinstance(data.get("file"), str):
        path = reach.find(data.pop("file"), f"{at}.file")
        data |= _explicit(path, prompts="benign_file" in data)
        data.setdefault("name", path.stem)
    if isinstance(data.get("benign_file"), str):
        path = reach.find(data.pop("benign_file"), f"{at}.benign_file")
        data["benign"] = read_prompts(path, what="benign prompts file")
    if isinstance(data.get("needles"), str):
        data["needles"] = list(_rows(reach.find(data["needles"], f"{at}.needles"), "needles file"))
    if isinstance(data.get("haystack"), str):
        _, text = checks.text_file(reach.find(data["haystack"], f"{at}.haystack"), what="haystack file")
        data["haystack"] = HAYSTACK
        return Inputs(data, {HAYSTACK: text})
    return Inputs(data)


def _with_images(data: dict[str, Any], reach: Reach, at: str, *, beside: Path | None = None) -> dict[str, Any]:
    """Images stay where they are: their folder, or the paths of the rows, made absolute.

    `beside` is the folder of the file that the rows came from.
    """
    if data.get("images", "") is None:  # as good as not there
        del data["images"]
    if isinstance(data.get("images"), str):
        beside = reach.find(data["images"], f"{at}.images").absolute()
        data = {**data, "images": str(beside)}
    elif "images" in data:
        return data  # no folder: refused where the pictures are read
    elif beside is not None:
        data = {**data, "images": str(beside)}
    if not isinstance(data.get("samples"), list):
        return data
    rows = []
    for i, row in enumerate(data["samples"]):
        key = f"{at}.samples.{i}.image"
        if isinstance(row, Mapping) and isinstance(row.get("image"), str):
            if beside is None:
                row = {**row, "image": str(reach.find(row["image"], key).absolute())}
            else:
                reach.guard_inside(beside, row["image"], key)
        rows.append(row)
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
