"""`workbench certify`: does every analysis find what is known to be there?

Each organism's card names the heads that do a thing (`truths`); each analysis declares which such claims it finds
(`Analysis.finds`). Where the two meet, the analysis is run as a user would run it and held to the card: are the true
heads ranked first, and does masking the heads it found do what masking random heads does not?

`truths` reads cards, `score` is the arithmetic, `behaviour` measures what a model still does with heads masked,
`examine` is one meeting of analysis and truth, `certificate` all of them, kept as an artifact.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.certify.certificate import Certificate, certify, keep

__all__ = ["Certificate", "certify", "keep"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("workbench.certify.certificate"), name)
