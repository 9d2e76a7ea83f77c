"""How much the circuits of several tasks share: tables of pairs, of single views, over k, and of halves of one task.

Statistics are `workbench.tables.overlap`'s; here they are applied to the effects of two tasks on one model. Sets are
circuits, weights |effect|, rankings |effect| of the best view. The interval of a Jaccard is over prompts: they are
drawn anew in each task, effects and circuits follow. Nothing here runs a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import stats
from workbench.analyses.overlap.effects import Head, TaskEffects
from workbench.tables import overlap

if TYPE_CHECKING:
    import pandas as pd

    from workbench.analyses.overlap.params import OverlapParams
    from workbench.models import Model

HALVES = 50  # random splits of a task's prompts
CONFIDENCE = 0.95
STATISTICS = ("jaccard", "weighted_jaccard", "rbo", "spearman")


def population(model: Model) -> dict[Any, int]:
    """Heads by layer, of the layers that have any."""
    from workbench.primitives.sweep.units import attention_layers

    return dict.fromkeys(attention_layers(model), model.n_heads)


def pairs_table(model: Model, tasks: Sequence[TaskEffects], params: OverlapParams, seed: int) -> pd.DataFrame:
    """One row per pair of tasks and level (heads; edges where both have them)."""
    import pandas as pd

    rows = []
    for a, b in combinations(tasks, 2):
        one = overlap.of_sets(a.circuit(), b.circuit(), population(model)).to_dict()
        x, y = np.abs(a.effect), np.abs(b.effect)
        low, high = jaccard_interval(a, b, n_boot=params.bootstrap, seed=seed)
        numbers = {"jaccard_low": low, "jaccard_high": high}
        numbers |= {
            "weighted_jaccard": overlap.weighted_jaccard(x, y),
            "spearman": stats.spearman(x, y),
            "rbo": overlap.rank_biased_overlap(ranking(x), ranking(y)),
            "average_overlap": overlap.average_overlap(ranking(x), ranking(y)),
        }
        layers = np.broadcast_to(np.arange(x.shape[0])[:, None], x.shape)
        for name, statistic in (("weighted_jaccard", overlap.weighted_jaccard), ("spearman", stats.spearman)):
            options = {"n_perm": params.permutations, "seed": seed}
            numbers[f"{name}_p"] = overlap.shuffled_p(statistic, x, y, layers, **options)
        rows.append({"level": "heads", "a": a.name, "b": b.name, **one, **numbers})
        mine, other = a.edges(), b.edges()
        if mine is not None and other is not None:
            mlps = any("mlp" in end or end == "input" for edge in (mine | other) for end in edge)
            every = overlap.edges_per_layer(model.n_layers, model.n_heads, model.n_kv_heads, mlps=mlps)
            found = overlap.of_sets(mine, other, every, overlap.edge_layers).to_dict()
            rows.append({"level": "edges", "a": a.name, "b": b.name, **found})
    return pd.DataFrame(rows)


def matrix_table(pairs: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Every statistic of heads as a square: columns statistic, task, and one per task. Containment: row in column."""
    import pandas as pd

    heads = pairs[pairs["level"] == "heads"]
    at = {(row["a"], row["b"]): row for _, row in heads.iterrows()}
    rows = []
    for statistic in (*STATISTICS, "contained_in", "p_layer_matched"):
        for a in names:
            values: dict[str, float] = {}
            for b in names:
                if a == b:
                    values[b] = np.nan if statistic == "p_layer_matched" else 1.0
                    continue
                row, turned = (at[a, b], False) if (a, b) in at else (at[b, a], True)
                key = ("b_in_a" if turned else "a_in_b") if statistic == "contained_in" else statistic
                values[b] = float(row[key])
            rows.append({"statistic": statistic, "task": a, **values})
    return pd.DataFrame(rows)


def views_table(tasks: Sequence[TaskEffects]) -> pd.DataFrame:
    """What the overlap would seem to be with one view of each task: one row per pair of tasks and of views.

    `missed` counts heads in both circuits that this pair of views does not show in both.
    """
    import pandas as pd

    rows = []
    for a, b in combinations(tasks, 2):
        truly = set(a.circuit()) & set(b.circuit())
        if a.found is not None or b.found is not None:
            continue
        for view_a in a.names:
            for view_b in b.names:
                one, two = set(a.circuit(view_a)), set(b.circuit(view_b))
                facts = {"a": a.name, "view_a": view_a, "b": b.name, "view_b": view_b}
                counts = {"n_a": len(one), "n_b": len(two), "n_shared": len(one & two)}
                rows.append({**facts, **counts, "jaccard": stats.jaccard(one, two), "missed": len(truly - (one & two))})
    return pd.DataFrame(rows, columns=["a", "view_a", "b", "view_b", "n_a", "n_b", "n_shared", "jaccard", "missed"])


def curve_table(model: Model, tasks: Sequence[TaskEffects]) -> pd.DataFrame:
    """Overlap of the k strongest heads of two tasks, for every k, with the layer-matched null."""
    import pandas as pd

    frames = []
    for a, b in combinations(tasks, 2):
        points = overlap.curve(ranking(np.abs(a.effect)), ranking(np.abs(b.effect)), population(model))
        frames.append(pd.DataFrame([{"a": a.name, "b": b.name, **point} for point in points]))
    return pd.concat(frames, ignore_index=True)


def tasks_table(tasks: Sequence[TaskEffects], seed: int) -> pd.DataFrame:
    """One row per task: its circuit's size, and how well circuits from two halves of its prompts agree.

    The last is the overlap to be expected of a task with itself: no pair of tasks can be asked for more.
    """
    import pandas as pd

    rows = []
    for task in tasks:
        halves = split_half(task, seed)
        facts = {"task": task.name, "n_prompts": len(task.data), "n_views": len(task.views)}
        agreement = float(np.mean(halves)) if len(halves) else np.nan
        rows.append({**facts, "n_heads": len(task.circuit()), "split_half_jaccard": agreement})
    return pd.DataFrame(rows)


def ranking(strength: np.ndarray) -> list[Head]:
    """Heads from the strongest down; earlier heads first among equals, undefined ones left out."""
    order = np.argsort(-np.nan_to_num(strength, nan=-1.0), axis=None, kind="stable")
    places = [tuple(map(int, np.unravel_index(at, strength.shape))) for at in order]
    return [(layer, head) for layer, head in places if not np.isnan(strength[layer, head])]


def jaccard_interval(a: TaskEffects, b: TaskEffects, *, n_boot: int, seed: int) -> tuple[float, float]:
    """Central 95% of the Jaccard with prompts drawn anew; NaN where circuits do not come from effects alone."""
    if a.found is not None or b.found is not None or min(len(a.data), len(b.data)) < 2:
        return np.nan, np.nan
    rng = np.random.default_rng(seed)
    drawn = [_inside(task, rng.multinomial(len(task.data), _even(task), size=n_boot)) for task in (a, b)]
    both, either = ((part(drawn[0], drawn[1])).sum(axis=(1, 2)) for part in (np.logical_and, np.logical_or))
    values = np.where(either > 0, both / np.maximum(either, 1), np.nan)
    if np.isnan(values).all():
        return np.nan, np.nan
    low, high = np.nanquantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def split_half(task: TaskEffects, seed: int) -> np.ndarray:
    """`[split]`: Jaccard of the circuits of two random halves of the prompts; empty with fewer than four."""
    n = len(task.data)
    if task.found is not None or n < 4:
        return np.zeros(0)
    rng = np.random.default_rng(seed)
    first = np.array([np.isin(np.arange(n), rng.permutation(n)[: n // 2]) for _ in range(HALVES)])
    one, two = _inside(task, first), _inside(task, ~first)
    both, either = (one & two).sum(axis=(1, 2)), (one | two).sum(axis=(1, 2))
    return (both / np.maximum(either, 1))[either > 0]


def _even(task: TaskEffects) -> np.ndarray:
    return np.full(len(task.data), 1.0 / len(task.data))


def _inside(task: TaskEffects, weight: np.ndarray) -> np.ndarray:
    """`[draw, layer, head]`: which heads are in the circuit when prompts count as `weight` `[draw, n]` says."""
    weight = weight.astype(np.float64)
    effects = []
    for view in task.views:
        flat = view.share.reshape(len(view.share), -1)
        defined = ~np.isnan(flat)
        total, count = weight @ np.where(defined, flat, 0.0), weight @ defined
        mean = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
        effects.append(mean.reshape(len(weight), *view.share.shape[1:]))
    return task.inside(np.stack(effects))
