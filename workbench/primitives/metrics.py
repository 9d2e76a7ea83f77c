"""What is measured on logits: one number per example, in float32 or better, NaN where there is none.

Pure functions of tensors. A row that holds a NaN or an infinity gives NaN, never a number. They never know where the
logits come from, and never average over examples: that is the analysis' business.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import InputError

Tokens = int | Int[Tensor, " batch"]


def logit_diff(logits: Float[Tensor, "batch vocab"], answer: Tokens, wrong: Tokens) -> Float[Tensor, " batch"]:
    """logit(answer) - logit(wrong)."""
    rows = _rows(logits)
    return _at(rows, answer) - _at(rows, wrong)


def kl(
    base: Float[Tensor, "batch vocab"], other: Float[Tensor, "batch vocab"], *, dtype: torch.dtype | None = None
) -> Float[Tensor, " batch"]:
    """KL(p_base || p_other) in nats, p = softmax(logits).

    From log-softmax, without a constant added to the probabilities. Rounding can leave equal distributions at about
    1e-7 on either side of zero in float32 (the default for float32 and below); take `torch.float64` to resolve less.
    """
    if base.shape != other.shape:
        raise InputError(f"KL compares logits of one shape, not {list(base.shape)} with {list(other.shape)}.")
    log_p, log_q = _log_softmax(base, dtype), _log_softmax(other, dtype)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def log_prob(logits: Float[Tensor, "batch vocab"], token: Tokens) -> Float[Tensor, " batch"]:
    """Natural logarithm of the token's probability."""
    return _at(_log_softmax(logits), token)


def prob(logits: Float[Tensor, "batch vocab"], token: Tokens) -> Float[Tensor, " batch"]:
    """The token's probability."""
    return log_prob(logits, token).exp()


def rank(logits: Float[Tensor, "batch vocab"], token: Tokens) -> Float[Tensor, " batch"]:
    """How many other tokens are at least as likely: 0 is the top. Ties count against the token."""
    rows = _rows(logits)
    chosen = _at(rows, token)
    ahead = (rows >= chosen[:, None]).sum(dim=-1) - 1
    return torch.where(chosen.isnan(), torch.nan, ahead.float())


def loss(
    logits: Float[Tensor, "batch pos vocab"],
    tokens: Int[Tensor, "batch pos"],
    *,
    attention_mask: Int[Tensor, "batch pos"] | None = None,
) -> Float[Tensor, " batch"]:
    """Mean negative log probability of each next token, in nats per token; padding neither predicts nor is predicted.

    NaN for an example without any predicted token. Memory: one example's logits in float32 at a time.
    """
    if logits.ndim != 3 or logits.shape[:2] != tokens.shape:
        raise InputError(
            f"Logits {list(logits.shape)} do not belong to tokens {list(tokens.shape)}; keep all positions."
        )
    real = torch.ones_like(tokens, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    losses = []
    for row, ids, is_real in zip(logits, tokens.to(logits.device), real.to(logits.device), strict=True):
        counted = is_real[:-1] & is_real[1:]
        losses.append(-log_prob(row[:-1][counted], ids[1:][counted]).mean())
    return torch.stack(losses)


def _rows(logits: Float[Tensor, "batch vocab"], dtype: torch.dtype | None = None) -> Float[Tensor, "batch vocab"]:
    """Logits in `dtype` (default: float32 or better), with every row that is not finite throughout set to NaN."""
    if logits.ndim != 2:
        raise InputError(f"Logits must have shape [batch, vocab], not {list(logits.shape)}; pick one position of each.")
    rows = logits.to(torch.promote_types(logits.dtype, torch.float32) if dtype is None else dtype)
    return torch.where(rows.isfinite().all(dim=-1, keepdim=True), rows, torch.nan)


def _log_softmax(logits: Tensor, dtype: torch.dtype | None = None) -> Float[Tensor, "batch vocab"]:
    return torch.log_softmax(_rows(logits, dtype), dim=-1)


def _at(rows: Float[Tensor, "batch vocab"], token: Tokens) -> Float[Tensor, " batch"]:
    """Each row's entry for its token."""
    batch, vocab = rows.shape
    ids = torch.as_tensor(token, device=rows.device)
    if ids.is_floating_point() or ids.ndim > 1 or (ids.ndim == 1 and ids.shape[0] != batch):
        raise InputError(
            f"Give one token id, or one per example ({batch}); got {ids.dtype} of shape {list(ids.shape)}."
        )
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocab:
        raise InputError(f"Token ids must be 0 to {vocab - 1}; got {int(ids.min())} to {int(ids.max())}.")
    return rows.gather(1, ids.long().expand(batch)[:, None])[:, 0]
