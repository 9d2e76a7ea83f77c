"""IOI prompts as tensors, for the thousands of batches that training and measuring draw.

The sentences are those of `workbench.tasks.circuits.ioi`. A bank of them is made once, and every batch takes sentences
from it and writes new names where the three mentions are, so a draw costs no tokenising. Prompts whose mentions stand
at the same positions and that have the same length are of one shape; base and source of an interchange always are, but
S may be named first in one and second in the other.

Pairs of names that the task's split `held_out` draws from are never drawn for training, neither for bases nor sources.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.tasks.circuits import ioi
from workbench.tasks.circuits.compose import is_held_out
from workbench.tasks.circuits.vocabulary import get


@dataclass(frozen=True)
class Prompts:
    """Prompts and the names in them.

    Attributes:
        tokens: `[n, pos]`, padded on the right.
        last: last real position, `[n]`.
        mentions: the three names in order, `[n, 3]`.
        third: position of the third, `[n]`.
        sentence: which sentence of the bank each is, `[n]`.
    """

    tokens: Tensor
    last: Tensor
    mentions: Tensor
    third: Tensor
    sentence: Tensor

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Bank:
    """Sentences to write names into.

    Attributes:
        tokens, last: the sentences, padded on the right, `[sentence, pos]` and `[sentence]`.
        places: positions of the three mentions, `[sentence, 3]`, in order.
        io_first: whether the name mentioned first is IO (else S), `[sentence]`.
        shape: sentences of one shape have one number, `[sentence]`.
        names: token of each name, `[n_names]`.
        held_out: which pairs of names are kept from training, `[n_names, n_names]`, symmetric.
    """

    tokens: Tensor
    last: Tensor
    places: Tensor
    io_first: Tensor
    shape: Tensor
    names: Tensor
    held_out: Tensor


def make_bank(tokenizer: Any, n: int, seed: int) -> Bank:
    """A bank of `n` sentences of the task."""
    pool = get("ioi").comparable_pools(tokenizer)["names"]
    data = ioi(tokenizer, n=n, seed=seed)
    longest = max(sample.length for sample in data)
    places = [sorted(sample.spans[role][0] for role in ("IO", "S1", "S2")) for sample in data]
    io_first = [sample.spans["IO"] < sample.spans["S1"] for sample in data]
    shapes: dict[Any, int] = {}
    kinds = zip((sample.length for sample in data), map(tuple, places), strict=True)
    return Bank(
        tokens=torch.tensor([[*sample.clean, *(0,) * (longest - sample.length)] for sample in data]),
        last=torch.tensor([sample.length - 1 for sample in data]),
        places=torch.tensor(places),
        io_first=torch.tensor(io_first),
        shape=torch.tensor([shapes.setdefault(kind, len(shapes)) for kind in kinds]),
        names=torch.tensor(pool.tokens),
        held_out=torch.tensor([[is_held_out(tuple(sorted((a, b)))) for a in pool.words] for b in pool.words]),
    )


class World:
    """Draws base prompts and their sources from a bank; all randomness comes from one seed.

    Args:
        split: which pairs of names to draw, as in the task: `train`, `held_out` or `all`.
    """

    def __init__(self, bank: Bank, seed: int, *, split: str = "train") -> None:
        self.bank = bank
        self.drawn = {"train": ~bank.held_out, "held_out": bank.held_out}.get(split, torch.ones_like(bank.held_out))
        self.random = torch.Generator().manual_seed(seed)
        n = len(bank.names)
        io, s = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
        self.pairs = torch.stack([io, s], -1)[(io != s) & self.drawn]  # (pair, 2)
        self.of_shape = [(bank.shape == shape).nonzero().flatten() for shape in range(int(bank.shape.max()) + 1)]

    def base(self, n: int, *, no_duplicate: float = 0.0) -> Prompts:
        """Random prompts; a share of them mentions three different names."""
        sentence = self._below(len(self.bank.tokens), n)
        return self._prompts(sentence, self._mentions(sentence, self._pairs(n), self._chance(n, no_duplicate)))

    def source(self, base: Prompts, *, no_duplicate: float = 0.2, related: float = 0.4) -> Prompts:
        """For each base a prompt of its shape: its names drawn anew or, in a `related` share, some of them the base's
        (IO and S exchanged, S kept, IO kept)."""
        n = len(base)
        shape = self.bank.shape[base.sentence].tolist()
        sentence = torch.stack([self.of_shape[k][self._below(len(self.of_shape[k]), 1)[0]] for k in shape])
        pair = self._pairs(n)
        s = base.mentions[:, 2]
        io = torch.where(self.bank.io_first[base.sentence], base.mentions[:, 0], base.mentions[:, 1])
        how = self._below(3, n)
        kin = torch.stack([torch.stack([s, io], 1), torch.stack([pair[:, 0], s], 1), torch.stack([io, pair[:, 1]], 1)])
        kin = kin[how, torch.arange(n)]
        fits = (kin[:, 0] != kin[:, 1]) & self.drawn[kin[:, 0], kin[:, 1]]
        use = self._chance(n, related) & fits
        pair = torch.where(use[:, None], kin, pair)
        return self._prompts(sentence, self._mentions(sentence, pair, self._chance(n, no_duplicate)))

    def _mentions(self, sentence: Tensor, pair: Tensor, no_duplicate: Tensor) -> Tensor:
        io, s = pair.T
        first = self.bank.io_first[sentence]
        third = s.clone()
        other = self._below(len(self.bank.names), len(s))
        use = no_duplicate & (other != io) & (other != s)
        third[use] = other[use]
        return torch.stack([torch.where(first, io, s), torch.where(first, s, io), third], 1)

    def _prompts(self, sentence: Tensor, mentions: Tensor) -> Prompts:
        tokens = self.bank.tokens[sentence].scatter(1, self.bank.places[sentence], self.bank.names[mentions])
        last = self.bank.last[sentence]
        return Prompts(tokens[:, : int(last.max()) + 1], last, mentions, self.bank.places[sentence, 2], sentence)

    def _pairs(self, n: int) -> Tensor:
        return self.pairs[self._below(len(self.pairs), n)]

    def _below(self, high: int, n: int) -> Tensor:
        return torch.randint(high, (n,), generator=self.random)

    def _chance(self, n: int, share: float) -> Tensor:
        return torch.rand(n, generator=self.random) < share
