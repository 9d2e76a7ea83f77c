"""What every analysis is: validated parameters, one pure function, one result type.

An analysis is `run(model, data, params, seed) -> Result`, registered under the name that spec files use. It knows the
paper it implements and the primitives below it; it never knows the store, the spec file or the command line. Modules
are imported only when their analysis is asked for, so that listing names costs nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from workbench.errors import InputError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from workbench.tables import HeadTable


def stages(marks: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Seconds of each stage, from names and when each ended; the first mark is when all began."""
    return {name: end - before for (_, before), (name, end) in pairwise(marks)}


class Params(BaseModel):
    """Base of every analysis' parameters: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class PromptParams(Params):
    """Parameters of an analysis that reads prompts.

    Attributes:
        template: what surrounds each prompt: null for nothing, `chat` for the tokenizer's chat template, or text with
            `{prompt}` in it. It takes effect where the data are made (`workbench.tasks`).
    """

    template: str | None = None


@dataclass
class Result:
    """What an analysis returns: the head table, the evidence under it and how it was made.

    Attributes:
        heads: one row per head, the schema of DESIGN section 4.
        params: the parameters actually used, defaults filled in.
        model: name, fingerprint, basis, dtype, device and capabilities of the model.
        data: what the data were, enough to make them again.
        tables: further tidy tables, by name (for retrieval: samples, generations, causal experiment, ...).
        arrays: further arrays, by name; `per_example` is `[n_examples, n_layers, n_heads]`.
        summary: headline figures, JSON-able.
        timing: seconds by stage; not part of an artifact's identity.
        files: further files of the artifact, by name, as bytes (for sae_train: the autoencoder's folder).
    """

    analysis: str
    heads: HeadTable
    params: Params
    model: dict[str, Any]
    data: dict[str, Any]
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    timing: dict[str, float] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    seed: int = 0

    @property
    def per_example(self) -> np.ndarray:
        """`[n_examples, n_layers, n_heads]` scores of the examples that count; NaN where undefined."""
        return self.arrays["per_example"]

    def _repr_html_(self) -> str:
        return self.heads._repr_html_()


# How a circuit came to be known, other than by one analysis having found it: that is no truth to hold another to.
KNOWN = ("planted", "trained in")


@dataclass(frozen=True)
class Finding:
    """A kind of head that an analysis claims to find, so that `workbench certify` can hold it to models that have it.

    Attributes:
        claim: what organisms' cards call such heads (`retrieval`, `circuit`, `direct`, `refusal`, `image`, ...).
        params: parameters under which it is claimed, defaults elsewhere.
        data: keys to change in the data block that an organism's card names.
        column: of the head table that ranks heads; the most by the table's `higher_is_more` first.
        magnitude: rank by the size of the effect, whichever its sign (a circuit has heads that work against it).
        min_auroc: area under the ROC curve, true heads against the others, below which it is a miss.
        how: only truths that came about so (`planted`, `trained in`, `found`); all by default.
        value: of a result, the number that the card states beside the heads; it must be that number.
    """

    claim: str
    params: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    column: str = "score"
    magnitude: bool = False
    min_auroc: float = 0.95
    how: tuple[str, ...] = ()
    value: Callable[[Result], float] | None = None


@dataclass(frozen=True)
class Analysis:
    """One registered method.

    `data_kind` names what `data` must be (`needle`, `prompts`, `pairs`, ...); `requires` names the capabilities without
    which the result would be wrong; `finds` what it claims to find, where an answer is known.
    """

    name: str
    paper: str
    params_type: type[Params]
    data_kind: str
    requires: tuple[str, ...]
    run: Callable[[Any, Any, Any, int], Result]
    finds: tuple[Finding, ...] = ()

    def __call__(self, model: Any, data: Any, params: Params | None = None, *, seed: int = 0) -> Result:
        """Check the model's capabilities, then run."""
        from workbench.models.threads import suited_threads

        model.require(*self.requires)
        with suited_threads(model):
            return self.run(model, data, params or self.params_type(), seed)

    def parse(self, params: Mapping[str, Any]) -> Params:
        """Validate parameters given by keyword.

        Raises:
            InputError: naming the first parameter that is unknown or unusable.
        """
        try:
            return self.params_type.model_validate(dict(params))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            if first["type"] == "extra_forbidden":
                hint = did_you_mean(str(first["loc"][-1]), self.params_type.model_fields)
                raise InputError(f"{self.name} has no parameter {key!r}.{hint}") from None
            message = first["msg"][0].lower() + first["msg"][1:]
            raise InputError(f"{self.name}: parameter {key!r} is {first['input']!r}, but {message}.") from None


_MODULES = {
    "ablation": "workbench.analyses.ablation",
    "activation_patching": "workbench.analyses.activation_patching",
    "attribution": "workbench.analyses.attribution",
    "circuit": "workbench.analyses.circuit",
    "direct_logit_attribution": "workbench.analyses.head_tools.direct",
    "image_attention": "workbench.analyses.looking",
    "overlap": "workbench.analyses.overlap",
    "path_patching": "workbench.analyses.path_patching",
    "repair": "workbench.analyses.repair",
    "retrieval": "workbench.analyses.retrieval",
    "sae_circuits": "workbench.analyses.sae_circuits",
    "sae_features": "workbench.analyses.sae_features",
    "sae_train": "workbench.analyses.sae_train",
    "sahara": "workbench.analyses.sahara",
    "ships": "workbench.analyses.ships",
    "var": "workbench.analyses.var",
    "vhd": "workbench.analyses.vhd",
}


def names() -> list[str]:
    """Names that `analysis:` in a spec file may take."""
    return sorted(_MODULES)


def get(name: str) -> Analysis:
    """The analysis registered as `name`.

    Raises:
        InputError: no analysis has that name.
    """
    if name not in _MODULES:
        raise InputError(
            f"There is no analysis {name!r}.{did_you_mean(name, _MODULES)} Available: {', '.join(names())}."
        )
    return importlib.import_module(_MODULES[name]).ANALYSIS
