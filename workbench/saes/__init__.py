"""Sparse autoencoders as instruments: read, checked against a model, applied at a hook point, trained, written.

    config      what `cfg.json` says, or a sentence why it is not understood
    sae         the arithmetic: encode, decode
    files       folders in the SAELens layout, read and written
    place       where in a model an SAE belongs, and whether it fits
    quality     how well it reconstructs: the first thing to know
    options, pages, corpus, training    training on a model's activations

The layout is that of SAELens (`cfg.json` + `sae_weights.safetensors`), which is read and written here without that
library. Names are loaded when they are first used, so that a spec can be validated without torch. It never knows an
analysis or the store.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.saes.config import SaeConfig
    from workbench.saes.files import load_sae, save_sae
    from workbench.saes.options import TrainOptions
    from workbench.saes.place import Place, find_place
    from workbench.saes.quality import Report, report
    from workbench.saes.sae import Sae
    from workbench.saes.training import Trained, train

_HOME = {
    "Place": "place",
    "Report": "quality",
    "Sae": "sae",
    "SaeConfig": "config",
    "TrainOptions": "options",
    "Trained": "training",
    "find_place": "place",
    "load_sae": "files",
    "report": "quality",
    "save_sae": "files",
    "train": "training",
}
__all__ = [
    "Place",
    "Report",
    "Sae",
    "SaeConfig",
    "TrainOptions",
    "Trained",
    "find_place",
    "load_sae",
    "report",
    "save_sae",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
