"""Can attention (and MLPs) be frozen exactly in this architecture, so that paths can be told apart? Measured once.

The direct effect of a head, or an MLP, of the first block and of one in the middle must equal that of a whole forward
with hooks on every head. It never knows what will be sent to whom.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from workbench.errors import CapabilityError, WorkbenchError
from workbench.primitives import separable
from workbench.primitives.forward import forward
from workbench.primitives.frozen import FrozenPaths, Mlps, record_all, z_name
from workbench.primitives.hooks import Hook, hooked
from workbench.primitives.receivers import LOGITS, by_layer
from workbench.primitives.senders import MLP
from workbench.primitives.suffix import agree, resumes_exactly, some_tokens
from workbench.primitives.sweep.units import Unit, attention_layers

if TYPE_CHECKING:
    from workbench.models import Model

_freezes: WeakKeyDictionary[Any, dict[tuple[Mlps, bool], bool]] = WeakKeyDictionary()


def require_freezing(model: Model, mlps: Mlps, *, mlps_send: bool = False) -> None:
    """Attention (and MLPs) can be frozen exactly, and MLPs can speak where they are to.

    Raises:
        CapabilityError: they cannot, measured against hooks on every head.
    """
    model.require("head_ablation_ok")
    known = _freezes.setdefault(model, {})
    if (mlps, mlps_send) not in known:
        try:
            with torch.no_grad():
                known[mlps, mlps_send] = resumes_exactly(model) and measure_freezing(model, mlps, mlps_send)
        except (KeyError, TypeError, AttributeError, RuntimeError, IndexError, WorkbenchError):
            known[mlps, mlps_send] = False  # modules that are called or answer in another way
    if not known[mlps, mlps_send]:
        what, remedy = "Heads", "use activation patching"
        if mlps_send:
            what, remedy = "Heads and MLPs that send", "try heads alone as senders, or use activation patching"
        elif mlps == "freeze":
            what, remedy = "Heads and MLPs", "try mlps: recompute, or use activation patching"
        raise CapabilityError(
            f"{what} of {model.name!r} cannot be frozen exactly (measured against hooks on every head), so paths "
            f"cannot be told apart; {remedy}."
        )


def measure_freezing(model: Model, mlps: Mlps, mlps_send: bool = False) -> bool:
    """The direct effect of a head (or MLP) of the first block, and of a middle one, equals that of hooks on all."""
    a, b = some_tokens(model), some_tokens(model, 12)
    if len(attention_layers(model)) < model.n_layers:
        return False  # other mixers carry information between positions, and would be taken for part of the path
    names = [z_name(layer) for layer in range(model.n_layers)]
    outputs = [f"blocks.{layer}.hook_mlp_out" for layer in range(model.n_layers)]
    outputs = [name for name in outputs if name in model.bridge.hook_dict]  # none in attention-only models
    base, other = (record_all(model, tokens, names=outputs) for tokens in (a, b))
    rows = torch.arange(len(a))
    everywhere = torch.ones(a.shape, dtype=torch.bool)
    closed = [*names, *outputs] if mlps == "freeze" else names
    straight = mlps == "freeze" and model.capabilities.fork_exact
    paths = FrozenPaths(model, base, other, rows, by_layer([LOGITS]), mlps, straight, everywhere)
    for layer in sorted({0, model.n_layers // 2}):
        unit: Unit = ((layer, MLP if mlps_send else model.n_heads - 1),)
        hooks: list[Hook] = [separable.exchanged(name, base.kept[name]) for name in closed]
        if mlps_send:
            out = f"blocks.{layer}.hook_mlp_out"
            hooks.append(separable.exchanged(out, other.kept[out]))
        else:
            hooks.append(separable.exchanged(z_name(layer), other.kept[z_name(layer)], [model.n_heads - 1]))
        with hooked(model, hooks, copy=False):
            want = forward(model, a, logits_to_keep=1).logits[:, -1]
        if not agree(paths.patched([unit] * len(a), rows, everywhere), want):
            return False
    return True
