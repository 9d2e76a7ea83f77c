"""A stream of shuffled activations, in pages: what training reads, of any length and always the same for one seed.

A page holds about `buffer` vectors: prompts are taken from an endless sequence of random orders of the dataset, run
through the model up to the hook point, their tokens' vectors pooled and shuffled. Page p depends on the seed and p
alone, so that training resumes at any page without a history. When a page would hold the whole dataset, the model runs
once and every page is a new shuffle. Vectors beyond the last full batch of a page are not used.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import InputError
from workbench.saes.place import Place, activations

if TYPE_CHECKING:
    from workbench.models import Model


class Pages(Protocol):
    """What training reads.

    Attributes:
        width: of a vector.
        key: JSON-able; equal for sources that give the same pages.
    """

    width: int
    key: Any

    def page(self, number: int) -> Float[Tensor, "row d_in"]:
        """The vectors of a page, shuffled; the same whenever it is asked for."""
        ...


class ModelPages:
    """Pages of a model's activations at one place."""

    def __init__(
        self,
        model: Model,
        place: Place,
        tokens: Int[Tensor, "n pos"],
        mask: Tensor | None,
        *,
        buffer: int,
        seed: int,
        rows: int = 16,
    ):
        self.model, self.place, self.seed, self.rows = model, place, seed, rows
        self.tokens = tokens.to(model.device)
        self.mask = None if mask is None else mask.to(model.device)
        self.width = place.width
        lengths = torch.full((len(tokens),), tokens.shape[1]) if mask is None else mask.long().sum(-1).cpu()
        self.per_page = max(1, math.ceil(buffer / float(lengths.float().mean())))
        self._pooled: Tensor | None = None
        content = hashlib.sha256(tokens.cpu().long().numpy().tobytes() + lengths.numpy().tobytes()).hexdigest()
        self.key = [model.fingerprint, model.config_digest, model.basis, str(model.dtype), str(model.device)]
        self.key += [place.name, content, buffer, seed, rows]

    def page(self, number: int) -> Float[Tensor, "row d_in"]:
        if self.per_page >= len(self.tokens):
            if self._pooled is None:
                self._pooled = self._vectors(torch.arange(len(self.tokens)))
            vectors = self._pooled
        else:
            vectors = self._vectors(self._prompts(number))
        return vectors[torch.randperm(len(vectors), generator=generator(self.seed, 1, number)).to(vectors.device)]

    def _vectors(self, prompts: Int[Tensor, " prompt"]) -> Float[Tensor, "row d_in"]:
        prompts = prompts.to(self.tokens.device)
        mask = None if self.mask is None else self.mask[prompts]
        x = activations(self.model, self.place, self.tokens[prompts], mask, rows=self.rows)
        return x.flatten(0, 1) if mask is None else x[mask.bool()]

    def _prompts(self, number: int) -> Int[Tensor, " prompt"]:
        """Which prompts a page takes from the sequence of orders."""
        n = len(self.tokens)
        places = range(number * self.per_page, (number + 1) * self.per_page)
        orders = {
            epoch: torch.randperm(n, generator=generator(self.seed, 0, epoch)) for epoch in {at // n for at in places}
        }
        return torch.stack([orders[at // n][at % n] for at in places])


def check_page(vectors: Float[Tensor, "row d_in"], batch: int) -> None:
    """Refuse a page that does not fill one batch."""
    if len(vectors) < batch:
        raise InputError(
            f"A page of activations holds {len(vectors)} vectors, but a batch needs {batch}; give more or longer "
            "prompts, a larger buffer or a smaller batch."
        )


def generator(*numbers: int) -> torch.Generator:
    text = "-".join(map(str, numbers)).encode()
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text).digest()[:7], "big"))
