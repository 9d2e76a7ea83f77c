"""What may be exchanged on its own: a head's q, a kv group's k and v, a layer's attention and MLP output.

Some architectures mix heads after the hook (a norm over all queries), hand out copies, or fold the residual stream into
a module's output; an edit there would look fine and mean something else. Each claim is an identity that holds exactly
when the parts are separate, measured once per model on a few random tokens. It never knows what will be patched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from workbench.errors import CapabilityError, WorkbenchError
from workbench.primitives.hooks import Hook
from workbench.primitives.suffix import Run, agree, record, run_from, some_tokens
from workbench.primitives.sweep.units import attention_layers

if TYPE_CHECKING:
    from workbench.models import Model

_heads: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
_outputs: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def require_heads(model: Model) -> None:
    """q of every head and k, v of every kv group can be exchanged alone.

    Raises:
        CapabilityError: saying what was measured instead.
    """
    _require(model, _heads, _measure_heads, "q, k and v cannot be patched head by head; patch z instead")


def require_outputs(model: Model) -> None:
    """Every block adds its attention output and its MLP output to the stream, and nothing else.

    Raises:
        CapabilityError: saying what was measured instead.
    """
    _require(
        model, _outputs, _measure_outputs, "its attention and MLP outputs cannot be patched; patch z or the stream"
    )


def exchanged(name: str, source: Tensor, index: Sequence[int] | None = None) -> Hook:
    """A hook that puts `source` in place of an activation, or in place of some entries of its head axis."""

    def edit(value: Tensor, _: Any) -> Tensor:
        if index is None:
            return source.to(value.dtype)
        value = value.clone()
        value[:, :, list(index)] = source[:, :, list(index)].to(value.dtype)
        return value

    return name, edit


def _require(model: Model, known: WeakKeyDictionary[Any, str], measure: Callable[[Model], str], remedy: str) -> None:
    if model not in known:
        try:
            with torch.no_grad():
                known[model] = measure(model)
        except (WorkbenchError, RuntimeError, KeyError, IndexError, TypeError, AttributeError) as error:
            known[model] = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    if known[model]:
        raise CapabilityError(f"In {model.name!r} {remedy} ({known[model].rstrip('.')}).")


def _measure_heads(model: Model) -> str:
    """The reason why not; empty when separate.

    z of a head is a function of its q and its group's k and v alone. So exchanging these three with another run's, in
    every layer, must give the other run's z in every layer, and leave other groups of the first layer as they were.
    """
    layers = attention_layers(model)
    names = {part: {at: f"blocks.{at}.attn.hook_{part}" for at in layers} for part in "qkvz"}
    every = [name for by_layer in names.values() for name in by_layer.values()]
    base, other = _two_runs(model, every)
    widths = {"q": model.n_heads, "k": model.n_kv_heads, "v": model.n_kv_heads, "z": model.n_heads}
    for part, width in widths.items():
        shape = list(base.kept[names[part][layers[0]]].shape)
        if len(shape) != 4 or shape[2] != width:
            return f"hook_{part} has shape {shape} instead of {width} on a head axis"
    share = model.n_heads // model.n_kv_heads
    for group in {0, model.n_kv_heads - 1}:
        heads = list(range(group * share, (group + 1) * share))
        edits = [
            exchanged(names[part][at], other.kept[names[part][at]], heads if part == "q" else [group])
            for at in layers
            for part in "qkv"
        ]
        seen = _see(model, base, edits, [names["z"][at] for at in layers])
        if not all(agree(seen[name][:, :, heads], other.kept[name][:, :, heads]) for name in names["z"].values()):
            return "with q, k and v of another run a head does not give that run's output"
        rest = [head for head in range(model.n_heads) if head not in heads]
        first = names["z"][layers[0]]
        if rest and not agree(seen[first][:, :, rest], base.kept[first][:, :, rest]):
            return "q, k or v of one kv group changes the output of another"
    return ""


def _measure_outputs(model: Model) -> str:
    """With attention and MLP output of another run in every block, block output minus block input is their sum."""
    layers = range(model.n_layers)
    parts = [f"blocks.{at}.hook_{part}" for at in layers for part in ("attn_out", "mlp_out")]
    base, other = _two_runs(model, parts)
    ends = [f"blocks.{at}.hook_{end}" for at in layers for end in ("in", "out")]
    seen = _see(model, base, [exchanged(name, other.kept[name]) for name in parts], ends)
    for at in layers:
        added = seen[f"blocks.{at}.hook_out"] - seen[f"blocks.{at}.hook_in"]
        wanted = other.kept[f"blocks.{at}.hook_attn_out"] + other.kept[f"blocks.{at}.hook_mlp_out"]
        if not agree(added, wanted):
            return f"block {at} does not add hook_attn_out and hook_mlp_out to the stream"
    return ""


def _two_runs(model: Model, names: Sequence[str]) -> tuple[Run, Run]:
    a, b = (record(model, some_tokens(model, seed), names=names) for seed in (11, 12))
    return a, b


def _see(model: Model, base: Run, edits: Sequence[Hook], names: Sequence[str]) -> dict[str, Tensor]:
    """Activations `names` of the base run under `edits`."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Hook:
        return name, lambda value, _: seen.__setitem__(name, value.detach().clone())

    run_from(model, base, 0, torch.arange(len(base.tokens)), hooks=[*edits, *(keep(name) for name in names)])
    return seen
