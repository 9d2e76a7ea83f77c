"""A sweep before it runs: what was asked, checked against the model, with its plan, its cost and its identity.

Whatever can be wrong with a request is an error here. It runs no forward but the exactness check, once per model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from workbench.errors import CapabilityError, InputError
from workbench.primitives.sweep import units as unit_sets
from workbench.primitives.sweep.checkpoint import identity
from workbench.primitives.sweep.cost import Cost, Shape
from workbench.primitives.sweep.edit import Edit, shuffled
from workbench.primitives.sweep.exactness import exactness
from workbench.primitives.sweep.fork import Way
from workbench.primitives.sweep.plan import Plan, batches, make_plan
from workbench.primitives.sweep.prompts import Prompts
from workbench.primitives.sweep.units import by_lowest_layer, in_one_layer

if TYPE_CHECKING:
    from workbench.models import Model

Method = Literal["auto", "fork", "hooks"]
Metric = Callable[..., Tensor]


@dataclass
class Request:
    """What a sweep was asked for, checked, and what follows from it before anything runs.

    `units`, `edit` and `prompts` are the checked forms; `groups` are unit numbers by the layer where their edit begins;
    `way` is how to fork (None: full forwards); `plan` and `cost` are as planned, `notes` what was given up.
    """

    model: Model
    tokens: Tensor
    attention_mask: Tensor | None
    other: Tensor | None
    requested: Sequence[Any]
    requested_edit: Edit | str
    metric: Metric | None
    controls: int
    budget: int | None
    seed: int
    method: Method
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        model = self.model
        self.edit = self.requested_edit if isinstance(self.requested_edit, Edit) else Edit(self.requested_edit)
        model.require("head_axis_ok", "head_ablation_ok")
        self.units = unit_sets.checked(model, self.requested)
        if self.controls < 0 or (self.controls and not all(map(in_one_layer, self.units))):
            raise InputError(
                f"controls={self.controls} needs units that lie in one layer each; leave controls out, or split them."
            )
        self.groups = by_lowest_layer(self.units)
        self.layers = sorted({layer for unit in self.units for layer, _ in unit})
        self.shape = Shape.of(model)
        everyone = Prompts.checked(self.tokens, self.attention_mask, self._other())
        self.prompts = everyone.to(model.device)
        self.way = self._choose()
        self.plan: Plan = make_plan(
            model,
            self.prompts,
            self.shape,
            n_layers=len(self.layers),
            budget=self.budget,
            other=self.edit.needs_other,
        )
        self.cost = self._cost()

    def timed(self, flops_per_second: float) -> Cost:
        return self.cost.at_speed(flops_per_second)

    def _other(self) -> Tensor | None:
        """Tokens of the second run, each beside the example it is put into."""
        if self.edit.kind == "resample":
            source = self.tokens if self.other is None else self.other
            checked = Prompts.checked(self.tokens, self.attention_mask, source)
            order = shuffled(checked.padding * self.tokens.shape[1] + checked.last.cpu(), self.seed)
            return source[torch.tensor(order, device=source.device)]
        if self.edit.kind == "patch":
            if self.other is None:
                raise InputError("The edit `patch` needs `other`: the tokens of the run that is patched in.")
            return self.other
        return None

    def _choose(self) -> Way | None:
        """How to fork; None for full forwards with hooks."""
        if self.method == "hooks":
            return None
        found = exactness(self.model)
        if found.way is None and self.method == "fork":
            raise CapabilityError(f"Model {self.model.name!r} cannot be forked: {found.note}; use method='auto'.")
        if found.note:
            self.notes.append(found.note)
        return found.way

    def _cost(self) -> Cost:
        shape, n, edits = self.shape, len(self.prompts), 1 + self.controls
        # every example at its own length; chunks hold examples of similar length
        lengths = [self.prompts.tokens.shape[1]] * n
        if self.prompts.mask is not None:
            lengths = self.prompts.mask.sum(dim=1).tolist()
        extra = {"uniform": 1, "patch": 1, "resample": 1, "mean": 1}.get(self.edit.kind, 0)
        once = sum(shape.full(pos, logits_at=1) for pos in lengths) * (1 + extra)
        flops, forwards = once, len(self.plan.chunks) * (1 + extra)
        for layer, group in self.groups.items():
            for pos in lengths:
                for number in group:
                    heads = len(self.units[number])
                    one = shape.full(pos, logits_at=1) if self.way is None else shape.fork(layer, pos, heads, self.way)
                    flops += one * edits
            alone = self.way is None or not all(in_one_layer(self.units[number]) for number in group)
            for members in self.plan.chunks:
                size = min(self.plan.rows, len(members)) if alone else self.plan.rows
                forwards += edits * sum(1 for _ in batches(len(group), len(members), size))
        itemsize = torch.empty((), dtype=self.model.dtype).element_size()
        longest = max(lengths)
        working = self.plan.rows * shape.row_bytes(longest, itemsize)
        kept = shape.base_bytes(longest, len(self.layers), itemsize, other=self.edit.needs_other)
        return Cost(
            method="hooks" if self.way is None else "fork",
            units=len(self.units),
            examples=n,
            controls=self.controls,
            forwards=forwards,
            rows=self.plan.rows,
            flops=float(flops),
            reference_flops=float(len(self.units) * edits * sum(shape.full(pos, logits_at=pos) for pos in lengths)),
            bytes=working + kept * max(map(len, self.plan.chunks)),
        )

    def key(self) -> list[Any]:
        """Everything that decides the numbers, JSON-able."""
        if not hasattr(self.metric, "key"):
            raise InputError("A sweep with a checkpoint needs a metric with a key(), such as a `Readout`.")
        return [
            *identity(self.model, self.tokens, self.attention_mask, self.prompts.other),
            self.units,
            self.edit.key(),
            self.metric.key(),  # type: ignore[union-attr]
            self.controls,
            self.seed,
            self.cost.method,
            self.plan.chunks,
            self.plan.rows,
        ]
