"""Ships from end to end: score every head on harmful and benign prompts, make the table, validate."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from workbench import stats
from workbench.analyses.base import Result
from workbench.analyses.ships.ablations import Ablation
from workbench.analyses.ships.dataset import Method, Prompted, Subspace
from workbench.analyses.ships.forks import Forks
from workbench.analyses.ships.table import Measured, columns, grid, head_table, ranked
from workbench.errors import InputError
from workbench.primitives import metrics
from workbench.primitives.forward import forward
from workbench.primitives.sweep import Readout, default_root, sweep

if TYPE_CHECKING:
    from workbench.analyses.ships.params import SafetyParams, ShipsParams
    from workbench.models import Model
    from workbench.tasks.prompts import PromptBatch, PromptDataset


def measure(model: Model, data: PromptDataset, params: ShipsParams, seed: int) -> Result:
    """Score every head (or kv group) of `model`.

    Result: `heads` with the extra columns `harmful`, `benign`, `difference`, `difference_stderr` and `q` (and, at the
    query level, `above_floor`: the score exceeds what rounding alone makes of the base run); array `per_example`
    `[n, n_layers, n_heads or n_kv_heads]` of the harmful prompts, at the dataset level each prompt's part in the
    angle; `benign_per_example`; table `prompts`; with validation the tables `success`, `transcripts`.

    Raises:
        InputError: the data are not prompts, or have none of a group that is needed.
        CapabilityError: the model's head outputs cannot be edited faithfully.
    """
    check_data(data, params)
    started = time.perf_counter()
    ablation = Ablation.of(params)
    level = _query_level if params.level == "query" else _dataset_level
    found = level(model, data, ablation, params, seed)
    chosen = ranked(found["harmful"], found["benign"], params.score)
    unit = "nats" if params.level == "query" else "degrees"
    what = "KL(base, ablated)" if params.level == "query" else f"principal angles, rank {params.rank}"
    less = "" if params.score == "harmful" else ", harmful - benign"
    heads = head_table(
        chosen,
        model=model,
        ablation=ablation,
        extra={**columns(found["harmful"], found["benign"]), **found["extra"]},
        meta={"analysis": "ships", "metric": f"{what}, {params.ablation}{less}", "unit": unit, "level": params.level},
        bootstrap=params.bootstrap if params.level == "query" and params.score == "harmful" else None,
        seed=seed,
    )
    arrays = {"per_example": chosen.per_example.astype(np.float32), **found["arrays"]}
    if found["benign"] is not None:
        arrays["benign_per_example"] = found["benign"].per_example.astype(np.float32)
    result = Result(
        analysis="ships",
        heads=heads,
        params=params,
        model=model.describe(),
        data=data.describe(),
        tables={"prompts": prompts_table(data)},
        arrays=arrays,
        summary={
            "n_harmful": len(data.only("harmful")),
            "n_benign": len(data.only("benign")),
            "top": [list(key) for key in heads.top(5)] if heads.ok.any() else [],
            **found["summary"],
        },
        timing={"scores": time.perf_counter() - started},
        seed=seed,
    )
    if params.validation is not None:
        from workbench.analyses.ships.validate import own_order, validate

        order = None
        if params.validation.heads == "own":
            if params.level != "query":
                raise InputError(
                    "validation.heads 'own' needs level 'query': a set of prompts has no heads per prompt."
                )
            order = own_order(found["harmful"].per_example)
        validate(model, data, heads.top(len(heads)).keys(), ablation, params.validation, seed, into=result, own=order)
    return result


def check_data(data: PromptDataset, params: SafetyParams) -> None:
    """Refuse data that are not prompts, or lack the group that `params` needs."""
    if getattr(data, "kind", None) != "prompts" or not len(data.only("harmful")):
        raise InputError(
            "Safety heads need a dataset of at least one prompt of the group 'harmful'; see workbench.tasks.prompts."
        )
    if params.score == "difference" and not len(data.only("benign")):
        raise InputError("score 'difference' needs benign prompts to compare with; add some, or score 'harmful'.")


def prompts_table(data: PromptDataset) -> Any:
    """One row per prompt; its text is withheld by exports."""
    table = data.to_frame()
    table.attrs["sensitive"] = ["text"]
    return table


def budget(params: SafetyParams) -> int | None:
    return None if params.memory_mb is None else int(params.memory_mb * 2**20)


def _query_level(
    model: Model, data: PromptDataset, ablation: Ablation, params: ShipsParams, seed: int
) -> dict[str, Any]:
    """Eq. 9 for every prompt and head; both groups in one sweep."""
    batch = data.batch()
    units = ablation.units(model)
    values, null, facts = _kl(model, batch, units, ablation, params, seed)
    kl = grid(model, ablation, units, values.T)
    noise = None if null is None else grid(model, ablation, units, null.T)
    floor = noise_floor(model, batch, ablation)
    is_harmful = np.array([sample.group == "harmful" for sample in data])

    def group(which: np.ndarray) -> Measured:
        return Measured(kl[which], stats.stderr(kl[which]), None if noise is None else noise[which])

    harmful = group(is_harmful)
    highest = float("nan") if np.isnan(floor).all() else float(np.nanmax(floor))
    return {
        "harmful": harmful,
        "benign": None if is_harmful.all() else group(~is_harmful),
        "extra": {"above_floor": harmful.score > highest},
        "arrays": {"noise_floor": floor, **({} if noise is None else {"null_per_example": noise[is_harmful]})},
        "summary": {"noise_floor": highest, **facts},
    }


def _kl(
    model: Model, batch: PromptBatch, units: list[Any], ablation: Ablation, params: ShipsParams, seed: int
) -> tuple[np.ndarray, np.ndarray | None, dict[str, Any]]:
    """KL `[unit, prompt]`, its mean under random edits of equal size, and how it was done."""
    mask = batch.mask if batch.padded else None
    if ablation.edit is not None:
        swept = sweep(
            model,
            batch.tokens,
            units=units,
            edit=ablation.edit,
            metric=Readout("kl"),
            attention_mask=mask,
            controls=params.controls,
            budget=budget(params),
            checkpoint=default_root(),
            seed=seed,
        )
        null = swept.controls.mean(axis=0) if params.controls else None
        facts = {"method": swept.method, "notes": list(swept.notes), "cost": swept.cost.to_dict()}
        return swept.values, null, facts
    forks = Forks(model, batch.tokens, mask, ablation, read="logits", seed=seed, budget=budget(params))
    base = forks.base()
    draws: list[int | None] = [None, *range(params.controls)]
    found = np.full((len(draws), len(units), len(base)), np.nan)
    for band in forks.bands(units):
        for i, draw in enumerate(draws):
            logits = forks.vectors(units, band, draw=draw)
            found[i, band] = torch.stack([metrics.kl(base, rows) for rows in logits]).double().numpy()
    facts = {
        "method": forks.method,
        "notes": [forks.note] if forks.note else [],
        "cost": {"flops": forks.flops(units, draws=params.controls)},
    }
    return found[0], found[1:].mean(axis=0) if params.controls else None, facts


def noise_floor(model: Model, batch: PromptBatch, ablation: Ablation) -> np.ndarray:
    """KL of the base run with itself, per prompt: in a batch against alone, at the model's precision."""
    together = Forks(model, batch.tokens, batch.mask, ablation, read="logits").base()
    alone = [
        forward(model, tokens[mask][None], logits_to_keep=1).logits[0, -1].cpu()
        for tokens, mask in zip(batch.tokens, batch.mask, strict=True)
    ]
    return metrics.kl(together, torch.stack(alone)).abs().double().numpy()


def _dataset_level(
    model: Model, data: PromptDataset, ablation: Ablation, params: ShipsParams, seed: int
) -> dict[str, Any]:
    """Eq. 11 for every head."""
    units = ablation.units(model)
    method = Method(ablation, params.rank, params.compat, seed, budget(params))
    spaces = {g: Subspace(model, data.only(g), method, root=default_root()) for g in groups(data)}
    made = {
        g: measured(model, ablation, units, space.turned(units, controls=params.controls, stderr=True))
        for g, space in spaces.items()
    }
    for space in spaces.values():
        space.forget()
    return {
        "harmful": made["harmful"],
        "benign": made.get("benign"),
        "extra": {},
        "arrays": {f"{g}_singular_values": space.singular_values for g, space in spaces.items()},
        "summary": how(spaces),
    }


def groups(data: PromptDataset) -> list[Any]:
    """The groups that have prompts."""
    return [g for g in ("harmful", "benign") if len(data.only(g))]


def how(spaces: Mapping[Any, Prompted]) -> dict[str, Any]:
    """How the scores were measured, and what that was planned to cost."""
    return {
        "method": spaces["harmful"].how,
        "notes": sorted({note for space in spaces.values() for note in space.notes}),
        "cost": {"flops": sum(space.flops for space in spaces.values())},
    }


def measured(model: Model, ablation: Ablation, units: list[Any], turned: Any) -> Measured:
    """Scores of all units as grids."""
    null = grid(model, ablation, units, turned.null)
    return Measured(
        grid(model, ablation, units, turned.by_prompt.T),
        grid(model, ablation, units, turned.stderr[None])[0],
        null_draws=null if len(null) else None,
    )
