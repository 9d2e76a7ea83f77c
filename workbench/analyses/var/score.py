"""The arithmetic of visual attention sinks: massive coordinates, sinks, image-centric heads, redistribution.

    RMS(x)  = sqrt(mean_d x_d^2 + 1e-6)
    phi(x)  = max over sink dimensions d of |x_d / RMS(x)|; a token is a sink where phi > tau
    r       = attention on image tokens that are no sinks / attention on all image tokens
    a head is image-centric, for one query, when its image attention is at least 0.2 and r at least rho
    redistribution of one row: sinks keep 1 - m of their attention; the rest is spread over the image tokens that are
    no sinks, in proportion to what they have, so that the row's sum stays

Tensors in, tensors out; it never knows a model.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.analyses.var.params import Convention

_EPS = 1e-6


def magnitude(x: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
    """|x_d / RMS(x)| of every coordinate."""
    x = x.float()
    return x.abs() / (x.square().mean(dim=-1, keepdim=True) + _EPS).sqrt()


def phi(x: Float[Tensor, "*rest d_model"], dimensions: tuple[int, ...]) -> Float[Tensor, "*rest"]:
    """The largest magnitude among the sink dimensions; 0 when there are none."""
    if not dimensions:
        return x.new_zeros(x.shape[:-1], dtype=torch.float32)
    return magnitude(x)[..., list(dimensions)].amax(dim=-1)


def sink_dimensions(anchor: Float[Tensor, "example layer d_model"], tau: float) -> tuple[int, ...]:
    """Dimensions whose magnitude at the anchor, median over examples, exceeds tau in at least one layer.

    Args:
        anchor: magnitudes of the text sink's coordinates, layers that count only.
    """
    if not anchor.shape[1]:
        return ()
    massive = middle(anchor) > tau
    return tuple(int(d) for d in massive.any(dim=0).nonzero()[:, 0])


def middle(values: Float[Tensor, "example ..."]) -> Tensor:
    """Median over the first axis, the mean of the two middle ones where their number is even."""
    ordered, n = values.sort(dim=0).values, values.shape[0]
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def masses(
    pattern: Float[Tensor, "row head query key"], image: Bool[Tensor, "row key"], sinks: Bool[Tensor, "row key"]
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention `[row, head, query]` on the image, on visual sinks, and on sinks of the text."""
    pattern = pattern.float()

    def on(keys: Tensor) -> Tensor:
        return (pattern * keys[:, None, None].to(pattern)).sum(dim=-1)

    return on(image), on(image & sinks), on(sinks & ~image)


def image_centric(
    image: Float[Tensor, "*rest"], sink: Float[Tensor, "*rest"], *, min_mass: float, rho: float, convention: Convention
) -> Bool[Tensor, "*rest"]:
    """Whether enough attention is on the image, and enough of that off its sinks."""
    return (image >= min_mass) & (image > 0) & (image - sink >= least_share(rho, convention) * image)


def least_share(rho: float, convention: Convention) -> float:
    """The least r of an image-centric head; the released code bounds 1 - r by rho."""
    return rho if convention == "paper" else 1 - rho


def moved(p: float, convention: Convention) -> float:
    """The share m of the sinks' attention that leaves them; the released code names what stays."""
    return p if convention == "paper" else 1 - p


def redistributed(
    pattern: Float[Tensor, "row head query key"],
    image: Bool[Tensor, "row key"],
    sinks: Bool[Tensor, "row key"],
    share: float,
) -> Float[Tensor, "row head query key"]:
    """Every row with `share` of its sinks' attention moved; rows without attention on other image tokens stay."""
    precise = pattern.to(torch.promote_types(pattern.dtype, torch.float32))
    giver, taker = (keys[:, None, None].to(precise) for keys in (sinks, image & ~sinks))
    budget = share * (precise * giver).sum(dim=-1, keepdim=True)
    held = (precise * taker).sum(dim=-1, keepdim=True)
    new = precise * (1 - share * giver + taker * budget / held.clamp(min=torch.finfo(precise.dtype).tiny))
    return torch.where(held > 0, new, precise).to(pattern.dtype)
