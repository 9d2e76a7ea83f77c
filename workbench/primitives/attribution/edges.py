"""Edge attribution patching (EAP, Syed et al. 2023) and EAP-IG (Hanna et al. 2024), for GQA and post-norm models too.

    score(u -> v) = sum over positions of  (c_u[other] - c_u[base]) . dM/dx_v

c_u is what sender u adds to the residual stream, x_v the copy of the stream that receiver v alone reads: q of one head,
k or v of one kv group, an MLP, or the logits. The score approximates metric(v reads x_v + c_u[other] - c_u[base], and
everything above v is recomputed) - metric(base run).

1. One backward pass (per point of the path) gives dM/dq, dM/dk, dM/dv by head and group, and dM/d(MLP input).
2. Receiver: dM/dx_v = J^T W_q^h dM/dq_h, where J is the Jacobian of the block's own norm at the stream it reads, from
   autograd of that norm; all receivers of a layer at once. So no stream is split into a copy per head.
3. Sender, exactly, not to first order: for a head, write(a + dz W_O^h) - write(a), where write is the norm after
   attention or the identity; for an MLP, write(m[other]) - write(m[base]); for the input, the embeddings' difference.
4. Matrix product of senders and receivers, example by example, for the pairs that are edges (`graph`).

In a pre-norm model the scores of all edges that leave a head add up to its node score (the chain rule); after a norm
that follows attention they do so to first order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.primitives.attribution.graph import Graph
from workbench.primitives.attribution.nodes import NodeScores, NodeSum, control_heads, open_nodes
from workbench.primitives.attribution.passes import ENTRY, Metric, Options, Pair, Pass
from workbench.primitives.attribution.wiring import Block, Map, Wiring, hook_name, identity, wide, wiring

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from workbench.models import Model

Acts = Mapping[str, Tensor]


@dataclass(frozen=True)
class EdgeScores:
    """Scores per example, on the CPU, in the order of `graph.senders` and `graph.receivers`; NaN where no edge is.

    Attributes:
        nodes: node scores from the same passes, with the controls' of the heads.
    """

    scores: Float[Tensor, "n sender receiver"]
    graph: Graph
    nodes: NodeScores


def edge_scores(
    model: Model,
    base: Int[Tensor, "n pos"],
    other: Int[Tensor, "n pos"],
    metric: Metric,
    *,
    controls: Sequence[Int[Tensor, "n pos"]] = (),
    **options: Unpack[Options],
) -> EdgeScores:
    """Score every edge on a batch of examples; arguments as for `node_scores`.

    Memory, in float32 or better: `n x senders x pos x d_model` for what senders add, as much per layer for its
    receivers' gradients, and `n x senders x receivers` scores; see `bytes_per_example`.

    Raises:
        CapabilityError: the model's blocks are not wired in a form in which edges are defined (see `wiring`).
    """
    wired = wiring(model)
    layers = range(model.n_layers)
    pair = open_nodes(
        model,
        base,
        other,
        metric,
        options,
        grads_of=[hook_name(layer, what) for layer in layers for what in ("q", "k", "v", "mlp_in")],
        keep=[hook_name(layer, what) for layer in layers for what in ("x", "a")],
    )
    sent = sender_changes(pair, wired)
    flat = sent.flatten(2)  # [n, sender, pos * d_model]
    graph = wired.graph
    made = flat.new_zeros((len(flat), len(graph.senders), len(graph.receivers)))
    nodes = NodeSum(pair)
    for here in pair.passes():
        nodes.add(here)
        for layer, block in enumerate(wired.blocks):
            first = graph.receivers.index(graph.receivers_of(layer)[0])
            read = receiver_grads(block, here, layer).flatten(2).to(flat.device)  # [n, receiver, pos * d_model]
            known = graph.n_senders(graph.receivers_of(layer)[-1])
            made[:, :known, first : first + read.shape[1]] += flat[:, :known] @ read.mT * pair.weight
        end = wide(here.grads[hook_name(model.n_layers - 1, "out")]).flatten(1).to(flat.device)
        made[:, :, -1] += (flat @ end[..., None])[..., 0] * pair.weight
    made[:, ~torch.from_numpy(graph.exists()).to(made.device)] = torch.nan
    made[pair.undefined()] = torch.nan
    return EdgeScores(made.cpu(), graph, nodes.scores([control_heads(nodes, tokens, options) for tokens in controls]))


def sender_changes(pair: Pair, wired: Wiring) -> Float[Tensor, "n sender pos d_model"]:
    """c_u[other] - c_u[base] of every sender, 0 where nothing is exchanged; all on the device of the metric."""
    base, other = pair.base.acts, pair.other.acts
    made = [input_change(base, other)]
    for layer, block in enumerate(wired.blocks):
        made += head_changes(block, layer, range(wired.graph.n_heads), base, other)
        made.append(mlp_change(block, layer, base, other))
    return torch.stack([pair.exchanged(change).to(pair.base.values.device) for change in made], dim=1)


def input_change(base: Acts, other: Acts) -> Float[Tensor, "n pos d_model"]:
    return wide(other[ENTRY]) - wide(base[ENTRY])


def head_changes(
    block: Block, layer: int, heads: Sequence[int], base: Acts, other: Acts
) -> list[Float[Tensor, "n pos d_model"]]:
    """write(a + dz W_O^h) - write(a) of every head asked for."""
    name, w_o = hook_name(layer, "z"), block.w_o
    changes = [(wide(other[name][:, :, h]) - wide(base[name][:, :, h])) @ w_o[h] for h in heads]
    if block.write_attn is identity:
        return changes
    a = base[hook_name(layer, "a")]
    before = wide(block.write_attn(a))
    return [wide(block.write_attn((wide(a) + change).to(a.dtype))) - before for change in changes]


def mlp_change(block: Block, layer: int, base: Acts, other: Acts) -> Float[Tensor, "n pos d_model"]:
    """write(m[other]) - write(m[base])."""
    name = hook_name(layer, "m")
    return wide(block.write_mlp(other[name])) - wide(block.write_mlp(base[name]))


def receiver_grads(block: Block, here: Pass, layer: int) -> Float[Tensor, "n receiver pos d_model"]:
    """dM/dx_v of q of every head, k and v of every group, and the MLP, in that order."""
    x = here.acts[hook_name(layer, "x")]
    grads = {what: wide(here.grads[hook_name(layer, what)]) for what in ("q", "k", "v")}
    read = torch.cat([torch.einsum("bpid,imd->bipm", grads[what], block.w_in(what)) for what in grads], dim=1)
    mlp = wide(here.grads[hook_name(layer, "mlp_in")])[:, None]
    stream = block.mlp_stream(x, here.acts[hook_name(layer, "a")])
    return torch.cat([through_norm(block.read_attn, x, read), through_norm(block.read_mlp, stream, mlp)], dim=1)


def through_norm(
    read: Map, stream: Float[Tensor, "n pos d_model"], grads: Float[Tensor, "n receiver pos d_model"]
) -> Float[Tensor, "n receiver pos d_model"]:
    """J^T g for every receiver, with J the Jacobian of `read` at `stream`."""
    if read is identity:
        return grads
    n, width = grads.shape[:2]
    copies = wide(stream)[:, None].expand(n, width, *stream.shape[1:]).flatten(0, 1).detach().requires_grad_()
    with torch.enable_grad():
        output = read(copies.to(stream.dtype))
        (found,) = torch.autograd.grad(output, copies, grads.flatten(0, 1).to(output.dtype))
    return found.detach().unflatten(0, (n, width))


def bytes_per_example(model: Model, n_pos: int) -> int:
    """Working memory of one example, roughly; for choosing a batch."""
    senders = 1 + model.n_layers * (model.n_heads + 1)
    receivers = model.n_layers * (model.n_heads + 2 * model.n_kv_heads + 1) + 1
    per_layer = 4 * (model.n_heads + 2 * model.n_kv_heads + 1)  # gradients, copies and results of the norm
    return 4 * (n_pos * model.d_model * (2 * senders + per_layer) + 2 * senders * receivers)
