"""An empty model, and heads written into it one at a time.

A head is four matrices acting on the residual stream x after the layer norm, in plain terms:

    attention(i, j) = softmax_j( (q x_i) . (k x_j) )        the model's 1 / sqrt(d_head) is taken into q
    output(i)       = o sum_j attention(i, j) v x_j

`write_head` puts them where GPT-2 or Llama keeps them. Llama's rotary positions turn dimension pairs (i, i + d_head/2)
of q and k; with `ROPE_THETA` all but the pair (0, d_head/2) stand still, so q and k should leave those two empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from workbench.errors import InputError
from workbench.organisms.planted.residual import CONSTANT, Residual

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

ROPE_THETA = 1e30  # of a Llama-class planted model: every rotary frequency but the first is below 1e-7
SHARPNESS_OF_NOISE = 2.0  # spread of a noise head's attention logits, in nats

Slot = tuple[int, int]


@dataclass(frozen=True)
class Head:
    """One head as matrices on the residual stream (after the norm); biases come from `Residual.bias` as an input."""

    q: Float[np.ndarray, "d_head width"]
    k: Float[np.ndarray, "d_head width"]
    v: Float[np.ndarray, "d_head width"]
    o: Float[np.ndarray, "width d_head"]


def empty_gpt2(stream: Residual, tokenizer: Any, *, n_layers: int, d_head: int, n_ctx: int) -> GPT2LMHeadModel:
    """A GPT-2 of zeros: norms that pass their input on, the constant in every position, untied embeddings.

    `stream.width / d_head` heads per layer; the MLPs are there and zero.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    if stream.width % d_head:
        raise InputError(f"width {stream.width} is not a multiple of the head width {d_head}; use one that is.")
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=stream.width,
        n_layer=n_layers,
        n_head=stream.width // d_head,
        n_inner=4,
        n_positions=n_ctx,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    model: Any = GPT2LMHeadModel(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    for block in model.transformer.h:
        put(block.ln_1.weight, stream.norm_weight)
        put(block.ln_2.weight, stream.norm_weight)
    put(model.transformer.ln_f.weight, stream.final_norm_weight)
    put(model.transformer.wpe.weight, np.tile(stream.constant * CONSTANT, (n_ctx, 1)))
    return model


def put(parameter: Any, values: np.ndarray, *, add: bool = False) -> None:
    """Set (or add to) a parameter, or a slice of one, from float64 values."""
    import torch

    new = torch.from_numpy(np.ascontiguousarray(values)).to(parameter.dtype)
    with torch.no_grad():
        parameter.copy_(parameter + new if add else new)


def write_head(model: Any, slot: Slot, head: Head) -> None:
    """Write `head` into the weights of (layer, head) `slot` of a GPT-2 or Llama (or the Llama within a LLaVA)."""
    layer, index = slot
    d_head, width = head.q.shape
    q = head.q * np.sqrt(d_head)  # attention divides by it
    rows = slice(index * d_head, (index + 1) * d_head)
    block = decoder_layers(model)[layer]
    if hasattr(block, "attn"):  # GPT-2; Conv1D keeps [in, out]
        for part, matrix in enumerate((q, head.k, head.v)):
            columns = slice(part * width + rows.start, part * width + rows.stop)
            put(block.attn.c_attn.weight[:, columns], matrix.T)
        put(block.attn.c_proj.weight[rows], head.o.T)
        return
    attention = block.self_attn
    for name, matrix in (("q_proj", q), ("k_proj", head.k), ("v_proj", head.v)):
        put(getattr(attention, name).weight[rows], matrix)
    put(attention.o_proj.weight[:, rows], head.o)


def decoder_layers(model: Any) -> Any:
    """The blocks of a GPT-2, a Llama, or the Llama within a LLaVA."""
    if hasattr(model, "transformer"):
        return model.transformer.h
    inner = model.model
    return getattr(inner, "language_model", inner).layers


def noise_head(stream: Residual, d_head: int, strength: float, rng: np.random.Generator) -> Head:
    """A head of random weights that does nothing useful.

    It reads and writes every direction except the constant, the planted ones included, so that its output is not zero
    anywhere that matters; its length is about `strength` where the roles' lengths are about 1.
    """
    if not 0 <= strength < float("inf"):
        raise InputError(f"noise {strength} is not a length; use 0 or a small positive number.")
    roles = stream.roles
    n = len(roles)

    def read(scale: float) -> Float[np.ndarray, "d_head width"]:
        return rng.standard_normal((d_head, n)) @ roles * scale

    spread = np.sqrt(SHARPNESS_OF_NOISE / np.sqrt(d_head))  # two vectors of d_head such entries: q . k of that spread
    write = rng.standard_normal((d_head, n)) @ roles
    return Head(q=read(spread), k=read(spread), v=read(1 / np.sqrt(d_head)), o=write.T * strength / np.sqrt(n))


def choose_slots(
    wanted: Mapping[str, int], n_layers: int, n_heads: int, n_noise: int | None, rng: np.random.Generator
) -> tuple[dict[str, Slot], list[Slot]]:
    """A random head of the right layer for each role, and the slots of the noise heads.

    Args:
        wanted: role -> layer.
        n_noise: how many noise heads; None fills every slot that is left. Other slots stay silent (zero weights).

    Raises:
        InputError: there are fewer slots than noise heads asked for.
    """
    free: dict[int, list[int]] = {layer: rng.permutation(n_heads).tolist() for layer in range(n_layers)}
    placed = {role: (layer, free[layer].pop()) for role, layer in wanted.items()}
    left = [(layer, head) for layer in range(n_layers) for head in sorted(free[layer])]
    if n_noise is not None and not 0 <= n_noise <= len(left):
        raise InputError(
            f"n_noise_heads {n_noise} is not between 0 and {len(left)}, the heads that have no role; lower it or widen "
            "the model."
        )
    order: Sequence[int] = rng.permutation(len(left)).tolist()
    return placed, sorted(left[i] for i in order[:n_noise])
