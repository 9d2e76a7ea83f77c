"""Head-feature linkage from end to end: the head table, and the tables `features`, `writers` and `readers`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.analyses.sae_features import read, write
from workbench.analyses.sae_features.params import LinkParams
from workbench.errors import InputError
from workbench.saes.place import Place, activations, batches
from workbench.tables import HeadTable

if TYPE_CHECKING:
    from workbench.models import Model
    from workbench.saes import Sae


@dataclass
class Linked:
    """Attributes:
    per_example, null: strength of every head, and along random directions, `[n, layer, head]`.
    """

    heads: HeadTable
    tables: dict[str, pd.DataFrame]
    features: tuple[int, ...]
    per_example: np.ndarray
    null: np.ndarray


@dataclass
class Activity:
    """The chosen features on the data.

    Attributes:
        values: activations, 0 at padding.
        mean, frequency: over real tokens.
    """

    features: tuple[int, ...]
    values: Float[Tensor, "n pos f"]
    active: Bool[Tensor, "n pos f"]
    mean: Float[np.ndarray, " f"]
    frequency: Float[np.ndarray, " f"]


def link(
    model: Model,
    place: Place,
    sae: Sae,
    tokens: Int[Tensor, "n pos"],
    mask: Tensor | None,
    params: LinkParams,
    *,
    analysis: str,
    rows: int,
    seed: int,
    meta: dict[str, Any],
) -> Linked:
    """Link heads and features on prompts, padded on the left where `mask` says so.

    Raises:
        InputError: a feature that does not exist, or an autoencoder that normalises every input.
        CapabilityError: head outputs reach the stream through a norm.
    """
    write.check_linkable(sae)
    activity = chosen(model, place, sae, tokens, mask, params, rows)
    at = torch.tensor(activity.features, device=tokens.device)
    encoder = sae.encoder[at]
    weight = activity.active.double()
    strength, signed = write.contributions(model, place, tokens, mask, encoder, weight, rows=rows)
    draws = write.random_like(encoder, params.directions, seed)
    null_strength, null_signed = write.contributions(
        model, place, tokens, mask, draws.flatten(0, 1), weight.repeat(1, 1, len(draws)), rows=rows
    )
    shape = (*null_strength.shape[:3], *draws.shape[:2])
    per_example = strength.sum(-1)
    null = null_strength.reshape(shape).sum(-1).mean(-1)
    status = np.where(np.isnan(per_example).all(0), write.AFTER, "ok").astype(object)
    by_data = params.features is None or "trained" in meta
    table = HeadTable.from_examples(
        per_example,
        n_kv_heads=model.n_kv_heads,
        null=null,
        n_boot=params.bootstrap,
        seed=seed,
        status=status,
        analysis=analysis,
        metric=f"what the head writes along {len(activity.features)} features of {place.name}, directly",
        unit="pre-activation",
        model=model.name,
        fingerprint=model.fingerprint,
        basis=model.basis,
        higher_is_more=True,
        meta={"hook": place.name, "level": "dataset" if by_data else "example", **meta},
    )
    count = weight.sum(1).cpu().numpy()  # [n, f]
    ablation = None
    if params.ablate is not None:
        ablation = write.ablation_effects(
            model,
            place,
            sae,
            tokens,
            mask,
            activity.features,
            activity.values.to(tokens.device),
            weight,
            how=params.ablate,
            rows=rows,
        )
    random = _ratio(null_signed.reshape(shape).swapaxes(-1, -2), count[:, None, None, :, None])[0]
    tables = {
        "features": pd.DataFrame(
            {"feature": activity.features, "mean_activation": activity.mean, "frequency": activity.frequency}
        ),
        "writers": _writers(activity, signed, ablation, np.abs(random).mean(-1), count, params.top),
    }
    if params.read:
        tables["readers"] = _readers(model, place, sae, tokens, mask, activity, params, rows, seed)
    return Linked(table, tables, activity.features, per_example, null)


def chosen(
    model: Model, place: Place, sae: Sae, tokens: Tensor, mask: Tensor | None, params: LinkParams, rows: int
) -> Activity:
    """The features to look at: those asked for, or the ones with the largest mean activation that are ever active."""
    real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool()
    x = activations(model, place, tokens, mask, rows=rows)

    def values_of(part: slice) -> Tensor:
        return sae.encode(x[part]) * real[part][..., None]

    parts = list(batches(len(tokens), rows))  # all features of all tokens at once would not fit for a wide one
    summed = np.sum([values_of(part).double().sum((0, 1)).cpu().numpy() for part in parts], axis=0)
    mean = summed / float(real.sum())
    if params.features is None:
        order = np.argsort(-mean, kind="stable")[: params.n_features]
        features = tuple(int(f) for f in order if mean[f] > 0)
        if not features:
            raise InputError("No feature of the autoencoder is active on these prompts; check its hook point.")
    else:
        features = params.features
        outside = [f for f in features if not 0 <= f < sae.d_sae]
        if outside or len(set(features)) < len(features):
            wrong = f"{outside[0]} is not one" if outside else "one of them is named twice"
            raise InputError(f"Features are numbers from 0 to {sae.d_sae - 1}, each once, but {wrong}.")
    values = torch.cat([values_of(part)[..., list(features)] for part in parts])
    active = values > 0
    frequency = active.sum((0, 1)).double().cpu().numpy() / float(real.sum())
    return Activity(features, values, active, mean[list(features)], frequency)


def _ratio(total: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum over prompts / sum of counts, and its standard error over prompts (of a ratio of means)."""
    n = len(total)
    summed = np.broadcast_to(count, total.shape).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = np.where(summed > 0, total.sum(0) / summed, np.nan)
        left = ((total - value * count) ** 2).sum(0)
        error = np.sqrt(left * n / (n - 1)) / summed if n > 1 else np.full(value.shape, np.nan)
    return value, error


def _writers(
    activity: Activity,
    signed: Float[np.ndarray, "n layer head f"],
    ablation: Float[np.ndarray, "n layer head f"] | None,
    null: Float[np.ndarray, "layer head f"],
    count: Float[np.ndarray, "n f"],
    top: int,
) -> pd.DataFrame:
    """The strongest writers of each feature, by their direct part or, where none has one, by ablation."""
    direct, direct_error = _ratio(signed, count[:, None, None])
    lost, lost_error = (
        (np.full_like(direct, np.nan),) * 2 if ablation is None else _ratio(ablation, count[:, None, None])
    )
    by = direct if np.isfinite(direct).any() else lost
    rows = []
    for f, feature in enumerate(activity.features):
        for rank, (layer, head) in enumerate(_largest(np.abs(by[..., f]), top), start=1):
            at = (layer, head, f)
            rows.append(
                {
                    "feature": feature,
                    "rank": rank,
                    "layer": layer,
                    "head": head,
                    "direct": direct[at],
                    "direct_stderr": direct_error[at],
                    "null": null[at],
                    "ablation": lost[at],
                    "ablation_stderr": lost_error[at],
                }
            )
    columns = ["feature", "rank", "layer", "head", "direct", "direct_stderr", "null", "ablation", "ablation_stderr"]
    return pd.DataFrame(rows, columns=columns)


def _readers(
    model: Model,
    place: Place,
    sae: Sae,
    tokens: Tensor,
    mask: Tensor | None,
    activity: Activity,
    params: LinkParams,
    rows: int,
    seed: int,
) -> pd.DataFrame:
    """The strongest readers of each feature, by the largest of q, k and v next to random directions."""
    at = torch.tensor(activity.features, device=tokens.device)
    directions = read.written(model, place, sae.decoder[at])

    def direct(along: Tensor) -> np.ndarray:
        return read.direct_reads(model, place, tokens, mask, activity.values, activity.active, along, rows=rows)

    measured = direct(directions)
    draws = write.random_like(directions, params.directions, seed + 1)
    null = np.mean([direct(along) for along in draws], axis=0)
    total = read.total_reads(model, place, sae, tokens, mask, activity.features, activity.active, rows=rows)
    made = []
    for f, feature in enumerate(activity.features):
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = measured[f] / null[f]
        best = np.where(np.isnan(ratio).all(-1), np.nan, np.nanmax(np.nan_to_num(ratio, nan=-1), axis=-1))
        for rank, (layer, head) in enumerate(_largest(best, params.top), start=1):
            row: dict[str, Any] = {"feature": feature, "rank": rank, "layer": layer, "head": head}
            row["strongest"] = read.INPUTS[int(np.nanargmax(ratio[layer, head]))]
            for name, values in (("direct", measured), ("null", null), ("total", total)):
                row |= {f"{name}_{what}": values[f, layer, head, i] for i, what in enumerate(read.INPUTS)}
            made.append(row)
    names = [f"{name}_{what}" for name in ("direct", "null", "total") for what in read.INPUTS]
    return pd.DataFrame(made, columns=["feature", "rank", "layer", "head", "strongest", *names])


def _largest(values: Float[np.ndarray, "layer head"], top: int) -> list[tuple[int, int]]:
    """Places of the largest values, the first at ties; NaN left out."""
    flat = np.where(np.isnan(values), -np.inf, values).ravel()
    order = [int(i) for i in np.argsort(-flat, kind="stable")[:top] if np.isfinite(flat[i])]
    return [(i // values.shape[1], i % values.shape[1]) for i in order]
