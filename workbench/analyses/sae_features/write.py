"""Which heads write a feature: directly along its encoder direction, and exactly by taking the head away.

    direct      c_hf(t) = (z_h(t) W_O^h) . e_f, in units of the feature's pre-activation; at hook_z, z_h . e_f[h]
    strength    mean over tokens of |c_hf|
    ablation    mean over tokens where f is active of f(t) - f(t; z_h replaced), everything after h recomputed

Only heads whose output reaches the hook point by addition alone have a direct part: those of all layers below a point
of the stream, those of its own layer at attn_out and z.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import CapabilityError, InputError
from workbench.primitives.attribution.wiring import identity, wide, wiring
from workbench.primitives.capture import capture
from workbench.primitives.interventions import applied
from workbench.primitives.interventions import mean as mean_ablation
from workbench.primitives.interventions import zero as zero_ablation
from workbench.progress import bar
from workbench.saes.place import Place, activations, batches

if TYPE_CHECKING:
    from workbench.models import Model
    from workbench.saes import Sae

AFTER = "does not write there"


def writing_layers(model: Model, place: Place) -> list[int]:
    """Layers whose heads write directly to the place.

    Raises:
        CapabilityError: head outputs pass a norm before they are added to the stream.
    """
    if place.kind == "mlp_out":
        return []
    if place.kind in ("attn_out", "z"):
        return [place.layer]
    layers = list(range(place.layer + (place.kind == "resid_post")))
    blocks = wiring(model).blocks
    if any(blocks[layer].write_attn is not identity for layer in layers):
        raise CapabilityError(
            f"Heads of {model.name!r} reach the stream through a norm after attention, so their parts of a feature do "
            "not add up; study one at hook_z instead."
        )
    return layers


def check_linkable(sae: Sae) -> None:
    """Refuse an autoencoder whose features are not linear in the stream before their nonlinearity."""
    if sae.config.normalize_activations != "none":
        raise InputError(
            f"The autoencoder normalises every input (normalize_activations {sae.config.normalize_activations!r}), so "
            "a feature is no sum of what heads write; choose one without."
        )


class Directions:
    """Directions in the place's space seen from each head: what its z is multiplied with."""

    def __init__(self, model: Model, place: Place, directions: Float[Tensor, "d d_in"]):
        self.model, self.place, self.directions = model, place, directions

    def of(self, layer: int) -> Float[Tensor, "head d_head d"]:
        if self.place.kind == "z":
            return self.directions.view(len(self.directions), *self.place.shape).permute(1, 2, 0)
        block: Any = self.model.bridge.blocks[layer]
        w_o = wide(block.attn.W_O.detach())
        return torch.einsum("hem,dm->hed", w_o, self.directions.to(w_o))


def random_like(directions: Float[Tensor, "d d_in"], draws: int, seed: int) -> Float[Tensor, "draw d d_in"]:
    """Random directions, each of the norm of the one it stands beside."""
    g = torch.Generator().manual_seed(seed)
    drawn = torch.randn(draws, *directions.shape, generator=g, dtype=torch.float64)
    drawn = drawn / drawn.norm(dim=-1, keepdim=True)
    return (drawn * directions.double().cpu().norm(dim=-1, keepdim=True)).to(directions)


def contributions(
    model: Model,
    place: Place,
    tokens: Int[Tensor, "n pos"],
    mask: Tensor | None,
    directions: Float[Tensor, "d d_in"],
    weight: Float[Tensor, "n pos d"],
    *,
    rows: int,
) -> tuple[Float[np.ndarray, "n layer head d"], Float[np.ndarray, "n layer head d"]]:
    """Strength of every head along every direction per prompt, and its weighted sum of signed contributions.

    Args:
        weight: of each token in the signed sum; strengths are means over real tokens.

    Memory: z of one batch, and `batch x pos x head x direction` for one layer.
    """
    shape = (len(tokens), model.n_layers, model.n_heads, len(directions))
    strength, signed = np.full(shape, np.nan), np.full(shape, np.nan)
    layers = writing_layers(model, place)
    seen_from = Directions(model, place, directions)
    if not layers:
        return strength, signed
    names = {layer: f"blocks.{layer}.attn.hook_z" for layer in layers}
    for part in batches(len(tokens), rows):
        kept = None if mask is None else mask[part]
        z = capture(model, tokens[part], list(names.values()), attention_mask=kept, stop_at_layer=max(layers) + 1)
        real = torch.ones_like(tokens[part], dtype=torch.bool) if kept is None else kept.bool()
        for layer, name in names.items():
            each = torch.einsum("nphe,hed->nphd", wide(z[name]), seen_from.of(layer).to(z[name].device)).to(real.device)
            each = torch.where(real[:, :, None, None], each, 0)
            count = real.sum(-1)[:, None, None]
            strength[part, layer] = (each.abs().sum(1) / count).double().cpu().numpy()
            total = torch.einsum("nphd,npd->nhd", each, weight[part].to(each))
            signed[part, layer] = total.double().cpu().numpy()
    return strength, signed


def ablation_effects(
    model: Model,
    place: Place,
    sae: Sae,
    tokens: Int[Tensor, "n pos"],
    mask: Tensor | None,
    features: Sequence[int],
    clean: Float[Tensor, "n pos f"],
    weight: Float[Tensor, "n pos f"],
    *,
    how: str,
    rows: int,
) -> Float[np.ndarray, "n layer head f"]:
    """Weighted sum over tokens of what each feature loses when a head is ablated; NaN for heads after the place.

    Args:
        clean: activations of the features in the untouched run.
    """
    last = place.layer + (place.kind != "resid_pre")
    found = np.full((len(tokens), model.n_layers, model.n_heads, len(features)), np.nan)
    means = _mean_z(model, tokens, mask, last, rows) if how == "mean" else {}
    chosen = torch.tensor(list(features), device=tokens.device)
    with bar(last * model.n_heads, "ablating heads") as shown:
        for layer in range(last):
            for head in range(model.n_heads):
                edit = zero_ablation([(layer, head)]) if how == "zero" else mean_ablation([(layer, head)], means)
                for part in batches(len(tokens), rows):
                    kept = None if mask is None else mask[part]
                    with applied(model, [edit], attention_mask=kept):
                        x = activations(model, place, tokens[part], kept, rows=rows)
                    lost = (clean[part] - sae.encode(x)[..., chosen]) * weight[part]
                    found[part, layer, head] = lost.sum(1).double().cpu().numpy()
                shown.update(1)
    return found


def _mean_z(model: Model, tokens: Tensor, mask: Tensor | None, last: int, rows: int) -> dict[int, Tensor]:
    """Mean of z over all real tokens, by layer."""
    names = {layer: f"blocks.{layer}.attn.hook_z" for layer in range(last)}
    total: dict[int, Tensor] = {}
    count = 0
    for part in batches(len(tokens), rows):
        kept = None if mask is None else mask[part]
        z = capture(model, tokens[part], list(names.values()), attention_mask=kept, stop_at_layer=last)
        real = torch.ones_like(tokens[part], dtype=torch.bool) if kept is None else kept.bool()
        count += int(real.sum())
        for layer, name in names.items():
            total[layer] = total.get(layer, 0) + z[name][real.to(z[name].device)].double().sum(0)
    return {layer: (value / count).to(model.dtype) for layer, value in total.items()}
