"""What the organism `captions` says, with heads scaled or not: hooks on the raw Hugging Face modules, nothing else.

Shared by the training script's card and by the tests, and independent of the workbench's own primitives, so that either
can be held against the other. Heads are (layer, head) of the language model, both from 0.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from workbench.tasks.captions import mentioned
from workbench.tasks.images import ImageDataset

Head = tuple[int, int]
BATCH = 64
MOST_TOKENS = 32


def decoder_layers(model: Any) -> Any:
    """Layers of the language model inside a LLaVA."""
    return model.model.language_model.layers


@contextmanager
def scaled(model: Any, heads: Sequence[Head], alpha: float) -> Iterator[None]:
    """Inside the block the outputs of `heads` are `alpha` times what they were, before the output projection."""
    d = model.config.text_config.head_dim

    def scale(columns: Tensor) -> Any:
        def hook(_module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (args[0] * columns, *args[1:])

        return hook

    handles = []
    for index, layer in enumerate(decoder_layers(model)):
        columns = torch.ones(layer.self_attn.o_proj.in_features)
        for h in [head for at, head in heads if at == index]:
            columns[h * d : (h + 1) * d] = alpha
        if (columns != 1).any():
            handles.append(layer.self_attn.o_proj.register_forward_pre_hook(scale(columns)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def say(
    model: Any,
    processor: Any,
    data: ImageDataset,
    *,
    pixel_values: Tensor | None = None,
    most_tokens: int = MOST_TOKENS,
) -> list[str]:
    """The model's greedy reply to each sample, as text; `pixel_values` instead of the samples' own when given."""
    tokenizer, replies = processor.tokenizer, []
    for start in range(0, len(data), BATCH):
        part = range(start, min(start + BATCH, len(data)))
        batch = data.batch(processor, part)
        inputs = batch.inputs()
        if pixel_values is not None:
            inputs["pixel_values"] = pixel_values[start : start + len(part)]
        out = model.generate(**inputs, max_new_tokens=most_tokens, do_sample=False)
        replies += tokenizer.batch_decode(out[:, batch.tokens.shape[1] :], skip_special_tokens=True)
    return replies


def chair(data: ImageDataset, replies: Sequence[str]) -> dict[str, float]:
    """Share of mentioned objects that are not drawn (I), of captions with one (S), and how many drawn are mentioned."""
    hits = false = shown = captions_with_false = words = 0
    for sample, reply in zip(data, replies, strict=True):
        said = set(mentioned(reply, data.vocabulary))
        drawn = set(sample.objects or ())
        hits += len(said & drawn)
        false += len(said - drawn)
        shown += len(drawn)
        captions_with_false += bool(said - drawn)
        words += len(reply.split())
    precision, recall = hits / max(1, hits + false), hits / shown
    return {
        "chair_i": round(false / max(1, hits + false), 4),
        "chair_s": round(captions_with_false / len(data), 4),
        "precision": round(precision, 4),
        "recall": round(recall, 4),
        "f1": round(2 * precision * recall / max(1e-9, precision + recall), 4),
        "words": round(words / len(data), 2),
    }


def answers(model: Any, processor: Any, data: ImageDataset) -> dict[str, float]:
    """Accuracy of the first word of each reply, per kind of negatives, and the share of yes."""
    replies = [reply.split()[:1] for reply in say(model, processor, data, most_tokens=1)]
    right = [reply == [sample.answer] for sample, reply in zip(data, replies, strict=True)]
    groups = sorted({sample.group for sample in data})
    out = {g: _mean([ok for ok, s in zip(right, data, strict=True) if s.group == g]) for g in groups}
    return {**out, "all": _mean(right), "yes_ratio": _mean([reply == ["yes"] for reply in replies])}


@torch.no_grad()
def image_difference(model: Any, processor: Any, data: ImageDataset) -> Tensor:
    """Mean L2 distance of each head's output at the last prompt token with and without the image `[layer, head]`."""
    config = model.config.text_config
    with_image = _head_outputs(model, data.batch(processor).inputs())
    text = torch.tensor([sample.text_tokens for sample in data])  # prompts of one length
    without = _head_outputs(model, {"input_ids": text})
    shape = (config.num_hidden_layers, len(data), config.num_attention_heads, config.head_dim)
    return (with_image - without).view(shape).norm(dim=-1).mean(dim=1)


def _head_outputs(model: Any, inputs: dict[str, Any]) -> Tensor:
    """What enters each output projection at the last position `[layer, sample, head * d_head]`."""
    kept: list[Tensor] = []
    handles = [
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _, args: kept.append(args[0][:, -1].clone()))
        for layer in decoder_layers(model)
    ]
    try:
        model(**inputs, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(kept)


def matched_random(heads: Sequence[Head], n_heads: int, seed: int, *, disjoint: bool = True) -> list[Head]:
    """As many heads of each layer as `heads` has there: others (fewer where there are no more), or any."""
    rng, drawn = random.Random(seed), []
    for layer in sorted({layer for layer, _ in heads}):
        taken = [h for at, h in heads if at == layer]
        others = [h for h in range(n_heads) if not disjoint or h not in taken]
        drawn += [(layer, h) for h in sorted(rng.sample(others, min(len(taken), len(others))))]
    return drawn


def _mean(values: Sequence[bool]) -> float:
    return round(sum(values) / max(1, len(values)), 4)
