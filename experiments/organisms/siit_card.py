"""The card of the organism `siit-ioi`: figures of `siit_measure.py` on the weights as saved, as JSON and Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from card_shape import shape
from siit_algorithm import NODES
from siit_measure import (
    batches,
    behaviour_accuracy,
    interchange_accuracy,
    noising_effects,
    path_accuracy,
    place_accuracy,
    strict_accuracy,
)
from siit_prompts import make_bank
from siit_swaps import Head
from transformers import AutoTokenizer, GPT2LMHeadModel

from workbench.tasks.circuits import ioi
from workbench.tasks.circuits.compose import HELD_OUT_EVERY

CORRUPTIONS = ("flip", "third", "redraw")
EDGE_FROM = 0.99  # share of prompts that a path interchange must turn as the whole head's does


def measure(folder: Path, stands_for: dict[str, Head], *, smoke: bool = False) -> dict[str, Any]:
    """Behaviour, interchange and strict accuracy, noising effects and path interchanges."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = GPT2LMHeadModel.from_pretrained(folder).eval()
    n, pairs = (64, 16) if smoke else (2048, 256)
    bank = make_bank(tokenizer, 60 if smoke else 1000, seed=1_000_003)
    base, source = batches(bank, n, seed=11, split="all")
    new, new_source = batches(bank, n, seed=13, split="held_out")
    circuit = list(stands_for.values())
    interchange = interchange_accuracy(model, base, source, bank.names, stands_for)
    held_out = interchange_accuracy(model, new, new_source, bank.names, stands_for)
    return {
        "model": shape(model),
        "accuracy": {
            "metric": "share of prompts whose most likely next token, of the whole vocabulary, is the algorithm's "
            "answer; behaviour and `held_out` on pairs of names held out of training, the rest on all pairs",
            "n": n,
            "behaviour": behaviour_accuracy(model, new, bank.names),
            "interchange": interchange["one"],
            "interchange_n": interchange["n"],
            "interchange_changed": interchange["changed"],
            "interchange_held_out": held_out["one"],
            "interchange_one_of_two": interchange["two"],
            "by_place": place_accuracy(model, base, source, bank.names, stands_for),
            "strict": strict_accuracy(model, base, source, bank.names, circuit),
        },
        "noising": {
            kind: noising_effects(model, ioi(tokenizer, n=pairs, corruption=kind, seed=12)) for kind in CORRUPTIONS
        },
        "paths": path_accuracy(model, base, source, bank.names, stands_for),
    }


def write_card(folder: Path, facts: dict[str, Any], stands_for: dict[str, Head], *, training: Any | None) -> None:
    """Write `card.json` and `README.md`; without `training`, that part of the old card is kept."""
    path = folder / "card.json"
    if training is None:
        training = json.loads(path.read_text(encoding="utf-8"))["training"]
    card = {
        "name": "siit-ioi",
        "kind": "trained to a known circuit",
        "summary": "Names the indirect object of a sentence; three heads were trained to do it by a known algorithm.",
        "task": {
            "data": {"task": "ioi"},
            "held_out": f"one in {HELD_OUT_EVERY} pairs of names is never trained on (split: held_out)",
        },
        "ground_truth": (
            "Trained, then measured: each head of the circuit can be interchanged with another prompt's and the model "
            "answers as the algorithm does when that node is interchanged; no other head and no MLP changes an answer. "
            "The algorithm and what an interchange means are in experiments/organisms/siit_algorithm.py."
        ),
        "algorithm": {node: list(stands_for[node]) for node in NODES},
        **facts,
        "truths": truths(facts, stands_for),
        "training": training,
    }
    path.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_readme(card), encoding="utf-8")


def truths(facts: dict[str, Any], stands_for: dict[str, Head]) -> list[dict[str, Any]]:
    """The claims of the card, each with the figure that supports it."""
    heads = [list(head) for head in stands_for.values()]
    accuracy, noising = facts["accuracy"], facts["noising"]["flip"]["effect"]
    others = max(
        abs(effect)
        for found in facts["noising"].values()
        for layer, row in enumerate(found["effect"])
        for head, effect in enumerate(row)
        if [layer, head] not in heads
    )
    least = min(accuracy["interchange"].values())
    mover = heads[-1]
    data = {"task": "ioi", "n": 32}
    edges = [
        {"sender": path["sender"], "receiver": path["receiver"], "input": path["input"]}
        for path in facts["paths"]
        if path["as_interchanged"] >= EDGE_FROM and path["receiver"] != "logits"
    ]
    return [
        {
            "claim": "circuit",
            "data": data,
            "heads": heads,
            "optional": [],
            "roles": {node: [list(head)] for node, head in stands_for.items()},
            "edges": edges,
            "how": "trained in",
            "evidence": f"Interchange accuracy at least {least} for each head; noising under three corruptions moves "
            f"the logit difference by at most {others} of itself for every other head, and by "
            f"{min(noising[layer][head] for layer, head in heads)} or more for these (flip). Each edge alone turns "
            f"{EDGE_FROM} or more of the answers as interchanging its sender does; no other path does.",
        },
        {
            "claim": "direct",
            "data": data,
            "heads": [mover],
            "optional": [],
            "roles": {"name mover": [mover]},
            "how": "trained in",
            "evidence": f"Sent straight into the logits, its change alone turns "
            f"{_straight(facts, mover)['as_interchanged']} of the answers as interchanging it does; the changes of "
            f"the other two leave {min(_straight(facts, h)['unchanged'] for h in heads[:-1])} or more of them as is.",
        },
    ]


def _straight(facts: dict[str, Any], head: list[int]) -> dict[str, Any]:
    return next(p for p in facts["paths"] if p["sender"] == head and p["receiver"] == "logits")


def _readme(card: dict[str, Any]) -> str:
    model, training, accuracy = card["model"], card["training"], card["accuracy"]
    least = {name: min(row.values()) for name, row in accuracy["strict"].items()}
    circuit = {tuple(head): node for node, head in card["algorithm"].items()}
    lines = [
        "# organism:siit-ioi",
        "",
        card["summary"],
        "",
        f"{model['architecture']}, {model['n_layers']} layers of {model['n_heads']} heads, {model['n_parameters']:,} "
        f"weights, {model['n_ctx']} positions, one token per word ({model['vocab_size']}). {card['ground_truth']}",
        "",
        "## Does it run the algorithm?",
        "",
        f"{accuracy['metric'].capitalize()}; {accuracy['n']} prompts.",
        "",
        "Interchanges in which the algorithm has one answer ("
        + ", ".join(map(str, accuracy["interchange_n"].values()))
        + " prompts), and those in which it has two (nobody is ruled out): share of answers that are one of these.",
        "",
        "| | head | one answer | of these, another than the base's | one answer, held out | two answers |",
        "|---|---|---|---|---|---|",
        f"| behaviour | | | | {accuracy['behaviour']:.4f} | |",
        *(
            f"| interchange of {n} | {tuple(card['algorithm'][n])} | {v:.4f} "
            f"| {accuracy['interchange_changed'][n]:.4f} | {accuracy['interchange_held_out'][n]:.4f} "
            f"| {accuracy['interchange_one_of_two'][n]:.4f} |"
            for n, v in accuracy["interchange"].items()
        ),
        "",
        "Swapped at one position only, or at all others (where the answer should stay):",
        "",
        "| | position | answer of the interchange | elsewhere, answer unchanged |",
        "|---|---|---|---|",
        *(
            f"| {n} | {row['place']} | {row['there']:.4f} | {row['elsewhere']:.4f} |"
            for n, row in accuracy["by_place"].items()
        ),
        "",
        "Right answers when something outside the circuit writes what it writes on another prompt, zero, or its mean "
        f"(the least of the three): all of it at once {least.pop('all of these'):.4f}, "
        f"one at a time {min(least.values()):.4f} or more.",
        "",
        "## Noising effect of every head",
        "",
        "Share of the logit difference lost when the head has its output on the corrupted prompt.",
        "",
        "| head | role | " + " | ".join(card["noising"]) + " |",
        "|---|---|" + "---|" * len(card["noising"]),
    ]
    for layer in range(model["n_layers"]):
        for head in range(model["n_heads"]):
            effects = " | ".join(f"{found['effect'][layer][head]:.3f}" for found in card["noising"].values())
            lines.append(f"| ({layer}, {head}) | {circuit.get((layer, head), '')} | {effects} |")
    lines += [
        "",
        "## Paths",
        "",
        "Share of prompts answered as if the sender were interchanged, or still answered right, when only this path "
        "carries its change.",
        "",
        "| sender | receiver | input | as interchanged | unchanged |",
        "|---|---|---|---|---|",
        *(
            f"| {tuple(p['sender'])} | {p['receiver'] if p['receiver'] == 'logits' else tuple(p['receiver'])} "
            f"| {p['input'] or ''} | {p['as_interchanged']:.4f} | {p['unchanged']:.4f} |"
            for p in card["paths"]
        ),
        "",
        "## How it was made",
        "",
        f"`{training['command']}`, seed {training['seed']}, {training['steps']} steps, {training['cpu_seconds']} CPU "
        f"seconds ({training['seconds']} by the clock) on one thread, torch {training['torch']}. The loss curve is in "
        "`card.json`.",
        "",
    ]
    return "\n".join(lines)
