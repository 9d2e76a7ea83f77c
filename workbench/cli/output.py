"""What the command line prints: aligned tables for people, JSON for programs, and nothing else on stdout.

Plain text without dependencies, bold headings only on a terminal that wants them (NO_COLOR). It knows no command.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def emit(text: str) -> None:
    """A line (or lines) on stdout; what its encoding does not have is written as an escape."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    line = text if text.endswith("\n") else text + "\n"
    sys.stdout.write(line.encode(encoding, "backslashreplace").decode(encoding))


def note(text: str) -> None:
    """A line for the person watching, on stderr; silent in pipes."""
    if sys.stderr.isatty():
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def emit_json(value: Any) -> None:
    """`value` as JSON on stdout; undefined numbers become null, paths text."""
    emit(json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False))


def plain(value: Any) -> Any:
    """`value` in types that JSON has."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:  # numpy scalar
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def emit_table(headings: Sequence[str], rows: Sequence[Sequence[Any]], *, empty: str = "") -> None:
    """Columns aligned by their content, numbers to the right; `empty` is said when there are no rows."""
    if not rows:
        if empty:
            emit(empty)
        return
    cells = [[shown(value) for value in row] for row in rows]
    widths = [max(len(heading), *(len(row[i]) for row in cells)) for i, heading in enumerate(headings)]
    right = [all(_numeric(row[i]) for row in rows) for i in range(len(headings))]

    def line(parts: Sequence[str]) -> str:
        aligned = (part.rjust(w) if r else part.ljust(w) for part, w, r in zip(parts, widths, right, strict=True))
        return "  ".join(aligned).rstrip()

    emit(bold(line([heading.upper() for heading in headings])))
    for row in cells:
        emit(line(row))


def emit_facts(facts: Mapping[str, Any], *, indent: str = "") -> None:
    """`key  value` lines, keys aligned; None is left out."""
    kept = {key: value for key, value in facts.items() if value is not None and value != ""}
    width = max((len(shown(key)) for key in kept), default=0)
    for key, value in kept.items():
        emit(f"{indent}{shown(key).ljust(width)}  {shown(value)}")


def flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; lists stay whole."""
    found: dict[str, Any] = {}
    for key, value in facts.items():
        nested = isinstance(value, Mapping) and value
        found.update(flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value})
    return found


def heading(text: str) -> None:
    """A heading with a blank line before it."""
    emit("\n" + bold(text))


def shown(value: Any) -> str:
    """A value in one line, numbers to four significant digits; nothing in it commands the terminal."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.4g}"
    if isinstance(value, (list, tuple)):  # lists in a list, such as (layer, head) pairs, keep their brackets
        return (
            ", ".join(f"({shown(item)})" if isinstance(item, (list, tuple)) else shown(item) for item in value) or "-"
        )
    if isinstance(value, Mapping):
        return ", ".join(f"{shown(key)}={shown(item)}" for key, item in value.items())
    line = " ".join(str(value).split())
    return line if line.isprintable() else "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in line)


def bold(text: str) -> str:
    wanted = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"\033[1m{text}\033[0m" if wanted else text


def _numeric(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
