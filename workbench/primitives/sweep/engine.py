"""The sweep: apply an edit to every unit, measure a metric on every prompt, exactly and without repeating work.

1. Check the model and the request; measure once per model whether the residual fork is exact (`exactness`).
2. Cut prompts and units into batches (`plan`), say what it will cost (`cost`), look for finished parts (`checkpoint`).
3. Per chunk of prompts: one base run (`base`); per layer, every unit and control as forks of it (`fork`), or as full
   forwards with hooks where forking is not exact.
4. Read the metric at the last real token of every prompt.

It never knows what the units, the metric or the prompts mean.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.primitives.hooks import hooked
from workbench.primitives.interventions import applied
from workbench.primitives.sweep import controls as random_edits
from workbench.primitives.sweep.base import Base, dataset_means, last_logits, run_base
from workbench.primitives.sweep.checkpoint import Checkpoint
from workbench.primitives.sweep.cost import Cost, flops_per_second
from workbench.primitives.sweep.edit import Edit, interventions
from workbench.primitives.sweep.exactness import begin
from workbench.primitives.sweep.fork import Start, Way, output_weights, run_fork
from workbench.primitives.sweep.plan import batches, out_of_memory
from workbench.primitives.sweep.prompts import Prompts
from workbench.primitives.sweep.request import Method, Metric, Request
from workbench.primitives.sweep.team import Key
from workbench.primitives.sweep.units import Unit, in_one_layer
from workbench.progress import bar

if TYPE_CHECKING:
    from pathlib import Path

    from workbench.models import Model

T = TypeVar("T")


@dataclass
class SweepResult:
    """What a sweep measured.

    Attributes:
        values: metric of every unit's edit on every example, float64.
        base: metric of the unedited run.
        controls: the same for random edits of equal size; no rows when none were asked for.
        units: the heads of each row.
        method: `fork` or `hooks`.
        cost: as planned; `cost.seconds` is an estimate made after the first base run.
        notes: what was given up, and why; empty when everything went the fast way.
        seconds: what it took.
    """

    values: Float[np.ndarray, "unit example"]
    base: Float[np.ndarray, " example"]
    controls: Float[np.ndarray, "draw unit example"]
    units: tuple[Unit, ...]
    method: str
    cost: Cost
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


def sweep(
    model: Model,
    tokens: Int[Tensor, "example pos"],
    *,
    units: Sequence[Any],
    edit: Edit | str,
    metric: Metric,
    attention_mask: Int[Tensor, "example pos"] | None = None,
    other: Int[Tensor, "example pos"] | None = None,
    controls: int = 0,
    budget: int | None = None,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    method: Method = "auto",
) -> SweepResult:
    """Measure `metric` on every prompt with `edit` applied to every unit, at every position of the prompt.

    Args:
        units: heads `(layer, head)`, or sets of them that are edited together; see `all_heads`, `all_kv_groups`.
        edit: an `Edit`, or the name of one without options.
        metric: `metric(logits [batch, vocab], rows [batch]) -> [batch]`, logits of the last real token and the numbers
            of the examples they belong to; with an attribute `needs_base`, it is also given the base run's logits.
            `Readout` makes the usual ones.
        other: tokens of a second run, for `patch` (required) and `resample` (default: `tokens`).
        controls: how many random edits of equal size to make for every unit and example (`controls`).
        budget: working memory in bytes; default a share of the machine's.
        checkpoint: folder for finished parts. The same sweep, started again after it was killed, goes on from there
            and gives the same numbers, bit for bit on the same machine with as many threads. Needs a metric with
            `key()`.
        seed: of `resample` and of the controls.
        method: `fork` and `hooks` insist; `auto` forks where that is exact.

    Raises:
        InputError: heads, shapes or options that do not fit.
        CapabilityError: the model's head outputs cannot be edited faithfully.
    """
    asked = Request(model, tokens, attention_mask, other, units, edit, metric, controls, budget, seed, method)
    return _Run(asked, checkpoint).result()


def estimate(
    model: Model,
    tokens: Int[Tensor, "example pos"],
    *,
    units: Sequence[Any],
    edit: Edit | str,
    attention_mask: Int[Tensor, "example pos"] | None = None,
    controls: int = 0,
    budget: int | None = None,
    method: Method = "auto",
    timed: bool = True,
) -> Cost:
    """What `sweep` with these arguments would cost; `timed` runs two forwards of one batch to tell the seconds."""
    kind = edit if isinstance(edit, Edit) else Edit(edit)
    other = tokens if kind.needs_other else None
    planned = Request(model, tokens, attention_mask, other, units, kind, None, controls, budget, 0, method)
    if not timed:
        return planned.cost
    chunk = planned.prompts.take(planned.plan.chunks[0])
    return planned.timed(flops_per_second(model, planned.shape, chunk.tokens, chunk.mask))


class _Run:
    """A request being worked on: what changes while it runs."""

    def __init__(self, asked: Request, folder: str | Path | None):
        self.asked, self.model = asked, asked.model
        self.kept = Checkpoint(folder, None if folder is None else asked.key())
        sizes = self.kept.sizes
        longest = max(map(len, asked.plan.chunks))
        self.rows = min(asked.plan.rows, sizes.get("rows", asked.plan.rows))  # of a batch of edits
        self.piece = min(longest, sizes.get("piece", longest))  # examples of a base run
        self.cost, self.notes = asked.cost, list(asked.notes)
        self.weights: dict[int, Tensor] = {}

    def result(self) -> SweepResult:
        started = time.perf_counter()
        asked = self.asked
        n = len(asked.prompts)
        values = np.full((1 + asked.controls, len(asked.units), n), np.nan)
        base_values = np.full(n, np.nan)
        chunks = asked.plan.chunks
        with torch.no_grad(), bar(values.size, f"sweep by {self.cost.method}") as shown:
            made: set[Key] = set()
            means: dict[int, Tensor] | None = None
            base: Base | None = None
            at = -1  # the chunk of `base`

            def make(key: Key) -> dict[str, Tensor]:
                nonlocal means, base, at
                number, layer = key
                if at != number:
                    means = self._means() if means is None else means
                    base = None  # never two in memory
                    base, at = self._base(chunks[number], means), number
                assert base is not None
                made.add(key)
                return self._layer(base, layer, asked.groups[layer], means, shown)

            keys = [(number, layer) for number in range(len(chunks)) for layer in asked.groups]
            for key, part in self.kept.parts(keys, make):
                members, group = chunks[key[0]], asked.groups[key[1]]
                values[np.ix_(range(len(values)), group, members)] = part["values"].numpy()
                base_values[members] = part["base"].numpy()
                if key not in made:
                    shown.update(part["values"].numel())
        self.kept.remove()
        return SweepResult(
            values=values[0],
            base=base_values,
            controls=values[1:],
            units=asked.units,
            method=self.cost.method,
            cost=self.cost,
            notes=tuple(self.notes),
            seconds=time.perf_counter() - started,
        )

    def _means(self) -> dict[int, Tensor] | None:
        asked = self.asked
        if asked.edit.kind != "mean":
            return None
        if asked.edit.values is not None:
            return {layer: value.to(self.model.device) for layer, value in asked.edit.values.items()}
        chunks = [asked.prompts.take(members) for members in asked.plan.chunks]
        return self._fitting(lambda: dataset_means(self.model, chunks, asked.layers, piece=self.piece), "piece")

    def _base(self, members: list[int], means: dict[int, Tensor] | None) -> Base:
        asked, chunk = self.asked, self.asked.prompts.take(members)
        options: dict[str, Any] = {"means": means, "stream": asked.way is not None}
        started = time.perf_counter()
        base = self._fitting(
            lambda: run_base(self.model, chunk, asked.edit, asked.layers, piece=self.piece, **options), "piece"
        )
        if self.cost.seconds is None:
            flops = len(chunk) * asked.shape.full(chunk.tokens.shape[1], logits_at=1)
            self.cost = asked.timed(flops / (time.perf_counter() - started))
        return base

    def _layer(
        self, base: Base, layer: int, group: list[int], means: dict[int, Tensor] | None, shown: Any
    ) -> dict[str, Tensor]:
        """Values `[1 + controls, unit, example]` of units whose edit begins in `layer`, and the base's `[example]`."""
        asked = self.asked
        together = [number for number in group if asked.way is not None and in_one_layer(asked.units[number])]
        jobs = [together] if together else []
        jobs += [[number] for number in group if number not in together]  # one unit to a batch
        place = {number: i for i, number in enumerate(group)}
        out = torch.full((1 + asked.controls, len(group), len(base.prompts)), torch.nan, dtype=torch.float64)
        for draw in range(1 + asked.controls):
            for numbers in jobs:

                def work(draw: int = draw, numbers: list[int] = numbers) -> Tensor:
                    return self._edited(base, layer, numbers, draw - 1, means)

                out[draw, [place[number] for number in numbers]] = self._fitting(work, "rows")
                shown.update(len(numbers) * len(base.prompts))
        return {"values": out, "base": self._measure(base.logits, base.prompts, base.logits)}

    def _edited(self, base: Base, layer: int, numbers: list[int], draw: int, means: dict[int, Tensor] | None) -> Tensor:
        """Values `[unit, example]` of units of one group: edited (draw -1), or one draw of the random edit."""
        out = torch.full((len(numbers), len(base.prompts)), torch.nan, dtype=torch.float64)
        for some, examples in batches(len(numbers), len(base.prompts), self.rows):
            chosen = [numbers[i] for i in some]
            part = _cut(base, examples)
            logits = (
                self._by_hooks(part, chosen[0], draw, means)
                if self.asked.way is None
                else self._by_fork(part, layer, chosen, draw, means, self.asked.way)
            )
            batch = part.prompts.repeat(len(chosen))
            base_logits = part.logits.repeat(len(chosen), 1)
            measured = self._measure(logits, batch, base_logits).view(len(chosen), len(examples))
            out[some.start : some.stop, examples.start : examples.stop] = measured
        return out

    def _by_fork(
        self, base: Base, layer: int, numbers: list[int], draw: int, means: dict[int, Tensor] | None, way: Way
    ) -> Tensor:
        """Logits `[unit x example, vocab]`, units outermost."""
        units = [self.asked.units[number] for number in numbers]
        delta = self._delta(base, layer, numbers, draw)  # [unit, example, pos, d_model]
        start = begin(base, layer, delta, way)
        batch = base.prompts.repeat(len(units))
        later = [(at, head) for unit in units for at, head in unit if at > layer]
        if not later:
            return run_fork(self.model, batch, _flat(start), way)
        # a set across layers: fork where it begins, hooks above; such a unit is alone in its batch
        above = interventions(self.asked.edit, tuple(later), other=base.other or None, means=means)
        whole = Way(parallel=way.parallel, tail=False)
        with applied(self.model, above, attention_mask=base.prompts.mask):
            return run_fork(self.model, batch, _flat(begin(base, layer, delta, whole)), whole)

    def _by_hooks(self, base: Base, number: int, draw: int, means: dict[int, Tensor] | None) -> Tensor:
        """Logits `[example, vocab]` of one unit, by a full forward."""
        unit = self.asked.units[number]
        if draw < 0:
            edits = interventions(self.asked.edit, unit, other=base.other or None, means=means)
            with applied(self.model, edits, attention_mask=base.prompts.mask):
                return last_logits(self.model, base.prompts)
        layer = unit[0][0]
        delta = self._delta(base, layer, [number], draw)[0]

        def add(out: Tensor, _: Any) -> Tensor:
            return (out.to(delta.dtype) + delta.reshape(out.shape)).to(out.dtype)

        with hooked(self.model, [(f"blocks.{layer}.attn.o.hook_out", add)], copy=False):
            return last_logits(self.model, base.prompts)

    def _delta(self, base: Base, layer: int, numbers: list[int], draw: int) -> Tensor:
        """The change of the attention output: the edit's, or as large a one in a random direction."""
        if layer not in self.weights:
            self.weights = {layer: output_weights(self.model, layer)}  # one layer's at a time
        weights = self.weights[layer]
        delta = base.delta([self.asked.units[number] for number in numbers], layer, weights)
        if draw < 0:
            return delta
        examples = base.prompts.rows.tolist()
        ways = random_edits.directions(numbers, examples, delta.shape[-1], draw=draw, seed=self.asked.seed)
        return random_edits.of_equal_norm(delta, ways)

    def _measure(self, logits: Tensor, prompts: Prompts, base_logits: Tensor) -> Tensor:
        assert self.asked.metric is not None
        rows = prompts.rows.to(logits.device)
        needs_base = getattr(self.asked.metric, "needs_base", False)
        values = self.asked.metric(logits, rows, base_logits) if needs_base else self.asked.metric(logits, rows)
        return values.detach().double().cpu()

    def _fitting(self, work: Callable[[], T], size: str) -> T:
        """Do it, with half the batch (`rows`) or base piece (`piece`) for as long as memory runs out."""
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                current = self.rows if size == "rows" else self.piece
                if current <= 1 or not out_of_memory(error):
                    raise
                half = current // 2
            if size == "rows":
                self.rows = half
            else:
                self.piece = half
            self.kept.save_sizes(**{size: half})
            self.notes.append(f"memory ran out; {size} per batch halved to {half}")
            if self.model.device.type == "cuda":
                torch.cuda.empty_cache()


def _cut(base: Base, examples: range) -> Base:
    """The same base run, of some of its examples."""
    if len(examples) == len(base.prompts):
        return base
    at = slice(examples.start, examples.stop)
    made = Base(base.prompts.slice(examples.start, examples.stop), base.logits[at])
    for name in ("x", "attn", "z", "new_z", "other"):
        setattr(made, name, {layer: value[at] for layer, value in getattr(base, name).items()})
    made.block_width, made.attn_width = base.block_width, base.attn_width
    return made


def _flat(start: Start) -> Start:
    """`[unit, example, ...]` as one batch axis; what is the same for every unit is repeated."""
    changed = start.x if start.attn is None else start.attn
    n_units = changed.shape[0]
    if start.attn is None:
        return replace(start, x=start.x.flatten(0, 1))
    return replace(start, x=start.x.repeat(n_units, 1, 1), attn=start.attn.flatten(0, 1))
