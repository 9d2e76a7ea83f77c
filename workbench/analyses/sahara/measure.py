"""Sahara from end to end: search the group, make the tables, validate it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.analyses.base import Result
from workbench.analyses.sahara.search import Step, greedy
from workbench.analyses.ships.ablations import Ablation, Head
from workbench.analyses.ships.dataset import Divergence, Method, Prompted, Subspace, Turned
from workbench.analyses.ships.measure import budget, check_data, groups, how, measured, prompts_table
from workbench.analyses.ships.table import Measured, columns, head_table, ranked
from workbench.primitives.sweep import default_root

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from workbench.analyses.ships.params import SaharaParams
    from workbench.models import Model
    from workbench.tasks.prompts import PromptDataset

Evidence = dict[str, Turned]


def measure(model: Model, data: PromptDataset, params: SaharaParams, seed: int, *, root: Path | None = None) -> Result:
    """Search a group of `params.size` heads.

    Result: `heads` with each head's score alone (step 1, degrees or nats), the extra columns `order` (1 for the head
    chosen first; NaN outside the group), `harmful`, `benign`, `difference`, `difference_stderr`, `q`; tables `steps`
    (every candidate of every step), `group` (the chosen ones) and `prompts`; array `per_example` with each prompt's
    part in the score; with validation the tables `success` and `transcripts`.

    Args:
        root: where finished parts are kept for an interruption; default the cache folder.

    Raises:
        InputError: the data are not prompts, lack a group that is needed, or the model has fewer heads than `size`.
        CapabilityError: the model's head outputs cannot be edited faithfully.
    """
    check_data(data, params)
    started = time.perf_counter()
    ablation = Ablation.of(params)
    method = Method(ablation, params.rank, params.compat, seed, budget(params))
    spans = {g: data.only(g) for g in groups(data)}
    space_of = Subspace if params.measure == "angle" else Divergence
    spaces: dict[Any, Prompted] = {g: space_of(model, s, method, root=root or default_root()) for g, s in spans.items()}
    unit_of = {ablation.row(model, unit): unit for unit in ablation.units(model)}

    def score(candidates: tuple[Head, ...], group: tuple[Head, ...]) -> tuple[np.ndarray, Evidence]:
        units, heads = [unit_of[row] for row in candidates], ablation.heads(model, group)
        options: dict[str, Any] = {"controls": 0 if group else params.controls, "stderr": not group}
        found = {g: space.turned(units, group=heads, **options) for g, space in spaces.items()}
        less = found["benign"].score if params.score == "difference" else 0.0
        return found["harmful"].score - less, found

    steps = greedy(list(unit_of), params.size, score)
    for space in spaces.values():
        space.forget()
    result = _result(model, data, params, seed, ablation, steps, spaces)
    result.timing["search"] = time.perf_counter() - started
    if params.validation is not None:
        from workbench.analyses.ships.validate import validate

        order = [step.chosen for step in steps]
        ks = range(1, params.size + 1)
        validate(model, data, order, ablation, params.validation, seed, into=result, default_ks=ks)
    return result


def _result(
    model: Model,
    data: PromptDataset,
    params: SaharaParams,
    seed: int,
    ablation: Ablation,
    steps: list[Step[Evidence]],
    spaces: dict[Any, Prompted],
) -> Result:
    units = ablation.units(model)
    alone = {g: measured(model, ablation, units, turned) for g, turned in steps[0].evidence.items()}
    harmful, benign = alone["harmful"], alone.get("benign")
    chosen = ranked(harmful, benign, params.score)
    less = ", harmful - benign" if params.score == "difference" else ""
    metric, unit = {
        "angle": (f"principal angles, rank {params.rank}", "degrees"),
        "kl": ("KL from the unablated model", "nats"),
    }[params.measure]
    heads = head_table(
        chosen,
        model=model,
        ablation=ablation,
        extra={"order": _order(steps, harmful), **columns(harmful, benign)},
        meta={
            "analysis": "sahara",
            "metric": f"{metric}, {params.ablation}{less}",
            "unit": unit,
            "level": "dataset",
        },
        bootstrap=None,
        seed=seed,
    )
    arrays = {"per_example": chosen.per_example.astype(np.float32)}
    arrays |= {f"{g}_singular_values": s.singular_values for g, s in spaces.items() if isinstance(s, Subspace)}
    if benign is not None:
        arrays["benign_per_example"] = benign.per_example.astype(np.float32)
    made = how(spaces)
    return Result(
        analysis="sahara",
        heads=heads,
        params=params,
        model=model.describe(),
        data=data.describe(),
        tables={"group": _group_table(steps), "steps": _steps_table(steps), "prompts": prompts_table(data)},
        arrays=arrays,
        summary={
            "n_harmful": len(data.only("harmful")),
            "n_benign": len(data.only("benign")),
            "group": [list(step.chosen) for step in steps],
            "scores": [float(np.nanmax(step.score)) for step in steps],
            "ties": {str(i): [list(row) for row in step.ties] for i, step in enumerate(steps, start=1) if step.ties},
            "top": [list(key) for key in heads.top(5)],
            **made,
        },
        seed=seed,
    )


def _order(steps: list[Step[Evidence]], like: Measured) -> np.ndarray:
    order = np.full(like.score.shape, np.nan)
    for number, step in enumerate(steps, start=1):
        order[step.chosen] = number
    return order


def _group_table(steps: list[Step[Evidence]]) -> pd.DataFrame:
    """One row per step: the head chosen, the score of the group with it, and how clearly it won."""
    import pandas as pd

    rows = []
    for number, step in enumerate(steps, start=1):
        at = step.candidates.index(step.chosen)
        found = {g: float(turned.score[at]) for g, turned in step.evidence.items()}
        rows.append(
            {
                "order": number,
                "layer": step.chosen[0],
                "head": step.chosen[1],
                "score": float(step.score[at]),
                "harmful": found["harmful"],
                "benign": found.get("benign", float("nan")),
                "margin": step.margin,
                "ties": " ".join(f"{layer}-{head}" for layer, head in step.ties),
            }
        )
    return pd.DataFrame(rows)


def _steps_table(steps: list[Step[Evidence]]) -> pd.DataFrame:
    """One row per step and candidate: the score of the group so far with it."""
    import pandas as pd

    parts = []
    for number, step in enumerate(steps, start=1):
        nothing = np.full(len(step.candidates), np.nan)
        benign = step.evidence["benign"].score if "benign" in step.evidence else nothing
        parts.append(
            pd.DataFrame(
                {
                    "step": number,
                    "layer": [layer for layer, _ in step.candidates],
                    "head": [head for _, head in step.candidates],
                    "score": step.score,
                    "harmful": step.evidence["harmful"].score,
                    "benign": benign,
                    "chosen": [row == step.chosen for row in step.candidates],
                    "tied": [row in step.ties for row in step.candidates],
                }
            )
        )
    return pd.concat(parts, ignore_index=True)
