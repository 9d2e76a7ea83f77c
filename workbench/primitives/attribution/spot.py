"""What attribution approximates, computed exactly: the node or edge is exchanged and the model runs again.

    node    metric(base run with the node's activation of the other run) - metric(base run)
    edge    metric(base run whose receiver v alone reads x_v + c_u[other] - c_u[base]) - metric(base run)

One full forward pass per node or edge and batch, through `interventions.applied` for heads and hooks for the rest; no
gradient is taken, and nothing of the scores is used but the choice of what to check.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.primitives.attribution.edges import head_changes, input_change, mlp_change
from workbench.primitives.attribution.graph import Node, Receiver
from workbench.primitives.attribution.passes import ENTRY, Metric, Pass, exchange_places, only, run
from workbench.primitives.attribution.wiring import Wiring, hook_name, wide, wiring
from workbench.primitives.forward import forward
from workbench.primitives.hooks import Hook, hooked
from workbench.primitives.interventions import applied, patch
from workbench.primitives.two_runs import check_runs

if TYPE_CHECKING:
    from workbench.models import Model

Edge = tuple[Node, Receiver]


def exact_nodes(
    model: Model,
    base: Int[Tensor, "n pos"],
    other: Int[Tensor, "n pos"],
    nodes: Sequence[Node],
    metric: Metric,
    *,
    rows: Int[Tensor, " n"] | None = None,
    attention_mask: Int[Tensor, "n pos"] | None = None,
    where: Bool[Tensor, "n pos"] | None = None,
) -> Float[Tensor, "node n"]:
    """The exact effect of exchanging each node, per example, on the CPU.

    Raises:
        InputError: shapes that do not fit.
        CapabilityError: the model's head outputs cannot be edited faithfully, or its MLPs not exchanged.
    """
    check_runs(base, other, attention_mask)
    where = exchange_places(base.shape, where, attention_mask)
    if any(node.kind == "mlp" for node in nodes):
        wiring(model)
    rows = torch.arange(len(base)) if rows is None else rows
    names = sorted({_activation(node) for node in nodes})
    effects = []
    with torch.no_grad():
        here = run(model, base, attention_mask, metric, rows, keep=names)
        there = run(model, other, attention_mask, metric, rows, keep=names)
        mixed = {name: _mixed(here.acts[name], there.acts[name], where) for name in names}
        for node in nodes:
            if node.kind == "head":
                source = {node.layer: mixed[_activation(node)]}
                with applied(model, [patch([(node.layer, node.head)], source)], attention_mask=attention_mask):
                    values = _measure(model, base, attention_mask, metric, rows)
            else:
                values = _measure(model, base, attention_mask, metric, rows, [_put(_activation(node), mixed)])
            effects.append(values - here.values)
    return torch.stack(effects).cpu() if effects else torch.zeros(0, len(base))


def exact_edges(
    model: Model,
    base: Int[Tensor, "n pos"],
    other: Int[Tensor, "n pos"],
    edges: Sequence[Edge],
    metric: Metric,
    *,
    rows: Int[Tensor, " n"] | None = None,
    attention_mask: Int[Tensor, "n pos"] | None = None,
    where: Bool[Tensor, "n pos"] | None = None,
) -> Float[Tensor, "edge n"]:
    """The exact effect of exchanging each edge, per example, on the CPU.

    Raises:
        InputError: shapes that do not fit.
        CapabilityError: the model's blocks are not wired in a form in which edges are defined.
    """
    check_runs(base, other, attention_mask)
    where = exchange_places(base.shape, where, attention_mask)
    wired = wiring(model)
    rows = torch.arange(len(base)) if rows is None else rows
    senders = sorted({layer for sender, _ in edges for layer in [sender.layer] if layer >= 0})
    readers = sorted({min(receiver.layer, model.n_layers - 1) for _, receiver in edges})
    names = {ENTRY, *(hook_name(layer, what) for layer in senders for what in ("z", "a", "m"))}
    names |= {hook_name(layer, what) for layer in readers for what in ("x", "a")}
    effects = []
    with torch.no_grad():
        here = run(model, base, attention_mask, metric, rows, keep=sorted(names))
        there = run(model, other, attention_mask, metric, rows, keep=sorted(names))
        for sender, receiver in edges:
            change = only(_sent(wired, sender, here, there), where)
            values = _measure(model, base, attention_mask, metric, rows, [_read(wired, receiver, here, change)])
            effects.append(values - here.values)
    return torch.stack(effects).cpu() if effects else torch.zeros(0, len(base))


def _sent(wired: Wiring, sender: Node, here: Pass, there: Pass) -> Float[Tensor, "n pos d_model"]:
    """What the sender adds to the stream in the other run, and does not in the base run."""
    if sender.kind == "input":
        return input_change(here.acts, there.acts)
    block = wired.blocks[sender.layer]
    if sender.kind == "mlp":
        return mlp_change(block, sender.layer, here.acts, there.acts)
    return head_changes(block, sender.layer, [sender.head], here.acts, there.acts)[0]


def _read(wired: Wiring, receiver: Receiver, here: Pass, change: Float[Tensor, "n pos d_model"]) -> Hook:
    """The hook that makes one receiver read the stream plus `change`."""
    layer = receiver.layer
    if receiver.kind == "logits":
        return hook_name(layer - 1, "out"), lambda out, _: (wide(out) + change.to(out.device)).to(out.dtype)
    block = wired.blocks[layer]
    x = here.acts[hook_name(layer, "x")]
    change = change.to(x.device)  # from the sender's device
    if receiver.kind == "mlp":
        stream = block.mlp_stream(x, here.acts[hook_name(layer, "a")])
        moved = block.read_mlp((wide(stream) + change).to(stream.dtype))
        return hook_name(layer, "mlp_in"), lambda value, _: moved.to(value.dtype)
    read = wide(block.read_attn((wide(x) + change).to(x.dtype))) - wide(block.read_attn(x))
    added = read @ block.w_in(receiver.kind)[receiver.index]  # [n, pos, d_head]

    def edit(value: Tensor, _: Any) -> Tensor:
        value = value.clone()
        value[:, :, receiver.index] = (wide(value[:, :, receiver.index]) + added).to(value.dtype)
        return value

    return hook_name(layer, receiver.kind), edit


def _activation(node: Node) -> str:
    if node.kind == "input":
        return ENTRY
    return hook_name(node.layer, "z" if node.kind == "head" else "m")


def _mixed(here: Tensor, there: Tensor, where: Bool[Tensor, "n pos"] | None) -> Tensor:
    """The other run's activation where it is exchanged, the base run's elsewhere."""
    if where is None:
        return there
    kept = where.to(here.device)
    return torch.where(kept.view(*kept.shape, *[1] * (here.ndim - 2)), there, here)


def _put(name: str, acts: Mapping[str, Tensor]) -> Hook:
    return name, lambda value, _: acts[name].to(value.dtype)


def _measure(
    model: Model,
    tokens: Tensor,
    mask: Tensor | None,
    metric: Metric,
    rows: Tensor,
    hooks: Sequence[Hook] = (),
) -> Float[Tensor, " n"]:
    with hooked(model, hooks, copy=False):
        return metric(forward(model, tokens, attention_mask=mask, logits_to_keep=1).logits[:, -1], rows)
