"""Attention rows, one query per prompt: read those of every head, or give some heads a row of one's choosing.

A row is what one query gives to every key, `[key]`. Prompts are run whole (no cache), padded on the left, so that the
row is a column of the token matrix. It never knows why a row is wanted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import InputError
from workbench.primitives.capture import names
from workbench.primitives.hooks import Hook, hooked
from workbench.primitives.sweep.units import attention_layers

if TYPE_CHECKING:
    from workbench.models import Model


@contextmanager
def attending(
    model: Model,
    heads: Sequence[tuple[int, int]],
    rows: Int[Tensor, " n"],
    weights: Float[Tensor, "n key"],
) -> Iterator[None]:
    """Within the block, each head's attention row `rows[i]` of prompt i is `weights[i]`; other rows stay.

    Raises:
        InputError: a head that does not exist, or prompts of another shape than `weights`.
        CapabilityError: the architecture does not use an edited pattern.
    """
    model.require("pattern_edit_is_causal")
    for layer, head in heads:
        if layer not in attention_layers(model) or not 0 <= head < model.n_heads:
            raise InputError(
                f"There is no head ({layer}, {head}) in {model.name!r}; layers are 0 to {model.n_layers - 1}, heads 0 "
                f"to {model.n_heads - 1}."
            )
    hooks: list[Hook] = []
    for layer in sorted({layer for layer, _ in heads}):
        chosen = sorted({head for at, head in heads if at == layer})
        hooks += [(name, _set(chosen, rows, weights)) for name in names(model, "pattern", layers=[layer])]
    with hooked(model, hooks, must_fire=False, copy=False):
        yield


@contextmanager
def reading(model: Model, rows: Int[Tensor, " n"]) -> Iterator[dict[int, Float[Tensor, "n head key"]]]:
    """Fills the yielded dict with row `rows[i]` of prompt i, of every head, by layer; the last forward pass counts."""
    kept: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        def see(pattern: Tensor, _: Any) -> None:
            kept[layer] = pattern[torch.arange(len(rows)), :, rows.to(pattern.device)].detach().clone()

        return see

    layers = attention_layers(model)
    hooks: list[Hook] = [
        (name, keep(layer)) for name, layer in zip(names(model, "pattern", layers=layers), layers, strict=True)
    ]
    with hooked(model, hooks, must_fire=False, copy=False):
        yield kept


def _set(heads: list[int], rows: Tensor, weights: Tensor) -> Any:
    def edit(pattern: Float[Tensor, "n head query key"], _: Any) -> Tensor:
        if pattern.shape[0] != len(rows) or tuple(pattern.shape[2:]) != (weights.shape[1],) * 2:
            raise InputError(
                f"Attention rows were given for {len(rows)} prompts of {weights.shape[1]} tokens, but the pattern has "
                f"shape {list(pattern.shape)}; run these prompts whole."
            )
        pattern = pattern.clone()
        index = torch.arange(len(rows), device=pattern.device)[:, None]
        chosen = torch.tensor(heads, device=pattern.device)[None]
        pattern[index, chosen, rows.to(pattern.device)[:, None]] = weights.to(pattern)[:, None]
        return pattern

    return edit
