"""A research workbench for attention heads: cached activations, patching, published head analyses, versioned results.

    import workbench as wb
    model = wb.load_model("organism:retrieval")
    result = wb.retrieval_heads(model, wb.tasks.needle(model, n=20))
    result.heads.top(5)
    artifact = wb.run("experiments/retrieval.yaml")

Importing the package imports nothing else: every name below is loaded when it is first used, so that the command line
and readers of the store start without torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from workbench import analyses, experiments, export, models, organisms, plots, primitives, published, stats, tasks
    from workbench import saes as saes
    from workbench.analyses.ablation import ablation
    from workbench.analyses.activation_patching import activation_patching
    from workbench.analyses.attribution import attribution
    from workbench.analyses.circuit import circuit
    from workbench.analyses.evaluation import pope_scores
    from workbench.analyses.head_tools import attention_by_class, direct_logit_attribution, low_rank
    from workbench.analyses.looking import attended_crops, attention_maps, image_attention
    from workbench.analyses.overlap import overlap
    from workbench.analyses.path_patching import path_patching
    from workbench.analyses.repair import repair
    from workbench.analyses.retrieval import retrieval_heads
    from workbench.analyses.sae_circuits import sae_circuits
    from workbench.analyses.sae_features import sae_features
    from workbench.analyses.sae_train import sae_train
    from workbench.analyses.sahara import sahara
    from workbench.analyses.ships import ships
    from workbench.analyses.var import var
    from workbench.analyses.vhd import vhd
    from workbench.experiments import Spec, diff, rerun, run
    from workbench.experiments.notebook import heads, open, store
    from workbench.models import Model, load_model
    from workbench.report.make import report
    from workbench.store import Artifact, Store
    from workbench.tables import HeadTable

_PACKAGES = (
    "analyses",
    "errors",
    "experiments",
    "export",
    "models",
    "organisms",
    "plots",
    "primitives",
    "published",
    "saes",
    "stats",
    "tables",
    "tasks",
)
_HOME = {
    "ablation": "workbench.analyses.ablation",
    "activation_patching": "workbench.analyses.activation_patching",
    "attribution": "workbench.analyses.attribution",
    "circuit": "workbench.analyses.circuit",
    "attention_by_class": "workbench.analyses.head_tools",
    "attended_crops": "workbench.analyses.looking",
    "attention_maps": "workbench.analyses.looking",
    "direct_logit_attribution": "workbench.analyses.head_tools",
    "image_attention": "workbench.analyses.looking",
    "low_rank": "workbench.analyses.head_tools",
    "overlap": "workbench.analyses.overlap",
    "path_patching": "workbench.analyses.path_patching",
    "pope_scores": "workbench.analyses.evaluation",
    "repair": "workbench.analyses.repair",
    "Artifact": "workbench.store",
    "HeadTable": "workbench.tables",
    "Model": "workbench.models",
    "Spec": "workbench.experiments",
    "Store": "workbench.store",
    "diff": "workbench.experiments",
    "heads": "workbench.experiments.notebook",
    "load_model": "workbench.models",
    "open": "workbench.experiments.notebook",
    "rerun": "workbench.experiments",
    "retrieval_heads": "workbench.analyses.retrieval",
    "run": "workbench.experiments",
    "sae_circuits": "workbench.analyses.sae_circuits",
    "sae_features": "workbench.analyses.sae_features",
    "sae_train": "workbench.analyses.sae_train",
    "sahara": "workbench.analyses.sahara",
    "ships": "workbench.analyses.ships",
    "var": "workbench.analyses.var",
    "vhd": "workbench.analyses.vhd",
}

__all__ = [
    "Artifact",
    "HeadTable",
    "Model",
    "Spec",
    "Store",
    "__version__",
    "ablation",
    "activation_patching",
    "analyses",
    "attended_crops",
    "attention_by_class",
    "attention_maps",
    "attribution",
    "circuit",
    "diff",
    "direct_logit_attribution",
    "experiments",
    "export",
    "heads",
    "image_attention",
    "load_model",
    "low_rank",
    "models",
    "open",
    "organisms",
    "overlap",
    "path_patching",
    "plots",
    "pope_scores",
    "primitives",
    "published",
    "repair",
    "report",
    "rerun",
    "retrieval_heads",
    "run",
    "sae_circuits",
    "sae_features",
    "sae_train",
    "saes",
    "sahara",
    "ships",
    "stats",
    "store",
    "tasks",
    "var",
    "vhd",
]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _CALLED:
        return importlib.import_module(f"{__name__}.{name}")  # made callable below, as it is bound here
    if name == "__version__":
        return _version()
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version(__name__)
    except metadata.PackageNotFoundError:  # a source tree on the path
        return "0+source"


# Packages that are also the function of a notebook, `wb.store()` and `wb.report(REF)`, and where that function lives.
_CALLED = {"store": "workbench.experiments.notebook", "report": "workbench.report.make"}


class _CalledPackage(ModuleType):
    """A package of ours that can be called by its own name."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        name = self.__name__.rpartition(".")[2]
        return getattr(importlib.import_module(_CALLED[name]), name)(*args, **options)


class _Package(ModuleType):
    """This package: whoever imports `workbench.store` first, what is bound here can be called."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _CALLED and type(value) is ModuleType:
            value.__class__ = _CalledPackage
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
