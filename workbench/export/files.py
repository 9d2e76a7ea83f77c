"""Files that appear whole, and the provenance file beside them.

Bytes go to a temporary name in the same folder and take their place by one rename, so a reader never meets half a
table. The provenance file carries no time and no path, so exporting the same thing twice gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.errors import InputError

SUFFIX = ".provenance.json"


def write(path: str | Path, content: bytes) -> None:
    """Replace `path` by `content` in one step, making its folder if need be.

    Raises:
        InputError: the path is a folder or lies in an artifact, or cannot be written.
    """
    target = Path(path)
    if target.is_dir():
        raise InputError(f"{str(path)!r} is a folder; give the name of a file in it.")
    if (target.parent / "MANIFEST.json").is_file():
        raise InputError(f"{str(path)!r} lies in an artifact, and those never change; choose another place.")
    scratch = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with scratch.open("xb") as handle:
                handle.write(content)
                handle.flush()
                os.fsync(handle.fileno())
            scratch.replace(target)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"{str(path)!r} cannot be written ({error.strerror or error}); choose a place you may write to."
        ) from error


def read(path: str | Path) -> bytes:
    """The bytes of a file.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read ({error.strerror or error}); check the path.") from error


def sidecar_path(path: str | Path) -> Path:
    """`scores.csv` -> `scores.csv.provenance.json`."""
    return Path(path).with_name(Path(path).name + SUFFIX)


def write_sidecar(
    path: str | Path, content: bytes, provenance: Mapping[str, Any], table: Mapping[str, Any] | None = None
) -> None:
    """Write where `path` came from; keys of `provenance` stand at the top level, `table` is `Frame.describe()`."""
    entry = {
        **provenance,
        "file": {"name": Path(path).name, "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)},
    }
    if table is not None:
        entry["table"] = dict(table)
    try:
        text = json.dumps(jsonable(entry), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"The provenance of {str(path)!r} cannot be written as JSON ({error}).") from error
    write(sidecar_path(path), (text + "\n").encode("utf-8"))


def read_sidecar(path: str | Path, content: bytes) -> dict[str, Any] | None:
    """The `table` entry of the provenance file beside `path`; None when there is none.

    Raises:
        InputError: the provenance file is no such file, or describes other bytes than these.
    """
    sidecar = sidecar_path(path)
    if not sidecar.is_file():
        return None
    try:
        entry = json.loads(read(sidecar))
        digest, table = entry["file"]["sha256"], dict(entry["table"])
        table |= {key: dict(table[key]) for key in ("meta", "columns")}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{str(sidecar)!r} is not a provenance file of ours; remove it or pass meta=.") from error
    if digest != hashlib.sha256(content).hexdigest():
        raise InputError(
            f"{str(path)!r} was changed after {sidecar.name!r} was written; export it again, or pass meta= to read it "
            "without its provenance."
        )
    return table


def jsonable(value: Any) -> Any:
    """Plain JSON values: numpy scalars and arrays unpacked, NaN as null, infinities as "inf" and "-inf"."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if hasattr(value, "tolist"):  # numpy
        return jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
