"""What moving attention off the sinks does to what is said: image-centric heads, all heads, as many random ones.

    plain           nothing changed
    redistributed   the image-centric heads of each query
    random          for each query as many heads, a random permutation of the layer's deciding which; drawn anew for
                    every example and draw
    all heads       no selection

Every condition is judged by `analyses.evaluation`, with the random heads as null. Random draws are pooled.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from workbench.analyses import evaluation
from workbench.analyses.var.params import RedistributionParams, VarParams
from workbench.analyses.var.redistribution import Redistribution, redistributing
from workbench.analyses.vhd.branches import Views
from workbench.analyses.vhd.generate import as_text, end_tokens, write
from workbench.progress import bar

if TYPE_CHECKING:
    from workbench.analyses.base import Result
    from workbench.models import Model
    from workbench.tasks.images import ImageDataset

_CONDITIONS = (evaluation.PLAIN, "redistributed", "random", "all heads")
_NULLS = {"redistributed": "random", "all heads": "random"}


def check(model: Model, data: ImageDataset) -> None:
    """Refuse, before anything is computed, what could not be redistributed or judged."""
    model.require("pattern_edit_is_causal")
    evaluation.must_be_judged(data, "redistribution")


def evaluate(
    model: Model, views: Views, dimensions: tuple[int, ...], params: VarParams, seed: int, *, into: Result
) -> None:
    """Write texts under every condition; adds tables `captions`, `evaluation` (and `answers`) and a summary to `into`.

    Without a sink nothing would move: then it only says so.
    """
    import pandas as pd

    how = params.redistribution
    assert how is not None
    state = into.summary["sinks"]
    layers = list(Redistribution(dimensions, params, how).layers(model.n_layers))
    if state.startswith("none"):
        into.summary["redistribution"] = {"status": f"not run: there is nothing to move; sinks {state}"}
        return
    if not layers:
        into.summary["redistribution"] = {
            "status": f"not run: no layer from {params.first_layer} on is treated in a model of {model.n_layers} layers"
        }
        return
    started = time.perf_counter()
    rows: list[dict[str, Any]] = []
    with bar(len(views.data), "redistributing") as shown:
        for start in range(0, len(views.data), params.batch_size):
            chosen = list(range(start, min(start + params.batch_size, len(views.data))))
            branch, ends = views.image(chosen), end_tokens(model)
            for condition, draw, change in _conditions(model, chosen, dimensions, params, how, seed):
                with redistributing(model, branch, change):
                    out = write(model, branch, max_new_tokens=how.max_new_tokens, ends=ends)
                for index, tokens in zip(chosen, out.tokens, strict=True):
                    row = evaluation.judged(views.data[index], as_text(model, tokens), views.data.vocabulary)
                    rows.append({"condition": condition, "draw": draw, **row})
            shown.update(len(chosen))
    captions = evaluation.ordered(pd.DataFrame(rows), ["condition", "draw"], _CONDITIONS)
    into.tables["captions"] = captions
    options = {"n_boot": params.bootstrap, "seed": seed}
    into.tables["evaluation"] = table = evaluation.compared(captions, ["condition"], nulls=_NULLS, **options)
    if (captions["truth"] != "").any():
        into.tables["answers"] = evaluation.by_negatives(captions, ["condition"], **options)
    into.summary["redistribution"] = {"status": "run", "layers": layers, **evaluation.headline(table)}
    into.timing["redistribution"] = time.perf_counter() - started


def _conditions(
    model: Model,
    chosen: list[int],
    dimensions: tuple[int, ...],
    params: VarParams,
    how: RedistributionParams,
    seed: int,
) -> Iterator[tuple[str, int, Redistribution | None]]:
    yield evaluation.PLAIN, 0, None
    yield "redistributed", 0, Redistribution(dimensions, params, how)
    for draw in range(how.random_draws):
        orders = [
            [
                np.random.default_rng([seed, 0xFA, draw, index, layer]).permutation(model.n_heads)
                for layer in range(model.n_layers)
            ]
            for index in chosen
        ]
        order = torch.from_numpy(np.array(orders))
        yield "random", draw, Redistribution(dimensions, params, how, "random", order)
    if how.all_heads:
        yield "all heads", 0, Redistribution(dimensions, params, how, "all")
