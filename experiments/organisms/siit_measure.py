"""Measures what the card of the organism `siit-ioi` states, on the weights as saved.

Everything goes through the plain hooks of `siit_swaps.py`. Shares are of prompts answered as the algorithm does, the
answer being the most likely of all tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from siit_algorithm import NODES, behaviour, interchanged
from siit_prompts import Prompts, World
from siit_swaps import Chosen, Head, end_logits, record, swapped, swapped_path
from torch import Tensor

INPUTS = ("q", "k", "v")


def answers(model: Any, prompts: Prompts) -> Tensor:
    """The most likely token after each prompt, `[n]`."""
    return end_logits(model, prompts.tokens, prompts.last).argmax(-1)


def right(found: Tensor, target: Tensor, names: Tensor) -> float:
    """Share of tokens `[n]` that are the algorithm's answer, of the rows of `target` `[n, n_names]` with only one."""
    certain = target.max(1).values == 1
    return _round((found == names[target.argmax(1)])[certain].float().mean())


def among(found: Tensor, target: Tensor, names: Tensor) -> float:
    """Share of tokens `[n]` that are one of the algorithm's answers, of the rows with several equally likely ones."""
    open_ = target.max(1).values < 1
    hit = ((found[:, None] == names) & (target > 0)).any(1)
    return _round(hit[open_].float().mean())


def _round(value: Any) -> float:
    return round(float(value), 4)


@torch.no_grad()
def behaviour_accuracy(model: Any, base: Prompts, names: Tensor) -> float:
    """Share of prompts that the model answers right."""
    return right(answers(model, base), behaviour(base.mentions, len(names)), names)


@torch.no_grad()
def interchange_accuracy(
    model: Any, base: Prompts, source: Prompts, names: Tensor, stands_for: dict[str, Head]
) -> dict[str, dict[str, Any]]:
    """Per node, what the model answers when the head that stands for it has its output on the source.

    `one`: share of right answers in the `n` prompts for which the algorithm has one answer; `changed`: the same where
    that is not the answer to the base; `two`: where it has two, share of answers that are one of these.
    """
    outputs, found = record(model, source.tokens), {"n": {}, "one": {}, "changed": {}, "two": {}}
    for i, node in enumerate(NODES):
        target = interchanged(base.mentions, source.mentions, torch.full((len(base),), i), len(names))
        with swapped(model, outputs, Chosen.one(model, len(base), heads=[stands_for[node]])):
            given = answers(model, base)
        found["n"][node] = int((target.max(1).values == 1).sum())
        found["one"][node] = right(given, target, names)
        changed = (target.argmax(1) != behaviour(base.mentions, len(names)).argmax(1)).float()[:, None]
        one = (target.max(1).values == 1).float()[:, None]
        found["changed"][node] = right(given, target * one * changed, names)
        found["two"][node] = among(given, target, names)
    return found


@torch.no_grad()
def place_accuracy(
    model: Any, base: Prompts, source: Prompts, names: Tensor, stands_for: dict[str, Head]
) -> dict[str, dict[str, Any]]:
    """Per node: share of right answers when its head is swapped only at its place (the answer of the interchange), and
    at all other positions (the answer to the base)."""
    outputs, found, n = record(model, source.tokens), {}, len(base)
    before = behaviour(base.mentions, len(names))
    for i, node in enumerate(NODES):
        target = interchanged(base.mentions, source.mentions, torch.full((n,), i), len(names))
        place = place_of(node, base)
        found[node] = {"place": "S2" if i == 0 else "end"}
        for name, at, expected in (("there", place, target), ("elsewhere", ~place, before)):
            with swapped(model, outputs, Chosen.one(model, n, heads=[stands_for[node]], at=at)):
                found[node][name] = right(answers(model, base), expected, names)
    return found


def place_of(node: str, prompts: Prompts) -> Tensor:
    """Where the node's value is computed, `[n, pos]`: the third name for `duplicate token`, the end for the others."""
    place = prompts.third if node == NODES[0] else prompts.last
    return torch.nn.functional.one_hot(place, prompts.tokens.shape[1]).bool()


@torch.no_grad()
def strict_accuracy(
    model: Any, base: Prompts, source: Prompts, names: Tensor, circuit: list[Head]
) -> dict[str, dict[str, float]]:
    """Share of right answers to the base when components outside the circuit write something else.

    One row per head and MLP outside and one for all of them together; columns: their output on the source, zero, and
    their mean output over the prompts per position.
    """
    outputs, n = record(model, source.tokens), len(base)
    instead = {"source": outputs, "zero": outputs.zero(), "mean": record(model, base.tokens).mean()}
    target = behaviour(base.mentions, len(names))
    layers = range(model.config.n_layer)
    heads = [(layer, h) for layer in layers for h in range(model.config.n_head) if (layer, h) not in circuit]
    parts = {f"head {layer}.{h}": Chosen.one(model, n, heads=[(layer, h)]) for layer, h in heads}
    parts |= {f"mlp {layer}": Chosen.one(model, n, mlps=(layer,)) for layer in layers}
    parts["all of these"] = Chosen.one(model, n, heads=heads, mlps=tuple(layers))
    found = {}
    for name, chosen in parts.items():
        found[name] = {}
        for how, written in instead.items():
            with swapped(model, written, chosen):
                found[name][how] = right(answers(model, base), target, names)
    return found


@torch.no_grad()
def noising_effects(model: Any, data: Any) -> dict[str, Any]:
    """What each head carries of the logit difference of the pairs in `data`, `[layer][head]`.

    The head has its output on the corrupted prompt; effect = mean loss of logit difference / mean logit difference of
    the clean prompts.
    """
    tokens, corrupted, last = padded(data)
    rows = torch.arange(len(last))
    answer, wrong = (torch.tensor([getattr(s, key) for s in data]) for key in ("answer", "wrong"))

    def difference(of: Tensor) -> Tensor:
        logits = end_logits(model, of, last)
        return logits[rows, answer] - logits[rows, wrong]

    clean, other = difference(tokens), difference(corrupted)
    outputs, effects = record(model, corrupted), []
    for layer in range(model.config.n_layer):
        effects.append([])
        for head in range(model.config.n_head):
            with swapped(model, outputs, Chosen.one(model, len(rows), heads=[(layer, head)])):
                effects[-1].append(_round((clean - difference(tokens)).mean() / clean.mean()))
    return {
        "n": len(data),
        "logit_diff_clean": _round(clean.mean()),
        "logit_diff_corrupted": _round(other.mean()),
        "effect": effects,
    }


def padded(data: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Clean and corrupted prompts of a PairDataset padded on the right, and their last real positions."""
    longest = max(s.length for s in data)
    clean, corrupted = (
        torch.tensor([[*getattr(s, side), *(0,) * (longest - s.length)] for s in data])
        for side in ("clean", "corrupted")
    )
    return clean, corrupted, torch.tensor([s.length - 1 for s in data])


@torch.no_grad()
def path_accuracy(
    model: Any, base: Prompts, source: Prompts, names: Tensor, stands_for: dict[str, Head]
) -> list[dict[str, Any]]:
    """Path interchange, per pair of circuit heads and input of the later one, and from each straight to the logits.

    `as_interchanged`: share of prompts answered as if the whole sender were interchanged, `unchanged`: share still
    answered right; both over prompts where these are two different answers.
    """
    own, outputs, rows = record(model, base.tokens), record(model, source.tokens), []
    before = behaviour(base.mentions, len(names))
    for i, node in enumerate(NODES):
        target = interchanged(base.mentions, source.mentions, torch.full((len(base),), i), len(names))
        differs = ((target.max(1).values == 1) & (target.argmax(1) != before.argmax(1))).float()[:, None]
        later = [stands_for[other] for other in NODES[i + 1 :]]
        for receiver, into in [*((head, x) for head in later for x in INPUTS), (None, None)]:
            with swapped_path(model, own, outputs, stands_for[node], receiver, into):  # type: ignore[arg-type]
                found = answers(model, base)
            rows.append(
                {
                    "sender": list(stands_for[node]),
                    "receiver": list(receiver) if receiver else "logits",
                    "input": into,
                    "as_interchanged": right(found, target * differs, names),
                    "unchanged": right(found, before * differs, names),
                }
            )
    return rows


def batches(bank: Any, n: int, seed: int, *, split: str) -> tuple[Prompts, Prompts]:
    """Prompts with a duplicated name, and a source for each."""
    world = World(bank, seed, split=split)
    base = world.base(n)
    return base, world.source(base, related=0.75)
