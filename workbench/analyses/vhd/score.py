"""The arithmetic of vision-aware heads: distances, the outlier rule, T-VHD, and which heads are reinforced.

`with_image` and `without` are head outputs z `[..., head, d_head]` of one layer, or of several along any axes in front.
Everything is per layer: means, deviations and medians run over the last axis of heads. Tensors in, tensors out.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.analyses.vhd.params import Variant

_RELEASED_STD = 1.0  # the released code looks for outliers only where VHD spreads more than this
_PAPER_LAYERS, _PAPER_LAST = 32, 14


def precise(x: Tensor) -> Tensor:
    """At least single precision, so that squares of bfloat16 are not rounded."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def divergence(
    with_image: Float[Tensor, "*rest head d_head"], without: Float[Tensor, "*rest head d_head"], variant: Variant
) -> Float[Tensor, "*rest head"]:
    """VHD (eq. 4): the L2 distance of each head's outputs; squared in the released code."""
    square = (precise(with_image) - precise(without)).square().sum(dim=-1)
    return square if variant == "released" else square.sqrt()


def text_norm(without: Float[Tensor, "*rest head d_head"]) -> Float[Tensor, "*rest head"]:
    """TA: squared length of each head's output without the image."""
    return precise(without).square().sum(dim=-1)


def outliers(
    vhd: Float[Tensor, "*rest head"], ta: Float[Tensor, "*rest head"], variant: Variant
) -> Bool[Tensor, "*rest head"]:
    """Heads whose VHD is to be 0 (eq. 6): both VHD and TA above mean + one standard deviation of their layer."""
    if vhd.shape[-1] < 2:
        return torch.zeros_like(vhd, dtype=torch.bool)
    unbiased = variant == "released"
    found = torch.ones_like(vhd, dtype=torch.bool)
    for values in (vhd, ta):
        spread = values.std(dim=-1, unbiased=unbiased, keepdim=True)
        found &= values > values.mean(dim=-1, keepdim=True) + spread
    if unbiased:
        found &= vhd.std(dim=-1, unbiased=True, keepdim=True) > _RELEASED_STD
    return found


def chosen(vhd: Float[Tensor, "*rest head"], variant: Variant) -> Bool[Tensor, "*rest head"]:
    """Heads to reinforce (eq. 7): those above their layer's median; the released code takes the lower median."""
    if variant == "released":
        middle = vhd.median(dim=-1, keepdim=True).values
    else:
        ordered, n = vhd.sort(dim=-1).values, vhd.shape[-1]
        middle = (ordered[..., (n - 1) // 2] + ordered[..., n // 2])[..., None] / 2
    return vhd > middle


def select(
    with_image: Float[Tensor, "*rest head d_head"],
    without: Float[Tensor, "*rest head d_head"],
    *,
    variant: Variant,
    rule: bool,
) -> Bool[Tensor, "*rest head"]:
    """Distances, outlier rule (if `rule`) and median in one."""
    vhd = divergence(with_image, without, variant)
    if rule:
        vhd = vhd.masked_fill(outliers(vhd, text_norm(without), variant), 0.0)
    return chosen(vhd, variant)


def token_divergence(vhd: Float[Tensor, "*rest layer head"], top_k: int | None) -> Float[Tensor, "*rest"]:
    """T-VHD (eq. 5): the sum over layers of the sum of the `top_k` largest VHD (default a quarter of the heads)."""
    n_heads = vhd.shape[-1]
    k = max(1, n_heads // 4) if top_k is None else min(top_k, n_heads)
    return vhd.topk(k, dim=-1).values.sum(dim=(-2, -1))


def reinforced_layers(layers: tuple[int, ...] | None, n_layers: int) -> tuple[int, ...]:
    """The layers named, or the paper's for a model of `n_layers`: layer 1 and the last 14 of 32, in proportion."""
    if layers is not None:
        return tuple(sorted(set(layers)))
    last = round(_PAPER_LAST / _PAPER_LAYERS * n_layers)
    return tuple(sorted({min(1, n_layers - 1), *range(n_layers - max(1, last), n_layers)}))
