"""Discrete-SAE circuit identification: which heads use codes on positives that they never use on negatives.

O'Neill & Bui 2024 (arXiv 2405.12522):

1. Output of every head, z W_O^h, mean over positions, on positives (the model can be right) and negatives (it cannot)
   (`activations`).
2. One sparse autoencoder for all heads, trained on 10 examples; the code of a head on an example is the argmax of its
   200 features (`sae`, `trained`).
3. Node score |P_h \\ N_h|, edge score over pairs of heads, softmax, threshold (`codes`, `scores`).
4. ROC against a reference circuit (`evaluate`, `references`).

What it can and cannot see: the node score counts how many different codes a head uses. A head that says one thing
clearly uses few, a noisy one uses many rare ones, some of which fall on positives alone by chance. So the score stands
next to shuffled labels, to the plainest baselines and to exact patching in the table `methods`, and `summary["status"]`
says when it is no better than they are. Variants of ours, `divergence` and `paired`, are never in its place.

`certify` holds only `paired` to anything, and only to planted circuits: `node`, `edge` and `divergence` miss heads of
circuits that are known by construction, and `paired` misses those found by ablation in a model that was trained without
them (`multitask`), where what changes most is not what matters.

Deviations, switchable: several seeds averaged (`seeds: 1`); pairs of heads that tie at the cut of the edge score share
the places (`edge_ties: first`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.analyses.base import Analysis, Finding, Result, stages
from workbench.analyses.sae_circuits.params import SaeCircuitsParams
from workbench.errors import InputError

if TYPE_CHECKING:
    from workbench.models import Model
    from workbench.tasks import ContrastDataset, PairDataset


def run(model: Model, data: ContrastDataset | PairDataset, params: SaeCircuitsParams, seed: int) -> Result:
    """Score every head.

    Result: `heads` with the extra columns `seed_sd`, `q`, `softmax`, and `selected` with a threshold; arrays `codes`
    `[seed, n, n_layers, n_heads]` (-1: no head), `trained_on` `[seed, n]` and `per_example` `[n, n_layers, n_heads]`,
    contributions whose mean is the score (for `edge`, the score itself); tables `methods`, `edges`, `training`,
    `examples` and, with a reference, `roc`.

    Raises:
        InputError: the data have no two groups, the reference does not fit, or `paired` without pairs.
        CapabilityError: the model's head outputs cannot be read one by one.
    """
    from workbench.analyses.sae_circuits import methods, references, scores, tables
    from workbench.analyses.sae_circuits.activations import outputs, right
    from workbench.analyses.sae_circuits.trained import train_and_code

    contrast = as_contrast(data)
    reference = references.resolve(params.reference, model, contrast.meta)
    clock = [("", time.perf_counter())]
    out = outputs(model, contrast, positions=params.positions, seed=seed)
    assumption = right(model, contrast)
    clock.append(("activations", time.perf_counter()))
    codes = train_and_code(out.x, params, seed)
    clock.append(("autoencoders", time.perf_counter()))
    positive = np.array([sample.group == "positive" for sample in contrast])
    labelled = scores.Labelled(codes, positive, params, seed)
    found = {
        "node": scores.node(labelled, held_out=params.held_out, normalise=params.normalise),
        "edge": scores.edge(labelled, held_out=params.held_out, nulls=params.variant == "edge"),
        "divergence": scores.divergence(labelled, held_out=params.held_out),
    }
    if contrast.pairs is not None or params.variant == "paired":
        found["paired"] = scores.paired(out, len(contrast))
    clock.append(("scores", time.perf_counter()))
    beside = methods.baselines(model, contrast, out, positive, params, seed)
    clock.append(("methods", time.perf_counter()))

    made = tables.Tables(model, contrast, out, params, seed, reference)
    heads = made.heads(found[params.variant])
    table, roc = made.methods(labelled, found, beside)
    training = tables.training(codes)
    frames = {
        "methods": table,
        "edges": made.edges(found["edge"]),
        "training": training,
        "examples": contrast.to_frame(),
    }
    if reference is not None:
        frames["roc"] = roc
    coded = out.grid(codes.codes.astype(np.float64), heads.shape)
    arrays = {
        "per_example": out.grid(found[params.variant].shares, heads.shape).astype(np.float32),
        "codes": np.nan_to_num(coded, nan=-1).astype(np.int16),
        "trained_on": codes.trained_on.astype(np.uint8),
        "by_seed": out.grid(found[params.variant].by_seed, heads.shape).astype(np.float32),
    }
    summary = made.summary(heads, table, codes, assumption)
    seconds = stages(clock) | {f"method {ranked.name}": ranked.seconds for ranked in beside}
    return Result(
        analysis="sae_circuits",
        heads=heads,
        params=params,
        model=model.describe(),
        data=contrast.describe(),
        tables=frames,
        arrays=arrays,
        summary=summary,
        timing=seconds,
        seed=seed,
    )


def as_contrast(data: Any) -> ContrastDataset:
    """Positives and negatives: as given, or the clean and corrupted prompts of pairs.

    Raises:
        InputError: the data are neither, or a group is empty.
    """
    from workbench.tasks import contrast_from_pairs

    kind = getattr(data, "kind", None)
    if kind == "pairs" and len(data):
        return contrast_from_pairs(data)
    if kind != "contrast" or not 0 < data.n_positive < len(data):
        raise InputError(
            "sae_circuits needs positives and negatives, at least one of each; give `data: {positives: [...], "
            "negatives: [...]}` or a task of pairs."
        )
    return data


def sae_circuits(model: Model, data: ContrastDataset | PairDataset, *, seed: int = 0, **params: Any) -> Result:
    """Discrete-SAE circuit identification; the notebook form of `analysis: sae_circuits`.

    Args:
        data: `workbench.tasks.contrast_from_texts`, or pairs.
        params: fields of `SaeCircuitsParams`.

    Example:
        >>> wb.sae_circuits(model, pairs, reference="organism").tables["methods"]  # doctest: +SKIP

    Raises:
        InputError: unusable data or an unknown parameter.
        CapabilityError: the model's head outputs cannot be read one by one.
    """
    return ANALYSIS(model, data, ANALYSIS.parse(params), seed=seed)


ANALYSIS = Analysis(
    name="sae_circuits",
    paper="O'Neill & Bui 2024, arXiv 2405.12522",
    params_type=SaeCircuitsParams,
    data_kind="contrast",
    requires=("head_axis_ok",),
    run=run,
    finds=(Finding("circuit", {"variant": "paired", "seeds": 1, "bootstrap": 100}, how=("planted",)),),
)
