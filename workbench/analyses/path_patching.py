"""Path patching: which heads speak directly to given receivers (Wang et al. 2022, arXiv 2211.00593, section 3.1).

For every sender head h below the receivers R (q of heads, k and v of kv groups, MLPs, or the logits):

1. Run x_orig and x_new. Noising, the paper's direction, has x_orig clean and x_new corrupted.
2. Run x_orig with all heads frozen to it but h, which speaks as on x_new; note what R gets.
3. Run x_orig with R getting that, and measure: score(h) = mean of (patched - base) / (other - base) over pairs.
4. The same with h speaking as on another example's base run: the null (`pair_effects`).

`mlps` says whether MLPs between h and R are recomputed, hence part of the "direct" path (the paper), or frozen.
Merullo et al. 2024 apply this stage by stage, with positions and receiver_positions [-1]; their -100 x score takes
means over a batch first: it is minus a hundred times the mean of `raw_effect` over the mean gap (corrupted - clean of
table `examples`). The computation is `primitives.paths`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, field_validator

from workbench.analyses import pair_effects as pairs
from workbench.analyses.base import Analysis, Finding, Result
from workbench.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from workbench.models import Model
    from workbench.primitives.paths import PathPatched
    from workbench.tasks.pairs import PairDataset


class PathPatchingParams(pairs.PairParams):
    """Those of `PairParams`, and:

    Attributes:
        receivers: "logits", or together some of "L.H.q" (head H of layer L), "L.G.k", "L.G.v" (kv group G) and "L.mlp".
        receiver_positions: where the receivers' values are replaced, null for everywhere; `positions` are the sender's.
        mlps: on the way from sender to receiver, `recompute` or `freeze`.
        mlp_senders: let every MLP send too, for the table `edges`; the head table is about heads.
    edges: with several receivers, also measure each alone, for the table `edges`; costs as much again for each.
    """

    direction: pairs.Direction = "noising"
    receivers: tuple[str, ...] = ("logits",)
    receiver_positions: tuple[int, ...] | None = Field(default=None, min_length=1)
    mlps: Literal["recompute", "freeze"] = "recompute"
    mlp_senders: bool = False
    edges: bool = True

    @field_validator("receivers", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("receivers")
    @classmethod
    def _names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        from workbench.primitives.receivers import parse_receivers  # free of torch, as a spec file is read without it

        try:
            parse_receivers(value)
        except InputError as error:
            raise ValueError(str(error)) from None
        return value


def run(model: Model, data: PairDataset, params: PathPatchingParams, seed: int) -> Result:
    """Patch the paths from every head to the receivers.

    Result: `heads` with the extra columns `raw_effect`, `raw_stderr` and `q`, status "no path to a receiver" for heads
    at or above all of them; arrays `per_example` (shares), `raw_per_example` and, with controls, `null_per_example`,
    all `[n, n_layers, n_heads]`; tables `examples` and `edges` (a row per sender and receiver that a path connects;
    `sender_head` is -1 for an MLP); in the summary what it cost (`cost`, controls included). A run that is killed goes
    on where it was when it is started again.

    Raises:
        InputError: the data are no pairs; a receiver or position does not exist.
        CapabilityError: this architecture's paths cannot be told apart.
    """
    from workbench.primitives.paths import MLP, PathRuns, all_senders
    from workbench.primitives.sweep import default_root

    seconds = [("", time.perf_counter())]
    two = pairs.runs(model, data, params, "path_patching")
    both = PathRuns.of(model, two.base, two.other, attention_mask=two.mask, batch_rows=params.batch_rows)
    options: dict[str, Any] = {
        "senders": all_senders(model, mlps=params.mlp_senders),
        "mlps": params.mlps,
        "sender_positions": params.positions,
        "receiver_positions": params.receiver_positions,
    }
    cost = both.estimate(receivers=params.receivers, controls=params.controls, **options)
    kept: dict[str, Any] = {"checkpoint": default_root(), **options}
    done = both.patch(two.readouts, receivers=params.receivers, **kept)
    is_head = np.array([unit[0][1] != MLP for unit in done.senders])
    senders = [unit[0] for unit in done.senders if unit[0][1] != MLP]
    shape = (model.n_layers, model.n_heads)
    ends = done.base[params.metric], done.other[params.metric]
    share = pairs.on_grid(done.share(params.metric, least=params.least)[is_head], senders, shape)
    raw = pairs.on_grid(done.effect(params.metric)[is_head], senders, shape)
    seconds.append(("scoring", time.perf_counter()))

    itself, heads_only = both.against_itself(), {**kept, "senders": senders}

    def drawn(donors: list[int]) -> np.ndarray:
        found = itself.patch(two.readouts, receivers=params.receivers, donors=donors, **heads_only)
        return found.values[params.metric]

    null = pairs.null_shares(drawn, ends, two.lengths, params, seed)
    null = None if null is None else pairs.on_grid(null, senders, shape)
    absent = np.full(shape, "no attention heads", dtype=object)
    for reaches, (layer, head) in zip(done.reaches[is_head], senders, strict=True):
        absent[layer, head] = "" if reaches else "no path to a receiver"
    names = [str(receiver) for receiver in done.receivers]
    meta = {"receivers": ", ".join(names), "mlps": params.mlps, "direction": params.direction}
    heads = pairs.head_table(
        model, share, raw, null, params, seed, analysis="path_patching", rows="head", absent=absent, meta=meta
    )
    seconds.append(("controls", time.perf_counter()))

    alone = {names[0]: done}
    if params.edges and len(names) > 1:
        alone = {name: both.patch(two.readouts, receivers=name, **kept) for name in names}
    tables = {"examples": pairs.examples_table(data, *ends, share, params)}
    if len(names) == 1 or params.edges:
        tables["edges"] = _edges(alone, params, seed)
    seconds.append(("edges", time.perf_counter()))
    summary = {
        "receivers": names,
        "mlps": params.mlps,
        "n_senders": int(done.reaches.sum()),
        "cost": cost.to_dict(),
    }
    grids: dict[str, Any] = {"share": share, "raw": raw, "null": null}
    return pairs.result(
        model, data, params, seed, heads=heads, **grids, tables=tables, summary=summary, seconds=seconds
    )


def path_patching(model: Model, data: PairDataset, *, seed: int = 0, **params: Any) -> Result:
    """Which heads speak directly to the receivers; the notebook form of `analysis: path_patching`.

    Args:
        data: pairs, from `workbench.tasks.pairs_from_samples` or a task.
        params: fields of `PathPatchingParams`.

    Example:
        >>> wb.path_patching(model, pairs, receivers=["9.6.q", "9.9.q"]).heads.top(5)  # doctest: +SKIP

    Raises:
        InputError: unusable data, receivers or parameters.
        CapabilityError: this architecture's paths cannot be told apart.
    """
    return ANALYSIS(model, data, ANALYSIS.parse(params), seed=seed)


def _edges(alone: dict[str, PathPatched], params: PathPatchingParams, seed: int) -> pd.DataFrame:
    """One row per sender and receiver between which a path exists."""
    import pandas as pd

    from workbench.primitives.paths import sender_name

    frames = []
    for name, found in alone.items():
        rows = np.flatnonzero(found.reaches)
        share = found.share(params.metric, least=params.least)[rows]
        facts = {
            "sender_layer": [found.senders[row][0][0] for row in rows],
            "sender_head": [found.senders[row][0][1] for row in rows],  # -1: the MLP
            "sender": [sender_name(found.senders[row][0]) for row in rows],
            "receiver": [name] * len(rows),
        }
        numbers = pairs.summarise(share, found.effect(params.metric)[rows], params, seed)
        frames.append(pd.DataFrame({**facts, **numbers}))
    return pd.concat(frames, ignore_index=True)


ANALYSIS = Analysis(
    name="path_patching",
    paper="Wang et al. 2022, arXiv 2211.00593",
    params_type=PathPatchingParams,
    data_kind="pairs",
    requires=("head_ablation_ok",),
    run=run,
    finds=(Finding("direct", {"bootstrap": 100}, magnitude=True),),
)
