"""Models: loading, tokenising, fingerprinting and probing what may be asked of them.

Importing this package loads neither torch nor TransformerLens; each name is imported when it is first used. It knows
nothing of tasks or analyses.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.models.capabilities import Capabilities
    from workbench.models.estimate import estimate_memory
    from workbench.models.fingerprint import fingerprint_directory
    from workbench.models.load import load_model
    from workbench.models.model import Model
    from workbench.models.tokenize import Encoded, bos_id, encode, unknown_id

__all__ = [
    "Capabilities",
    "Encoded",
    "Model",
    "bos_id",
    "encode",
    "estimate_memory",
    "fingerprint_directory",
    "load_model",
    "unknown_id",
]

_HOME = {
    "Capabilities": "capabilities",
    "Encoded": "tokenize",
    "Model": "model",
    "bos_id": "tokenize",
    "encode": "tokenize",
    "estimate_memory": "estimate",
    "fingerprint_directory": "fingerprint",
    "load_model": "load",
    "unknown_id": "tokenize",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value  # next time without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
