"""Swaps of head and MLP outputs on a plain GPT2LMHeadModel, with nothing but PyTorch hooks.

A head's output z is its slice of what enters the attention's output projection `c_proj`; an MLP's is what it returns.
`record` keeps both for a batch of source prompts, `swapped` runs with some of them in place of the model's own, chosen
per prompt (row), at all positions. `swapped_path` sends the change of one head straight into the query, key or value
of one later head, or into the logits, and nowhere else. Used in training, in measuring and in the tests; it shares no
code with the package's primitives, so that each can be held against the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Head = tuple[int, int]
Input = Literal["q", "k", "v"]


@dataclass(frozen=True)
class Outputs:
    """What heads and MLPs wrote: `heads[layer]` `[n, pos, head, d_head]`, `mlps[layer]` `[n, pos, d_model]`."""

    heads: list[Tensor]
    mlps: list[Tensor]

    def each(self, edit: Callable[[Tensor], Tensor]) -> Outputs:
        """`edit` applied to every tensor."""
        return Outputs([edit(z) for z in self.heads], [edit(m) for m in self.mlps])

    def mean(self) -> Outputs:
        """Every row the mean over rows, per position."""
        return self.each(lambda x: x.mean(0, keepdim=True).expand_as(x))

    def zero(self) -> Outputs:
        """Nothing written."""
        return self.each(torch.zeros_like)


@dataclass(frozen=True)
class Chosen:
    """Whose output is swapped where: `heads` `[n, pos or 1, layer, head]`, `mlps` `[n, pos or 1, layer]`, boolean."""

    heads: Tensor
    mlps: Tensor

    @classmethod
    def one(
        cls, model: Any, n: int, *, heads: Sequence[Head] = (), mlps: Sequence[int] = (), at: Tensor | None = None
    ) -> Chosen:
        """The same heads and MLPs in `n` rows, at the positions that are True in `at` `[n, pos]`, by default at all."""
        layers, width = model.config.n_layer, model.config.n_head
        where = torch.ones(n, 1, dtype=torch.bool) if at is None else at
        chosen_heads = torch.zeros(layers, width, dtype=torch.bool)
        chosen_mlps = torch.zeros(layers, dtype=torch.bool)
        for layer, head in heads:
            chosen_heads[layer, head] = True
        chosen_mlps[list(mlps)] = True
        return cls(where[:, :, None, None] & chosen_heads, where[:, :, None] & chosen_mlps)


def end_logits(model: Any, tokens: Tensor, last: Tensor) -> Tensor:
    """Logits of the token after position `last` `[n]` of prompts padded on the right `[n, pos]`: `[n, vocab]`."""
    hidden = model.transformer(input_ids=tokens, use_cache=False).last_hidden_state
    return model.lm_head(hidden[torch.arange(len(tokens)), last])


@contextmanager
def _hooked(handles: list[Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield


@torch.no_grad()
def record(model: Any, tokens: Tensor) -> Outputs:
    """What every head and MLP writes on `tokens` `[n, pos]`."""
    kept = Outputs([], [])
    n_heads, handles = model.config.n_head, []
    for block in model.transformer.h:
        keep_z = lambda _m, args: kept.heads.append(args[0].unflatten(-1, (n_heads, -1)).clone())  # noqa: E731
        keep_mlp = lambda _m, _args, out: kept.mlps.append(out.clone())  # noqa: E731
        handles.append(block.attn.c_proj.register_forward_pre_hook(keep_z))
        handles.append(block.mlp.register_forward_hook(keep_mlp))
    with _hooked(handles):
        model.transformer(input_ids=tokens, use_cache=False)
    return kept


@contextmanager
def swapped(model: Any, source: Outputs, chosen: Chosen) -> Iterator[None]:
    """Inside, row i of a batch runs with the `chosen` outputs of row i of `source`."""

    def swap_z(layer: int) -> Any:
        def hook(_module: Any, args: tuple[Tensor]) -> tuple[Tensor]:
            z = args[0].unflatten(-1, source.heads[layer].shape[-2:])
            return (torch.where(chosen.heads[:, :, layer, :, None], source.heads[layer], z).flatten(2),)

        return hook

    def swap_mlp(layer: int) -> Any:
        return lambda _m, _args, out: torch.where(chosen.mlps[:, :, layer, None], source.mlps[layer], out)

    handles = []
    for layer, block in enumerate(model.transformer.h):
        if chosen.heads[:, :, layer].any():
            handles.append(block.attn.c_proj.register_forward_pre_hook(swap_z(layer)))
        if chosen.mlps[:, :, layer].any():
            handles.append(block.mlp.register_forward_hook(swap_mlp(layer)))
    with _hooked(handles):
        yield


@contextmanager
def swapped_path(
    model: Any, own: Outputs, source: Outputs, sender: Head, receiver: Head | None, into: Input | None
) -> Iterator[None]:
    """Inside, `receiver` reads the residual stream as if `sender` had its output on `source`; all else is its own.

    Args:
        own: outputs on the prompts that are run, row by row those of `source`.
        receiver: a later head, whose `into` (q, k or v) reads the changed stream; None for the logits.
    """
    layer, head = sender
    d_head = own.heads[layer].shape[-1]
    weight = model.transformer.h[layer].attn.c_proj.weight[head * d_head : (head + 1) * d_head]  # (d_head, d_model)
    change = (source.heads[layer][:, :, head] - own.heads[layer][:, :, head]) @ weight  # (n, pos, d_model)
    if receiver is None:
        handles = [model.transformer.ln_f.register_forward_pre_hook(lambda _m, args: (args[0] + change,))]
    else:
        block = model.transformer.h[receiver[0]]
        stream: list[Tensor] = []
        part = "qkv".index(into or "") * model.config.n_embd + receiver[1] * d_head

        def replace(module: Any, _args: Any, out: Tensor) -> Tensor:
            rows = module.weight[:, part : part + d_head], module.bias[part : part + d_head]
            read = model.transformer.h[receiver[0]].ln_1.forward(stream.pop() + change) @ rows[0] + rows[1]
            return torch.cat([out[..., :part], read, out[..., part + d_head :]], -1)

        keep = block.ln_1.register_forward_pre_hook(lambda _m, args: stream.append(args[0]))
        handles = [keep, block.attn.c_attn.register_forward_hook(replace)]
    with _hooked(handles):
        yield
