"""Path patching: what a head or MLP says to others, with every other way from the first to the second held shut.

After Wang et al. 2022 ("Interpretability in the Wild", section 3.1), for a sender s and a set of receivers R:

1. Run x_orig and x_new (here: the base and the other run) and keep z of every head and the output of every MLP.
2. Run x_orig again with every head frozen to its z on x_orig, except the sender, which speaks as on x_new. Write down
   what each receiver now gets: q of a head, k or v of a kv group, the output of an MLP, or the final stream.
   MLPs and norms belong to the path (`recompute`), or MLPs are frozen to their output on x_orig too (`freeze`).
3. Run x_orig a third time with only the receivers' values replaced, and read the metric.

Pass 1 is made once for all questions about the same pairs (`PathRuns`), and pass 2 costs little, because frozen
attention need not be computed:

a. A sending head changes the output of its attention module by d = (z_new - z_orig) W_O, and nothing else there.
b. `freeze`, in models whose stream takes attention as it is (`fork_exact`): the receiver's block gets stream + d, so
   only that block is entered, and only as far as its q, k, v.
c. Otherwise: from the sender's block on, each attention module is replaced by its output on x_orig (+ d in the
   sender's block), and the blocks' own code does norms and MLPs.
d. Into the logits nothing but the last column is computed, and there is no pass 3.
e. Pass 3 starts at the lowest receiver; its last block is computed at the last column only. Senders x examples share
   the batch axis.

A path exists only upwards; a sender above every receiver has NaN. This file never knows which prompt was the clean one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from workbench.errors import InputError
from workbench.primitives import batches, separable
from workbench.primitives.freezing import require_freezing
from workbench.primitives.frozen import FrozenPaths, Mlps, record_all
from workbench.primitives.path_cost import path_cost
from workbench.primitives.receivers import Receiver, by_layer, existing, parse_receivers
from workbench.primitives.senders import MLP, Sender, all_senders, parse_senders, reads_at, sender_name, writes_at
from workbench.primitives.suffix import Run
from workbench.primitives.sweep.checkpoint import Checkpoint, identity
from workbench.primitives.sweep.cost import Cost, Shape
from workbench.primitives.sweep.plan import rows_at_once
from workbench.primitives.sweep.readout import Readout
from workbench.primitives.sweep.units import Unit
from workbench.primitives.two_runs import check_runs, donor_rows, measure_all, places, share_of_gap

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Unpack

    from workbench.models import Model

__all__ = [
    "MLP",
    "Mlps",
    "PathPatched",
    "PathQuestion",
    "PathRuns",
    "Receiver",
    "all_senders",
    "parse_receivers",
    "path_patch",
    "sender_name",
]


@dataclass(frozen=True)
class PathPatched:
    """What each sender does to the metric along its direct paths into the receivers.

    Attributes:
        senders: sets of (layer, head), or (layer, `MLP`); see `sender_name`.
        values: by metric, `[sender, example]`, float64. NaN: no path leads from the sender to a receiver, or the
            example lacks a position.
        base, other: by metric, `[example]`, of the two runs.
        reaches: `[sender]`, whether a path exists.
        mlps: whether MLPs on the way were recomputed or frozen.
        cost: as planned; `reference_flops` are three whole passes per sender and example.
    """

    senders: tuple[Unit, ...]
    receivers: tuple[Receiver, ...]
    values: dict[str, np.ndarray]
    base: dict[str, np.ndarray]
    other: dict[str, np.ndarray]
    reaches: np.ndarray
    mlps: Mlps
    cost: Cost

    def effect(self, metric: str) -> np.ndarray:
        """`[sender, example]`: value - base."""
        return self.values[metric] - self.base[metric]

    def share(self, metric: str, *, least: float = 0.0) -> np.ndarray:
        """`[sender, example]`: the part of the way from base to other."""
        return share_of_gap(self.values[metric], self.base[metric], self.other[metric], least=least)


class PathQuestion(TypedDict, total=False):
    """What is asked of two runs.

    receivers: `"logits"`, or any of `"L.H.q"`, `"L.G.k"`, `"L.G.v"` (G a kv group) and `"L.mlp"`, all at once.
    senders: heads `(L, H)` or `"L.H"`, MLPs `(L, MLP)` or `"L.mlp"`, or sets of them that send together; default every
        head alone. `all_senders(model)` are all heads and MLPs.
    mlps: on the way from sender to receiver, `"recompute"` (default) or `"freeze"`.
    sender_positions, receiver_positions: where the sender speaks as on the other run, and where the receivers' values
        are exchanged; None for everywhere, counted as in `patching.Site`.
    donors: row of the other run that each example's sender speaks as; default its own.
    """

    receivers: str | Receiver | Iterable[str | Receiver]
    senders: Iterable[Sender] | None
    mlps: Mlps
    sender_positions: Sequence[int] | None
    receiver_positions: Sequence[int] | None
    donors: Sequence[int] | None


@dataclass(frozen=True)
class PathRuns:
    """Pass 1: both runs of a batch of pairs, made once, to be asked about many senders and receivers.

    Memory: `(3 d_model + n_heads d_head) x n_layers x n x pos` numbers for each run, on the model's device.
    """

    model: Model
    base: Run
    other: Run
    batch_rows: int
    flops_per_second: float

    @classmethod
    def of(
        cls,
        model: Model,
        base: Int[Tensor, "n pos"],
        other: Int[Tensor, "n pos"],
        *,
        attention_mask: Int[Tensor, "n pos"] | None = None,
        batch_rows: int | None = None,
    ) -> PathRuns:
        """Run both.

        Args:
            base, other: token rows, padded on the left where they differ in length, both runs alike.
            batch_rows: prompts per forward pass; default what the machine likes.

        Raises:
            InputError: shapes that do not fit, or padding on the right.
        """
        check_runs(base, other, attention_mask)
        shape = Shape.of(model)
        size = batch_rows or rows_at_once(model, shape, base.shape[1])
        started = time.perf_counter()
        with torch.no_grad():
            here, there = (record_all(model, t, mask=attention_mask, batch_rows=size) for t in (base, other))
        speed = 2 * len(base) * shape.full(base.shape[1], logits_at=1) / (time.perf_counter() - started)
        return cls(model, here, there, size, speed)

    def against_itself(self) -> PathRuns:
        """The base run in the place of the other: with `donors`, senders speak as on another example's base run."""
        return replace(self, other=self.base)

    def patch(
        self,
        readouts: Mapping[str, Readout],
        *,
        checkpoint: str | Path | None = None,
        **question: Unpack[PathQuestion],
    ) -> PathPatched:
        """Patch the paths from each sender to the receivers, and measure every example.

        Args:
            readouts: metrics by the name their values go under.
            checkpoint: folder for finished layers of senders; the same question, asked again after it was killed, goes
                on from there and gives the same bits. Needs readouts with `key()`.
            question: see `PathQuestion`.

        Raises:
            InputError: a receiver, sender or position that does not exist.
            CapabilityError: attention cannot be frozen exactly, or q, k, v cannot be exchanged, in this architecture.
        """
        asked = _Asked(self, **question)
        kept = Checkpoint(checkpoint, None if checkpoint is None else asked.key(readouts))
        paths, n = asked.frozen(), len(self.base.tokens)

        def work(_: int, sender: np.ndarray, example: Tensor) -> dict[str, np.ndarray]:
            logits = paths.patched([asked.senders[s] for s in sender], example, asked.received_at)
            return measure_all(readouts, logits, example, self.base)

        with torch.no_grad():
            label = f"path patching, {asked.cost().duration}"
            values = batches.measured(
                work, asked.starts, n, list(readouts), size=self.batch_rows, kept=kept, label=label
            )
        everyone = torch.arange(n)
        ends = [measure_all(readouts, run.logits, everyone, self.base) for run in (self.base, self.other)]
        for name in readouts:
            values[name][:, ~asked.defined] = np.nan
        return PathPatched(
            asked.senders, asked.receivers, values, ends[0], ends[1], asked.reaches, asked.mlps, asked.cost()
        )

    def estimate(self, *, controls: int = 0, **question: Unpack[PathQuestion]) -> Cost:
        """What `patch` would cost, asked `1 + controls` times."""
        return _Asked(self, **question).cost(controls)


def path_patch(
    model: Model,
    base: Int[Tensor, "n pos"],
    other: Int[Tensor, "n pos"],
    *,
    readouts: Mapping[str, Readout],
    attention_mask: Int[Tensor, "n pos"] | None = None,
    batch_rows: int | None = None,
    checkpoint: str | Path | None = None,
    **question: Unpack[PathQuestion],
) -> PathPatched:
    """One question about two runs: `PathRuns.of(...)`, then `patch`."""
    runs = PathRuns.of(model, base, other, attention_mask=attention_mask, batch_rows=batch_rows)
    return runs.patch(readouts, checkpoint=checkpoint, **question)


class _Asked:
    """A question, checked against the model."""

    def __init__(
        self,
        runs: PathRuns,
        *,
        receivers: str | Receiver | Iterable[str | Receiver] = "logits",
        senders: Iterable[Sender] | None = None,
        mlps: Mlps = "recompute",
        sender_positions: Sequence[int] | None = None,
        receiver_positions: Sequence[int] | None = None,
        donors: Sequence[int] | None = None,
    ):
        model, (n, n_pos) = runs.model, runs.base.tokens.shape
        self.runs = runs
        self.mlps: Mlps = mlps
        self.receivers = existing(model, parse_receivers(receivers))
        self.senders = parse_senders(model, all_senders(model, mlps=False) if senders is None else senders)
        if mlps not in ("recompute", "freeze"):
            raise InputError(f"mlps must be 'recompute' or 'freeze', not {mlps!r}.")
        require_freezing(model, mlps)
        if any(part[1] == MLP for unit in self.senders for part in unit):
            require_freezing(model, mlps, mlps_send=True)
        if any(receiver.part in ("q", "k", "v") for receiver in self.receivers):
            separable.require_heads(model)
        self.positions = [sender_positions, receiver_positions]
        self.sent_at, sent = places(n, n_pos, sender_positions, runs.base.mask)
        self.received_at, received = places(n, n_pos, receiver_positions, runs.base.mask)
        self.defined = (sent & received).numpy()
        self.take = donor_rows(donors, n)
        top = max(reads_at(model, receiver) for receiver in self.receivers)
        self.reaches = np.array([writes_at(unit[0]) <= top for unit in self.senders])
        self.starts = [unit[0][0] if r else None for unit, r in zip(self.senders, self.reaches, strict=True)]

    @property
    def straight(self) -> bool:
        return self.mlps == "freeze" and self.runs.model.capabilities.fork_exact

    def frozen(self) -> FrozenPaths:
        runs = self.runs
        return FrozenPaths(
            runs.model,
            runs.base,
            runs.other,
            self.take.to(runs.base.logits.device),
            by_layer(self.receivers),
            self.mlps,
            self.straight,
            self.sent_at,
        )

    def cost(self, controls: int = 0) -> Cost:
        return path_cost(
            self.runs.model,
            self.runs.base.tokens.shape,
            self.starts,
            self.receivers,
            straight=self.straight,
            size=self.runs.batch_rows,
            controls=controls,
        ).at_speed(self.runs.flops_per_second)

    def key(self, readouts: Mapping[str, Readout]) -> list[Any]:
        """Everything that decides the numbers, JSON-able."""
        runs = self.runs
        return [
            "path patching",
            *identity(runs.model, runs.base.tokens, runs.base.mask, runs.other.tokens),
            [str(receiver) for receiver in self.receivers],
            self.senders,
            self.mlps,
            [None if p is None else list(p) for p in self.positions],
            self.take.tolist(),
            {name: readout.key() for name, readout in readouts.items()},
            runs.batch_rows,
        ]
