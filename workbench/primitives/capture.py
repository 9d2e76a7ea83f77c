"""Activations of a forward pass, and no more of them than asked for.

`capture` keeps named activations at named positions; `q_k_rows` keeps the attention rows of chosen queries without any
pattern of all queries by all keys ever existing. Both select inside the hook and copy, so nothing larger stays alive.
They never know what the activations are for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from workbench.errors import CapabilityError, InputError, did_you_mean
from workbench.primitives.algebra import visible
from workbench.primitives.forward import forward
from workbench.primitives.hooks import Hook, hook_points, hooked

if TYPE_CHECKING:
    from workbench.models import Model
    from workbench.primitives.interventions import Phase
    from workbench.primitives.spill import Spill

Positions = slice | int | Sequence[int] | Int[Tensor, " kept"]


def names(model: Model, what: str, *, layers: Sequence[int] | None = None) -> list[str]:
    """Hook names of one activation in every layer (or in `layers`): `names(model, "z")`, "pattern", "resid_pre", ...

    Raises:
        InputError: a layer has no such activation.
    """
    available = model.bridge.hook_dict
    found = []
    for layer in range(model.n_layers) if layers is None else layers:
        candidates = [f"blocks.{layer}.attn.hook_{what}", f"blocks.{layer}.hook_{what}"]
        name = next((candidate for candidate in candidates if candidate in available), None)
        if name is None:
            known = {key.split("hook_")[1] for key in available if f"blocks.{layer}." in key and "hook_" in key}
            raise InputError(f"Layer {layer} of {model.name!r} has no activation {what!r}.{did_you_mean(what, known)}")
        found.append(name)
    return found


def capture(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    names: Sequence[str],
    *,
    positions: Positions | None = None,
    attention_mask: Int[Tensor, "batch pos"] | None = None,
    stop_at_layer: int | None = None,
    inputs: Mapping[str, Any] | None = None,
    position_ids: Int[Tensor, "batch pos"] | None = None,
    spill: Spill | None = None,
) -> dict[str, Tensor]:
    """Activations by name, keyed as asked, from one forward pass over `tokens`.

    Args:
        positions: columns to keep, negative ones from the end; for a pattern or scores these are query rows. An int
            keeps one position and its axis.
        stop_at_layer: do not compute this layer or any after it.
        inputs, position_ids: as `forward` takes them (images; positions of one's own).
        spill: where activations beyond a budget go; one `Spill` may serve many calls. Tensors on disk come back on
            the CPU, mapped and not to be written to.

    Memory: `batch x kept positions x width` per name (`batch x head x kept x pos` for a pattern), in the model's dtype,
    on its device; each tensor owns its storage. While the pass runs, one layer's full attention pattern exists: for
    long prompts take `q_k_rows`. Logits are computed at the last position only, unless an unembedding is named.

    Raises:
        InputError: unknown or gated name, a position outside the prompt, a name that lies after `stop_at_layer`.
    """
    points = hook_points(model, names)
    kept: dict[str, Tensor] = {}

    def keep(name: str, activation: Tensor, point: Any) -> None:
        axis = _position_axis(name, point)
        chosen = _select(activation, positions, axis % activation.ndim, tokens.shape[1]).detach()
        kept[name] = chosen.clone() if spill is None else spill.keep(chosen.clone())

    hooks: list[Hook] = [(name, _bind(keep, name)) for name in points]
    all_logits = any(str(point.name).startswith("unembed") for point in points.values())
    with hooked(model, hooks, copy=False):
        run_until(
            model,
            stop_at_layer,
            tokens,
            attention_mask=attention_mask,
            logits_to_keep=0 if all_logits else 1,
            inputs=inputs,
            position_ids=position_ids,
        )
    return kept


def q_k_rows(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    positions: Sequence[int],
    *,
    layers: Sequence[int] | None = None,
    kind: Literal["pattern", "scores"] = "pattern",
    attention_mask: Int[Tensor, "batch pos"] | None = None,
    chunk: int = 256,
    phase: Phase | None = None,
) -> dict[int, Float[Tensor, "batch head n_pos key"]]:
    """Attention rows of the queries at `positions` (columns, any order), by layer.

    Entry `[b, h, i, j]` is what query `positions[i]` gives to key `j`: its weight, or its score before the softmax
    with masked keys at -inf. The key axis is as long as `tokens`; keys after the query have 0 (or -inf).

    The prompt runs through a key/value cache in pieces of at most `chunk` tokens, up to the last wanted position and
    the last wanted layer; only pieces made of wanted positions are kept.

    Memory: `layers x batch x head x n_pos x key` for the answer, and one layer's `batch x head x chunk x key` at work.

    Args:
        phase: of an enclosing `applied` block, so that interventions know which columns each piece is.

    Raises:
        InputError: a position or layer that does not exist.
        CapabilityError: scores of an architecture that reports none (it hides them inside its attention).
    """
    layers = list(range(model.n_layers)) if layers is None else list(layers)
    rows = _columns(positions, tokens.shape[1])
    hook_names = names(model, _activation(model, kind), layers=layers)
    if model.hf is None:  # no cache: one pass, selecting in the hook
        found = capture(model, tokens, hook_names, positions=rows.tolist(), attention_mask=attention_mask)
        return dict(zip(layers, found.values(), strict=True))
    out: dict[int, Tensor] = {}
    start = 0  # first column of the piece that is running

    def keep(layer: int, activation: Tensor, _: Any) -> None:
        batch, head, n_rows, n_keys = activation.shape
        if layer not in out:
            fill = 0.0 if kind == "pattern" else -torch.inf
            out[layer] = activation.new_full((batch, head, len(rows), tokens.shape[1]), fill)
        if kind == "scores":
            activation = activation.masked_fill(~visible(activation, model.dtype), -torch.inf)
        target = (rows >= start) & (rows < start + n_rows)
        source = (rows[target] - start).to(activation.device)
        out[layer][:, :, target.to(activation.device), :n_keys] = activation[:, :, source]

    hooks: list[Hook] = [(name, _bind(keep, layer)) for name, layer in zip(hook_names, layers, strict=True)]
    cache = DynamicCache()
    for start, end, wanted in _pieces(sorted(set(rows.tolist())), chunk):
        if phase is not None:
            phase.offset = start
        mask = None if attention_mask is None else attention_mask[:, :end]
        with hooked(model, hooks if wanted else [], copy=False):
            run_until(model, max(layers) + 1, tokens[:, start:end], attention_mask=mask, cache=cache, logits_to_keep=1)
    return {layer: out[layer] for layer in layers}


def _activation(model: Model, kind: str) -> str:
    """Activation name of a kind of attention row, if the model reports it."""
    if kind == "pattern":
        return "pattern"
    if kind != "scores":
        raise InputError(f"Attention rows are 'pattern' or 'scores', not {kind!r}.")
    model.require("pattern_edit_is_causal")  # without it hook_attn_scores fires late, and with the pattern
    if model.hf is None:
        raise CapabilityError(f"Model {model.name!r} is a native bridge, which reports no scores; ask for the pattern.")
    return "attn_scores"


class _Stop(Exception):
    """Ends a forward pass at a layer nobody needs."""


def run_until(model: Model, stop_at_layer: int | None, tokens: Tensor, **options: Any) -> None:
    """A forward pass for its hooks' sake, ended before `stop_at_layer` (None, or the number of layers: not at all)."""
    if stop_at_layer is None or stop_at_layer == model.n_layers:
        forward(model, tokens, **options)
        return
    if not 0 <= stop_at_layer < model.n_layers:
        raise InputError(f"stop_at_layer must be 0 to {model.n_layers} in {model.name!r}, not {stop_at_layer}.")

    def stop(_: Tensor, __: Any) -> None:
        raise _Stop

    try:
        with hooked(model, [(f"blocks.{stop_at_layer}.hook_in", stop)], copy=False):
            forward(model, tokens, **options)
    except _Stop:
        pass


def _bind(keep: Any, key: Any) -> Any:
    return lambda activation, point: keep(key, activation, point)


def _position_axis(name: str, point: Any) -> int:
    """Axis of the positions: 1, except queries of a pattern and points that declare another."""
    declared = getattr(point, "pos_dim", None)
    if declared is not None:
        return declared
    return -2 if name.endswith(("hook_pattern", "hook_attn_scores")) else 1


def _select(activation: Tensor, positions: Positions | None, axis: int, n_positions: int) -> Tensor:
    if positions is None:
        return activation
    if isinstance(positions, slice):
        return activation[(slice(None),) * axis + (positions,)]
    return activation.index_select(axis, _columns(positions, n_positions).to(activation.device))


def _columns(positions: int | Sequence[int] | Tensor, n_positions: int) -> Int[Tensor, " kept"]:
    """Non-negative columns, or an InputError naming the one outside the prompt."""
    columns = torch.atleast_1d(torch.as_tensor(positions)).cpu()
    if columns.ndim != 1 or columns.numel() == 0 or columns.is_floating_point() or columns.dtype == torch.bool:
        raise InputError(f"Positions must be a non-empty list of integers, not {positions!r}.")
    outside = (columns >= n_positions) | (columns < -n_positions)
    if bool(outside.any()):
        raise InputError(f"Position {int(columns[outside][0])} is outside a prompt of {n_positions} tokens.")
    return columns % n_positions


def _pieces(wanted: list[int], chunk: int) -> Iterator[tuple[int, int, bool]]:
    """Cut columns 0 to the last wanted one into runs `(start, end, are they wanted)` of at most `chunk` columns."""
    if chunk < 1:
        raise InputError(f"A chunk holds at least one token, not {chunk}.")
    keep = set(wanted)
    start = 0
    while start <= wanted[-1]:
        end = start + 1
        while end <= wanted[-1] and end - start < chunk and (end in keep) == (start in keep):
            end += 1
        yield start, end, start in keep
        start = end
