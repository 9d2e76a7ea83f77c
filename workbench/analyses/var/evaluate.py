"""What moving attention off the sinks does to what is said: image-centric heads, all heads, as many random ones.

    plain           nothing changed
    redistributed   the image-centric heads of each query
    random          for each query as many heads, a random permutation of the layer's deciding which; drawn anew for
                    every example and draw
    all heads       no selection

Random draws are pooled; `lowest` and `highest` are extremes over single draws (CHAIR-I, or accuracy for questions).
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
from workbench.errors import InputError
from workbench.progress import bar

if TYPE_CHECKING:
    import pandas as pd

    from workbench.analyses.base import Result
    from workbench.models import Model
    from workbench.tasks.images import ImageDataset


def check(model: Model, data: ImageDataset) -> None:
    """Refuse, before anything is computed, what could not be redistributed or judged."""
    model.require("pattern_edit_is_causal")
    if not evaluation.can_be_judged(data):
        raise InputError(
            "redistribution is evaluated against what the images show, but no sample has objects or an answer; add "
            "them, or leave redistribution out."
        )


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
    captions = pd.DataFrame(rows)
    plain = captions[captions["condition"] == "plain"].set_index("example")["said"]
    captions["agrees"] = captions["said"] == captions["example"].map(plain)
    order = {name: place for place, name in enumerate(("plain", "redistributed", "random", "all heads"))}
    captions = captions.sort_values(
        ["condition", "draw"], key=lambda c: c.map(order) if c.name == "condition" else c, kind="stable"
    ).reset_index(drop=True)
    into.tables["captions"] = captions
    into.tables["evaluation"] = table = _table(captions, params, seed)
    if (captions["truth"] != "").any():
        into.tables["answers"] = evaluation.by_negatives(captions, ["condition"], n_boot=params.bootstrap, seed=seed)
    wanted = ("agreement", "chair_i", "chair_s", "recall", "f1", "words", "answers_accuracy", "answers_yes_ratio")
    into.summary["redistribution"] = {
        "status": "run",
        "layers": layers,
        **{
            row["condition"]: {
                key: None if np.isnan(row[key]) else round(float(row[key]), 4) for key in wanted if key in row
            }
            for row in table.to_dict("records")
        },
    }
    into.timing["redistribution"] = time.perf_counter() - started


def _conditions(
    model: Model,
    chosen: list[int],
    dimensions: tuple[int, ...],
    params: VarParams,
    how: RedistributionParams,
    seed: int,
) -> Iterator[tuple[str, int, Redistribution | None]]:
    yield "plain", 0, None
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


def _table(captions: pd.DataFrame, params: VarParams, seed: int) -> pd.DataFrame:
    """The figures of each condition, how often its text is the unchanged model's, and the extremes over draws."""
    table = evaluation.summed(captions, ["condition"], n_boot=params.bootstrap, seed=seed)
    figure = "chair_i" if "chair_i" in table else "answers_accuracy"
    single = evaluation.summed(captions, ["condition", "draw"], n_boot=1)
    facts: dict[str, list[float]] = {"draws": [], "agreement": [], "lowest": [], "highest": []}
    for condition in table["condition"]:
        part: Any = captions[captions["condition"] == condition]
        by_draw: Any = single[single["condition"] == condition]
        facts["draws"].append(part["draw"].nunique())
        facts["agreement"].append(float(part["agrees"].mean()))
        facts["lowest"].append(float(by_draw[figure].min()))
        facts["highest"].append(float(by_draw[figure].max()))
    for place, (name, values) in enumerate(facts.items()):
        table.insert(1 + place, name, values)
    return table
