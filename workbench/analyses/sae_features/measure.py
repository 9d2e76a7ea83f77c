"""Head-feature linkage and feature circuits of one autoencoder, from end to end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.analyses.base import Result, stages
from workbench.analyses.sae_features.circuit import feature_circuit
from workbench.analyses.sae_features.link import Linked, link
from workbench.analyses.sae_features.obtain import obtain
from workbench.analyses.sae_features.params import SaeFeaturesParams
from workbench.errors import InputError

if TYPE_CHECKING:
    from workbench.models import Model
    from workbench.tasks.pairs import PairDataset


def measure(model: Model, data: PairDataset, params: SaeFeaturesParams, seed: int) -> Result:
    """Link the heads of `model` and the features of an autoencoder, and find the features that carry the answer.

    Result: `heads` scored by what they write along the chosen features; arrays `per_example` and `null_per_example`
    `[n, n_layers, n_heads]`, `feature_effects` `[n, feature]` with `feature_numbers`, `error_effects`; tables
    `features`, `writers`, `readers`, `circuit_features`, `circuit_curve`, `circuit_spot_check`; in the summary `sae`,
    `linkage` and `circuit`.

    Raises:
        InputError: the data are no pairs; the autoencoder does not fit or reconstructs badly.
        CapabilityError: head outputs cannot be told apart, or reach the stream through a norm.
    """
    if getattr(data, "kind", None) != "pairs" or not len(data):
        raise InputError(
            "sae_features needs at least one pair {clean, corrupted, answer, wrong}; give `data: {pairs}`."
        )
    if params.sae is not None and params.hook is not None:
        raise InputError(f"The autoencoder in {params.sae!r} says itself where it belongs; leave out hook.")
    seconds = [time.perf_counter()]
    batch = data.batch()
    tokens = batch.clean.to(model.device)
    mask = batch.mask.long().to(model.device) if batch.padded else None
    got = obtain(model, tokens, mask, params, seed=seed)
    seconds.append(time.perf_counter())
    linked = link(
        model,
        got.place,
        got.sae,
        tokens,
        mask,
        params,
        analysis="sae_features",
        rows=params.batch_rows,
        seed=seed,
        meta={} if got.trained is None else {"trained": "on these prompts"},
    )
    seconds.append(time.perf_counter())
    tables, arrays = dict(linked.tables), arrays_of(linked)
    summary: dict[str, Any] = {"sae": got.summary(), "linkage": linkage(linked)}
    if params.circuit is not None:
        made, more, summary["circuit"] = feature_circuit(
            model,
            got.place,
            got.sae,
            batch,
            params.circuit,
            rows=params.batch_rows,
            bootstrap=params.bootstrap,
            seed=seed,
        )
        tables |= made
        arrays |= more
    seconds.append(time.perf_counter())
    names = ("", "autoencoder", "linkage", "circuit")
    return Result(
        analysis="sae_features",
        heads=linked.heads,
        params=params,
        model=model.describe(),
        data=data.describe(),
        tables=tables,
        arrays=arrays,
        summary=summary,
        timing=stages(list(zip(names, seconds, strict=True))),
        seed=seed,
    )


def arrays_of(linked: Linked) -> dict[str, np.ndarray]:
    """The evidence under the head table."""
    return {
        "per_example": linked.per_example.astype(np.float32),
        "null_per_example": linked.null.astype(np.float32),
    }


def linkage(linked: Linked) -> dict[str, Any]:
    """Headline figures."""
    return {
        "features": list(linked.features),
        "strongest_writers": [list(key) for key in linked.heads.top(5)] if linked.heads.ok.any() else [],
    }
