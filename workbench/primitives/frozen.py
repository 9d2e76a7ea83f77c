"""Pass 2 and pass 3 of path patching: shut every way but the direct one, hear what receivers get, play it to them.

`paths` says what is computed and in which order; this is how: modules that return what they returned in the base run,
one sender's change put in, until the last receiver has been heard. It never knows metrics, nor which prompt was clean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from workbench.errors import CapabilityError
from workbench.primitives.hooks import Hook
from workbench.primitives.receivers import Key
from workbench.primitives.senders import MLP
from workbench.primitives.suffix import (
    Run,
    Stop,
    frozen,
    record,
    run_from,
    writes,
)
from workbench.primitives.swap import hidden_out
from workbench.primitives.sweep.units import Unit, attention_layers

if TYPE_CHECKING:
    from workbench.models import Model

Mlps = Literal["recompute", "freeze"]


@dataclass
class FrozenPaths:
    """Everything that passes 2 and 3 read: the base run, z and MLP outputs of the other, and who listens.

    Attributes:
        take: row of the other run that each example's sender speaks as.
        listeners: heads or kv groups, by layer and part; an empty list for an MLP; nothing for the logits.
        straight: the stream takes what a sender adds as it is, and nothing between sender and receiver answers to it.
    """

    model: Model
    base: Run
    other: Run
    take: Int[Tensor, " n"]
    listeners: dict[Key, list[int]]
    mlps: Mlps
    straight: bool
    sent_at: Bool[Tensor, "n pos"]

    def patched(
        self, units: Sequence[Unit], rows: Int[Tensor, " batch"], received_at: Bool[Tensor, "n pos"]
    ) -> Float[Tensor, "batch vocab"]:
        """Logits of pass 3; row i has sender `units[i]` and example `rows[i]`."""
        if not self.listeners:  # into the logits, pass 2 is the answer
            return self._into_logits(units, rows)
        heard = self._heard(units, rows)
        return self._third_pass(heard, rows, received_at[rows])

    def _sent(self, units: Sequence[Unit], rows: Tensor, *, last_only: bool = False) -> _Sent:
        """What the senders do to attention and MLP outputs, by layer."""
        columns = slice(-1, None) if last_only else slice(None)
        members: dict[tuple[int, int], list[int]] = {}
        for row, unit in enumerate(units):
            for part in unit:
                members.setdefault(part, []).append(row)
        where, there = self.sent_at[rows][:, columns], self.take[rows]
        sent = _Sent()
        for (layer, head), some in members.items():
            if head == MLP:
                told = torch.zeros_like(where)
                told[some] = where[some]
                sent.mlp[layer] = (_at(self.other.mlp[layer], there)[:, columns], told)
                continue
            z_orig, z_new = self.base.kept[z_name(layer)], self.other.kept[z_name(layer)]
            dz = (_at(z_new[:, :, head], there[some]) - _at(z_orig[:, :, head], rows[some]))[:, columns]
            dz = torch.where(where[some][..., None].to(dz.device), dz, 0)
            d = writes(self.model, layer, dz[:, :, None], [head])
            if layer not in sent.attn:
                sent.attn[layer] = d.new_zeros(len(units), *d.shape[1:])
            sent.attn[layer][some] += d
        return sent

    def _stream(self, sent: _Sent, at: int, rows: Tensor, *, last_only: bool = False) -> Tensor:
        """What enters block `at` with what the senders below add, where the stream takes that as it is."""
        columns = slice(-1, None) if last_only else slice(None)
        stream = _at(self.base.stream[at], rows)[:, columns]
        total = [d for layer, d in sent.attn.items() if layer < at]
        for layer, (value, told) in sent.mlp.items():
            if layer < at:
                orig = _at(self.base.mlp[layer], rows)[:, columns]
                total.append(torch.where(told[..., None].to(value.device), value - orig, 0))
        if not total:
            return stream
        total = [d.to(stream.device) for d in total]
        return stream + sum(total[1:], total[0])

    def _into_logits(self, units: Sequence[Unit], rows: Tensor) -> Float[Tensor, "batch vocab"]:
        """Pass 2 to its end: with all attention frozen, the last column depends on itself alone."""
        sent = self._sent(units, rows, last_only=True)
        n_layers = self.model.n_layers
        if self.straight:
            final = self._stream(sent, n_layers, rows, last_only=True)
            return _some(run_from(self.model, self.base, n_layers, rows, stream=final))
        start = min(layer for unit in units for layer, _ in unit)
        swaps = self._shut(range(start, n_layers), rows, sent, last_only=True)
        return _some(run_from(self.model, self.base, start, rows, swaps=swaps, last_only=True))

    def _heard(self, units: Sequence[Unit], rows: Tensor) -> dict[Key, Tensor]:
        """What every receiver gets in pass 2, by layer and part; those below every sender get what they always got."""
        sent = self._sent(units, rows)
        start = min(layer for unit in units for layer, _ in unit)
        listening = sorted({layer for layer, _ in self.listeners if layer >= start})
        ear = _Ear(self.listeners)
        if self.straight:
            for layer in listening:
                stream = self._stream(sent, layer, rows)
                ear.expect(layer)
                swaps = self._shut([layer], rows, sent, ear)
                run_from(self.model, self.base, layer, rows, stream=stream, hooks=ear.hooks([layer]), swaps=swaps)
        else:
            layers = range(start, listening[-1] + 1)
            ear.expect(*layers)
            swaps = self._shut(layers, rows, sent, ear)
            run_from(self.model, self.base, start, rows, hooks=ear.hooks(layers), swaps=swaps)
        deaf = sorted({key for key in self.listeners if key[0] >= start} - set(ear.heard))
        if deaf:
            layer, part = deaf[0]
            raise CapabilityError(
                f"Model {self.model.name!r} never calls its {part} in layer {layer} as a module of its own, so that "
                f"cannot be a receiver; choose another."
            )
        return ear.heard

    def _shut(
        self, layers: Iterable[int], rows: Tensor, sent: _Sent, ear: _Ear | None = None, *, last_only: bool = False
    ) -> dict[nn.Module, Callable[..., Any]]:
        """Replacements that freeze attention (and MLPs) but for the senders, while receivers compute what they get."""
        swaps: dict[nn.Module, Callable[..., Any]] = {}
        columns = slice(-1, None) if last_only else slice(None)
        for layer in layers:
            block = self.model.bridge.blocks[layer]
            output = _rows(self.base.attn[layer], rows, columns, sent.attn.get(layer))
            closed = frozen(self.base, block.attn, output)
            listens = ear is not None and any((layer, part) in self.listeners for part in "qkv")
            swaps[block.attn] = _after(block.attn.forward, closed) if listens else closed
            mlp = getattr(block, "mlp", None)
            if not isinstance(mlp, nn.Module):
                continue
            said: Callable[..., Any] | None = None
            if self.mlps == "freeze" and layer in self.base.mlp:
                said = frozen(self.base, mlp, _rows(self.base.mlp[layer], rows, columns))
            if layer in sent.mlp:
                said = exchanged_rows(self.base, mlp, said or mlp.forward, *sent.mlp[layer])
            if ear is not None and (layer, "mlp") in self.listeners:
                swaps[mlp] = ear.at_mlp(layer, mlp.forward, said)
            elif said is not None:
                swaps[mlp] = said
        return swaps

    def _third_pass(self, heard: dict[Key, Tensor], rows: Tensor, where: Bool[Tensor, "batch pos"]) -> Tensor:
        """The base run with only the receivers' values replaced."""
        hooks: list[Hook] = []
        swaps: dict[nn.Module, Callable[..., Any]] = {}
        for (layer, part), value in heard.items():
            if part == "mlp":
                mlp = self.model.bridge.blocks[layer].mlp
                swaps[mlp] = exchanged_rows(self.base, mlp, mlp.forward, value, where)
            else:
                hooks.append((f"blocks.{layer}.attn.hook_{part}", _put(self.listeners[layer, part], value, where)))
        start = min(layer for layer, _ in heard)
        return _some(run_from(self.model, self.base, start, rows, hooks=hooks, swaps=swaps))


@dataclass
class _Sent:
    """What the senders of a batch change.

    Attributes:
        attn: d = (z_new - z_orig) W_O by layer, `[batch, pos, d_model]`, zero for rows whose sender is elsewhere.
        mlp: outputs of the other run by layer, and the rows and positions that get them.
    """

    attn: dict[int, Tensor] = field(default_factory=dict)
    mlp: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


class _LayerHeard(Exception):
    """Ends an attention module that has nothing more to say to a receiver."""


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

    def at_mlp(self, layer: int, call: Callable[..., Any], said: Callable[..., Any] | None) -> Callable[..., Any]:
        """Hear what the MLP makes of what it gets, and let the rest of the model hear `said` (None: the same)."""

        def listen(*args: Any, **kwargs: Any) -> Any:
            output = call(*args, **kwargs)
            self._hear((layer, "mlp"), hidden_out(output).clone())
            return output if said is None else said(*args, **kwargs)

        return listen

    def _hear(self, key: Key, value: Tensor) -> None:
        self.heard[key] = value
        self.waiting.discard(key)
        if not self.waiting:
            raise Stop
        if key[1] != "mlp" and not any((key[0], part) in self.waiting for part in "qkv"):
            raise _LayerHeard


def _at(values: Tensor, rows: Int[Tensor, " batch"]) -> Tensor:
    """Some rows of what one layer left, on that layer's device."""
    return values[rows.to(values.device)]


def _rows(values: Tensor, rows: Tensor, columns: slice, added: Tensor | None = None) -> Callable[[], Tensor]:
    """Rows of a recorded output, taken when the module is called, so that only one layer's exist at a time."""
    return lambda: _at(values, rows)[:, columns] if added is None else _at(values, rows)[:, columns] + added


def _after(call: Callable[..., Any], closed: Callable[..., Any]) -> Callable[..., Any]:
    """Run the module for its hooks, as far as they listen, and return what is frozen."""

    def replacement(*args: Any, **kwargs: Any) -> Any:
        with suppress(_LayerHeard):
            call(*args, **kwargs)
        return closed()

    return replacement


def exchanged_rows(
    run: Run,
    module: nn.Module,
    call: Callable[..., Any],
    value: Float[Tensor, "batch pos d_model"],
    where: Bool[Tensor, "batch pos"],
) -> Callable[..., Any]:
    """The module's own output, with `value` at `where`."""

    def replacement(*args: Any, **kwargs: Any) -> Any:
        own = hidden_out(call(*args, **kwargs))
        mixed = torch.where(where[..., None].to(own.device), value, own.view_as(value)).view_as(own)
        return frozen(run, module, lambda: mixed)()

    return replacement


def _put(index: list[int], value: Tensor, where: Tensor) -> Callable[[Tensor, Any], Tensor]:
    def edit(activation: Tensor, _: Any) -> Tensor:
        activation = activation.clone()
        told = where[..., None, None].to(activation.device)
        activation[:, :, index] = torch.where(told, value, activation[:, :, index])
        return activation

    return edit


def record_all(
    model: Model, tokens: Tensor, *, mask: Tensor | None = None, names: Sequence[str] = (), batch_rows: int = 64
) -> Run:
    """Pass 1 of one run: the stream, attention and MLP outputs, and z of every layer."""
    names = [*(z_name(layer) for layer in attention_layers(model)), *names]
    parts = ("stream", "attn", "mlp")
    return record(model, tokens, attention_mask=mask, names=sorted(set(names)), parts=parts, batch_rows=batch_rows)


def z_name(layer: int) -> str:
    return f"blocks.{layer}.attn.hook_z"


def _some(logits: Tensor | None) -> Tensor:
    if logits is None:
        raise RuntimeError("a partial run was stopped before it gave logits")
    return logits
