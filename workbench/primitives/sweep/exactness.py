"""Is the fork exact for this model? Measured on a few tokens before the first sweep, and remembered with the model.

One head per layer gets a random z'. The reference edits z through hooks in full forward passes; the fork must give the
same logits. The cheapest way that passes is taken: with or without the shortened last block; where none does, sweeps
run full forwards with hooks, and say why. It never knows what a sweep is for.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from workbench.errors import CapabilityError
from workbench.models.probe_subject import ordinary_tokens
from workbench.primitives.hooks import Hook, hooked
from workbench.primitives.sweep.base import Base, last_logits, run_base
from workbench.primitives.sweep.edit import Edit
from workbench.primitives.sweep.fork import Start, Way, output_weights, run_fork
from workbench.primitives.sweep.prompts import Prompts
from workbench.primitives.sweep.units import attention_layers

if TYPE_CHECKING:
    from workbench.models import Model

_TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5}  # of the largest logit
_PADDING = 3


@dataclass(frozen=True)
class Exactness:
    """What was measured.

    Attributes:
        way: how to fork; None where no way is exact.
        note: empty, or what was given up and why.
    """

    way: Way | None
    note: str = ""


_measured: WeakKeyDictionary[Model, Exactness] = WeakKeyDictionary()


def exactness(model: Model) -> Exactness:
    """How `model` can be forked; measured once per loaded model."""
    if model not in _measured:
        with torch.no_grad():
            _measured[model] = _measure(model)
    return _measured[model]


def _measure(model: Model) -> Exactness:
    if model.hf is None:
        return Exactness(None, "a native bridge has no Hugging Face forward to fork; sweeps run full forwards")
    subject = _Subject(model)
    parallel = [True, False] if model.capabilities.fork_point == "resid_post" else [False]
    note = ""
    for way in [Way(p, tail) for p in parallel for tail in (True, False)]:
        why = subject.objection(way)
        if not why:
            return Exactness(way, note if not way.tail else "")
        note = f"the shortened last block is not exact here ({why}), so it runs at every position"
    return Exactness(None, f"forking the residual stream is not exact here ({why}), so sweeps run full forwards")


class _Subject:
    """Random edits of one head per layer, their logits through hooks, and what a fork makes of them."""

    def __init__(self, model: Model):
        self.model = model
        self.layers = attention_layers(model)
        self.prompts = _prompts(model)
        self.heads = {layer: layer % model.n_heads for layer in self.layers}
        self.base: Base | None = None
        generator = torch.Generator().manual_seed(0)
        z = run_base(model, self.prompts, Edit("zero"), self.layers, stream=False).z
        self.new_z = {
            layer: value + (torch.randn(value.shape, generator=generator) * 2 * float(value.float().std())).to(value)
            for layer, value in z.items()
        }
        self.want = self._with_hooks()

    def _with_hooks(self) -> dict[int, Tensor]:
        """Logits `[2, vocab]` by layer: one forward, whose rows 2 i and 2 i + 1 are edited in the i-th layer."""
        hooks: list[Hook] = []
        for i, layer in enumerate(self.layers):

            def put(z: Tensor, _: object, i: int = i, layer: int = layer) -> Tensor:
                z[2 * i : 2 * i + 2, :, self.heads[layer]] = self.new_z[layer][:, :, self.heads[layer]]
                return z

            hooks.append((f"blocks.{layer}.attn.hook_z", put))
        with hooked(self.model, hooks):
            logits = last_logits(self.model, self.prompts.repeat(len(self.layers)))
        return {layer: logits[2 * i : 2 * i + 2] for i, layer in enumerate(self.layers)}

    def objection(self, way: Way) -> str:
        """Why forking this way is not exact; empty when it is."""
        try:
            if self.base is None:
                self.base = run_base(self.model, self.prompts, Edit("zero"), self.layers)
                self.base.new_z = self.new_z
            for layer in self.layers:
                got = run_fork(self.model, self.prompts, self._start(self.base, layer, way), way)
                why = self._disagreement(got, self.want[layer], self.base.logits)
                if why:
                    return f"layer {layer}: {why}"
        except Exception as error:  # whatever an architecture does not take is a reason not to use it
            return f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
        return ""

    def _start(self, base: Base, layer: int, way: Way) -> Start:
        delta = base.delta([((layer, self.heads[layer]),)], layer, output_weights(self.model, layer))[0]
        return begin(base, layer, delta, way)

    def _disagreement(self, got: Tensor, want: Tensor, plain: Tensor) -> str:
        scale = float(want.abs().max().clamp(min=1e-6))
        error, effect = float((got - want).abs().max()), float((want - plain).abs().max())
        tolerance = _TOLERANCE.get(self.model.dtype)
        if tolerance is None:  # half precision: rounding of large residual dimensions hides single logits
            error, effect = float((got - want).float().abs().mean()), float((want - plain).float().abs().mean())
            allowed = max(0.1 * effect, torch.finfo(want.dtype).eps * scale)
        else:
            allowed = tolerance * scale
        return "" if error <= allowed else f"logits differ by {error:.2g} where the edit moves them by {effect:.2g}"


def _prompts(model: Model) -> Prompts:
    """Two prompts, the second left-padded, where the model can be run on padding at all."""
    tokens = ordinary_tokens(model)
    rows, mask = tokens.repeat(2, 1), torch.ones_like(tokens).repeat(2, 1)
    if tokens.shape[1] > _PADDING + 2:
        rows[1, _PADDING:] = tokens[0, :-_PADDING]
        mask[1, :_PADDING] = 0
        padded = Prompts.checked(rows, mask, None)
        with suppress(CapabilityError):  # in float64 where the softmax is in float32
            if bool(last_logits(model, padded).isfinite().all()):
                return padded
    return Prompts.checked(tokens.repeat(2, 1), None, None)


def begin(base: Base, layer: int, delta: Tensor, way: Way) -> Start:
    """The fork of all of the base's examples in which the attention output of `layer` changes by `delta`."""
    source = base.x[layer + 1] if way.parallel else base.attn[layer]
    changed = (source.to(delta) + delta).to(source.dtype)
    widths = base.block_width, base.attn_width
    if way.parallel:
        return Start(layer, changed, None, *widths)
    return Start(layer, base.x[layer], changed, *widths)
