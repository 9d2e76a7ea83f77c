"""A planted organism on disk: model, tokenizer, processor, card.json, and a README.md made from the card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.organisms.planted import Planted


def write(planted: Planted, folder: Path) -> Path:
    """Write everything that `load_model(folder)` reads, and the card; returns the folder."""
    from transformers.utils import logging

    folder.mkdir(parents=True, exist_ok=True)
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # of one file that takes no time
    planted.model.save_pretrained(folder)
    if shown:
        logging.enable_progress_bar()
    (planted.processor or planted.tokenizer).save_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # safetensors are written for their owner alone
    write_card(planted.card, folder)
    return folder


def write_card(card: dict[str, Any], folder: Path) -> None:
    """Write `card.json` and the README.md that says the same."""
    text = json.dumps(card, indent=1, ensure_ascii=False)
    (folder / "card.json").write_text(text + "\n", encoding="utf-8")
    (folder / "README.md").write_text(readme(card), encoding="utf-8")


def describe(model: Any) -> dict[str, Any]:
    """The card's `model` entry of a GPT-2 or a Llama."""
    config = model.config
    decoder = getattr(config, "text_config", config)
    n_heads = decoder.num_attention_heads
    d_mlp = getattr(decoder, "n_inner", None) or getattr(decoder, "intermediate_size", None)
    return {
        "architecture": type(model).__name__,
        "n_layers": decoder.num_hidden_layers,
        "n_heads": n_heads,
        "n_kv_heads": getattr(decoder, "num_key_value_heads", None) or n_heads,
        "d_head": getattr(decoder, "head_dim", None) or decoder.hidden_size // n_heads,
        "d_model": decoder.hidden_size,
        "d_mlp": d_mlp,
        "vocab_size": decoder.vocab_size,
        "n_ctx": decoder.max_position_embeddings,
        "n_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": "float32",
    }


def readme(card: dict[str, Any]) -> str:
    """The card as a page to read."""
    model = card["model"]
    lines = [
        f"# organism:{card['name']}",
        "",
        card["summary"],
        "",
        f"{model['architecture']}, {model['n_layers']} layers of {model['n_heads']} heads, {model['n_parameters']:,} "
        f"weights, {model['n_ctx']} positions, one token per word ({model['vocab_size']}). Written by hand, not "
        "trained: fresh instances come from other seeds.",
        "",
        "## What is true of it",
        "",
        card["ground_truth"],
        "",
        "| claim | heads (layer-head) | evidence |",
        "|---|---|---|",
    ]
    for truth in card["truths"]:
        found = ", ".join(map(_name, truth["heads"]))
        if truth.get("optional"):
            found += "; optional " + ", ".join(map(_name, truth["optional"]))
        lines.append(f"| {truth['claim']} | {found} | {truth['evidence']} |")
    roles = {role: heads for truth in card["truths"] for role, heads in truth.get("roles", {}).items()}
    if roles:
        lines += ["", "| role | heads |", "|---|---|"]
        lines += [f"| {role} | {', '.join(map(_name, heads))} |" for role, heads in roles.items()]
    edges = {json.dumps(edge): edge for truth in card["truths"] for edge in truth.get("edges", [])}
    if edges:
        lines += ["", "| sender | receiver | input |", "|---|---|---|"]
        lines += [f"| {_name(e['sender'])} | {_name(e['receiver'])} | {e.get('input', '')} |" for e in edges.values()]
    lines += ["", "## Measured", "", *_figures(card["accuracy"]), ""]
    return "\n".join(lines)


def _name(head: Any) -> str:
    """A head is a list [layer, head]; anything else (the logits, say) goes by its own name."""
    return "-".join(map(str, head)) if isinstance(head, (list, tuple)) else str(head)


def _figures(accuracy: Any) -> list[str]:
    if not isinstance(accuracy, dict):
        return [str(accuracy)]
    return [f"- {key.replace('_', ' ')}: {_plain(value)}" for key, value in accuracy.items()]


def _plain(value: Any) -> str:
    """A figure, or several of them, without the marks of Python."""
    if isinstance(value, dict):
        return ", ".join(f"{str(key).replace('_', ' ')} {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return "; ".join(map(_plain, value))
    return str(value)
