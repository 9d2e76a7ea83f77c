"""Vectors of every prompt under every ablation, by the sweep engine's residual fork, with a group ablated all along.

The engine's `sweep` measures one number per prompt with no group underneath; Sahara needs the final hidden states, and
all of them at once, because an angle belongs to a set of prompts. So this walks the same parts: a base run with the
group ablated (spec 3.8 f), forks from each unit's layer, where the group's heads in higher layers are ablated again,
the last block and what follows at the last position only. It keeps vectors of one band of layers at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.analyses.ships.ablations import Ablation, Head
from workbench.primitives.hooks import hooked
from workbench.primitives.sweep import Edit, Shape, Unit, exactness
from workbench.primitives.sweep.base import Base, last_logits, run_base
from workbench.primitives.sweep.controls import directions, of_equal_norm
from workbench.primitives.sweep.exactness import begin
from workbench.primitives.sweep.fork import Start, output_weights, run_fork
from workbench.primitives.sweep.plan import batches, make_plan
from workbench.primitives.sweep.prompts import Prompts

if TYPE_CHECKING:
    from workbench.models import Model

Read = Literal["states", "logits"]
BAND_BYTES = 2**28  # of vectors held at once


class Forks:
    """Prompts and an ablation, with `group` ablated in everything that is run.

    Attributes:
        read: what is kept of each run: the final hidden state (after the final norm) or the logits, at the last token.
        method: `fork` or, where that is not exact, `hooks`; `note` says why.
    """

    def __init__(
        self,
        model: Model,
        tokens: Int[Tensor, "n pos"],
        mask: Tensor | None,
        ablation: Ablation,
        *,
        group: Sequence[Head] = (),
        read: Read = "states",
        seed: int = 0,
        budget: int | None = None,
    ):
        ablation.require(model)
        self.model, self.ablation, self.group, self.read, self.seed = model, ablation, tuple(group), read, seed
        self.prompts = Prompts.checked(tokens, mask, None).to(model.device)
        found = exactness(model)
        self.way, self.note = found.way, found.note
        self.shape = Shape.of(model)
        plan = make_plan(model, self.prompts, self.shape, n_layers=model.n_layers, budget=budget, other=False)
        self.chunks, self.rows = plan.chunks, plan.rows

    @property
    def method(self) -> str:
        return "hooks" if self.way is None else "fork"

    @torch.no_grad()
    def base(self) -> Float[Tensor, "n k"]:
        """The vectors with only the group ablated."""
        out: list[Tensor | None] = [None] * len(self.prompts)
        for members in self.chunks:
            chunk = self.prompts.take(members)
            with self.ablation.on(self.model, self.group), self._taking() as taken:
                logits = last_logits(self.model, chunk)
            _put(out, members, taken[-1] if taken else logits)
        return torch.stack([row for row in out if row is not None])

    def bands(self, units: Sequence[Unit]) -> Iterator[list[int]]:
        """Numbers of units whose vectors are kept together: as many layers as fit `BAND_BYTES`."""
        width = self.model.d_model if self.read == "states" else self.shape.d_vocab
        size = max(1, BAND_BYTES // (len(self.prompts) * width * 4))
        band: list[int] = []
        for layer in sorted({unit[0][0] for unit in units}):
            here = [number for number, unit in enumerate(units) if unit[0][0] == layer]
            if band and len(band) + len(here) > size:
                yield band
                band = []
            band += here
        if band:
            yield band

    @torch.no_grad()
    def vectors(
        self, units: Sequence[Unit], numbers: Sequence[int], *, draw: int | None = None
    ) -> Float[Tensor, "unit n k"]:
        """Vectors with each of `units[numbers]` ablated on top of the group, on the CPU.

        `draw`: a random edit of equal size in its place (see the sweep's controls).
        """
        out: Tensor | None = None
        layers = sorted({units[number][0][0] for number in numbers})
        place = {number: i for i, number in enumerate(numbers)}
        for members in self.chunks:
            chunk = self.prompts.take(members)
            base = self._run(chunk, layers)
            for layer in layers:
                here = [number for number in numbers if units[number][0][0] == layer]
                weights = output_weights(self.model, layer)
                for some, _ in batches(len(here), len(chunk), self.rows):
                    chosen = here[some.start : some.stop]
                    delta = base.delta([units[number] for number in chosen], layer, weights)
                    if draw is not None:
                        ways = directions(chosen, chunk.rows.tolist(), delta.shape[-1], draw=draw, seed=self.seed)
                        delta = of_equal_norm(delta, ways)
                    rows = self._edited(base, layer, delta)
                    if out is None:
                        out = torch.empty(len(numbers), len(self.prompts), rows.shape[-1], dtype=rows.dtype)
                    at = torch.tensor([place[number] for number in chosen])
                    out[at[:, None], torch.tensor(members)[None]] = rows.view(len(chosen), len(members), -1).cpu()
        assert out is not None
        return out

    def flops(self, units: Sequence[Unit], *, draws: int = 0) -> float:
        """What `vectors` of these units will cost by the sweep's model, base runs included."""
        lengths = [self.prompts.tokens.shape[1]] * len(self.prompts)
        if self.prompts.mask is not None:
            lengths = self.prompts.mask.sum(dim=1).tolist()
        bands = sum(1 for _ in self.bands(units))
        total = float(sum(self.shape.full(pos, logits_at=1) for pos in lengths) * bands * (1 + draws))
        for unit in units:
            for pos in lengths:
                full = self.shape.full(pos, logits_at=1)
                one = full if self.way is None else self.shape.fork(unit[0][0], pos, len(unit), self.way)
                total += one * (1 + draws)
        return total

    def _run(self, chunk: Prompts, layers: Sequence[int]) -> Base:
        """The base run with the group ablated, and z' of every head of `layers`."""
        edit = self.ablation.edit
        made: dict[int, Tensor] = {}
        watch = nullcontext() if edit else self.ablation.watched(self.model, layers, made)
        with watch, self.ablation.on(self.model, self.group):
            base = run_base(self.model, chunk, edit or Edit("zero"), layers, stream=self.way is not None)
        if edit is None:
            base.new_z = made
        return base

    def _edited(self, base: Base, layer: int, delta: Float[Tensor, "unit n pos d_model"]) -> Float[Tensor, "row k"]:
        """Vectors of every unit and example, units outermost."""
        batch = base.prompts.repeat(len(delta))
        # up to the fork the group's edits are in the base run already, and nothing there runs again
        above = self.group if self.way is None else tuple(head for head in self.group if head[0] > layer)
        with self.ablation.on(self.model, above), self._taking() as taken:
            if self.way is not None:
                logits = run_fork(self.model, batch, _flat(begin(base, layer, delta, self.way)), self.way)
            else:
                change = delta.flatten(0, 1)

                def add(out: Tensor, _: Any) -> Tensor:
                    return (out.to(change.dtype) + change.reshape(out.shape)).to(out.dtype)

                with hooked(self.model, [(f"blocks.{layer}.attn.o.hook_out", add)], copy=False):
                    logits = last_logits(self.model, batch)
        return taken[-1] if taken else logits

    @contextmanager
    def _taking(self) -> Iterator[list[Tensor]]:
        """Final hidden states at the last column, of the forwards inside the block; nothing when logits are read."""
        taken: list[Tensor] = []
        if self.read == "logits":
            yield taken
            return

        def take(x: Float[Tensor, "batch pos d_model"], _: Any) -> None:
            taken.append(x[:, -1].detach().to(torch.promote_types(x.dtype, torch.float32)))

        with hooked(self.model, [("unembed.hook_in", take)], copy=False):
            yield taken


def _put(out: list[Tensor | None], members: Sequence[int], rows: Tensor) -> None:
    for member, row in zip(members, rows, strict=True):
        out[member] = row.cpu()


def _flat(start: Start) -> Start:
    """`[unit, example, ...]` as one batch axis; what is the same for every unit is repeated."""
    if start.attn is None:
        return replace(start, x=start.x.flatten(0, 1))
    return replace(start, x=start.x.repeat(start.attn.shape[0], 1, 1), attn=start.attn.flatten(0, 1))
