"""Which heads read a feature: what their queries, keys and values lose when what the feature writes is taken away.

    direct    |read(x) W - read(x - f d) W| / |read(x) W + b|   at the input x of the head's block, all else as it was
    total     |q - q'| / |q|, q' from a run in which the feature is taken out of the hook point and all after it runs on

W is W_Q, W_K or W_V, `read` the norm before attention, d what the feature writes to the stream at activation 1. Both
are means over the tokens where the feature is active; keys and values are those of the head's kv group. `null` is the
direct one with a random direction of the norm of d. Position by position, before rotary embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.errors import CapabilityError
from workbench.primitives.attribution.wiring import Wiring, hook_name, identity, wide, wiring
from workbench.primitives.capture import capture
from workbench.primitives.hooks import hooked
from workbench.progress import bar
from workbench.saes.place import Place, batches

if TYPE_CHECKING:
    from workbench.models import Model
    from workbench.saes import Sae

INPUTS = ("q", "k", "v")


def reading_layers(model: Model, place: Place) -> list[int]:
    """Layers whose heads read the stream after the place."""
    return list(range(place.layer + (place.kind != "resid_pre"), model.n_layers))


def written(model: Model, place: Place, rows: Float[Tensor, "f d_in"]) -> Float[Tensor, "f d_model"]:
    """What decoder rows add to the stream.

    Raises:
        CapabilityError: the place is z, and its output passes a norm before the stream.
    """
    if place.kind != "z":
        return rows
    block = wiring(model).blocks[place.layer]
    if block.write_attn is not identity:
        raise CapabilityError(
            f"Heads of {model.name!r} reach the stream through a norm after attention, so what a feature at "
            f"{place.name!r} writes has no one direction; set read to false."
        )
    return torch.einsum("fhe,hem->fm", rows.view(len(rows), *place.shape).to(block.w_o), block.w_o).to(rows.device)


def direct_reads(
    model: Model,
    place: Place,
    tokens: Int[Tensor, "n pos"],
    mask: Tensor | None,
    removed: Float[Tensor, "n pos f"],
    active: Bool[Tensor, "n pos f"],
    directions: Float[Tensor, "f d_model"],
    *,
    rows: int,
) -> Float[np.ndarray, "f layer head input"]:
    """The direct loss of every head for every feature; NaN for heads that lie before, and features never active."""
    layers = reading_layers(model, place)
    wired: Wiring = wiring(model)
    total = np.full((len(directions), model.n_layers, model.n_heads, len(INPUTS)), np.nan)
    total[:, layers] = 0
    group = torch.tensor([model.kv_group(head) for head in range(model.n_heads)])
    names = [hook_name(layer, what) for layer in layers for what in ("x", *INPUTS)]
    for part in batches(len(tokens), rows) if layers else ():
        kept = None if mask is None else mask[part]
        acts = capture(model, tokens[part], names, attention_mask=kept)
        for layer in layers:
            block, x = wired.blocks[layer], acts[hook_name(layer, "x")]
            for f, direction in enumerate(directions):
                at = active[part][..., f].to(x.device)
                here = x[at]  # [token, d_model]
                gone = removed[part][..., f].to(x.device)[at][:, None] * direction.to(x.device)
                away = (here - gone).to(here.dtype)
                lost = wide(block.read_attn(here[None])[0]) - wide(block.read_attn(away[None])[0])
                for i, what in enumerate(INPUTS):
                    change = torch.einsum("tm,hme->the", lost, block.w_in(what)).norm(dim=-1)
                    share = change / wide(acts[hook_name(layer, what)][at]).norm(dim=-1).clamp(min=1e-12)
                    summed = share.double().sum(0).cpu()
                    total[f, layer, :, i] += (summed if what == "q" else summed[group]).numpy()
    with np.errstate(invalid="ignore"):
        return total / np.where(_counts(active) > 0, _counts(active), np.nan)[:, None, None, None]


def total_reads(
    model: Model,
    place: Place,
    sae: Sae,
    tokens: Int[Tensor, "n pos"],
    mask: Tensor | None,
    features: Sequence[int],
    active: Bool[Tensor, "n pos f"],
    *,
    rows: int,
) -> Float[np.ndarray, "f layer head input"]:
    """The loss of every head when each feature is taken out at the place and the model runs on."""
    layers = reading_layers(model, place)
    total = np.full((len(features), model.n_layers, model.n_heads, len(INPUTS)), np.nan)
    total[:, layers] = 0
    group = torch.tensor([model.kv_group(head) for head in range(model.n_heads)])
    names = [hook_name(layer, what) for layer in layers for what in INPUTS]
    with bar(len(features), "removing features") as shown:
        for f, feature in enumerate(features) if layers else ():

            def without(x: Tensor, feature: int = feature) -> Tensor:
                return x - sae.encode(x)[..., feature, None] * sae.decoder[feature]

            for part in batches(len(tokens), rows):
                kept = None if mask is None else mask[part]
                clean = capture(model, tokens[part], names, attention_mask=kept)
                with hooked(model, [place.edit(without)]):
                    after = capture(model, tokens[part], names, attention_mask=kept)
                at = active[part][..., f]
                for layer in layers:
                    for i, what in enumerate(INPUTS):
                        name = hook_name(layer, what)
                        there = at.to(clean[name].device)
                        was, now = wide(clean[name][there]), wide(after[name][there])
                        share = (was - now).norm(dim=-1) / was.norm(dim=-1).clamp(min=1e-12)
                        summed = share.double().sum(0).cpu()
                        total[f, layer, :, i] += (summed if what == "q" else summed[group]).numpy()
            shown.update(1)
    with np.errstate(invalid="ignore"):
        return total / np.where(_counts(active) > 0, _counts(active), np.nan)[:, None, None, None]


def _counts(active: Bool[Tensor, "n pos f"]) -> Float[np.ndarray, " f"]:
    return active.sum((0, 1)).double().cpu().numpy()
