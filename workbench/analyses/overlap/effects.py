"""What every head does in one task, under every view of it, and the circuit that follows.

    view      a corruption of the task's prompts (noising by `method`), or the head's ablation
    effect    mean of (metric with the head exchanged - metric) / mean of (metric of the other run - metric)
    best      the view under which |effect| is largest
    circuit   heads whose |effect| is at least `share` under any view

What a corruption leaves as it is, it cannot find: a query swap does not see a head that reads the context, so that two
circuits may seem to share nothing where they share it. Hence the union over views. The effect of an ablation is counted
against the model with every head ablated. Ratios of means: a prompt with a small gap counts no more than others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import stats
from workbench.analyses import base
from workbench.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from workbench.analyses.base import Result
    from workbench.analyses.overlap.params import OverlapParams
    from workbench.models import Model
    from workbench.tasks.pairs import PairDataset

Head = tuple[int, int]
ABLATION, CORRUPTION = "ablation", "corruption"


@dataclass(frozen=True)
class View:
    """One way to take information away from a task.

    Attributes:
        about: what it does, in words.
        clean, other: mean metric of the two runs.
        share, null: `[example, layer, head]`; NaN where a head has no value; null None without controls.
    """

    name: str
    kind: str
    about: str
    clean: float
    other: float
    share: np.ndarray
    null: np.ndarray | None = None

    @property
    def effect(self) -> np.ndarray:
        """`[layer, head]`."""
        return stats.mean(self.share)

    @property
    def p(self) -> np.ndarray:
        """`[layer, head]`: two-sided, of the effect being that of its null (or 0), by flipping signs over prompts."""
        against = self.share if self.null is None else self.share - self.null
        return stats.sign_flip_p(against, alternative="two-sided", seed=0)


@dataclass(frozen=True)
class TaskEffects:
    """One task.

    Attributes:
        views: those under which the metric changes at all.
        notes: what was left out, and why.
        found: what `circuit` returned, for that method.
    """

    name: str
    data: PairDataset
    views: tuple[View, ...]
    notes: tuple[str, ...]
    share: float
    found: Result | None = None

    @property
    def effects(self) -> np.ndarray:
        """`[view, layer, head]`."""
        return np.stack([view.effect for view in self.views])

    @property
    def best(self) -> np.ndarray:
        """`[layer, head]`: number of the view of the largest |effect|, an undefined one only where all are."""
        return np.argmax(np.nan_to_num(np.abs(self.effects), nan=-1.0), axis=0)

    @property
    def effect(self) -> np.ndarray:
        """`[layer, head]`: of the best view, signed; NaN where a head has none."""
        return np.take_along_axis(self.effects, self.best[None], axis=0)[0]

    @property
    def p(self) -> np.ndarray:
        """`[layer, head]`: of the smallest p over views, times their number; of `circuit`, what it says itself."""
        if self.found is not None:
            return self.found.heads.matrix("null_p")
        every = np.stack([view.p for view in self.views])
        least = np.where(np.isnan(every).all(axis=0), np.nan, np.min(np.nan_to_num(every, nan=1.0), axis=0))
        return np.minimum(1.0, least * len(self.views))

    def chosen(self, values: str = "share") -> np.ndarray:
        """`[example, layer, head]` of each head's best view."""
        return self._take([getattr(view, values) for view in self.views])

    def circuit(self, view: str | None = None) -> tuple[Head, ...]:
        """Sorted heads; of one view only when it is named."""
        if self.found is not None:
            inside = self.found.heads.matrix("in_circuit") > 0
        else:
            inside = self.inside(self.effects if view is None else self.effects[[self.names.index(view)]])
        return tuple((int(layer), int(head)) for layer, head in np.argwhere(inside))

    def inside(self, effects: np.ndarray) -> np.ndarray:
        """`[..., layer, head]`: the rule, on effects `[view, ..., layer, head]`."""
        return np.asarray((np.abs(effects) >= self.share).any(axis=0))  # NaN reaches no bar, not even 0

    @property
    def names(self) -> list[str]:
        return [view.name for view in self.views]

    def edges(self) -> frozenset[tuple[str, str]] | None:
        """(sender, receiver) of every edge, where the method finds edges."""
        if self.found is None or not len(self.found.tables["edges"]):
            return None
        table = self.found.tables["edges"]
        return frozenset(zip(table["sender"], table["receiver"], strict=True))

    def _take(self, values: list[np.ndarray]) -> np.ndarray:
        return np.take_along_axis(np.stack(values), self.best[None, None], axis=0)[0]


def measure(model: Model, name: str, data: PairDataset, params: OverlapParams, seed: int) -> TaskEffects:
    """Score every head of the model on one task.

    Raises:
        InputError: a corruption the task does not have.
        CapabilityError: the model does not allow the method.
    """
    from workbench.analyses.circuit.views import corrupted

    if params.method == "circuit":
        return _by_circuit(model, name, data, params, seed)
    views, notes = [], []
    if params.method != "ablation":
        datasets, notes = corrupted(model, data, _wanted(data, params))
        options = {**params.options, "direction": "noising", "metric": params.metric, "bootstrap": 1}
        options |= {"min_gap": 0.0, "controls": params.controls, "batch_rows": params.batch_rows}
        lean: dict[str, dict[str, Any]] = {
            "activation_patching": {"streams": ()},
            "path_patching": {"edges": False},
            "attribution": {"spot_check": 0},
        }
        options = {**lean[params.method], **options}
        for label, (about, pairs) in datasets.items():
            analysis = base.get(params.method)
            result = analysis.run(model, pairs, analysis.parse(options), seed)
            views.append(_from_pairs(label, about, result))
    if params.ablation is not None:
        views.append(_ablated(model, data, params, params.ablation, seed))
    kept = tuple(view for view in views if abs(view.other - view.clean) > params.min_gap)
    notes = [
        *notes,
        *(
            f"under {view.name!r} the metric changes by {view.other - view.clean:.3g} on average, too little"
            for view in views
            if view not in kept
        ),
    ]
    return TaskEffects(name, data, kept, tuple(notes), params.share)


def _wanted(data: PairDataset, params: OverlapParams) -> tuple[str, ...] | None:
    """Of the corruptions asked for, those that this task has; None for all (or for the pairs' own).

    Raises:
        InputError: the task has none of them.
    """
    from workbench.tasks import circuits

    task = data.meta.get("task")
    if params.corruptions is None or task not in circuits.names():
        return None
    known = circuits.corruptions(task)
    wanted = tuple(name for name in params.corruptions if name in known)
    if not wanted:
        raise InputError(
            f"Task {task} has none of the corruptions {', '.join(params.corruptions)}; it has {', '.join(known)}."
        )
    return wanted


def _from_pairs(name: str, about: str, result: Result) -> View:
    """Of an analysis of pairs, whose shares are per prompt: back to raw numbers, then the ratio of means."""
    ends = result.tables["examples"]
    gap = (ends["corrupted"] - ends["clean"]).to_numpy()
    whole = float(gap.mean()) or np.nan
    raw = result.arrays["raw_per_example"].astype(np.float64)
    null = result.arrays.get("null_per_example")
    if null is not None:
        null = null.astype(np.float64) * gap[:, None, None] / whole
    clean, other = float(ends["clean"].mean()), float(ends["corrupted"].mean())
    return View(name, CORRUPTION, about, clean, other, raw / whole, null)


def _ablated(model: Model, data: PairDataset, params: OverlapParams, kind: Any, seed: int) -> View:
    from workbench.primitives.circuit_run import CircuitRun
    from workbench.primitives.sweep.readout import Readout

    analysis = base.get("ablation")
    options = {"edit": kind, "metric": params.metric, "bootstrap": 1, "controls": params.controls}
    result = analysis.run(model, data, analysis.parse(options), seed)
    batch = data.batch()
    mask = batch.mask.long().to(model.device) if batch.padded else None
    tokens = batch.clean.to(model.device)
    empty = CircuitRun.of(model, tokens, kind, attention_mask=mask, batch_rows=params.batch_rows)
    none_left = empty.empty({"m": Readout(params.metric, batch.answer, batch.wrong)})["m"]
    clean, other = float(np.mean(result.arrays["base"])), float(np.mean(none_left))
    whole = (other - clean) or np.nan
    share = result.arrays["per_example"].astype(np.float64) / whole
    null = result.arrays.get("null_per_example")
    null = None if null is None else null.astype(np.float64) / whole
    about = "each head at its mean over the prompts" if kind == "mean" else "each head at zero"
    return View(kind, ABLATION, about, clean, other, share, null)


def _by_circuit(model: Model, name: str, data: PairDataset, params: OverlapParams, seed: int) -> TaskEffects:
    """The circuit analysis looks at all its views itself; a head's effect is its strongest on any receiver."""
    analysis = base.get("circuit")
    options = {"faithfulness": None, "roles": False, **params.options, "ablation": params.ablation}
    options |= {"metric": params.metric, "bootstrap": 1, "batch_rows": params.batch_rows, "min_gap": params.min_gap}
    options["corruptions"] = _wanted(data, params)
    result = analysis.run(model, data, analysis.parse(options), seed)
    ends = result.tables["views"]
    notes = tuple(result.summary.get("notes", ()))
    if not len(ends):
        return TaskEffects(name, data, (), notes, params.share, result)
    null = result.arrays.get("null_per_example")
    about = f"strongest effect under {', '.join(ends['view'])}"
    numbers = float(np.mean(ends["clean"])), float(np.mean(ends["other"]))
    view = View("circuit", CORRUPTION, about, *numbers, result.per_example.astype(np.float64), null)
    return TaskEffects(name, data, (view,), notes, params.share, result)


def visibility(task: TaskEffects, heads: set[Head]) -> pd.DataFrame:
    """One row per head and view: its effect there, and whether the view alone would find it."""
    import pandas as pd

    if task.found is not None:
        seen = task.found.tables["visibility"]
        seen = seen[(seen["kind"] == "node") & ~seen["sender"].str.contains("mlp|input")]
        places = [tuple(map(int, sender.split("."))) for sender in seen["sender"]]
        facts = {"task": task.name, "view": seen["view"], "effect": seen["effect"], "stderr": seen["stderr"]}
        found = pd.DataFrame({**facts, "sees": seen["passes"], "in_circuit": True}).assign(
            layer=[layer for layer, _ in places], head=[head for _, head in places]
        )
        return found.loc[:, list(_VISIBILITY)].reset_index(drop=True)
    circuit, rows = set(task.circuit()), []
    for view in task.views:
        error = stats.stderr(view.share)
        for layer, head in sorted(heads):
            effect = float(view.effect[layer, head])
            facts = {"task": task.name, "view": view.name, "layer": layer, "head": head, "effect": effect}
            sees = abs(effect) >= task.share
            rows.append({**facts, "stderr": error[layer, head], "sees": sees, "in_circuit": (layer, head) in circuit})
    return pd.DataFrame(rows, columns=list(_VISIBILITY))


_VISIBILITY = ("task", "view", "layer", "head", "effect", "stderr", "sees", "in_circuit")
