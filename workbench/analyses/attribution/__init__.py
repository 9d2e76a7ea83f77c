"""Attribution: the effect of every head (or edge) at once, to first order, checked against exact patching.

    attribution_patching   nodes, gradient at the base run          Nanda 2023; Kramar et al. 2024, arXiv 2403.00745
    eap                    edges, gradient at the base run          Syed et al. 2023, arXiv 2310.10348
    eap_ig                 nodes or edges, gradient averaged over   Hanna et al. 2024, arXiv 2403.17806
                           inputs between the two runs

1. Run both prompts; noising has the clean run as base, denoising the corrupted one.
2. score(h) = mean over pairs of (approximate effect of exchanging z_h) / (metric[other] - metric[base]): what
   activation patching measures exactly, on the same scale (`score`).
3. With level `edge`, the same for every sender and receiver of the residual stream. A head's score stays that of its
   node, which in a pre-norm model is the sum over its outgoing edges; columns `strongest_edge`, `edges_out` and
   `edges_in` say how the edges see it: a circuit of all edges above a threshold holds the heads whose strongest edge is
   (`tables`).
4. The null: the same with the activations of another example's base run (`pair_effects`).
5. The k strongest entries and k random others are patched exactly: table `spot_check`, correlations in the summary
   (`check`).

Deviation from the EAP-IG code, switchable: gradients at the midpoints of the steps, not at their left ends
(`rule: left`). The computation is `primitives.attribution`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.analyses import pair_effects as pairs
from workbench.analyses.attribution.check import spot_check
from workbench.analyses.attribution.params import AttributionParams
from workbench.analyses.attribution.score import Work
from workbench.analyses.attribution.tables import edges_table, heads_table, nodes_table
from workbench.analyses.base import KNOWN, Analysis, Finding, Result

if TYPE_CHECKING:
    import pandas as pd

    from workbench.models import Model
    from workbench.tasks.pairs import PairDataset


def run(model: Model, data: PairDataset, params: AttributionParams, seed: int) -> Result:
    """Score every head, and every edge where asked for.

    Result: `heads` with the extra columns `raw_effect`, `raw_stderr`, `q`, and for edges `strongest_edge`, `edges_out`,
    `edges_in`; arrays `per_example` (shares), `raw_per_example` and, with controls, `null_per_example`, all
    `[n, n_layers, n_heads]`; tables `examples`, `nodes` (input, heads, MLPs), `edges`, `spot_check`.

    Raises:
        InputError: the data are no pairs, or a position is outside all of them.
        CapabilityError: the model's heads cannot be exchanged one by one; at level `edge`, its blocks are not wired in
            a form in which edges are defined.
    """
    from workbench.primitives.attribution import wiring

    seconds = [("", time.perf_counter())]
    work = Work.prepare(model, data, params, np.random.default_rng(seed))
    found = work.score()
    heads = heads_table(model, found, params, seed)
    seconds.append(("scoring", time.perf_counter()))
    share = found.share(found.heads)
    tables: dict[str, pd.DataFrame] = {
        "examples": pairs.examples_table(data, found.base, found.other, share, params),
        "nodes": nodes_table(found),
    }
    summary: dict[str, Any] = {
        "approximation": _how(params),
        "n_gradients": len(work.path),
    }
    if found.edges is not None:
        tables["edges"] = edges_table(model, found.edges)
        summary["n_edges"] = len(tables["edges"])
        if wiring(model).notes:
            summary["notes"] = list(wiring(model).notes)
    if params.spot_check:
        tables["spot_check"], summary["spot_check"] = spot_check(work, found, seed)
    seconds.append(("spot_check", time.perf_counter()))
    grids: dict[str, Any] = {"share": share, "raw": found.heads}
    grids["null"] = found.share(found.null) if params.controls else None
    return pairs.result(
        model, data, params, seed, heads=heads, **grids, tables=tables, summary=summary, seconds=seconds
    )


def attribution(model: Model, data: PairDataset, *, seed: int = 0, **params: Any) -> Result:
    """Approximate effects of every head or edge; the notebook form of `analysis: attribution`.

    Args:
        data: pairs, from `workbench.tasks.pairs_from_samples` or a task.
        params: fields of `AttributionParams`.

    Example:
        >>> wb.attribution(model, pairs, method="eap_ig", level="edge").tables["edges"]  # doctest: +SKIP

    Raises:
        InputError: unusable data or an unknown parameter.
        CapabilityError: the model does not allow it.
    """
    return ANALYSIS(model, data, ANALYSIS.parse(params), seed=seed)


def _how(params: AttributionParams) -> str:
    if params.method == "eap_ig":
        return f"first order, gradient averaged over {params.steps} inputs between the two runs"
    return "first order, gradient at the base run"


ANALYSIS = Analysis(
    name="attribution",
    paper="Syed et al. 2023, arXiv 2310.10348; Hanna et al. 2024, arXiv 2403.17806",
    params_type=AttributionParams,
    data_kind="pairs",
    requires=("head_ablation_ok",),
    run=run,
    finds=(Finding("circuit", {"bootstrap": 100}, magnitude=True, min_auroc=0.85, how=KNOWN),),
)
