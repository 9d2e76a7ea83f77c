"""The exact spot check: what the strongest entries and random others do when they are really exchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import stats
from workbench.analyses.attribution.score import Found, Work
from workbench.analyses.attribution.tables import edge_facts
from workbench.progress import bar

if TYPE_CHECKING:
    import pandas as pd


def spot_check(work: Work, found: Found, seed: int) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Table of `params.spot_check` strongest entries and as many random ones, and how well they agree.

    An entry is a head or an MLP, or an edge where edges were scored. Columns `approximate` and `exact` are shares of
    the gap, means over the same examples.
    """
    import pandas as pd

    from workbench.primitives.attribution import exact_edges, exact_nodes

    score, entry = _entries(work, found)
    k, order = work.params.spot_check, np.argsort(-np.abs(score), kind="stable")
    others = np.random.default_rng([seed, 1]).permutation(order[k:])[:k]
    chosen = [*order[:k].tolist(), *others.tolist()]
    if not chosen:
        return pd.DataFrame({"approximate": [], "exact": []}), {"n": 0}
    entries, facts = zip(*map(entry, chosen), strict=True)
    measure: Any = exact_nodes if found.edges is None else exact_edges
    exact = np.full((len(chosen), len(work.two.lengths)), np.nan)
    with bar(len(work.two.lengths), "exact spot check") as shown:
        for rows, batch in work.batches():
            runs = batch.pop("base"), batch.pop("other")
            exact[:, rows] = measure(work.model, *runs, entries, **batch).double().numpy()
            shown.update(len(rows))
    shares = (exact / found.gap).T
    frame = pd.DataFrame(facts)
    frame["chosen"] = ["top"] * len(order[:k]) + ["random"] * len(others)
    frame["approximate"] = score[chosen]
    frame["exact"], frame["exact_stderr"] = stats.mean(shares), stats.stderr(shares)
    return frame, agreement(frame)


def agreement(frame: pd.DataFrame) -> dict[str, Any]:
    """Correlations of approximate and exact values over all checked entries, and over the random ones alone."""
    approximate, exact = np.asarray(frame["approximate"]), np.asarray(frame["exact"])
    random = np.asarray(frame["chosen"]) == "random"
    moved = np.nan_to_num(exact) != 0
    made: dict[str, float] = {
        "spearman": stats.spearman(approximate, exact),
        "pearson": stats.pearson(approximate, exact),
        "spearman_random": stats.spearman(approximate[random], exact[random]),
        "same_sign": float((np.sign(approximate) == np.sign(exact))[moved].mean()) if moved.any() else np.nan,
        "largest_error": float(np.abs(approximate - exact).max()),
    }
    return {"n": len(frame), **{key: None if np.isnan(value) else value for key, value in made.items()}}


def _entries(work: Work, found: Found) -> tuple[np.ndarray, Callable[[int], tuple[Any, dict[str, Any]]]]:
    """Scores of everything that has one; and of the i-th what the primitives take, and columns that name it."""
    from workbench.primitives.attribution import Node

    if found.edges is not None:
        graph, score = found.edges.graph, found.edges.score
        places = np.argwhere(graph.exists() & ~np.isnan(score))  # close to a million in a model of 7B weights

        def edge(i: int) -> tuple[Any, dict[str, Any]]:
            ends = graph.senders[places[i, 0]], graph.receivers[places[i, 1]]
            return ends, edge_facts(work.model, *ends)

        return score[tuple(places.T)], edge
    heads, mlps = stats.mean(found.share(found.heads)), stats.mean(found.share(found.mlps))
    nodes = [Node("head", int(layer), int(head)) for layer, head in np.argwhere(~np.isnan(heads))]
    nodes += [Node("mlp", int(layer)) for layer in np.flatnonzero(~np.isnan(mlps))]
    score = np.array([heads[n.layer, n.head] if n.kind == "head" else mlps[n.layer] for n in nodes])
    return score, lambda i: (nodes[i], {"kind": nodes[i].kind, "layer": nodes[i].layer, "head": nodes[i].head})
