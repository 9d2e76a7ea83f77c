"""How a sweep is written: `model=organism:a,organism:b,seed=0..4` on the command line, the same as `sweep:` in a spec.

    sweep := axis ("," axis)*
    axis  := key "=" value ("," value)*
    key   := a key of the spec, dotted below model, data and params: seed, model, params.edit, data.n
    value := a..b | a..b..step     whole numbers, both ends included
           | anything YAML reads   0.5, true, null, zero, [0, 1], {path: gpt2, dtype: float32}, "a,b=c"

Commas inside brackets, braces or quotes belong to the value. An unquoted value holds no `=`: what looks like `key=`
begins the next axis, so that one string and several are the same sweep. It knows no analysis and runs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from workbench.errors import InputError, did_you_mean
from workbench.experiments.spec import Spec
from workbench.experiments.yaml_input import parse_assignment

Axes = dict[str, list[Any]]

MAX_JOBS = 100_000
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?")
_KEY = re.compile(r"\s*([A-Za-z_][\w-]*(?:\.[\w-]+)*)\s*=")
_DEEP = ("model", "data", "params")
_OPEN, _CLOSE = "[{(", "]})"


def parse(texts: Iterable[str]) -> Axes:
    """Axes of the `--sweep` arguments together, in the order given.

    Raises:
        InputError: what cannot be read, a key twice, or a value twice.
    """
    axes: Axes = {}
    texts = list(texts)
    for text in texts:
        origin = f"--sweep {' '.join(text.split())}"
        key = ""
        for piece in _pieces(text, origin):
            if begins := _KEY.match(piece):
                key = begins[1]
                _check_key(key, origin)
                if key in axes:
                    raise InputError(f"{origin}: the axis {key!r} occurs twice; give all its values in one place.")
                axes[key] = []
                piece = piece[begins.end() :]
            elif not key:
                raise InputError(f"{origin}: write it as key=value,value, for example seed=0..4, not {piece!r}.")
            axes[key] += _values(piece, origin)
    for key, values in axes.items():
        _check_values(key, values, f"--sweep {' '.join(' '.join(texts).split())}")
    return axes


def read(block: Any, origin: str) -> Axes:
    """Axes of a spec's `sweep:` block: a mapping from a key to a list of values, a range, or one value.

    Raises:
        InputError: naming the file, the key and the remedy.
    """
    if not isinstance(block, Mapping) or not block:
        raise InputError(
            f"{origin}: sweep is a mapping such as {{seed: 0..4, model: [gpt2, distilgpt2]}}, not {block!r}."
        )
    axes: Axes = {}
    for key, values in block.items():
        where = f"{origin}: sweep.{key}"
        _check_key(str(key), where)
        found: list[Any] = []
        for value in values if isinstance(values, list) else [values]:
            whole = value if isinstance(value, str) and _RANGE.fullmatch(value) else None
            found += _range(whole, where) if whole else [value]
        axes[str(key)] = found
        _check_values(str(key), found, where)
    return axes


def size(axes: Axes) -> int:
    """How many points the grid has.

    Raises:
        InputError: more than `MAX_JOBS`.
    """
    total = 1
    for values in axes.values():
        total *= len(values)
    if total > MAX_JOBS:
        raise InputError(f"The sweep has {total} runs, more than {MAX_JOBS}; launch it in parts.")
    return total


def _pieces(text: str, origin: str) -> list[str]:
    """`text` cut at the commas that are outside quotes and brackets."""
    pieces, start, quote = [], 0, ""
    depth: list[str] = []
    for at, sign in enumerate(text):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'" and not text[start:at].rpartition("=")[2].strip().strip(_OPEN + ", "):
            quote = sign  # quotes open at the beginning of a value; inside a word they are letters
        elif sign in "\"'" and depth:
            quote = sign
        elif sign in _OPEN:
            depth.append(_CLOSE[_OPEN.index(sign)])
        elif sign in _CLOSE:
            if not depth or depth.pop() != sign:
                raise InputError(f"{origin}: {sign!r} at character {at + 1} closes nothing; quote the value.")
        elif sign == "," and not depth:
            pieces.append(text[start:at])
            start = at + 1
    if quote or depth:
        raise InputError(f"{origin}: {quote or depth[-1]!r} is missing at the end.")
    return [*pieces, text[start:]]


def _values(piece: str, origin: str) -> list[Any]:
    text = piece.strip()
    if not text:
        raise InputError(f"{origin}: a value is empty; remove the comma, or write null or ''.")
    if _RANGE.fullmatch(text):
        return _range(text, origin)
    if ".." in text and re.fullmatch(r"[\d.eE+-]+", text):
        raise InputError(f"{origin}: {text!r} is no range; ranges are whole numbers, such as 0..4 or 0..8..2.")
    if "=" in text and text[0] not in "\"'[{":
        raise InputError(f"{origin}: the value {text!r} holds '='; put it in quotes.")
    return [parse_assignment(f"value={text}")[1]]


def _range(text: str, origin: str) -> list[int]:
    found = _RANGE.fullmatch(text)
    assert found is not None
    first, last, step = int(found[1]), int(found[2]), int(found[3] or 1)
    if step < 1 or last < first:
        raise InputError(f"{origin}: the range {text!r} is empty; write it upwards, such as 0..4 or 0..8..2.")
    if (last - first) // step >= MAX_JOBS:
        raise InputError(f"{origin}: the range {text!r} has more than {MAX_JOBS} values; launch it in parts.")
    return list(range(first, last + 1, step))


def _check_key(key: str, origin: str) -> None:
    root, dot, _ = key.partition(".")
    if root == "name":
        raise InputError(f"{origin}: runs of a sweep are named by their values; set `name` without sweeping over it.")
    if root not in Spec.model_fields or (dot and root not in _DEEP):
        hint = did_you_mean(root, [k for k in Spec.model_fields if k != "name"])
        raise InputError(
            f"{origin}: {key!r} is no key of a spec.{hint} A value that holds '=' is put in quotes."
            if not hint
            else f"{origin}: {key!r} is no key of a spec.{hint}"
        )


def _check_values(key: str, values: list[Any], origin: str) -> None:
    if not values:
        raise InputError(f"{origin}: the axis {key!r} has no values.")
    for number, value in enumerate(values):
        if any(type(value) is type(other) and value == other for other in values[:number]):
            raise InputError(f"{origin}: {value!r} occurs twice on the axis {key!r}; remove one.")
