"""Which pixels the answer hangs on: the slope of its log-probability, where the picture has detail (`pure_gradient`).

Paper: Zhang et al. 2025, arXiv 2502.17422. With L the log-probability of the most likely next token and g the length,
over colour channels, of dL/dx at each pixel:

    ratio    g(question) / g(general prompt)
    detail   length over channels of the picture minus its blur (3 x 3 Gaussian), then a median filter 7 x 7
    map      mean of ratio [detail > its median over the picture] over the pixels of each image token

Pixels are those the processor made. Where the general prompt's slope is 0 the ratio is undefined and left out of its
cell's mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.errors import InputError
from workbench.primitives.forward import forward

if TYPE_CHECKING:
    from workbench.analyses.vhd.branches import Branch
    from workbench.models import Model

_BLUR, _DEVIATION, _MEDIAN = 3, 0.8, 7  # in pixels


def slopes(model: Model, branch: Branch) -> Float[np.ndarray, "row height width"]:
    """g of every pixel, of the log-probability of each row's most likely next token.

    Raises:
        InputError: the processor makes several pictures of one, or the answer does not depend on the pixels at all.
    """
    padded = branch.padded()
    inputs = dict(padded.inputs or {})
    given = inputs.get("pixel_values")
    if not isinstance(given, Tensor) or given.ndim != 4:
        shape = None if given is None else list(given.shape)
        raise InputError(
            f"pure_gradient needs one picture [channel, height, width] per prompt, but {model.name!r} takes pixels of "
            f"shape {shape}; use 'gradient' or 'relative'."
        )
    leaf = given.to(device=model.device, dtype=model.dtype).clone().requires_grad_()
    options = {**padded.options(), "inputs": {**inputs, "pixel_values": leaf}}
    with torch.enable_grad():
        out = forward(model, padded.tokens, **options, logits_to_keep=1, grad=True)
        log_probs = out.logits[:, -1].log_softmax(dim=-1).amax(dim=-1)
        (slope,) = torch.autograd.grad(log_probs.sum(), leaf, allow_unused=True)
    if slope is None:
        raise InputError(f"The answer of {model.name!r} does not depend on its pixels; its vision tower is detached.")
    return slope.double().norm(dim=1).cpu().numpy()


def pictures(branch: Branch) -> Float[np.ndarray, "row channel height width"]:
    """The pixels as the processor made them, its standardisation undone."""
    values = (branch.images or {})["pixel_values"].double().numpy()
    processor: Any = branch.slot.processor.image_processor
    if getattr(processor, "do_normalize", False):
        mean, std = (np.array(getattr(processor, name), dtype=float) for name in ("image_mean", "image_std"))
        values = values * std[:, None, None] + mean[:, None, None]
    return values


def detail(picture: Float[np.ndarray, "channel height width"]) -> Bool[np.ndarray, "height width"]:
    """Where the picture has more detail than at its median pixel."""
    from scipy import ndimage

    kernel = np.exp(-(((np.arange(_BLUR) - _BLUR // 2) / _DEVIATION) ** 2) / 2)
    blurred = picture
    for axis in (1, 2):
        blurred = ndimage.correlate1d(blurred, kernel / kernel.sum(), axis=axis, mode="mirror")
    strength = np.asarray(ndimage.median_filter(np.linalg.norm(picture - blurred, axis=0), size=_MEDIAN))
    return strength > np.median(strength)


def pooled(
    question: Float[np.ndarray, "height width"],
    general: Float[np.ndarray, "height width"],
    wanted: Bool[np.ndarray, "height width"],
    shape: tuple[int, int],
) -> Float[np.ndarray, "rows columns"]:
    """The map of one picture: the masked ratio, averaged over each cell; NaN where a cell has no defined pixel."""
    ratio = np.full(question.shape, np.nan)
    np.divide(question, general, out=ratio, where=general > 0)
    ratio[~wanted] = 0.0
    rows, columns = (np.array_split(np.arange(side), n) for side, n in zip(ratio.shape, shape, strict=True))
    cells = [[ratio[np.ix_(y, x)] for x in columns] for y in rows]
    return np.array([[np.nanmean(cell) if np.isfinite(cell).any() else np.nan for cell in row] for row in cells])
