"""Discovery by single effects: exact activation patching of nodes, and EAP-IG edges pruned to a size.

activation_patching   every node alone, along all its paths; the circuit is what the rule lets in, and has no edges
attribution           1. EAP-IG scores every edge of every prompt (`primitives.attribution`)
                      2. per corruption, the `n_edges` edges of the largest |mean score|, of the union over them
                      3. edges from which no path leads to the logits, or to which none leads from the input, go
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workbench.analyses.circuit.discover import TOTAL, Measured, judge, total_effects
from workbench.analyses.circuit.graph import INPUT, LOGITS

if TYPE_CHECKING:
    from workbench.analyses.circuit.params import CircuitParams
    from workbench.analyses.circuit.views import Views
    from workbench.models import Model
    from workbench.primitives.attribution import Node, Receiver


def activation_patching(model: Model, views: Views, params: CircuitParams) -> Measured:
    """The nodes whose exchange alone moves the metric."""
    done = total_effects(model, views, params)
    found = Measured(views.names, done["names"].tolist(), model.n_heads // model.n_kv_heads)
    found.add(TOTAL, 0, done["share"])
    judge(found, [TOTAL], params, n_nodes=len(found.senders))
    return found


def attribution(model: Model, views: Views, params: CircuitParams) -> Measured:
    """The strongest edges of every corruption.

    Raises:
        CapabilityError: the model's blocks are not wired in a form in which edges are defined.
    """
    from workbench.primitives.attribution import bytes_per_example, edge_scores, integration_path, wiring

    graph = wiring(model).graph
    found = Measured(views.names, [sender(node) for node in graph.senders], model.n_heads // model.n_kv_heads)
    exists = graph.exists()
    n_edges = int(params.n_edges) if params.n_edges > 1 else max(1, round(params.n_edges * int(exists.sum())))
    mask, n = views.mask, len(views.all[0].base)
    size = params.batch_rows or max(1, 2**28 // bytes_per_example(model, views.all[0].tokens.shape[1]))
    import torch

    scores = np.full((len(views.all), n, *exists.shape), np.nan, dtype=np.float32)
    for v, view in enumerate(views.all):
        for start in range(0, n, size):
            rows = slice(start, start + size)
            made = edge_scores(
                model,
                view.runs.base.tokens[rows],
                view.tokens[rows],
                view.readout,
                rows=torch.arange(n)[rows],
                attention_mask=None if mask is None else mask[rows],
                path=integration_path(params.steps, from_other=True),
            )
            scores[v, rows] = view.share(made.scores.double().numpy())
    counted = np.maximum((~np.isnan(scores)).sum(axis=1), 1)  # one undefined prompt takes no edge away
    mean = np.where(exists, np.nansum(scores, axis=1) / counted, 0.0).astype(np.float32)  # [view, sender, receiver]
    cutoff = -np.sort(-np.abs(mean).reshape(len(mean), -1), axis=1)[:, min(n_edges, int(exists.sum())) - 1]
    chosen = (np.abs(mean) >= cutoff[:, None, None]) & (np.abs(mean) > 0) & exists
    for r, what in enumerate(graph.receivers):
        name = receiver(what)
        found.add(name, 0, np.moveaxis(scores[:, :, :, r], 1, 2))
        found.passes[name] = chosen[:, :, r]
        found.q[name] = np.full(chosen.shape[:2], np.nan)
    return found


def sender(node: Node) -> str:
    """Name of a sender in a circuit."""
    if node.kind == "input":
        return INPUT
    return f"{node.layer}.mlp" if node.kind == "mlp" else f"{node.layer}.{node.head}"


def receiver(what: Receiver) -> str:
    """Name of a receiver in a circuit."""
    if what.kind == "logits":
        return LOGITS
    return f"{what.layer}.mlp" if what.kind == "mlp" else f"{what.layer}.{what.index}.{what.kind}"
