"""A tiny dataset of each kind and quick parameters for each analysis: what the contract suite runs on."""

from __future__ import annotations

from typing import Any

import torch

from workbench import tasks

QUICK: dict[str, dict[str, Any]] = {
    "ablation": {"bootstrap": 20},
    "activation_patching": {"bootstrap": 20, "by_position": ["resid_pre"]},
    "attribution": {"bootstrap": 20, "level": "edge", "steps": 3, "spot_check": 3},
    "path_patching": {"bootstrap": 20},
    "retrieval": {
        "recall_gate": 0,
        "max_new_tokens": 3,
        "controls": 9,
        "bootstrap": 20,
        "causal": {"ks": [1], "draws": 1, "samples": 2},
    },
    "sahara": {"size": 2, "validation": {"max_new_tokens": 3, "ks": [1], "draws": 1}},
    "ships": {"bootstrap": 20, "validation": {"max_new_tokens": 3, "ks": [1], "draws": 1, "decoding": ["sampled"]}},
}


def data_block(kind: str, n: int = 3, *, ragged: bool = False) -> dict[str, Any]:
    """The `data:` block of a spec with `n` examples in the tiny vocabulary; `ragged` gives them different lengths."""
    from tests.tiny import WORDS

    words = [word for word in WORDS if word.isalpha()]
    g = torch.Generator().manual_seed(0)

    def text(length: int) -> list[str]:
        return [words[int(i)] for i in torch.randperm(len(words), generator=g)[:length]]

    lengths = [12 + (3 * i if ragged else 0) for i in range(n)]
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
    raise AssertionError(f"add an example of {kind!r} data here")


def dataset(model: Any, kind: str, n: int = 3, *, ragged: bool = False) -> Any:
    """`data_block` resolved for a model."""
    return tasks.resolve(model, data_block(kind, n, ragged=ragged))
