"""Experiments: spec files, and what is done with them: run, rerun, diff.

A spec says which analysis of which model on which data; running one gives an artifact in the store, and an artifact
holds everything to run it again. Nothing here knows a formula, and nothing here is imported by what computes.
"""

from workbench.experiments import notebook as notebook  # teaches artifacts to show their heads
from workbench.experiments.diff import Difference, diff
from workbench.experiments.record import put, spec_of
from workbench.experiments.rerun import Rerun, rerun
from workbench.experiments.run import Outcome, execute, run
from workbench.experiments.spec import ModelSpec, Spec, load_spec, load_specs

__all__ = [
    "Difference",
    "ModelSpec",
    "Outcome",
    "Rerun",
    "Spec",
    "diff",
    "execute",
    "load_spec",
    "load_specs",
    "put",
    "rerun",
    "run",
    "spec_of",
]
