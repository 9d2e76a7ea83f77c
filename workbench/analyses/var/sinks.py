"""Which dimensions are massive in this model, and which tokens are sinks: read off its own activations.

Two passes: the first keeps the text sink's residual stream before every layer and finds the dimensions; the second
reduces every token to phi inside the hook, and keeps the last query's attention and head outputs. Nothing as large as
a residual stream of all layers ever exists.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.analyses.var import score
from workbench.analyses.var.params import VarParams
from workbench.analyses.vhd.branches import Branch, Padded
from workbench.errors import InputError
from workbench.primitives.algebra import visible
from workbench.primitives.capture import names
from workbench.primitives.forward import forward
from workbench.primitives.hooks import Hook, hooked

if TYPE_CHECKING:
    from workbench.models import Model
    from workbench.tasks.images import ImageDataset


@dataclass
class Seen:
    """One batch, at the last prompt position unless said otherwise.

    Attributes:
        phi: `[row, layer, pos]` of every token.
        image, real: `[row, pos]`, which tokens are the image, which are no padding.
        visible: `[row, layer, pos]`, which tokens the query may attend to; a weight of 0 does not tell, as small ones
            are rounded to it.
        pattern: `[row, layer, head, pos]`.
        z: `[row, layer, head, d_head]`.
    """

    phi: Float[Tensor, "row layer pos"]
    image: Bool[Tensor, "row pos"]
    real: Bool[Tensor, "row pos"]
    visible: Bool[Tensor, "row layer pos"]
    pattern: Float[Tensor, "row layer head pos"]
    z: Float[Tensor, "row layer head d_head"]


@torch.no_grad()
def anchors(model: Model, branch: Branch, params: VarParams, data: ImageDataset) -> Float[Tensor, "row layer d_model"]:
    """Magnitudes at the text sink before every layer."""
    padded, (_, real) = branch.padded(), marks(branch)
    column = real.long().argmax(dim=1) + params.anchor
    if bool((column >= real.shape[1]).any()):
        raise InputError(
            f"anchor {params.anchor} is beyond the shortest prompt of {data.name!r}, which has "
            f"{min(sample.length for sample in data)} tokens; 0 is its first token."
        )
    rows = torch.arange(len(column))
    return torch.stack(_read(model, padded, "resid_pre", lambda x: score.magnitude(x[rows, column])), dim=1)


def dimensions(anchor: Float[Tensor, "example layer d_model"], params: VarParams) -> tuple[int, ...]:
    """The sink dimensions that were named, or those found."""
    width = anchor.shape[-1]
    if params.dimensions is not None:
        for d in params.dimensions:
            if not 0 <= d < width:
                raise InputError(f"dimensions names {d}, but the residual stream has dimensions 0 to {width - 1}.")
        return tuple(sorted(set(params.dimensions)))
    return score.sink_dimensions(anchor[:, params.first_layer :], params.tau)


def nothing_found(anchor: Float[Tensor, "example layer d_model"], params: VarParams) -> str:
    """Why there are no sink dimensions, in a sentence."""
    n_layers, width = anchor.shape[1:]
    counted = anchor[:, params.first_layer :]
    if not counted.shape[1]:
        return f"none: first_layer is {params.first_layer}, and the model has layers 0 to {n_layers - 1}"
    largest = float(score.middle(counted).max())
    limit = math.sqrt(width)
    bound = f"; at width {width} none can exceed {limit:.1f}" if limit <= params.tau else ""
    return (
        f"none: no coordinate of the token at position {params.anchor} exceeds {params.tau:g} times its RMS (the "
        + (f"largest is {largest:.1f}{bound})")
    )


def look(model: Model, branch: Branch, found: tuple[int, ...]) -> Seen:
    """phi of every token, and the last query's attention and outputs, from one pass."""
    padded, (image, real) = branch.padded(), marks(branch)
    phi: list[Tensor] = []
    allowed: list[Tensor] = []
    pattern: list[Tensor] = []
    z: list[Tensor] = []
    hooks = [
        *_hooks(model, "resid_pre", lambda x: score.phi(x, found), phi),
        *_hooks(model, "attn_scores", lambda scores: visible(scores[:, 0, -1], model.dtype), allowed),
        *_hooks(model, "pattern", lambda a: a[:, :, -1].float(), pattern),
        *_hooks(model, "z", lambda out: out[:, -1].float(), z),
    ]
    with torch.no_grad(), hooked(model, hooks, copy=False):
        forward(model, padded.tokens, **padded.options(), logits_to_keep=1)
    sees = torch.stack(allowed, 1) & real[:, None]
    return Seen(torch.stack(phi, 1), image, real, sees, torch.stack(pattern, 1), torch.stack(z, 1))


def are_sinks(phi: Float[Tensor, "row layer pos"], real: Bool[Tensor, "row pos"], params: VarParams) -> Tensor:
    """Which tokens are sinks `[row, layer, pos]`; none before `first_layer`, padding never."""
    sinks = (phi > params.tau) & real[:, None]
    sinks[:, : params.first_layer] = False
    return sinks


def marks(branch: Branch) -> tuple[Bool[Tensor, "row pos"], Bool[Tensor, "row pos"]]:
    """Which columns of the padded prompts are the image, and which are no padding."""
    longest = max(map(len, branch.rows))
    real = torch.tensor([[i >= longest - len(row) for i in range(longest)] for row in branch.rows])
    return (branch.padded().tokens == branch.slot.token_id) & real, real


def _read(model: Model, padded: Padded, what: str, fn: Callable[[Tensor], Tensor]) -> list[Tensor]:
    out: list[Tensor] = []
    with hooked(model, _hooks(model, what, fn, out), copy=False):
        forward(model, padded.tokens, **padded.options(), logits_to_keep=1)
    return out


def _hooks(model: Model, what: str, fn: Callable[[Tensor], Tensor], out: list[Tensor]) -> list[Hook]:
    """One per layer, in the order in which they fire."""

    def keep(activation: Tensor, _: Any) -> None:
        out.append(fn(activation).cpu())

    return [(name, keep) for name in names(model, what)]
