"""Interventions on attention heads, installed on a model for as long as a block runs.

`algebra` says what an intervention is; `applied` puts a list of them onto the hook points, checked against what the
model can do, exactly the same in one long forward, in chunks and in cached decoding: every edit is a function of the
current rows only. It never knows which analysis asked, or how tokens are produced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.errors import CapabilityError, InputError
from workbench.primitives.algebra import (
    Intervention,
    Kind,
    Scope,
    by_layer,
    mean,
    mean_z,
    new_z,
    patch,
    reinforce,
    resample,
    scale,
    uniform,
    visible,
    zero,
)
from workbench.primitives.forward import n_padding
from workbench.primitives.hooks import Hook, hooked

if TYPE_CHECKING:
    from workbench.models import Model

__all__ = [
    "Intervention",
    "Kind",
    "Phase",
    "Scope",
    "applied",
    "by_layer",
    "mean",
    "mean_z",
    "patch",
    "reinforce",
    "resample",
    "scale",
    "uniform",
    "zero",
]


@dataclass
class Phase:
    """Where the next forward pass is. Whoever runs several of them sets this between them.

    Attributes:
        name: what `Scope` is compared with.
        offset: column of the token matrix of the first row that the next forward computes.
    """

    name: Literal["prefill", "decode"] = "prefill"
    offset: int = 0


@contextmanager
def applied(
    model: Model, interventions: Sequence[Intervention], *, attention_mask: Int[Tensor, "batch pos"] | None = None
) -> Iterator[Phase]:
    """Apply `interventions` to every forward pass inside the block.

    Order: `uniform` changes the attention pattern, so it acts before all others on the same head whatever its place in
    the list; the others act on z in the order given, each on what the one before left. Layers act in the model's order.

    Positions: an intervention's `positions` are columns of the token matrix. With `attention_mask` (of the prompt, as
    given to `forward`) they count from each row's first real token instead, so that a left-padded batch is treated as
    its examples are alone. `Phase.offset` is always a column.

    Exactness: z is edited in the model's dtype, a mean is taken in float32 and cast at the end, so an edit that
    changes nothing changes no bit. A uniform row has weights 1/n, rounded to the model's dtype.

    Raises:
        InputError: heads or source values that do not fit the model.
        CapabilityError: an edit that this architecture would not carry out faithfully.
    """
    for intervention in interventions:
        _check(model, intervention)
    phase = Phase()
    padding = None if attention_mask is None else n_padding(attention_mask).cpu()
    plans = [_Plan(intervention, phase, padding) for intervention in interventions]
    hooks: list[Hook] = []
    for layer in sorted({layer for i in interventions for layer in i.layers}):
        here = [plan for plan in plans if layer in plan.intervention.layers]
        even = [plan for plan in here if plan.intervention.kind is Kind.UNIFORM]
        rest = [plan for plan in here if plan.intervention.kind is not Kind.UNIFORM]
        hooks.append((_entry(layer), _look))
        if even:
            hooks += _uniform_hooks(model, layer, even)
        if rest:
            hooks.append((f"blocks.{layer}.attn.hook_z", _z_hook(layer, rest)))
    with hooked(model, hooks, must_fire=False, copy=False) as log:
        yield phase
    for name, count in log.fired.items():  # a layer that was never reached (no forward, an early stop) owes nothing
        if count == 0 and log.fired[_entry(int(name.split(".")[1]))]:
            raise CapabilityError(f"Model {model.name!r} never fires {name!r}, so the intervention there did nothing.")


def _entry(layer: int) -> str:
    return f"blocks.{layer}.hook_in"


def _look(_: Tensor, __: Any) -> None:
    """Fires when the layer is computed, and does nothing."""


class _Plan:
    """One intervention with the phase it lives in: decides which rows of the current forward it changes."""

    def __init__(self, intervention: Intervention, phase: Phase, padding: Int[Tensor, " batch"] | None):
        self.intervention, self.phase, self.padding = intervention, phase, padding
        self.positions = None if intervention.positions is None else torch.tensor(intervention.positions)

    def columns(self, n_rows: int) -> Int[Tensor, " pos"]:
        return torch.arange(self.phase.offset, self.phase.offset + n_rows)

    def places(self, n_rows: int, batch: int) -> Int[Tensor, "rows pos"]:
        """Token position of every row; negative for padding."""
        if self.padding is None:
            return self.columns(n_rows)[None]
        if len(self.padding) != batch:
            raise InputError(
                f"The attention mask given to `applied` has {len(self.padding)} rows for a batch of {batch} examples."
            )
        return self.columns(n_rows)[None] - self.padding[:, None]

    def rows(self, n_rows: int, batch: int) -> Bool[Tensor, "rows pos"] | Literal[False] | None:
        """Rows to change: a mask, None for all of them, False for none of them."""
        scope = self.intervention.scope
        if scope is not Scope.ALL and scope.value != self.phase.name:
            return False
        if self.positions is None:
            return None
        wanted = torch.isin(self.places(n_rows, batch), self.positions)
        return wanted if bool(wanted.any()) else False


def _z_hook(layer: int, plans: list[_Plan]) -> Any:
    def edit(z: Float[Tensor, "batch pos head d_head"], _: Any) -> Tensor | None:
        batch, n_rows = z.shape[:2]
        active = [(plan, rows) for plan in plans if (rows := plan.rows(n_rows, batch)) is not False]
        z = z.clone()
        for plan, rows in active:
            heads = torch.tensor(plan.intervention.in_layer(layer), device=z.device)
            old = z[:, :, heads]
            new = new_z(
                plan.intervention,
                layer,
                old,
                columns=plan.columns(n_rows),
                places=plan.places(n_rows, batch),
                wanted=rows,
            )
            z[:, :, heads] = new if rows is None else torch.where(rows[..., None, None].to(z.device), new, old)
        return z if active else None

    return edit


def _uniform_hooks(model: Model, layer: int, plans: list[_Plan]) -> list[Hook]:
    """Hooks that make the plans' heads in `layer` attend equally to the keys they can see."""
    attn = f"blocks.{layer}.attn"
    if model.capabilities.pattern_edit_is_causal and model.hf is not None:
        even = _EvenPattern(model, layer, plans)
        return [(f"{attn}.hook_attn_scores", even.see), (f"{attn}.hook_pattern", even.edit)]
    # q = 0 makes every score equal, also after rotary embedding; native bridges and GPT-J, OPT, ... need this route,
    # and the pattern they report tells whether it was exact
    flat = _ZeroQuery(model, layer, plans)
    flat.check()
    return [(f"{attn}.hook_q", flat.edit), (f"{attn}.hook_pattern", flat.verify)]


class _EvenPattern:
    """Reads which keys are visible from the scores, then rewrites the pattern. Keeps nothing between forwards."""

    def __init__(self, model: Model, layer: int, plans: list[_Plan]):
        self.model, self.layer, self.plans = model, layer, plans
        self.visible: Bool[Tensor, "batch 1 pos key"] | None = None

    def see(self, scores: Float[Tensor, "batch head pos key"], _: Any) -> None:
        batch, _, n_rows, _ = scores.shape
        if any(plan.rows(n_rows, batch) is not False for plan in self.plans):
            head = self.plans[0].intervention.in_layer(self.layer)[0]  # every head of a layer sees the same keys
            self.visible = visible(scores[:, head : head + 1], self.model.dtype)

    def edit(self, pattern: Float[Tensor, "batch head pos key"], _: Any) -> Tensor | None:
        seen, self.visible = self.visible, None
        batch, _, n_rows, _ = pattern.shape
        active = [(plan, rows) for plan in self.plans if (rows := plan.rows(n_rows, batch)) is not False]
        if not active:
            return None
        if seen is None or seen.shape[2:] != pattern.shape[2:]:
            raise CapabilityError(
                f"Model {self.model.name!r} fires no attention scores before the pattern of layer {self.layer}, so the "
                f"keys a head can see are unknown and uniform attention cannot be imposed."
            )
        count = seen.sum(dim=-1, keepdim=True)  # [batch, 1, pos, 1]; 0 in rows that are padding
        precise = torch.promote_types(pattern.dtype, torch.float32)
        even = (seen.to(precise) / count.clamp(min=1)).to(pattern.dtype)
        pattern = pattern.clone()
        for plan, rows in active:
            heads = torch.tensor(plan.intervention.in_layer(self.layer), device=pattern.device)
            change = count > 0
            if rows is not None:
                change = change & rows[:, None, :, None].to(pattern.device)
            pattern[:, heads] = torch.where(change, even, pattern[:, heads])
        return pattern


class _ZeroQuery:
    """Sets q to 0, and checks on the resulting pattern that the rows did become uniform."""

    def __init__(self, model: Model, layer: int, plans: list[_Plan]):
        self.model, self.layer, self.plans = model, layer, plans

    def check(self) -> None:
        """Refuse a norm after hook_q: over all heads at once (OLMo-2), one head's zero would change the others."""
        attn = self.model.bridge.blocks[self.layer].attn
        children = {name for part in (attn, attn.original_component) for name, _ in part.named_children()}
        norms = sorted(name for name in children if "norm" in name and not name.startswith(("k_", "hook_")))
        if norms:
            self._refuse(f"its queries pass through {norms[0]} after hook_q")

    def edit(self, q: Float[Tensor, "batch pos head d_head"], _: Any) -> Tensor | None:
        if q.ndim != 4 or q.shape[2] != self.model.n_heads:
            self._refuse(f"its hook_q has shape {list(q.shape)} instead of one axis for heads")
        batch, n_rows = q.shape[:2]
        q = q.clone()
        for plan in self.plans:
            rows = plan.rows(n_rows, batch)
            if rows is False:
                continue
            for head in plan.intervention.in_layer(self.layer):
                q[:, :, head] = 0 if rows is None else q[:, :, head].masked_fill(rows[..., None].to(q.device), 0)
        return q

    def verify(self, pattern: Float[Tensor, "batch head pos key"], _: Any) -> None:
        batch, _, n_rows, _ = pattern.shape
        for plan in self.plans:
            rows = plan.rows(n_rows, batch)
            if rows is False:
                continue
            p = pattern[:, plan.intervention.in_layer(self.layer)].float()
            seen = p > 0
            most = p.amax(dim=-1)
            spread = most - torch.where(seen, p, most[..., None]).amin(dim=-1)
            tolerance = torch.finfo(pattern.dtype).eps * 4
            wrong = (spread > tolerance * most) | ((p.sum(dim=-1) - 1).abs() > 0.01) & seen.any(dim=-1)
            if rows is not None:
                wrong = wrong & rows[:, None].to(wrong.device)
            if bool(wrong.any()):
                self._refuse("a query of zero attends unevenly there (position bias, query norm or attention sink)")

    def _refuse(self, why: str) -> None:
        raise CapabilityError(
            f"Uniform attention cannot be imposed on layer {self.layer} of {self.model.name!r}: {why}; use `zero` or "
            f"`mean` instead."
        )


def _check(model: Model, intervention: Intervention) -> None:
    """The intervention fits this model, or an error that says what does not."""
    n_layers, n_heads = model.n_layers, model.n_heads
    for layer, head in intervention.heads:
        if not (0 <= layer < n_layers and 0 <= head < n_heads):
            raise InputError(
                f"There is no head ({layer}, {head}) in {model.name!r}; layers are 0 to {n_layers - 1}, heads 0 to "
                f"{n_heads - 1}."
            )
    if intervention.kind is Kind.UNIFORM:
        if not model.capabilities.pattern_edit_is_causal and "blocks.0.attn.hook_q" not in model.bridge.hook_dict:
            model.require("pattern_edit_is_causal")
        return
    model.require("head_ablation_ok")
    if intervention.source is not None:
        for layer in intervention.layers:
            _check_source(model, intervention, layer, intervention.source[layer])


def _check_source(model: Model, intervention: Intervention, layer: int, values: Tensor) -> None:
    kind = intervention.kind
    axes = "[n_heads, d_head] or [pos, n_heads, d_head]" if kind is Kind.MEAN else "[batch, pos, n_heads, d_head]"
    n_axes = (2, 3) if kind is Kind.MEAN else (4,)
    if values.ndim not in n_axes or tuple(values.shape[-2:]) != (model.n_heads, model.d_head):
        raise InputError(
            f"`{kind.value}` in layer {layer} needs values of shape {axes} with n_heads {model.n_heads} and d_head "
            f"{model.d_head}, but got shape {list(values.shape)}."
        )
    named = intervention.source_positions
    if named is not None and len(named) != values.shape[1]:
        raise InputError(
            f"`source_positions` names {len(named)} positions, but the run has {values.shape[1]} in layer {layer}."
        )
