"""What is true of `planted-ioi`, and the measurements that show it: the cards of its two tasks.

Known from how the weights were written: which heads, which roles, which edges. Measured here, with plain hooks on the
Hugging Face modules and no analysis of the workbench:

    ablation   accuracy without the circuit's heads, and without all others; zero, or the mean over these prompts
    noising    for every head and corruption: its output taken from the corrupted prompt, all else recomputed
    edges      for every edge and corruption: only what the receiver's q, k or v (or the logits) reads of the sender is
               taken from the corrupted prompt

Both in units of the logit difference lost: (clean - patched) / (clean - corrupted), means over the prompts first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from workbench.organisms.planted.writing import Slot

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from workbench.tasks.pairs import PairBatch

N_PAIRS = 32
N_OVERLAP = 16  # pairs of each task, where both are looked at together
VISIBLE = 0.1  # share of the logit difference from which the cards call a head or an edge visible

Edge = tuple[str, str, str]  # sender, receiver, input: roles; "logits" has no input
EDGES: dict[str, tuple[Edge, ...]] = {
    "ioi": (
        ("previous token", "induction", "k"),
        ("induction", "S-inhibition", "k"),
        ("duplicate token", "S-inhibition", "v"),
        ("S-inhibition", "shared mover", "q"),
        ("S-inhibition", "name mover", "q"),
        ("S-inhibition", "negative mover", "q"),
        ("shared mover", "logits", ""),
        ("name mover", "logits", ""),
        ("negative mover", "logits", ""),
    ),
    "colored_objects": (
        ("previous token", "duplicate token", "v"),
        ("duplicate token", "content gatherer", "v"),
        ("content gatherer", "shared mover", "q"),
        ("shared mover", "logits", ""),
    ),
}
# the corruption under which every head of the circuit can be seen, and the one of the largest effect
SEES_ALL = {"ioi": "redraw", "colored_objects": "context"}


def circuit(task: str) -> tuple[str, ...]:
    """Roles that take part in a task, in the order of its edges."""
    return tuple(dict.fromkeys(role for a, b, _ in EDGES[task] for role in (a, b) if role != "logits"))


def movers(task: str) -> tuple[str, ...]:
    """Roles that write to the logits."""
    return tuple(sender for sender, receiver, _ in EDGES[task] if receiver == "logits")


# ---- measuring


class Probe:
    """Plain hooks on a GPT-2: run tokens, keep what its heads put out, and run again with parts of it replaced."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.blocks = model.transformer.h
        self.n_heads = model.config.n_head
        self.d_head = model.config.n_embd // self.n_heads

    def logits(self, tokens: Tensor) -> Float[Tensor, "n vocab"]:
        """At the last position. The prompts of one task are equally long, so there is no padding."""
        import torch

        with torch.no_grad():
            return self.model(input_ids=tokens, use_cache=False).logits[:, -1]

    def outputs(self, tokens: Tensor) -> list[Float[Tensor, "n pos width"]]:
        """Every layer's z, heads side by side."""
        kept: list[Tensor] = []
        handles = [
            block.attn.c_proj.register_forward_pre_hook(lambda _, args: kept.append(args[0].clone()))
            for block in self.blocks
        ]
        try:
            self.logits(tokens)
        finally:
            for handle in handles:
                handle.remove()
        return kept

    def columns(self, head: int) -> slice:
        return slice(head * self.d_head, (head + 1) * self.d_head)

    @contextmanager
    def replaced(self, heads: Sequence[Slot], values: Callable[[int], Any]) -> Iterator[None]:
        """Within the block the z of `heads` is taken from `values(layer)`: all heads side by side, or a number."""

        def replace(layer: int) -> Callable[..., Any]:
            def hook(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor]:  # noqa: ARG001
                z, new = args[0].clone(), values(layer)
                for head in (h for at, h in heads if at == layer):
                    z[..., self.columns(head)] = new[..., self.columns(head)] if hasattr(new, "shape") else new
                return (z,)

            return hook

        handles = [
            self.blocks[layer].attn.c_proj.register_forward_pre_hook(replace(layer))
            for layer in {at for at, _ in heads}
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def edge(self, change: Float[Tensor, "n pos width"], receiver: Slot | None, part: str) -> Iterator[None]:
        """Within the block `receiver`'s q, k or v (None: the logits) reads the residual stream plus `change`."""
        if receiver is None:
            final = self.model.transformer.ln_f
            handles = [final.register_forward_pre_hook(lambda _, args: (args[0] + change,))]
        else:
            layer, head = receiver
            block, start = self.blocks[layer], "qkv".index(part) * self.model.config.n_embd + head * self.d_head
            columns = slice(start, start + self.d_head)
            stream: list[Tensor] = []

            def reread(module: Any, args: Any, out: Tensor) -> Tensor:  # noqa: ARG001
                changed = out.clone()
                read = block.ln_1(stream[-1] + change) @ block.attn.c_attn.weight + block.attn.c_attn.bias
                changed[..., columns] = read[..., columns]
                return changed

            handles = [
                block.register_forward_pre_hook(lambda _, args: stream.append(args[0])),
                block.attn.c_attn.register_forward_hook(reread),
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def written(self, z: Sequence[Tensor], slot: Slot) -> Float[Tensor, "n pos width"]:
        """What a head adds to the residual stream."""
        layer, head = slot
        return z[layer][..., self.columns(head)] @ self.blocks[layer].attn.c_proj.weight[self.columns(head)]

    @property
    def heads(self) -> list[Slot]:
        return [(layer, head) for layer in range(len(self.blocks)) for head in range(self.n_heads)]


def logit_difference(logits: Tensor, batch: PairBatch) -> float:
    """Answer minus wrong answer, mean over pairs."""
    right, wrong = (logits.gather(1, token[:, None]) for token in (batch.answer, batch.wrong))
    return float((right - wrong).double().mean())


def accuracy(logits: Tensor, batch: PairBatch) -> float:
    """Share of pairs whose answer is the most likely of all words."""
    return round(float((logits.argmax(-1) == batch.answer).double().mean()), 4)


def visibility(probe: Probe, batch: PairBatch, slots: Mapping[str, Slot], task: str) -> dict[str, Any]:
    """Noising effect of every head and edge of `task` under one corruption, and the largest of all other heads."""
    z_clean, z_other = probe.outputs(batch.clean), probe.outputs(batch.corrupted)
    clean, corrupted = (logit_difference(probe.logits(t), batch) for t in (batch.clean, batch.corrupted))

    def lost() -> float:
        return round((clean - logit_difference(probe.logits(batch.clean), batch)) / (clean - corrupted), 4)

    effects: dict[Slot, float] = {}
    for slot in probe.heads:
        with probe.replaced([slot], lambda layer: z_other[layer]):
            effects[slot] = lost()
    edges = []
    for sender, receiver, part in EDGES[task]:
        change = probe.written(z_other, slots[sender]) - probe.written(z_clean, slots[sender])
        with probe.edge(change, slots.get(receiver), part):
            edges.append({**_edge(slots, (sender, receiver, part)), "effect": lost()})
    roles = {slots[role]: role for role in circuit(task)}
    return {
        "logit_difference": {"clean": round(clean, 3), "corrupted": round(corrupted, 3)},
        "heads": [{"head": list(slot), "role": role, "effect": effects[slot]} for slot, role in roles.items()],
        "sees": sorted(list(slot) for slot in roles if abs(effects[slot]) >= VISIBLE),
        "edges": edges,
        "sees_edges": sum(abs(edge["effect"]) >= VISIBLE for edge in edges),
        "largest_other_head": max(abs(effect) for slot, effect in effects.items() if slot not in roles),
    }


def ablations(probe: Probe, batch: PairBatch, heads: Sequence[Slot]) -> dict[str, float]:
    """Accuracy intact, without `heads`, and without all others."""
    rest = [slot for slot in probe.heads if slot not in set(heads)]
    z = probe.outputs(batch.clean)

    def without(off: Sequence[Slot], values: Callable[[int], Any]) -> float:
        with probe.replaced(off, values):
            return accuracy(probe.logits(batch.clean), batch)

    figures = {"intact": accuracy(probe.logits(batch.clean), batch)}
    for name, values in (("zeroed", lambda _: 0.0), ("at_their_mean", lambda layer: z[layer].mean(0, keepdim=True))):
        figures[f"circuit_{name}"] = without(heads, values)
        figures[f"all_others_{name}"] = without(rest, values)
    return figures


# ---- cards


def _edge(slots: Mapping[str, Slot], edge: Edge) -> dict[str, Any]:
    sender, receiver, part = edge
    if receiver == "logits":
        return {"sender": list(slots[sender]), "receiver": "logits"}
    return {"sender": list(slots[sender]), "receiver": list(slots[receiver]), "input": part}


def card(
    task: str,
    model: Any,
    tokenizer: Any,
    slots: Mapping[str, Slot],
    options: Mapping[str, Any],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """The card of one of the two tasks: everything that depends on `task` alone; `about` holds its words."""
    from workbench.organisms.planted.folder import describe
    from workbench.tasks import circuits

    probe = Probe(model)
    roles = circuit(task)
    planted = [slots[role] for role in roles]
    seen = {
        name: visibility(probe, circuits.task(task, tokenizer, N_PAIRS, corruption=name).batch(), slots, task)
        for name in circuits.corruptions(task)
    }
    figures = ablations(probe, circuits.task(task, tokenizer, 2 * N_PAIRS, seed=1).batch(), planted)
    shared = [role for role in circuit("ioi") if role in circuit("colored_objects")]
    union = len({*circuit("ioi"), *circuit("colored_objects")})
    both = {
        "claim": "overlap",
        "data": {"tasks": {name: {"task": name, "n": N_OVERLAP} for name in EDGES}},
        "heads": sorted(list(slots[role]) for role in shared),
        "optional": [],
        "value": len(shared) / union,
        "how": "planted",
        "evidence": f"written so: {len(shared)} heads serve both tasks, {union} serve one or both (Jaccard of the two)",
    }
    blind = {
        name: [head["role"] for head in found["heads"] if head["head"] not in found["sees"]]
        for name, found in seen.items()
    }
    direct = [slots[role] for role in movers(task)]
    least, largest = _least(seen[SEES_ALL[task]]), max(found["largest_other_head"] for found in seen.values())
    evidence = (
        f"accuracy {figures['intact']:.2f}; {figures['circuit_zeroed']:.2f} with these heads zeroed "
        f"({figures['circuit_at_their_mean']:.2f} at their mean), {figures['all_others_zeroed']:.2f} with all others "
        f"zeroed; every head and edge has an effect of at least {least:.2f} under {SEES_ALL[task]}, no other head one "
        f"above {largest:.3f} under any corruption"
    )
    return {
        "name": about["name"],
        "kind": "planted",
        **({"weights": about["weights"]} if "weights" in about else {}),
        "summary": about["summary"],
        "task": {"data": {"task": task}, "corruptions": circuits.corruptions(task), "options": dict(options)},
        "ground_truth": f"{about['ground_truth']} " + _sees(blind),
        "model": describe(model),
        "accuracy": {"metric": f"the answer is the likeliest of all words, {2 * N_PAIRS} prompts", **figures},
        "truths": [
            {
                "claim": "circuit",
                "data": {"task": task, "n": N_PAIRS, "corruption": SEES_ALL[task]},
                "heads": sorted(map(list, planted)),
                "optional": [],
                "roles": {role: [list(slots[role])] for role in roles},
                "edges": [_edge(slots, edge) for edge in EDGES[task]],
                "how": "planted",
                "evidence": evidence,
            },
            {
                "claim": "direct",
                "data": {"task": task, "n": N_PAIRS},
                "heads": sorted(map(list, direct)),
                "optional": [],
                "roles": {role: [list(slots[role])] for role in movers(task)},
                "how": "planted",
                "evidence": "effect on the logits alone: "
                + ", ".join(
                    f"{edge['sender'][0]}-{edge['sender'][1]} {edge['effect']:.2f}"
                    for edge in next(iter(seen.values()))["edges"]
                    if edge["receiver"] == "logits"
                ),
            },
            *([] if "weights" in about else [both]),  # one of the two cards of these weights says it
        ],
        "overlap": {
            "with": about["other"],
            "shared": {role: list(slots[role]) for role in shared},
            "jaccard": len(shared) / union,
            "of_ioi": len(shared) / len(circuit("ioi")),
            "of_colored_objects": len(shared) / len(circuit("colored_objects")),
        },
        "visibility": {"metric": "share of the logit difference lost when noised", "from": VISIBLE, **seen},
    }


def _least(found: Mapping[str, Any]) -> float:
    return min(abs(record["effect"]) for record in (*found["heads"], *found["edges"]))


def _sees(blind: Mapping[str, Sequence[str]]) -> str:
    """In words, what each corruption cannot see."""
    parts = []
    for name, roles in blind.items():
        parts.append(
            f"{name} sees every head" if not roles else f"{name} cannot see the {' and the '.join(roles)} head"
        )
    return "Of the corruptions, " + "; ".join(parts) + "."
