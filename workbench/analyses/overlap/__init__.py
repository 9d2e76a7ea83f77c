"""Overlap: how much the circuits of several tasks share, against chance, and whether one circuit does another's task.

After Merullo, Eickhoff, Pavlick 2024 (arXiv 2310.08744), who report that 78% of the heads of two circuits are the same
without saying of what: here every denominator has its name. Beside it what later work asks for: more than one way of
corrupting a task, nulls that know how circuits crowd in layers, cross-task faithfulness and cross-task ablation.

1. Every head's effect on every task, under every corruption of the task and an ablation (`effects`).
2. A task's circuit: heads above a threshold under any of these (or what `circuit` finds, with edges).
3. Overlap of every pair of circuits, with intervals, nulls, and a curve over k (`agree`; `tables.overlap`).
4. Which view sees which head, and what the overlap would seem to be with one view alone: `visibility`, `by_view`.
5. Every circuit alone on every task, and every task without every circuit (`cross`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import stats
from workbench.analyses.base import Analysis, Finding, Result, stages
from workbench.analyses.overlap.params import OverlapParams
from workbench.errors import InputError
from workbench.tables import HeadTable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from workbench.analyses.overlap.effects import TaskEffects
    from workbench.models import Model
    from workbench.tasks.task_set import TaskSet

__all__ = ["ANALYSIS", "OverlapParams", "overlap"]
NO_VIEW = "no view of a task changes the metric"


def run(model: Model, data: TaskSet, params: OverlapParams, seed: int) -> Result:
    """Compare the tasks of `data`.

    Result: `heads`, whose score is a head's importance to all tasks: the smallest over tasks of its |effect|. Its p is
    that of the task where it is largest (all of them must need the head), each corrected for its views. Columns by
    task: `effect_NAME` (signed, under the view where it is strongest), `view_NAME`, `in_NAME`; `n_circuits`, `q`.
    Arrays `per_example` (of the task and view that the score comes from, with the sign that makes it positive) and
    `null_per_example`; tables pairs, matrix, curve, by_view, visibility, views, tasks and, unless `keep` is null,
    cross_faithfulness and cross_ablation.

    Raises:
        InputError: fewer than two tasks, or a corruption that a task does not have.
        CapabilityError: the model's heads cannot be exchanged one by one.
    """
    import pandas as pd

    from workbench.analyses.overlap import agree, cross, effects

    if getattr(data, "kind", None) != "task_set" or len(data) < 2:
        raise InputError(
            "overlap compares two tasks or more; give `data: {tasks: {ioi: {task: ioi}, colored: {task: ...}}}`."
        )
    seconds = [("", time.perf_counter())]
    tasks = [effects.measure(model, name, pairs, params, seed) for name, pairs in data.items()]
    seconds.append(("effects", time.perf_counter()))
    heads, arrays = _head_table(model, tasks, params, seed)
    usable = [task for task in tasks if task.views]
    views = [
        {"task": t.name, "view": v.name, "kind": v.kind, "about": v.about, "clean": v.clean, "other": v.other}
        for t in tasks
        for v in t.views
    ]
    tables = {"views": pd.DataFrame(views, columns=["task", "view", "kind", "about", "clean", "other"])}
    if len(usable) > 1:
        pairs = agree.pairs_table(model, usable, params, seed)
        anywhere = {head for task in usable for head in task.circuit()}
        seen = [effects.visibility(task, anywhere) for task in usable]
        tables |= {
            "pairs": pairs,
            "matrix": agree.matrix_table(pairs, [task.name for task in usable]),
            "curve": agree.curve_table(model, usable),
            "by_view": agree.views_table(usable),
            "visibility": pd.concat(seen, ignore_index=True),
            "tasks": agree.tasks_table(usable, seed),
        }
        seconds.append(("overlap", time.perf_counter()))
        if params.keep is not None:
            tables["cross_faithfulness"], tables["cross_ablation"] = cross.tables(model, usable, params, seed)
            seconds.append(("cross-task runs", time.perf_counter()))
    return Result(
        analysis="overlap",
        heads=heads,
        params=params,
        model=model.describe(),
        data=data.describe(),
        tables=tables,
        arrays=arrays,
        summary=_summary(tasks, tables),
        timing=stages(seconds),
        seed=seed,
    )


def overlap(model: Model, data: TaskSet, *, seed: int = 0, **params: Any) -> Result:
    """What the circuits of several tasks share; the notebook form of `analysis: overlap`.

    Args:
        data: `workbench.tasks.TaskSet({"ioi": wb.tasks.circuits.ioi(model, 16), ...})`.
        params: fields of `OverlapParams`.

    Example:
        >>> wb.overlap(model, tasks, method="ablation", ablation="zero").tables["pairs"]  # doctest: +SKIP

    Raises:
        InputError: unusable data or parameters.
        CapabilityError: the model does not allow the method.
    """
    return ANALYSIS(model, data, ANALYSIS.parse(params), seed=seed)


def _head_table(
    model: Model, tasks: Sequence[TaskEffects], params: OverlapParams, seed: int
) -> tuple[HeadTable, dict[str, np.ndarray]]:
    shape = (model.n_layers, model.n_heads)
    n = max(len(task.data) for task in tasks)
    score = np.full((n, *shape), np.nan)
    facts: dict[str, Any] = {
        "n_kv_heads": model.n_kv_heads,
        "analysis": "overlap",
        "metric": f"{params.metric}, {params.method.replace('_', ' ')}, smallest |effect| over tasks",
        "unit": "share of the gap between two runs",
        "model": model.name,
        "fingerprint": model.fingerprint,
        "basis": model.basis,
        "higher_is_more": True,
        "meta": {"level": "dataset", "method": params.method, "tasks": [task.name for task in tasks]},
    }
    if any(not task.views for task in tasks):
        return HeadTable.from_scores(stats.mean(score), status=NO_VIEW, **facts), {"per_example": score}
    size = np.stack([np.abs(task.effect) for task in tasks])  # [task, layer, head]
    least = np.argmin(np.where(np.isnan(size), np.inf, size), axis=0)
    null = np.full_like(score, np.nan)
    has_null = all(view.null is not None for task in tasks for view in task.views)
    for number, task in enumerate(tasks):
        mine = least == number
        sign = np.where(task.effect < 0, -1.0, 1.0)
        rows = slice(len(task.data))
        score[rows][:, mine] = (task.chosen() * sign)[:, mine]
        if has_null:
            null[rows][:, mine] = (task.chosen("null") * sign)[:, mine]
    p = np.max(np.stack([task.p for task in tasks]), axis=0)
    low, high = stats.bootstrap_ci(score, n_boot=params.bootstrap, seed=seed)
    inside = {task.name: np.zeros(shape, dtype=bool) for task in tasks}
    for task in tasks:
        for head in task.circuit():
            inside[task.name][head] = True
    extra: dict[str, Any] = {}
    for task in tasks:
        names = np.array(task.names, dtype=object)
        extra |= {f"effect_{task.name}": task.effect, f"view_{task.name}": names[task.best]}
        extra[f"in_{task.name}"] = inside[task.name]
    extra["n_circuits"] = np.sum([*inside.values()], axis=0)
    extra["q"] = stats.benjamini_hochberg(p)
    absent = np.isnan(score).all(axis=0)
    table = HeadTable.from_scores(
        stats.mean(score),
        stderr=stats.stderr(score),
        ci_low=low,
        ci_high=high,
        n=(~np.isnan(score)).sum(axis=0),
        null_mean=stats.mean(null) if has_null else None,
        null_p=p,
        status=np.where(absent, "no attention heads", "ok").astype(object),
        extra=extra,
        **facts,
    )
    arrays = {"per_example": score.astype(np.float32)}
    if has_null:
        arrays["null_per_example"] = null.astype(np.float32)
    return table, arrays


def _summary(tasks: Sequence[TaskEffects], tables: dict[str, Any]) -> dict[str, Any]:
    shown = ("n_a", "n_b", "n_shared", "jaccard", "jaccard_low", "jaccard_high", "a_in_b", "b_in_a", "p")
    shown = (*shown, "p_layer_matched", "weighted_jaccard")
    pairs = tables.get("pairs")
    summary: dict[str, Any] = {
        "circuits": {task.name: [list(head) for head in task.circuit()] for task in tasks if task.views},
        "notes": [f"{task.name}: {note}" for task in tasks for note in task.notes],
    }
    if pairs is None:
        return summary
    summary["pairs"] = [
        {key: _plain(row[key]) for key in ("level", "a", "b", *shown) if key in row} for _, row in pairs.iterrows()
    ]
    views = tables["by_view"].dropna(subset="jaccard")  # two empty circuits have no overlap, not the least one
    if len(views):
        lowest = views.loc[views["jaccard"].idxmin()]
        summary["lowest_with_one_view_each"] = {key: _plain(lowest[key]) for key in views.columns}
    return summary


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and np.isnan(value) else value


def _jaccard(result: Result) -> float:
    """Of the first two tasks' heads."""
    pairs = result.summary.get("pairs")
    return pairs[0]["jaccard"] if pairs else float("nan")


_BARE = {"keep": None, "controls": 0, "bootstrap": 100, "permutations": 99}
ANALYSIS = Analysis(
    name="overlap",
    paper="Merullo, Eickhoff, Pavlick 2024, arXiv 2310.08744",
    params_type=OverlapParams,
    data_kind="task_set",
    requires=("head_axis_ok", "head_ablation_ok"),
    run=run,
    finds=(Finding("overlap", _BARE, value=_jaccard),),
)
