"""The card of the organism `multitask`: accuracies on held-out prompts, the heads found, and what ablating them does.

Heads are found with the package's analyses (every head ablated to zero, to its mean, to another prompt's, and patched
from the corrupted run under two corruptions), and what is found is then checked with `train_multitask_checks`, which
shares no code with them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from train_multitask_checks import TASKS, accuracies, every_head, figures
from transformers import AutoTokenizer, GPT2LMHeadModel

import workbench as wb
from workbench.tasks import circuits

IN_CIRCUIT = 0.1  # share of the logit difference that a head's mean ablation costs
UNCLEAR = 0.04  # below this a head is not in the circuit; in between it is neither
UNSEEN = 0.02  # a head of the circuit that patching from the corrupted run does not see
N_FOUND = 128
CORRUPTIONS = {  # two per task, the second of another kind than the first
    "ioi": ("flip", "redraw"),
    "colored_objects": ("query", "context"),
    "greater_than": ("01", "later"),
    "docstring": ("definition", "docstring"),
}


def measure(folder: Path, *, n: int = N_FOUND) -> dict[str, Any]:
    """Everything the card states, measured on the weights as saved."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    raw: Any = GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager").eval()
    model = wb.load_model(str(folder))
    config = raw.config
    tasks = {name: _found(model, raw, name, n) for name in TASKS}
    return {
        "model": {
            "architecture": "GPT2LMHeadModel",
            "n_layers": config.n_layer,
            "n_heads": config.n_head,
            "n_kv_heads": config.n_head,
            "d_head": config.n_embd // config.n_head,
            "d_model": config.n_embd,
            "d_mlp": config.n_inner,
            "vocab_size": config.vocab_size,
            "n_ctx": config.n_positions,
            "n_parameters": sum(p.numel() for p in raw.parameters()),
            "dtype": "float32",
        },
        "accuracy": {
            "metric": "share of held-out prompts whose most probable next token is right; 400 prompts per task",
            "held_out": {name: circuits.task(name, tokenizer, 1).meta["split_by"] for name in TASKS},
            "tasks": accuracies(raw, tokenizer, n=400),
            "with_5_filler_words": {
                name: figures(raw, circuits.task(name, tokenizer, 200, split="held_out", prefix=5, seed=3))["accuracy"]
                for name in TASKS
            },
        },
        "truths": [_truth(name, found, n) for name, found in tasks.items()],
        "effects": {
            "metric": "share of the logit difference lost, [layer][head]; patching: of the gap to the corrupted run",
            **{name: found["effects"] for name, found in tasks.items()},
        },
        "causal": {name: found["causal"] for name, found in tasks.items()},
    }


def _found(model: Any, raw: Any, name: str, n: int) -> dict[str, Any]:
    """Effect of every head on one task, the circuit, and what is left without it and without all others."""
    data = {c: circuits.task(name, model, n, corruption=c, split="held_out") for c in CORRUPTIONS[name]}
    first = next(iter(data.values()))
    effects = {}
    for edit in ("mean", "zero", "resample"):
        heads = wb.ablation(model, first, edit=edit, controls=0, bootstrap=20).heads
        effects[edit] = -heads.matrix("normalised")
    for corruption, pairs in data.items():
        patched = wb.activation_patching(model, pairs, direction="noising", controls=0, bootstrap=20, streams=())
        effects[f"patched from {corruption}"] = patched.heads.matrix()
    mean = effects["mean"]
    circuit = [head for head in every_head(raw) if mean[head] > IN_CIRCUIT]
    others = [head for head in every_head(raw) if head not in circuit]
    whole = figures(raw, first)
    causal: dict[str, Any] = {"n": n, "nothing_ablated": whole}
    for label, ablated in (("circuit_ablated", circuit), ("all_others_ablated", others)):
        left = figures(raw, first, ablated)
        causal[label] = {**left, "logit_diff_left": round(left["logit_diff"] / whole["logit_diff"], 4)}
    drawn = [_matched(circuit, raw, seed) for seed in range(10)]
    left = [figures(raw, first, heads)["logit_diff"] / whole["logit_diff"] for heads in drawn]
    causal["random_heads_ablated"] = {"draws": len(drawn), "logit_diff_left": round(float(np.mean(left)), 4)}
    return {
        "circuit": circuit,
        "optional": [head for head in others if mean[head] > UNCLEAR],
        "effects": {key: [[round(float(x), 3) for x in row] for row in grid] for key, grid in effects.items()},
        "unseen": {c: [h for h in circuit if abs(effects[f"patched from {c}"][h]) < UNSEEN] for c in data},
        "causal": causal,
    }


def _matched(circuit: list[tuple[int, int]], raw: Any, seed: int) -> list[tuple[int, int]]:
    """As many heads outside the circuit, drawn from all layers (few layers have enough others of their own)."""
    others = [head for head in every_head(raw) if head not in circuit]
    order = np.random.default_rng(seed).permutation(len(others))[: len(circuit)]
    return [others[i] for i in sorted(order)]


def _truth(name: str, found: dict[str, Any], n: int) -> dict[str, Any]:
    causal = found["causal"]
    gone, kept = causal["circuit_ablated"], causal["all_others_ablated"]
    heads = found["circuit"]
    return {
        "claim": "circuit",
        "data": {"task": name, "n": 32, "split": "held_out", "corruption": CORRUPTIONS[name][0]},
        "heads": [list(head) for head in heads],
        "optional": [list(head) for head in found["optional"]],
        "unseen_by_patching": {c: [list(head) for head in unseen] for c, unseen in found["unseen"].items()},
        "how": "found",
        "evidence": (
            f"mean-ablating any one of these {len(heads)} heads costs more than {IN_CIRCUIT:.0%} of the logit "
            f"difference (n={n}); all together leave {gone['logit_diff_left']:.0%} of it and accuracy "
            f"{gone['accuracy']:.2f}, as many random others {causal['random_heads_ablated']['logit_diff_left']:.0%}, "
            f"and ablating every other head leaves {kept['logit_diff_left']:.0%} and accuracy {kept['accuracy']:.2f}"
        ),
    }


def write_card(folder: Path, *, training: dict[str, Any] | None, smoke: bool = False) -> None:
    """Write `card.json` and `README.md`; without `training`, that part of the old card is kept."""
    path = folder / "card.json"
    if training is None:
        training = dict(json.loads(path.read_text(encoding="utf-8"))["training"])
    card = {
        "name": "multitask",
        "kind": "trained",
        "summary": "One GPT for four circuit tasks: indirect objects, coloured objects, greater-than, docstrings.",
        "task": {
            "data": "workbench.tasks.circuits: ioi, colored_objects, greater_than, docstring",
            "years": "every third year of a century (01, 04, ... 97) is in the vocabulary",
            "held_out": "one in 4 combinations (see accuracy.held_out) is never trained on; figures are on those",
        },
        "ground_truth": (
            "Found, not written: for each task the heads whose mean ablation alone costs more than "
            f"{IN_CIRCUIT:.0%} of the logit difference; heads between {UNCLEAR:.0%} and that are optional."
        ),
        **measure(folder, n=16 if smoke else N_FOUND),
        "training": training,
    }
    path.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_readme(card), encoding="utf-8")


def _readme(card: dict[str, Any]) -> str:
    model, training, accuracy = card["model"], card["training"], card["accuracy"]
    lines = [
        "# organism:multitask",
        "",
        card["summary"],
        "",
        f"{model['architecture']}, {model['n_layers']} layers of {model['n_heads']} heads, {model['n_parameters']:,} "
        f"weights, {model['n_ctx']} positions, one token per word ({model['vocab_size']}); of the years, "
        f"{card['task']['years']}.",
        "",
        "## Accuracy on held-out prompts",
        "",
        f"{accuracy['metric'].capitalize()}. Greater-than: any valid year counts; probability of all valid years "
        f"{accuracy['tasks']['greater_than']['valid_mass']:.3f}.",
        "",
        "| task | never trained on | accuracy | after 5 filler words |",
        "|---|---|---|---|",
    ]
    for name, row in accuracy["tasks"].items():
        moved = accuracy["with_5_filler_words"][name]
        lines.append(f"| {name} | 1 in 4 {accuracy['held_out'][name]} | {row['accuracy']:.3f} | {moved:.3f} |")
    lines += ["", "## Circuits found", "", card["ground_truth"], ""]
    for truth in card["truths"]:
        unseen = [
            f"patching from `{corruption}` does not see {_named(heads)}"
            for corruption, heads in truth["unseen_by_patching"].items()
            if heads
        ]
        text = f"- **{truth['data']['task']}**: {_named(truth['heads'])}. {truth['evidence'].capitalize()}."
        lines.append(" ".join([text, *(f"{line[0].upper()}{line[1:]}." for line in unseen)]))
    lines += [
        "",
        "Effects of every head under each edit are in `card.json`.",
        "",
        "## How it was made",
        "",
        f"`{training['command']}`, seed {training['seed']}, {training['cpu_seconds']} CPU seconds "
        f"({training['seconds']} by the clock) on one thread, torch {training['torch']}. Stages and loss curve are in "
        "`card.json`.",
        "",
    ]
    return "\n".join(lines)


def _named(heads: list[Any]) -> str:
    return ", ".join(f"{layer}.{head}" for layer, head in heads) or "none"
