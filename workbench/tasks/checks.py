"""Checks that every task shares: keys of a mapping, counts, paths and JSONL files, refused in one sentence.

They turn what a user wrote in a spec file or a notebook into values that the tasks can rely on. Nothing here knows
what a needle, a tokenizer or a model is.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.errors import InputError, did_you_mean


def known_keys(given: Iterable[str], known: Collection[str], *, where: str) -> None:
    """Refuse the first key of `given` that is not in `known`."""
    for key in given:
        if key not in known:
            hint = did_you_mean(str(key), known)
            raise InputError(f"{where} has an unknown key {key!r}.{hint} Known keys: {', '.join(sorted(known))}.")


def distinct_ids(ids: Sequence[str], origins: Sequence[str]) -> None:
    """Refuse two samples of one id, by where they stand."""
    seen: dict[str, str] = {}
    for name, origin in zip(ids, origins, strict=True):
        if name in seen:
            raise InputError(f"{seen[name]} and {origin} share the id {name!r}; ids must differ.")
        seen[name] = origin


def whole_number(value: Any, *, what: str, least: int = 1) -> int:
    """`value` as an int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{what} must be a whole number of at least {least}, not {value!r}.")
    return value


def numbers(values: Any, *, what: str, low: float, high: float | None = None, whole: bool = False) -> tuple[Any, ...]:
    """`values` (one number or a list of them) as a tuple without repetitions, each within `[low, high]`."""
    if isinstance(values, int | float):
        values = [values]
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InputError(f"{what} must be a list of numbers, not {values!r}.")
    checked: list[Any] = []
    for value in values:
        number = not isinstance(value, bool) and isinstance(value, int | float)
        if not number or not low <= value or (high is not None and value > high) or (whole and value != int(value)):
            kind = "a whole number" if whole else "a number"
            bounds = f"of at least {low:g}" if high is None else f"between {low:g} and {high:g}"
            raise InputError(f"Each of {what} must be {kind} {bounds}, not {value!r}.")
        checked.append(int(value) if whole else float(value))
    if not checked:
        raise InputError(f"{what} must name at least one value.")
    return tuple(dict.fromkeys(checked))


def text_file(path: str | Path, *, base_dir: str | Path | None = None, what: str) -> tuple[Path, str]:
    """The file at `path` (relative to `base_dir` when given) and its text."""
    found = Path(path).expanduser()
    if base_dir is not None and not found.is_absolute():
        found = Path(base_dir) / found
    if not found.exists():
        raise InputError(
            f"The {what} {str(found)!r} does not exist; give an existing path (relative to the spec file)."
        )
    try:
        return found, found.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is a folder" if found.is_dir() else getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"The {what} {str(found)!r} cannot be read ({reason}); give a readable UTF-8 file.") from error


def json_lines(path: str | Path, *, base_dir: str | Path | None = None, what: str) -> dict[str, dict[str, Any]]:
    """Objects of a JSONL file, blank lines skipped, by where they stand ("Line 3 of 'x.jsonl'")."""
    found, content = text_file(path, base_dir=base_dir, what=what)
    rows: dict[str, dict[str, Any]] = {}
    # Not splitlines(): that would also cut at characters like U+2028 which JSON allows inside a string.
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"Line {number} of {str(found)!r}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{where} is not JSON ({error.msg}); write one object per line.") from error
        if not isinstance(row, dict):
            raise InputError(f"{where} is not a JSON object but {type(row).__name__}; write one object per line.")
        rows[where] = row
    if not rows:
        raise InputError(f"The {what} {str(found)!r} is empty; write one JSON object per line.")
    return rows


def required_text(row: Any, key: str, *, where: str) -> str:
    """`row[key]`, a text that is not blank."""
    if not isinstance(row, Mapping):
        raise InputError(f"{where} must be a mapping, not {type(row).__name__}.")
    if key not in row:
        raise InputError(f"{where} has no {key!r}; add the text under that key.")
    value = row[key]
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where} has an empty {key!r} ({value!r}); give it some text.")
    return value
