"""The card of the organism `multitask`: accuracies on held-out prompts, the heads found, and what ablating them does.

Circuits are found with plain hooks (`train_multitask_checks`), which share no code with the package. Beside them stands
what the package's analyses measure for every head: ablated to zero, to its mean, to another prompt's, and patched from
the corrupted run under two corruptions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from card_shape import shape
from train_multitask_checks import TASKS, Share, accuracies, every_head, figures, find_circuit
from transformers import AutoTokenizer, GPT2LMHeadModel

import workbench as wb
from workbench.tasks import circuits

KEEP = 0.8  # share of a task that its circuit does alone
CLEAR = 0.04  # share that a head of the circuit costs when it alone is mean-ablated; with less it is optional
UNSEEN = 0.02  # a head of the circuit that patching from the corrupted run does not see
N_FOUND = 128
CORRUPTIONS = {  # two per task, the second of another kind than the first
    "ioi": ("flip", "redraw"),
    "colored_objects": ("context", "query"),
    "greater_than": ("01", "later"),
    "docstring": ("definition", "docstring"),
}
LIMITS = (
    "Coloured objects: every pair of a thing and a colour occurs in training. Earlier trainings that kept pairs of a "
    "thing and a colour from training reached .86 to .95 on them, never more; so this model binds in new sets of "
    "things, and is not shown to bind new pairs."
)


def measure(folder: Path, *, n: int = N_FOUND) -> dict[str, Any]:
    """Everything the card states, measured on the weights as saved."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    raw: Any = GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager").eval()
    model = wb.load_model(str(folder))
    tasks = {name: _found(model, raw, name, n) for name in TASKS}
    return {
        "model": shape(raw),
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
    sufficient, alone = find_circuit(raw, first[:64], keep=KEEP)
    circuit = [head for head in sufficient if alone[head] > CLEAR]
    others = [head for head in every_head(raw) if head not in circuit]
    optional = [head for head in others if head in sufficient or alone[head] > CLEAR]
    share = Share(raw, first)
    causal: dict[str, Any] = {"n": n, "nothing_ablated": figures(raw, first)}
    cases = {
        "circuit_ablated": circuit,
        "all_others_ablated": others,
        "all_but_circuit_and_optional_ablated": [head for head in others if head not in optional],
        "every_head_ablated": every_head(raw),
    }
    for label, ablated in cases.items():
        causal[label] = {**figures(raw, first, ablated), "share_left": round(share.left(ablated), 4)}
    left = [share.left(_matched(circuit, raw, seed)) for seed in range(10)]
    causal["random_heads_ablated"] = {"draws": len(left), "share_left": round(float(np.mean(left)), 4)}
    return {
        "circuit": circuit,
        "optional": optional,
        "alone": {f"{head[0]}.{head[1]}": round(alone[head], 3) for head in (*circuit, *optional)},
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
    more = causal["all_but_circuit_and_optional_ablated"]
    heads = found["circuit"]
    return {
        "claim": "circuit",
        "data": {"task": name, "n": 32, "split": "held_out", "corruption": CORRUPTIONS[name][0]},
        "heads": [list(head) for head in heads],
        "optional": [list(head) for head in found["optional"]],
        "cost_alone": found["alone"],
        "unseen_by_patching": {c: [list(head) for head in unseen] for c, unseen in found["unseen"].items()},
        "how": "found",
        "evidence": (
            f"of what all heads add to the logit difference, {gone['share_left']:.0%} is left when these {len(heads)} "
            f"heads are mean-ablated (accuracy {gone['accuracy']:.2f}), {kept['share_left']:.0%} when all others are "
            f"(accuracy {kept['accuracy']:.2f}; {more['share_left']:.0%} if the optional ones stay), "
            f"{causal['random_heads_ablated']['share_left']:.0%} when as many random others are (n={n}); each of them "
            f"alone costs over {CLEAR:.0%}"
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
        "limits": LIMITS,
        "ground_truth": (
            "Found, not written: for each task the smallest set of heads (by backward elimination) that does "
            f"{KEEP:.0%} of it while all others are mean-ablated. Those of them that cost less than {CLEAR:.0%} when "
            "ablated alone are optional, and so are others that cost more. They are few because training made the "
            f"tasks lean on {len(training['heads_kept'])} of the heads."
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
    lines += ["", card["limits"], "", "## Circuits found", "", card["ground_truth"], ""]
    for truth in card["truths"]:
        unseen = [
            f"patching from `{corruption}` does not see {_named(heads)}"
            for corruption, heads in truth["unseen_by_patching"].items()
            if heads
        ]
        heads = f"{_named(truth['heads'])} (optional {_named(truth['optional'])})"
        text = f"- **{truth['data']['task']}**: {heads}. {truth['evidence'].capitalize()}."
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
