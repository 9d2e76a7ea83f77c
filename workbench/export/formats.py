"""The names of the formats and the endings that mean them."""

from __future__ import annotations

from pathlib import Path

from workbench.errors import InputError, did_you_mean

FORMATS = ("csv", "parquet", "md", "latex", "html", "json")
_ALIASES = {"markdown": "md", "tex": "latex", "htm": "html", "pq": "parquet"}


def format_of(format: str | None, path: str | Path | None) -> str:
    """The format named, or the one that the path's ending means.

    Raises:
        InputError: there is none of that name, or neither is given.
    """
    if format is None and path is None:
        raise InputError(f"Say which format: one of {', '.join(FORMATS)}.")
    name = (format or Path(str(path)).suffix.lstrip(".")).lower()
    kind = _ALIASES.get(name, name)
    if kind not in FORMATS:
        where = "" if format else f" (from the ending of {str(path)!r})"
        raise InputError(
            f"There is no export format {name!r}{where}.{did_you_mean(name, (*FORMATS, *_ALIASES))} "
            f"Available: {', '.join(FORMATS)}."
        )
    return kind
