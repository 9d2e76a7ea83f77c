"""The residual fork: run the model from the edited layer on, with everything below taken from the base run.

For an edit of heads in layer l, on a batch of (unit, example) rows:

1. blocks below l pass their input through; nothing is computed there;
2. block l runs on its cached input, and where its attention module was it meets the cached attention output plus
   (z' - z) W_O, so that the block's own code does norms after attention, multipliers and parallel branches
   (where attention and MLP read the same input, block l's output is the cached one plus the change, and 2 is skipped);
3. blocks up to the last but one run as they are;
4. the last block computes keys and values at all positions and everything else at the one position that is read;
5. final norm and unembedding see that position only.

Nothing here names an architecture: blocks and attention modules are replaced for the call (`swap`), the key/value
split of step 4 uses the cache interface every decoder has. Whether it is exact for a model is measured (`exactness`).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from workbench.primitives.forward import forward
from workbench.primitives.swap import (
    Call,
    as_output,
    hidden_in,
    hidden_out,
    output_width,
    swapped,
    with_hidden,
)
from workbench.primitives.sweep.prompts import Prompts, at_columns

if TYPE_CHECKING:
    from workbench.models import Model

_CACHE_NAMES = ("past_key_values", "layer_past", "past_key_value")


@dataclass(frozen=True)
class Way:
    """How a model is forked.

    Attributes:
        parallel: the edit is added to the block's output, because the MLP does not read it.
        tail: step 4 above; otherwise the last block runs at every position.
    """

    parallel: bool
    tail: bool


@dataclass
class Start:
    """Where a fork begins: tensors of the batch, already repeated for its units.

    Attributes:
        x: input of block `layer`; in a parallel fork its edited output.
        attn: edited output of the attention module; None in a parallel fork.
        block_width, attn_width: see `swap.output_width`.
    """

    layer: int
    x: Float[Tensor, "batch pos d_model"]
    attn: Float[Tensor, "batch pos d_model"] | None
    block_width: dict[int, int | None]
    attn_width: dict[int, int | None]


def run_fork(model: Model, prompts: Prompts, start: Start, way: Way) -> Float[Tensor, "batch vocab"]:
    """Logits at the last real token of every row of the batch.

    Memory: activations of one block for the whole batch, attention scores `[batch, head, pos, pos]` among them.
    """
    blocks = list(model.bridge.blocks)
    first = start.layer + way.parallel  # the first block that runs
    replacements: dict[nn.Module, Call] = {}
    for layer, block in enumerate(blocks):
        if layer < first:
            replacements[block] = _pass(start.block_width[layer])
        if layer == first or layer == len(blocks) - 1:
            replacements[block] = _Block(block, layer, start, way, prompts, is_last=layer == len(blocks) - 1)
    with swapped(replacements):
        return forward(model, prompts.tokens, attention_mask=prompts.mask, logits_to_keep=1).logits[:, -1]


def last_block(block: Any, layer: int, prompts: Prompts, width: int | None) -> Call:
    """Step 4 alone, for `swapped`: the last block as it is, at the position that is read."""
    elsewhere = Start(-2, torch.empty(0), None, {layer: width}, {})
    return _Block(block, layer, elsewhere, Way(parallel=False, tail=True), prompts, is_last=True)


def _pass(width: int | None) -> Call:
    def run(*args: Any, **kwargs: Any) -> Any:
        return as_output(hidden_in(args, kwargs), width)

    return run


class _Block:
    """A block that starts the fork, ends the model, or both."""

    def __init__(self, block: Any, layer: int, start: Start, way: Way, prompts: Prompts, *, is_last: bool):
        self.block, self.call, self.attn = block, block.forward, getattr(block, "attn", None)
        self.layer, self.start, self.way, self.prompts, self.is_last = layer, start, way, prompts, is_last

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        start, n_pos = self.start, self.prompts.tokens.shape[1]
        width = start.block_width[self.layer]
        if self.layer < start.layer + self.way.parallel:  # a parallel fork in the last block: its output is known
            return as_output(self._only_last(start.x).expand(-1, n_pos, -1), width)
        if self.layer == start.layer + self.way.parallel:
            args, kwargs = with_hidden(args, kwargs, start.x.to(hidden_in(args, kwargs).device))
        if self.layer == start.layer and start.attn is not None:
            if self.is_last:  # all that follows attention happens at one position
                return self._spread(self._with_attention(self._only_last(start.attn), *self._shortened(args, kwargs)))
            return self._with_attention(start.attn, args, kwargs)
        if self.is_last and self.way.tail:
            return self._spread(self._tail(args, kwargs))
        output = self.call(*args, **kwargs)
        return self._spread(as_output(self._only_last(hidden_out(output)), width)) if self.is_last else output

    def _with_attention(self, given: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The block's own code, with the attention module's output given."""
        assert self.attn is not None
        output = as_output(given, self.start.attn_width[self.layer])
        with swapped({self.attn: lambda *_, **__: output}):
            return self.call(*args, **kwargs)

    def _tail(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The block at the positions read: its keys and values at all of them, the rest as in a decoding step."""
        assert self.attn is not None
        attn, attend = self.attn, self.attn.forward
        call = _attention_call(self.call, attn, args, kwargs)
        keys_values = _keys_values(attn, attend, *call)

        def one_position(*args: Any, **kwargs: Any) -> Any:
            return attend(*args, **_with_cache(kwargs, _Given(*keys_values)))

        args, kwargs = self._shortened(args, kwargs)
        with swapped({attn: one_position}):
            return self.call(*args, **kwargs)

    def _only_last(self, values: Tensor) -> Tensor:
        return at_columns(values, self.prompts.last, axis=1)

    def _spread(self, output: Any) -> Any:
        """One position put at every column, without copying: whoever reads the last one finds it."""
        hidden = hidden_out(output).expand(-1, self.prompts.tokens.shape[1], -1)
        return as_output(hidden, output_width(output))

    def _shortened(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call with only the position that is read: hidden states, mask rows, positions."""
        hidden = self._only_last(hidden_in(args, kwargs))
        args, kwargs = with_hidden(args, kwargs, hidden)
        return tuple(self._short(value) for value in args), {key: self._short(v) for key, v in kwargs.items()}

    def _short(self, value: Any) -> Any:
        """A mask `[batch, head, query, key]`, positions `[batch, pos]`, cos and sin `[batch, pos, d]`: one row."""
        n_pos = self.prompts.tokens.shape[1]
        if isinstance(value, tuple):
            return tuple(self._short(part) for part in value)
        if not isinstance(value, Tensor):
            return value
        if value.ndim == 4 and value.shape[-2] == n_pos:
            return at_columns(value, self.prompts.last, axis=2)
        if value.ndim in (2, 3) and value.shape[1] == n_pos and value.shape[0] in (1, len(self.prompts)):
            return at_columns(value, self.prompts.last, axis=1)
        if value.ndim == 1 and len(value) == n_pos and self.prompts.ends_aligned:
            return value[-1:]
        return value


class _Seen(Exception):
    """Ends a call once what it was made for is known."""


def _attention_call(
    block: Call, attn: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the block calls its attention module with."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def look(*args: Any, **kwargs: Any) -> Any:
        seen.append((args, kwargs))
        raise _Seen

    with swapped({attn: look}), suppress(_Seen):
        block(*args, **kwargs)
    if not seen:
        raise RuntimeError("the block does not call its attention module")
    return seen[0]


def _keys_values(attn: Any, attend: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Keys and values at every position, as the attention module hands them to its cache."""
    cache = _Taker()
    q = getattr(attn, "q", None)
    linear = getattr(q, "original_component", None)
    idle: dict[nn.Module, Call] = {}
    if isinstance(linear, nn.Linear):  # no query is needed yet
        d_out = linear.out_features
        idle[linear] = lambda x: x.new_zeros(1).expand(*x.shape[:-1], d_out)
    with swapped(idle), suppress(_Seen):
        attend(*args, **_with_cache(kwargs, cache))
    if cache.taken is None:
        raise RuntimeError("the attention module does not write to a cache")
    return cache.taken


def _with_cache(kwargs: dict[str, Any], cache: Any) -> dict[str, Any]:
    named = [name for name in _CACHE_NAMES if name in kwargs] or ["past_key_values"]
    return {**kwargs, **dict.fromkeys(named, cache)}


class _Taker:
    """A cache that takes the keys and values of one layer and ends the call."""

    taken: tuple[Tensor, Tensor] | None = None

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> Any:
        self.taken = keys, values
        raise _Seen

    def get_seq_length(self, *_: Any) -> int:
        return 0


class _Given:
    """A cache that already holds the new position's keys and values."""

    def __init__(self, keys: Tensor, values: Tensor):
        self.keys, self.values = keys, values

    def update(self, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return self.keys, self.values

    def get_seq_length(self, *_: Any) -> int:
        return self.keys.shape[-2] - 1


def output_weights(model: Model, layer: int) -> Float[Tensor, "head d_head d_model"]:
    """W_O by head, in float32 or better; read from the projection itself, without its bias."""
    projection = model.bridge.blocks[layer].attn.o.original_component
    weight = projection.weight
    dense = weight.is_floating_point()
    if dense and isinstance(projection, nn.Linear):
        matrix = weight.T
    elif dense and type(projection).__name__ == "Conv1D":
        matrix = weight
    else:  # quantised or wrapped: what it does to the unit vectors
        eye = torch.eye(model.n_heads * model.d_head, dtype=model.dtype, device=weight.device)
        matrix = projection(eye) - projection(torch.zeros_like(eye))
    matrix = matrix.detach().to(torch.promote_types(matrix.dtype, torch.float32))
    return matrix.reshape(model.n_heads, -1, matrix.shape[-1])
