"""What activation patching and path patching share: two runs from pairs, shares of the gap, a null, and the head table.

    base, other     denoising: corrupted, clean        noising: clean, corrupted
    score           (patched - base) / (other - base), per example, then the mean: 1 when the patch does all that
                    exchanging the whole prompt does, 0 when nothing, negative when it works against it
    null            the same patch with the activation of another example's base run

The null takes another random example of the same length (a seeded cycle, nobody gets itself), from the side of the base
run: everything about the activation changes except what tells clean from corrupted. A head that matters only because
any disturbance there moves the metric scores the same under it. Where all pairs share what is exchanged (every clean
story about a girl), that leaves the signal out of the null; where pairs point both ways, part of it stays in and p is
conservative. Nothing here runs a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from workbench import stats
from workbench.analyses.base import PromptParams, Result, stages
from workbench.errors import InputError
from workbench.tables import HeadTable

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from workbench.models import Model
    from workbench.primitives.sweep.readout import Readout
    from workbench.tasks.pairs import PairDataset

Direction = Literal["denoising", "noising"]
Metric = Literal["logit_diff", "kl", "prob", "log_prob", "rank", "loss"]
_MIN_GAP = {"logit_diff": 0.05, "log_prob": 0.05, "loss": 0.05, "kl": 0.001, "prob": 0.001, "rank": 0.5}
NO_GAP = "clean and corrupted do not differ on the metric"


class PairParams(PromptParams):
    """Attributes:
    direction: `denoising` puts clean activations into the corrupted run, `noising` corrupted ones into the clean run.
    metric: read at the last token; `kl` is from the base run, the others are of `answer` (and `wrong`).
    positions: where activations are exchanged, null for everywhere; 0, 1, ... from the first token, -1, -2, ... from
        the last.
    controls: draws of the null; 0 leaves it out. Each costs as much as the result.
    min_gap: an example counts when the metric differs by more than this between its two runs, since a share of a gap
        near nothing is noise; null takes 0.05 logits or nats of log probability, 0.001 nats of KL or of probability,
        half a rank.
    bootstrap: resamples for the intervals.
    batch_rows: prompts per forward pass; null for what the machine likes.
    """

    direction: Direction = "denoising"
    metric: Metric = "logit_diff"
    positions: tuple[int, ...] | None = Field(default=None, min_length=1)
    controls: int = Field(default=1, ge=0)
    min_gap: float | None = Field(default=None, ge=0, validate_default=True)
    bootstrap: int = Field(default=1000, ge=1)
    batch_rows: int | None = Field(default=None, ge=1)

    @field_validator("min_gap")
    @classmethod
    def _fill_in(cls, value: float | None, info: ValidationInfo) -> float | None:
        """The number actually used is what a stored spec holds."""
        return _MIN_GAP.get(info.data.get("metric", "")) if value is None else value

    @property
    def least(self) -> float:
        return self.min_gap or 0.0


@dataclass(frozen=True)
class Runs:
    """The two runs of all pairs, padded on the left, and what is read off them."""

    base: Tensor
    other: Tensor
    mask: Tensor | None
    readouts: Mapping[str, Readout]
    lengths: np.ndarray


def runs(model: Model, data: PairDataset, params: PairParams, analysis: str) -> Runs:
    """Tokens of the base and the other run, on the model's device.

    Raises:
        InputError: the data are no pairs, or there are none.
    """
    from workbench.primitives.sweep.readout import Readout

    if getattr(data, "kind", None) != "pairs" or not len(data):
        raise InputError(
            f"{analysis} needs at least one pair {{clean, corrupted, answer, wrong}}; give `data: {{pairs: [...]}}`."
        )
    batch = data.batch()
    clean, corrupted = batch.clean.to(model.device), batch.corrupted.to(model.device)
    base, other = (corrupted, clean) if params.direction == "denoising" else (clean, corrupted)
    mask = batch.mask.long().to(model.device) if batch.padded else None
    readout = Readout(params.metric, batch.answer, batch.wrong)
    return Runs(base, other, mask, {params.metric: readout}, np.array([pair.length for pair in data]))


def donors(lengths: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Another random example of the same length for each example, and for which examples there is one.

    A random cycle through every length, so that nobody gets itself; the only example of a length has none.
    """
    take, found = np.arange(len(lengths)), np.zeros(len(lengths), dtype=bool)
    for length in np.unique(lengths):
        members = rng.permutation(np.flatnonzero(lengths == length))
        if len(members) > 1:
            take[members] = np.roll(members, 1)
            found[members] = True
    return take, found


def null_shares(
    drawn: Callable[[list[int]], np.ndarray],
    ends: tuple[np.ndarray, np.ndarray],
    lengths: np.ndarray,
    params: PairParams,
    seed: int,
) -> np.ndarray | None:
    """`[row, example]`: the mean share over draws of the null; `drawn(donors)` patches with other examples' base runs
    and gives the metric, `ends` are the metric of base and other run."""
    from workbench.primitives.two_runs import share_of_gap

    rng = np.random.default_rng(seed)
    shares = []
    for _ in range(params.controls):
        take, found = donors(lengths, rng)
        values = np.where(found, drawn(take.tolist()), np.nan)
        shares.append(share_of_gap(values, *ends, least=params.least))
    return np.mean(shares, axis=0) if shares else None


def on_grid(values: np.ndarray, places: Sequence[tuple[int, int]], shape: tuple[int, int]) -> np.ndarray:
    """`[row, example]` values as `[example, layer, index]`; NaN where there is no row."""
    grid = np.full((values.shape[1], *shape), np.nan)
    for row, (layer, index) in zip(values, places, strict=True):
        grid[:, layer, index] = row
    return grid


def head_table(
    model: Model,
    share: np.ndarray,
    raw: np.ndarray,
    null: np.ndarray | None,
    params: PairParams,
    seed: int,
    *,
    analysis: str,
    rows: Literal["head", "kv_group"],
    absent: np.ndarray,
    meta: Mapping[str, Any],
) -> HeadTable:
    """The table from `[example, layer, index]` grids.

    Extra columns: `raw_effect` (mean of patched - base in units of the metric), `raw_stderr`, and `q`
    (Benjamini-Hochberg over all rows). `absent` says why a row has no value, "" where it has.
    """
    status = np.where(absent != "", absent, "ok").astype(object)
    status[(absent == "") & np.isnan(share).all(axis=0)] = NO_GAP
    return HeadTable.from_examples(
        share,
        n_kv_heads=model.n_kv_heads,
        null=null,
        n_boot=params.bootstrap,
        seed=seed,
        rows=rows,
        status=status,
        extra={"raw_effect": stats.mean(raw), "raw_stderr": stats.stderr(raw)},
        analysis=analysis,
        metric=f"{params.metric}, {params.direction}",
        unit="share of the gap between clean and corrupted",
        model=model.name,
        fingerprint=model.fingerprint,
        basis=model.basis,
        higher_is_more=True,
        meta=meta,
    ).with_q()


def summarise(share: np.ndarray, raw: np.ndarray, params: PairParams, seed: int) -> dict[str, np.ndarray]:
    """Columns score, stderr, ci_low, ci_high, raw_effect, n from `[row, example]`, for tables beside the heads."""
    low, high = stats.bootstrap_ci(share.T, n_boot=params.bootstrap, seed=seed)
    return {
        "score": stats.mean(share.T),
        "stderr": stats.stderr(share.T),
        "ci_low": low,
        "ci_high": high,
        "raw_effect": stats.mean(raw.T),
        "n": (~np.isnan(share)).sum(axis=1),
    }


def examples_table(
    data: PairDataset, base: np.ndarray, other: np.ndarray, share: np.ndarray, params: PairParams
) -> pd.DataFrame:
    """One row per pair: the metric of both runs, and whether the pair counts."""
    frame = data.to_frame()
    denoising = params.direction == "denoising"
    frame["clean"], frame["corrupted"] = (other, base) if denoising else (base, other)
    frame["counts"] = ~np.isnan(share).all(axis=tuple(range(1, share.ndim)))
    return frame


def result(
    model: Model,
    data: PairDataset,
    params: PairParams,
    seed: int,
    *,
    heads: HeadTable,
    share: np.ndarray,
    raw: np.ndarray,
    null: np.ndarray | None,
    tables: Mapping[str, pd.DataFrame],
    summary: Mapping[str, Any],
    seconds: Sequence[tuple[str, float]],
) -> Result:
    """The result that grids `[example, layer, index]` make: arrays `per_example` (shares), `raw_per_example` and, where
    there is a null, `null_per_example`; `seconds` are names of stages and when each ended, the first when all began."""
    arrays = {"per_example": share, "raw_per_example": raw, "null_per_example": null}
    return Result(
        analysis=str(heads.meta["analysis"]),
        heads=heads,
        params=params,
        model=model.describe(),
        data=data.describe(),
        tables=dict(tables),
        arrays={name: values.astype(np.float32) for name, values in arrays.items() if values is not None},
        summary={**headline(tables["examples"], heads), **summary},
        timing=stages(seconds),
        seed=seed,
    )


def headline(frame: pd.DataFrame, heads: HeadTable) -> dict[str, Any]:
    """How many pairs count, the metric of both runs, and the strongest rows either way."""
    ok = [row for row in np.argsort(-np.abs(np.nan_to_num(heads["score"])), kind="stable") if heads.ok[row]]
    keys = heads.keys()
    return {
        "n_pairs": len(frame),
        "n_counted": int(frame["counts"].sum()),
        "clean": float(frame["clean"].mean()),
        "corrupted": float(frame["corrupted"].mean()),
        "strongest": [{"at": list(keys[row]), "score": float(heads["score"][row])} for row in ok[:5]],
    }
