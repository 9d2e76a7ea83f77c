"""Heads of a raw Hugging Face GPT-2 switched off by plain module hooks, to test the truth of planted models.

Deliberately independent of the package's interventions and of the generators' own measurements.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Head = tuple[int, int]


def every_head(model: Any) -> list[Head]:
    return [(layer, head) for layer in range(model.config.n_layer) for head in range(model.config.n_head)]


@contextmanager
def off(model: Any, heads: Sequence[Head], kind: str = "zero") -> Iterator[None]:
    """`zero`: the head's input to the output projection is 0; `uniform`: its queries are 0 (equal attention)."""
    d_head = model.config.n_embd // model.config.n_head
    handles = []

    def columns(layer: int) -> list[int]:
        return [head * d_head + i for at, head in heads if at == layer for i in range(d_head)]

    def zero_z(which: list[int]) -> Any:
        def hook(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            z = args[0].clone()
            z[..., which] = 0
            return (z, *args[1:])

        return hook

    def zero_q(which: list[int]) -> Any:
        def hook(_: Any, args: Any, qkv: Tensor) -> Tensor:
            qkv = qkv.clone()
            qkv[..., which] = 0  # q comes first
            return qkv

        return hook

    for layer in sorted({layer for layer, _ in heads}):
        attention = model.transformer.h[layer].attn
        if kind == "zero":
            handles.append(attention.c_proj.register_forward_pre_hook(zero_z(columns(layer))))
        else:
            handles.append(attention.c_attn.register_forward_hook(zero_q(columns(layer))))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def logits(model: Any, rows: Sequence[Sequence[int]]) -> Tensor:
    """[row, pos, vocab]; shorter rows are filled up on the right, where a causal model does not look."""
    longest = max(map(len, rows))
    with torch.no_grad():
        return model(torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])).logits


def share_said(model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> float:
    """Share of answer tokens that are the first choice in their place."""
    choice = logits(model, [[*p, *a] for p, a in zip(prompts, answers, strict=True)]).argmax(-1)
    hits = [
        int(choice[i, len(p) - 1 + j]) == token
        for i, (p, a) in enumerate(zip(prompts, answers, strict=True))
        for j, token in enumerate(a)
    ]
    return sum(hits) / len(hits)


def output_norms(model: Any, head: Head, rows: Sequence[Sequence[int]]) -> list[float]:
    """Length of what `head` adds to the residual stream at the last position of each row."""
    layer, index = head
    d_head = model.config.n_embd // model.config.n_head
    seen: list[Tensor] = []
    projection = model.transformer.h[layer].attn.c_proj
    handle = projection.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        logits(model, rows)
    finally:
        handle.remove()
    part = slice(index * d_head, (index + 1) * d_head)
    added = seen[0][..., part] @ projection.weight[part]  # [row, pos, width]
    return [added[i, len(row) - 1].norm().item() for i, row in enumerate(rows)]


def is_silent(model: Any, head: Head) -> bool:
    """Whether every weight that only this head uses is zero."""
    layer, index = head
    width, n_heads = model.config.n_embd, model.config.n_head
    d_head = width // n_heads
    rows = slice(index * d_head, (index + 1) * d_head)
    attention = model.transformer.h[layer].attn
    qkv = attention.c_attn.weight.view(width, 3, width)[:, :, rows]
    return bool((qkv == 0).all() and (attention.c_proj.weight[rows] == 0).all())
