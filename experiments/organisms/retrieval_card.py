"""The card of the organism `retrieval`: every figure measured on the weights as saved, as JSON and Markdown."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

from card_shape import shape
from retrieval_checks import Head, matched_random, mean_recall, recall, wu_scores
from transformers import AutoTokenizer, LlamaForCausalLM

from workbench.tasks import needle, prose

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
LENGTHS = (64, 128, 192, 256, 320, 384, 448, 500)
RETRIEVES_FROM = 0.5  # mean score of a strong retrieval head in the paper
WEAK_FROM = 0.1  # and of any retrieval head
DRAWS = 10


def measure(folder: Path, *, smoke: bool = False) -> dict[str, Any]:
    """Recall per length and depth, head scores, and what masking heads does, all on held-out needles."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    lengths, n = ((64,), 5) if smoke else (LENGTHS, 100)
    cells = []
    for length in lengths:
        data = needle(tokenizer, n, lengths=length, depths=DEPTHS, seed=1000 + length)
        found = recall(model, data)
        for depth in DEPTHS:
            values = [found[s.id] for s in data if s.depth == depth]
            cells.append({"length": length, "depth": depth, "n": len(values), "recall": _mean(values)})

    options = {"lengths": (64,) if smoke else (128, 256), "depths": DEPTHS}
    data = needle(tokenizer, 5 if smoke else 40, **options, seed=7)
    score = wu_scores(model, data)
    order: list[Head] = [divmod(i, score.shape[1]) for i in score.flatten().argsort(descending=True).tolist()]
    heads = [head for head in order if score[head] >= RETRIEVES_FROM] or order[:1]
    return {
        "model": shape(model),
        "recall": {
            "metric": "fraction of answer tokens generated greedily at their place; held-out needles",
            "by_length_and_depth": cells,
            "with_three_other_needles_at_256": _among_others(model, tokenizer, smoke),
        },
        "retrieval_heads": [
            {"layer": layer, "head": h, "score": round(float(score[layer, h]), 4)} for layer, h in heads
        ],
        "retrieval_threshold": RETRIEVES_FROM,
        "weak_heads": [
            {"layer": layer, "head": h, "score": round(float(score[layer, h]), 4)}
            for layer, h in order
            if WEAK_FROM <= score[layer, h] < RETRIEVES_FROM
        ],
        "scores": [[round(float(x), 4) for x in row] for row in score],
        "causal": _causal(model, data, heads, draws=2 if smoke else DRAWS),
    }


def _mean(values: Any) -> float:
    values = list(values)
    return round(sum(values) / len(values), 4)


def _among_others(model: Any, tokenizer: Any, smoke: bool) -> float:
    """Recall when the haystack holds needles of three other owners."""
    rng = random.Random(11)
    n, values = 2 if smoke else 40, []
    for seed in range(n):
        made = [prose.make_needle(rng, owner=owner) for owner in rng.sample(prose.OWNERS, 4)]
        text = prose.text(1000, seed=seed).split(". ")
        for other in made[1:]:
            text.insert(rng.randint(0, 20), other["needle"].removesuffix("."))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "haystack.txt"
            path.write_text(". ".join(text), encoding="utf-8")
            depth = rng.choice(DEPTHS)
            data = needle(tokenizer, 1, lengths=256, depths=depth, needles=made[:1], haystack=path)
        values.append(mean_recall(model, data))
    return _mean(values)


def _causal(model: Any, data: Any, heads: list[Head], *, draws: int) -> dict[str, Any]:
    """Recall with the retrieval heads masked, and with as many other heads of the same layers."""
    others = [matched_random(heads, model.config.num_attention_heads, seed) for seed in range(draws)]
    rows = []
    for kind in ("zero", "uniform"):
        for scope in ("decode", "all"):
            how = {"kind": kind, "scope": scope}
            random_recall = [mean_recall(model, data, heads=drawn, **how) for drawn in others]
            rows.append(
                {
                    "mask": kind,
                    "scope": scope,
                    "retrieval_heads_masked": _mean([mean_recall(model, data, heads=heads, **how)]),
                    "random_heads_masked_mean": _mean(random_recall),
                    "random_heads_masked_least": round(min(random_recall), 4),
                }
            )
    return {"n": len(data), "random_draws": draws, "no_head_masked": _mean([mean_recall(model, data)]), "rows": rows}


def _truth(facts: dict[str, Any]) -> dict[str, Any]:
    """What `workbench certify` holds analyses to; weak heads are neither right nor wrong when found."""
    rows = {(row["mask"], row["scope"]): row for row in facts["causal"]["rows"]}
    zero = rows["zero", "all"]
    return {
        "claim": "retrieval",
        "data": {"task": "needle", "n": 20, "lengths": [128, 256]},
        "heads": [[h["layer"], h["head"]] for h in facts["retrieval_heads"]],
        "optional": [[h["layer"], h["head"]] for h in facts["weak_heads"]],
        "how": "found",
        "evidence": (
            f"zero ablation of these heads takes needle recall from {facts['causal']['no_head_masked']:g} to "
            f"{zero['retrieval_heads_masked']:g}; of matched random heads to {zero['random_heads_masked_mean']:g} "
            f"(mean of {facts['causal']['random_draws']} draws)"
        ),
    }


def write_card(folder: Path, facts: dict[str, Any], *, training: dict[str, Any] | None) -> None:
    """Write `card.json` and `README.md`; without `training`, that part of the old card is kept."""
    path = folder / "card.json"
    if training is None:
        training = dict(json.loads(path.read_text(encoding="utf-8"))["training"])
    kept = len(training["heads_kept_at_consolidation"])
    card = {
        "name": "retrieval",
        "kind": "trained",
        "summary": "Answers a question about one sentence hidden in filler text, at any depth, by copying it.",
        "task": {
            "data": "workbench.tasks.needle (synthetic English, workbench/tasks/prose.py)",
            "needle": prose.NEEDLE,
            "question": prose.QUESTION,
            "held_out": f"one in {prose.HELD_OUT_EVERY} pairs of owner and first answer word is never trained on",
        },
        "ground_truth": (
            f"Found, not written: the heads with a mean retrieval score of at least {RETRIEVES_FROM}, as masking them "
            f"confirms. They are so few because training kept only the best {kept} heads of its first stage and began "
            "the others above layer 0 anew."
        ),
        **facts,
        "truths": [_truth(facts)],
        "training": training,
    }
    path.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_readme(card), encoding="utf-8")


def _readme(card: dict[str, Any]) -> str:
    model, training, causal = card["model"], card["training"], card["causal"]
    cells = {(c["length"], c["depth"]): c["recall"] for c in card["recall"]["by_length_and_depth"]}
    depths = sorted({depth for _, depth in cells})
    lines = [
        "# organism:retrieval",
        "",
        card["summary"],
        "",
        f"{model['architecture']}, {model['n_layers']} layers of {model['n_heads']} heads ({model['n_kv_heads']} "
        f"key-value groups), {model['n_parameters']:,} weights, {model['n_ctx']} positions, one token per word "
        f"({model['vocab_size']}). Needle: `{card['task']['needle']}` End of prompt: `{card['task']['question']}`",
        "",
        "## Recall on held-out needles",
        "",
        f"{card['recall']['metric'].capitalize()}, by prompt length and depth.",
        "",
        "| length | " + " | ".join(f"depth {d:g}" for d in depths) + " |",
        "|---|" + "---|" * len(depths),
    ]
    for length in sorted({length for length, _ in cells}):
        lines.append(f"| {length} | " + " | ".join(f"{cells[length, d]:.2f}" for d in depths) + " |")
    lines += [
        "",
        "With needles of three other owners in the haystack, prompts of 256 tokens: "
        f"{card['recall']['with_three_other_needles_at_256']:.2f}.",
        "",
        "## Retrieval heads",
        "",
        card["ground_truth"],
        "",
        "| layer | head | score |",
        "|---|---|---|",
        *(f"| {h['layer']} | {h['head']} | {h['score']:.2f} |" for h in card["retrieval_heads"]),
        *(f"| {h['layer']} | {h['head']} | {h['score']:.2f} (weak) |" for h in card["weak_heads"]),
        "",
        f"Recall when heads are masked (without: {causal['no_head_masked']:.2f}; {causal['n']} prompts; random heads "
        f"come from the same layers, {causal['random_draws']} draws):",
        "",
        "| mask | scope | retrieval heads | random heads, mean | random heads, least |",
        "|---|---|---|---|---|",
        *(
            f"| {r['mask']} | {r['scope']} | {r['retrieval_heads_masked']:.2f} | {r['random_heads_masked_mean']:.2f} "
            f"| {r['random_heads_masked_least']:.2f} |"
            for r in causal["rows"]
        ),
        "",
        "## How it was made",
        "",
        f"`{training['command']}`, seed {training['seed']}, {training['cpu_seconds']} CPU seconds "
        f"({training['seconds']} by the clock) on one thread, torch {training['torch']}. Stages, loss curve and all "
        "scores are in `card.json`.",
        "",
    ]
    return "\n".join(lines)
