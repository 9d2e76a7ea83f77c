"""Where heads look, by class of token: the attention that one query gives to each class (Lieberum et al. 2023).

    attention(h, c) = sum over the keys of class c of pattern_h[query, key],   mean over prompts that have the class

`even` beside it is what uniform attention would give. Reads only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from workbench import stats
from workbench.analyses.head_tools.classes import END, classes_of, masks

if TYPE_CHECKING:
    import pandas as pd

    from workbench.models import Model
    from workbench.tasks.pairs import PairDataset

_PROMPTS_AT_ONCE = 64


def attention_by_class(
    model: Model, data: PairDataset, *, classes: Sequence[str] | None = None, position: str = END
) -> pd.DataFrame:
    """One row per head and class: layer, head, class, attention, stderr, even, n.

    Args:
        classes: names of classes (`classes`); default every class of the data.
        position: the query: `end`, or a span, whose last token it then is.

    Example:
        >>> wb.attention_by_class(model, pairs, classes=["IO", "S1", "S2"])  # doctest: +SKIP

    Raises:
        InputError: a class or position that a prompt does not have.
    """
    import pandas as pd

    names = classes_of(data) if classes is None else tuple(classes)
    rows, covered = masks(data, names, position, max(pair.length for pair in data))
    mass = by_class(attention_rows(model, data, rows), covered)  # [n, layer, head, class]
    starts = np.array([covered.shape[2] - pair.length for pair in data])
    even = stats.mean(np.where(covered.any(-1), covered.sum(-1) / (rows - starts + 1)[:, None], np.nan))
    mean, error, n = stats.mean(mass), stats.stderr(mass), (~np.isnan(mass)).sum(axis=0)
    found = []
    for layer, head, c in np.ndindex(*mean.shape):
        if n[layer, head, c]:
            numbers = {"attention": mean[layer, head, c], "stderr": error[layer, head, c]}
            facts = {"layer": layer, "head": head, "class": names[c]}
            found.append({**facts, **numbers, "even": even[c], "n": int(n[layer, head, c])})
    return pd.DataFrame(found, columns=["layer", "head", "class", "attention", "stderr", "even", "n"])


def attention_rows(model: Model, data: PairDataset, rows: np.ndarray) -> np.ndarray:
    """`[n, layer, head, key]`: each prompt's row `rows[i]`, prompts padded on the left; NaN in layers without heads.

    Memory: that array, and one batch of full patterns of one layer.
    """
    import torch

    from workbench.primitives.attention_rows import reading
    from workbench.primitives.forward import forward

    batch = data.batch()
    n, n_pos = batch.clean.shape
    found = np.full((n, model.n_layers, model.n_heads, n_pos), np.nan, dtype=np.float32)
    for start in range(0, n, _PROMPTS_AT_ONCE):
        part = slice(start, start + _PROMPTS_AT_ONCE)
        mask = batch.mask[part].long().to(model.device) if batch.padded else None
        with reading(model, torch.from_numpy(rows[part])) as seen:
            forward(model, batch.clean[part].to(model.device), attention_mask=mask, logits_to_keep=1)
        for layer, pattern in seen.items():
            found[part, layer] = pattern.float().cpu().numpy()
    return found


def by_class(rows: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """`[n, layer, head, class]`: attention to each class; NaN where a prompt does not have it."""
    mass = np.einsum("nlhk,nck->nlhc", rows, covered.astype(rows.dtype))
    return np.where(np.any(covered, axis=-1)[:, None, None], mass, np.nan).astype(np.float64)
