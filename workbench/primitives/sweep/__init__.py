"""The sweep engine: edit every head (or set of heads) in turn, measure a metric on every prompt, exactly.

    result = sweep(model, tokens, units=all_heads(model), edit="zero", metric=Readout("logit_diff", answer, wrong))
    result.values[unit, example] - result.base[example]

Read in this order: `engine` (the loop), `base` and `fork` (the residual fork), `exactness` (when it may be used),
`plan`, `cost` and `checkpoint`.
"""

from workbench.primitives.sweep.checkpoint import default_root
from workbench.primitives.sweep.cost import Cost, Shape
from workbench.primitives.sweep.edit import KINDS, Edit
from workbench.primitives.sweep.engine import SweepResult, estimate, sweep
from workbench.primitives.sweep.exactness import Exactness, exactness
from workbench.primitives.sweep.readout import METRICS, Readout
from workbench.primitives.sweep.units import Unit, all_heads, all_kv_groups

__all__ = [
    "KINDS",
    "METRICS",
    "Cost",
    "Edit",
    "Exactness",
    "Readout",
    "Shape",
    "SweepResult",
    "Unit",
    "all_heads",
    "all_kv_groups",
    "default_root",
    "estimate",
    "exactness",
    "sweep",
]
