"""YAML as experiments accept it: plain data only, bounded in size, every complaint one sentence with its line.

Safe loader, no duplicate keys (PyYAML silently keeps the last), no dates or other surprises, and a bound on the
expanded size so that a few nested aliases cannot become gigabytes. It never knows what the keys mean.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from workbench.errors import InputError

MAX_BYTES = 5_000_000
MAX_NODES = 1_000_000


class _Loader(yaml.SafeLoader):
    """Safe loader that refuses duplicate keys and keys that are not text."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    loader.flatten_mapping(node)
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is not text", key_node.start_mark)
        if key in mapping:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} occurs twice", key_node.start_mark)
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


# YAML 1.1, which PyYAML reads, takes 1e-4 for text because it lacks a dot; people mean the number.
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_documents(path: Path) -> list[Any]:
    """Every non-empty YAML document of the file, as plain data.

    Raises:
        InputError: unreadable, too large, not YAML, or not plain data; syntax errors name the line.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InputError(
                f"{path}: {size} bytes is more than a spec file may have ({MAX_BYTES}); put data into a `file:`."
            )
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such spec file.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}).") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from error
    documents = [document for document in _parse(text, str(path)) if document is not None]
    if not documents:
        raise InputError(f"{path}: holds no experiment; a spec needs at least `analysis`, `model` and `data`.")
    for document in documents:
        _check_plain(document, str(path))
    return documents


def parse_assignment(assignment: str) -> tuple[str, Any]:
    """`"params.max_new_tokens=8"` as (dotted key, YAML-typed value)."""
    key, equals, text = assignment.partition("=")
    key, origin = key.strip(), f"--set {' '.join(assignment.split())}"
    if not equals or not key or any(not step for step in key.split(".")):
        raise InputError(f"{origin}: write it as key=value, for example params.max_new_tokens=8.")
    values = _parse(text, origin)
    if len(values) > 1:
        raise InputError(f"{origin}: holds more than one value.")
    value = values[0] if values else None
    _check_plain(value, origin)
    return key, value


def _parse(text: str, origin: str) -> list[Any]:
    try:
        return list(yaml.load_all(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" line {mark.line + 1}" if mark is not None else ""
        problem = " ".join((error.problem or error.context or "syntax error").split())
        raise InputError(f"{origin}:{where} is not valid YAML ({problem}).") from error
    except yaml.YAMLError as error:
        raise InputError(f"{origin}: is not valid YAML ({' '.join(str(error).split())}).") from error
    except (RecursionError, ValueError) as error:  # nested too deep; an impossible date or number
        raise InputError(f"{origin}: is not usable YAML ({' '.join(str(error).split())}).") from error


def _check_plain(document: Any, origin: str) -> None:
    """Refuse what JSON cannot hold and what aliases blow up; iterative, so that cycles end too."""
    queue, seen = [document], 0
    while queue:
        node = queue.pop()
        seen += 1
        if seen > MAX_NODES:
            raise InputError(f"{origin}: expands to more than {MAX_NODES} values; remove the nested aliases.")
        if isinstance(node, dict):
            queue.extend(node.values())
        elif isinstance(node, list):
            queue.extend(node)
        elif node is not None and not isinstance(node, (str, int, float, bool)):
            raise InputError(
                f"{origin}: the value {node} is a {type(node).__name__}; put it in quotes to make it text."
            )
