"""What reinforcing the heads found does to what is said, against the same alpha on other heads.

    plain      nothing changed
    vhr        the heads above their layer's median, times alpha
    others     as many of the heads not chosen, in the same layers, times alpha
    random     as many random heads, in the same layers, times alpha; drawn anew for every example and draw
    zeroed     the k heads of highest mean VHD, for all examples, times 0
    zeroed random   as many random other heads of the same layers, times 0

Captions are judged against the objects an image shows (CHAIR), answers against the true yes or no (POPE). Random draws
are pooled; `lowest` and `highest` are the extremes over single draws. It never changes how heads are found.
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
from workbench.analyses import hallucination
from workbench.analyses.vhd import score
from workbench.analyses.vhd.branches import Views
from workbench.analyses.vhd.generate import Factors, Reinforcement, as_text, end_tokens, write
from workbench.analyses.vhd.params import VhdParams, VhrParams
from workbench.errors import InputError
from workbench.progress import bar
from workbench.tables import HeadTable

if TYPE_CHECKING:
    import pandas as pd

    from workbench.analyses.base import Result
    from workbench.models import Model

_KEYS = ["condition", "alpha", "k"]


@dataclass(frozen=True)
class Condition:
    """One way of writing; `k` counts the heads of the zeroed ones, `draw` random draws."""

    name: str
    alpha: float = 1.0
    k: int = 0
    draw: int = 0


def evaluate(model: Model, views: Views, heads: HeadTable, params: VhdParams, seed: int, *, into: Result) -> None:
    """Write captions under every condition; adds the tables `captions` and `evaluation` and a summary to `into`.

    Raises:
        InputError: the data say neither what the images show nor what the answers are, or `vhr` names a layer or a
            number of heads that the model does not have.
    """
    import pandas as pd

    assert params.vhr is not None
    started = time.perf_counter()
    if not any(s.objects is not None or s.answer is not None for s in views.data):
        raise InputError(
            "vhr is evaluated against what the images show, but no sample has objects or an answer; add them, or leave "
            "vhr out."
        )
    layers = _layers(model, params.vhr)
    zeroed = _zeroed(model, heads, params.vhr, seed)
    rows: list[dict[str, Any]] = []
    n = len(views.data)
    with bar(n, "reinforcing") as shown:
        for start in range(0, n, params.batch_size):
            chosen = list(range(start, min(start + params.batch_size, n)))
            for condition, texts in _batch(model, views, chosen, layers, zeroed, params, seed):
                rows += [
                    {**_facts(condition), **_judged(views, index, text)}
                    for index, text in zip(chosen, texts, strict=True)
                ]
            shown.update(len(chosen))
    captions = pd.DataFrame(rows)
    plain = captions[captions["condition"] == "plain"].set_index("example")["said"]
    captions["agrees"] = captions["said"] == captions["example"].map(plain)
    captions = captions.sort_values([*_KEYS, "draw"], kind="stable", ignore_index=True)
    into.tables["captions"] = captions
    into.tables["evaluation"] = evaluation(captions, n_boot=params.bootstrap, seed=seed)
    into.summary["vhr"] = {"layers": list(layers), **headline(into.tables["evaluation"])}
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

    yield Condition("plain"), said(None)
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


def _judged(views: Views, index: int, text: str) -> dict[str, Any]:
    sample = views.data[index]
    row: dict[str, Any] = {"example": sample.id, "said": text, "hits": -1, "false": -1, "shown": -1}
    row |= {"words": len(text.split()), "answer": "", "truth": ""}
    if sample.answer is not None:
        row |= {"answer": hallucination.answer(text) or "", "truth": sample.answer}
    elif sample.objects is not None:
        counts = hallucination.count(text, sample.objects, views.data.vocabulary)
        row |= {"hits": counts.hits, "false": counts.false, "shown": counts.shown}
    return row


def evaluation(captions: pd.DataFrame, *, n_boot: int, seed: int) -> pd.DataFrame:
    """One row per condition: CHAIR and F1 of captions, POPE's figures of answers (prefix `answers_`), with intervals.

    `agreement` is the share of texts that are the unchanged model's; `chair_i_change` is relative to it (-0.25: a
    quarter less).
    """
    import pandas as pd

    rows = []
    for keys, part in captions.groupby(_KEYS, sort=True):
        row: dict[str, Any] = dict(zip(_KEYS, keys, strict=True))  # type: ignore[arg-type]
        row |= {"draws": part["draw"].nunique(), "agreement": float(part["agrees"].mean())}
        described, asked = part[part["shown"] >= 0], part[part["truth"] != ""]
        if len(described):
            row |= hallucination.chair(_counts(described), n_boot=n_boot, seed=seed)
            by_draw = [hallucination.chair(_counts(one), n_boot=1)["chair_i"] for _, one in described.groupby("draw")]
            row |= {"lowest": min(by_draw), "highest": max(by_draw)}
        if len(asked):
            answers = [said or None for said in asked["answer"]]
            figures = hallucination.pope(answers, asked["truth"].tolist(), n_boot=n_boot, seed=seed)
            row |= {f"answers_{key}": value for key, value in figures.items()}
        rows.append(row)
    table = pd.DataFrame(rows)
    if "chair_i" in table:
        base = float(table.loc[table["condition"] == "plain", "chair_i"].iloc[0])
        table["chair_i_change"] = (table["chair_i"] - base) / base if base > 0 else np.nan
    return table


def _counts(part: Any) -> list[hallucination.Counts]:
    rows = part[["hits", "false", "shown", "words"]].itertuples(index=False)
    return [hallucination.Counts(*map(int, row)) for row in rows]


def headline(table: pd.DataFrame) -> dict[str, Any]:
    """By condition: the figures one looks at first."""
    wanted = ("chair_i", "chair_s", "chair_i_change", "recall", "f1", "words", "answers_accuracy", "answers_yes_ratio")
    found = {}
    for row in table.to_dict("records"):
        name = row["condition"]
        if name.startswith("zeroed"):
            name = f"{name} {row['k']}"
        elif name != "plain":
            name = f"{name} {row['alpha']:g}"
        found[name] = {key: None if np.isnan(row[key]) else round(float(row[key]), 4) for key in wanted if key in row}
    return found
