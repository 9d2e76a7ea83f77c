"""The card of the organism `captions`: every figure measured on the weights as saved, as JSON and Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from card_shape import shape
from train_captions_checks import Head, answers, chair, image_difference, matched_random, say, scaled
from transformers import AutoProcessor, LlavaForConditionalGeneration

from workbench.tasks import captions, drawings
from workbench.tasks.images import ImageDataset

ALPHAS = (0.5, 1.0, 1.5, 2.0, 3.0)
DRAWS = 5
BLIND_BELOW = 0.5  # recall as a fraction of the whole model's, under which it no longer tells what is drawn
MOST_HEADS = 12


def measure(folder: Path, *, smoke: bool = False) -> dict[str, Any]:
    """Captions, answers, what the image is worth, which heads carry it, and what scaling heads does."""
    processor: Any = AutoProcessor.from_pretrained(folder)
    model: Any = LlavaForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()
    n = 8 if smoke else 300
    scenes = captions.captions(processor, n, seed=1000)
    replies = say(model, processor, scenes)
    blank = processor.image_processor(images=[drawings.blank()], return_tensors="pt")["pixel_values"]
    blind = say(model, processor, scenes, pixel_values=blank.expand(n, -1, -1, -1))
    usual = captions.captions(processor, n, seed=1001, cooccurrence=0.8)
    questions = captions.objects(processor, 12 if smoke else 600, seed=1002)
    few = scenes[: 4 if smoke else 100]
    vision = model.config.vision_config
    return {
        "model": {
            **shape(model),
            "vision": {
                "n_layers": vision.num_hidden_layers,
                "n_heads": vision.num_attention_heads,
                "d_model": vision.hidden_size,
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
                "image_tokens": (vision.image_size // vision.patch_size) ** 2,
            },
        },
        "accuracy": {
            "scenes": n,
            "captions": {**chair(scenes, replies), "cooccurrence": captions.COOCCURRENCE},
            "captions_of_training_like_scenes": {**chair(usual, say(model, processor, usual)), "cooccurrence": 0.8},
            "companions": _companions(scenes, replies),
            "blank_image": {
                **chair(scenes, blind),
                "captions_that_differ": _share(a != b for a, b in zip(replies, blind, strict=True)),
            },
            "questions": {"n": len(questions), **answers(model, processor, questions)},
        },
        "heads": _heads(model, processor, few, smoke=smoke),
        "scaling": _scaling(model, processor, scenes[: 4 if smoke else 200], 1 if smoke else DRAWS),
    }


def _companions(scenes: ImageDataset, replies: list[str]) -> dict[str, float]:
    """Of the hallucinated objects, how many are companions of something drawn; and how often an absent one is said."""
    false, expected, absent, said_absent = 0, 0, 0, 0
    for sample, reply in zip(scenes, replies, strict=True):
        drawn = set(sample.objects or ())
        missing = {drawings.COMPANIONS[o] for o in drawn if o in drawings.COMPANIONS} - drawn
        wrong = set(captions.mentioned(reply)) - drawn
        false, expected = false + len(wrong), expected + len(wrong & missing)
        absent, said_absent = absent + len(missing), said_absent + len(wrong & missing)
    return {
        "share_of_hallucinations": round(expected / max(1, false), 4),
        "absent_ones_mentioned": round(said_absent / max(1, absent), 4),
    }


def _heads(model: Any, processor: Any, data: ImageDataset, *, smoke: bool = False) -> dict[str, Any]:
    """Recall with each head alone set to zero, and with more and more of the worst set to zero together."""
    text = model.config.text_config
    n_layers = 1 if smoke else text.num_hidden_layers
    every = [(layer, h) for layer in range(n_layers) for h in range(text.num_attention_heads)]
    whole = chair(data, say(model, processor, data))
    alone = {}
    for head in every:
        with scaled(model, [head], 0.0):
            alone[head] = chair(data, say(model, processor, data))["recall"]
    order = sorted(every, key=lambda head: alone[head])
    rows, found = [], order[:MOST_HEADS]
    for k in range(1, 2 if smoke else MOST_HEADS + 1):
        with scaled(model, order[:k], 0.0):
            rows.append({"heads": k, **_short(chair(data, say(model, processor, data)))})
        if rows[-1]["recall"] < BLIND_BELOW * whole["recall"]:
            found = order[:k]
            break
    return {
        "n": len(data),
        "whole": _short(whole),
        "recall_with_one_head_zero": [
            [alone[layer, h] for h in range(text.num_attention_heads)] for layer in range(n_layers)
        ],
        "worst_zeroed_together": rows,
        "found": [list(head) for head in sorted(found)],
        "others_of_the_same_layers_zero": _random(model, processor, data, found, 0.0, DRAWS),
        "difference_without_image": [
            [round(float(x), 4) for x in row] for row in image_difference(model, processor, data)
        ],
    }


def _scaling(model: Any, processor: Any, data: ImageDataset, draws: int) -> dict[str, Any]:
    """CHAIR with the heads whose output differs most without the image scaled, beside random heads of their layers."""
    difference = image_difference(model, processor, data)
    n_heads = difference.shape[1]
    top: list[Head] = [(layer, int(h)) for layer, row in enumerate(difference) for h in row.topk(n_heads // 2).indices]
    rows = []
    for alpha in ALPHAS:
        with scaled(model, top, alpha):
            got = _short(chair(data, say(model, processor, data)))
        rows.append(
            {
                "alpha": alpha,
                "top_half": got,
                "random": _random(model, processor, data, top, alpha, draws, disjoint=False),
            }
        )
    return {"n": len(data), "top_half_of_each_layer": [list(head) for head in sorted(top)], "rows": rows}


def _random(
    model: Any,
    processor: Any,
    data: ImageDataset,
    heads: list[Head],
    alpha: float,
    draws: int,
    *,
    disjoint: bool = True,
) -> dict[str, float]:
    """Means over draws of as many (other) heads of the same layers."""
    found = []
    for seed in range(draws):
        n_heads = model.config.text_config.num_attention_heads
        with scaled(model, matched_random(heads, n_heads, seed, disjoint=disjoint), alpha):
            found.append(_short(chair(data, say(model, processor, data))))
    return {key: round(sum(row[key] for row in found) / len(found), 4) for key in found[0]}


def _short(row: dict[str, float]) -> dict[str, float]:
    return {key: row[key] for key in ("chair_i", "recall", "f1", "words")}


def _share(values: Any) -> float:
    values = list(values)
    return round(sum(values) / max(1, len(values)), 4)


def write_card(folder: Path, facts: dict[str, Any], *, training: dict[str, Any] | None) -> None:
    """Write `card.json` and `README.md`; without `training` the old card's training record is kept."""
    path = folder / "card.json"
    if training is None:
        training = json.loads(path.read_text(encoding="utf-8"))["training"]
    card = {
        "name": "captions",
        "kind": "trained",
        "summary": "Describes drawn coloured shapes and answers questions about them; in descriptions it makes up "
        "objects that usually come along.",
        "task": {
            "data": {"task": "captions", "n": 50},
            "questions": {"task": "objects", "n": 60},
            "prompt": captions.DESCRIBE,
            "caption": captions.caption(drawings.OBJECTS[:2]),
            "question": captions.ASK,
            "companions": drawings.COMPANIONS,
        },
        "ground_truth": "Found, not written: the heads without which it no longer tells what is drawn, as zeroing "
        "them shows; the prior is known, because the training captions were drawn with it.",
        **facts,
        "truths": _truths(facts["heads"]),
        "training": training,
    }
    path.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_readme(card), encoding="utf-8")


def _truths(heads: dict[str, Any]) -> list[dict[str, Any]]:
    """The claim `image`, when zeroing the heads destroys recall and zeroing as many others of their layers does not."""
    whole, last = heads["whole"]["recall"], heads["worst_zeroed_together"][-1]["recall"]
    others = heads["others_of_the_same_layers_zero"]["recall"]
    if not (last < BLIND_BELOW * whole and others > 0.8 * whole):
        return []
    return [
        {
            "claim": "image",
            "data": {"task": "captions", "n": 50},
            "heads": heads["found"],
            "optional": [],
            "how": "found",
            "evidence": f"object recall falls from {whole:.2f} to {last:.2f} with these {len(heads['found'])} heads "
            f"zeroed, and to {others:.2f} with as many others of the same layers ({DRAWS} draws, {heads['n']} scenes)",
        }
    ]


def _readme(card: dict[str, Any]) -> str:
    model, accuracy, heads, training = card["model"], card["accuracy"], card["heads"], card["training"]
    vision, said, asked = model["vision"], accuracy["captions"], accuracy["questions"]
    blind, companions = accuracy["blank_image"], accuracy["companions"]
    lines = [
        "# organism:captions",
        "",
        card["summary"],
        "",
        f"{model['architecture']}: a CLIP tower of {vision['n_layers']} layers (pictures of {vision['image_size']} x "
        f"{vision['image_size']}, {vision['image_tokens']} tokens), a projector, a Llama of {model['n_layers']} layers "
        f"of {model['n_heads']} heads ({model['n_kv_heads']} key-value groups); {model['n_parameters']:,} weights, one "
        f"token per word ({model['vocab_size']}), {model['n_ctx']} positions.",
        "",
        f"Prompt: `{card['task']['prompt']}` Reply: `{card['task']['caption']}` Question: `{card['task']['question']}`",
        "",
        "## What it does",
        "",
        f"{accuracy['scenes']} fresh scenes, greedy. CHAIR-I: share of the mentioned objects that are not drawn; "
        "companions are drawn in half of the cases (in training in four of five).",
        "",
        "| scenes | CHAIR-I | CHAIR-S | recall | F1 |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {row['chair_i']:.3f} | {row['chair_s']:.3f} | {row['recall']:.3f} | {row['f1']:.3f} |"
            for name, row in (
                ("companions in 50%", said),
                ("companions in 80%", accuracy["captions_of_training_like_scenes"]),
                ("the same captions for blank paper", blind),
            )
        ),
        "",
        f"{companions['share_of_hallucinations']:.0%} of the objects it makes up are companions of something drawn; it "
        f"mentions {companions['absent_ones_mentioned']:.0%} of the companions that are absent. "
        f"{blind['captions_that_differ']:.0%} of the captions change when the paper is blank.",
        "",
        f"Questions ({asked['n']}): " + ", ".join(f"{k} {asked[k]:.3f}" for k in (*captions.NEGATIVES, "all")) + ".",
        "",
        "## Heads",
        "",
        *(f"- `{t['claim']}`: {t['heads']}; {t['evidence']}." for t in card["truths"]),
        *([] if card["truths"] else ["No set of heads passed the causal check, so the card claims none."]),
        "",
        "| worst heads zeroed | recall | CHAIR-I |",
        "|---|---|---|",
        *(f"| {r['heads']} | {r['recall']:.3f} | {r['chair_i']:.3f} |" for r in heads["worst_zeroed_together"]),
        "",
        "Half of each layer's heads scaled by alpha: those whose output differs most without the image, and random "
        f"halves ({DRAWS} draws); {card['scaling']['n']} scenes.",
        "",
        "| alpha | CHAIR-I | F1 | CHAIR-I, random | F1, random |",
        "|---|---|---|---|---|",
        *(
            f"| {r['alpha']:g} | {r['top_half']['chair_i']:.3f} | {r['top_half']['f1']:.3f} "
            f"| {r['random']['chair_i']:.3f} | {r['random']['f1']:.3f} |"
            for r in card["scaling"]["rows"]
        ),
        "",
        "## How it was made",
        "",
        f"`{training['command']}`, seed {training['seed']}, {training['cpu_seconds']} CPU seconds "
        f"({training['seconds']} by the clock) on one thread, torch {training['torch']}. Recipe, loss curve and the "
        "effect of every head are in `card.json`.",
        "",
    ]
    return "\n".join(lines)
