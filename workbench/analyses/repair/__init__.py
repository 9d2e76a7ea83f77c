"""Repair: tell chosen heads where to look (or switch them off), and see whether the task comes right.

The intervention of Merullo, Eickhoff, Pavlick 2024 (arXiv 2310.08744, section 5), generalised. There, three inhibition
heads of GPT-2 medium are made to attend to the two wrong colours at the last position, half each, and a negative mover
is blocked, after which accuracy on coloured objects goes from 50% to 94%:

    heads: [[12, 3], [13, 4], [13, 13]]   attend: {wrong color: 1}   ablate: [[19, 1]]

Or the heads are made to attend as they do on another task, class of tokens by class of tokens (`copied`):

    data: {tasks: {colored: {task: colored_objects}, ioi: {task: ioi}}}   like: {task: ioi, classes: {S2: wrong color}}

    before     the model as it is, or with a `fault` done to it
    repaired   in addition the attention row of `heads` at `position` is as told, and `ablate` put out zero
    random     the same on as many other heads of the same layers

Accuracy is that of the next token among the whole vocabulary, and among the candidates. What the repair does to the
other heads is a head's score: how far its own attention row at that position moves (total variation, 0 to 1), against
the same under random repairs.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import stats
from workbench.analyses.base import Analysis, Result
from workbench.analyses.repair.params import FaultParams, LikeParams, RepairParams
from workbench.errors import InputError, did_you_mean
from workbench.tables import HeadTable

if TYPE_CHECKING:
    import pandas as pd

    from workbench.analyses.repair.measure import Bench, Reading
    from workbench.models import Model
    from workbench.tasks.pairs import PairDataset
    from workbench.tasks.task_set import TaskSet

__all__ = ["ANALYSIS", "FaultParams", "LikeParams", "RepairParams", "repair"]
SET = "set by the repair"


def run(model: Model, data: PairDataset | TaskSet, params: RepairParams, seed: int) -> Result:
    """Run the clean prompts under every condition.

    Result: `heads` (score: see above; extra columns `answer_before`, `answer_after`: attention to the answer's token,
    and `q`; heads whose row is set have no score); arrays `per_example` and `null_per_example`; tables `conditions`
    (accuracies with Wilson intervals, logit difference, a row per condition and draw), `examples` (a row per prompt),
    `attention` (a row per head and class of tokens: before, after, change) and, with `like`, `copied` (what the heads
    attend to on the other task).

    Raises:
        InputError: nothing to repair, a head that does not exist, a class of tokens that a prompt does not have.
        CapabilityError: the architecture does not use an edited attention pattern.
    """
    import pandas as pd

    from workbench.analyses.repair.measure import Bench, Change

    started = time.perf_counter()
    if not params.heads and not params.ablate:
        raise InputError("repair needs `heads` with `attend` or `like`, or heads to `ablate`.")
    given, (pairs, other) = data, _tasks(data, params)
    bench = Bench(model, pairs, params, other)
    rng = np.random.default_rng(seed)
    faulty = params.fault is not None
    found = {"intact": bench.run(Change())}
    if faulty:
        found["faulted"] = bench.run(Change(fault=True))
    found["repaired"] = bench.run(Change(faulty, params.heads, params.ablate, params.heads))
    draws = [bench.random(rng) for _ in range(params.draws)]
    random = [bench.run(change) for change in draws]
    before = found["faulted" if faulty else "intact"]

    rows = [_condition(name, 0, reading) for name, reading in found.items()]
    rows += [_condition("random", i, reading) for i, reading in enumerate(random)]
    examples = pd.DataFrame({"id": [pair.id for pair in pairs]})
    for name, reading in found.items():
        columns = {f"{name}_right": reading.right, f"{name}_logit_diff": reading.logit_diff}
        examples = examples.assign(**{f"{name}_right_among": reading.right_among, **columns})
    heads, arrays, attention = _heads(model, bench, before, found["repaired"], random, params, seed)
    tables = {"conditions": pd.DataFrame(rows), "examples": examples, "attention": attention}
    if params.like is not None:
        shares = [[*head, name, value] for head, wanted in bench.shares.items() for name, value in wanted.items()]
        tables["copied"] = pd.DataFrame(shares, columns=["layer", "head", "class", "attention"])
    return Result(
        analysis="repair",
        heads=heads,
        params=params,
        model=model.describe(),
        data=given.describe(),
        tables=tables,
        arrays=arrays,
        summary=_summary(found, random, before),
        timing={"total": time.perf_counter() - started},
        seed=seed,
    )


def _tasks(data: Any, params: RepairParams) -> tuple[PairDataset, PairDataset | None]:
    """The task to repair, and the one to copy from.

    Raises:
        InputError: data that do not fit `like`.
    """
    kind = getattr(data, "kind", None)
    if params.like is None:
        if kind != "pairs" or not len(data):
            raise InputError("repair needs at least one pair {clean, corrupted, answer, wrong}; two tasks need `like`.")
        return data, None
    if kind != "task_set" or len(data) != 2:
        raise InputError(
            "`like` copies from one task to another, so the data are two: {tasks: {NAME: {...}, OTHER: {...}}}."
        )
    name = params.like.task
    if name not in data:
        raise InputError(f"`like` names the task {name!r}.{did_you_mean(name, data)} The data have {', '.join(data)}.")
    (here,) = (key for key in data if key != name)
    return data[here], data[name]


def repair(model: Model, data: PairDataset | TaskSet, *, seed: int = 0, **params: Any) -> Result:
    """Set some heads' attention and see whether the task comes right; the notebook form of `analysis: repair`.

    Args:
        data: pairs with spans, from a circuit task; of explicit pairs only classes such as `answer` are known. With
            `like`, a `TaskSet` of two: the one to repair and the one to copy from.
        params: fields of `RepairParams`.

    Example:
        >>> wb.repair(model, pairs, heads=[(3, 2)], attend={"query": 1.0}).tables["conditions"]  # doctest: +SKIP

    Raises:
        InputError: unusable data or parameters.
        CapabilityError: the architecture does not use an edited attention pattern.
    """
    return ANALYSIS(model, data, ANALYSIS.parse(params), seed=seed)


def _condition(name: str, draw: int, reading: Reading) -> dict[str, Any]:
    n = len(reading.right)
    facts: dict[str, Any] = {"condition": name, "draw": draw, "n": n}
    for key, right in (("accuracy", reading.right), ("accuracy_among", reading.right_among)):
        low, high = stats.wilson(int(right.sum()), n)
        facts |= {key: float(right.mean()), f"{key}_low": low, f"{key}_high": high}
    error = float(stats.stderr(reading.logit_diff))
    return {**facts, "logit_diff": float(reading.logit_diff.mean()), "logit_diff_stderr": error}


def _heads(
    model: Model,
    bench: Bench,
    before: Reading,
    after: Reading,
    random: list[Reading],
    params: RepairParams,
    seed: int,
) -> tuple[HeadTable, dict[str, np.ndarray], pd.DataFrame]:
    """The head table, its arrays, and the table of attention by class."""
    from workbench.analyses.head_tools.attention import by_class
    from workbench.analyses.head_tools.classes import masks

    moved = distance(before.rows, after.rows)  # [n, layer, head]
    null = np.mean([_layer_mean(distance(before.rows, reading.rows)) for reading in random], axis=0)
    status = np.where(np.isnan(moved).all(axis=0), "no attention heads", "ok").astype(object)
    for head in params.heads:
        status[head] = SET
        moved[:, head[0], head[1]] = np.nan
    _, answer = masks(bench.data, ("answer",), params.position, bench.n_pos)
    to_answer = [stats.mean(by_class(reading.rows, answer)[..., 0]) for reading in (before, after)]
    table = HeadTable.from_examples(
        moved,
        n_kv_heads=model.n_kv_heads,
        null=null,
        n_boot=params.bootstrap,
        seed=seed,
        status=status,
        extra={"answer_before": to_answer[0], "answer_after": to_answer[1]},
        analysis="repair",
        metric=f"change of the attention row at {params.position}",
        unit="total variation",
        model=model.name,
        fingerprint=model.fingerprint,
        basis=model.basis,
        higher_is_more=True,
        meta={"position": params.position},
    ).with_q()
    arrays = {"per_example": moved, "null_per_example": np.where(np.isnan(moved), np.nan, null)}
    return table, arrays, _attention(bench, before, after)


def _attention(bench: Bench, before: Reading, after: Reading) -> pd.DataFrame:
    import pandas as pd

    from workbench.analyses.head_tools.attention import by_class

    was, now = (by_class(reading.rows, bench.covered) for reading in (before, after))
    change = now - was
    numbers = {"before": stats.mean(was), "after": stats.mean(now), "change": stats.mean(change)}
    numbers["stderr"] = stats.stderr(change)
    n = (~np.isnan(change)).sum(axis=0)
    rows = []
    for layer, head, c in np.ndindex(*n.shape):
        if n[layer, head, c]:
            values = {name: float(grid[layer, head, c]) for name, grid in numbers.items()}
            rows.append(
                {"layer": layer, "head": head, "class": bench.classes[c], **values, "n": int(n[layer, head, c])}
            )
    return pd.DataFrame(rows, columns=["layer", "head", "class", "before", "after", "change", "stderr", "n"])


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Total variation of two rows of attention, over the last axis; in float64."""
    return np.abs(a.astype(np.float64) - b.astype(np.float64)).sum(axis=-1) / 2


def _layer_mean(moved: np.ndarray) -> np.ndarray:
    """`[n, layer, head]`: every head gets the mean of its layer, for a random head of the layer."""
    return np.broadcast_to(moved.mean(axis=2, keepdims=True), moved.shape)


def _summary(found: dict[str, Reading], random: list[Reading], before: Reading) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for name, reading in found.items():
        facts = _condition(name, 0, reading)
        summary[name] = {key: value for key, value in facts.items() if key not in ("condition", "draw")}
    repaired = found["repaired"]
    chance = np.array([reading.right.mean() for reading in random])
    summary["random"] = {
        "accuracy": float(chance.mean()),
        "accuracy_max": float(chance.max()),
        "p": float(stats.empirical_p(np.array(repaired.right.mean()), chance)),
    }
    summary["repaired_examples"] = int((repaired.right & ~before.right).sum())
    summary["broken_examples"] = int((before.right & ~repaired.right).sum())
    return summary


ANALYSIS = Analysis(
    name="repair",
    paper="Merullo, Eickhoff, Pavlick 2024, arXiv 2310.08744",
    params_type=RepairParams,
    data_kind="pairs",
    requires=("pattern_edit_is_causal", "head_ablation_ok"),
    run=run,
)
