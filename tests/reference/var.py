"""Attention sinks, redistribution and gradient maps once more, slowly, on the raw Hugging Face modules; no workbench.

The text model's attention is replaced by one written here, a loop over heads, so that a pattern can be changed on its
way. No cache, one example at a time.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tests.reference.vhd import decoder_layers, extended


@contextmanager
def changed_attention(hf: Any, change: Callable[[int, Tensor, Tensor], Tensor]) -> Iterator[None]:
    """`change(layer, x, pattern)` with the layer's input `[pos, d_model]` and pattern `[head, query, key]`."""
    layers = decoder_layers(hf)
    module = sys.modules[type(layers[0].self_attn).__module__]
    original = module.eager_attention_forward  # type: ignore[attr-defined]
    inputs: dict[int, Tensor] = {}
    handles = []
    for index, layer in enumerate(layers):

        def see(_: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any], index: int = index) -> None:
            inputs[index] = (args[0] if args else kwargs["hidden_states"])[0]

        handles.append(layer.register_forward_pre_hook(see, with_kwargs=True))

    def attention(part: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
        n_heads, per_group = query.shape[1], query.shape[1] // key.shape[1]
        scale = options.get("scaling") or 1 / math.sqrt(query.shape[-1])
        rows = []
        for h in range(n_heads):
            scores = query[0, h] @ key[0, h // per_group].T * scale
            if attention_mask is None:
                scores = scores + torch.full_like(scores, -1e30).triu(1)
            else:
                scores = scores + attention_mask[0, 0, :, : scores.shape[-1]]
            rows.append(torch.softmax(scores, dim=-1))
        pattern = change(part.layer_idx, inputs[part.layer_idx], torch.stack(rows))
        out = torch.stack([pattern[h] @ value[0, h // per_group] for h in range(n_heads)], dim=1)  # [query, head, d]
        return out[None], pattern[None]

    module.eager_attention_forward = attention  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.eager_attention_forward = original  # type: ignore[attr-defined]
        for handle in handles:
            handle.remove()


def phi(x: Tensor, dimensions: tuple[int, ...]) -> list[float]:
    """Of every position."""
    out = []
    for row in x.tolist():
        rms = math.sqrt(sum(v * v for v in row) / len(row) + 1e-6)
        out.append(max(abs(row[d]) / rms for d in dimensions))
    return out


def redistributed_row(
    row: list[float],
    image: list[int],
    sinks: list[int],
    *,
    move: float,
    least: float | None,
    min_mass: float,
    visual_only: bool = False,
) -> list[float]:
    """One query's attention after redistribution; `least` None treats every row."""
    free = [j for j in image if j not in sinks]
    on_image, on_free = sum(row[j] for j in image), sum(row[j] for j in free)
    if least is not None and not (on_image >= min_mass and on_free / on_image >= least):
        return row
    givers = [j for j in sinks if j in image] if visual_only else sinks
    if on_free <= 0:
        return row
    budget = sum(move * row[j] for j in givers)
    new = list(row)
    for j in givers:
        new[j] = row[j] * (1 - move)
    for j in free:
        new[j] = row[j] + budget * row[j] / on_free
    return new


@torch.no_grad()
def generate(
    hf: Any,
    inputs: dict[str, Any],
    *,
    dimensions: tuple[int, ...],
    tau: float,
    layers: list[int],
    steps: int,
    **rule: Any,
) -> tuple[list[int], Tensor, dict[int, list[int]]]:
    """Greedy tokens, logits of each step `[step, vocab]`, and each layer's sinks, under redistribution."""
    ids = inputs["input_ids"][0].tolist()
    image = [i for i, token in enumerate(ids) if token == hf.config.image_token_id]
    found: dict[int, list[int]] = {}

    def change(layer: int, x: Tensor, pattern: Tensor) -> Tensor:
        if layer not in layers:
            return pattern
        found[layer] = [i for i, value in enumerate(phi(x[: len(ids)], dimensions)) if value > tau]
        new = pattern.clone()
        for h in range(pattern.shape[0]):
            for query in range(image[-1] + 1, pattern.shape[1]):
                new[h, query] = torch.tensor(redistributed_row(pattern[h, query].tolist(), image, found[layer], **rule))
        return new

    tokens: list[int] = []
    kept = []
    with changed_attention(hf, change):
        for _ in range(steps):
            logits = hf(**extended(inputs, tokens), use_cache=False).logits[0, -1]
            kept.append(logits)
            tokens.append(int(logits.argmax()))
    return tokens, torch.stack(kept), found


@torch.no_grad()
def last_rows(hf: Any, inputs: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
    """The last query's attention `[layer, head, key]`, and each layer's input `[pos, d_model]`."""
    rows: dict[int, Tensor] = {}
    streams: dict[int, Tensor] = {}

    def keep(layer: int, x: Tensor, pattern: Tensor) -> Tensor:
        rows[layer], streams[layer] = pattern[:, -1].clone(), x.clone()
        return pattern

    with changed_attention(hf, keep):
        hf(**inputs, use_cache=False)
    order = sorted(rows)
    return torch.stack([rows[i] for i in order]), [streams[i] for i in order]


def gradient_map(hf: Any, inputs: dict[str, Any], layer: int) -> Tensor:
    """mean_h A ReLU(dL/dA) on the image tokens, L the log-probability of the most likely next token."""
    leaves: list[Tensor] = []

    def cut(at: int, _: Tensor, pattern: Tensor) -> Tensor:
        if at != layer:
            return pattern
        leaves.append(pattern.detach().clone().requires_grad_(True))
        return leaves[-1]

    with changed_attention(hf, cut), torch.enable_grad():
        logits = hf(**inputs, use_cache=False).logits[0, -1]
        (-torch.nn.functional.cross_entropy(logits[None], logits.argmax()[None])).backward()
    weight, slope = leaves[0].detach(), leaves[0].grad
    assert slope is not None
    image = (inputs["input_ids"][0] == hf.config.image_token_id).nonzero()[:, 0].tolist()
    n_heads = weight.shape[0]
    return torch.tensor(
        [
            sum(float(weight[h, -1, j]) * max(float(slope[h, -1, j]), 0.0) for h in range(n_heads)) / n_heads
            for j in image
        ]
    )


@torch.no_grad()
def log_prob(hf: Any, inputs: dict[str, Any], layer: int, head: int, key: int, by: float) -> float:
    """Of the most likely next token of the unchanged model, with `by` added to one weight of the last query."""
    best = int(hf(**inputs, use_cache=False).logits[0, -1].argmax())

    def nudge(at: int, _: Tensor, pattern: Tensor) -> Tensor:
        if at == layer:
            pattern = pattern.clone()
            pattern[head, -1, key] += by
        return pattern

    with changed_attention(hf, nudge):
        return float(hf(**inputs, use_cache=False).logits[0, -1].double().log_softmax(-1)[best])
