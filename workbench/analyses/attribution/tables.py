"""The tables of an attribution result: heads, nodes and edges. Arithmetic on numpy arrays; it never runs a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import stats
from workbench.analyses import pair_effects as pairs
from workbench.analyses.attribution.params import AttributionParams
from workbench.analyses.attribution.score import EdgeSums, Found
from workbench.tables import HeadTable

if TYPE_CHECKING:
    import pandas as pd

    from workbench.models import Model
    from workbench.primitives.attribution import Node, Receiver


def heads_table(model: Model, found: Found, params: AttributionParams, seed: int) -> HeadTable:
    """One row per head; with edges, columns about those that touch it."""
    shape = (model.n_layers, model.n_heads)
    without = [f"blocks.{layer}.attn.hook_z" not in model.bridge.hook_dict for layer in range(model.n_layers)]
    absent = np.full(shape, "", dtype=object)
    absent[without] = "no attention heads"
    table = pairs.head_table(
        model,
        found.share(found.heads),
        found.heads,
        found.share(found.null) if params.controls else None,
        params,
        seed,
        analysis="attribution",
        rows="head",
        absent=absent,
        meta={"method": params.method, "level": params.level, "direction": params.direction},
    )
    meta = {**table.meta, "metric": f"{params.metric}, {params.direction}, approximate effect ({params.method})"}
    columns: dict[str, Any] = dict(table.columns)
    if found.edges is not None:
        columns |= _edge_columns(table, found.edges, model.n_heads // model.n_kv_heads)
    return HeadTable(columns, meta, shape=table.shape)


def nodes_table(found: Found) -> pd.DataFrame:
    """One row per node: the input, every head, every MLP."""
    import pandas as pd

    n, n_layers, n_heads = found.heads.shape
    layer, head = (axis.ravel() for axis in np.indices((n_layers, n_heads)))
    raw = np.concatenate([found.inputs[:, None], found.heads.reshape(n, -1), found.mlps], axis=1)
    shares = found.share(raw)
    return pd.DataFrame(
        {
            "kind": ["input"] + ["head"] * len(layer) + ["mlp"] * n_layers,
            "layer": [-1, *layer.tolist(), *range(n_layers)],
            "head": [-1, *head.tolist(), *[-1] * n_layers],
            "score": stats.mean(shares),
            "stderr": stats.stderr(shares),
            "raw_effect": stats.mean(raw),
            "n": (~np.isnan(shares)).sum(axis=0),
        }
    )


def edges_table(model: Model, edges: EdgeSums) -> pd.DataFrame:
    """One row per edge, senders in the order in which they write; see `edge_facts` for who is who."""
    import pandas as pd

    at = np.nonzero(edges.graph.exists())
    senders = pd.DataFrame([sender_facts(sender) for sender in edges.graph.senders])
    receivers = pd.DataFrame([receiver_facts(model, receiver) for receiver in edges.graph.receivers])
    named = [frame.iloc[rows].reset_index(drop=True) for frame, rows in zip((senders, receivers), at, strict=True)]
    numbers = {"score": edges.score[at], "stderr": edges.stderr[at], "raw_effect": edges.raw_effect[at]}
    return pd.concat(named, axis=1).assign(**numbers, n=edges.n)


def edge_facts(model: Model, sender: Node, receiver: Receiver) -> dict[str, Any]:
    """Columns that name an edge."""
    return {**sender_facts(sender), **receiver_facts(model, receiver)}


def sender_facts(sender: Node) -> dict[str, Any]:
    return {"sender_kind": sender.kind, "sender_layer": sender.layer, "sender_head": sender.head}


def receiver_facts(model: Model, receiver: Receiver) -> dict[str, Any]:
    """q is read by a head; k and v by a kv group, so their `receiver_head` is -1."""
    head = receiver.index if receiver.kind == "q" else -1
    group = receiver.index if receiver.kind in ("k", "v") else model.kv_group(head) if head >= 0 else -1
    return {
        "receiver_input": receiver.kind,
        "receiver_layer": receiver.layer,
        "receiver_head": head,
        "receiver_kv_group": group,
    }


def _edge_columns(heads: HeadTable, edges: EdgeSums, share: int) -> dict[str, np.ndarray]:
    """Columns `strongest_edge`, `edges_out`, `edges_in` from |mean score|, in the order of the table's rows.

    Edges into k and v of a kv group count for every head of the group, of which there are `share`.
    """
    size = np.abs(np.where(edges.graph.exists(), edges.score, 0.0))
    receivers = edges.graph.receivers
    made: dict[str, list[float]] = {"strongest_edge": [], "edges_out": [], "edges_in": []}
    for row in range(len(heads)):
        layer, head = int(heads["layer"][row]), int(heads["head"][row])
        reads = {"q": head, "k": head // share, "v": head // share}
        into = [i for i, r in enumerate(receivers) if r.layer == layer and reads.get(r.kind) == r.index]
        coming, going = size[:, into], size[edges.graph.sender_of_head(layer, head)]
        made["strongest_edge"].append(float(max(coming.max(), going.max())))
        made["edges_out"].append(float(going.sum()))
        made["edges_in"].append(float(coming.sum()))
    return {name: np.array(values) for name, values in made.items()}
