"""One forward pass: tokens in, logits and cache out, the same way for every architecture.

Everything that runs a model goes through `forward`, because three things go wrong silently elsewhere: position ids of
left-padded rows, caches that forget keys outside a sliding window, and gradients kept by accident. It calls the Hugging
Face model inside the bridge, so hooks fire and a plain `DynamicCache` serves chunked prefill and decoding. It never
knows about hooks, interventions or generation.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from workbench.errors import CapabilityError, InputError
from workbench.primitives.swap import dense_unembedding, swapped

if TYPE_CHECKING:
    from workbench.models import Model


@dataclass
class Output:
    """Logits of the kept positions and, when asked for, the cache (extended in place when one was given)."""

    logits: Float[Tensor, "batch kept vocab"]
    cache: DynamicCache | None = None


@dataclass(frozen=True)
class _Signature:
    """What the wrapped model's forward understands; read once per model. `no_cache`: why keys and values are not all
    that it needs of earlier tokens, "" where they are. `turns`: a rotary embedding that is another one in texts of more
    than so many tokens."""

    position_ids: bool
    logits_to_keep: bool
    no_cache: str
    turns: tuple[str, int] | None


_signatures: WeakKeyDictionary[nn.Module, _Signature] = WeakKeyDictionary()


def forward(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    *,
    attention_mask: Int[Tensor, "batch past_and_pos"] | None = None,
    cache: DynamicCache | None = None,
    use_cache: bool = False,
    logits_to_keep: int | Int[Tensor, " kept"] = 0,
    grad: bool = False,
    inputs: Mapping[str, Any] | None = None,
    position_ids: Int[Tensor, "batch pos"] | None = None,
) -> Output:
    """Run the model on `tokens`, after what is already in `cache`.

    Positions are counted from each row's first attended token, so a left-padded row gives what the row alone gives;
    padding that no mask declares cannot be noticed.

    Args:
        attention_mask: 1 (or True) for real tokens, over cached and new columns together. None: no padding anywhere.
        cache: keys and values of earlier columns; extended in place. Use a plain `DynamicCache()`: one made with a
            configuration forgets keys outside a sliding window, and then rows can no longer be cropped or compared.
        use_cache: start a cache when none is given.
        logits_to_keep: how many of the last positions get logits (0: all), or the indices of those that do.
        grad: keep the autograd graph.
        inputs: what a vision-language model takes beside tokens (`pixel_values`, `image_sizes`, ...), with the piece of
            the prompt that holds all its image tokens; later pieces find the image in the cache.
        position_ids: instead of those counted from the mask.

    Memory: attention is eager, one layer's scores `[batch, head, pos, past + pos]` exist at a time; feed long prompts
    in chunks with a cache. Logits are `[batch, kept, vocab]`.

    Raises:
        InputError: shapes that do not fit together, positions beyond a learned position table, image tokens without
            pixels, pixels without image tokens.
        CapabilityError: a cache for a native bridge, which has none, or for a model that needs more than keys and
            values of earlier tokens; texts beyond the length at which a rotary embedding changes, where pieces, a
            cache or a shorter neighbour would mix the two; padded rows in float64 where the architecture turns them
            into NaN.
    """
    hf = model.hf
    if hf is None and (cache is not None or use_cache):
        raise CapabilityError(
            f"Model {model.name!r} is a native bridge without a key/value cache; leave out cache and use_cache."
        )
    past = 0 if cache is None else int(cache.get_seq_length())
    tokens, mask = _checked(model, tokens, attention_mask, past)
    beside = _beside(model, tokens, inputs)
    with torch.set_grad_enabled(grad):
        if hf is None:
            logits = model.bridge(tokens, return_type="logits", attention_mask=mask)
            return Output(_keep(logits, logits_to_keep))
        takes = _signature(hf)
        if (use_cache or cache is not None) and takes.no_cache:
            raise CapabilityError(
                f"Model {model.name!r} cannot generate from cached keys and values, because {takes.no_cache}; use an "
                "analysis that generates nothing."
            )
        if takes.turns is not None and past + tokens.shape[1] > takes.turns[1]:
            _one_rotation(model, takes.turns, mask, past, past + tokens.shape[1])
        if use_cache and cache is None:
            cache = DynamicCache()
        given: dict[str, Any] = {"input_ids": tokens, "attention_mask": mask, "use_cache": cache is not None, **beside}
        if cache is not None:
            given["past_key_values"] = cache
        if position_ids is not None:
            given["position_ids"] = position_ids.to(tokens.device)
        elif takes.position_ids:
            given["position_ids"] = _position_ids(tokens, mask, past)
        if takes.logits_to_keep:
            given["logits_to_keep"] = logits_to_keep
        with swapped(dense_unembedding(hf)):
            logits = hf(**given).logits
    if logits.dtype == torch.float64 and mask is not None and not bool(mask.all()) and bool(logits.isnan().any()):
        raise CapabilityError(
            f"Model {model.name!r} takes its softmax in float32, where the float64 mask of padded rows overflows and "
            "gives NaN; give prompts of one length, or load it in float32."
        )
    return Output(logits if takes.logits_to_keep else _keep(logits, logits_to_keep), cache)


def n_padding(attention_mask: Int[Tensor, "batch pos"]) -> Int[Tensor, " batch"]:
    """Number of padding columns before each row's first real token."""
    return (attention_mask.long().cumsum(dim=-1) == 0).sum(dim=-1)


def _checked(
    model: Model, tokens: Tensor, attention_mask: Tensor | None, past: int
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch past_and_pos"] | None]:
    """Tokens and mask on the model's device, int64, or an InputError that names the shapes."""
    if tokens.ndim != 2 or tokens.shape[1] == 0 or tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise InputError(
            f"Tokens must be integers of shape [batch, pos] with at least one position, not {tokens.dtype} of shape "
            f"{list(tokens.shape)}; add the batch axis with tokens[None]."
        )
    device = model.device
    total = past + tokens.shape[1]
    longest = total
    mask = None
    if attention_mask is not None:
        expected = [tokens.shape[0], total]
        if list(attention_mask.shape) != expected or attention_mask.is_floating_point():
            raise InputError(
                f"The attention mask must be integers or booleans of shape {expected} (batch, {past} cached + "
                f"{tokens.shape[1]} new columns), not {attention_mask.dtype} of shape {list(attention_mask.shape)}; "
                f"extend it by a column of ones per decoded token."
            )
        mask = attention_mask.to(device=device, dtype=torch.long)
        if total > model.n_ctx:
            longest = int(mask.sum(dim=-1).max())
    learned = getattr(model.bridge.cfg, "positional_embedding_type", None) == "standard"
    if learned and longest > model.n_ctx:  # on a GPU this would be a device assert that kills the process
        raise InputError(
            f"{longest} tokens exceed the {model.n_ctx} learned positions of {model.name!r}; shorten the prompt."
        )
    return tokens.to(device=device, dtype=torch.long), mask


def image_token(model: Model) -> int | None:
    """The token id that stands for (a part of) an image, None for a model that reads text only."""
    config = getattr(model.hf, "config", None)
    for name in ("image_token_id", "image_token_index"):
        if isinstance(getattr(config, name, None), int):
            return getattr(config, name)
    return None


def _beside(model: Model, tokens: Int[Tensor, "batch pos"], inputs: Mapping[str, Any] | None) -> dict[str, Any]:
    """What goes to the model beside the tokens, on its device and in its dtype; checked against the image tokens."""
    marker = image_token(model)
    given = dict(inputs or {})
    if marker is None:
        if given:
            raise InputError(
                f"The model {model.name!r} reads text only, so it cannot be given {', '.join(given)}; use a "
                "vision-language one, such as 'organism:captions'."
            )
        return given
    has_image = bool((tokens == marker).any())
    if has_image and "pixel_values" not in given:
        raise InputError(
            f"The tokens hold image tokens ({marker}) but no pixel_values were given, so {model.name!r} would read "
            "them as a word; pass inputs={'pixel_values': ...} or take them out."
        )
    if "pixel_values" in given and not has_image:
        raise InputError(
            f"pixel_values were given with tokens that hold no image token ({marker}); give them with the piece of the "
            "prompt that has the image."
        )
    placed = {key: value.to(tokens.device) if isinstance(value, Tensor) else value for key, value in given.items()}
    if isinstance(placed.get("pixel_values"), Tensor):
        placed["pixel_values"] = placed["pixel_values"].to(model.dtype)
    return placed


def _position_ids(
    tokens: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch past_and_pos"] | None, past: int
) -> Int[Tensor, "batch pos"]:
    """Position of every new token in its row; padding gets 0, where it does no harm."""
    if mask is None:
        return torch.arange(past, past + tokens.shape[1], device=tokens.device).expand_as(tokens)
    return (mask.cumsum(dim=-1) - 1).clamp(min=0)[:, past:]


def _keep(logits: Float[Tensor, "batch pos vocab"], kept: int | Tensor) -> Float[Tensor, "batch kept vocab"]:
    """The positions `logits_to_keep` names, for models that compute all."""
    return logits[:, -kept:] if isinstance(kept, int) else logits[:, kept]


def _signature(hf: nn.Module) -> _Signature:
    """Read what `hf.forward` takes; models that derive positions themselves (OPT, mRoPE) are left to do so."""
    if hf not in _signatures:
        from transformer_lens.utilities.position_ids import accepts_mask_derived_position_ids

        parameters = inspect.signature(hf.forward).parameters
        _signatures[hf] = _Signature(
            position_ids="position_ids" in parameters and accepts_mask_derived_position_ids(hf),
            logits_to_keep="logits_to_keep" in parameters,
            no_cache=_no_cache(hf, parameters),
            turns=_turns(hf),
        )
    return _signatures[hf]


def _turns(hf: nn.Module) -> tuple[str, int] | None:
    """Kind of a rotary embedding whose frequencies depend on the length of the text, and the length at which."""
    config: Any = getattr(hf, "config", None)
    if config is None:
        return None
    config = config.get_text_config(decoder=True)
    given = getattr(config, "rope_parameters", None) or {}
    for parameters in (given, *(value for value in given.values() if isinstance(value, Mapping))):  # or by layer type
        kind = str(parameters.get("rope_type", ""))
        if kind == "longrope":
            return kind, int(parameters["original_max_position_embeddings"])
        if "dynamic" in kind:
            return kind, int(config.max_position_embeddings)
    return None


def _one_rotation(
    model: Model, turns: tuple[str, int], mask: Int[Tensor, "batch past_and_pos"] | None, past: int, total: int
) -> None:
    """Refuse a pass in which keys of one rotary embedding would meet queries of another.

    A library that picks frequencies by the longest row of each pass turns the keys of earlier pieces, and of shorter
    rows, as they are not turned alone. `dynamic` frequencies even depend on what was run before.
    """
    kind, limit = turns
    longest, shortest, before = total, total, past
    if mask is not None:
        lengths = mask.sum(dim=-1)
        longest, shortest, before = int(lengths.max()), int(lengths.min()), int(mask[:, :past].sum(dim=-1).min())
    mixed = kind != "longrope" or shortest <= limit or (past > 0 and before <= limit)
    if longest > limit and mixed:
        raise CapabilityError(
            f"The rotary embedding of {model.name!r} ({kind}) is another one in texts of more than {limit} tokens, so "
            f"a text of {longest} cannot be read in pieces, from a cache or beside a shorter one; keep to {limit}."
        )


def _no_cache(hf: nn.Module, parameters: Mapping[str, Any]) -> str:
    """Why a plain cache of keys and values does not serve this model; "" where it does."""
    if "past_key_values" not in parameters:
        return "it takes none"
    config: Any = getattr(hf, "config", None)
    own = DynamicCache(config=config.get_text_config(decoder=True)) if config is not None else DynamicCache()
    states = [i for i, layer in enumerate(own.layers) if hasattr(layer, "update_conv_state")]
    if states:
        return f"{len(states)} of its {len(own.layers)} layers carry a state (convolution, Mamba, linear attention)"
    return ""
