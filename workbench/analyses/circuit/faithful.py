"""Is the circuit enough, is it all, and is each node of it needed? Every answer from running only some of the nodes.

    circuit        f of the circuit alone (`curve`), and how often the answer is still the likeliest token
    complement     f of everything else (completeness): near 0 when nothing of the behaviour lies outside the circuit
    random         f of random circuits with as many nodes in every layer
    minimality     for each node v: f(C) - f(C without v)
    curve          f of the best k nodes, over MIB's sizes, by signed score (CPR) and by size of score (CMD); and of
                   what greedy removal leaves

What is not kept is resampled from each corruption's prompts in turn, or takes its mean (or zero): one block of rows for
each. Circuits are run at the level of nodes. Unless MLPs are nodes, they compute in every one of these runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import stats
from workbench.analyses.circuit import curve

if TYPE_CHECKING:
    import pandas as pd

    from workbench.analyses.circuit.params import CircuitParams, FaithfulnessParams
    from workbench.analyses.circuit.views import View, Views
    from workbench.models import Model

ENOUGH = 0.9  # f from which a circuit is said to do what the model does
Node = tuple[int, int]  # (layer, head), or (layer, -1) for an MLP


@dataclass(frozen=True)
class Faithful:
    """Tables `faithfulness`, `minimality` and `curve`, and the headline of each ablation."""

    faithfulness: pd.DataFrame
    minimality: pd.DataFrame
    curve: pd.DataFrame
    summary: dict[str, Any]


def measure(
    model: Model, views: Views, circuit: Sequence[Node], score: Mapping[Node, float], params: CircuitParams, seed: int
) -> Faithful:
    """Run the circuit under every view.

    Args:
        score: of every node, signed; what the curve ranks by. Nodes without one come last.
    """
    import pandas as pd

    asked = params.faithfulness
    assert asked is not None
    found: dict[str, list[dict[str, Any]]] = {"faithfulness": [], "minimality": [], "curve": []}
    summary: dict[str, Any] = {}
    for view in views.all:
        rows, head = _of_view(model, view, tuple(circuit), score, params, asked, seed)
        for name, some in rows.items():
            found[name] += some
        summary[view.name] = head
    columns = {
        "faithfulness": ["ablation", "set", "draw", "n_nodes", "share", "f", "stderr", "metric", "accuracy"],
        "minimality": ["ablation", "node", "layer", "head", "marginal", "stderr"],
        "curve": ["ablation", "ranking", "size", "n_nodes", "f"],
    }
    return Faithful(**{name: pd.DataFrame(found[name], columns=columns[name]) for name in columns}, summary=summary)


def random_circuit(circuit: Sequence[Node], nodes: Sequence[Node], rng: np.random.Generator) -> tuple[Node, ...]:
    """As many heads in every layer (and as many MLPs, of any layers), drawn from all of them."""
    drawn: list[Node] = []
    mlps = [node for node in nodes if node[1] < 0]
    drawn += [mlps[i] for i in rng.permutation(len(mlps))[: sum(head < 0 for _, head in circuit)]]
    for layer in sorted({layer for layer, _ in nodes}):
        here = [node for node in nodes if node[0] == layer and node[1] >= 0]
        wanted = sum(at == layer and head >= 0 for at, head in circuit)
        drawn += [here[i] for i in rng.permutation(len(here))[:wanted]]
    return tuple(sorted(drawn))


def _of_view(
    model: Model,
    view: View,
    circuit: tuple[Node, ...],
    score: Mapping[Node, float],
    params: CircuitParams,
    asked: FaithfulnessParams,
    seed: int,
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    from workbench.analyses.circuit.greedy import removals
    from workbench.analyses.circuit.views import circuit_run
    from workbench.primitives.circuit_run import complement
    from workbench.primitives.paths import sender_name
    from workbench.primitives.sweep.readout import Readout

    run = circuit_run(model, view, params)
    nodes = run.nodes
    rng = np.random.default_rng(seed)
    sets: list[tuple[str, int, tuple[Node, ...]]] = [
        ("empty", 0, ()),
        ("circuit", 0, circuit),
        ("complement", 0, complement(nodes, circuit)),
        *(("random", draw, random_circuit(circuit, nodes, rng)) for draw in range(asked.draws)),
    ]
    without = [tuple(other for other in circuit if other != node) for node in circuit] if asked.minimality else []
    ranked = {"signed": sorted(nodes, key=lambda node: -_number(score, node))}
    ranked["size"] = sorted(nodes, key=lambda node: -abs(_number(score, node, default=0.0)))
    cuts = [(ranking, size) for ranking in ranked for size in asked.sizes]
    curves = [tuple(ranked[ranking][: curve.n_kept(size, len(nodes))]) for ranking, size in cuts]
    wanted = list(dict.fromkeys(tuple(sorted(some)) for some in [s for *_, s in sets] + without + curves))
    place = {some: i for i, some in enumerate(wanted)}

    readouts = {"metric": view.readout, "rank": Readout("rank", view.readout.answer)}
    made, full = run.measure(wanted, readouts), run.full(readouts)
    empty, whole = made["metric"][place[()]], full["metric"]

    def f(some: Sequence[Node]) -> tuple[float, float]:
        return ratio(made["metric"][place[tuple(sorted(some))]], empty, whole)

    rows: dict[str, list[dict[str, Any]]] = {"faithfulness": [], "minimality": [], "curve": []}
    for name, draw, some in sets:
        value, error = f(some)
        at = place[tuple(sorted(some))]
        facts = {
            "ablation": view.name,
            "set": name,
            "draw": draw,
            "n_nodes": len(some),
            "share": len(some) / len(nodes),
        }
        numbers = {"f": value, "stderr": error, "metric": float(made["metric"][at].mean())}
        rows["faithfulness"].append({**facts, **numbers, "accuracy": float((made["rank"][at] == 0).mean())})
    facts = {"ablation": view.name, "set": "full", "draw": 0, "n_nodes": len(nodes), "share": 1.0, "f": 1.0}
    numbers = {"stderr": 0.0, "metric": float(whole.mean()), "accuracy": float((full["rank"] == 0).mean())}
    rows["faithfulness"].insert(0, {**facts, **numbers})
    for node, some in zip(circuit, without, strict=False):
        lost = made["metric"][place[tuple(sorted(circuit))]] - made["metric"][place[tuple(sorted(some))]]
        value, error = ratio(lost, np.zeros_like(empty), whole - empty)
        facts = {"ablation": view.name, "node": sender_name(node), "layer": node[0], "head": node[1]}
        rows["minimality"].append({**facts, "marginal": value, "stderr": error})
    areas: dict[str, list[float]] = {"signed": [], "size": []}
    for (ranking, size), some in zip(cuts, curves, strict=True):
        value, _ = f(some)
        areas[ranking].append(value)
        rows["curve"].append(
            {"ablation": view.name, "ranking": ranking, "size": size, "n_nodes": len(some), "f": value}
        )
    smallest = None
    for left, value in removals(run, view, float(empty.mean()), float(whole.mean())) if asked.greedy else ():
        size = len(left) / len(nodes)
        rows["curve"].append(
            {"ablation": view.name, "ranking": "greedy", "size": size, "n_nodes": len(left), "f": value}
        )
        smallest = size if value >= ENOUGH and (smallest is None or size < smallest) else smallest
    table = {row["set"]: row for row in rows["faithfulness"] if row["set"] != "random"}
    chance = np.array([row["f"] for row in rows["faithfulness"] if row["set"] == "random"])
    head: dict[str, Any] = {
        "faithfulness": table["circuit"]["f"],
        "stderr": table["circuit"]["stderr"],
        "completeness": table["complement"]["f"],
        "accuracy": table["circuit"]["accuracy"],
        "accuracy_full": table["full"]["accuracy"],
        "accuracy_empty": table["empty"]["accuracy"],
        "cpr": curve.cpr(asked.sizes, areas["signed"]),
        "cmd": curve.cmd(asked.sizes, areas["size"]),
    }
    if asked.greedy:
        head["smallest_share"] = smallest  # of nodes, by greedy removal, with f of at least ENOUGH
    if len(chance):
        p = stats.empirical_p(np.array(table["circuit"]["f"]), chance)
        head |= {"random": float(chance.mean()), "random_p": float(p)}
    return rows, head


def ratio(kept: np.ndarray, empty: np.ndarray, full: np.ndarray) -> tuple[float, float]:
    """f and its standard error over prompts (delta method, the three means of one prompt going together)."""
    value = float(curve.faithfulness(np.array([kept.mean()]), float(empty.mean()), float(full.mean()))[0])
    gap = float(np.mean(full) - np.mean(empty))
    if len(kept) < 2 or not gap:
        return value, float("nan")
    residual = (kept - empty) - value * (full - empty)
    return value, float(np.std(residual, ddof=1) / np.sqrt(len(kept)) / abs(gap))


def _number(score: Mapping[Node, float], node: Node, default: float = -np.inf) -> float:
    value = score.get(node, np.nan)
    return default if np.isnan(value) else float(value)
