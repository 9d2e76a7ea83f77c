"""Activation patching and path patching, one patch at a time, with raw hooks on Hugging Face modules.

The slow twins of `primitives.patching` and `primitives.paths`: whole forwards only, nothing cached between patches, and
no code shared with the workbench or TransformerLens. q, k, v are read and written where the projections return them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from tests.primitives.cases import attention, blocks, output_projection

Edits = Mapping[tuple[str, int], Callable[[Tensor], Tensor]]  # (part, layer) -> what to do with [n, pos, ...]


def dims(hf) -> tuple[int, int, int]:
    """Heads, kv heads, layers."""
    c = hf.config
    return c.num_attention_heads, getattr(c, "num_key_value_heads", None) or c.num_attention_heads, c.num_hidden_layers


def _mlp(hf, layer):
    return blocks(hf)[layer].mlp


def _on_output(fn):
    def hook(_module, _args, output):
        new = fn(output[0] if isinstance(output, tuple) else output)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    return hook


def _on_input(fn):
    def hook(_module, args, kwargs):
        if args:
            return (fn(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": fn(kwargs["hidden_states"])}

    return hook


def _on_projection(hf, layer, part, fn):
    """Hook on what the projection of q, k or v returns, as [n, pos, heads, d_head]."""
    attn, (n_heads, n_kv, _) = attention(hf, layer), dims(hf)
    if hasattr(attn, f"{part}_proj"):
        width = n_heads if part == "q" else n_kv
        return getattr(attn, f"{part}_proj").register_forward_hook(
            lambda _m, _a, y: fn(y.unflatten(-1, (width, -1))).flatten(-2)
        )
    at = "qkv".index(part)
    if hasattr(attn, "c_attn"):  # GPT-2: all q, all k, all v

        def joint(_m, _a, y):
            thirds = list(y.chunk(3, -1))
            thirds[at] = fn(thirds[at].unflatten(-1, (n_heads, -1))).flatten(-2)
            return torch.cat(thirds, -1)

        return attn.c_attn.register_forward_hook(joint)

    def per_head(_m, _a, y):  # NeoX: q, k, v of each head
        y = y.unflatten(-1, (n_heads, 3, -1)).clone()
        y[..., at, :] = fn(y[..., at, :])
        return y.flatten(-3)

    return attn.query_key_value.register_forward_hook(per_head)


@contextmanager
def edited(hf, edits: Edits):
    """Parts: q, k, v, z `[n, pos, heads, d_head]`; attn_out, mlp_out, resid_pre, resid_post `[n, pos, d_model]`."""
    n_heads = dims(hf)[0]
    with ExitStack() as stack:
        for (part, layer), fn in edits.items():
            if part in "qkv":
                handle = _on_projection(hf, layer, part, fn)
            elif part == "z":
                handle = output_projection(hf, layer).register_forward_pre_hook(
                    lambda _m, a, fn=fn: (fn(a[0].unflatten(-1, (n_heads, -1))).flatten(-2),)
                )
            elif part == "resid_pre":
                handle = blocks(hf)[layer].register_forward_pre_hook(_on_input(fn), with_kwargs=True)
            else:
                module = {"attn_out": attention(hf, layer), "mlp_out": _mlp(hf, layer), "resid_post": blocks(hf)[layer]}
                handle = module[part].register_forward_hook(_on_output(fn))
            stack.callback(handle.remove)
        yield


@torch.no_grad()
def run(hf, tokens: Tensor, mask: Tensor | None = None, edits: Edits | None = None) -> Tensor:
    """Logits at the last column."""
    options = {}
    if mask is not None:
        options = {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    with edited(hf, edits or {}):
        return hf(tokens, **options).logits[:, -1]


def read(hf, tokens: Tensor, parts: list[tuple[str, int]], mask: Tensor | None = None, edits: Edits | None = None):
    """The named activations of a run under `edits`, read before an edit of the same part."""
    store: dict[tuple[str, int], Tensor] = {}
    edits = dict(edits or {})

    def keep(key):
        def fn(value):
            store[key] = value.clone()
            return edits[key](value) if key in edits else value

        return fn

    run(hf, tokens, mask, {**edits, **{key: keep(key) for key in parts}})
    return store


def swap(source: Tensor, index: int | None = None, where: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """Take `source` for the head or group `index` (None: everything), at the columns `where` [n, pos] (None: all)."""

    def fn(value):
        value = value.clone()
        at = torch.ones(value.shape[:2], dtype=torch.bool) if where is None else where
        if index is None:
            value[at] = source[at]
        else:
            value[:, :, index][at] = source[:, :, index][at]
        return value

    return fn


def patch(hf, base, other, part, layer, index=None, mask=None, where=None) -> Tensor:
    """Logits of the base run with one activation of the other run in it."""
    source = read(hf, other, [(part, layer)], mask)[part, layer]
    return run(hf, base, mask, {(part, layer): swap(source, index, where)})


def _then(first, second):
    return second if first is None else lambda value: second(first(value))


def path_patch(hf, base, other, sender, receivers, mlps, mask=None, sent_at=None, received_at=None) -> Tensor:
    """Logits of pass 3. `sender` is (layer, head), or (layer, None) for the MLP; `receivers` is "logits" or a list of
    (part, layer, index)."""
    n_layers = dims(hf)[2]
    zs = [("z", layer) for layer in range(n_layers)]
    outs = [("mlp_out", layer) for layer in range(n_layers)] if mlps == "freeze" else []
    clean = read(hf, base, [*zs, *outs], mask)  # pass 1
    layer, head = sender
    speaks = ("mlp_out", layer) if head is None else ("z", layer)
    sent = swap(read(hf, other, [speaks], mask)[speaks], head, sent_at)

    frozen = {key: swap(clean[key]) for key in [*zs, *outs]}  # pass 2
    frozen[speaks] = _then(frozen.get(speaks), sent)
    if receivers == "logits":
        return run(hf, base, mask, frozen)
    heard_parts = [("mlp_out" if part == "mlp" else part, layer) for part, layer, _ in receivers]
    heard = read(hf, base, heard_parts, mask, frozen)

    played: dict = {}  # pass 3
    for (_, _, index), key in zip(receivers, heard_parts, strict=True):
        played[key] = _then(played.get(key), swap(heard[key], index, received_at))
    return run(hf, base, mask, played)
