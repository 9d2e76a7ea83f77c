"""Path patching: what one head says to another, with every other way from the first to the second held shut.

After Wang et al. 2022 ("Interpretability in the Wild", section 3.1), for a sender h and a set of receivers R:

1. Run x_orig and x_new (here: the base and the other run) and keep z of every head.
2. Run x_orig again with every head frozen to its z on x_orig, except the sender, which has its z on x_new. Write down
   what each receiver now gets: q of a head, k or v of a kv group, the output of an MLP, or the final stream.
   MLPs and norms belong to the path (`recompute`), or MLPs are frozen to their output on x_orig too (`freeze`).
3. Run x_orig a third time with only the receivers' values replaced, and read the metric.

Pass 2 costs little, because frozen attention need not be computed:

a. The sender changes the output of its attention module by d = (z_new - z_orig) W_O, and nothing else there.
b. `freeze`, in models whose stream takes attention as it is (`fork_exact`): the receiver's block gets stream + d, so
   only that block is entered, and only as far as its q, k, v. Into the logits only the last column matters.
c. Otherwise: from the sender's block on, each attention module is replaced by its output on x_orig (+ d in the
   sender's block), and the blocks' own code does norms and MLPs.
d. Pass 3 starts at the lowest receiver. Senders x examples share the batch axis.

A path exists only upwards; a sender above every receiver has NaN. This file never knows which prompt was the clean one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from workbench.errors import InputError
from workbench.primitives import separable
from workbench.primitives.frozen import FrozenPaths, Mlps, require_freezing
from workbench.primitives.patching import TOKENS_AT_ONCE, check_runs, donor_rows, measure, places, share_of_gap
from workbench.primitives.receivers import Receiver, existing, parse_receivers, reach
from workbench.primitives.sweep.readout import Readout
from workbench.primitives.sweep.units import Unit, all_heads, checked
from workbench.progress import bar

if TYPE_CHECKING:
    from workbench.models import Model

__all__ = ["Mlps", "PathPatched", "Receiver", "parse_receivers", "path_patch"]


@dataclass(frozen=True)
class PathPatched:
    """What each sender does to the metric along its direct paths into the receivers.

    Attributes:
        values: by metric, `[sender, example]`, float64. NaN: no path leads from the sender to a receiver, or the
            example lacks a position.
        base, other: by metric, `[example]`, of the two runs.
        reaches: `[sender]`, whether a path exists.
        mlps: whether MLPs on the way were recomputed or frozen.
        n_rows: prompts that went through part of the model in pass 2 (pass 3: as many again, unless into the logits).
    """

    senders: tuple[Unit, ...]
    receivers: tuple[Receiver, ...]
    values: dict[str, np.ndarray]
    base: dict[str, np.ndarray]
    other: dict[str, np.ndarray]
    reaches: np.ndarray
    mlps: Mlps
    n_rows: int

    def effect(self, metric: str) -> np.ndarray:
        """`[sender, example]`: value - base."""
        return self.values[metric] - self.base[metric]

    def share(self, metric: str, *, least: float = 0.0) -> np.ndarray:
        """`[sender, example]`: the part of the way from base to other."""
        return share_of_gap(self.values[metric], self.base[metric], self.other[metric], least=least)


def path_patch(
    model: Model,
    base: Int[Tensor, "n pos"],
    other: Int[Tensor, "n pos"],
    *,
    receivers: str | Receiver | Iterable[str | Receiver],
    readouts: Mapping[str, Readout],
    senders: Sequence[Unit | tuple[int, int]] | None = None,
    mlps: Mlps = "recompute",
    attention_mask: Int[Tensor, "n pos"] | None = None,
    sender_positions: Sequence[int] | None = None,
    receiver_positions: Sequence[int] | None = None,
    donors: Sequence[int] | None = None,
    batch_rows: int | None = None,
) -> PathPatched:
    """Patch the paths from each sender to the receivers, all at once for a set of receivers.

    Args:
        base, other: token rows, padded on the left where they differ in length, both runs alike.
        receivers: `"logits"`, or any of `"L.H.q"`, `"L.G.k"`, `"L.G.v"` (G a kv group) and `"L.mlp"`.
        senders: heads, or sets of heads that send together; default every head alone.
        sender_positions, receiver_positions: where the sender's z and the receivers' values are exchanged; None for
            everywhere, counted as in `patching.Site`.
        donors: row of the other run that each example's sender takes its z from; default its own.

    Memory: `3 x n_layers x n x pos x d_model` for the base run and z of both runs.

    Raises:
        InputError: a receiver, head or position that does not exist.
        CapabilityError: attention cannot be frozen exactly, or q, k, v cannot be exchanged, in this architecture.
    """
    to = existing(model, parse_receivers(receivers))
    units = checked(model, all_heads(model) if senders is None else senders)
    if mlps not in ("recompute", "freeze"):
        raise InputError(f"mlps must be 'recompute' or 'freeze', not {mlps!r}.")
    check_runs(base, other, attention_mask)
    require_freezing(model, mlps)
    if any(receiver.part in ("q", "k", "v") for receiver in to):
        separable.require_heads(model)
    n, n_pos = base.shape
    rows_at_once = batch_rows or max(1, TOKENS_AT_ONCE // n_pos)
    here_at, sent = places(n, n_pos, sender_positions, attention_mask)
    there_at, received = places(n, n_pos, receiver_positions, attention_mask)
    defined = (sent & received).numpy()
    top = max(reach(model, receiver) for receiver in to)
    reaches = np.array([unit[0][0] < top for unit in units])
    values = {name: np.full((len(units), n), np.nan) for name in readouts}
    with torch.no_grad():
        paths = FrozenPaths.between(
            model, base, other, units, to, mlps, attention_mask, donor_rows(donors, n), here_at, rows_at_once
        )
        n_rows = int(reaches.sum()) * n
        with bar(n_rows, "path patching") as shown:
            for unit, example in _batches(units, reaches, n, rows_at_once):
                logits = paths.patched([units[u] for u in unit], example, there_at)
                for name, readout in readouts.items():
                    values[name][unit, example.numpy()] = measure(readout, logits, example, paths.base)
                shown.update(len(unit))
        everyone = torch.arange(n)
        runs = (paths.base.logits, paths.other_logits)
        ends = [{n: measure(r, logits, everyone, paths.base) for n, r in readouts.items()} for logits in runs]
    for name in readouts:
        values[name][:, ~defined] = np.nan
    return PathPatched(units, to, values, ends[0], ends[1], reaches, mlps, n_rows)


def _batches(
    units: Sequence[Unit], reaches: np.ndarray, n: int, size: int
) -> Iterable[tuple[np.ndarray, Int[Tensor, " batch"]]]:
    """Sender and example of every row; senders that begin in one layer share batches."""
    starts = np.array([unit[0][0] for unit in units])
    for start in sorted(set(starts[reaches].tolist())):
        members = np.flatnonzero((starts == start) & reaches)
        unit, example = np.repeat(members, n), np.tile(np.arange(n), len(members))
        for at in range(0, len(unit), size):
            yield unit[at : at + size], torch.from_numpy(example[at : at + size])
