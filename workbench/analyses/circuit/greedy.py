"""Greedy removal: nodes leave the whole model one by one, by what their absence does, measured and not estimated.

    left     at first all nodes; then, at every step, without the node whose absence keeps the rest closest to the model
    close    the smallest |1 - f|: a circuit that does more than the model is as far from it as one that does less
    f        (m(left) - m(empty)) / (m(full) - m(empty)), everything else resampled or at its mean (`circuit_run`)

As `method: greedy` it goes on as long as 1 - |1 - f| is at least `faithful`, under each view for itself; the circuit is
the union over the views. It looks one step ahead only, so a smaller circuit may exist; where the work is shared by many
heads in like measure, none does. f of a circuit found so is that of the prompts by which it was chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from workbench.analyses.circuit import curve
from workbench.analyses.circuit.discover import TOTAL, Measured, total_effects

if TYPE_CHECKING:
    from workbench.analyses.circuit.params import CircuitParams
    from workbench.analyses.circuit.views import View, Views
    from workbench.models import Model
    from workbench.primitives.circuit_run import CircuitRun

Node = tuple[int, int]  # (layer, head), or (layer, -1) for an MLP


def removals(run: CircuitRun, view: View, empty: float, full: float) -> Iterator[tuple[tuple[Node, ...], float]]:
    """What is left after each removal, and its f.

    Args:
        empty, full: mean metric with no node and with all of them.
    """
    left: Sequence[Node] = run.nodes
    while left:
        without = [tuple(other for other in left if other != node) for node in left]
        f = curve.faithfulness(run.measure(without, {"m": view.readout})["m"].mean(axis=1), empty, full)
        best = int(np.argmin(np.abs(1 - f)))
        left = without[best]
        yield without[best], float(f[best])


def greedy(model: Model, views: Views, params: CircuitParams) -> Measured:
    """The nodes that are left under any view; their effects are those of each node exchanged alone."""
    from workbench.analyses.circuit.views import circuit_run
    from workbench.primitives.paths import sender_name

    done = total_effects(model, views, params)
    names = done["names"].tolist()
    found = Measured(views.names, names, model.n_heads // model.n_kv_heads)
    found.add(TOTAL, 0, done["share"])
    found.q[TOTAL] = np.full(done["share"].shape[:2], np.nan)
    found.passes[TOTAL] = np.zeros(done["share"].shape[:2], dtype=bool)
    for v, view in enumerate(views.all):
        run = circuit_run(model, view, params)
        kept: Sequence[Node] = run.nodes
        empty = float(run.empty({"m": view.readout})["m"].mean())
        for left, f in removals(run, view, empty, float(np.mean(view.base))):
            if 1 - abs(1 - f) < params.faithful:
                break
            kept = left
        inside = {sender_name(node) for node in kept}
        found.passes[TOTAL][v] = [name in inside for name in names]
    return found
