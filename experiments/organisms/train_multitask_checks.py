"""Measures the organism `multitask` with plain PyTorch hooks: accuracy, and what is left when heads are mean-ablated.

Independent of the package's interventions and analyses, so that what those find can be held against it. A model is a
GPT2LMHeadModel, heads are (layer, head), 0-based. Ablated heads write their mean over the unablated run of the same
prompts, at each position its own (all prompts of a task are equally long).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from workbench.tasks import PairDataset, circuits

Head = tuple[int, int]
TASKS = ("ioi", "colored_objects", "greater_than", "docstring")


def every_head(model: Any) -> list[Head]:
    """All heads, in order."""
    return [(layer, head) for layer in range(model.config.n_layer) for head in range(model.config.n_head)]


@torch.no_grad()
def mean_outputs(model: Any, tokens: Tensor) -> list[Tensor]:
    """For each layer the mean of all heads' outputs over the prompts, `[pos, head * d_head]`."""
    means: list[Tensor] = []
    handles = [
        block.attn.c_proj.register_forward_pre_hook(lambda _, args: means.append(args[0].mean(0)))
        for block in model.transformer.h
    ]
    try:
        model(input_ids=tokens)
    finally:
        for handle in handles:
            handle.remove()
    return means


@torch.no_grad()
def last_logits(model: Any, tokens: Tensor, ablated: Collection[Head] = ()) -> Tensor:
    """Logits of the next token `[n, vocab]` with these heads mean-ablated together."""
    width = model.config.n_embd // model.config.n_head
    means = mean_outputs(model, tokens) if ablated else []
    handles = []
    for layer, block in enumerate(model.transformer.h):
        columns = [head * width + i for at, head in ablated if at == layer for i in range(width)]
        if columns:

            def hook(_: Any, args: Any, columns: list[int] = columns, layer: int = layer) -> tuple[Tensor]:
                z = args[0].clone()
                z[..., columns] = means[layer][:, columns]
                return (z,)

            handles.append(block.attn.c_proj.register_forward_pre_hook(hook))
    try:
        return model(input_ids=tokens).logits[:, -1]
    finally:
        for handle in handles:
            handle.remove()


def figures(model: Any, data: PairDataset, ablated: Collection[Head] = ()) -> dict[str, float]:
    """Accuracy (greater-than: also the probability of all valid years) and mean logit difference of clean prompts."""
    batch = data.batch()
    logits = last_logits(model, batch.clean, ablated)
    rows = torch.arange(len(data))
    difference = logits[rows, batch.answer] - logits[rows, batch.wrong]
    right = [set(sample.answers or (sample.answer,)) for sample in data]
    accuracy = sum(int(best) in valid for best, valid in zip(logits.argmax(-1), right, strict=True)) / len(data)
    found = {"accuracy": round(accuracy, 4), "logit_diff": round(float(difference.mean()), 4)}
    if data.name == "greater_than":
        p = logits.softmax(-1)
        valid = sum(float(p[i, list(sample.answers)].sum()) for i, sample in enumerate(data))
        found["valid_mass"] = round(valid / len(data), 4)
    return found


def accuracies(model: Any, tokenizer: Any, *, n: int = 200, seed: int = 1000) -> dict[str, dict[str, float]]:
    """`figures` of every task on held-out combinations."""
    return {name: figures(model, circuits.task(name, tokenizer, n, split="held_out", seed=seed)) for name in TASKS}
