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

`transformer_lens.patching` is not used: it takes no attention mask (a left-padded batch is patched and measured at
wrong positions), reports 0 for k and v heads that GQA does not have, and runs one whole forward per cell. This file
never knows which prompt was the clean one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.errors import CapabilityError, InputError, did_you_mean
from workbench.primitives import separable
from workbench.primitives.forward import n_padding
from workbench.primitives.hooks import Hook
from workbench.primitives.suffix import Run, record, resumes_exactly, run_from
from workbench.primitives.sweep.readout import Readout
from workbench.primitives.sweep.units import attention_layers
from workbench.progress import bar

if TYPE_CHECKING:
    from workbench.models import Model


class Component(str, Enum):
    """What a site exchanges."""

    Z = "z"
    Q = "q"
    K = "k"
    V = "v"
    ATTN_OUT = "attn_out"
    MLP_OUT = "mlp_out"
    RESID_PRE = "resid_pre"
    RESID_POST = "resid_post"


_HOOKS = {
    Component.Z: "attn.hook_z",
    Component.Q: "attn.hook_q",
    Component.K: "attn.hook_k",
    Component.V: "attn.hook_v",
    Component.ATTN_OUT: "hook_attn_out",
    Component.MLP_OUT: "hook_mlp_out",
    Component.RESID_PRE: "hook_in",
    Component.RESID_POST: "hook_out",
}
_PER_HEAD = (Component.Z, Component.Q)
_PER_GROUP = (Component.K, Component.V)
TOKENS_AT_ONCE = 4096  # of one forward pass


@dataclass(frozen=True)
class Site:
    """One place where activations are exchanged.

    Attributes:
        component: which activation.
        layer: of the block.
        index: head of z and q, kv group of k and v; None for the others.
        positions: where, None for everywhere. 0, 1, ... count from each row's first real token, -1, -2, ... from the
            last one.
    """

    component: Component
    layer: int
    index: int | None = None
    positions: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.component, Component):
            object.__setattr__(self, "component", _component(self.component))

    @property
    def hook(self) -> str:
        """Name of the hook point."""
        return f"blocks.{self.layer}.{_HOOKS[self.component]}"


Cell: TypeAlias = tuple[Site, ...]


@dataclass(frozen=True)
class Patched:
    """What patching each cell did, per example, NaN where an example lacks one of the cell's positions.

    Attributes:
        values: by metric, `[cell, example]`, float64.
        base, other: by metric, `[example]`, of the two runs.
        method: "fork" when layers below a cell were not computed again, else "hooks"; both are exact.
        n_rows: prompts that went through the model in all, each from its cell's layer on.
    """

    cells: tuple[Cell, ...]
    values: dict[str, np.ndarray]
    base: dict[str, np.ndarray]
    other: dict[str, np.ndarray]
    method: str
    n_rows: int

    def effect(self, metric: str) -> np.ndarray:
        """`[cell, example]`: value - base."""
        return self.values[metric] - self.base[metric]

    def share(self, metric: str, *, least: float = 0.0) -> np.ndarray:
        """`[cell, example]`: the part of the way from base to other; see `share_of_gap`."""
        return share_of_gap(self.values[metric], self.base[metric], self.other[metric], least=least)


def share_of_gap(values: np.ndarray, base: np.ndarray, other: np.ndarray, *, least: float = 0.0) -> np.ndarray:
    """(value - base) / (other - base) per example; NaN where the two runs agree on the metric.

    Agree: the gap is at most `least`, or at most 1e-5 of the larger of the two, which is float32 rounding.
    """
    gap = other - base
    floor = np.maximum(least, 1e-5 * np.maximum(np.abs(base), np.abs(other)))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.abs(gap) > floor, (values - base) / gap, np.nan)


def sites(
    model: Model,
    component: Component | str,
    *,
    layers: Iterable[int] | None = None,
    positions: Sequence[int] | None = None,
) -> list[Site]:
    """Every site of one component: by layer, and by head or kv group where there are such."""
    kind = _component(component)
    with_attention = set(attention_layers(model))
    chosen = range(model.n_layers) if layers is None else layers
    width = model.n_heads if kind in _PER_HEAD else model.n_kv_heads if kind in _PER_GROUP else None
    where = None if positions is None else tuple(positions)
    needs_attention = width is not None or kind is Component.ATTN_OUT
    return [
        Site(kind, layer, index, where)
        for layer in chosen
        if layer in with_attention or not needs_attention
        for index in ([None] if width is None else range(width))
    ]


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
) -> Patched:
    """Patch each cell of the base run with activations of the other run, and measure every example.

    Args:
        base, other: token rows, padded on the left where they differ in length, both runs alike.
        cells: a site, or several that are exchanged at once.
        readouts: metrics by the name their values go under; KL is against the base run.
        attention_mask: 1 for real tokens, of both runs.
        donors: row of the other run that each example takes its activations from; default its own.
        batch_rows: prompts per forward pass; default `TOKENS_AT_ONCE` tokens.

    Memory: the base run's stream, `n_layers x n x pos x d_model`, and the other run's activations at the sites.

    Raises:
        InputError: a site that the model does not have, a position that no example has, shapes that do not fit.
        CapabilityError: the model does not let this component be exchanged alone.
    """
    made = tuple(_checked(model, (cell,) if isinstance(cell, Site) else tuple(cell)) for cell in cells)
    if not made or not readouts:
        raise InputError("Patching needs at least one cell and one metric.")
    check_runs(base, other, attention_mask)
    for component in {site.component for cell in made for site in cell}:
        _require(model, component)
    take = donor_rows(donors, len(base))
    rows_at_once = batch_rows or max(1, TOKENS_AT_ONCE // base.shape[1])
    names = sorted({site.hook for cell in made for site in cell})
    with torch.no_grad():
        fork = resumes_exactly(model)
        here = record(model, base, attention_mask=attention_mask, batch_rows=rows_at_once)
        there = record(model, other, attention_mask=attention_mask, names=names, batch_rows=rows_at_once)
        source = {name: value[take.to(value.device)] for name, value in there.kept.items()}
        values = {name: np.full((len(made), len(base)), np.nan) for name in readouts}
        jobs = Jobs(made, here, attention_mask)
        with bar(jobs.n_rows, "patching") as shown:
            for start, cell, example in jobs.batches(rows_at_once, [_lowest(c) if fork else 0 for c in made]):
                hooks = jobs.hooks(source, cell, example)
                logits = run_from(model, here, start, example, hooks=hooks)
                assert logits is not None
                for name, readout in readouts.items():
                    values[name][cell, example.numpy()] = measure(readout, logits, example, here)
                shown.update(len(cell))
    for c, defined in enumerate(jobs.defined):
        for name in readouts:
            values[name][c, ~defined] = np.nan
    everyone = torch.arange(len(base))
    ends = [{n: measure(r, run.logits, everyone, here) for n, r in readouts.items()} for run in (here, there)]
    return Patched(made, values, ends[0], ends[1], "fork" if fork else "hooks", jobs.n_rows)


class Jobs:
    """Cells x examples as rows of batches, and the hooks that give each row its own patch."""

    def __init__(self, cells: Sequence[Cell], run: Run, attention_mask: Tensor | None):
        self.cells = cells
        self.n, self.n_pos = run.tokens.shape
        self.n_rows = len(cells) * self.n
        wanted = {site.positions for cell in cells for site in cell}
        found = {p: places(self.n, self.n_pos, p, attention_mask) for p in wanted}
        self.where = {p: columns for p, (columns, _) in found.items()}
        self.defined = [
            np.logical_and.reduce([found[site.positions][1].numpy() for site in cell]) for cell in self.cells
        ]

    def batches(self, size: int, starts: Sequence[int]) -> Iterable[tuple[int, np.ndarray, Int[Tensor, " batch"]]]:
        """First layer to compute, cell and example of every row; cells of one start share batches."""
        for start in sorted(set(starts)):
            members = np.flatnonzero(np.asarray(starts) == start)
            cell, example = np.repeat(members, self.n), np.tile(np.arange(self.n), len(members))
            for at in range(0, len(cell), size):
                yield start, cell[at : at + size], torch.from_numpy(example[at : at + size])

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


def places(
    n: int, n_pos: int, positions: Sequence[int] | None, attention_mask: Int[Tensor, "n pos"] | None
) -> tuple[Bool[Tensor, "n pos"], Bool[Tensor, " n"]]:
    """Columns of `positions` in every row, and which rows have all of them.

    0, 1, ... count from a row's first real token, -1, -2, ... from its last; None: every column, in every row.

    Raises:
        InputError: a position that no row has.
    """
    if positions is None:
        return torch.ones(n, n_pos, dtype=torch.bool), torch.ones(n, dtype=torch.bool)
    padding = torch.zeros(n, dtype=torch.long) if attention_mask is None else n_padding(attention_mask).cpu()
    columns = torch.zeros(n, n_pos, dtype=torch.bool)
    defined = torch.ones(n, dtype=torch.bool)
    for position in positions:
        column = padding + position if position >= 0 else torch.full((n,), n_pos + position)
        inside = (column >= padding) & (column < n_pos)
        if not bool(inside.any()):
            raise InputError(f"Position {position} is outside every prompt; the longest has {n_pos} tokens.")
        columns[torch.arange(n)[inside], column[inside]] = True
        defined &= inside
    return columns, defined


def measure(readout: Readout, logits: Float[Tensor, "batch vocab"], example: Tensor, base: Run) -> np.ndarray:
    """Metric of each row, float64; `base` is what KL compares with."""
    compared = base.logits[example.to(base.logits.device)] if readout.needs_base else None
    return readout(logits, example, compared).double().cpu().numpy()


def check_runs(base: Tensor, other: Tensor, attention_mask: Tensor | None) -> None:
    """Two runs that can be patched into one another.

    Raises:
        InputError: naming the shapes, or the row that is padded on the right.
    """
    if base.ndim != 2 or base.shape != other.shape or not base.numel():
        raise InputError(
            f"Both runs must be token rows of one shape [n, pos], not {list(base.shape)} and {list(other.shape)}."
        )
    if attention_mask is not None and attention_mask.shape != base.shape:
        raise InputError(f"The mask has shape {list(attention_mask.shape)}, but the runs have {list(base.shape)}.")
    if attention_mask is not None and not bool(attention_mask[:, -1].all()):
        row = int((attention_mask[:, -1] == 0).nonzero()[0])
        raise InputError(f"Example {row} is padded on the right; pad on the left, so that every prompt ends together.")


def donor_rows(donors: Sequence[int] | None, n: int) -> Int[Tensor, " n"]:
    take = torch.arange(n) if donors is None else torch.as_tensor(donors)
    if take.shape != (n,) or bool(((take < 0) | (take >= n)).any()):
        raise InputError(f"`donors` names one of {n} examples for each of them, not {donors!r}.")
    return take.long()


def _lowest(cell: Cell) -> int:
    return min(site.layer for site in cell)


def _component(value: Any) -> Component:
    try:
        return Component(value)
    except ValueError:
        known = [c.value for c in Component]
        hint = did_you_mean(str(value), known)
        raise InputError(f"{value!r} is not a component to patch.{hint} Choose one of {', '.join(known)}.") from None


def _checked(model: Model, cell: Cell) -> Cell:
    if not cell:
        raise InputError("A cell needs at least one site; leave it out to change nothing.")
    for site in cell:
        if not 0 <= site.layer < model.n_layers:
            raise InputError(f"There is no layer {site.layer} in {model.name!r}; layers are 0 to {model.n_layers - 1}.")
        width = {**dict.fromkeys(_PER_HEAD, model.n_heads), **dict.fromkeys(_PER_GROUP, model.n_kv_heads)}
        n = width.get(site.component)
        if n is None and site.index is not None:
            raise InputError(f"{site.component.value} belongs to the whole layer; leave out index {site.index}.")
        if n is not None and (site.index is None or not 0 <= site.index < n):
            what = "kv group" if site.component in _PER_GROUP else "head"
            raise InputError(
                f"{site.component.value} needs a {what} from 0 to {n - 1} of {model.name!r}, not {site.index}."
            )
        if site.hook not in model.bridge.hook_dict:
            raise CapabilityError(f"Model {model.name!r} has no {site.component.value} in layer {site.layer}.")
    return cell


def _require(model: Model, component: Component) -> None:
    if component is Component.Z:
        model.require("head_ablation_ok")
    elif component in (Component.Q, Component.K, Component.V):
        separable.require_heads(model)
    elif component in (Component.ATTN_OUT, Component.MLP_OUT):
        separable.require_outputs(model)
