"""The sparse autoencoder of O'Neill & Bui 2024, and many of them at once: training and codes. Arithmetic on tensors.

    f    = ReLU(W_e (x - b) + c)              features of a head's output x, `[F]`
    x^   = W_d f + b
    loss = mean((x^ - x)^2) + lambda * mean over rows of sum_f |f|

b is shared by both sides and starts at zero, c is uniform within 1 / sqrt(d_model). Rows of W_e `[F, d_model]` and of
W_d `[d_model, F]` have norm 1: normalised before each step, the part of the gradient along a row taken out. (In W_d
that makes rows over features of norm 1, not the dictionary's columns; so in the authors' code.) Adam, all rows at once.

The gradients are written out, because several autoencoders are trained in one batched product and because autograd
would compute the one of x. `tests/reference/sae_circuits.py` does the same with autograd.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

_BETAS, _EPS = (0.9, 0.999), 1e-8  # of Adam
_NUMBERS_AT_ONCE = 1 << 25  # of one encoding


@dataclass
class Saes:
    """Autoencoders of one shape, stacked.

    Attributes:
        loss: mean squared error and mean L1 of the codes at each epoch, before its step: `[epoch, sae, 2]`.
    """

    encoder: Float[Tensor, "sae F d_model"]
    bias: Float[Tensor, "sae F"]
    decoder: Float[Tensor, "sae d_model F"]
    centre: Float[Tensor, "sae d_model"]
    loss: Float[Tensor, "epoch sae 2"]

    def only(self, i: int) -> Saes:
        """One of them, still stacked."""
        one = slice(i, i + 1)
        return Saes(self.encoder[one], self.bias[one], self.decoder[one], self.centre[one], self.loss[:, one])

    def features(self, x: Float[Tensor, "sae row d_model"]) -> Float[Tensor, "sae row F"]:
        shift = self.bias - torch.einsum("sfd,sd->sf", self.encoder, self.centre)
        return torch.baddbmm(shift[:, None], x, self.encoder.mT).relu_()

    def codes(self, x: Float[Tensor, "sae row d_model"]) -> Int[Tensor, "sae row"]:
        """The strongest feature of each row; 0 where none is active, as published."""
        size = max(1, _NUMBERS_AT_ONCE // (len(x) * self.encoder.shape[1]))
        return torch.cat([self.features(part).argmax(dim=-1) for part in x.split(size, dim=1)], dim=1)

    def squared_error(self, x: Float[Tensor, "sae row d_model"]) -> float:
        """Of the reconstruction, summed over everything."""
        size = max(1, _NUMBERS_AT_ONCE // (len(x) * self.encoder.shape[1]))
        total = 0.0
        for part in x.split(size, dim=1):
            made = torch.baddbmm(self.centre[:, None], self.features(part), self.decoder.mT)
            total += float((made - part).double().square().sum())
        return total


def start(n_features: int, d_model: int, generator: torch.Generator, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """W_e, c, W_d and b of one autoencoder, drawn in float64 whatever the dtype asked for."""
    options = {"generator": generator, "dtype": torch.float64}
    encoder = torch.randn(n_features, d_model, **options)
    decoder = torch.randn(d_model, n_features, **options)
    bias = (2 * torch.rand(n_features, **options) - 1) / d_model**0.5
    return tuple(part.to(dtype) for part in (_unit(encoder), bias, _unit(decoder), bias.new_zeros(d_model)))


def train(
    x: Float[Tensor, "sae row d_model"],
    generators: list[torch.Generator],
    *,
    n_features: int = 200,
    l1: float = 0.02,
    lr: float = 1e-3,
    epochs: int = 500,
) -> Saes:
    """Train one autoencoder on each of the stacked sets of rows."""
    drawn = [start(n_features, x.shape[-1], generator, x.dtype) for generator in generators]
    encoder, bias, decoder, centre = (torch.stack([one[i] for one in drawn]).to(x.device) for i in range(4))
    made = Saes(encoder, bias, decoder, centre, x.new_zeros(epochs, len(x), 2))
    weights = (made.encoder, made.bias, made.decoder, made.centre)
    first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    for epoch in range(epochs):
        made.encoder.copy_(_unit(made.encoder))
        made.decoder.copy_(_unit(made.decoder))
        grads, made.loss[epoch] = _gradients(made, x, l1)
        for w, g, m, v in zip(weights, grads, first, second, strict=True):
            m.lerp_(g, 1 - _BETAS[0])
            v.mul_(_BETAS[1]).addcmul_(g, g, value=1 - _BETAS[1])
            step = lr / (1 - _BETAS[0] ** (epoch + 1))
            w.addcdiv_(m, (v.sqrt() / (1 - _BETAS[1] ** (epoch + 1)) ** 0.5).add_(_EPS), value=-step)
    made.encoder.copy_(_unit(made.encoder))
    made.decoder.copy_(_unit(made.decoder))
    return made


def _gradients(sae: Saes, x: Tensor, l1: float) -> tuple[tuple[Tensor, ...], Tensor]:
    """Gradients of the loss in (W_e, c, W_d, b), those of W_e and W_d without their part along each row."""
    n_rows, d_model = x.shape[1:]
    f = sae.features(x)
    error = torch.baddbmm(sae.centre[:, None], f, sae.decoder.mT).sub_(x)  # x^ - x
    parts = torch.stack([error.square().mean(dim=(1, 2)), f.sum(dim=2).mean(dim=1)], dim=-1)
    error.mul_(2.0 / (n_rows * d_model))
    active = f > 0
    d_decoder = error.mT @ f
    d_pre = (error @ sae.decoder).add_(l1 / n_rows).mul_(active)
    d_bias = d_pre.sum(dim=1)  # [sae, F]
    d_encoder = d_pre.mT @ x - d_bias[:, :, None] * sae.centre[:, None]
    d_centre = error.sum(dim=1) - torch.einsum("sf,sfd->sd", d_bias, sae.encoder)
    return (_across(d_encoder, sae.encoder), d_bias, _across(d_decoder, sae.decoder), d_centre), parts


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=-1, keepdim=True)


def _across(gradient: Tensor, rows: Tensor) -> Tensor:
    """The part of the gradient that is not along the rows, which have norm 1."""
    return gradient - (gradient * rows).sum(dim=-1, keepdim=True) * rows
