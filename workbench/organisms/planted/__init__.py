"""Organisms whose weights are written by hand, so that their circuit is known exactly: an index of the generators.

Each organism is one module with `make(*, seed, noise, n_noise_heads, width) -> Planted`; `build` writes what it makes
as a folder that `load_model` reads like any other. The shipped folders are `build(name, data/NAME)`; other seeds give
fresh instances with other heads, other subspaces and other noise, so that nothing can be tuned to the shipped ones.

    codes     words as vectors: many in few dimensions, never confused
    residual  named orthogonal subspaces of the residual stream, and the constant that holds its norm
    writing   an empty model, and one head's queries, keys, values and output written into it
    llava     a LLaVA that sees colours, for the two vision models
    silence   heads switched off, for the figures on the card
    words     a word-level tokenizer
    folder    model, tokenizer and card on disk

Importing this loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_MODULES = {
    "planted-colored": "ioi_colored",  # the weights of planted-ioi with a card of its own
    "planted-induction": "induction",
    "planted-ioi": "ioi",
    "planted-refusal": "refusal",
    "planted-sinks": "sinks",
    "planted-vision": "vision",
}


@dataclass(frozen=True)
class Planted:
    """A model written by hand, with its tokenizer and what is true of it.

    Attributes:
        model: in eval mode, float32.
        tokenizer: word-level.
        card: what becomes card.json; `truths` is the answer for each claim.
        processor: images and text, of a vision-language model.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    card: dict[str, Any]
    processor: Any = None


def names() -> list[str]:
    """Names that `build` and `make` take."""
    return sorted(_MODULES)


def make(name: str, *, seed: int = 0, **options: Any) -> Planted:
    """A fresh instance in memory; `options` are those of the organism's `make` (noise, n_noise_heads, width).

    Raises:
        InputError: there is no planted organism of that name, or an option is out of its range.
    """
    if name not in _MODULES:
        raise InputError(
            f"There is no planted organism {name!r}.{did_you_mean(name, names())} Available: {', '.join(names())}."
        )
    module = importlib.import_module(f"workbench.organisms.planted.{_MODULES[name]}")
    return module.make(seed=seed, **options)


def build(name: str, folder: str | Path, *, seed: int = 0, **options: Any) -> Path:
    """Make an instance and write it to `folder` in Hugging Face format, with card.json and README.md; returns it."""
    from workbench.organisms.planted.folder import write

    return write(make(name, seed=seed, **options), Path(folder))
