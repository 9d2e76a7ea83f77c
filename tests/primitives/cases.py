"""Shared by the tests of primitives: tiny models, prompts, and references made of raw PyTorch hooks on the HF modules.

The references share no code with TransformerLens or the workbench: a forward pre-hook on the output projection sees and
replaces z as `[batch, pos, head, d_head]`, a forward hook on the value projection sees v.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from tests.tiny import PAD, tiny, tiny_hf
from workbench.models import Model

N_HEADS = 4


@cache
def model(arch: str, dtype: torch.dtype = torch.float32) -> Model:
    return tiny(arch, dtype=dtype)


@cache
def raw(arch: str, dtype: torch.dtype = torch.float32):
    return tiny_hf(arch, dtype=dtype)


def prompts(batch: int = 2, length: int = 20, seed: int = 0) -> Tensor:
    return torch.randint(4, 64, (batch, length), generator=torch.Generator().manual_seed(seed))


def left_padded(tokens: Tensor, n_padding: list[int]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """A batch whose row i lost its last n_padding[i] tokens and was padded in front; its mask; its rows alone."""
    length = tokens.shape[1]
    alone = [row[None, : length - n] for row, n in zip(tokens, n_padding, strict=True)]
    rows = [torch.cat([torch.full((n,), PAD), row[0]]) for row, n in zip(alone, n_padding, strict=True)]
    mask = torch.stack([(torch.arange(length) >= n).long() for n in n_padding])
    return torch.stack(rows), mask, alone


def blocks(hf):
    inner = getattr(hf, "transformer", None) or getattr(hf, "gpt_neox", None) or hf.model
    inner = getattr(inner, "decoder", inner)
    return inner.h if hasattr(inner, "h") else inner.layers


def attention(hf, layer: int):
    block = blocks(hf)[layer]
    for name in ("attn", "self_attn", "attention", "self_attention"):
        if hasattr(block, name):
            return getattr(block, name)
    raise AssertionError(type(block))


def output_projection(hf, layer: int):
    attn = attention(hf, layer)
    for name in ("c_proj", "o_proj", "out_proj", "dense"):
        if hasattr(attn, name):
            return getattr(attn, name)
    raise AssertionError(type(attn))


def _read_values(hf, layer: int, store: dict) -> list:
    """Hooks that put v `[batch, pos, kv_head, d_head]` of `layer` into store["v"]."""
    attn = attention(hf, layer)
    if hasattr(attn, "v_proj"):
        groups = getattr(hf.config, "num_key_value_heads", None) or N_HEADS
        return [attn.v_proj.register_forward_hook(lambda m, a, y: store.update(v=y.unflatten(-1, (groups, -1))))]
    if hasattr(attn, "c_attn"):  # GPT-2: q, k, v one after the other
        return [
            attn.c_attn.register_forward_hook(lambda m, a, y: store.update(v=y.chunk(3, -1)[2].unflatten(-1, (4, -1))))
        ]
    # NeoX, Bloom: per head q, k, v
    return [
        attn.query_key_value.register_forward_hook(
            lambda m, a, y: store.update(v=y.unflatten(-1, (N_HEADS, 3, -1))[..., 2, :])
        )
    ]


@contextmanager
def raw_z(hf, layer: int, edit: Callable[[Tensor, dict], Tensor]):
    """Replace z of `layer` by `edit(z, {"v": v})` in every forward inside the block."""
    seen: dict = {}

    def pre(module, args):
        z = args[0].unflatten(-1, (N_HEADS, -1))
        return (edit(z.clone(), seen).flatten(-2),)

    handles = [*_read_values(hf, layer, seen), output_projection(hf, layer).register_forward_pre_hook(pre)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def raw_logits(arch: str, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Logits of the plain Hugging Face model, with positions counted from the first real token."""
    hf = raw(arch)
    if mask is None:
        return hf(tokens).logits
    if arch in ("opt", "bloom"):
        return hf(tokens, attention_mask=mask).logits
    return hf(tokens, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits


def visible(arch: str, layer: int, length: int, mask: Tensor | None = None) -> Tensor:
    """`[batch or 1, query, key]` by definition: causal, inside the sliding window, not padding."""
    config = raw(arch).config
    i, j = torch.arange(length)[:, None], torch.arange(length)[None]
    seen = j <= i
    kinds = getattr(config, "layer_types", None)
    slides = kinds[layer] == "sliding_attention" if kinds else arch == "mistral"
    if slides:
        seen = seen & (i - j < config.sliding_window)
    return seen[None] if mask is None else seen[None] & mask.bool()[:, None]


def uniform_z(arch: str, layer: int, heads: list[int], mask: Tensor | None = None) -> Callable[[Tensor, dict], Tensor]:
    """Undifferentiated attention by hand: the mean of the values each row can see."""

    def edit(z: Tensor, seen: dict) -> Tensor:
        v = seen["v"]
        sees = visible(arch, layer, z.shape[1], mask).float()
        weights = sees / sees.sum(-1, keepdim=True).clamp(min=1)
        for head in heads:
            z[:, :, head] = weights @ v[:, :, head // (N_HEADS // v.shape[2])]
        return z

    return edit


def n_hooks(m: Model) -> int:
    """Every PyTorch hook on every module of the model."""
    modules = {id(x): x for x in (*m.bridge.modules(), *m.bridge.original_model.modules())}
    return sum(len(x._forward_hooks) + len(x._forward_pre_hooks) + len(x._backward_hooks) for x in modules.values())


def weights(m: Model) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in m.bridge.original_model.named_parameters()}


def largest(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())
