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


class Share:
    """What is left of the mean logit difference: 1 with every head in place, 0 with every head mean-ablated.

    What all heads ablated leaves is guessing, which has a logit difference of its own (later years are likelier).
    """

    def __init__(self, model: Any, data: PairDataset) -> None:
        self.model, self.data = model, data
        self.whole, self.bare = (figures(model, data, h)["logit_diff"] for h in ((), every_head(model)))

    def left(self, ablated: Collection[Head]) -> float:
        """The share left without these heads."""
        return (figures(self.model, self.data, ablated)["logit_diff"] - self.bare) / (self.whole - self.bare)


def find_circuit(model: Any, data: PairDataset, *, keep: float) -> tuple[list[Head], dict[Head, float]]:
    """A smallest set of heads that does `keep` of the task while all others are mean-ablated.

    Backward elimination: of the heads still in place the one that costs least is ablated too, as long as `keep` of the
    logit difference is left. Heads that stand in for each other are found although none of them costs much alone.
    Returns the circuit and what each head of the model costs alone.
    """
    share = Share(model, data)
    alone = {head: 1 - share.left([head]) for head in every_head(model)}
    ablated: list[Head] = []
    while len(ablated) < len(alone):
        left = {head: share.left([*ablated, head]) for head in alone if head not in ablated}
        best = max(left, key=lambda head: left[head])
        if left[best] < keep:
            break
        ablated.append(best)
    return [head for head in alone if head not in ablated], alone


def accuracies(model: Any, tokenizer: Any, *, n: int = 200, seed: int = 1000) -> dict[str, dict[str, float]]:
    """`figures` of every task on held-out combinations."""
    return {name: figures(model, circuits.task(name, tokenizer, n, split="held_out", seed=seed)) for name in TASKS}
