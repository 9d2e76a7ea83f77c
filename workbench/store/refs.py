"""The grammar of artifact names, tags, payload names and references.

Pure text: what may be a name, and what ``retrieval/demo@v3`` means. Everything the store turns into a path passes
through here first, so that no name, tag or payload can leave its folder or collide with the store's own entries. This
module must never touch the file system; whether a reference exists is the store's question.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from workbench.errors import InputError

MANIFEST = "MANIFEST.json"
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}")
_VERSION = re.compile(r"v([1-9][0-9]{0,8})")
_LOOKS_LIKE_VERSION = re.compile(r"[vV][0-9]+")
_HEX = re.compile(r"[0-9a-f]{1,64}")
# Compared without case: the same tree may be copied to a file system that ignores it.
_TAKEN = {"tags", "store.json", "readme.md", MANIFEST.lower()}
_CHARSET = "letters, digits and _ . + - (not starting with . + -)"
MIN_HEX, MIN_HEX_IN_NAME = 6, 4


@dataclass(frozen=True)
class Ref:
    """A parsed reference; with neither version, tag nor digest it means the latest version of ``name``."""

    text: str
    name: str | None = None
    version: int | None = None
    tag: str | None = None
    digest: str | None = None  # a prefix of the hexadecimal digits, without "sha256:"


def check_name(name: str) -> str:
    """Return ``name`` if it can name an artifact (``retrieval/stories260K``), else raise InputError."""
    if not isinstance(name, str) or not name:
        raise InputError(f"An artifact name must be a non-empty text such as 'retrieval/demo', not {name!r}.")
    if "@" in name:
        raise InputError(f"Artifact name {name!r} contains '@', which separates a name from its version or tag.")
    if name.startswith("/") or "\\" in name or (len(name) > 1 and name[1] == ":"):
        raise InputError(f"Artifact name {name!r} is a file path; use a relative name such as 'retrieval/demo'.")
    if len(name) > 250:
        raise InputError(f"Artifact name {name[:40]!r}... has {len(name)} characters; at most 250 are allowed.")
    for part in name.split("/"):
        if part in ("", ".", ".."):
            raise InputError(f"Artifact name {name!r} has an empty, '.' or '..' component; write it like 'a/b'.")
        if _LOOKS_LIKE_VERSION.fullmatch(part) or part.lower() in _TAKEN:
            raise InputError(f"Artifact name {name!r} uses {part!r}, which the store keeps for itself; rename it.")
        if not _PART.fullmatch(part):
            raise InputError(f"Artifact name {name!r}: {part!r} may hold only {_CHARSET}, at most 100 of them.")
    return name


def is_name(name: str) -> bool:
    """True when ``name`` can name an artifact."""
    try:
        check_name(name)
    except InputError:
        return False
    return True


def check_tag(tag: str) -> str:
    """Return ``tag`` if it can be a tag, else raise InputError."""
    if not isinstance(tag, str) or not _PART.fullmatch(tag):
        raise InputError(f"Tag {tag!r} may hold only {_CHARSET}, at most 100 of them.")
    if tag.lower() == "latest" or _LOOKS_LIKE_VERSION.fullmatch(tag):
        raise InputError(f"Tag {tag!r} would be read as a version; choose a word such as 'paper'.")
    return tag


def is_tag(tag: str) -> bool:
    """True when ``tag`` can be a tag."""
    try:
        check_tag(tag)
    except InputError:
        return False
    return True


def is_payload(name: object) -> bool:
    """True when ``name`` is a plain file name that stays inside its version folder."""
    return isinstance(name, str) and bool(_PART.fullmatch(name)) and name.lower() != MANIFEST.lower()


def check_payload(name: str) -> str:
    """Return ``name`` if it can name a payload file, else raise InputError."""
    if not is_payload(name):
        raise InputError(f"Payload name {name!r} may hold only {_CHARSET}, no folders, not {MANIFEST}: try 'map.html'.")
    return name


def version_number(folder: str) -> int | None:
    """Return 3 for ``"v3"`` and None for anything that is not a version folder."""
    match = _VERSION.fullmatch(folder)
    return int(match[1]) if match else None


def hex_prefix(text: str) -> str | None:
    """Return the hexadecimal digits of ``text`` (with or without ``sha256:``), or None if it is no digest."""
    digits = text.removeprefix("sha256:").lower()
    return digits if _HEX.fullmatch(digits) else None


def parse(text: str) -> Ref:
    """Parse ``name``, ``name@v3``, ``name@tag``, ``name@latest``, ``name@sha256:91c0``, ``sha256:91c0aa``.

    A bare word is a name here; whether it was meant as a digest prefix is decided where the names are known.
    """
    if not isinstance(text, str) or not text:
        raise InputError(f"A reference must be a text such as 'retrieval/demo@v2', not {text!r}.")
    if text.startswith("sha256:"):
        return Ref(text, digest=_digits(text, text, MIN_HEX))
    name, at, which = text.partition("@")
    check_name(name)
    if not at or which == "latest":
        return Ref(text, name)
    version = version_number(which)
    if version:
        return Ref(text, name, version=version)
    if which.startswith("sha256:"):
        return Ref(text, name, digest=_digits(which, text, MIN_HEX_IN_NAME))
    if _LOOKS_LIKE_VERSION.fullmatch(which) or not _PART.fullmatch(which):
        raise InputError(f"Reference {text!r} ends in {which!r}; after '@' comes v1, v2, ..., a tag or sha256:....")
    return Ref(text, name, tag=which)


def _digits(which: str, text: str, least: int) -> str:
    digits = hex_prefix(which)
    if digits is None or len(digits) < least:
        raise InputError(f"Reference {text!r}: a digest prefix needs {least} to 64 hexadecimal digits after 'sha256:'.")
    return digits
