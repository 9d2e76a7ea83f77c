"""The forward and backward passes of attribution: what two runs hold, and gradients on the way from one to the other.

    base run, other run     token rows of one shape, position by position alike
    path                    where gradients are taken: fractions f of the way from the other run to the base run; f
                            moves the stream that enters block 0 (the token embeddings), and all above it follows

`(1,)` is the gradient at the base run: attribution patching and EAP. Several fractions, averaged, are integrated
gradients (EAP-IG). This file never knows what the gradients are multiplied with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.errors import CapabilityError, InputError, did_you_mean
from workbench.primitives.forward import forward
from workbench.primitives.hooks import Hook, hooked
from workbench.primitives.two_runs import check_runs

if TYPE_CHECKING:
    from workbench.models import Model

ENTRY = "blocks.0.hook_in"  # the stream as it enters the first block
Metric = Callable[..., Tensor]
Rule = Literal["midpoint", "left", "right"]
AT_BASE: tuple[float, ...] = (1.0,)
NOT_DIFFERENTIABLE = {
    "kl": "the KL divergence from the base run is at its minimum there, so its gradient is zero and every score would "
    "be; take logit_diff, or patch exactly with activation_patching",
    "rank": "a rank is a whole number, so its gradient is zero almost everywhere; take logit_diff or log_prob",
}


def integration_path(steps: int, *, rule: Rule = "midpoint", from_other: bool = True) -> tuple[float, ...]:
    """Fractions of the way from the other run to the base run at which `steps` gradients are averaged.

    `midpoint` ((k + 1/2) / m) has the smallest error and is the same from both ends. `left` (k = 0 .. m - 1) and
    `right` (k = 1 .. m) count from one end, the other run unless `from_other` is False.
    """
    if steps < 1:
        raise InputError(f"Integrated gradients need at least one step, not {steps}.")
    offset = {"left": 0.0, "midpoint": 0.5, "right": 1.0}[rule]
    path = [(k + offset) / steps for k in range(steps)]
    return tuple(path if from_other else [1.0 - f for f in reversed(path)])


@dataclass
class Pass:
    """Activations of one forward pass, by hook name, and where asked for the metric's gradients with respect to them.

    Attributes:
        values: metric per example, float32 or better; NaN where a logit is not finite.
    """

    values: Float[Tensor, " n"]
    acts: dict[str, Tensor]
    grads: dict[str, Tensor]


@dataclass
class Pair:
    """The two runs of a batch, and what is needed to run points between them.

    Attributes:
        tokens: of the base run.
        rows: number of each example, for the metric.
        where: positions at which activations are exchanged; None for all.
        base, other: their passes, without gradients unless the path is `AT_BASE`.
    """

    model: Model
    tokens: Int[Tensor, "n pos"]
    mask: Int[Tensor, "n pos"] | None
    metric: Metric
    rows: Int[Tensor, " n"]
    where: Bool[Tensor, "n pos"] | None
    path: tuple[float, ...]
    base: Pass
    other: Pass
    wanted: tuple[Sequence[str], Sequence[str]]

    @property
    def weight(self) -> float:
        """Of one gradient in their mean."""
        return 1.0 / len(self.path)

    def passes(self) -> Iterator[Pass]:
        """One pass with gradients per fraction of the path."""
        if self.path == AT_BASE:
            yield self.base
            return
        for fraction in self.path:
            # lerp is exact at both ends, so that the ends of the path are the runs themselves
            start = torch.lerp(self.other.acts[ENTRY], self.base.acts[ENTRY], fraction)
            yield run(self.model, self.tokens, self.mask, self.metric, self.rows, *self.wanted, start=start)

    def exchanged(self, change: Float[Tensor, "n pos *rest"]) -> Tensor:
        """`change` where activations are exchanged, 0 elsewhere."""
        return only(change, self.where)

    def undefined(self) -> Tensor:
        """Examples whose metric is not a number in one of the runs."""
        return ~(self.base.values.isfinite() & self.other.values.isfinite())


class Options(TypedDict, total=False):
    """How two runs are compared; the same for nodes and edges.

    rows: numbers of the examples, given to the metric; default 0, 1, 2, ...
    attention_mask: 1 for real tokens, of both runs.
    where: positions at which activations are exchanged (of an edge: of its sender); default all.
    path: where gradients are taken; default `AT_BASE`.
    """

    rows: Int[Tensor, " n"] | None
    attention_mask: Int[Tensor, "n pos"] | None
    where: Bool[Tensor, "n pos"] | None
    path: Sequence[float]


def open_pair(
    model: Model,
    base: Int[Tensor, "n pos"],
    other: Int[Tensor, "n pos"],
    metric: Metric,
    options: Options,
    *,
    grads_of: Sequence[str],
    keep: Sequence[str],
) -> Pair:
    """Run both ends.

    Args:
        grads_of: hook names whose gradients are wanted along the path; their activations are kept too.
        keep: hook names whose activations are wanted.

    Raises:
        InputError: shapes that do not fit, padding on the right, a metric without a useful gradient.
        CapabilityError: the model's head outputs cannot be edited faithfully.
    """
    for name in options:
        if name not in Options.__annotations__:
            raise InputError(f"Attribution has no option {name!r}.{did_you_mean(name, Options.__annotations__)}")
    attention_mask = options.get("attention_mask")
    check_runs(base, other, attention_mask)
    refusal = NOT_DIFFERENTIABLE.get(getattr(metric, "name", ""))
    if refusal:
        raise InputError(f"Attribution needs a metric with a gradient: {refusal}.")
    model.require("head_ablation_ok")
    path = tuple(float(f) for f in options.get("path", AT_BASE))
    if not path:
        raise InputError("The path needs at least one point; (1.0,) is the base run.")
    rows = options.get("rows")
    rows = torch.arange(len(base)) if rows is None else rows
    everything = sorted({ENTRY, *grads_of, *keep})
    wanted = (sorted({ENTRY, *grads_of}), everything)
    first = wanted[0] if path == AT_BASE else ()
    at_base = run(model, base, attention_mask, metric, rows, first, everything)
    at_other = run(model, other, attention_mask, metric, rows, (), everything)
    where = exchange_places(base.shape, options.get("where"), attention_mask)
    return Pair(model, base, attention_mask, metric, rows, where, path, at_base, at_other, wanted)


def run(
    model: Model,
    tokens: Int[Tensor, "n pos"],
    mask: Int[Tensor, "n pos"] | None,
    metric: Metric,
    rows: Int[Tensor, " n"],
    grads_of: Sequence[str] = (),
    keep: Sequence[str] = (),
    *,
    start: Float[Tensor, "n pos d_model"] | None = None,
) -> Pass:
    """One forward pass, and a backward pass when `grads_of` names anything.

    Args:
        start: put in place of the stream that enters block 0.

    Memory: the activations of one forward and backward pass, freed before this returns, and the kept ones.

    Raises:
        CapabilityError: an activation in `grads_of` does not take part in what the model computes.
    """
    backward = bool(grads_of)
    live: dict[str, Tensor] = {}

    def see(name: str) -> Hook:
        def mark(value: Tensor, _: Any) -> Tensor:
            if name == ENTRY:
                value = value if start is None else start.to(value.dtype)
                value = value.detach().clone().requires_grad_(backward)
            # a view of its own: its gradient counts what reads this activation here, not what else uses the tensor
            live[name] = value.view_as(value)
            return live[name]

        return name, mark

    names = sorted({ENTRY, *grads_of, *keep})
    with hooked(model, [see(name) for name in names], copy=False):
        logits = forward(model, tokens, attention_mask=mask, logits_to_keep=1, grad=backward).logits[:, -1]
    with torch.set_grad_enabled(backward):
        values = metric(logits, rows)
    grads: dict[str, Tensor] = {}
    if backward:
        found = torch.autograd.grad(values.nansum(), [live[name] for name in grads_of], allow_unused=True)
        for name, grad in zip(grads_of, found, strict=True):
            if grad is None:
                raise CapabilityError(
                    f"The metric of {model.name!r} has no gradient at {name!r}: the architecture does not use what the "
                    f"hook returns."
                )
            grads[name] = grad.detach()
    return Pass(values.detach(), {name: live[name].detach() for name in keep}, grads)


def exchange_places(
    shape: torch.Size, where: Bool[Tensor, "n pos"] | None, mask: Int[Tensor, "n pos"] | None
) -> Bool[Tensor, "n pos"] | None:
    """Where activations are exchanged: never at padding, where they are arbitrary.

    Raises:
        InputError: `where` has another shape than the tokens.
    """
    if where is not None and where.shape != shape:
        raise InputError(f"`where` has shape {list(where.shape)}, but the runs have {list(shape)}.")
    if mask is None:
        return where
    return mask.bool() if where is None else where.to(mask.device) & mask.bool()


def only(change: Float[Tensor, "n pos *rest"], where: Bool[Tensor, "n pos"] | None) -> Tensor:
    """`change` at the positions `where`, 0 elsewhere."""
    if where is None:
        return change
    kept = where.to(change.device)
    return torch.where(kept.view(*kept.shape, *[1] * (change.ndim - 2)), change, 0)
