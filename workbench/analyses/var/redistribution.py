"""Attention moved off the sinks while a text is written: hooks around any generation of one batch.

While the prompt is read, each layer's sinks are found from the stream that enters it; then the rows of image-centric
heads are redistributed, for queries behind the image and for every generated token. Which heads are image-centric is
decided row by row, as the row stands. Sinks found in the prompt stay; generated tokens are never sinks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.analyses.var import score
from workbench.analyses.var.params import RedistributionParams, VarParams
from workbench.analyses.var.sinks import marks
from workbench.analyses.vhd.branches import Branch
from workbench.errors import InputError
from workbench.primitives.capture import names
from workbench.primitives.hooks import Hook, hooked

if TYPE_CHECKING:
    from workbench.models import Model

Whose = Literal["image-centric", "all", "random"]


@dataclass
class Redistribution:
    """What is moved, and in which heads.

    Attributes:
        dimensions: the sink dimensions.
        whose: image-centric heads; all heads; or, for each query, as many heads as are image-centric, others in their
            place: head h is treated when head `order[row, layer, h]` is image-centric.
        order: permutations of the heads, for `random`.
    """

    dimensions: tuple[int, ...]
    params: VarParams
    how: RedistributionParams
    whose: Whose = "image-centric"
    order: Int[Tensor, "row layer head"] | None = None

    def layers(self, n_layers: int) -> range:
        """Layers that are treated: from `first_layer` on, in the paper's convention without the last."""
        return range(self.params.first_layer, n_layers - (self.params.convention == "paper"))

    def edited(
        self,
        pattern: Float[Tensor, "row head query key"],
        layer: int,
        image: Bool[Tensor, "row key"],
        sinks: Bool[Tensor, "row key"],
        queries: Bool[Tensor, "row query"],
    ) -> Float[Tensor, "row head query key"]:
        """The pattern with `queries` of the chosen heads redistributed."""
        on_image, on_sinks, _ = score.masses(pattern, image, sinks)
        if self.whose == "all":
            chosen = torch.ones_like(on_image, dtype=torch.bool)
        else:
            p = self.params
            chosen = score.image_centric(on_image, on_sinks, min_mass=p.min_mass, rho=p.rho, convention=p.convention)
        if self.whose == "random":
            if self.order is None:
                raise InputError("Random heads need `order`, a permutation of the heads for every row and layer.")
            order = self.order[:, layer, :, None].to(chosen.device).expand(-1, -1, chosen.shape[-1])
            chosen = chosen.gather(1, order)
        chosen = chosen & queries[:, None]
        givers = sinks & image if self.how.from_sinks == "visual" else sinks
        new = score.redistributed(pattern, image, givers, score.moved(self.how.p, self.params.convention))
        return torch.where(chosen[..., None], new, pattern)


@contextmanager
def redistributing(model: Model, branch: Branch, change: Redistribution | None) -> Iterator[None]:
    """Redistribute in every forward pass inside the block: first the whole prompt of `branch`, then single tokens.

    Raises:
        CapabilityError: edited attention patterns would not reach the output of this model.
    """
    if change is None:
        yield
        return
    model.require("pattern_edit_is_causal")
    state = _State(change, *marks(branch))
    layers = change.layers(model.n_layers)
    hooks: list[Hook] = []
    for layer, stream, pattern in zip(
        layers, names(model, "resid_pre", layers=layers), names(model, "pattern", layers=layers), strict=True
    ):
        hooks += [(stream, state.looking(layer)), (pattern, state.moving(layer))]
    with hooked(model, hooks, copy=False):
        yield


class _State:
    """Sinks of the prompt, by layer."""

    def __init__(self, change: Redistribution, image: Tensor, real: Tensor) -> None:
        self.change, self.image, self.real = change, image, real
        self.length = image.shape[1]
        last = self.length - 1 - image.flip(1).long().argmax(dim=1)  # column of each row's last image token
        self.behind = torch.arange(self.length) > last[:, None]
        self.sinks: dict[int, Tensor] = {}

    def looking(self, layer: int) -> Any:
        def look(x: Tensor, _: Any) -> None:
            if x.shape[1] == self.length:
                phi = score.phi(x, self.change.dimensions)
                self.sinks[layer] = (phi > self.change.params.tau) & self.real.to(x.device)

        return look

    def moving(self, layer: int) -> Any:
        def move(pattern: Tensor, _: Any) -> Tensor:
            n_queries, n_keys = pattern.shape[2:]
            new = n_keys - self.length
            sinks, image = (
                torch.nn.functional.pad(keys.to(pattern.device), (0, new)) for keys in (self.sinks[layer], self.image)
            )
            queries = self.behind if n_queries == self.length else torch.ones(len(self.image), n_queries).bool()
            return self.change.edited(pattern, layer, image, sinks, queries.to(pattern.device))

        return move
