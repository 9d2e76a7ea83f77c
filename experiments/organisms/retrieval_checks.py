"""Measures what the card of the organism `retrieval` states: recall, which heads retrieve, and what masking them does.

This is an independent, slow and plain implementation (eager attention, hooks on `q_proj` and `o_proj`), so that it can
be held against the analyses of the package. A model is a LlamaForCausalLM with eager attention. Heads are
(layer, head), 0-based.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from workbench.tasks import NeedleDataset, NeedleSample, needle

Head = tuple[int, int]


@contextmanager
def masked(model: Any, heads: Sequence[Head], kind: str) -> Iterator[None]:
    """Heads that write nothing (`zero`) or attend equally to all they see (`uniform`: their query is 0)."""
    d_head = model.config.head_dim

    def edit(of_layer: list[int]) -> Any:
        columns = torch.cat([torch.arange(h * d_head, (h + 1) * d_head) for h in of_layer])
        return lambda x: x.index_fill(-1, columns, 0.0)

    handles = []
    for i, layer in enumerate(model.model.layers):
        of_layer = [h for (at, h) in heads if at == i]
        if not of_layer:
            continue
        fn = edit(of_layer)
        if kind == "zero":
            hook = lambda _m, args, fn=fn: (fn(args[0]),)  # noqa: E731
            handles.append(layer.self_attn.o_proj.register_forward_pre_hook(hook))
        elif kind == "uniform":
            hook = lambda _m, _args, out, fn=fn: fn(out)  # noqa: E731
            handles.append(layer.self_attn.q_proj.register_forward_hook(hook))
        else:
            raise ValueError(kind)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def generate(
    model: Any,
    prompts: Tensor,
    n_new: int,
    *,
    heads: Sequence[Head] = (),
    kind: str = "zero",
    scope: str = "decode",
    attentions: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Greedy continuation of equally long prompts `[batch, pos]`.

    Returns the new tokens `[batch, n_new]` and, if asked, the attended position `[batch, n_new, layer, head]` of the
    row that predicts each. Scope `decode` masks from the last prompt token on, `all` everywhere.
    """
    cache = DynamicCache()
    with masked(model, heads if scope == "all" else (), kind):
        model(input_ids=prompts[:, :-1], past_key_values=cache, use_cache=True, logits_to_keep=1)
    new, rows, token = [], [], prompts[:, -1:]
    with masked(model, heads, kind):
        for _ in range(n_new):
            out = model(input_ids=token, past_key_values=cache, use_cache=True, output_attentions=attentions)
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            new.append(token)
            if attentions:
                rows.append(torch.stack([a[:, :, -1].argmax(-1) for a in out.attentions], 1))
    return torch.cat(new, 1), torch.stack(rows, 1) if attentions else None


def by_length(data: NeedleDataset) -> Iterator[list[NeedleSample]]:
    """Samples in groups of equal length."""
    for length in sorted({s.length for s in data}):
        yield [s for s in data if s.length == length]


def recall(model: Any, data: NeedleDataset, **how: Any) -> dict[str, float]:
    """Per sample: the fraction of answer tokens produced at their place (exact order, stricter than ROUGE-1)."""
    found = {}
    for group in by_length(data):
        n_new = max(len(s.needle_tokens) for s in group)
        new, _ = generate(model, torch.tensor([s.tokens for s in group]), n_new, **how)
        for sample, tokens in zip(group, new.tolist(), strict=True):
            want = sample.needle_tokens
            found[sample.id] = sum(a == b for a, b in zip(want, tokens, strict=False)) / len(want)
    return found


def mean_recall(model: Any, data: NeedleDataset, **how: Any) -> float:
    values = recall(model, data, **how).values()
    return sum(values) / len(values)


def wu_scores(model: Any, data: NeedleDataset) -> Tensor:
    """Mean retrieval score `[layer, head]` (Wu et al. 2024): copy-paste steps of a head over the needle's length."""
    total = torch.zeros(model.config.num_hidden_layers, model.config.num_attention_heads)
    for group in by_length(data):
        n_new = max(len(s.needle_tokens) for s in group) + 2
        prompts = torch.tensor([s.tokens for s in group])
        new, at = generate(model, prompts, n_new, attentions=True)
        assert at is not None
        for i, sample in enumerate(group):
            a, b = sample.needle
            stop = new[i].tolist().index(model.config.eos_token_id) if model.config.eos_token_id in new[i] else n_new
            inside = (at[i] >= a) & (at[i] < b)  # [step, layer, head]
            copied = prompts[i][at[i].clamp(max=prompts.shape[1] - 1)] == new[i][:, None, None]
            total += (inside & copied)[:stop].sum(0) / (b - a)
    return total / len(data)


def matched_random(heads: Sequence[Head], n_heads: int, seed: int, *, exclude: Sequence[Head] = ()) -> list[Head]:
    """As many heads of each layer as `heads` has, none of them in `heads` or `exclude` (as far as there are others)."""
    rng = random.Random(f"matched-{seed}")
    drawn: list[Head] = []
    for layer in sorted({layer for layer, _ in heads}):
        wanted = sum(at == layer for at, _ in heads)
        others = [(layer, h) for h in range(n_heads) if (layer, h) not in heads and (layer, h) not in exclude]
        drawn += rng.sample(others, min(wanted, len(others)))
    return drawn


def evaluation_set(tokenizer: Any, *, n: int, lengths: Sequence[int], seed: int) -> NeedleDataset:
    """Held-out needles at five depths."""
    return needle(tokenizer, n, lengths=lengths, depths=(0, 0.25, 0.5, 0.75, 1), seed=seed)
