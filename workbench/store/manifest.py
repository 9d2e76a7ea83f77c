"""MANIFEST.json: what an artifact is, as one readable page that can prove it was not altered.

``digest`` is the identity of what was made (kind, config, inputs, files, producer code) and is the same in every store;
``seal``, the last line, is the sha256 of all bytes of the page before it, so every flipped bit is seen. Arithmetic on
dictionaries and bytes only: this module must never touch the file system or import more than the standard library.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Any

from workbench.errors import CorruptArtifact, InputError, StoreError
from workbench.store import refs

FORMAT = 1
Manifest = dict[str, Any]
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SEAL_LINE = re.compile(rb' "seal": "sha256:([0-9a-f]{64})"\n}\n\Z')
_TYPES: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "version": int,
    "kind": str,
    "created": str,
    "config": dict,
    "inputs": list,
    "producer": dict,
    "files": dict,
    "digest": (str, type(None)),
    "run_key": (str, type(None)),
}
# Keys that a page may lack, and what those of a mapping must hold.
_OPTIONAL: dict[str, tuple[str, ...]] = {
    "summary": (),
    "timing": (),
    "removed": ("why", "at"),
    "origin": ("url", "ref", "manifest", "created"),
}


def now() -> str:
    """The current time as ``2026-11-21T06:20:11.123456Z``; as text it sorts in time order."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def plain(value: Any, *, where: str = "value", nan: str = "null") -> Any:
    """Return ``value`` as the plain JSON it will be read back as.

    NaN becomes null (or an InputError with ``nan="refuse"``), infinities become the texts "Infinity" and "-Infinity":
    strict JSON has neither, and a finished run is not worth losing over one undefined number. Numpy scalars and arrays
    and pydantic models are accepted by their methods, without importing either library.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):  # a subclass (an Enum of str, numpy.str_) becomes the plain text it stands for
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return _plain_float(float(value), where, nan)
    if isinstance(value, Mapping):
        out: dict[str, Any] = {}
        for key, item in value.items():
            if not isinstance(key, (str, int)) or isinstance(key, bool):
                raise InputError(f"{where} has the key {key!r}; JSON keys must be texts (or whole numbers).")
            text = str.__str__(key) if isinstance(key, str) else str(int(key))
            if text in out:
                raise InputError(f"{where} has the key {text!r} twice, once as text and once as a number.")
            out[text] = plain(item, where=f"{where}.{text}", nan=nan)
        return out
    if isinstance(value, (list, tuple)):
        return [plain(item, where=f"{where}[{i}]", nan=nan) for i, item in enumerate(value)]
    for method, kwargs in (("tolist", {}), ("model_dump", {"mode": "json"})):
        if callable(getattr(value, method, None)):
            return plain(getattr(value, method)(**kwargs), where=where, nan=nan)
    if hasattr(value, "__fspath__"):
        return str(value)
    raise InputError(f"{where} is a {type(value).__name__}, which JSON cannot hold; convert it to numbers or text.")


def _plain_float(value: float, where: str, nan: str) -> float | str | None:
    if math.isfinite(value):
        return value
    if not math.isnan(value):
        return "Infinity" if value > 0 else "-Infinity"
    if nan == "refuse":
        raise InputError(f"{where} is NaN, which no rerun could compare; leave the key out or give a number.")
    return None


def to_json(value: Any) -> bytes:
    """Readable, deterministic JSON of a plain value: sorted keys, one space of indent, a final newline."""
    try:
        return _dumps(value, ascii_only=False).encode()
    except UnicodeEncodeError:  # a lone surrogate (an undecodable argument, say) has no UTF-8
        return _dumps(value, ascii_only=True).encode()


def _dumps(value: Any, *, ascii_only: bool) -> str:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=ascii_only, allow_nan=False) + "\n"


def sha256(data: bytes) -> str:
    """``sha256:<64 hex>`` of ``data``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def identity(manifest: Mapping[str, Any]) -> str:
    """The content digest: what was made from what, whatever its name, number, time or machine."""
    what = {
        "kind": manifest["kind"],
        "config": manifest["config"],
        "inputs": [item["digest"] for item in manifest["inputs"]],
        "files": {name: [entry["sha256"], entry["size"]] for name, entry in manifest["files"].items()},
        "code": manifest["producer"].get("code"),
    }
    return sha256(json.dumps(what, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def draft(
    name: str,
    *,
    config: Any = None,
    inputs: Iterable[Mapping[str, str]] = (),
    producer: Mapping[str, Any] | None = None,
    kind: str = "result/1",
    run_key: str | None = None,
    timing: Mapping[str, Any] | None = None,
    summary: Any = None,
) -> Manifest:
    """Return a manifest without files, version or digest; everything the caller gives is checked here."""
    if not isinstance(kind, str) or not kind:
        raise InputError(f"kind must be a text such as 'result/1', not {kind!r}.")
    if run_key is not None and not isinstance(run_key, str):
        raise InputError(f"run_key must be a text, not {run_key!r}.")
    parts = {"config": config, "producer": producer, "timing": timing, "summary": summary}
    plain_parts = {
        key: plain({} if part is None else part, where=key, nan="refuse" if key == "config" else "null")
        for key, part in parts.items()
    }
    for key, part in plain_parts.items():
        if not isinstance(part, dict):
            raise InputError(f"{key} must be a mapping of keys to values, not {parts[key]!r}.")
    parents = [{"ref": str(item["ref"]), "digest": str(item["digest"])} for item in inputs]
    for parent in parents:
        if not _DIGEST.fullmatch(parent["digest"]):
            raise InputError(f"Input {parent['ref']!r} has digest {parent['digest']!r}; expected sha256:<64 hex>.")
    return {
        "format": FORMAT,
        "name": refs.check_name(name),
        "kind": kind,
        "run_key": run_key,
        "inputs": parents,
        "files": {},
        **plain_parts,
    }


def tombstone(manifest: Mapping[str, Any], why: str) -> Manifest:
    """The record that stays when the payloads of a version are removed; config, inputs and digest are kept."""
    return {**manifest, "removed": {"why": why, "at": now()}}


def dump(manifest: Mapping[str, Any]) -> bytes:
    """The bytes of MANIFEST.json: sorted keys, then the seal over everything before its line."""
    body = to_json({key: value for key, value in manifest.items() if key != "seal"})
    head = body.removesuffix(b"\n}\n") + b",\n"
    return head + f' "seal": "{sha256(head)}"\n}}\n'.encode()


def parse(data: bytes, where: str) -> Manifest:
    """Read MANIFEST.json, or raise CorruptArtifact naming ``where`` (StoreError for a newer format)."""
    try:
        manifest = json.loads(data, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError):
        raise _damaged(where, "is not JSON") from None
    if not isinstance(manifest, dict):
        raise _damaged(where, "is not a JSON object")
    found = manifest.get("format")
    line = _SEAL_LINE.search(data)
    if not line or hashlib.sha256(data[: line.start()]).hexdigest() != line[1].decode():
        if isinstance(found, int) and found > FORMAT:
            raise StoreError(f"{where} has format {found}; this workbench reads {FORMAT}: install a newer one.")
        raise _damaged(where, "does not match its seal")
    if found != FORMAT:
        raise StoreError(f"{where} has format {found!r}; this workbench reads {FORMAT}: install a newer one.")
    _check_shape(manifest, where)
    return manifest


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(f"{text} is no number that JSON was written with")
    return value


def _check_shape(manifest: Manifest, where: str) -> None:
    for key, kind in _TYPES.items():
        if not isinstance(manifest.get(key), kind) or (kind is not str and key not in manifest):
            raise _damaged(where, f"has no usable {key!r}")
    for key, within in _OPTIONAL.items():
        held = manifest.get(key)
        if held is not None and not (isinstance(held, dict) and all(isinstance(held.get(k), str) for k in within)):
            raise _damaged(where, f"has an unusable {key!r}")
    digest = manifest["digest"]
    if not (manifest.get("removed") if digest is None else _DIGEST.fullmatch(digest)):
        raise _damaged(where, "has no usable 'digest'")
    for item in manifest["inputs"]:
        if not isinstance(item, dict) or not all(isinstance(item.get(key), str) for key in ("ref", "digest")):
            raise _damaged(where, "has an unusable entry in 'inputs'")
    for name, entry in manifest["files"].items():
        usable = isinstance(entry, dict) and isinstance(entry.get("size"), int) and entry["size"] >= 0
        if not usable or not _SHA256.fullmatch(str(entry.get("sha256"))):
            raise _damaged(where, f"has an unusable entry for file {name!r}")
        if not refs.is_payload(name):
            raise _damaged(where, f"names the file {name!r}, which is not inside its folder")
    if len({name.lower() for name in manifest["files"]}) < len(manifest["files"]):
        raise _damaged(where, "names two files that are one where case does not count")


def _damaged(where: str, what: str) -> CorruptArtifact:
    return CorruptArtifact(f"{where} {what}: run `workbench fsck` to see the damage (`--repair` sets it aside).")


def differences(a: Any, b: Any, *, prefix: str = "") -> dict[str, list[Any]]:
    """``{"params.k": [old, new]}`` for every leaf that differs; absent on one side is None."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        out: dict[str, list[Any]] = {}
        for key in sorted({*a, *b}):
            out |= differences(a.get(key), b.get(key), prefix=f"{prefix}.{key}" if prefix else str(key))
        return out
    return {} if a == b and type(a) is type(b) else {prefix: [a, b]}
