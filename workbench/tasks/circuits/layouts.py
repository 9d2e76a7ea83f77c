"""Prompt files of two public benchmarks, read as they are published.

    data: {file: cobjs_data_42.json, corrupted_file: cobjs_mindiff_data_42.json, n: 200}    circuit_reuse
    data: {task: ioi, files: mib_ioi, n: 32, corruption: third}                             MIB

circuit_reuse lists `[prompt, answer]` in two files, line by line the clean and the minimally different prompt. MIB has
templates with `{name_A} {name_B} {name_C} {place} {object}` and lists of what to put in. Nothing is downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
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
        InputError: the files are not lists of `[prompt, answer]`, are not equally long, or hold fewer than `n`.
    """
    clean = _listed(file, "prompts file", base_dir)
    corrupted = _listed(corrupted_file, "corrupted prompts file", base_dir)
    if len(clean) != len(corrupted):
        raise InputError(
            f"{str(file)!r} has {len(clean)} prompts and {str(corrupted_file)!r} {len(corrupted)}; give two files that "
            "belong together."
        )
    n = len(clean) if n is None else checks.whole_number(n, what="n")
    if n > len(clean):
        raise InputError(f"{str(file)!r} has {len(clean)} prompts, but n is {n}; lower it or leave it out for all.")
    rows = []
    for i, (a, b) in enumerate(zip(clean, corrupted, strict=True)):
        if not all(isinstance(row, list) and len(row) == 2 and all(isinstance(x, str) for x in row) for row in (a, b)):
            raise InputError(f"Prompt {i} of {str(file)!r} or its partner is not [prompt, answer]; correct the file.")
        rows.append({"clean": a[0], "corrupted": b[0], "answer": a[1], "wrong": b[1], "id": str(i)})
    return rows[:n]


def mib_words(folder: str | Path, *, base_dir: str | Path | None = None) -> dict[str, list[str]]:
    """The templates, names, places and objects of a MIB folder, as its four files list them.

    Raises:
        InputError: a file is missing, or holds no list.
    """
    read = {key: _listed(Path(folder) / name, f"{key} file", base_dir) for key, name in MIB_FILES.items()}
    return {key: [str(word) for word in words] for key, words in read.items()}


def mib_ioi(task: Task, words: Mapping[str, Any]) -> Task:
    """The task `ioi` with the phrasings and words of `mib_words`.

    Only templates that name a place and an object, and articles that fit ("a" before a consonant), are used. A template
    may begin with a name, whose tokens then differ from those after a space in many vocabularies; those are left out.

    Raises:
        InputError: a list is missing, is none, or there is no usable template.
    """
    checks.known_keys(words, MIB_FILES, where="files (task ioi)")
    for key in MIB_FILES:
        listed = words.get(key)
        if not isinstance(listed, list) or not all(isinstance(word, str) and word for word in listed) or not listed:
            raise InputError(
                f"files (task ioi): {key} is a list of texts, not {listed!r}; give a MIB folder, or all of "
                f"{', '.join(MIB_FILES)}."
            )
    phrasings = []
    for pattern in words["templates"]:
        for theirs, ours in _MIB_SLOTS.items():
            pattern = pattern.replace(theirs, ours)
        needed = ("{A}", "{B}", "{S2}", "{place}", "{object}")
        if all(pattern.count(slot) == 1 for slot in needed) and " an {object}" not in pattern and pattern[0] != "{":
            phrasings.append(pattern)
    if not phrasings:
        raise InputError("files (task ioi): no template names three people, a place and an object; give a MIB folder.")
    objects = tuple(word for word in words["objects"] if word[0] not in "aeiou")
    pools = {"names": (tuple(words["names"]), 5), "places": (tuple(words["places"]), 1), "objects": (objects, 1)}
    return replace(task, phrasings=tuple(phrasings), pools=pools)
