"""The views of a task: its prompts against each corruption, and against the senders' mean (or zero).

What a corruption leaves as it is, it cannot find: a query swap does not see the head that reads the context. So a
built-in task is made again under each of its corruptions, with the same clean prompts, and an ablation stands beside
them. Every view has a base run (clean), another run, and the gap between them on the metric, in which effects are
counted: for the ablation, the gap to the model with every node ablated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

    from workbench.analyses.circuit.params import CircuitParams
    from workbench.models import Model
    from workbench.primitives.circuit_run import CircuitRun
    from workbench.primitives.paths import PathRuns
    from workbench.primitives.sweep.readout import Readout
    from workbench.tasks.pairs import PairDataset

GIVEN = "given"  # name of the only corruption of explicit pairs


@dataclass(frozen=True)
class View:
    """One way to take information away.

    Attributes:
        name, about: of the corruption or the ablation.
        is_ablation: whether `other` is an ablation, which has no prompts of its own.
        data: the pairs.
        readout: the metric, bound to the pairs' answers.
        base, other: metric of the two runs, `[example]`.
        runs: both runs as path patching takes them.
    """

    name: str
    about: str
    is_ablation: bool
    data: PairDataset
    readout: Readout
    base: np.ndarray
    other: np.ndarray
    runs: PathRuns

    @property
    def gap(self) -> float:
        """Mean of other - base: what effects are shares of, so that a prompt with a small gap counts no more."""
        return float(np.mean(self.other - self.base))

    def share(self, effect: np.ndarray) -> np.ndarray:
        """Of a difference in the metric. Positive: what was exchanged supports the behaviour."""
        return effect / self.gap

    @property
    def tokens(self) -> Int[Tensor, "n pos"]:
        """The corrupted prompts, where there are such."""
        return self.runs.other.tokens

    def facts(self) -> dict[str, Any]:
        kind = "ablation" if self.is_ablation else "corruption"
        base, other = float(np.mean(self.base)), float(np.mean(self.other))
        return {"view": self.name, "kind": kind, "about": self.about, "clean": base, "other": other}


@dataclass(frozen=True)
class Views:
    """All views of which the metric takes notice, and in words what was left out."""

    all: tuple[View, ...]
    notes: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        return [view.name for view in self.all]

    @property
    def mask(self) -> Int[Tensor, "n pos"] | None:
        return self.all[0].runs.base.mask


def make(model: Model, data: PairDataset, params: CircuitParams) -> Views:
    """Run the prompts under every view.

    Raises:
        InputError: no pairs, or a corruption that the task does not have.
    """
    from workbench.primitives.circuit_run import CircuitRun
    from workbench.primitives.frozen import record_all, z_name
    from workbench.primitives.paths import PathRuns
    from workbench.primitives.sweep.readout import Readout
    from workbench.primitives.two_runs import measure

    if getattr(data, "kind", None) != "pairs" or not len(data):
        raise InputError(
            "circuit needs at least one pair {clean, corrupted, answer, wrong}; give `data: {pairs: [...]}`."
        )
    import torch

    datasets, notes = corrupted(model, data, params.corruptions or None)
    everyone = torch.arange(len(data))
    views: list[View] = []
    runs: PathRuns | None = None
    for name, (about, pairs) in datasets.items():
        batch = pairs.batch()
        clean, other = batch.clean.to(model.device), batch.corrupted.to(model.device)
        mask = batch.mask.long().to(model.device) if batch.padded else None
        if runs is None:
            runs = PathRuns.of(model, clean, other, attention_mask=mask, batch_rows=params.batch_rows)
        else:
            runs = replace(runs, other=record_all(model, other, mask=mask, batch_rows=runs.batch_rows))
        readout = Readout(params.metric, batch.answer, batch.wrong)
        here, there = (measure(readout, run.logits, everyone, runs.base) for run in (runs.base, runs.other))
        views.append(View(name, about, False, pairs, readout, here, there, runs))
    if params.ablation is not None and params.method != "attribution":
        assert runs is not None
        first, options = views[0], {"attention_mask": runs.base.mask, "mlps": params.mlp_nodes}
        alone = CircuitRun.of(model, runs.base.tokens, params.ablation, batch_rows=params.batch_rows, **options)
        kept = {name: values.expand_as(alone.base.kept[name]) for name, values in alone.fill.items()}
        z = {name: kept[name] for name in (z_name(layer) for layer in range(model.n_layers)) if name in kept}
        mlp = {layer: kept.get(f"blocks.{layer}.mlp.hook_out", out) for layer, out in runs.base.mlp.items()}
        ablated = replace(runs.base, kept=z, mlp=mlp)
        about = f"each node's {params.ablation}" + (" over the prompts" if params.ablation == "mean" else "")
        empty = alone.empty({"m": first.readout})["m"]
        both = replace(runs, other=ablated)
        views.append(View(params.ablation, about, True, first.data, first.readout, first.base, empty, both))
    if params.corruptions == ():
        views = [view for view in views if view.is_ablation]
        notes = [f"no corruption was looked at, only the {params.ablation} ablation"]
    kept_views = [view for view in views if abs(view.gap) > params.min_gap]
    notes += [
        f"under {view.name!r} the metric changes by {view.gap:.3g} on average, too little to find anything"
        for view in views
        if view not in kept_views
    ]
    return Views(tuple(kept_views), tuple(notes))


def circuit_run(model: Model, view: View, params: CircuitParams) -> CircuitRun:
    """The clean prompts, to be run with some nodes only; the others as this view has them."""
    from workbench.primitives.circuit_run import CircuitRun

    fill: Any = params.ablation if view.is_ablation else view.tokens
    options = {"attention_mask": view.runs.base.mask, "mlps": params.mlp_nodes, "batch_rows": params.batch_rows}
    return CircuitRun.of(model, view.runs.base.tokens, fill, **options)


def corrupted(
    model: Model, data: PairDataset, wanted: Sequence[str] | None
) -> tuple[dict[str, tuple[str, PairDataset]], list[str]]:
    """The data under every corruption asked for: name -> (what it does, pairs), the data's own first.

    Only a dataset that its recipe makes again, prompt by prompt, is made under other corruptions.
    """
    from workbench.tasks import circuits

    recipe = data.meta
    task = recipe.get("task")
    if task not in circuits.names():
        if wanted:
            raise InputError(
                f"The corruption {wanted[0]!r} was asked for, but these pairs come with their own; leave out "
                "`corruptions`, or take a built-in task."
            )
        return {GIVEN: ("as the pairs say", data)}, ["explicit pairs have one corruption: what it leaves is not seen"]
    known = circuits.corruptions(task)
    own = recipe["corruption"]
    for name in wanted or ():
        if name not in known:
            raise InputError(
                f"Task {task} has no corruption {name!r}.{did_you_mean(name, known)} Available: {', '.join(known)}."
            )
    made: dict[str, tuple[str, PairDataset]] = {}
    notes: list[str] = []
    for name in sorted(wanted or known, key=lambda name: name != own):
        pairs = data if name == own else _again(model, data, name)
        if [pair.clean for pair in pairs] != [pair.clean for pair in data]:
            notes.append(f"the corruption {name!r} has other clean prompts here, so it is left out")
            continue
        made[name] = (known[name], pairs)
    if not made:
        raise InputError(f"No corruption of {task} has the clean prompts of these data; include {own!r}.")
    if len(made) == 1:
        notes.append(f"only the corruption {next(iter(made))!r} was looked at: what it leaves is not seen")
    return made, notes


def _again(model: Model, data: PairDataset, corruption: str) -> PairDataset:
    from workbench.tasks import circuits

    recipe = data.meta
    keys = ("phrasing", "prefix", "split", "template", "seed", "files")
    options = {key: recipe[key] for key in keys if key in recipe}
    made = circuits.task(recipe["task"], model, recipe["n"], corruption=corruption, **options)
    return made[slice(*recipe["slice"])] if "slice" in recipe else made
