"""Slow twin of Ships and Sahara: plain transformers, q := 0 by a forward hook, one prompt, one head, one full forward.

Written from the paper's equations 9 and 11 and its algorithm 1; it shares no code with the package, sees no bridge, and
never batches or pads. A query of zero scores all visible keys alike, whatever norm or rotation follows it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor

Head = tuple[int, int]


@contextmanager
def zeroed_queries(hf, heads: Iterable[Head]):
    """q := 0 for these heads, after the projection and its bias."""
    n_heads = hf.config.num_attention_heads
    inner = hf.transformer.h if hasattr(hf, "transformer") else hf.model.layers
    with ExitStack() as stack:
        for layer, head in heads:
            if hasattr(inner[layer], "attn"):  # GPT-2: q, k, v one after the other
                module, width = inner[layer].attn.c_attn, hf.config.n_embd // n_heads
            else:
                module = inner[layer].self_attn.q_proj
                width = module.out_features // n_heads

            def zero(m, args, out, head=head, width=width):
                out = out.clone()
                out[..., head * width : (head + 1) * width] = 0
                return out

            stack.callback(module.register_forward_hook(zero).remove)
        yield


@contextmanager
def scaled_outputs(hf, heads: Iterable[Head], alpha: float):
    """z := alpha z for these heads, before the output projection."""
    n_heads = hf.config.num_attention_heads
    inner = hf.transformer.h if hasattr(hf, "transformer") else hf.model.layers
    with ExitStack() as stack:
        for layer, head in heads:
            attn = inner[layer].attn if hasattr(inner[layer], "attn") else inner[layer].self_attn
            module = attn.c_proj if hasattr(attn, "c_proj") else attn.o_proj

            def scale(m, args, head=head):
                z = args[0].clone()
                width = z.shape[-1] // n_heads
                z[..., head * width : (head + 1) * width] *= alpha
                return (z,)

            stack.callback(module.register_forward_pre_hook(scale).remove)
        yield


@torch.no_grad()
def logits(hf, tokens: Sequence[int]) -> Tensor:
    """Next-token logits `[vocab]` of one prompt."""
    return hf(torch.tensor([list(tokens)])).logits[0, -1]


@torch.no_grad()
def state(hf, tokens: Sequence[int]) -> np.ndarray:
    """Hidden state at the last token after the final norm, `[d]`."""
    body = hf.transformer if hasattr(hf, "transformer") else hf.model
    return body(torch.tensor([list(tokens)])).last_hidden_state[0, -1].double().numpy()


def kl(base: Tensor, other: Tensor) -> float:
    """Equation 9, in the precision of float32 softmaxes or better."""
    wide = torch.promote_types(base.dtype, torch.float32)
    p, q = torch.log_softmax(base.to(wide), 0), torch.log_softmax(other.to(wide), 0)
    return float((p.exp() * (p - q)).sum())


def ships(hf, prompts: Sequence[Sequence[int]], heads: Iterable[Head]) -> dict[Head, list[float]]:
    """KL of every prompt with every head's queries zeroed."""
    base = [logits(hf, prompt) for prompt in prompts]
    found = {}
    for head in heads:
        with zeroed_queries(hf, [head]):
            found[head] = [kl(b, logits(hf, prompt)) for b, prompt in zip(base, prompts, strict=True)]
    return found


def angle(base: np.ndarray, other: np.ndarray, rank: int = 1) -> float:
    """Equation 11 in degrees: principal angles between the first `rank` left singular vectors, one at a time.

    Each angle is that between a vector of one span and its nearest in the other, found by sine, not by arccos.
    """
    u, v = (np.linalg.svd(m, full_matrices=False)[0][:, :rank] for m in (base, other))
    left, _, right = np.linalg.svd(u.T @ v)
    total = 0.0
    for i in range(rank):
        a, b = u @ left[:, i], v @ right[i]
        total += 2 * math.asin(min(1.0, float(np.linalg.norm(a - b * np.sign(a @ b))) / 2))
    return math.degrees(total)


def sahara(
    hf, prompts: Sequence[Sequence[int]], heads: Sequence[Head], size: int, rank: int = 1
) -> tuple[list[Head], list[dict[Head, float]]]:
    """Algorithm 1 by brute force: the group in order, and every candidate's angle in every step."""
    base = np.stack([state(hf, prompt) for prompt in prompts])
    group: list[Head] = []
    tables = []
    for _ in range(size):
        table = {}
        for head in heads:
            if head not in group:
                with zeroed_queries(hf, [*group, head]):
                    other = np.stack([state(hf, prompt) for prompt in prompts])
                table[head] = angle(base, other, rank)
        tables.append(table)
        group.append(max(table, key=lambda head: table[head]))
    return group, tables
