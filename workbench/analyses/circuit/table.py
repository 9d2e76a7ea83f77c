"""The tables of a circuit: one row per head, and which view of the task sees which head and edge. Arithmetic only.

    score       strongest effect of the head on any receiver it was asked about, under any view: a share of the gap
                between the two runs, signed (negative: it works against the answer)
    null        mean effect, on the same receiver and under the same view, of the layer's heads outside the circuit (of
                the other layers', where there are none): a matched random head
    null_p, q   two-sided, by flipping signs over prompts, times the number of receivers and views whose strongest the
                score is (Bonferroni); q over heads

A score is the largest of several, so on its own it is larger than zero by chance. What joins the circuit is decided by
`discover`, not by these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import stats
from workbench.analyses.circuit.graph import LOGITS, CircuitGraph
from workbench.analyses.pair_effects import NO_GAP
from workbench.tables import HeadTable

if TYPE_CHECKING:
    import pandas as pd

    from workbench.analyses.circuit.discover import Measured
    from workbench.analyses.circuit.params import CircuitParams
    from workbench.analyses.circuit.views import Views
    from workbench.models import Model


def head_table(
    model: Model, found: Measured, graph: CircuitGraph, params: CircuitParams, seed: int
) -> tuple[HeadTable, dict[str, np.ndarray]]:
    """The table, and arrays `per_example` and `null_per_example`, `[example, layer, head]`."""
    shape = (model.n_layers, model.n_heads)
    names = [[f"{layer}.{head}" for head in range(shape[1])] for layer in range(shape[0])]
    n = next(iter(found.share.values())).shape[2]
    score, null = np.full((n, *shape), np.nan), np.full((n, *shape), np.nan)
    view, receiver = np.full(shape, "", dtype=object), np.full(shape, "", dtype=object)
    direct, asked = np.full(shape, np.nan), np.ones(shape)
    row_of = {name: s for s, name in enumerate(found.senders)}
    receivers = list(found.share)
    means = np.stack([found.mean(name) for name in receivers])  # [receiver, view, sender]
    for layer in range(shape[0]):
        for head in range(shape[1]):
            s = row_of.get(names[layer][head])
            if s is None or np.isnan(means[:, :, s]).all():
                continue
            asked[layer, head] = (~np.isnan(means[:, :, s])).sum()  # the strongest of so many is no single test
            r, v = np.unravel_index(np.nanargmax(np.abs(means[:, :, s])), means.shape[:2])
            score[:, layer, head] = found.share[receivers[r]][v, s]
            others = _matched(found, means[r, v], names, layer, head, graph)
            null[:, layer, head] = np.nanmean(found.share[receivers[r]][v][others], axis=0) if others else np.nan
            view[layer, head], receiver[layer, head] = found.views[v], receivers[r]
            if LOGITS in found.share:
                to_logits = means[receivers.index(LOGITS), :, s]
                direct[layer, head] = to_logits[np.nanargmax(np.abs(to_logits))]
    low, high = stats.bootstrap_ci(score, n_boot=params.bootstrap, seed=seed)
    null_p = np.minimum(1.0, stats.sign_flip_p(score - null, alternative="two-sided", seed=seed) * asked)
    node: dict[str, Any] = dict.fromkeys(name for row in names for name in row)
    node |= {one.name: one for one in graph.nodes if one.kind == "head"}
    inside = np.array([[node[name] is not None for name in row] for row in names])
    undefined = np.isnan(score).all(axis=0)
    table = HeadTable.from_scores(
        stats.mean(score),
        n_kv_heads=model.n_kv_heads,
        stderr=stats.stderr(score),
        ci_low=low,
        ci_high=high,
        n=(~np.isnan(score)).sum(axis=0),
        null_mean=stats.mean(null),
        null_p=null_p,
        status=np.where(undefined, "no attention heads", "ok").astype(object),
        extra={
            "in_circuit": inside,
            "role": np.array([[getattr(node[name], "role", "") for name in row] for row in names], dtype=object),
            "stage": np.array([[getattr(node[name], "stage", -1) for name in row] for row in names]),
            "direct": direct,
            "receiver": receiver,
            "view": view,
            "seen_by": np.array([[" ".join(getattr(node[m], "seen_by", ())) for m in row] for row in names], object),
            "q": stats.benjamini_hochberg(null_p),
        },
        **_about(model, params),
    )
    return table, {"per_example": score.astype(np.float32), "null_per_example": null.astype(np.float32)}


def undefined_table(model: Model, n: int, params: CircuitParams) -> tuple[HeadTable, dict[str, np.ndarray]]:
    """When no view has a gap: nothing can be said about any head."""
    nothing = np.full((n, model.n_layers, model.n_heads), np.nan)
    text = np.full(nothing.shape[1:], "", dtype=object)
    extra = {"in_circuit": np.zeros(text.shape, dtype=bool), "role": text, "stage": np.full(text.shape, -1)}
    extra |= {"direct": nothing[0], "receiver": text, "view": text, "seen_by": text, "q": nothing[0]}
    table = HeadTable.from_scores(
        np.full(text.shape, np.nan),
        n_kv_heads=model.n_kv_heads,
        status=NO_GAP,
        extra=extra,
        **_about(model, params),
    )
    return table, {"per_example": nothing.astype(np.float32)}


def visibility(found: Measured, graph: CircuitGraph, totals: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """One row per node or edge of the circuit and view.

    Columns: effect, stderr (of a node: exchanged alone, along all its paths), q, `passes` (the rule lets it in under
    this view) and `alone` (a search under this view alone finds it).
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    names = totals["names"].tolist()
    share = totals["share"].astype(np.float64)  # [view, node, example]
    mean, error = stats.mean(np.moveaxis(share, 2, 0)), stats.stderr(np.moveaxis(share, 2, 0))
    alone = {view: found.graph(view) for view in found.views}
    keys = {view: graph.keys() for view, graph in alone.items()}
    for node in graph.nodes:
        for v, view in enumerate(found.views):
            at = names.index(node.name) if node.name in names else None
            numbers = (np.nan, np.nan) if at is None else (float(mean[v, at]), float(error[v, at]))
            facts = {"kind": "node", "sender": node.name, "receiver": "", "view": view}
            facts |= {"effect": numbers[0], "stderr": numbers[1], "q": np.nan, "passes": view in node.seen_by}
            rows.append({**facts, "alone": node.name in alone[view]})
    for edge in graph.edges:
        s = found.senders.index(edge.sender)
        effect, spread = found.mean(edge.receiver), found.stderr(edge.receiver)
        for v, view in enumerate(found.views):
            facts = {"kind": "edge", "sender": edge.sender, "receiver": edge.receiver, "view": view}
            facts |= {"effect": float(effect[v, s]), "stderr": float(spread[v, s])}
            facts |= {"q": float(found.q[edge.receiver][v, s]), "passes": view in edge.seen_by}
            rows.append({**facts, "alone": edge.key in keys[view]})
    columns = ["kind", "sender", "receiver", "view", "effect", "stderr", "q", "passes", "alone"]
    return pd.DataFrame(rows, columns=columns)


def views_table(views: Views) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame([view.facts() for view in views.all], columns=["view", "kind", "about", "clean", "other"])


def _matched(
    found: Measured, effects: np.ndarray, names: list[list[str]], layer: int, head: int, graph: CircuitGraph
) -> list[int]:
    """Rows of the heads of the same layer outside the circuit; without such, those of all layers; then any other."""
    place = {name: s for s, name in enumerate(found.senders)}

    def usable(row: list[str], *, outside: bool) -> list[int]:
        some = [place[m] for m in row if m in place and m != names[layer][head] and not (outside and m in graph)]
        return [s for s in some if not np.isnan(effects[s])]

    everyone = [name for row in names for name in row]
    return usable(names[layer], outside=True) or usable(everyone, outside=True) or usable(everyone, outside=False)


def _about(model: Model, params: CircuitParams) -> dict[str, Any]:
    return {
        "analysis": "circuit",
        "metric": f"{params.metric}, {params.method.replace('_', ' ')}, strongest effect",
        "unit": "share of the gap between the two runs",
        "model": model.name,
        "fingerprint": model.fingerprint,
        "basis": model.basis,
        "higher_is_more": True,
        "meta": {"level": "dataset", "method": params.method, "mlps": params.mlps, "rule": params.rule},
    }
