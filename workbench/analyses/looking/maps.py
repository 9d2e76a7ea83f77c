"""Maps of where the model looks when it answers: plain, relative and gradient-weighted attention, and pixel slopes.

Paper: Zhang et al. 2025, "MLLMs Know Where to Look", arXiv 2502.17422. With A_h the last query's attention on the image
tokens in head h of one layer:

    attention   mean_h A_h
    relative    mean_h A_h(question) / mean_h A_h(general prompt), token by token, nothing added below
    gradient    mean_h A_h ReLU(dL / dA_h), L the log-probability of the most likely next token

and, of the whole model, the slope of L at the pixels (`pure_gradient`, see `pixels`). `attended_crops` turns maps into
the part of each picture to look at again.

Each map is an array [rows, columns] over the part of the picture that the model sees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.analyses.looking import grid, pixels
from workbench.analyses.looking.crop import attended_box
from workbench.analyses.looking.params import GENERAL, Method
from workbench.analyses.vhd.branches import Branch, Views
from workbench.errors import InputError, did_you_mean
from workbench.primitives.capture import names
from workbench.primitives.forward import forward
from workbench.primitives.hooks import hooked

if TYPE_CHECKING:
    from workbench.models import Model
    from workbench.tasks.images import Box, ImageDataset

METHODS: tuple[Method, ...] = ("attention", "relative", "gradient", "pure_gradient")
_PAPER_LAYERS, _PAPER_LAYER = 32, 14


def attention_maps(
    model: Model,
    data: ImageDataset,
    *,
    method: Method = "relative",
    layer: int | None = None,
    general: str = GENERAL,
    template: str | None = None,
    batch_size: int = 8,
) -> list[np.ndarray]:
    """One map `[rows, columns]` per sample.

    Args:
        data: images with prompts; the map says where the model looks at the end of its prompt.
        method: "attention", "relative", "gradient" or "pure_gradient".
        layer: of the attention; default layer 14 of 32, in proportion.
        general: the prompt that `relative` and `pure_gradient` divide by, with `template` around it.

    Example:
        >>> image_map = wb.attention_maps(model, data, method="gradient")[0]  # doctest: +SKIP
        >>> wb.plots.overlay(data[0].image, image_map).save("where.png")  # doctest: +SKIP

    Raises:
        InputError: an unknown method or layer, a model that reads text only, images cut into tiles.
        CapabilityError: `gradient` on a model whose attention patterns do not reach its output.
    """
    if method not in METHODS:
        raise InputError(
            f"There is no map {method!r}.{did_you_mean(str(method), METHODS)} Known: {', '.join(METHODS)}."
        )
    at = which_layer(model, layer)
    shapes = [grid.shape(sample) for sample in data]
    plain = general_prompts(model, data, general, template) if method in ("relative", "pure_gradient") else data
    if method == "pure_gradient":
        return _by_pixels(model, data, plain, shapes, batch_size)
    if method == "gradient":
        values = _in_batches(model, data, batch_size, lambda branch: by_gradient(model, branch, at))
    else:
        values = _in_batches(model, data, batch_size, lambda branch: by_attention(model, branch, at))
        if method == "relative":
            below = _in_batches(model, plain, batch_size, lambda branch: by_attention(model, branch, at))
            values = [a / b for a, b in zip(values, below, strict=True)]
    return [value.numpy().reshape(shape) for value, shape in zip(values, shapes, strict=True)]


def attended_crops(
    model: Model, data: ImageDataset, maps: Sequence[np.ndarray], *, base: int | None = None
) -> list[Box]:
    """The part of each picture in which its map stands out most, as a box in fractions; see `crop.attended_box`.

    The paper then answers from both, picture and crop; `picture.crop(...)` cuts it out.

    Args:
        maps: of `attention_maps`, one per sample.
        base: side of the smallest window in pixels; default that of the model's input (336 for LLaVA-1.5).

    Example:
        >>> boxes = wb.attended_crops(model, data, wb.attention_maps(model, data))  # doctest: +SKIP
        >>> wb.plots.image_attention(data[0].image, maps[0], boxes={"crop": boxes[0]})  # doctest: +SKIP
    """
    if len(maps) != len(data):
        raise InputError(f"There are {len(maps)} maps for {len(data)} samples; give one for each.")
    if base is None:
        base = int(min(data.batch(model, [0]).pixel_values.shape[-2:]))
    boxes = []
    for sample, values in zip(data, maps, strict=True):
        size = sample.image.size
        boxes.append(attended_box(values, size, base=base, view=grid.field_of_view(model.processor, size)))
    return boxes


def which_layer(model: Model, layer: int | None) -> int:
    """The layer named, or the paper's in proportion."""
    if layer is None:
        return min(model.n_layers - 1, round(_PAPER_LAYER / _PAPER_LAYERS * model.n_layers))
    if not 0 <= layer < model.n_layers:
        raise InputError(f"There is no layer {layer} in {model.name!r}; layers are 0 to {model.n_layers - 1}.")
    return layer


def general_prompts(model: Model, data: ImageDataset, general: str, template: str | None) -> ImageDataset:
    """The same pictures with the general prompt."""
    from workbench.tasks.images import images_from_samples

    rows = [{"id": sample.id, "image": sample.source, "prompt": general} for sample in data]
    return images_from_samples(model, rows, template=template, name=f"{data.name}, general")


@torch.no_grad()
def by_attention(model: Model, branch: Branch, layer: int) -> list[Float[Tensor, " token"]]:
    """Mean over heads of the last query's attention on each row's image tokens."""
    return [row.mean(dim=0) for row in image_rows(branch, head_rows(model, branch, [layer])[layer])]


@torch.no_grad()
def head_rows(model: Model, branch: Branch, layers: Sequence[int]) -> dict[int, Float[Tensor, "row head pos"]]:
    """The last query's attention in every head, by layer."""
    padded = branch.padded()
    kept: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[[Tensor, Any], None]:
        def hook(pattern: Tensor, _: Any) -> None:
            kept[layer] = pattern[:, :, -1].float().cpu()

        return hook

    hooks = [(name, keep(layer)) for layer, name in zip(layers, names(model, "pattern", layers=layers), strict=True)]
    with hooked(model, hooks, copy=False):
        forward(model, padded.tokens, **padded.options(), logits_to_keep=1)
    return kept


def by_gradient(model: Model, branch: Branch, layer: int) -> list[Float[Tensor, " token"]]:
    """Mean over heads of A ReLU(dL/dA), L the log-probability of each row's most likely next token."""
    model.require("pattern_edit_is_causal")
    padded = branch.padded()
    leaf: list[Tensor] = []

    def cut(pattern: Tensor, _: Any) -> Tensor:
        leaf.append(pattern.detach().clone().requires_grad_())
        return leaf[0]

    with hooked(model, [(names(model, "pattern", layers=[layer])[0], cut)], copy=False):
        out = forward(model, padded.tokens, **padded.options(), logits_to_keep=1, grad=True)
        log_probs = out.logits[:, -1].float().log_softmax(dim=-1)
        (slope,) = torch.autograd.grad(log_probs.amax(dim=-1).sum(), leaf)
    weighted = (leaf[0].detach() * slope.clamp(min=0))[:, :, -1].float().cpu()
    return [row.mean(dim=0) for row in image_rows(branch, weighted)]


def _by_pixels(
    model: Model, data: ImageDataset, general: ImageDataset, shapes: Sequence[tuple[int, int]], batch_size: int
) -> list[np.ndarray]:
    """The pure-gradient map of each sample."""
    of_question, of_general = (Views(model, part, "removed") for part in (data, general))
    made: list[np.ndarray] = []
    for start in range(0, len(data), batch_size):
        chosen = list(range(start, min(start + batch_size, len(data))))
        question = of_question.image(chosen)
        slopes = pixels.slopes(model, question), pixels.slopes(model, of_general.image(chosen))
        for index, picture, own, below in zip(chosen, pixels.pictures(question), *slopes, strict=True):
            made.append(pixels.pooled(own, below, pixels.detail(picture), shapes[index]))
    return made


def image_rows(branch: Branch, rows: Float[Tensor, "row head pos"]) -> list[Float[Tensor, "head token"]]:
    """Of each row the columns of its image."""
    is_image = branch.padded().tokens == branch.slot.token_id
    return [values[:, mask] for values, mask in zip(rows, is_image, strict=True)]


def _in_batches(
    model: Model, data: ImageDataset, batch_size: int, fn: Callable[[Branch], list[Tensor]]
) -> list[Tensor]:
    views = Views(model, data, "removed")
    return [
        value
        for start in range(0, len(data), batch_size)
        for value in fn(views.image(list(range(start, min(start + batch_size, len(data))))))
    ]
