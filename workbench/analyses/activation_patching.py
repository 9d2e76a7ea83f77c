"""Activation patching (causal tracing, interchange interventions): which activations carry the answer.

Vig et al. 2020, Meng et al. 2022, Wang et al. 2022; the practice is surveyed by Heimersheim & Nanda 2024
(arXiv 2404.15255). For every head h, with x_clean and x_corrupted a pair of prompts of equal length:

1. Run both prompts, keep the activations of the other run (clean when denoising, corrupted when noising).
2. Run the base prompt with the activation of h, and of h alone, taken from the other run.
3. score(h) = mean over pairs of (patched - base) / (other - base) on the metric.
4. The same with the activation of another example's base run instead: the null (`pair_effects`).

Whole layers (attention output, MLP output, residual stream) and single positions go into tables of their own. The
computation is `primitives.patching`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from workbench.analyses import pair_effects as pairs
from workbench.analyses.base import KNOWN, Analysis, Finding, Result
from workbench.errors import CapabilityError

if TYPE_CHECKING:
    import pandas as pd

    from workbench.models import Model
    from workbench.primitives.patching import Patched, Site
    from workbench.tasks.pairs import PairDataset

Stream = Literal["attn_out", "mlp_out", "resid_pre", "resid_post"]
Component = Literal["z", "q", "k", "v"]


class ActivationPatchingParams(pairs.PairParams):
    """Those of `PairParams`, and:

    Attributes:
        component: what the head table is about: `z` (the output of a head), `q`; `k`, `v` give a row per kv group.
        streams: whole-layer activations for the table `streams`.
        by_position: activations patched at one position at a time, for the table `positions`; costs the number of
            positions times as much.
    """

    component: Component = "z"
    streams: tuple[Stream, ...] = ("attn_out", "mlp_out")
    by_position: tuple[Component | Stream, ...] = ()


def run(model: Model, data: PairDataset, params: ActivationPatchingParams, seed: int) -> Result:
    """Patch every head (or kv group), and the streams asked for.

    Result: `heads` with the extra columns `raw_effect`, `raw_stderr` and `q`; arrays `per_example` (shares),
    `raw_per_example` and, with controls, `null_per_example`, all `[n, n_layers, n_heads]`; tables `examples`,
    `streams`, `positions`; in the summary how the heads were patched (`method`, `notes`) and what that cost (`cost`,
    controls included). A run that is killed goes on where it was when it is started again.

    Raises:
        InputError: the data are no pairs, or a position is outside all of them.
        CapabilityError: the model's heads cannot be patched one by one.
    """
    from workbench.primitives.patching import estimate_cells, patch_cells, share_of_gap, sites
    from workbench.primitives.sweep import default_root

    seconds = [("", time.perf_counter())]
    two = pairs.runs(model, data, params, "activation_patching")
    options: dict[str, Any] = {"attention_mask": two.mask, "batch_rows": params.batch_rows}
    kept: dict[str, Any] = {**options, "checkpoint": default_root()}

    cells = sites(model, params.component, positions=params.positions)
    cost = estimate_cells(model, two.base, cells, controls=params.controls, **options)
    done = patch_cells(model, two.base, two.other, cells, two.readouts, **kept)
    at = [(site.layer, site.index or 0) for site in cells]
    shape = (model.n_layers, model.n_kv_heads if params.component in "kv" else model.n_heads)
    ends = done.base[params.metric], done.other[params.metric]
    share = pairs.on_grid(done.share(params.metric, least=params.least), at, shape)
    raw = pairs.on_grid(done.effect(params.metric), at, shape)
    seconds.append(("scoring", time.perf_counter()))

    def drawn(donors: list[int]) -> np.ndarray:
        return patch_cells(model, two.base, two.base, cells, two.readouts, donors=donors, **kept).values[params.metric]

    null = pairs.null_shares(drawn, ends, two.lengths, params, seed)
    null = None if null is None else pairs.on_grid(null, at, shape)
    absent = np.full(shape, "no attention heads", dtype=object)
    absent[tuple(np.array(at).T)] = ""
    rows = "kv_group" if params.component in "kv" else "head"
    meta = {"component": params.component, "direction": params.direction}
    heads = pairs.head_table(
        model, share, raw, null, params, seed, analysis="activation_patching", rows=rows, absent=absent, meta=meta
    )
    seconds.append(("controls", time.perf_counter()))

    def measured(found: Patched) -> dict[str, np.ndarray]:
        shares = share_of_gap(found.values[params.metric], *ends, least=params.least)
        return pairs.summarise(shares, found.effect(params.metric), params, seed)

    tables = {"examples": pairs.examples_table(data, *ends, share, params)}
    skipped = _streams(model, two, params, kept, measured, tables)
    seconds.append(("streams", time.perf_counter()))
    summary = {"method": done.method, "notes": list(done.notes), "cost": cost.to_dict(), **skipped}
    grids: dict[str, Any] = {"share": share, "raw": raw, "null": null}
    return pairs.result(
        model, data, params, seed, heads=heads, **grids, tables=tables, summary=summary, seconds=seconds
    )


def activation_patching(model: Model, data: PairDataset, *, seed: int = 0, **params: Any) -> Result:
    """Which heads carry what distinguishes clean from corrupted; the notebook form of `analysis: activation_patching`.

    Args:
        data: pairs, from `workbench.tasks.pairs_from_samples` or a task.
        params: fields of `ActivationPatchingParams`.

    Example:
        >>> wb.activation_patching(model, pairs, direction="noising").heads.top(5)  # doctest: +SKIP

    Raises:
        InputError: unusable data or an unknown parameter.
        CapabilityError: the model's heads cannot be patched one by one.
    """
    return ANALYSIS(model, data, ANALYSIS.parse(params), seed=seed)


def _streams(
    model: Model,
    two: pairs.Runs,
    params: ActivationPatchingParams,
    options: dict[str, Any],
    measured: Any,
    tables: dict[str, pd.DataFrame],
) -> dict[str, Any]:
    """Fill tables `streams` and `positions`; returns what this model does not allow, and why."""
    import pandas as pd

    from workbench.primitives.patching import patch_cells, sites

    wanted: dict[str, list[tuple[str, list[Site]]]] = {
        "streams": [(name, sites(model, name, positions=params.positions)) for name in params.streams],
        "positions": [
            (name, [site for p in range(int(two.lengths.max())) for site in sites(model, name, positions=[p])])
            for name in params.by_position
        ],
    }
    skipped: dict[str, str] = {}
    for table, parts in wanted.items():
        frames = []
        for name, cells in parts:
            try:
                found = patch_cells(model, two.base, two.other, cells, two.readouts, **options)
            except CapabilityError as error:
                skipped[name] = f"not run: {error}"
                continue
            facts = {
                "component": [name] * len(cells),
                "layer": [site.layer for site in cells],
                "index": [-1 if site.index is None else site.index for site in cells],
            }
            if table == "positions":
                facts["position"] = [(site.positions or (-1,))[0] for site in cells]
            frames.append(pd.DataFrame({**facts, **measured(found)}))
        if frames:
            tables[table] = pd.concat(frames, ignore_index=True)
    return {"skipped": skipped} if skipped else {}


ANALYSIS = Analysis(
    name="activation_patching",
    paper="Wang et al. 2022, arXiv 2211.00593; Heimersheim & Nanda 2024, arXiv 2404.15255",
    params_type=ActivationPatchingParams,
    data_kind="pairs",
    requires=("head_ablation_ok",),
    run=run,
    finds=(Finding("circuit", {"direction": "noising", "bootstrap": 100}, magnitude=True, how=KNOWN),),
)
