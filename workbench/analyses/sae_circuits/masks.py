"""Rankings of heads by a mask on their outputs: the gradient at the open mask, and a mask that is learned.

    hisp                 mean over pairs of |dM/dm_h| at m = 1, where z_h becomes m_h z_h: |sum over positions of
                         z_h . dM/dz_h|, M the logit difference               Michel et al. 2019, arXiv 1905.10650
    subnetwork_probing   z_h becomes m_h z_h + (1 - m_h) z_h[corrupted]; m hard-concrete (Louizos et al. 2018), learned
                         by Adam to minimise                                   Cao et al. 2021, arXiv 2104.03514
                             KL(model | masked model) / KL(model | all masked) + mean over heads of P(m_h > 0)
                         at the last position; the score is log alpha_h, from which P(m_h > 0) grows

Both after the forms in which ACDC (Conmy et al. 2023) compares them: on heads, with patching in place of zeros for the
learned mask. The weight of the penalty is 1: keeping all heads costs as much as losing them all. It is not tuned.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import InputError
from workbench.primitives import capture
from workbench.primitives.attribution.passes import run
from workbench.primitives.forward import forward
from workbench.primitives.hooks import Hook, hooked
from workbench.primitives.sweep.readout import Readout
from workbench.primitives.sweep.units import attention_layers
from workbench.progress import bar

if TYPE_CHECKING:
    from workbench.models import Model
    from workbench.tasks.pairs import PairBatch

_TOKENS_AT_ONCE = 4096  # of one forward and backward pass
_BETA, _LOW, _HIGH = 2 / 3, -0.1, 1.1  # of the hard-concrete distribution
_START = 2.0  # log alpha: masks nearly open
_LR = 0.1
_ROWS = 16  # pairs per step


def hisp(model: Model, batch: PairBatch) -> Float[np.ndarray, "layer head"]:
    """Sensitivity of the logit difference on clean prompts to closing each head's mask."""
    layers = attention_layers(model)
    names = capture.names(model, "z", layers=layers)
    readout = Readout("logit_diff", batch.answer, batch.wrong)
    score = np.full((model.n_layers, model.n_heads), np.nan)
    score[layers] = 0.0
    for rows in torch.arange(len(batch.clean)).split(max(1, _TOKENS_AT_ONCE // batch.clean.shape[1])):
        tokens, mask = _rows(model, batch, batch.clean, rows)
        seen = run(model, tokens, mask, readout, rows, grads_of=names, keep=names)
        for layer, name in zip(layers, names, strict=True):
            each = (seen.acts[name] * seen.grads[name]).sum(-1)  # [n, pos, head]
            each = each if mask is None else each * mask[:, :, None]
            score[layer] += each.sum(1).abs().double().sum(0).cpu().numpy() / len(batch.clean)
    return score


def subnetwork_probing(model: Model, batch: PairBatch, *, steps: int, seed: int) -> Float[np.ndarray, "layer head"]:
    """log alpha of each head's mask after `steps` steps of `_ROWS` pairs.

    Memory: z of all corrupted prompts, and one forward and backward pass.

    Raises:
        InputError: corrupting every head changes nothing, so there is nothing to keep.
    """
    masked = _Masked(model, batch)
    shape = (len(masked.layers), model.n_heads)
    worst = masked.worst()
    if not worst > 1e-6:
        raise InputError(
            "subnetwork_probing: with every head's output exchanged the model says what it said, so there is nothing "
            "to keep; give pairs that differ in more."
        )
    g = torch.Generator().manual_seed(seed)
    log_alpha = torch.full(shape, _START, requires_grad=True)
    adam = torch.optim.Adam([log_alpha], lr=_LR)
    with bar(steps, "learning masks") as shown, torch.enable_grad():
        for _ in range(steps):
            rows = torch.randperm(len(batch.clean), generator=g)[:_ROWS].sort().values
            noise = torch.rand(len(rows), *shape, generator=g).clamp(1e-6, 1 - 1e-6)
            stretched = torch.sigmoid((noise.logit() + log_alpha) / _BETA) * (_HIGH - _LOW) + _LOW
            lost = masked.divergence(rows, stretched.clamp(0, 1)).mean().cpu() / worst
            kept = torch.sigmoid(log_alpha - _BETA * math.log(-_LOW / _HIGH)).mean()  # P(m > 0)
            adam.zero_grad()
            (lost + kept).backward()
            adam.step()
            shown.update(1)
    score = np.full((model.n_layers, model.n_heads), np.nan)
    score[masked.layers] = log_alpha.detach().double().numpy()
    return score


class _Masked:
    """The model on clean prompts, each head's output mixed with that of the corrupted prompt."""

    def __init__(self, model: Model, batch: PairBatch):
        self.model, self.batch = model, batch
        self.layers = attention_layers(model)
        self.names = capture.names(model, "z", layers=self.layers)
        parts: dict[str, list[Tensor]] = {name: [] for name in self.names}
        base = []
        for rows in torch.arange(len(batch.clean)).split(_ROWS):
            corrupted, mask = _rows(model, batch, batch.corrupted, rows)
            for name, z in capture.capture(model, corrupted, self.names, attention_mask=mask).items():
                parts[name].append(z)
            clean, _ = _rows(model, batch, batch.clean, rows)
            base.append(forward(model, clean, attention_mask=mask, logits_to_keep=1).logits[:, -1])
        self.other = {name: torch.cat(part) for name, part in parts.items()}
        self.base = torch.cat(base).detach().float().log_softmax(-1)

    def worst(self) -> float:
        """Mean divergence with every mask shut."""
        with torch.no_grad():
            shut = torch.zeros(_ROWS, len(self.names), self.model.n_heads)
            split = torch.arange(len(self.base)).split(_ROWS)
            return float(torch.cat([self.divergence(rows, shut[: len(rows)]) for rows in split]).mean())

    def divergence(self, rows: Int[Tensor, " n"], m: Float[Tensor, "n layer head"]) -> Float[Tensor, " n"]:
        """KL of the model's next-token distribution from the masked one's, at the last position."""
        clean, mask = _rows(self.model, self.batch, self.batch.clean, rows)

        def mixing(i: int) -> Hook:
            kept = m[:, i].to(self.model.device)[:, None, :, None]  # [n, 1, head, 1]

            def put(z: Tensor, _: Any) -> Tensor:
                return torch.lerp(self.other[self.names[i]][rows], z, kept.to(z.dtype).expand_as(z))

            return self.names[i], put

        with hooked(self.model, [mixing(i) for i in range(len(self.names))], copy=False):
            grad = torch.is_grad_enabled()
            logits = forward(self.model, clean, attention_mask=mask, logits_to_keep=1, grad=grad).logits[:, -1]
        base, found = self.base[rows], logits.float().log_softmax(-1)
        return (base.exp() * (base - found)).sum(-1)


def _rows(model: Model, batch: PairBatch, tokens: Int[Tensor, "n pos"], rows: Tensor) -> tuple[Tensor, Tensor | None]:
    mask = batch.mask[rows].long().to(model.device) if batch.padded else None
    return tokens[rows].to(model.device), mask
