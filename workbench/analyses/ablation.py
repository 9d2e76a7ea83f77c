"""Ablation: edit one head (or kv group) at a time and see what it does to a metric of the next token.

For every unit h and example x

    score(h, x) = metric(x with z_h := z'_h) - metric(x)

read at the last real token of the clean prompt; z' is zero, the mean over the dataset, another example's z, uniform
attention, or alpha z. A head's score is the mean over examples, with its standard error and a bootstrap interval.

Null: is this more than any change of that size does? For each head and example as large a change in a random direction
of the residual stream is injected at the same place; `null_mean` is its mean effect, `null_p` the one-sided p of the
paired difference (by flipping signs) in the direction of harm, and `q` that p after Benjamini-Hochberg over all units.

It never knows the store or the spec file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from workbench import stats
from workbench.analyses.base import KNOWN, Analysis, Finding, Params, Result
from workbench.errors import InputError
from workbench.tables import HeadTable

if TYPE_CHECKING:
    from workbench.models import Model
    from workbench.primitives.sweep import SweepResult
    from workbench.tasks.pairs import PairDataset

Metric = Literal["logit_diff", "kl", "prob", "log_prob", "rank", "loss"]


class AblationParams(Params):
    """Attributes:
    edit: what replaces the head's output z; `scale` takes `alpha`.
    alpha: factor of `scale`.
    unit: single heads, or the query heads of each kv group together.
    metric: of the answer (`logit_diff`: against the wrong answer); `kl` is from the unablated distribution.
    controls: random edits of equal size per unit and example, averaged; each costs another sweep. 0: no null.
    bootstrap: resamples for the intervals.
    memory_mb: working memory of the sweep; null chooses a share of the machine's.
    """

    edit: Literal["zero", "uniform", "mean", "resample", "scale"] = "zero"
    alpha: float | None = None
    unit: Literal["head", "kv_group"] = "head"
    metric: Metric = "logit_diff"
    controls: int = Field(default=1, ge=0)
    bootstrap: int = Field(default=1000, ge=1)
    memory_mb: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _alpha_belongs_to_scale(self) -> AblationParams:
        if (self.alpha is None) == (self.edit == "scale"):
            raise ValueError("alpha belongs to the edit 'scale', which needs it")
        return self


def run(model: Model, data: PairDataset, params: AblationParams, seed: int) -> Result:
    """Ablate every unit on the clean prompts of `data`.

    Result: `heads` with the extra columns `normalised` (score over the mean of the unablated metric; NaN where that is
    about zero) and `q`; arrays `per_example` and `null_per_example` `[n, n_layers, n_heads or n_kv_heads]` and `base`
    `[n]`; table `examples`; in the summary how the sweep ran (`method`, `notes`) and what it cost (`cost`).

    Raises:
        InputError: the dataset is empty or not made of pairs.
        CapabilityError: the model's head outputs cannot be edited faithfully.
    """
    from workbench.primitives.sweep import Edit, Readout, all_heads, all_kv_groups, default_root, sweep

    if getattr(data, "kind", None) != "pairs" or not len(data):
        raise InputError("ablation needs a dataset of at least one pair; see workbench.tasks.pairs.")
    batch = data.batch()
    readout = Readout(params.metric, batch.answer, batch.wrong)
    units = all_heads(model) if params.unit == "head" else all_kv_groups(model)
    swept = sweep(
        model,
        batch.clean,
        units=units,
        edit=Edit(params.edit, alpha=params.alpha),
        metric=readout,
        attention_mask=batch.mask if batch.padded else None,
        controls=params.controls,
        budget=None if params.memory_mb is None else int(params.memory_mb * 2**20),
        checkpoint=default_root(),
        seed=seed,
    )
    effect = _grid(model, swept, swept.values - swept.base, params)
    null = _grid(model, swept, swept.controls.mean(axis=0) - swept.base, params) if params.controls else None
    heads = _head_table(model, effect, null, swept.base, readout, params, seed)
    arrays = {"per_example": effect.astype(np.float32), "base": swept.base}
    if null is not None:
        arrays["null_per_example"] = null.astype(np.float32)
    return Result(
        analysis="ablation",
        heads=heads,
        params=params,
        model=model.describe(),
        data=data.describe(),
        tables={"examples": _examples_table(data, swept.base, params.metric)},
        arrays=arrays,
        summary=_summary(heads, swept, params),
        timing={"sweep": swept.seconds},
        seed=seed,
    )


def ablation(model: Model, data: PairDataset, *, seed: int = 0, **params: Any) -> Result:
    """Ablate every head of `model`; the notebook form of `analysis: ablation`.

    Args:
        data: pairs, of which the clean prompts, the answers and the wrong answers are used.
        params: fields of `AblationParams`.

    Example:
        >>> result = ablation(model, data, edit="mean", metric="kl")  # doctest: +SKIP

    Raises:
        InputError: unusable data or an unknown parameter.
        CapabilityError: the model's head outputs cannot be edited faithfully.
    """
    return ANALYSIS(model, data, ANALYSIS.parse(params), seed=seed)


def _grid(model: Model, swept: SweepResult, values: np.ndarray, params: AblationParams) -> np.ndarray:
    """`[unit, example]` as `[example, layer, head or kv group]`; NaN where a layer has no heads."""
    width = model.n_heads if params.unit == "head" else model.n_kv_heads
    grid = np.full((values.shape[1], model.n_layers, width), np.nan)
    for unit, row in zip(swept.units, values, strict=True):
        layer, head = unit[0]
        grid[:, layer, head if params.unit == "head" else model.kv_group(head)] = row
    return grid


def _head_table(
    model: Model,
    effect: np.ndarray,
    null: np.ndarray | None,
    base: np.ndarray,
    readout: Any,
    params: AblationParams,
    seed: int,
) -> HeadTable:
    status = np.full(effect.shape[1:], "ok", dtype=object)
    status[np.isnan(effect).all(axis=0)] = "no attention heads, or logits that are not finite"
    facts = {
        "analysis": "ablation",
        "metric": f"{params.metric}, {params.edit} ablated - base",
        "unit": readout.unit,
        "model": model.name,
        "fingerprint": model.fingerprint,
        "basis": model.basis,
        "higher_is_more": readout.harm_is_more,
    }
    options: dict[str, Any] = {"n_kv_heads": model.n_kv_heads, "rows": params.unit, "status": status, "meta": facts}
    extra = {"normalised": _normalised(effect, base)}
    made = HeadTable.from_examples(effect, null=null, n_boot=params.bootstrap, seed=seed, extra=extra, **options)
    return made.with_q()


def _normalised(effect: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Mean effect over the mean of the unablated metric: -1 is all of it gone."""
    whole = float(stats.mean(base))
    spread = float(np.nanmax(np.abs(base), initial=0.0))
    if not abs(whole) > 1e-6 * max(spread, 1e-6):  # also NaN
        return np.full(effect.shape[1:], np.nan)
    return stats.mean(effect) / whole


def _examples_table(data: PairDataset, base: np.ndarray, metric: str) -> Any:
    import pandas as pd

    rows = [{"id": s.id, "n_tokens": len(s.clean), "answer": s.answer, "wrong": s.wrong} for s in data]
    return pd.DataFrame(rows).assign(**{f"base_{metric}": base})


def _summary(heads: HeadTable, swept: SweepResult, params: AblationParams) -> dict[str, Any]:
    undefined = np.isnan(swept.base)
    return {
        "n_examples": len(swept.base),
        "n_undefined": int(undefined.sum()),
        "base": float(stats.mean(swept.base)),
        "n_significant": int((heads["q"] < 0.05).sum()) if params.controls else None,
        "top": [list(key) for key in heads.top(5)] if heads.ok.any() else [],
        "method": swept.method,
        "notes": list(swept.notes),
        "cost": swept.cost.to_dict(),
    }


ANALYSIS = Analysis(
    name="ablation",
    paper="standard",
    params_type=AblationParams,
    data_kind="pairs",
    requires=("head_axis_ok", "head_ablation_ok"),
    run=run,
    finds=(Finding("circuit", {"edit": "mean", "controls": 0, "bootstrap": 100}, magnitude=True, how=KNOWN),),
)
