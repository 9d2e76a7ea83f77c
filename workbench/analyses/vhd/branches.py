"""One prompt seen several ways: with its image, without it, with another's, or with some of its text taken out.

A `Branch` is rows of tokens with what goes beside them; `padded` lays them out for one forward pass, continued by
tokens already generated. Image processors run once per picture. It knows the shapes of prompts and images, and nothing
of heads or distances.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from workbench.errors import InputError
from workbench.tasks.prompting import Placeholder, placeholder

if TYPE_CHECKING:
    from workbench.analyses.vhd.params import Without
    from workbench.models import Model
    from workbench.tasks.images import ImageDataset, ImageSample


@dataclass(frozen=True)
class Padded:
    """Rows as tensors, padded on the left; keyword arguments of `forward` and `capture`.

    Attributes:
        tokens: `[row, pos]`.
        attention_mask: `[row, pos]`, or None where nothing is padded or hidden.
        position_ids: `[row, pos]`, or None for those counted from the mask.
        inputs: pixel values and their company, or None.
    """

    tokens: Int[Tensor, "row pos"]
    attention_mask: Int[Tensor, "row pos"] | None
    position_ids: Int[Tensor, "row pos"] | None
    inputs: dict[str, Any] | None

    def options(self) -> dict[str, Any]:
        return {"attention_mask": self.attention_mask, "position_ids": self.position_ids, "inputs": self.inputs}


@dataclass(frozen=True)
class Branch:
    """Prompts as token ids with their images.

    Attributes:
        rows: token ids of each prompt.
        images: what the processor made of the images, rows first; None for text alone.
        hidden: image tokens are masked where they stand: they keep their positions and nobody sees them.
        slot: how the processor marks images.
    """

    rows: tuple[tuple[int, ...], ...]
    images: dict[str, Any] | None
    slot: Placeholder
    hidden: bool = False

    def padded(self, tails: Sequence[Sequence[int]] | None = None) -> Padded:
        """The rows, each continued by its tail."""
        rows = self.rows if tails is None else [(*row, *tail) for row, tail in zip(self.rows, tails, strict=True)]
        longest = max(map(len, rows))
        tokens = torch.tensor([(self.slot.pad,) * (longest - len(row)) + tuple(row) for row in rows])
        starts = torch.tensor([longest - len(row) for row in rows])
        real = torch.arange(longest) >= starts[:, None]
        is_image = (tokens == self.slot.token_id) & real
        mask, positions = real, None
        if self.hidden:
            mask, positions = real & ~is_image, (real.long().cumsum(dim=-1) - 1).clamp(min=0)
        inputs = None
        if self.images is not None:
            inputs = dict(self.images)
            if self.slot.token_types:
                inputs["token_type_ids"] = is_image.long()
        return Padded(tokens, None if bool(mask.all()) else mask.long(), positions, inputs)


class Views:
    """The branches of a dataset, for any of its samples.

    Raises:
        InputError: the model takes no images, or a mean image is asked for and there are fewer than two.
    """

    def __init__(self, model: Model, data: ImageDataset, without: Without) -> None:
        self.model, self.data, self.without = model, data, without
        self.slot = placeholder(model)
        self._mean = self._mean_pixels() if without == "mean_image" else None

    def image(self, chosen: Sequence[int]) -> Branch:
        """The prompts with their images."""
        return Branch(tuple(self.data[i].tokens for i in chosen), self._stacked(chosen), self.slot)

    def text(self, chosen: Sequence[int]) -> Branch:
        """The same prompts without their images, in the way asked for."""
        if self.without == "removed":
            return Branch(tuple(self.data[i].text_tokens for i in chosen), None, self.slot)
        branch = self.image(chosen)
        if self.without == "masked":
            return replace(branch, hidden=True)
        assert self._mean is not None
        mean = self._mean.expand(len(chosen), *self._mean.shape[1:])
        return replace(branch, images={**(branch.images or {}), "pixel_values": mean})

    def other_image(self, chosen: Sequence[int]) -> Branch | None:
        """The prompts, each with the image of the next sample that has a different one of the same size."""
        partners = [self._partner(i) for i in chosen]
        if any(partner is None for partner in partners):
            return None
        return replace(self.image(chosen), images=self._stacked([p for p in partners if p is not None]))

    def less_text(self, chosen: Sequence[int], draw: int, seed: int) -> Branch | None:
        """The prompts with as many text tokens deleted as the image has (or all there are), BOS and last token kept."""
        rows = [self._less_text(self.data[i], draw, seed) for i in chosen]
        if any(row is None for row in rows):
            return None
        return replace(self.image(chosen), rows=tuple(row for row in rows if row is not None))

    def _less_text(self, sample: ImageSample, draw: int, seed: int) -> tuple[int, ...] | None:
        a, b = sample.image_span
        first = int(self.slot.bos is not None and sample.tokens[0] == self.slot.bos)
        candidates = [i for i in range(first, sample.length - 1) if not a <= i < b]
        if not candidates:
            return None
        rng = np.random.default_rng([seed, draw, zlib.crc32(sample.id.encode())])  # the same in any batch
        gone = set(rng.permutation(candidates)[: b - a].tolist())
        return tuple(token for i, token in enumerate(sample.tokens) if i not in gone)

    def _partner(self, index: int) -> int | None:
        mine, n = self.data[index], len(self.data)
        for step in range(1, n):
            other = self.data[(index + step) % n]
            if other.pixels != mine.pixels and _width(other) == _width(mine):
                return (index + step) % n
        return None

    def _stacked(self, chosen: Sequence[int]) -> dict[str, Any]:
        batch = self.data.batch(self.model, chosen)
        extra = {key: value for key, value in batch.extra.items() if key != "token_type_ids"}
        return {"pixel_values": batch.pixel_values, **extra}

    def _mean_pixels(self) -> Tensor:
        first = {sample.pixels: index for index, sample in reversed(list(enumerate(self.data)))}
        total: Tensor | None = None
        for index in sorted(first.values()):
            pixels = self._stacked([index])["pixel_values"].double()
            if total is not None and pixels.shape != total.shape:
                raise InputError(
                    f"without: mean_image needs images of one shape, but they become {list(total.shape[1:])} and "
                    f"{list(pixels.shape[1:])}; use 'removed' or 'masked'."
                )
            total = pixels if total is None else total + pixels
        if total is None or len(first) < 2:
            raise InputError(
                f"without: mean_image needs two or more different images, but there are {len(first)}; add some, or use "
                "'removed' or 'masked'."
            )
        return (total / len(first)).float()


def _width(sample: ImageSample) -> int:
    return sample.image_span[1] - sample.image_span[0]
