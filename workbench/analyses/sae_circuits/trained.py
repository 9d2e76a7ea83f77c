"""From head outputs to codes: which examples train which autoencoder, for every seed, shared or one per head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.analyses.sae_circuits.sae import train
from workbench.progress import bar

if TYPE_CHECKING:
    from workbench.analyses.sae_circuits.params import SaeCircuitsParams

_NUMBERS_AT_ONCE = 1 << 24  # of the rows, or of the weights, that are trained on together


@dataclass
class Codes:
    """Codes of every seed.

    Attributes:
        codes: `[seed, n, head]`.
        trained_on: `[seed, n]`, examples the autoencoder has seen.
        loss: `[seed, epoch, 2]` squared error and L1, mean over autoencoders of a seed.
        explained: `[seed]` share of the variance of all head outputs that is reconstructed.
    """

    codes: np.ndarray
    trained_on: np.ndarray
    loss: np.ndarray
    explained: np.ndarray


def train_and_code(x: Float[Tensor, "n head d_model"], params: SaeCircuitsParams, seed: int) -> Codes:
    """Train the autoencoders of all seeds, several at once where they are small, and code every example."""
    n, n_heads, d_model = x.shape
    n_train = min(params.train_examples, n)
    drawn = [np.sort(np.random.default_rng([seed, s]).permutation(n)[:n_train]) for s in range(params.seeds)]
    shared = params.sae == "shared"
    jobs = [(s, None if shared else h) for s in range(params.seeds) for h in range(1 if shared else n_heads)]
    rows_each = n_train * n_heads if shared else n_train
    size = max(1, _NUMBERS_AT_ONCE // ((rows_each + 2 * params.n_features) * d_model))
    codes = np.zeros((params.seeds, n, n_heads), dtype=np.int64)
    loss = np.zeros((params.seeds, params.epochs, 2))
    error = np.zeros(params.seeds)
    options = {"n_features": params.n_features, "l1": params.l1, "lr": params.lr, "epochs": params.epochs}
    with torch.no_grad(), bar(len(jobs), "autoencoders") as shown:
        for start in range(0, len(jobs), size):
            some = jobs[start : start + size]
            rows = torch.stack([_rows(x[drawn[s]], head) for s, head in some])
            saes = train(rows, [_generator(seed, s, head) for s, head in some], **options)
            for i, (s, head) in enumerate(some):
                one = saes.only(i)
                every = _rows(x, head)[None]
                at = slice(None) if head is None else slice(head, head + 1)
                codes[s, :, at] = one.codes(every)[0].reshape(n, -1).cpu().numpy()
                error[s] += one.squared_error(every)
                loss[s] += saes.loss[:, i].double().cpu().numpy() / (1 if head is None else n_heads)
            shown.update(len(some))
    total = float((x.double() - x.double().mean(dim=(0, 1))).square().sum())
    trained_on = np.zeros((params.seeds, n), dtype=bool)
    for s, some_rows in enumerate(drawn):
        trained_on[s, some_rows] = True
    return Codes(codes, trained_on, loss, 1 - error / max(total, 1e-300))


def _rows(x: Tensor, head: int | None) -> Tensor:
    return x.flatten(0, 1) if head is None else x[:, head]


def _generator(seed: int, number: int, head: int | None) -> torch.Generator:
    state = np.random.SeedSequence([seed, number, 0 if head is None else head + 1]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
