"""Head outputs as the method reads them: z W_O^h per head, in the width of the stream, one vector per prompt.

Also, for pairs, how far each head's output moves from the clean to the corrupted prompt, position by position, and
whether the model is right on either side. It runs the model and keeps no more than one batch of activations by
position; it never knows what is made of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.analyses.pair_effects import donors
from workbench.primitives import capture
from workbench.primitives.decode import require_finite
from workbench.primitives.forward import forward
from workbench.primitives.sweep.fork import output_weights
from workbench.primitives.sweep.units import attention_layers

if TYPE_CHECKING:
    from workbench.models import Model
    from workbench.tasks import ContrastDataset

_TOKENS_AT_ONCE = 4096  # of a forward pass
Positions = Literal["mean", "last"]


@dataclass
class Outputs:
    """What the heads put out; `head` counts through the layers that have attention.

    Attributes:
        x: z W_O^h, mean over positions or the last one, on the model's device.
        z: the same before W_O.
        at: layer and head of each.
        change: `[pair, head]` norm of z W_O^h (clean) - z W_O^h (corrupted) over all positions asked for; None without
            pairs.
        elsewhere: the same between a clean prompt and another one of its length; NaN where there is none.
    """

    x: Float[Tensor, "n head d_model"]
    z: Float[Tensor, "n head d_head"]
    at: list[tuple[int, int]]
    change: np.ndarray | None = None
    elsewhere: np.ndarray | None = None

    def grid(self, values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """`[..., head]` as `[..., n_layers, n_heads]`; NaN where there is no head."""
        made = np.full((*values.shape[:-1], *shape), np.nan)
        for i, (layer, head) in enumerate(self.at):
            made[..., layer, head] = values[..., i]
        return made


def outputs(model: Model, data: ContrastDataset, *, positions: Positions, seed: int = 0) -> Outputs:
    """Outputs of all heads on all prompts.

    Memory: `x`, `n x all heads x d_model`, and W_O of one layer, float32.
    """
    layers = attention_layers(model)
    kept: list[Tensor] = [torch.empty(0)] * len(data)
    for rows in _batches(data):
        z, mask = _z(model, data, rows, layers)
        short = z[:, -1] if positions == "last" else (z * mask).sum(dim=1) / mask.sum(dim=1)
        for i, row in enumerate(rows):
            kept[row] = short[i]
    z = torch.stack(kept)
    x = z.new_empty((*z.shape[:2], model.d_model))
    gram = z.new_empty((z.shape[1], z.shape[2], z.shape[2]))
    for i, layer in enumerate(layers):
        heads = slice(i * model.n_heads, (i + 1) * model.n_heads)
        weights = output_weights(model, layer).to(model.device)  # of all layers together: gigabytes
        x[:, heads] = torch.einsum("nhd,hdm->nhm", z[:, heads], weights)
        gram[heads] = weights @ weights.mT  # |dz W|^2 = dz (W W^T) dz^T
    found = Outputs(x, z, [(layer, head) for layer in layers for head in range(model.n_heads)])
    if data.pairs is not None:
        n = len(data.pairs)
        lengths = np.array([pair.length for pair in data.pairs])
        take, has_one = donors(lengths, np.random.default_rng(seed))
        own = np.arange(n)
        found.change = _changes(model, data, own, n + own, layers, gram, positions)
        found.elsewhere = np.full_like(found.change, np.nan)
        if has_one.any():
            found.elsewhere[has_one] = _changes(model, data, own[has_one], take[has_one], layers, gram, positions)
    return found


def right(model: Model, data: ContrastDataset) -> dict[str, Any]:
    """How often the most likely next token is the answer on clean prompts, and answer or wrong on corrupted ones.

    The method assumes that the second is near 0: on a negative the model has nothing to be right about.

    Raises:
        CapabilityError: logits that are not finite.
    """
    if data.pairs is None:
        return {"status": "not known: explicit prompts name no answer"}
    batch = data.pairs.batch()
    best = []
    for tokens in (batch.clean, batch.corrupted):
        parts = []
        for rows in torch.arange(len(tokens)).split(max(1, _TOKENS_AT_ONCE // tokens.shape[1])):
            mask = batch.mask[rows].long().to(model.device)
            here = tokens[rows].to(model.device)
            logits = forward(model, here, attention_mask=mask, logits_to_keep=1).logits[:, -1]
            require_finite(model, logits, [True] * len(rows))
            parts.append(logits.argmax(-1).cpu())
        best.append(torch.cat(parts))
    on_clean, on_corrupted = best
    answered = (on_corrupted == batch.answer) | (on_corrupted == batch.wrong)
    return {
        "right_on_positives": float((on_clean == batch.answer).double().mean()),
        "answers_on_negatives": float(answered.double().mean()),
        "note": "share of prompts; on negatives the answer or the wrong answer of the pair",
    }


def _batches(data: ContrastDataset, size: int | None = None) -> list[list[int]]:
    """Prompt numbers, alike lengths together."""
    order = sorted(range(len(data)), key=lambda i: (data[i].length, i))
    size = size or max(1, _TOKENS_AT_ONCE // max(sample.length for sample in data))
    return [order[i : i + size] for i in range(0, len(order), size)]


def _z(model: Model, data: ContrastDataset, rows: list[int], layers: list[int]) -> tuple[Tensor, Tensor]:
    """`[row, pos, head, d_head]` in float32 or better, and the mask `[row, pos, 1, 1]`."""
    batch = data.batch(rows)
    mask = None if not batch.padded else batch.mask.long().to(model.device)
    names = capture.names(model, "z", layers=layers)
    found = capture.capture(model, batch.tokens.to(model.device), names, attention_mask=mask)
    wide = torch.promote_types(model.dtype, torch.float32)
    z = torch.cat([found[name].to(model.device, wide) for name in names], dim=2)
    return z, batch.mask.to(model.device, wide)[:, :, None, None]


def _changes(
    model: Model,
    data: ContrastDataset,
    here: np.ndarray,
    there: np.ndarray,
    layers: list[int],
    gram: Tensor,
    positions: Positions,
) -> np.ndarray:
    """`[pair, head]` distance between the outputs of two prompts of equal length, over positions."""
    longest = max(data[int(i)].length for i in here)
    size = max(1, _TOKENS_AT_ONCE // (2 * longest))
    parts = []
    for start in range(0, len(here), size):
        rows = [*here[start : start + size], *there[start : start + size]]
        z, mask = _z(model, data, [int(row) for row in rows], layers)
        one, two = (z * mask).chunk(2)
        moved = one - two
        if positions == "last":
            moved = moved[:, -1:]
        squares = torch.einsum("bphd,hde,bphe->bh", moved, gram, moved)
        parts.append(squares.clamp_min(0).sqrt().double().cpu().numpy())
    return np.concatenate(parts)
