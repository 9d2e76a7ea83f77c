"""What a planted model says, and with heads switched off in the weights themselves: the figures on its card.

`zero` removes a head's output; `uniform` sets its queries to zero, so that it attends equally to all it can see. The
weights are as before afterwards. This is deliberately the plainest way there is: no hook, no analysis.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import Float

from workbench.organisms.planted.writing import Slot, decoder_layers

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["zero", "uniform"]


@contextmanager
def silenced(model: Any, heads: Sequence[Slot], kind: Kind = "zero") -> Iterator[None]:
    """Within the block `heads` (layer, head) of a GPT-2 or Llama are off."""
    import torch

    touched = [_weights(model, head, kind) for head in heads]
    before = [weight.clone() for weight in touched]
    with torch.no_grad():
        for weight in touched:
            weight.zero_()
        try:
            yield
        finally:
            for weight, old in zip(touched, before, strict=True):
                weight.copy_(old)


def predictions(model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[list[int]]:
    """The model's first choice in the place of each answer token, given the prompt and the answer up to there."""
    rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    choice = _logits(model, rows).argmax(-1).tolist()
    return [
        choice[i][len(prompt) - 1 : len(prompt) + len(answer) - 1]
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]


def last_logits(model: Any, prompts: Sequence[Sequence[int]]) -> Float[Tensor, "prompt vocab"]:
    """Logits at the last position of each prompt."""
    import torch

    last = torch.tensor([len(prompt) - 1 for prompt in prompts])
    return _logits(model, prompts)[torch.arange(len(prompts)), last]


def _logits(model: Any, rows: Sequence[Sequence[int]]) -> Float[Tensor, "row pos vocab"]:
    """All logits; shorter rows are filled up on the right, where a causal model does not look."""
    import torch

    longest = max(map(len, rows))
    with torch.no_grad():
        return model(torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])).logits


def _weights(model: Any, head: Slot, kind: Kind) -> Any:
    """The part of a weight that only this head uses: its columns of W_O, or its rows of W_Q."""
    layer, index = head
    block = decoder_layers(model)[layer]
    if hasattr(block, "attn"):  # GPT-2; Conv1D keeps [in, out], and q comes first in c_attn
        rows = _rows(model, index)
        return block.attn.c_proj.weight.detach()[rows] if kind == "zero" else block.attn.c_attn.weight.detach()[:, rows]
    attention = block.self_attn
    rows = slice(index * attention.head_dim, (index + 1) * attention.head_dim)
    return attention.o_proj.weight.detach()[:, rows] if kind == "zero" else attention.q_proj.weight.detach()[rows]


def _rows(model: Any, index: int) -> slice:
    d_head = model.config.n_embd // model.config.n_head
    return slice(index * d_head, (index + 1) * d_head)
