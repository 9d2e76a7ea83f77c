"""Prompt files of two public benchmarks, read as they are published.

    pairs_from_samples(model, colored_pairs("cobjs_data_42.json", "cobjs_mindiff_data_42.json"))   # circuit_reuse
    circuits.ioi(model, files="mib_ioi/")                                                          # MIB

circuit_reuse lists `[prompt, answer]` in two files, line by line the clean and the minimally different prompt. MIB has
templates with `{name_A} {name_B} {name_C} {place} {object}` and lists of what to put in. Nothing is downloaded.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench.errors import InputError
from workbench.tasks import checks
from workbench.tasks.circuits.compose import Task

MIB_FILES = {"templates": "templates.json", "names": "names.json", "places": "places.json", "objects": "objects.json"}
_MIB_SLOTS = {"{name_A}": "{A}", "{name_B}": "{B}", "{name_C}": "{S2}"}


def _listed(path: str | Path, what: str, base_dir: str | Path | None = None) -> list[Any]:
    found, text = checks.text_file(path, base_dir=base_dir, what=what)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"The {what} {str(found)!r} is not JSON ({error.msg}); give the published file.") from error
    if not isinstance(content, list) or not content:
        raise InputError(f"The {what} {str(found)!r} holds no list; give the published file.")
    return content


def colored_pairs(
    file: str | Path, corrupted_file: str | Path, *, n: int | None = None, base_dir: str | Path | None = None
) -> list[dict[str, str]]:
    """Rows `{clean, corrupted, answer, wrong, id}` of two circuit_reuse files; the first `n` of them.

    Raises:
        InputError: the files are not lists of `[prompt, answer]`, or not equally long.
    """
    clean = _listed(file, "prompts file", base_dir)
    corrupted = _listed(corrupted_file, "corrupted prompts file", base_dir)
    if len(clean) != len(corrupted):
        raise InputError(
            f"{str(file)!r} has {len(clean)} prompts and {str(corrupted_file)!r} {len(corrupted)}; give two files that "
            "belong together."
        )
    rows = []
    for i, (a, b) in enumerate(zip(clean, corrupted, strict=True)):
        if not all(isinstance(row, list) and len(row) == 2 and all(isinstance(x, str) for x in row) for row in (a, b)):
            raise InputError(f"Prompt {i} of {str(file)!r} or its partner is not [prompt, answer]; correct the file.")
        rows.append({"clean": a[0], "corrupted": b[0], "answer": a[1], "wrong": b[1], "id": str(i)})
    return rows[:n]


def mib_ioi(task: Task, folder: str | Path, *, base_dir: str | Path | None = None) -> Task:
    """The task `ioi` with the phrasings and words of a MIB folder.

    Only templates that name a place and an object, and articles that fit ("a" before a consonant), are used. A template
    may begin with a name, whose tokens then differ from those after a space in many vocabularies; those are left out.

    Raises:
        InputError: a file is missing or holds no usable template.
    """
    read = {key: _listed(Path(folder) / name, f"{key} file", base_dir) for key, name in MIB_FILES.items()}
    phrasings = []
    for template in read["templates"]:
        pattern = str(template)
        for theirs, ours in _MIB_SLOTS.items():
            pattern = pattern.replace(theirs, ours)
        needed = ("{A}", "{B}", "{S2}", "{place}", "{object}")
        if all(pattern.count(slot) == 1 for slot in needed) and " an {object}" not in pattern and pattern[0] != "{":
            phrasings.append(pattern)
    if not phrasings:
        raise InputError(f"No template of {str(folder)!r} has two names, a place and an object; give a MIB folder.")
    names, places = tuple(map(str, read["names"])), tuple(map(str, read["places"]))
    objects = tuple(word for word in map(str, read["objects"]) if word[0] not in "aeiou")
    pools = {"names": (names, 5), "places": (places, 1), "objects": (objects, 1)}
    return replace(task, phrasings=tuple(phrasings), pools=pools)
