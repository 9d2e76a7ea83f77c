"""T-VHD token by token, and whether it is lower where a caption makes something up.

A token belongs to a mention of an object when their characters overlap; the mention is grounded when the image shows
the object, else hallucinated. Mentions, not tokens, are compared: each by the mean T-VHD of its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.analyses.hallucination import separation
from workbench.tasks.captions import mentions

if TYPE_CHECKING:
    import pandas as pd

    from workbench.models import Model
    from workbench.tasks.images import ImageDataset


def token_table(model: Model, data: ImageDataset, written: Sequence[Sequence[int]], t_vhd: np.ndarray) -> pd.DataFrame:
    """One row per generated token: example, step, token, text, t_vhd, object, mention, kind.

    `kind` is grounded, hallucinated or other; `mention` numbers the mentions of a caption, -1 for none. Without
    generated tokens the one row per example is its first step.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for index, (sample, tokens) in enumerate(zip(data, written, strict=True)):
        spans, text = _characters(model, tokens)
        said = [] if sample.objects is None else mentions(text, data.vocabulary)
        for step in range(max(1, len(tokens))):
            row: dict[str, Any] = {"example": sample.id, "step": step, "t_vhd": float(t_vhd[index, step])}
            row |= {"token": -1, "text": "", "object": "", "mention": -1, "kind": "other"}
            if step < len(tokens):
                start, stop = spans[step]
                row |= {"token": int(tokens[step]), "text": text[start:stop].strip()}
                for number, (name, first, last) in enumerate(said):
                    if start < last and first < stop:
                        kind = "grounded" if name in (sample.objects or ()) else "hallucinated"
                        row |= {"object": name, "mention": number, "kind": kind}
            rows.append(row)
    columns = ["example", "step", "token", "text", "t_vhd", "object", "mention", "kind"]
    return pd.DataFrame(rows, columns=columns)  # type: ignore[arg-type]


def grounded_or_not(tokens: pd.DataFrame, *, n_boot: int, seed: int) -> dict[str, Any]:
    """T-VHD of hallucinated (low) against grounded (high) mentions; `auroc` 0.5 is no difference."""
    part = tokens[tokens["mention"] >= 0]
    if not len(part):
        return {"status": "not run: no caption mentions an object of the dataset's vocabulary"}
    by_mention = part.groupby(["example", "mention", "kind"], sort=True)["t_vhd"].mean().reset_index()
    grounded, made_up = (
        by_mention.loc[by_mention["kind"] == kind, "t_vhd"].tolist() for kind in ("grounded", "hallucinated")
    )
    found = separation(made_up, grounded, n_boot=n_boot, seed=seed)
    named = {"n_low": "n_hallucinated", "n_high": "n_grounded"}
    named |= {"mean_low": "mean_hallucinated", "mean_high": "mean_grounded"}
    return {named.get(key, key): None if np.isnan(value) else value for key, value in found.items()}


def _characters(model: Model, tokens: Sequence[int]) -> tuple[list[tuple[int, int]], str]:
    """Where each token's characters are in the caption, and the caption."""
    from workbench.analyses.vhd.generate import as_text

    lengths = [len(as_text(model, tokens[: i + 1])) for i in range(len(tokens))]
    starts = [0, *lengths][: len(lengths)]
    return list(zip(starts, lengths, strict=True)), as_text(model, tokens)
