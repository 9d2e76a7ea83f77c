"""What stands beside the method: baselines that read activations, and exact or approximate patching.

    mean_difference        |mean output on positives - mean output on negatives|
    norm                   mean norm of the output, whatever the labels
    layer_index            the number of the layer
    probe                  logistic regression on the head's output: accuracy across folds (pairs stay together)
    activation_patching    |effect| of exchanging the head's output, exact (noising)
    attribution_patching   the same to first order
    eap_ig                 the same with gradients averaged between the two prompts
    hisp                   |gradient at a mask on the head's output|             (`masks`)
    subnetwork_probing     a learned mask                                         (`masks`)

The three of patching are the analyses of the same names with their defaults, as far as they matter to a ranking. The
last five need pairs. A method that cannot run says why.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.analyses.sae_circuits.params import CAUSAL, Method
from workbench.errors import CapabilityError, InputError

if TYPE_CHECKING:
    from workbench.analyses.sae_circuits.activations import Outputs
    from workbench.analyses.sae_circuits.params import SaeCircuitsParams
    from workbench.models import Model
    from workbench.tasks import ContrastDataset, PairDataset


@dataclass
class Ranked:
    """Scores of one method, `[layer, head]`, more is more; None when it did not run, which `status` explains."""

    name: str
    kind: str
    score: np.ndarray | None
    seconds: float
    status: str = "ok"


def baselines(
    model: Model, data: ContrastDataset, out: Outputs, positive: np.ndarray, params: SaeCircuitsParams, seed: int
) -> list[Ranked]:
    """Every method asked for."""
    shape = (model.n_layers, model.n_heads)
    simple: dict[str, Callable[[], np.ndarray]] = {
        "mean_difference": lambda: mean_difference(out, positive),
        "norm": lambda: out.x.norm(dim=-1).mean(dim=0).double().cpu().numpy(),
        "layer_index": lambda: np.array([float(layer) for layer, _ in out.at]),
        "probe": lambda: probe(out, positive, data, params.folds, seed),
    }
    found = []
    for name in params.methods:
        started = time.perf_counter()
        kind = "causal" if name in CAUSAL else "baseline"
        try:
            if name in CAUSAL:
                score = patching(name, model, data.pairs, params, seed)
            else:
                score = out.grid(simple[name](), shape)
            found.append(Ranked(name, kind, score, time.perf_counter() - started))
        except (CapabilityError, InputError) as error:
            found.append(Ranked(name, kind, None, time.perf_counter() - started, f"not run: {error}"))
    return found


def mean_difference(out: Outputs, positive: np.ndarray) -> np.ndarray:
    """`[head]` norm of the difference of the two groups' mean outputs."""
    import torch

    side = torch.from_numpy(positive).to(out.x.device)
    return (out.x[side].mean(dim=0) - out.x[~side].mean(dim=0)).norm(dim=-1).double().cpu().numpy()


def probe(out: Outputs, positive: np.ndarray, data: ContrastDataset, folds: int, seed: int) -> np.ndarray:
    """`[head]` accuracy, across folds, of a logistic regression that tells positives from negatives.

    It reads z, which says linearly what z W_O says, in fewer numbers.

    Raises:
        InputError: too few examples of a group for two folds.
    """
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fewest = int(min(positive.sum(), (~positive).sum()))
    n_folds = min(folds, fewest)
    if n_folds < 2:
        raise InputError(f"a probe needs two examples of each group, but one has {fewest}; give more examples.")
    groups = None
    splitter: Any = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    if data.pairs is not None:
        groups, splitter = np.tile(np.arange(len(data.pairs)), 2), GroupKFold(n_folds)
    z = out.z.double().cpu().numpy()
    reader = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return np.array(
            [cross_val_score(reader, z[:, h], positive, cv=splitter, groups=groups).mean() for h in range(z.shape[1])]
        )


def patching(name: Method, model: Model, pairs: PairDataset | None, params: SaeCircuitsParams, seed: int) -> np.ndarray:
    """`[layer, head]` size of the mean effect of exchanging each head's output, exact or approximate, or of its mask.

    Raises:
        InputError: the data are no pairs.
    """
    from workbench.analyses import activation_patching, attribution

    if pairs is None:
        raise InputError("patching goes position by position, so it needs pairs; give a task of pairs.")
    if name in ("hisp", "subnetwork_probing"):
        from workbench.analyses.sae_circuits import masks

        model.require("head_ablation_ok")
        batch = pairs.batch()
        if name == "hisp":
            return masks.hisp(model, batch)
        return masks.subnetwork_probing(model, batch, steps=params.probing_steps, seed=seed)
    options = {"direction": "noising", "controls": 0, "bootstrap": 1}
    if name == "activation_patching":
        analysis = activation_patching.ANALYSIS
        options["streams"] = ()
    else:
        analysis = attribution.ANALYSIS
        options |= {"method": name, "level": "node", "spot_check": 0}
        options |= {"steps": params.ig_steps} if name == "eap_ig" else {}
    return np.abs(analysis(model, pairs, analysis.parse(options), seed=seed).heads.matrix())
