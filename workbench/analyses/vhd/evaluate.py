"""What reinforcing the heads found does to what is said, against the same alpha on other heads.

    plain      nothing changed
    vhr        the heads above their layer's median, times alpha
    others     as many of the heads not chosen, in the same layers, times alpha
    random     as many random heads, in the same layers, times alpha; drawn anew for every example and draw
    zeroed     the k heads of highest mean VHD, for all examples, times 0
    zeroed random   as many random other heads of the same layers, times 0

Every condition is judged by `analyses.evaluation`: its null are the random heads of the same alpha or number. Random
draws are pooled. It never changes how heads are found.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from workbench import stats
from workbench.analyses import evaluation
from workbench.analyses.vhd import score
from workbench.analyses.vhd.branches import Views
from workbench.analyses.vhd.generate import Factors, Reinforcement, as_text, end_tokens, write
from workbench.analyses.vhd.params import VhdParams, VhrParams
from workbench.errors import InputError
from workbench.progress import bar
from workbench.tables import HeadTable

if TYPE_CHECKING:
    from workbench.analyses.base import Result
    from workbench.models import Model

_KEYS = ["condition", "alpha", "k"]
_CONDITIONS = (evaluation.PLAIN, "vhr", "others", "random", "zeroed", "zeroed random")
_NULLS = {"vhr": "random", "others": "random", "zeroed": "zeroed random"}


@dataclass(frozen=True)
class Condition:
    """One way of writing; `k` counts the heads of the zeroed ones, `draw` random draws."""

    name: str
    alpha: float = 1.0
    k: int = 0
    draw: int = 0


def evaluate(model: Model, views: Views, heads: HeadTable, params: VhdParams, seed: int, *, into: Result) -> None:
    """Write texts under every condition; adds tables `captions`, `evaluation` (and `answers`) and a summary to `into`.

    Raises:
        InputError: the data say neither what the images show nor what the answers are, or `vhr` names a layer or a
            number of heads that the model does not have.
    """
    import pandas as pd

    assert params.vhr is not None
    started = time.perf_counter()
    layers = _layers(model, params.vhr)
    zeroed = _zeroed(model, heads, params.vhr, seed)
    rows: list[dict[str, Any]] = []
    n = len(views.data)
    with bar(n, "reinforcing") as shown:
        for start in range(0, n, params.batch_size):
            chosen = list(range(start, min(start + params.batch_size, n)))
            for condition, texts in _batch(model, views, chosen, layers, zeroed, params, seed):
                for index, said in zip(chosen, texts, strict=True):
                    row = evaluation.judged(views.data[index], said, views.data.vocabulary)
                    rows.append({**_facts(condition), **row})
            shown.update(len(chosen))
    captions = evaluation.ordered(pd.DataFrame(rows), [*_KEYS, "draw"], _CONDITIONS)
    into.tables["captions"] = captions
    options = {"n_boot": params.bootstrap, "seed": seed}
    into.tables["evaluation"] = table = evaluation.compared(captions, _KEYS, nulls=_NULLS, **options)
    if (captions["truth"] != "").any():
        into.tables["answers"] = evaluation.by_negatives(captions, _KEYS, **options)
    into.summary["vhr"] = {"layers": list(layers), **evaluation.headline(table, _name)}
    into.timing["reinforcement"] = time.perf_counter() - started


def _batch(
    model: Model,
    views: Views,
    chosen: Sequence[int],
    layers: tuple[int, ...],
    zeroed: Sequence[tuple[Condition, tuple[tuple[int, int], ...]]],
    params: VhdParams,
    seed: int,
) -> Iterator[tuple[Condition, list[str]]]:
    """Every condition's texts for one batch of samples."""
    vhr = params.vhr
    assert vhr is not None
    image, text = views.image(chosen), views.text(chosen)
    ends = end_tokens(model)

    def said(change: Any) -> list[str]:
        out = write(model, image, max_new_tokens=params.max_new_tokens, ends=ends, change=change, text=text)
        return [as_text(model, tokens) for tokens in out.tokens]

    yield Condition(evaluation.PLAIN), said(None)
    for alpha in vhr.alpha:
        change = Reinforcement(alpha, layers, params.variant, params.outliers, vhr.refresh)
        yield Condition("vhr", alpha), said(change)
        found = torch.zeros(len(chosen), model.n_layers, model.n_heads, dtype=torch.bool)
        for layer, heads in change.found.items():
            found[:, layer] = heads.cpu()
        yield Condition("others", alpha), said(Factors(_factors(_others(found, layers, chosen, seed), alpha)))
        for draw in range(vhr.random_draws):
            yield (
                Condition("random", alpha, draw=draw),
                said(Factors(_factors(_drawn(found, chosen, draw, seed), alpha))),
            )
    for condition, heads in zeroed:
        mask = torch.zeros(len(chosen), model.n_layers, model.n_heads, dtype=torch.bool)
        for layer, head in heads:
            mask[:, layer, head] = True
        yield condition, said(Factors(_factors(mask, 0.0)))


def _factors(mask: Tensor, alpha: float) -> Tensor:
    return torch.where(mask, alpha, 1.0)


def _drawn(found: Tensor, chosen: Sequence[int], draw: int, seed: int) -> Tensor:
    """As many heads in each layer, any of them."""
    drawn = torch.zeros_like(found)
    for row, index in enumerate(chosen):
        rng = np.random.default_rng([seed, 0xD0, draw, index])
        for layer, count in enumerate(found[row].sum(dim=-1).tolist()):
            drawn[row, layer, rng.permutation(found.shape[-1])[:count].tolist()] = True
    return drawn


def _others(found: Tensor, layers: Sequence[int], chosen: Sequence[int], seed: int) -> Tensor:
    """As many heads in each layer, none of those found."""
    others = torch.zeros_like(found)
    for row, index in enumerate(chosen):
        rng = np.random.default_rng([seed, 0xD1, index])
        for layer in layers:
            left = (~found[row, layer]).nonzero()[:, 0].numpy()
            others[row, layer, rng.permutation(left)[: int(found[row, layer].sum())].tolist()] = True
    return others


def _layers(model: Model, vhr: VhrParams) -> tuple[int, ...]:
    for layer in vhr.layers or ():
        if not 0 <= layer < model.n_layers:
            raise InputError(
                f"vhr.layers names layer {layer}, but {model.name!r} has layers 0 to {model.n_layers - 1}."
            )
    return score.reinforced_layers(vhr.layers, model.n_layers)


def _zeroed(
    model: Model, heads: HeadTable, vhr: VhrParams, seed: int
) -> list[tuple[Condition, tuple[tuple[int, int], ...]]]:
    """The top heads and random others in their place, for every k asked for."""
    rng = np.random.default_rng([seed, 0xAB])
    out = []
    for k in vhr.ablate:
        if not 1 <= k < model.n_layers * model.n_heads:
            raise InputError(f"vhr.ablate names {k} heads; use 1 to {model.n_layers * model.n_heads - 1}.")
        top = tuple(heads.top(k))
        out.append((Condition("zeroed", 0.0, k), top))
        for draw in range(vhr.random_draws):
            try:
                other = stats.layer_matched_random(top, model.n_heads, rng, shortage="nearest", n_layers=model.n_layers)
            except InputError:  # the model has not so many other heads
                break
            out.append((Condition("zeroed random", 0.0, k, draw), other))
    return out


def _facts(condition: Condition) -> dict[str, Any]:
    return {"condition": condition.name, "alpha": condition.alpha, "k": condition.k, "draw": condition.draw}


def _name(row: dict[str, Any]) -> str:
    """Of a condition, in the summary."""
    name = row["condition"]
    if name.startswith("zeroed"):
        return f"{name} {row['k']}"
    return name if name == evaluation.PLAIN else f"{name} {row['alpha']:g}"
