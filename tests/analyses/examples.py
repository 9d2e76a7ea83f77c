"""A tiny dataset of each kind and quick parameters for each analysis: what the contract suite runs on."""

from __future__ import annotations

from typing import Any

import torch

from workbench import tasks

QUICK: dict[str, dict[str, Any]] = {
    "ablation": {"bootstrap": 20},
    "activation_patching": {"bootstrap": 20, "by_position": ["resid_pre"]},
    "attribution": {"bootstrap": 20, "level": "edge", "steps": 3, "spot_check": 3},
    "circuit": {
        "bootstrap": 20,
        "rule": "top",
        "top": 0.1,
        "max_stages": 2,
        "faithfulness": {"draws": 2, "sizes": [0.2, 1]},
    },
    "direct_logit_attribution": {"bootstrap": 20},
    "image_attention": {"bootstrap": 20, "region": "objects", "keep_patterns": {"heads": 2, "examples": 1}},
    "overlap": {"bootstrap": 20, "permutations": 19, "draws": 2},
    "path_patching": {"bootstrap": 20},
    "repair": {"heads": [[0, 1]], "attend": {"first": 1.0}, "fault": {"heads": [[1, 2]]}, "draws": 2, "bootstrap": 20},
    "retrieval": {
        "recall_gate": 0,
        "max_new_tokens": 3,
        "controls": 9,
        "bootstrap": 20,
        "causal": {"ks": [1], "draws": 1, "samples": 2},
        "keep_patterns": {"heads": 2, "examples": 1},
    },
    "sae_circuits": {"n_features": 20, "epochs": 20, "permutations": 20, "bootstrap": 10, "folds": 2},
    "sae_features": {
        "train": {"steps": 60, "batch": 16, "k": 4, "dead_after": 20},
        "allow_poor": True,
        "n_features": 3,
        "directions": 2,
        "bootstrap": 20,
        "circuit": {"steps": 3, "random": 2, "spot_check": 4, "min_gap": 0},
    },
    "sae_train": {
        "train": {"steps": 60, "batch": 16, "k": 4},
        "text": {"samples": 4, "length": 20},
        "n_features": 3,
        "directions": 2,
        "bootstrap": 20,
    },
    "sahara": {"size": 2, "validation": {"max_new_tokens": 3, "ks": [1], "draws": 1}},
    "ships": {"bootstrap": 20, "validation": {"max_new_tokens": 3, "ks": [1], "draws": 1, "decoding": ["sampled"]}},
    "var": {
        "bootstrap": 20,
        "dimensions": [5, 11],
        "tau": 1.2,
        "first_layer": 0,
        "redistribution": {"max_new_tokens": 3, "random_draws": 1},
    },
    "vhd": {
        "bootstrap": 20,
        "max_new_tokens": 3,
        "vhr": {"alpha": 2.0, "random_draws": 1, "ablate": [1]},
    },
}


def data_block(
    kind: str, n: int = 3, *, ragged: bool = False, length: int = 12, words: list[str] | None = None
) -> dict[str, Any]:
    """The `data:` block of a spec with `n` examples in the tiny vocabulary; `ragged` gives them different lengths.

    `length` counts the words of an example, none of which comes twice; `words` are those to draw from.
    """
    from tests.tiny import WORDS

    words = words or [word for word in WORDS if word.isalpha()]
    g = torch.Generator().manual_seed(0)

    def text(length: int) -> list[str]:
        return [words[int(i)] for i in torch.randperm(len(words), generator=g)[:length]]

    lengths = [length + (3 * i if ragged else 0) for i in range(n)]
    if kind == "needle":
        prompts = [text(length) for length in lengths]
        return {"samples": [{"prompt": " ".join(p), "needle": " ".join(p[4:6])} for p in prompts]}
    if kind == "pairs":
        pairs = []
        for length in lengths:
            clean, swap = text(length), text(2)
            corrupted = [*clean[:3], swap[0], *clean[4:]]
            pairs.append(
                {"clean": " ".join(clean), "corrupted": " ".join(corrupted), "answer": " cat", "wrong": " dog"}
            )
        return {"pairs": pairs}
    if kind == "prompts":
        return {"prompts": [" ".join(text(length)) for length in lengths]}
    if kind == "contrast":
        texts = [" ".join(text(length)) for length in lengths * 2]
        return {"positives": texts[:n], "negatives": texts[n:]}
    if kind == "task_set":
        both = data_block("pairs", 2 * n, ragged=ragged, length=length, words=words)["pairs"]
        return {"tasks": {"one": {"pairs": both[:n]}, "two": {"pairs": both[n:]}}}
    if kind == "images":
        from tests.tiny_vision import picture_files

        files = picture_files(n)
        prompts = [" ".join(text(length)) for length in lengths]
        boxes = [{"thing": [0.0, 0.25 * (i % 3), 0.75, 0.25 * (i % 3) + 0.5]} for i in range(n)]
        return {
            "samples": [
                {"image": f, "prompt": p, "objects": p.split()[:2], "regions": box}
                for f, p, box in zip(files, prompts, boxes, strict=True)
            ]
        }
    raise AssertionError(f"add an example of {kind!r} data here")


def tiny_model(kind: str, arch: str) -> Any:
    """A tiny model that takes data of this kind; images need one that sees."""
    from tests.tiny import tiny

    if kind != "images":
        return tiny(arch)
    from tests.tiny_vision import tiny_vision

    return tiny_vision({"gpt2": "llava", "llama": "llava-gqa"}[arch])


def save_tiny(kind: str, folder: Any) -> None:
    """The same as a folder."""
    from tests.tiny import tiny_hf, tiny_tokenizer
    from tests.tiny_vision import tiny_vision_hf, tiny_vision_processor

    sees = kind == "images"
    (tiny_vision_hf("llava-gqa") if sees else tiny_hf("llama")).save_pretrained(folder)
    (tiny_vision_processor("llava-gqa") if sees else tiny_tokenizer()).save_pretrained(folder)


def dataset(model: Any, kind: str, n: int = 3, *, ragged: bool = False) -> Any:
    """`data_block` resolved for a model."""
    return tasks.resolve(model, data_block(kind, n, ragged=ragged))
