"""Answers to prompts with heads ablated: greedy, or sampled from the likeliest tokens, cached and batched.

Prompts are prefilled and padded on the left by `primitives.decode`; the ablation is held over prefill and decoding
alike. Sampling draws its random numbers per prompt and sample, before anything is run, so that an answer does not
depend on what shares its batch and two conditions differ by their heads only. It never judges an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.analyses.ships.ablations import Ablation, Head
from workbench.primitives.decode import Prefilled, fork, prefill, require_finite
from workbench.primitives.forward import forward

if TYPE_CHECKING:
    from workbench.analyses.ships.params import ValidationParams
    from workbench.models import Model


def answers(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    ablation: Ablation,
    heads: Sequence[Head],
    decoding: Literal["greedy", "sampled"],
    params: ValidationParams,
    numbers: Sequence[int],
    seed: int,
) -> list[list[str]]:
    """Texts that follow each prompt: one when greedy, `params.samples` when sampled.

    Args:
        numbers: of the prompts, which with `seed` decide the random numbers of sampling.
    """
    n_samples = 1 if decoding == "greedy" else params.samples
    found: list[list[str]] = [[] for _ in prompts]
    with torch.no_grad(), ablation.on(model, heads):
        for batch in prefill(model, prompts, batch_size=params.batch_size, new_tokens=params.max_new_tokens):
            for sample in range(n_samples):
                noise = None
                if decoding == "sampled":
                    draws = [np.random.default_rng([seed, numbers[i], sample]) for i in batch.index]
                    noise = torch.from_numpy(np.stack([rng.random(params.max_new_tokens) for rng in draws]))
                for i, tokens in zip(batch.index, _continue(model, batch, params, noise), strict=True):
                    found[i].append(as_text(model, tokens))
    return found


def as_text(model: Model, tokens: Sequence[int]) -> str:
    """Tokens as text, without special ones; their ids where the model has no tokenizer."""
    if model.tokenizer is None:
        return " ".join(map(str, tokens))
    return str(model.tokenizer.decode(list(tokens), skip_special_tokens=True))


def end_tokens(model: Model) -> set[int]:
    """End-of-sequence ids that the tokenizer and the generation config name."""
    ends = [getattr(model.tokenizer, "eos_token_id", None)]
    configured = getattr(getattr(model.hf, "generation_config", None), "eos_token_id", None)
    ends += configured if isinstance(configured, list | tuple) else [configured]
    return {int(end) for end in ends if end is not None}


def sample_top_k(
    logits: Float[Tensor, "batch vocab"], noise: Float[Tensor, " batch"], *, top_k: int, temperature: float
) -> Float[Tensor, " batch"]:
    """The token at which the cumulated probability of the `top_k` likeliest, the likeliest first, passes `noise`."""
    values, tokens = logits.double().topk(min(top_k, logits.shape[-1]), dim=-1)
    cumulated = torch.softmax(values / temperature, dim=-1).cumsum(dim=-1)
    place = (cumulated < noise.to(cumulated.device)[:, None]).sum(dim=-1).clamp(max=tokens.shape[-1] - 1)
    return tokens.gather(1, place[:, None])[:, 0]


def _continue(
    model: Model, batch: Prefilled, params: ValidationParams, noise: Float[Tensor, "batch step"] | None
) -> list[list[int]]:
    """New tokens of each row, without the end-of-sequence token."""
    cache, current, mask = fork(batch.cache), batch.tokens[:, -1:], batch.mask
    ends = end_tokens(model)
    out: list[list[int]] = [[] for _ in batch.index]
    active = [True] * len(out)
    room = model.n_ctx - batch.tokens.shape[1] + 1 if model.n_ctx else params.max_new_tokens
    for step in range(min(params.max_new_tokens, room)):
        run = forward(model, current, attention_mask=mask, cache=cache, use_cache=True, logits_to_keep=1)
        mask = None if mask is None else torch.nn.functional.pad(mask, (0, 1), value=1)
        logits = run.logits[:, -1]
        require_finite(model, logits, active)
        if noise is None:
            chosen = logits.argmax(dim=-1)
        else:
            chosen = sample_top_k(logits, noise[:, step], top_k=params.top_k, temperature=params.temperature)
        current = chosen[:, None]
        for row, token in enumerate(chosen.tolist()):
            active[row] = active[row] and token not in ends
            if active[row]:
                out[row].append(token)
        if not any(active):
            break
    return out
