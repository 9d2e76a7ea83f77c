"""Remember what the probe measured, so that loading a known checkpoint does not measure it again.

One small JSON file per (fingerprint, configuration, dtype, device type, versions) under `$WORKBENCH_CACHE`, by default
~/.cache/workbench. A file that cannot be read or written is as good as absent. It never knows what is measured.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.models.capabilities import Capabilities

if TYPE_CHECKING:
    from workbench.models.model import Model

PROBE_VERSION = 1  # raise when the probe measures something else under the same name


def cached_probe(model: Model) -> Capabilities:
    """Capabilities of `model` from the cache, else measured and remembered."""
    file = cache_file(model)
    try:
        return Capabilities.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # absent, truncated, or from another version of the record
        pass
    from workbench.models.probe import probe

    found = probe(model)
    if not any(note.startswith("all:") for note in found.notes):  # a probe that could not run may run next time
        _write(file, json.dumps(found.to_dict(), indent=1))
    return found


def cache_file(model: Model) -> Path:
    """Where the record of this checkpoint, configuration, dtype, basis and these versions is kept."""
    key = json.dumps(
        [
            PROBE_VERSION,
            model.fingerprint,
            model.config_digest,
            str(model.dtype),
            model.device.type,
            model.basis,
            *(_version(package) for package in ("workbench", "transformer-lens", "transformers", "torch")),
        ]
    )
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    return _root() / "capabilities" / f"{name}.json"


def _root() -> Path:
    try:
        return Path(os.environ.get("WORKBENCH_CACHE") or "~/.cache/workbench").expanduser()
    except RuntimeError:  # a user without a home directory
        return Path(tempfile.gettempdir()) / "workbench-cache"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _write(file: Path, text: str) -> None:
    """Atomic; a cache that cannot be written is no reason to fail."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".tmp", delete=False, encoding="utf-8") as handle:
            handle.write(text)
        Path(handle.name).replace(file)
    except OSError:
        return
