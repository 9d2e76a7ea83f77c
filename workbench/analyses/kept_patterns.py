"""Attention worth looking at: rows of the best heads, on the first few examples, at the queries that matter.

    heads      the first by the analysis' own ranking
    queries    the last position of the prompt, then those of the answer: row s is what predicts its token s
    keys       all up to the last of these queries; what lies after a query has weight 0

No pattern of all queries by all keys is kept. Every analysis that keeps rows keeps the same table, `attention`, with
one row per example, head, step and key, so that the report and `plots.tokens` draw them without knowing the analysis.
Pictures stand beside it as arrays `attention_picture_N`, what the model saw of example N. It never knows why a head is
among the best.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from workbench.analyses.base import Params
from workbench.models.tokenize import pieces

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float
    from PIL.Image import Image

    from workbench.models import Model
    from workbench.tables import HeadTable
    from workbench.tasks.images import ImageDataset

Head = tuple[int, int]
COLUMNS = ("example", "id", "layer", "head", "step", "says", "key", "token", "row", "column", "weight")
LONGEST_SIDE = 336  # pixels of a kept picture; a larger one is scaled down


class KeptPatterns(Params):
    """How much attention is kept: a table of `heads x examples x steps x tokens` rows at most.

    Attributes:
        heads: how many of the best heads.
        examples: how many of the examples that count, the first ones.
        steps: how many tokens of the answer, where one is generated.
    """

    heads: int = Field(default=5, ge=1, le=12)
    examples: int = Field(default=2, ge=1)
    steps: int = Field(default=16, ge=1)


def best(table: HeadTable, kept: KeptPatterns) -> list[Head]:
    """The first heads by rank, of those that have one."""
    first = table.top(kept.heads)
    return [head for head, defined in zip(first.keys(), first.ok, strict=True) if defined]


def of_texts(
    model: Model,
    samples: Iterable[tuple[str, Sequence[int], Sequence[int]]],
    heads: Sequence[Head],
    kept: KeptPatterns,
) -> pd.DataFrame:
    """The table, for prompts and what was generated after them.

    Args:
        samples: (id, token ids of the prompt, token ids of the answer).

    Memory: `layers of the heads x all heads x steps x tokens` numbers.
    """
    import torch

    from workbench.primitives.capture import q_k_rows

    parts = []
    for example, (name, prompt, answer) in enumerate(samples):
        if example == kept.examples or not heads:
            break
        says = list(answer)[: kept.steps]
        ids = [*prompt, *says[:-1]]
        queries = range(len(prompt) - 1, len(ids))
        tokens = torch.tensor([ids], device=model.device)
        rows = q_k_rows(model, tokens, list(queries), layers=sorted({layer for layer, _ in heads}))
        weights = np.stack([rows[layer][0, head].float().cpu().numpy() for layer, head in heads])
        words = pieces(model, [*prompt, *says])
        parts.append(_table(example, name, words[: len(ids)], words[len(prompt) :], heads, weights))
    return _joined(parts)


def of_pictures(
    model: Model, data: ImageDataset, heads: Sequence[Head], kept: KeptPatterns, chosen: Iterable[int]
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """The table and the pictures `[height, width, 3]` uint8, for prompts with images: the last position's rows.

    The keys that stand for the image have their row and column in its grid; the pictures are cut to what it covers.

    Args:
        chosen: the examples that count, of which the first are kept.

    Raises:
        InputError: images cut into tiles.
    """
    from workbench.analyses.looking import grid
    from workbench.analyses.looking.maps import head_rows
    from workbench.analyses.vhd.branches import Views

    layers = sorted({layer for layer, _ in heads})
    views = Views(model, data, "removed")
    parts: list[pd.DataFrame] = []
    pictures: dict[str, np.ndarray] = {}
    for example, index in enumerate(list(chosen)[: kept.examples] if heads else ()):
        sample = data[index]
        rows = head_rows(model, views.image([index]), layers)
        weights = np.stack([rows[layer][0, head].numpy() for layer, head in heads])[:, None]
        a, b = sample.image_span
        _, across = grid.shape(sample)
        places = np.full((len(sample.tokens), 2), -1)
        places[a:b] = np.stack(np.divmod(np.arange(b - a), across), axis=1)
        words = [*pieces(model, sample.tokens[:a]), *[""] * (b - a), *pieces(model, sample.tokens[b:])]
        parts.append(_table(example, sample.id, words, [], heads, weights, places))
        seen = grid.field_of_view(model.processor, sample.image.size)
        pictures[f"attention_picture_{example}"] = _seen(sample.image, seen)
    return _joined(parts), pictures


def _table(
    example: int,
    name: str,
    words: Sequence[str],
    says: Sequence[str],
    heads: Sequence[Head],
    weights: Float[np.ndarray, "head step key"],
    places: np.ndarray | None = None,
) -> pd.DataFrame:
    import pandas as pd

    _, n_steps, n_keys = weights.shape
    head, step, key = (axis.ravel() for axis in np.indices(weights.shape))
    places = np.full((n_keys, 2), -1) if places is None else places
    said = np.array([*says, *[""] * (n_steps - len(says))], dtype=object)
    columns = {
        "example": example,
        "id": name,
        "layer": np.array([layer for layer, _ in heads])[head],
        "head": np.array([index for _, index in heads])[head],
        "step": step,
        "says": said[step],
        "key": key,
        "token": np.array(words, dtype=object)[key],
        "row": places[key, 0],
        "column": places[key, 1],
        "weight": weights.ravel().astype(np.float32),
    }
    return pd.DataFrame(columns, columns=list(COLUMNS))


def _joined(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(COLUMNS))


def _seen(picture: Image, view: tuple[float, float, float, float]) -> np.ndarray:
    """What the model sees of a picture, at most `LONGEST_SIDE` pixels long; black where the view reaches beyond it."""
    width, height = picture.size
    box = [round(edge * side) for edge, side in zip(view, (width, height, width, height), strict=True)]
    cut = picture.crop((box[0], box[1], max(box[2], box[0] + 1), max(box[3], box[1] + 1)))
    cut.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return np.asarray(cut.convert("RGB"))
