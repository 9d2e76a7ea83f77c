"""Greedy decoding with a key-value cache, for many prompts that share their beginnings.

Prompts are visited in sorted order, so that each distinct prefix is prefilled exactly once (a depth-first walk of the
prompts' trie: crop the cache to the common prefix, append the rest). Prefill runs in chunks sized so that no attention
pattern larger than `budget` exists; memory is linear in context length. Prompts of similar length then decode together,
padded on the left where they differ, so that a batch equals single runs to rounding. The last prompt token is left to
the first decode step: its row predicts the first generated token, and `decode`-scoped interventions start there.

This module knows nothing of needles, scores or papers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import CapabilityError, InputError
from workbench.primitives.forward import forward, image_token
from workbench.primitives.hooks import Hook, hooked
from workbench.primitives.interventions import Intervention, Scope, applied

if TYPE_CHECKING:
    from transformers import DynamicCache

    from workbench.models import Model

ATTENTION_BUDGET = 256 * 2**20  # bytes of attention scores alive at once during prefill
_SCORE_COPIES = 4  # scores, mask sum, float32 softmax and its cast, as eager attention holds them
_MAX_CHUNK = 512
_MAX_WAITING = 4  # batches' worth of caches held while they wait for partners of their length
_BATCH_TOKENS = 2**16  # prompt tokens in one batch at most: its keys and values are all in memory
_LENGTH_CLASS = 1.5  # prompts decode together when their lengths lie within one power of this


@dataclass
class Prefilled:
    """Prompts whose keys and values are cached up to, not including, their last token.

    Attributes:
        index: which of the prompts given to `prefill` these are.
        tokens: the prompts, padded on the left to one length.
        padding: padding columns before each prompt; position p of prompt i is column `padding[i] + p`.
        cache: keys and values of `tokens[:, :-1]`; `decode` copies it, so one prefill serves many decodes.
    """

    index: tuple[int, ...]
    tokens: Int[Tensor, "batch pos"]
    padding: tuple[int, ...]
    cache: DynamicCache

    @property
    def mask(self) -> Int[Tensor, "batch pos"] | None:
        """1 for real tokens; None when nothing is padded."""
        if not any(self.padding):
            return None
        columns = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return (columns >= torch.tensor(self.padding, device=self.tokens.device)[:, None]).long()

    def row_cache(self, row: int, length: int) -> DynamicCache:
        """The cache of one prompt alone, without its padding, cut to its first `length` tokens."""
        first = self.padding[row]
        cache = fork(self.cache, length=first + length)
        for layer in _layers(cache):
            if layer.is_initialized:
                layer.keys, layer.values = (x[row : row + 1, :, first:] for x in (layer.keys, layer.values))
        return cache


def prefill(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    batch_size: int = 16,
    new_tokens: int = 0,
    interventions: Sequence[Intervention] = (),
    budget: int = ATTENTION_BUDGET,
    inputs: Sequence[Mapping[str, Any]] | None = None,
) -> Iterator[Prefilled]:
    """Prefill `prompts`, sharing every common prefix, and yield them in batches of similar length.

    Batches do not come in the order of `prompts`; `Prefilled.index` says which is which. At most
    `4 * batch_size` prompts' caches are held at once.

    Args:
        new_tokens: how many will be decoded. A prompt for which the context has not so much room shares a batch with
            prompts of its own length only: an answer must not end early because of a longer neighbour.
        inputs: for each prompt what the model takes beside its tokens (`pixel_values` of one image, ...; see
            `forward`). A prefix with its image is shared by prompts that are given the same mapping object. Up to the
            end of the image a prompt is one chunk, whatever `budget` says.

    Raises:
        InputError: a prompt has fewer than two tokens, or is longer than the model's context.
    """
    for i, prompt in enumerate(prompts):
        if len(prompt) < 2:
            raise InputError(f"Prompt {i} has {len(prompt)} token(s); decoding needs at least 2.")
        if model.n_ctx and len(prompt) > model.n_ctx:
            raise InputError(f"Prompt {i} has {len(prompt)} tokens but {model.name} takes at most {model.n_ctx}.")
    during_prefill = [i for i in interventions if i.scope != Scope.DECODE]
    if inputs is not None and len(inputs) != len(prompts):
        raise InputError(f"{len(inputs)} inputs were given for {len(prompts)} prompts; give one mapping for each.")
    path = _Path(model, during_prefill, budget)
    waiting: dict[tuple[bool, int], list[tuple[int, DynamicCache]]] = {}
    beside = [None] * len(prompts) if inputs is None else inputs
    first = {id(given): i for i, given in reversed(list(enumerate(beside)))}  # prompts of one image stay together
    for i in sorted(range(len(prompts)), key=lambda i: (first[id(beside[i])], tuple(prompts[i]))):
        length = len(prompts[i])
        cramped = bool(model.n_ctx) and length - 1 + new_tokens > model.n_ctx
        size = cramped, length if cramped else int(math.log(length, _LENGTH_CLASS))
        bucket = waiting.setdefault(size, [])
        bucket.append((i, path.extend_to(prompts[i][:-1], beside[i])))
        if len(bucket) >= min(batch_size, max(1, _BATCH_TOKENS // length)):
            yield _merge(model, prompts, waiting.pop(size))
        elif sum(map(len, waiting.values())) >= _MAX_WAITING * batch_size:
            fullest = max(waiting, key=lambda key: len(waiting[key]))
            yield _merge(model, prompts, waiting.pop(fullest))
    for bucket in waiting.values():
        yield _merge(model, prompts, bucket)


def decode(
    model: Model,
    batch: Prefilled,
    *,
    max_new_tokens: int,
    stop: Callable[[int], bool],
    interventions: Sequence[Intervention] = (),
    hooks: Sequence[Hook] = (),
    on_step: Callable[[], None] | None = None,
) -> list[list[int]]:
    """Continue each prompt greedily until `stop(token)` is true (that token is kept), `max_new_tokens` are out, or the
    model's context is full.

    `hooks` only read; they fire once a step on single-row activations: a pattern is `[batch, head, 1, key]` over all
    keys so far.
    `on_step()` is called after each. Rows that have stopped are still computed; their hooks' values mean nothing.
    Interventions of scope `prefill` have no effect here.

    Raises:
        CapabilityError: logits that are not finite.
    """
    cache = fork(batch.cache)
    current = batch.tokens[:, -1:]
    generated: list[list[int]] = [[] for _ in batch.index]
    active = [True] * len(batch.index)
    offset = batch.tokens.shape[1] - 1
    room = model.n_ctx - offset if model.n_ctx else max_new_tokens  # the last generated token needs no position
    if room < max_new_tokens and any(batch.padding):
        raise InputError(
            f"The longest of these prompts has room for {room} tokens in the {model.n_ctx} positions of {model.name!r} "
            f"and the others for more; prefill them with new_tokens={max_new_tokens}, so that they share no batch."
        )
    mask = batch.mask
    with (
        applied(model, interventions, attention_mask=mask) as phase,
        hooked(model, hooks, must_fire=max_new_tokens > 0, copy=False),
    ):
        phase.name = "decode"
        for t in range(min(max_new_tokens, room)):
            phase.offset = offset + t
            out = forward(model, current, attention_mask=mask, cache=cache, use_cache=True, logits_to_keep=1)
            mask = None if mask is None else torch.nn.functional.pad(mask, (0, 1), value=1)
            require_finite(model, out.logits[:, -1], active)
            current = out.logits[:, -1].argmax(-1, keepdim=True)
            for row, token in enumerate(current[:, 0].tolist()):
                if active[row]:
                    generated[row].append(token)
                    active[row] = not stop(token)
            if on_step is not None:
                on_step()
            if not any(active):
                break
    return generated


def require_finite(model: Model, logits: Float[Tensor, "batch vocab"], active: Sequence[bool]) -> None:
    """Refuse to choose a token from logits of which the largest is NaN or infinite: it would be the first such token.

    Args:
        active: rows whose token will be read.
    """
    largest = logits.amax(dim=-1)[torch.tensor(active, device=logits.device)]
    if not bool(largest.isfinite().all()):
        raise CapabilityError(
            f"The logits of {model.name!r} are not finite, so it says nothing; check the weights, or load it in "
            f"float32 (it is in {str(model.dtype).removeprefix('torch.')})."
        )


def fork(cache: DynamicCache, *, length: int | None = None) -> DynamicCache:
    """A cache that starts as the first `length` tokens of `cache` (all by default) and then lives on its own.

    Storage is shared until the copy grows: appending concatenates and never writes in place.
    """
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    if length is not None:
        twin.crop(length - cache.get_seq_length())
    return twin


class _Path:
    """The cache of one token sequence, cropped and extended as sorted prompts are visited."""

    def __init__(self, model: Model, interventions: Sequence[Intervention], budget: int) -> None:
        self.model, self.interventions, self.budget = model, interventions, budget
        self.tokens: tuple[int, ...] = ()
        self.inputs: Mapping[str, Any] | None = None
        self.cache: DynamicCache | None = None
        self.marker = image_token(model)

    def extend_to(self, tokens: Sequence[int], inputs: Mapping[str, Any] | None = None) -> DynamicCache:
        from transformers import DynamicCache

        tokens = tuple(tokens)
        shared = common_prefix(self.tokens, tokens)
        image_end = 0 if not inputs else len(tokens) - tuple(reversed(tokens)).index(self.marker)
        if (inputs is not self.inputs and (inputs or self.inputs)) or shared < image_end:
            shared = 0
        cache = fork(self.cache, length=shared) if self.cache is not None and shared else DynamicCache()
        with applied(self.model, self.interventions) as phase:
            phase.name = "prefill"
            done = shared
            if shared < image_end:
                rows = torch.tensor([tokens[:image_end]], device=self.model.device)
                forward(
                    self.model, rows, cache=cache, use_cache=True, logits_to_keep=1, inputs=_upto(inputs, image_end)
                )
                done = image_end
            for start, end in _chunks(done, len(tokens), self.model.n_heads, self.budget):
                phase.offset = start
                rows = torch.tensor([tokens[start:end]], device=self.model.device)
                forward(self.model, rows, cache=cache, use_cache=True, logits_to_keep=1)
        self.tokens, self.inputs, self.cache = tokens, inputs, cache
        return fork(cache)


def _upto(inputs: Mapping[str, Any] | None, end: int) -> dict[str, Any]:
    """What goes with the first `end` tokens: token types are one per token."""
    return {k: v[:, :end] if k == "token_type_ids" else v for k, v in (inputs or {}).items()}


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of leading tokens that `a` and `b` share."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))


def _chunks(start: int, end: int, n_heads: int, budget: int) -> Iterator[tuple[int, int]]:
    """Split `[start, end)` so that one chunk's scores, `[n_heads, chunk, end]` float32, stay within `budget`."""
    size = max(1, min(_MAX_CHUNK, budget // (n_heads * max(end, 1) * 4 * _SCORE_COPIES)))
    for begin in range(start, end, size):
        yield begin, min(begin + size, end)


def _merge(model: Model, prompts: Sequence[Sequence[int]], bucket: list[tuple[int, DynamicCache]]) -> Prefilled:
    """Stack single-prompt caches into one batch, padding on the left."""
    index = tuple(i for i, _ in bucket)
    longest = max(len(prompts[i]) for i in index)
    padding = tuple(longest - len(prompts[i]) for i in index)
    merged = fork(bucket[0][1])
    caches = [_layers(cache) for _, cache in bucket]
    for i, layer in enumerate(_layers(merged)):
        if layer.is_initialized:  # layers that borrow another layer's keys hold none of their own
            layer.keys = torch.cat([_padded(c[i].keys, n) for c, n in zip(caches, padding, strict=True)])
            layer.values = torch.cat([_padded(c[i].values, n) for c, n in zip(caches, padding, strict=True)])
    rows = [[prompts[i][0]] * n + list(prompts[i]) for i, n in zip(index, padding, strict=True)]
    return Prefilled(index, torch.tensor(rows, device=model.device), padding, merged)


def _layers(cache: DynamicCache) -> list[Any]:
    """The cache's layers; each has `keys` and `values` once it is initialised, which its type does not say."""
    return list(cache.layers)


def _padded(states: Tensor, columns: int) -> Tensor:
    """Zeros before the keys or values `[1, kv_head, pos, d]`; masked, so their content does not matter."""
    return torch.nn.functional.pad(states, (0, 0, columns, 0)) if columns else states
