"""Slow twin of the sweep: one full forward of the raw Hugging Face model per unit, edited by plain PyTorch hooks.

Written from the definitions; it shares no code with the package and sees no bridge. A forward pre-hook on the output
projection sees and replaces z as `[batch, pos, head, d_head]`; a forward hook on the value projection sees v.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor


def blocks(hf):
    inner = getattr(hf, "transformer", None) or getattr(hf, "gpt_neox", None) or hf.model
    inner = getattr(inner, "decoder", inner)
    return inner.h if hasattr(inner, "h") else inner.layers


def n_heads(hf) -> int:
    return hf.config.num_attention_heads


def attention(hf, layer: int):
    block = blocks(hf)[layer]
    return next(getattr(block, n) for n in ("attn", "self_attn", "attention", "self_attention") if hasattr(block, n))


def projection(hf, layer: int):
    attn = attention(hf, layer)
    return next(getattr(attn, n) for n in ("c_proj", "o_proj", "out_proj", "dense") if hasattr(attn, n))


@torch.no_grad()
def logits(hf, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Next-token logits of every prompt, `[batch, vocab]`."""
    if mask is None:
        return hf(tokens).logits[:, -1]
    extra = (
        {} if type(hf).__name__.startswith(("OPT", "Bloom")) else {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    )
    out = hf(tokens, attention_mask=mask, **extra).logits
    last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
    return out[torch.arange(len(out)), last]


@torch.no_grad()
def read(hf, tokens: Tensor, mask: Tensor | None = None) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """z and v `[batch, pos, head, d_head]` of every layer; v of each query head's kv head."""
    z: dict[int, Tensor] = {}
    v: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for layer in range(len(blocks(hf))):
            stack.enter_context(_edited(hf, layer, lambda x, layer=layer: z.__setitem__(layer, x.clone())))
            stack.enter_context(_values(hf, layer, v))
        logits(hf, tokens, mask)
    return z, v


def edited(hf, tokens: Tensor, mask: Tensor | None, unit: Iterable[tuple[int, int]], new: Callable) -> Tensor:
    """Next-token logits with z of every head in `unit` replaced by `new(layer, head, z, v)`.

    What `new` sees and returns is `[batch, pos, d_head]`. Layers are edited in one forward: a higher layer's z and v
    are those that the lower edit leaves.
    """
    v: dict[int, Tensor] = {}
    heads = sorted(unit)
    with ExitStack() as stack:
        for layer in sorted({layer for layer, _ in heads}):

            def edit(z: Tensor, layer: int = layer) -> Tensor:
                z = z.clone()
                for at, head in heads:
                    if at == layer:
                        z[:, :, head] = new(layer, head, z[:, :, head], v[layer][:, :, head])
                return z

            stack.enter_context(_values(hf, layer, v))
            stack.enter_context(_edited(hf, layer, edit))
        return logits(hf, tokens, mask)


def pushed(hf, tokens: Tensor, mask: Tensor | None, layer: int, change: Tensor) -> Tensor:
    """Next-token logits with `change` `[batch, pos, d_model]` added to what the output projection of `layer` writes."""
    handle = projection(hf, layer).register_forward_hook(lambda m, a, out: out + change.reshape(out.shape))
    try:
        return logits(hf, tokens, mask)
    finally:
        handle.remove()


def write(hf, layer: int, head: int, z: Tensor) -> Tensor:
    """What one head's z adds to the residual stream: W_O^h z."""
    weight = projection(hf, layer).weight
    if type(projection(hf, layer)).__name__ != "Conv1D":
        weight = weight.T
    d_head = weight.shape[0] // n_heads(hf)
    return z @ weight[head * d_head : (head + 1) * d_head]


def visible(hf, layer: int, length: int, mask: Tensor | None) -> Tensor:
    """`[batch or 1, query, key]` by definition: causal, inside the sliding window, not padding."""
    i, j = torch.arange(length)[:, None], torch.arange(length)[None]
    seen = j <= i
    kinds = getattr(hf.config, "layer_types", None)
    window = getattr(hf.config, "sliding_window", None)
    if window and (kinds[layer] == "sliding_attention" if kinds else hf.config.model_type == "mistral"):
        seen = seen & (i - j < window)
    return seen[None] if mask is None else seen[None] & mask.bool()[:, None]


def even(hf, layer: int, v: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of the values each row can see (padding rows see none and keep nothing)."""
    sees = visible(hf, layer, v.shape[1], mask).to(v.dtype)
    return (sees / sees.sum(-1, keepdim=True).clamp(min=1)) @ v


def metric(name: str, rows: Tensor, base: Tensor, answer: Tensor, wrong: Tensor) -> list[float]:
    """One number per prompt, each from its definition, in float64."""
    prompts = zip(rows.double(), base.double(), answer.tolist(), wrong.tolist(), strict=True)
    return [float(_METRICS[name](row, base_row, a, w)) for row, base_row, a, w in prompts]


def _p(row: Tensor) -> Tensor:
    return torch.softmax(row, 0)


_METRICS: dict[str, Callable] = {
    "logit_diff": lambda row, base, a, w: row[a] - row[w],
    "kl": lambda row, base, a, w: (_p(base) * (_p(base).log() - _p(row).log())).sum(),
    "prob": lambda row, base, a, w: _p(row)[a],
    "log_prob": lambda row, base, a, w: _p(row)[a].log(),
    "rank": lambda row, base, a, w: (row > row[a]).sum(),
    "loss": lambda row, base, a, w: -_p(row)[a].log(),
}


@contextmanager
def _edited(hf, layer: int, edit: Callable):
    def pre(module, args):
        new = edit(args[0].unflatten(-1, (n_heads(hf), -1)))
        return None if new is None else (new.flatten(-2).reshape(args[0].shape),)

    handle = projection(hf, layer).register_forward_pre_hook(pre)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _values(hf, layer: int, into: dict[int, Tensor]):
    """v `[batch, pos, query head, d_head]` of `layer`, before the output projection runs."""
    attn, heads = attention(hf, layer), n_heads(hf)

    def keep(v: Tensor) -> None:
        into[layer] = v.repeat_interleave(heads // v.shape[2], dim=2)

    if hasattr(attn, "v_proj"):
        groups = getattr(hf.config, "num_key_value_heads", None) or heads
        handle = attn.v_proj.register_forward_hook(lambda m, a, y: keep(y.unflatten(-1, (groups, -1))))
    elif hasattr(attn, "c_attn"):  # GPT-2: q, k, v one after the other
        handle = attn.c_attn.register_forward_hook(lambda m, a, y: keep(y.chunk(3, -1)[2].unflatten(-1, (heads, -1))))
    else:  # NeoX: per head q, k, v
        handle = attn.query_key_value.register_forward_hook(
            lambda m, a, y: keep(y.unflatten(-1, (heads, 3, -1))[..., 2, :])
        )
    try:
        yield
    finally:
        handle.remove()
