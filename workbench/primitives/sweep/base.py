"""The unedited run of a few prompts, and what forks of it need: computed once, then read by every unit.

Per layer it keeps the block's input, the attention module's output, z, and the z' that the edit puts in its place.
For `uniform`, z' is measured: every attention module runs a second time on the same input, under the very intervention
that `interventions.applied` installs, so that it means the same in every architecture. It never forks anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from workbench.primitives.forward import forward
from workbench.primitives.hooks import Hook, hooked
from workbench.primitives.interventions import Scope, applied, uniform
from workbench.primitives.swap import Call, hidden_in, hidden_out, output_width, swapped
from workbench.primitives.sweep.edit import Edit, replacement
from workbench.primitives.sweep.prompts import Prompts, at_columns
from workbench.primitives.sweep.units import Unit, in_layer

if TYPE_CHECKING:
    from workbench.models import Model


@dataclass
class Base:
    """What the unedited run left behind, by layer.

    Attributes:
        logits: at each example's last real token.
        x: block inputs; entry l + 1 is also the output of block l.
        attn: outputs of the attention modules, before any norm or multiplier of the block.
        z, new_z: head outputs, and what the edit makes of them.
        other: z of the second run, where the edit puts it in.
        block_width, attn_width: the form in which blocks and attention modules return (`swap.output_width`).
    """

    prompts: Prompts
    logits: Float[Tensor, "n vocab"]
    x: dict[int, Float[Tensor, "n pos d_model"]] = field(default_factory=dict)
    attn: dict[int, Float[Tensor, "n pos d_model"]] = field(default_factory=dict)
    z: dict[int, Float[Tensor, "n pos head d_head"]] = field(default_factory=dict)
    new_z: dict[int, Float[Tensor, "n pos head d_head"]] = field(default_factory=dict)
    other: dict[int, Float[Tensor, "n pos head d_head"]] = field(default_factory=dict)
    block_width: dict[int, int | None] = field(default_factory=dict)
    attn_width: dict[int, int | None] = field(default_factory=dict)

    def delta(self, units: Sequence[Unit], layer: int, w_o: Float[Tensor, "head d_head d_model"]) -> Tensor:
        """`(z' - z) W_O` of every unit's heads in `layer`: `[unit, n, pos, d_model]`."""
        dz = (self.new_z[layer] - self.z[layer]).to(w_o.dtype)
        changes = []
        for unit in units:
            heads = in_layer(unit, layer)
            changes.append(dz[:, :, heads].flatten(-2) @ w_o[heads].flatten(0, 1))
        return torch.stack(changes)

    @property
    def n_bytes(self) -> int:
        kept = [
            self.logits,
            *(t for part in (self.x, self.attn, self.z, self.new_z, self.other) for t in part.values()),
        ]
        return sum(t.numel() * t.element_size() for t in kept)


def run_base(
    model: Model,
    prompts: Prompts,
    edit: Edit,
    layers: Sequence[int],
    *,
    means: Mapping[int, Tensor] | None = None,
    piece: int | None = None,
    stream: bool = True,
) -> Base:
    """Run `prompts` unedited (in pieces of `piece` examples) and keep what editing `layers` needs.

    Args:
        stream: keep block inputs and attention outputs as well, for forks.

    Memory: `len(layers) x n x pos x (2 d_model + 2 n_heads d_head)` numbers, in the model's dtype.
    """
    piece = len(prompts) if piece is None else max(1, min(piece, len(prompts)))
    made = [
        _run(model, prompts.slice(start, start + piece), edit, layers, means, stream)
        for start in range(0, len(prompts), piece)
    ]
    if len(made) == 1:
        return made[0]
    whole = Base(prompts, torch.cat([part.logits for part in made]))
    for name in ("x", "attn", "z", "new_z", "other"):
        setattr(
            whole, name, {layer: torch.cat([getattr(p, name)[layer] for p in made]) for layer in getattr(made[0], name)}
        )
    whole.block_width, whole.attn_width = made[0].block_width, made[0].attn_width
    return whole


def dataset_means(
    model: Model, chunks: Sequence[Prompts], layers: Sequence[int], *, piece: int | None = None
) -> dict[int, Float[Tensor, "head d_head"]]:
    """Mean z over every real position of every example, by layer; summed in float64."""
    total: dict[int, Tensor] = {}
    count = 0
    for chunk in chunks:
        for start in range(0, len(chunk), piece or len(chunk)):
            part = chunk.slice(start, start + (piece or len(chunk)))
            real = torch.ones_like(part.tokens) if part.mask is None else part.mask
            count += int(real.sum())
            for layer, z in read_z(model, part.tokens, part.mask, layers).items():
                kept = torch.where(real[..., None, None].to(z.device) > 0, z.double(), 0.0).sum(dim=(0, 1))
                total[layer] = total[layer] + kept if layer in total else kept
    return {layer: value / count for layer, value in total.items()}


def read_z(model: Model, tokens: Tensor, mask: Tensor | None, layers: Sequence[int]) -> dict[int, Tensor]:
    """z by layer from one plain forward."""
    kept: dict[int, Tensor] = {}
    with hooked(model, [_reader(layer, kept) for layer in layers], copy=False):
        forward(model, tokens, attention_mask=mask, logits_to_keep=1)
    return kept


def last_logits(model: Model, prompts: Prompts) -> Float[Tensor, "n vocab"]:
    """Logits at each example's last real token, from one forward pass inside whatever is installed."""
    aligned = prompts.ends_aligned
    logits = forward(model, prompts.tokens, attention_mask=prompts.mask, logits_to_keep=1 if aligned else 0).logits
    return at_columns(logits, prompts.last, axis=1)[:, 0]


def _run(
    model: Model,
    prompts: Prompts,
    edit: Edit,
    layers: Sequence[int],
    means: Mapping[int, Tensor] | None,
    stream: bool,
) -> Base:
    base = Base(prompts, torch.empty(0))
    if edit.needs_other:
        assert prompts.other is not None
        base.other = read_z(model, prompts.other, prompts.mask, layers)
    flat: dict[int, Tensor] = {}  # z under uniform attention
    into = [base.z]  # where the z hooks write: a plain run, or the second run of an attention module
    even = edit.kind == "uniform"
    heads = [(layer, head) for layer in layers for head in range(model.n_heads)]
    everything = [uniform(heads, scope=Scope.DECODE)] if even else []
    blocks = model.bridge.blocks
    replacements: dict[nn.Module, Call] = {}
    hooks: list[Hook] = [_reader(layer, into) for layer in layers]
    with applied(model, everything, attention_mask=prompts.mask) if even else nullcontext() as phase:
        for layer in layers:
            if even:
                replacements[blocks[layer].attn] = _twice(blocks[layer].attn.forward, phase, into, base.z, flat)
        if stream:
            replacements = _recording(model, base, layers, replacements)
        with hooked(model, hooks, copy=False), swapped(replacements):
            base.logits = last_logits(model, prompts)
    if even:
        base.new_z = flat
    else:
        padding = None if prompts.mask is None else prompts.padding
        for layer in layers:
            other = base.other.get(layer)
            base.new_z[layer] = replacement(edit, layer, base.z[layer], other=other, padding=padding, means=means)
    return base


def _recording(
    model: Model, base: Base, layers: Sequence[int], inner: Mapping[nn.Module, Call]
) -> dict[nn.Module, Call]:
    """Blocks and attention modules that leave their inputs and outputs in `base`."""
    made: dict[nn.Module, Call] = {}
    wanted = set(layers)
    for layer, block in enumerate(model.bridge.blocks):
        made[block] = _record_block(block.forward, layer, base, wanted)
        if layer in wanted:
            made[block.attn] = _record_attention(inner.get(block.attn, block.attn.forward), layer, base)
    return made


def _record_block(call: Call, layer: int, base: Base, wanted: set[int]) -> Call:
    def run(*args: Any, **kwargs: Any) -> Any:
        if layer in wanted:
            base.x[layer] = hidden_in(args, kwargs).detach()
        output = call(*args, **kwargs)
        base.block_width[layer] = output_width(output)
        if layer in wanted:
            base.x[layer + 1] = hidden_out(output).detach()
        return output

    return run


def _record_attention(call: Call, layer: int, base: Base) -> Call:
    def run(*args: Any, **kwargs: Any) -> Any:
        output = call(*args, **kwargs)
        base.attn[layer] = hidden_out(output).detach()
        base.attn_width[layer] = output_width(output)
        return output

    return run


def _twice(call: Call, phase: Any, into: list[dict[int, Tensor]], plain: dict, flat: dict) -> Call:
    """The attention module as it is, and once more with uniform attention for the sake of its z."""

    def run(*args: Any, **kwargs: Any) -> Any:
        phase.name, into[0] = "decode", flat
        try:
            call(*args, **kwargs)
        finally:
            phase.name, into[0] = "prefill", plain
        return call(*args, **kwargs)

    return run


def _reader(layer: int, into: Any) -> Hook:
    """A hook that keeps z of `layer` in `into`, or in what the list `into` currently points at."""

    def keep(z: Float[Tensor, "batch pos head d_head"], _: Any) -> None:
        (into[0] if isinstance(into, list) else into)[layer] = z.detach().clone()

    return f"blocks.{layer}.attn.hook_z", keep
