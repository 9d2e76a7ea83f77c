"""Circuits: which heads do a task, who tells whom through q, k or v, in which roles, and whether that is all of it.

    path_patching         Merullo et al. 2024, arXiv 2310.08744 (after Wang et al. 2022): stage by stage from the logits
    activation_patching   every node alone, exactly; no edges
    attribution           EAP-IG edges pruned to a size (Hanna et al. 2024, arXiv 2403.17806)
    greedy                nodes removed one by one while what is left does the task; no edges

1. The prompts under every corruption of their task, and an ablation beside them (`views`).
2. The search (`discover`, `scores`, `greedy`), whose result is a typed graph (`graph`): table `nodes`, table `edges`.
3. Which corruption sees which head and edge: table `visibility` (`table`).
4. What each head attends to and copies (`evidence`), and the role that follows (`roles`).
5. The circuit run alone: faithfulness, completeness, minimality, the curve over sizes with CPR and CMD, random circuits
   (`faithful`, `curve`; `primitives.circuit_run`).

Deviations from Merullo et al., beside several corruptions: heads, not one head per stage and input, are thresholded by
effect and significance (`rule: top` is the paper's); q, k and v of every head found are receivers; senders
and receivers are patched at all positions, not at the last; effects are ratios of means.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.analyses.base import KNOWN, Analysis, Finding, Result, stages
from workbench.analyses.circuit.graph import CircuitGraph, Edge, Node
from workbench.analyses.circuit.params import CircuitParams, FaithfulnessParams

if TYPE_CHECKING:
    import pandas as pd

    from workbench.analyses.circuit.discover import Measured
    from workbench.analyses.circuit.views import Views
    from workbench.models import Model
    from workbench.tasks.pairs import PairDataset

__all__ = ["ANALYSIS", "CircuitGraph", "CircuitParams", "Edge", "FaithfulnessParams", "Node", "circuit", "graph_of"]


def run(model: Model, data: PairDataset, params: CircuitParams, seed: int) -> Result:
    """Find the circuit and test it.

    Result: `heads` with the extra columns in_circuit, role, stage (1 is closest to the logits), direct (effect on the
    logits), receiver and view (where the score comes from), seen_by, q; arrays `per_example` and `null_per_example`,
    `[n, n_layers, n_heads]`; tables nodes, edges, visibility, views, roles, evidence, faithfulness, minimality, curve.
    `graph_of(result)` is the graph.

    Raises:
        InputError: the data are no pairs, or lack a corruption that was asked for.
        CapabilityError: paths cannot be told apart in this architecture (`path_patching`), or edges are not defined in
            it (`attribution`).
    """
    from workbench.analyses.circuit import table, views

    seconds = [("", time.perf_counter())]
    seen = views.make(model, data, params)
    seconds.append(("views", time.perf_counter()))
    tables: dict[str, pd.DataFrame] = {"views": table.views_table(seen)}
    summary: dict[str, Any] = {"method": params.method, "convention": _convention(params), "notes": list(seen.notes)}
    if seen.all:
        heads, arrays = _search_and_test(model, seen, params, seed, tables, summary, seconds)
    else:
        heads, arrays = table.undefined_table(model, len(data), params)
        nodes, edges = CircuitGraph(group=model.n_heads // model.n_kv_heads).to_frames()
        tables |= {"nodes": nodes, "edges": edges}
        summary |= {"heads": [], "n_heads": 0, "n_edges": 0}
    return Result(
        analysis="circuit",
        heads=heads,
        params=params,
        model=model.describe(),
        data=data.describe(),
        tables=tables,
        arrays=arrays,
        summary=summary,
        timing=stages(seconds),
        seed=seed,
    )


def _search_and_test(
    model: Model,
    seen: Views,
    params: CircuitParams,
    seed: int,
    tables: dict[str, Any],
    summary: dict[str, Any],
    seconds: list[tuple[str, float]],
) -> tuple[Any, dict[str, np.ndarray]]:
    from workbench.analyses.circuit import discover, faithful, table

    found = search(model, seen, params)
    graph = found.graph()
    if params.method == "attribution":
        graph = graph.fed_by()
    seconds.append(("search", time.perf_counter()))
    totals = discover.total_effects(model, seen, params)
    seconds.append(("total effects", time.perf_counter()))
    if params.roles:
        graph, tables["roles"], tables["evidence"] = _roles(model, seen, graph, summary)
        seconds.append(("roles", time.perf_counter()))
    tables["nodes"], tables["edges"] = graph.to_frames()
    tables["visibility"] = table.visibility(found, graph, totals)
    heads, arrays = table.head_table(model, found, graph, params, seed)
    everything = model.n_layers * model.n_heads
    summary |= {
        "heads": [list(head) for head in graph.heads()],
        "mlp_layers": list(graph.mlps()),
        "n_heads": len(graph.heads()),
        "share_of_heads": len(graph.heads()) / everything,
        "n_edges": len(graph.edges),
        "roles": _by_role(graph),
        "inputs": {part: sum(edge.input == part for edge in graph.edges) for part in ("q", "k", "v", "logits")},
        "sees": {view: _sees(found, graph, view) for view in found.views},
    }
    if params.faithfulness is not None:
        score = {(layer, head): value for (layer, head), value in zip(heads.keys(), heads["score"], strict=True)}
        circuit_nodes: list[tuple[int, int]] = list(graph.heads())
        if params.mlp_nodes:
            score |= {(node.layer, -1): node.effect for node in graph.nodes if node.kind == "mlp"}
            circuit_nodes += [(layer, -1) for layer in graph.mlps()]
        done = faithful.measure(model, seen, circuit_nodes, score, params, seed)
        tables |= {"faithfulness": done.faithfulness, "minimality": done.minimality, "curve": done.curve}
        summary["faithfulness"] = done.summary
        seconds.append(("faithfulness", time.perf_counter()))
    return heads, arrays


def search(model: Model, views: Views, params: CircuitParams) -> Measured:
    """The effects, and which belong to the circuit, by the method asked for."""
    from workbench.analyses.circuit import discover, scores
    from workbench.analyses.circuit.greedy import greedy

    methods = {
        "path_patching": discover.path_patching,
        "activation_patching": scores.activation_patching,
        "attribution": scores.attribution,
        "greedy": greedy,
    }
    return methods[params.method](model, views, params)


def graph_of(result: Any) -> CircuitGraph:
    """The circuit of a result, or of a stored artifact."""
    stored = not isinstance(result, Result)
    nodes, edges = (result.table(n).to_pandas() if stored else result.tables[n] for n in ("nodes", "edges"))
    heads = result.table("heads").to_pandas() if stored else result.heads.df
    group = int(((heads["layer"] == 0) & (heads["kv_group"] == 0)).sum())
    return CircuitGraph.from_frames(nodes, edges, group=max(1, group))


def circuit(model: Model, data: PairDataset, *, seed: int = 0, **params: Any) -> Result:
    """The circuit of a task; the notebook form of `analysis: circuit`.

    Args:
        data: pairs, from a circuit task (then all its corruptions are used) or `workbench.tasks.pairs_from_samples`.
        params: fields of `CircuitParams`.

    Example:
        >>> wb.circuit(model, wb.tasks.circuits.ioi(model, 32)).tables["edges"]  # doctest: +SKIP

    Raises:
        InputError: unusable data or parameters.
        CapabilityError: this architecture does not allow the method.
    """
    return ANALYSIS(model, data, ANALYSIS.parse(params), seed=seed)


def _roles(
    model: Model, seen: Views, graph: CircuitGraph, summary: dict[str, Any]
) -> tuple[CircuitGraph, pd.DataFrame, pd.DataFrame]:
    """The graph with roles, their table and the evidence; without evidence where patterns are not to be had."""
    import pandas as pd

    from workbench.analyses.circuit import evidence, roles
    from workbench.errors import CapabilityError, InputError

    columns = ["layer", "head", "role", "basis"]
    first = seen.all[0]
    try:
        measured = evidence.measure(model, first.data, first.runs.base, graph.heads(), batch_rows=first.runs.batch_rows)
    except (CapabilityError, InputError) as error:
        summary["notes"].append(f"no roles, because attention patterns cannot be read: {error}")
        return graph, pd.DataFrame(columns=columns), pd.DataFrame()
    named = roles.name_roles(graph, measured)
    rows = [[*head, named[f"{head[0]}.{head[1]}"].name, named[f"{head[0]}.{head[1]}"].basis] for head in graph.heads()]
    graph = graph.with_roles({name: role.name for name, role in named.items()})
    return graph, pd.DataFrame(rows, columns=columns), measured.to_frame()


def _by_role(graph: CircuitGraph) -> dict[str, list[list[int]]]:
    found: dict[str, list[list[int]]] = {}
    for node in graph.nodes:
        if node.kind == "head" and node.role:
            found.setdefault(node.role, []).append([node.layer, node.head])
    return found


def _sees(found: Measured, graph: CircuitGraph, view: str) -> str:
    alone = found.graph(view)
    heads = len(set(alone.heads()) & set(graph.heads()))
    edges = len(alone.keys() & graph.keys())
    return f"{heads} of {len(graph.heads())} heads, {edges} of {len(graph.edges)} edges"


def _convention(params: CircuitParams) -> str:
    if params.method == "attribution":
        return f"EAP-IG, {params.steps} steps, gradients at midpoints; nodes are heads and MLPs"
    if params.method == "activation_patching":
        return f"every node exchanged alone at all positions, {params.direction}; everything above recomputed"
    mlps = "recomputed, hence part of the paths" if params.mlps == "recompute" else "frozen to the clean run"
    nodes = "heads and MLPs" if params.mlp_nodes else "heads"
    if params.method == "greedy":
        return (
            f"{nodes} removed one by one while 1 - |1 - faithfulness| is {params.faithful} or more; all else computes"
        )
    return f"paths between {nodes}; all other heads frozen to the clean run, MLPs {mlps}; all positions"


_BARE = {"faithfulness": None, "roles": False, "bootstrap": 100}  # the search alone
ANALYSIS = Analysis(
    name="circuit",
    paper="Merullo, Eickhoff, Pavlick 2024, arXiv 2310.08744",
    params_type=CircuitParams,
    data_kind="pairs",
    requires=("head_ablation_ok",),
    run=run,
    finds=(
        Finding("circuit", _BARE, magnitude=True, how=KNOWN),
        Finding("direct", {**_BARE, "max_stages": 1}, column="direct", magnitude=True, how=KNOWN),
    ),
)
