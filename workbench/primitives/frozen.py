"""Pass 2 and pass 3 of path patching: shut every way but the direct one, hear what receivers get, play it to them.

`paths` says what is computed and in which order; this is how: modules that return what they returned in the base run,
one sender's change added, until the last receiver has been heard. It never knows metrics, nor which prompt was clean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from workbench.errors import CapabilityError, WorkbenchError
from workbench.primitives import separable
from workbench.primitives.forward import forward
from workbench.primitives.hooks import Hook, hooked
from workbench.primitives.receivers import LOGITS, Key, Receiver, by_layer
from workbench.primitives.suffix import (
    Run,
    Stop,
    agree,
    frozen,
    record,
    resumes_exactly,
    run_from,
    some_tokens,
    writes,
)
from workbench.primitives.sweep.swap import hidden_out
from workbench.primitives.sweep.units import Unit, attention_layers

if TYPE_CHECKING:
    from workbench.models import Model

Mlps = Literal["recompute", "freeze"]


@dataclass
class FrozenPaths:
    """Everything that passes 2 and 3 read: the base run, z of both runs, and who listens."""

    model: Model
    base: Run
    z_other: dict[int, Float[Tensor, "n pos head d_head"]]
    other_logits: Float[Tensor, "n vocab"]
    listeners: dict[Key, list[int]]  # heads or kv groups, by layer and part; empty list for an MLP
    mlps: Mlps
    straight: bool  # the stream takes d as it is, and nothing between sender and receiver answers to it
    sent_at: Bool[Tensor, "n pos"]

    @classmethod
    def between(
        cls,
        model: Model,
        base: Tensor,
        other: Tensor,
        units: Sequence[Unit],
        receivers: Sequence[Receiver],
        mlps: Mlps,
        attention_mask: Tensor | None,
        take: Tensor,
        sent_at: Tensor,
        rows_at_once: int,
    ) -> FrozenPaths:
        """Pass 1."""
        layers = sorted({layer for unit in units for layer, _ in unit})
        names = [_z(layer) for layer in layers]
        options = {"attention_mask": attention_mask, "names": names, "batch_rows": rows_at_once}
        here = record(model, base, modules=True, **options)
        there = record(model, other, **options)
        straight = mlps == "freeze" and model.capabilities.fork_exact
        z_other = {layer: there.kept[_z(layer)][take.to(there.logits.device)] for layer in layers}
        return cls(model, here, z_other, there.logits, by_layer(receivers), mlps, straight, sent_at)

    @property
    def device(self) -> torch.device:
        return self.base.logits.device

    def patched(
        self, units: Sequence[Unit], rows: Int[Tensor, " batch"], received_at: Bool[Tensor, "n pos"]
    ) -> Float[Tensor, "batch vocab"]:
        """Logits of pass 3; row i has sender `units[i]` and example `rows[i]`."""
        if not self.listeners:  # into the logits, pass 2 is the answer
            return self._into_logits(units, rows)
        heard = self._heard(units, rows)
        return self._third_pass(heard, rows, received_at[rows])

    def _d(
        self, units: Sequence[Unit], rows: Tensor, columns: slice = slice(None)
    ) -> dict[int, Float[Tensor, "batch pos d_model"]]:
        """d = (z_new - z_orig) W_O by layer, zero for rows whose sender is elsewhere."""
        added: dict[int, Tensor] = {}
        members: dict[tuple[int, int], list[int]] = {}
        for row, unit in enumerate(units):
            for head in unit:
                members.setdefault(head, []).append(row)
        device = self.device
        where = self.sent_at[rows][:, columns].to(device)
        rows = rows.to(device)
        for (layer, head), some in members.items():
            z_orig, z_new = self.base.kept[_z(layer)], self.z_other[layer]
            example = rows[some]
            dz = (z_new[example, :, head] - z_orig[example, :, head])[:, columns]
            dz = torch.where(where[some][..., None], dz, 0)
            d = writes(self.model, layer, dz[:, :, None], [head])
            if layer not in added:
                added[layer] = d.new_zeros(len(units), *d.shape[1:])
            added[layer][some] += d
        return added

    def _into_logits(self, units: Sequence[Unit], rows: Tensor) -> Float[Tensor, "batch vocab"]:
        """Pass 2 to its end."""
        if self.straight:
            d = sum(self._d(units, rows, slice(-1, None)).values())
            final = self.base.stream[self.model.n_layers][rows.to(self.device)][:, -1:] + d
            return _some(run_from(self.model, self.base, self.model.n_layers, rows, stream=final))
        start = min(layer for unit in units for layer, _ in unit)
        d = self._d(units, rows)
        swaps = self._shut(range(start, self.model.n_layers), rows, d)
        return _some(run_from(self.model, self.base, start, rows, swaps=swaps))

    def _heard(self, units: Sequence[Unit], rows: Tensor) -> dict[Key, Tensor]:
        """What every receiver gets in pass 2, by layer and part."""
        d = self._d(units, rows)
        listening = sorted({layer for layer, _ in self.listeners})
        ear = _Ear(self.listeners)
        if self.straight:
            for layer in listening:
                stream = self.base.stream[layer][rows.to(self.device)]
                for at, change in d.items():
                    stream = stream + change if at < layer else stream
                ear.expect(layer)
                swaps = self._shut([layer], rows, d, ear)
                run_from(self.model, self.base, layer, rows, stream=stream, hooks=ear.hooks([layer]), swaps=swaps)
            return self._all(ear, 0)
        start = min(layer for unit in units for layer, _ in unit)
        layers = range(start, listening[-1] + 1)
        ear.expect(*layers)
        swaps = self._shut(layers, rows, d, ear)
        run_from(self.model, self.base, start, rows, hooks=ear.hooks(layers), swaps=swaps)
        return self._all(ear, start)

    def _all(self, ear: _Ear, start: int) -> dict[Key, Tensor]:
        """What was heard, once nothing is missing. A receiver below every sender gets what it always got."""
        deaf = sorted({key for key in self.listeners if key[0] >= start} - set(ear.heard))
        if deaf:
            layer, part = deaf[0]
            raise CapabilityError(
                f"Model {self.model.name!r} never calls its {part} in layer {layer} as a module of its own, so that "
                f"cannot be a receiver; choose another."
            )
        return ear.heard

    def _shut(
        self, layers: Iterable[int], rows: Tensor, d: Mapping[int, Tensor], ear: _Ear | None = None
    ) -> dict[nn.Module, Callable[..., Any]]:
        """Replacements that freeze attention (and MLPs), d added, while receivers compute what they get."""
        swaps: dict[nn.Module, Callable[..., Any]] = {}
        at = rows.to(self.device)
        for layer in layers:
            block = self.model.bridge.blocks[layer]
            closed = frozen(self.base, block.attn, _rows(self.base.attn[layer], at, d.get(layer)))
            listens = ear is not None and any((layer, part) in self.listeners for part in "qkv")
            swaps[block.attn] = _after(block.attn.forward, closed) if listens else closed
            mlp = getattr(block, "mlp", None)
            still = self.mlps == "freeze" and layer in self.base.mlp
            closed = frozen(self.base, mlp, _rows(self.base.mlp[layer], at)) if still and mlp is not None else None
            if ear is not None and mlp is not None and (layer, "mlp") in self.listeners:
                swaps[mlp] = ear.at_mlp(layer, mlp.forward, closed)
            elif closed is not None and mlp is not None:
                swaps[mlp] = closed
        return swaps

    def _third_pass(self, heard: dict[Key, Tensor], rows: Tensor, where: Bool[Tensor, "batch pos"]) -> Tensor:
        """The base run with only the receivers' values replaced."""
        where = where.to(self.device)
        hooks: list[Hook] = []
        swaps: dict[nn.Module, Callable[..., Any]] = {}
        for (layer, part), value in heard.items():
            if part == "mlp":
                mlp = self.model.bridge.blocks[layer].mlp
                swaps[mlp] = _mixed(self.base, mlp, mlp.forward, value, where)
            else:
                hooks.append((f"blocks.{layer}.attn.hook_{part}", _put(self.listeners[layer, part], value, where)))
        start = min(layer for layer, _ in heard)
        return _some(run_from(self.model, self.base, start, rows, hooks=hooks, swaps=swaps))


@dataclass
class _Ear:
    """Writes down what receivers get in pass 2, and ends the pass when nothing is left to hear."""

    listeners: Mapping[Key, list[int]]
    heard: dict[Key, Tensor] = field(default_factory=dict)
    waiting: set[Key] = field(default_factory=set)

    def expect(self, *layers: int) -> None:
        self.waiting = {key for key in self.listeners if key[0] in layers}

    def hooks(self, layers: Iterable[int]) -> list[Hook]:
        return [
            (f"blocks.{layer}.attn.hook_{part}", self._at(layer, part))
            for layer, part in self.listeners
            if layer in layers and part != "mlp"
        ]

    def _at(self, layer: int, part: str) -> Callable[[Tensor, Any], None]:
        index = self.listeners[layer, part]
        return lambda value, _: self._hear((layer, part), value[:, :, index].clone())

    def at_mlp(self, layer: int, call: Callable[..., Any], closed: Callable[..., Any] | None) -> Callable[..., Any]:
        def listen(*args: Any, **kwargs: Any) -> Any:
            output = call(*args, **kwargs)
            self._hear((layer, "mlp"), hidden_out(output).clone())
            return output if closed is None else closed()

        return listen

    def _hear(self, key: Key, value: Tensor) -> None:
        self.heard[key] = value
        self.waiting.discard(key)
        if not self.waiting:
            raise Stop


def _rows(values: Tensor, at: Tensor, added: Tensor | None = None) -> Callable[[], Tensor]:
    """Rows of a recorded output, taken when the module is called, so that only one layer's exist at a time."""
    return lambda: values[at] if added is None else values[at] + added


def _after(call: Callable[..., Any], closed: Callable[..., Any]) -> Callable[..., Any]:
    """Run the module for its hooks, and return what is frozen."""

    def replacement(*args: Any, **kwargs: Any) -> Any:
        call(*args, **kwargs)
        return closed()

    return replacement


def _mixed(run: Run, module: nn.Module, call: Callable[..., Any], value: Tensor, where: Tensor) -> Callable[..., Any]:
    """The module's own output, with `value` at `where`."""

    def replacement(*args: Any, **kwargs: Any) -> Any:
        own = hidden_out(call(*args, **kwargs))
        mixed = torch.where(where[..., None], value, own.view_as(value)).view_as(own)
        return frozen(run, module, lambda: mixed)()

    return replacement


def _put(index: list[int], value: Tensor, where: Tensor) -> Callable[[Tensor, Any], Tensor]:
    def edit(activation: Tensor, _: Any) -> Tensor:
        activation = activation.clone()
        activation[:, :, index] = torch.where(where[..., None, None], value, activation[:, :, index])
        return activation

    return edit


_freezes: WeakKeyDictionary[Any, dict[str, bool]] = WeakKeyDictionary()


def require_freezing(model: Model, mlps: Mlps) -> None:
    """Attention (and MLPs) can be frozen exactly.

    Raises:
        CapabilityError: they cannot, measured against hooks on every head.
    """
    model.require("head_ablation_ok")
    known = _freezes.setdefault(model, {})
    if mlps not in known:
        try:
            with torch.no_grad():
                known[mlps] = resumes_exactly(model) and _measure_freezing(model, mlps)
        except (KeyError, TypeError, AttributeError, RuntimeError, IndexError, WorkbenchError):
            known[mlps] = False  # modules that are called or answer in another way
    if not known[mlps]:
        what, remedy = "Heads", "use activation patching"
        if mlps == "freeze":
            what, remedy = "Heads and MLPs", "try mlps: recompute, or use activation patching"
        raise CapabilityError(
            f"{what} of {model.name!r} cannot be frozen exactly (measured against hooks on every head), so paths "
            f"cannot be told apart; {remedy}."
        )


def _measure_freezing(model: Model, mlps: Mlps) -> bool:
    """The direct effect of a head of the first block, and of one in the middle, equals that of hooks on all heads."""
    a, b = some_tokens(model), some_tokens(model, 12)
    layers = attention_layers(model)
    if len(layers) < model.n_layers:
        return False  # other mixers carry information between positions, and would be taken for part of the path
    names = [_z(layer) for layer in layers]
    outputs = [f"blocks.{layer}.hook_mlp_out" for layer in layers] if mlps == "freeze" else []
    outputs = [name for name in outputs if name in model.bridge.hook_dict]  # none in attention-only models
    base, other = record(model, a, names=[*names, *outputs]), record(model, b, names=names)
    rows = torch.arange(len(a))
    everywhere = torch.ones(a.shape, dtype=torch.bool)
    for layer in sorted({0, model.n_layers // 2}):
        units: list[Unit] = [((layer, model.n_heads - 1),)]
        paths = FrozenPaths.between(model, a, b, units, [LOGITS], mlps, None, rows, everywhere, len(a))
        hooks: list[Hook] = [separable.exchanged(name, base.kept[name]) for name in [*names, *outputs]]
        hooks.append(separable.exchanged(_z(layer), other.kept[_z(layer)], [model.n_heads - 1]))
        with hooked(model, hooks, copy=False):
            want = forward(model, a, logits_to_keep=1).logits[:, -1]
        if not agree(paths.patched(units * len(a), rows, everywhere), want):
            return False
    return True


def _z(layer: int) -> str:
    return f"blocks.{layer}.attn.hook_z"


def _some(logits: Tensor | None) -> Tensor:
    if logits is None:
        raise RuntimeError("a partial run was stopped before it gave logits")
    return logits
