"""VHD and VHR written once more, slowly, with plain hooks on the raw Hugging Face modules; no workbench imports.

A head's output is what enters `o_proj`. Every step of a caption runs the whole sequence again, without a cache
(`reinforced`), or the last token alone after Hugging Face's own cache (`reinforced_with_cache`). One example at a time,
Python numbers and loops where they are readable.
"""

from __future__ import annotations

import math
import statistics
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def decoder_layers(hf: Any) -> Any:
    return hf.model.language_model.layers


def n_heads(hf: Any) -> int:
    return hf.config.text_config.num_attention_heads


@contextmanager
def hooks_on_o_proj(hf: Any, fn: Any):
    """`fn(layer, z)` with z `[1, pos, head, d_head]`; what it returns (if anything) goes into the projection."""
    handles = []
    for index, layer in enumerate(decoder_layers(hf)):

        def hook(_: Any, args: tuple[Tensor, ...], index: int = index) -> Any:
            z = args[0].unflatten(-1, (n_heads(hf), -1))
            new = fn(index, z)
            return None if new is None else (new.flatten(-2), *args[1:])

        handles.append(layer.self_attn.o_proj.register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def view(hf: Any, inputs: dict[str, Any], mode: str, mean: Tensor | None = None) -> dict[str, Any]:
    """The inputs of one unpadded example without its image: removed, masked or mean_image; or as they are ("image")."""
    ids, marker = inputs["input_ids"], hf.config.image_token_id
    if mode == "image":
        return dict(inputs)
    if mode == "mean_image":
        return {**inputs, "pixel_values": mean}
    is_image = ids[0] == marker
    if mode == "removed":
        return {"input_ids": ids[:, ~is_image]}
    return {**inputs, "attention_mask": (~is_image).long()[None], "position_ids": torch.arange(ids.shape[1])[None]}


def extended(inputs: dict[str, Any], tokens: list[int]) -> dict[str, Any]:
    """The same with more tokens behind."""
    n = len(tokens)
    out = dict(inputs)
    out["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([tokens], dtype=torch.long)], dim=1)
    if "attention_mask" in inputs:
        out["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, n), value=1)
    if "token_type_ids" in inputs:
        out["token_type_ids"] = torch.nn.functional.pad(inputs["token_type_ids"], (0, n))
    if "position_ids" in inputs:
        out["position_ids"] = torch.arange(out["input_ids"].shape[1])[None]
    return out


@torch.no_grad()
def head_outputs(hf: Any, inputs: dict[str, Any]) -> Tensor:
    """z at the last position `[layer, head, d_head]`."""
    found: dict[int, Tensor] = {}

    def keep(layer: int, z: Tensor) -> None:
        found[layer] = z[0, -1].clone()

    with hooks_on_o_proj(hf, keep):
        hf(**inputs, use_cache=False)
    return torch.stack([found[layer] for layer in sorted(found)])


def divergence(a: Tensor, b: Tensor, variant: str) -> list[float]:
    """`[head]` of one layer."""
    squares = [float(((a[h] - b[h]) ** 2).sum()) for h in range(a.shape[0])]
    return squares if variant == "released" else [math.sqrt(s) for s in squares]


def ruled(vhd: list[float], without: Tensor, variant: str) -> list[float]:
    """VHD with outliers at 0, one layer."""
    ta = [float((without[h] ** 2).sum()) for h in range(without.shape[0])]
    std = statistics.stdev if variant == "released" else statistics.pstdev
    if variant == "released" and statistics.stdev(vhd) <= 1:
        return vhd
    high_vhd, high_ta = (statistics.mean(x) + std(x) for x in (vhd, ta))
    return [0.0 if v > high_vhd and t > high_ta else v for v, t in zip(vhd, ta, strict=True)]


def above_median(vhd: list[float], variant: str) -> list[int]:
    middle = statistics.median_low(vhd) if variant == "released" else statistics.median(vhd)
    return [h for h, v in enumerate(vhd) if v > middle]


def vhd_of(hf: Any, inputs: dict[str, Any], mode: str, variant: str, tokens: list[int], mean: Any = None) -> Tensor:
    """`[layer, head]` VHD, outlier rule applied, at the position after `tokens`."""
    with_image = head_outputs(hf, extended(view(hf, inputs, "image"), tokens))
    without = head_outputs(hf, extended(view(hf, inputs, mode, mean), tokens))
    rows = [ruled(divergence(a, b, variant), b, variant) for a, b in zip(with_image, without, strict=True)]
    return torch.tensor(rows)


@dataclass(frozen=True)
class How:
    """How a caption is written: factor, layers, rule, whether each step chooses its heads anew, tokens."""

    alpha: float
    layers: tuple[int, ...]
    variant: str
    refresh: bool
    steps: int
    mode: str = "removed"

    def heads(self, z: Tensor, without: Tensor) -> list[int]:
        """The heads of one layer to scale, from its outputs with and without the image `[head, d_head]`."""
        return above_median(ruled(divergence(z, without, self.variant), without, self.variant), self.variant)


@torch.no_grad()
def reinforced(hf: Any, inputs: dict[str, Any], how: How) -> tuple[list[int], Tensor, dict[int, list[int]]]:
    """Greedy tokens, logits of each step `[step, vocab]`, and the heads of the first step, of a caption under VHR.

    Without a cache every step recomputes all positions, so what was decided for each position is kept: the prompt's
    columns and, unless refreshed, all later ones use the first step's heads; a later token uses its own step's.
    """
    tokens: list[int] = []
    all_logits = []
    decided: list[dict[int, list[int]]] = []  # by step
    prompt_length = inputs["input_ids"].shape[1]
    for step in range(how.steps):
        without = head_outputs(hf, extended(view(hf, inputs, how.mode), tokens))
        new: dict[int, list[int]] = {}
        known = list(decided)

        def scale(
            layer: int, z: Tensor, without: Tensor = without, new: dict = new, known: list = known, step: int = step
        ) -> Tensor | None:
            if layer not in how.layers:
                return None
            z = z.clone()
            for t in range(step + 1):
                columns = slice(0, prompt_length) if t == 0 else slice(prompt_length + t - 1, prompt_length + t)
                source = t if how.refresh else 0
                if source < len(known):
                    heads = known[source][layer]
                else:
                    heads = new.setdefault(layer, how.heads(z[0, -1], without[layer]))
                for h in heads:
                    z[:, columns, h] *= how.alpha
            return z

        with hooks_on_o_proj(hf, scale):
            logits = hf(**extended(inputs, tokens), use_cache=False).logits[0, -1]
        if new:
            decided.append(new)
        all_logits.append(logits)
        tokens.append(int(logits.argmax()))
    return tokens, torch.stack(all_logits), decided[0]


@torch.no_grad()
def reinforced_with_cache(hf: Any, inputs: dict[str, Any], how: How) -> tuple[list[int], Tensor, dict[int, list[int]]]:
    """The same, the model's cache carrying what earlier positions were scaled by."""
    tokens: list[int] = []
    all_logits = []
    cache = None
    first: dict[int, list[int]] = {}
    for step in range(how.steps):
        anew = how.refresh or step == 0
        without = head_outputs(hf, extended(view(hf, inputs, how.mode), tokens)) if anew else None

        def scale(layer: int, z: Tensor, without: Tensor | None = without, step: int = step) -> Tensor | None:
            if layer not in how.layers:
                return None
            heads = first.get(layer)
            if without is not None:
                heads = how.heads(z[0, -1], without[layer])
                if step == 0:
                    first[layer] = heads
            assert heads is not None
            z = z.clone()
            for h in heads:
                z[:, :, h] *= how.alpha
            return z

        with hooks_on_o_proj(hf, scale):
            if step == 0:
                out = hf(**inputs, use_cache=True)
            else:
                out = hf(input_ids=torch.tensor([tokens[-1:]]), past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        all_logits.append(out.logits[0, -1])
        tokens.append(int(all_logits[-1].argmax()))
    return tokens, torch.stack(all_logits), first
