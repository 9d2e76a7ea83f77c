"""Does the circuit of one task do another, and does the other need it? Circuits run alone, and models without them.

    faithfulness   f = (m(only C) - m(none)) / (m(all) - m(none)): C of one task, m on the prompts of another
    loss           (m(all) - m(all but C)) / (m(all) - m(none)): what is gone without C; the other task may not need C

Heads outside put out their mean over the prompts (or zero); MLPs compute. Each is compared with random circuits of as
many heads in every layer, because taking any twenty heads from a small model hurts any task: an overlap of circuits, or
a loss without one, means little unless it beats these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import stats
from workbench.analyses.circuit.faithful import random_circuit, ratio
from workbench.analyses.overlap.effects import Head, TaskEffects

if TYPE_CHECKING:
    import pandas as pd

    from workbench.analyses.overlap.params import OverlapParams
    from workbench.models import Model

_FACTS = ("task", "circuit", "n_heads")
_NUMBERS = ("stderr", "metric", "accuracy", "random", "random_low", "random_high", "p")


def tables(
    model: Model, tasks: Sequence[TaskEffects], params: OverlapParams, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`cross_faithfulness` and `cross_ablation`: one row per task that is run and task whose circuit it is.

    Column `p`: chance that a random circuit does as well (faithfulness) or hurts as much (loss).
    """
    import pandas as pd

    rng = np.random.default_rng(seed)
    kept: list[dict[str, Any]] = []
    lost: list[dict[str, Any]] = []
    circuits = [task.circuit() for task in tasks]
    nodes = [(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]
    random = [[random_circuit(circuit, nodes, rng) for _ in range(params.draws)] for circuit in circuits]
    for task in tasks:
        run = _Run(model, task, params)
        for owner, circuit, draws in zip(tasks, circuits, random, strict=True):
            facts = dict(zip(_FACTS, (task.name, owner.name, len(circuit)), strict=True))
            kept.append({**facts, **run.compared(circuit, draws, "f")})
            lost.append({**facts, **run.compared(circuit, draws, "loss")})
    columns = [[*_FACTS, name, *_NUMBERS] for name in ("f", "loss")]
    return pd.DataFrame(kept, columns=columns[0]), pd.DataFrame(lost, columns=columns[1])


class _Run:
    """One task's prompts, run with some heads only."""

    def __init__(self, model: Model, task: TaskEffects, params: OverlapParams):
        from workbench.primitives.circuit_run import CircuitRun
        from workbench.primitives.sweep.readout import Readout

        batch = task.data.batch()
        mask = batch.mask.long().to(model.device) if batch.padded else None
        fill: Any = params.keep
        self.run = CircuitRun.of(
            model, batch.clean.to(model.device), fill, attention_mask=mask, batch_rows=params.batch_rows
        )
        self.readouts = {
            "metric": Readout(params.metric, batch.answer, batch.wrong),
            "rank": Readout("rank", batch.answer),
        }
        self.full = self.run.full(self.readouts)["metric"]
        self.empty = self.run.empty(self.readouts)["metric"]

    def compared(self, circuit: Sequence[Head], draws: Sequence[Sequence[Head]], what: str) -> dict[str, Any]:
        """The circuit kept (`f`) or taken out (`loss`), against random ones."""
        from workbench.primitives.circuit_run import complement

        sets = [tuple(circuit), *map(tuple, draws)]
        made = self.run.measure(
            sets if what == "f" else [complement(self.run.nodes, some) for some in sets], self.readouts
        )
        values = [self._share(metric, what) for metric in made["metric"]]
        (value, error), chance = values[0], np.array([one for one, _ in values[1:]])
        facts = {what: value, "stderr": error, "metric": float(made["metric"][0].mean())}
        facts["accuracy"] = float((made["rank"][0] == 0).mean())
        if not len(chance) or np.isnan(value):
            return facts
        low, high = np.nanquantile(chance, [0.025, 0.975]) if np.isfinite(chance).any() else (np.nan, np.nan)
        p = float(stats.empirical_p(np.array(value), chance))
        return {**facts, "random": float(np.nanmean(chance)), "random_low": low, "random_high": high, "p": p}

    def _share(self, metric: np.ndarray, what: str) -> tuple[float, float]:
        value, error = ratio(metric, self.empty, self.full)
        return (value if what == "f" else 1.0 - value), error
