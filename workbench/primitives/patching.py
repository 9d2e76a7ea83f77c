"""Activation patching: put activations of one run into another, exactly, and measure what that does to the output.

    base run, other run        two batches of token rows of one length, position by position alike
    cell                       the sites that are exchanged together: one, or any set
    value[cell, example]       metric of the base run with the cell's activations taken from the other run
    share                      (value - base) / (other - base): 0 nothing moved, 1 all of it

Denoising is base = corrupted, other = clean (which activations suffice to restore the answer); noising is base = clean,
other = corrupted (which are needed). Sites: z, q of a head, k, v of a kv group, attention output, MLP output, and the
stream before and after a block, at all positions or at chosen ones.

1. Record the other run at the sites' hook points, and the stream of the base run.
2. Stack cells x examples on the batch axis, by the lowest layer that a cell touches; compute from that layer on
   (`suffix.run_from`; where that is not exact, whole forwards).
3. In each row's hooks replace what its cell names; read the metric at the last column.

Whole heads, one at a time and with one metric, are what the sweep does (edit `patch`), with less work; they are left to
it.

`transformer_lens.patching` is not used: it takes no attention mask (a left-padded batch is patched and measured at
wrong positions), reports 0 for k and v heads that GQA does not have, and runs one whole forward per cell. This file
never knows which prompt was the clean one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from workbench.errors import InputError
from workbench.primitives import batches
from workbench.primitives.hooks import Hook
from workbench.primitives.sites import Cell, Component, Site, checked_cells, sites
from workbench.primitives.suffix import Run, record, resumes_exactly, run_from
from workbench.primitives.sweep.checkpoint import Checkpoint, identity
from workbench.primitives.sweep.cost import Cost, Shape
from workbench.primitives.sweep.edit import Edit
from workbench.primitives.sweep.engine import sweep
from workbench.primitives.sweep.plan import rows_at_once
from workbench.primitives.sweep.readout import Readout
from workbench.primitives.sweep.request import Request
from workbench.primitives.two_runs import check_runs, donor_rows, measure_all, places, share_of_gap

if TYPE_CHECKING:
    from pathlib import Path

    from workbench.models import Model

__all__ = ["Cell", "Component", "Patched", "Site", "estimate_cells", "patch_cells", "share_of_gap", "sites"]


@dataclass(frozen=True)
class Patched:
    """What patching each cell did, per example, NaN where an example lacks one of the cell's positions.

    Attributes:
        values: by metric, `[cell, example]`, float64.
        base, other: by metric, `[example]`, of the two runs.
        method: "sweep" when the sweep engine did it, "fork" when layers below a cell were not computed again, else
            "hooks" (whole forwards); all are exact.
        cost: as planned, with the seconds that the speed of the base run promised.
        notes: what was given up, and why; empty when everything went the fast way.
    """

    cells: tuple[Cell, ...]
    values: dict[str, np.ndarray]
    base: dict[str, np.ndarray]
    other: dict[str, np.ndarray]
    method: str
    cost: Cost
    notes: tuple[str, ...] = ()

    def effect(self, metric: str) -> np.ndarray:
        """`[cell, example]`: value - base."""
        return self.values[metric] - self.base[metric]

    def share(self, metric: str, *, least: float = 0.0) -> np.ndarray:
        """`[cell, example]`: the part of the way from base to other; see `share_of_gap`."""
        return share_of_gap(self.values[metric], self.base[metric], self.other[metric], least=least)


def patch_cells(
    model: Model,
    base: Int[Tensor, "n pos"],
    other: Int[Tensor, "n pos"],
    cells: Sequence[Site | Sequence[Site]],
    readouts: Mapping[str, Readout],
    *,
    attention_mask: Int[Tensor, "n pos"] | None = None,
    donors: Sequence[int] | None = None,
    batch_rows: int | None = None,
    checkpoint: str | Path | None = None,
) -> Patched:
    """Patch each cell of the base run with activations of the other run, and measure every example.

    Args:
        base, other: token rows, padded on the left where they differ in length, both runs alike.
        cells: a site, or several that are exchanged at once.
        readouts: metrics by the name their values go under; KL is against the base run.
        attention_mask: 1 for real tokens, of both runs.
        donors: row of the other run that each example takes its activations from; default its own.
        batch_rows: prompts per forward pass; default what the machine likes.
        checkpoint: folder for finished layers; the same patching, started again after it was killed, goes on from there
            and gives the same bits. Needs readouts with `key()`.

    Memory: the base run's stream, `n_layers x n x pos x d_model`, and the other run's activations at the sites.

    Raises:
        InputError: a site that the model does not have, a position that no example has, shapes that do not fit.
        CapabilityError: the model does not let this component be exchanged alone.
    """
    asked = _Asked(model, base, other, cells, readouts, attention_mask, donors, batch_rows)
    with torch.no_grad():
        if asked.swept is not None:
            return asked.by_sweep(asked.swept, readouts, checkpoint)
        return asked.by_cells(readouts, checkpoint)


def estimate_cells(
    model: Model,
    base: Int[Tensor, "n pos"],
    cells: Sequence[Site | Sequence[Site]],
    *,
    n_metrics: int = 1,
    attention_mask: Int[Tensor, "n pos"] | None = None,
    batch_rows: int | None = None,
    controls: int = 0,
) -> Cost:
    """What `patch_cells` would cost, done `1 + controls` times."""
    names = {str(i): None for i in range(n_metrics)}
    return _Asked(model, base, base, cells, names, attention_mask, None, batch_rows).cost(controls)


class _Asked:
    """A patching that was asked for, checked, and the way it is done."""

    def __init__(
        self,
        model: Model,
        base: Tensor,
        other: Tensor,
        cells: Sequence[Site | Sequence[Site]],
        readouts: Mapping[str, Any],
        attention_mask: Tensor | None,
        donors: Sequence[int] | None,
        batch_rows: int | None,
    ):
        if not readouts:
            raise InputError("Patching needs at least one metric.")
        check_runs(base, other, attention_mask)
        self.cells = checked_cells(model, cells)
        self.model, self.base, self.other, self.mask = model, base, other, attention_mask
        self.take = donor_rows(donors, len(base))
        self.shape = Shape.of(model)
        self.size = batch_rows or rows_at_once(model, self.shape, base.shape[1])
        self.jobs = Jobs(self.cells, base, attention_mask)
        self.fork = resumes_exactly(model)
        self.starts = [min(site.layer for site in cell) if self.fork else 0 for cell in self.cells]
        self.notes = () if self.fork else ("resuming at a block is not exact here, so patching runs full forwards",)
        self.swept = self._sweepable(readouts, batch_rows)

    def _sweepable(self, readouts: Mapping[str, Any], batch_rows: int | None) -> Request | None:
        """The sweep that does the same: one whole head per cell, one metric, its own batch size."""
        heads = [
            (cell[0].layer, cell[0].index)
            for cell in self.cells
            if len(cell) == 1 and cell[0].component is Component.Z and cell[0].positions is None
        ]
        if len(heads) < len(self.cells) or len(readouts) > 1 or batch_rows is not None:
            return None
        (metric,) = readouts.values()
        edit, donated = Edit("patch"), self.other[self.take.to(self.other.device)]
        return Request(self.model, self.base, self.mask, donated, heads, edit, metric, 0, None, 0, "auto")

    def by_sweep(self, asked: Request, readouts: Mapping[str, Readout], checkpoint: str | Path | None) -> Patched:
        done = sweep(
            self.model,
            self.base,
            units=asked.units,
            edit=asked.edit,
            metric=asked.metric,  # type: ignore[arg-type]
            attention_mask=self.mask,
            other=asked.other,
            checkpoint=checkpoint,
        )
        here, there = (self._recorded(tokens) for tokens in (self.base, self.other))
        (name,) = readouts
        method = "sweep" if done.method == "fork" else "hooks"
        return self._result({name: done.values}, readouts, here, there, method, done.cost, done.notes)

    def by_cells(self, readouts: Mapping[str, Readout], checkpoint: str | Path | None) -> Patched:
        kept = Checkpoint(checkpoint, None if checkpoint is None else self.key(readouts))
        names = sorted({site.hook for cell in self.cells for site in cell})
        started = time.perf_counter()
        here = self._recorded(self.base, parts=("stream",))
        n, n_pos = self.base.shape
        speed = n * self.shape.full(n_pos, logits_at=1) / (time.perf_counter() - started)
        there = self._recorded(self.other, names=names)
        source = {name: value[self.take.to(value.device)] for name, value in there.kept.items()}
        cost = self.cost().at_speed(speed)

        def work(start: int, cell: np.ndarray, example: Tensor) -> dict[str, np.ndarray]:
            logits = run_from(self.model, here, start, example, hooks=self.jobs.hooks(source, cell, example))
            assert logits is not None
            return measure_all(readouts, logits, example, here)

        label = f"patching, {cost.duration}"
        values = batches.measured(work, self.starts, n, list(readouts), size=self.size, kept=kept, label=label)
        for c, defined in enumerate(self.jobs.defined):
            for name in readouts:
                values[name][c, ~defined] = np.nan
        return self._result(values, readouts, here, there, "fork" if self.fork else "hooks", cost, self.notes)

    def _recorded(self, tokens: Tensor, **options: Any) -> Run:
        options = {"parts": (), **options}
        return record(self.model, tokens, attention_mask=self.mask, batch_rows=self.size, **options)

    def _result(
        self,
        values: dict[str, np.ndarray],
        readouts: Mapping[str, Readout],
        here: Run,
        there: Run,
        method: str,
        cost: Cost,
        notes: Sequence[str],
    ) -> Patched:
        everyone = torch.arange(len(self.base))
        base, other = (measure_all(readouts, run.logits, everyone, here) for run in (here, there))
        return Patched(self.cells, values, base, other, method, cost, tuple(notes))

    def cost(self, controls: int = 0) -> Cost:
        (n, n_pos), shape, last = self.base.shape, self.shape, self.model.n_layers - 1
        if self.swept is not None:
            return self.swept.cost.times(1 + controls)
        once = 0
        for start, cell in zip(self.starts, self.cells, strict=True):
            once += 2 * shape.unembed + sum(shape.block(layer, n_pos) for layer in range(start, last))
            once += shape.block(last, n_pos) if last in {site.layer for site in cell} else shape.last_block(n_pos)
        itemsize = torch.empty((), dtype=self.model.dtype).element_size()
        kept = shape.base_bytes(n_pos, self.model.n_layers, itemsize, other=False)
        cost = Cost(
            method="fork" if self.fork else "hooks",
            units=len(self.cells),
            examples=n,
            controls=0,
            forwards=2 * -(-n // self.size) + batches.n_batches(self.starts, n, self.size),
            rows=self.size,
            flops=float(n * (once + 2 * shape.full(n_pos, logits_at=1))),
            reference_flops=float(n * len(self.cells) * shape.full(n_pos, logits_at=n_pos)),
            bytes=n * kept + self.size * shape.row_bytes(n_pos, itemsize),
        )
        return cost.times(1 + controls)

    def key(self, readouts: Mapping[str, Readout]) -> list[Any]:
        """Everything that decides the numbers, JSON-able."""
        return [
            "patching",
            *identity(self.model, self.base, self.mask, self.other),
            [[(site.component.value, site.layer, site.index, site.positions) for site in cell] for cell in self.cells],
            self.take.tolist(),
            {name: readout.key() for name, readout in readouts.items()},
            self.starts,
            self.size,
        ]


class Jobs:
    """Cells x examples as rows of batches: the hooks that give each row its own patch."""

    def __init__(self, cells: Sequence[Cell], tokens: Int[Tensor, "n pos"], attention_mask: Tensor | None):
        self.cells = cells
        n, self.n_pos = tokens.shape
        wanted = {site.positions for cell in cells for site in cell}
        found = {p: places(n, self.n_pos, p, attention_mask) for p in wanted}
        self.where = {p: columns for p, (columns, _) in found.items()}
        self.defined = [
            np.logical_and.reduce([found[site.positions][1].numpy() for site in cell]) for cell in self.cells
        ]

    def hooks(self, source: Mapping[str, Tensor], cell: np.ndarray, example: Int[Tensor, " batch"]) -> list[Hook]:
        """One hook per point that a cell of this batch touches."""
        touched: dict[str, Bool[Tensor, "batch pos index"]] = {}
        for row, number in enumerate(cell):
            for site in self.cells[number]:
                width = 1 if site.index is None else source[site.hook].shape[2]
                if site.hook not in touched:
                    touched[site.hook] = torch.zeros(len(cell), self.n_pos, width, dtype=torch.bool)
                touched[site.hook][row, :, site.index or 0] |= self.where[site.positions][example[row]]
        return [(name, _replace(mask, source[name][example.to(source[name].device)])) for name, mask in touched.items()]


def _replace(mask: Bool[Tensor, "batch pos index"], values: Tensor) -> Any:
    def edit(activation: Tensor, _: Any) -> Tensor:
        where = mask.to(activation.device)
        where = where[..., None] if activation.ndim == 4 else where
        return torch.where(where, values.to(activation.dtype), activation)

    return edit
