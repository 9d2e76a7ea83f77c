"""VHD of every head at every step of a caption, and what becomes of it: head table, T-VHD per token, reinforcement.

The caption is written first, greedily, with the image. Then prompt and caption run once with the image and once
without, and heads are compared at the positions that predict each token: the same numbers as two runs side by side.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench import stats
from workbench.analyses import evaluation
from workbench.analyses.base import Result
from workbench.analyses.vhd import score
from workbench.analyses.vhd.branches import Branch, Views
from workbench.analyses.vhd.generate import Written, end_tokens, write
from workbench.analyses.vhd.params import VhdParams
from workbench.analyses.vhd.tokens import grounded_or_not, token_table
from workbench.errors import InputError
from workbench.primitives.capture import capture, names
from workbench.progress import bar
from workbench.tables import HeadTable

if TYPE_CHECKING:
    import pandas as pd

    from workbench.models import Model
    from workbench.tasks.images import ImageDataset


@dataclass
class Divergences:
    """What was measured, NaN after a caption's end or where it is not defined.

    Attributes:
        vhd: `[example, step, layer, head]` after the outlier rule; raw: before it.
        outlier: which entries the rule set to 0.
        chosen: `[example, layer, head]`, above the layer's median at the first step.
        other: `[example, layer, head]` distance at the first step to the run with another image.
        null: `[example, layer, head]` distance at the first step to runs with text tokens deleted.
        written: tokens of each caption, the end token included.
    """

    vhd: np.ndarray
    raw: np.ndarray
    outlier: np.ndarray
    chosen: np.ndarray
    other: np.ndarray
    null: np.ndarray
    written: list[list[int]]

    @property
    def first(self) -> np.ndarray:
        """VHD at the first step `[example, layer, head]`: the score."""
        return self.vhd[:, 0]


def measure(model: Model, data: ImageDataset, params: VhdParams, seed: int) -> Result:
    """Measure every head on `data`; see `workbench.analyses.vhd` for what the result holds.

    Raises:
        InputError: the dataset is empty or not made of images, or the model reads text only.
        CapabilityError: heads are to be reinforced in a model whose head outputs cannot be edited faithfully.
    """
    if getattr(data, "kind", None) != "images" or not len(data):
        raise InputError("vhd needs a dataset of at least one image with its prompt; see workbench.tasks.images.")
    if params.vhr is not None:
        model.require("head_ablation_ok")
        evaluation.must_be_judged(data, "vhr")
    started = time.perf_counter()
    views = Views(model, data, params.without)
    found = divergences(model, views, params, seed)
    timing = {"divergence": time.perf_counter() - started}
    heads = head_table(model, found, params, seed)
    tokens = token_table(model, data, found.written, t_divergence(found, params))
    result = Result(
        analysis="vhd",
        heads=heads,
        params=params,
        model=model.describe(),
        data=data.describe(),
        tables={"steps": steps_table(found), "tokens": tokens},
        arrays={
            "per_example": found.first.astype(np.float32),
            "null_per_example": found.null.astype(np.float32),
            "other_image_per_example": found.other.astype(np.float32),
            "chosen": found.chosen,
            "t_vhd": t_divergence(found, params).astype(np.float32),
        },
        summary={
            "n_examples": len(data),
            "mean_tokens": float(np.mean([len(row) for row in found.written])),
            "top": [list(key) for key in heads.top(5)],
            "n_significant": int((heads["q"] < 0.05).sum()) if params.controls else None,
            "tokens": grounded_or_not(tokens, n_boot=params.bootstrap, seed=seed),
        },
        timing=timing,
        seed=seed,
    )
    if params.vhr is not None:
        from workbench.analyses.vhd.evaluate import evaluate

        evaluate(model, views, heads, params, seed, into=result)
    return result


def divergences(model: Model, views: Views, params: VhdParams, seed: int) -> Divergences:
    """Captions, then distances at every step, batch by batch."""
    n, ends = len(views.data), end_tokens(model)
    shape = (model.n_layers, model.n_heads)
    written: list[list[int]] = []
    per_batch: list[dict[str, np.ndarray]] = []
    with bar(n, "comparing") as shown:
        for start in range(0, n, params.batch_size):
            chosen = list(range(start, min(start + params.batch_size, n)))
            image, text = views.image(chosen), views.text(chosen)
            said: Written | None = None
            if params.max_new_tokens > 1:
                said = write(model, image, max_new_tokens=params.max_new_tokens, ends=ends)
            tokens = [[] for _ in chosen] if said is None else said.forced
            with_image, without = (last_outputs(model, branch, tokens) for branch in (image, text))
            part = _compared(with_image, without, params)
            own = with_image[:, 0]
            part["other"] = _distance(model, own, views.other_image(chosen), params, shape)
            nulls = [
                _distance(model, own, views.less_text(chosen, draw, seed), params, shape)
                for draw in range(params.controls)
            ]
            part["null"] = np.mean(nulls, axis=0) if nulls else np.full((len(chosen), *shape), np.nan)
            per_batch.append(part)
            written += tokens
            shown.update(len(chosen))
    longest = max(part["raw"].shape[1] for part in per_batch)
    joined = {
        key: np.concatenate([_stretched(part[key], longest) if key in _BY_STEP else part[key] for part in per_batch])
        for key in per_batch[0]
    }
    return Divergences(**joined, written=written)


def last_outputs(
    model: Model, branch: Branch, tokens: Sequence[Sequence[int]]
) -> Float[Tensor, "row step layer head d_head"]:
    """z at the position that predicts each token: the last of the prompt, then of each generated token but the last.

    NaN after a row's last token.
    """
    steps = [max(1, len(row)) for row in tokens]
    longest = max(steps)
    padded = branch.padded([row[:-1] for row in tokens])
    z_names = names(model, "z")
    with torch.no_grad():
        kept = capture(model, padded.tokens, z_names, positions=slice(-longest, None), **padded.options())
    z = score.precise(
        torch.stack([kept[name].to(model.device) for name in z_names], dim=2)
    ).cpu()  # [row, step from the end, layer, ...]
    out = torch.full_like(z, float("nan"))
    for row, n in enumerate(steps):
        out[row, :n] = z[row, longest - n :]
    return out


_BY_STEP = ("vhd", "raw", "outlier")


def _compared(with_image: Tensor, without: Tensor, params: VhdParams) -> dict[str, np.ndarray]:
    raw = score.divergence(with_image, without, params.variant)
    out = score.outliers(raw, score.text_norm(without), params.variant) & params.outliers
    vhd = raw.masked_fill(out, 0.0)
    chosen = score.chosen(vhd[:, 0], params.variant)
    parts = {"vhd": vhd.double(), "raw": raw.double(), "outlier": out, "chosen": chosen}
    return {key: value.numpy() for key, value in parts.items()}


def _distance(
    model: Model, own: Tensor, branch: Branch | None, params: VhdParams, shape: tuple[int, int]
) -> np.ndarray:
    """Distance at the last prompt position from the run with the image to `branch`."""
    if branch is None:
        return np.full((len(own), *shape), np.nan)
    other = last_outputs(model, branch, [[] for _ in branch.rows])[:, 0]
    return score.divergence(own, other, params.variant).double().numpy()


def _stretched(values: np.ndarray, steps: int) -> np.ndarray:
    """Filled up to `steps` along axis 1, with NaN (or False)."""
    missing = steps - values.shape[1]
    fill = False if values.dtype == bool else np.nan
    return np.pad(values, [(0, 0), (0, missing), (0, 0), (0, 0)], constant_values=fill)


def t_divergence(found: Divergences, params: VhdParams) -> np.ndarray:
    """T-VHD `[example, step]`, NaN after a caption's end."""
    return score.token_divergence(torch.from_numpy(found.vhd), params.top_k).numpy()


def head_table(model: Model, found: Divergences, params: VhdParams, seed: int) -> HeadTable:
    """One row per head: mean VHD at the first step, with interval and null."""
    values, null = found.first, found.null
    status = np.full(values.shape[1:], "ok", dtype=object)
    status[np.isnan(values).all(axis=0)] = "outputs that are not finite"
    return HeadTable.from_examples(
        values,
        null=null,
        n_boot=params.bootstrap,
        seed=seed,
        n_kv_heads=model.n_kv_heads,
        status=status,
        extra={
            "raw": stats.mean(found.raw[:, 0]),
            "outlier_share": found.outlier[:, 0].mean(axis=0),
            "chosen_share": found.chosen.mean(axis=0),
            "other_image": stats.mean(found.other),
        },
        meta={
            "analysis": "vhd",
            "metric": f"VHD at the first step, image {params.without.replace('_', ' ')}, {params.variant}",
            "unit": "squared length of z" if params.variant == "released" else "length of z",
            "model": model.name,
            "fingerprint": model.fingerprint,
            "basis": model.basis,
            "higher_is_more": True,
        },
    ).with_q()


def steps_table(found: Divergences) -> pd.DataFrame:
    """Mean VHD by step, layer and head over the captions that are that long."""
    import pandas as pd

    _, n_steps, n_layers, n_heads = found.vhd.shape
    step, layer, head = (axis.ravel() for axis in np.indices((n_steps, n_layers, n_heads)))
    columns: dict[str, Any] = {"step": step, "layer": layer, "head": head}
    columns["vhd"] = stats.mean(found.vhd).ravel()
    columns["stderr"] = stats.stderr(found.vhd).ravel()
    columns["n"] = (~np.isnan(found.vhd)).sum(axis=0).ravel()
    return pd.DataFrame(columns)
