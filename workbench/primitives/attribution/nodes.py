"""Node attribution: the first-order effect of exchanging one head, one MLP or the input between two runs.

    head    sum over positions of  dM/dz_h . (z_h[other] - z_h[base])
    mlp     sum over positions of  dM/dx . (write(m[other]) - write(m[base])), x the stream after the block
    input   sum over positions of  dM/dx_0 . (x_0[other] - x_0[base]), x_0 the stream that enters block 0

with the gradient at the base run (attribution patching), or its mean along a path of inputs (integrated gradients). A
score approximates metric(base run with the node's activation of the other run) - metric(base run). `write` is the norm
after the MLP where there is one. Summed over a path that is fine enough, the input's score is the whole difference of
the metric (completeness). Exact values are in `spot`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.primitives.attribution.passes import AT_BASE, ENTRY, Metric, Options, Pair, Pass, open_pair, run
from workbench.primitives.attribution.wiring import Wiring, find, hook_name, wide
from workbench.primitives.sweep.units import attention_layers
from workbench.primitives.two_runs import check_runs

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from workbench.models import Model


@dataclass(frozen=True)
class NodeScores:
    """Scores per example, float32 or better, on the CPU; NaN where the model has no such node or the metric no value.

    Attributes:
        base, other: metric of the two runs.
        null: scores of the heads with the activations of each control; no rows when there are none.
    """

    heads: Float[Tensor, "n layer head"]
    mlps: Float[Tensor, "n layer"]
    inputs: Float[Tensor, " n"]
    base: Float[Tensor, " n"]
    other: Float[Tensor, " n"]
    null: Float[Tensor, "draw n layer head"]


def node_scores(
    model: Model,
    base: Int[Tensor, "n pos"],
    other: Int[Tensor, "n pos"],
    metric: Metric,
    *,
    controls: Sequence[Int[Tensor, "n pos"]] = (),
    **options: Unpack[Options],
) -> NodeScores:
    """Score every head, MLP and the input, on a batch of examples.

    Cost: two forward passes and `len(path)` backward ones. A control costs one forward pass when gradients are taken at
    the base run alone, otherwise as much as the scores. Memory: one forward and backward pass, and z and the MLP
    outputs of both runs.

    Args:
        base, other: token rows, padded on the left where they differ in length, both runs alike.
        metric: as for `sweep`: `metric(logits [n, vocab], rows [n]) -> [n]`, differentiable.
        controls: further runs in the place of `other`, for a null; only heads are scored.
        options: see `passes.Options`.

    Raises:
        InputError: shapes that do not fit, or a metric without a useful gradient.
        CapabilityError: the model's head outputs cannot be edited faithfully.
    """
    pair = open_nodes(model, base, other, metric, options)
    total = NodeSum(pair).along_path()
    return total.scores([control_heads(total, tokens, options) for tokens in controls])


def control_heads(total: NodeSum, tokens: Int[Tensor, "n pos"], options: Options) -> Tensor:
    """Scores of the heads with the activations of another run."""
    pair = total.pair
    check_runs(pair.tokens, tokens, pair.mask)
    if pair.path != AT_BASE:  # the path leads elsewhere, so the gradients are others
        return NodeSum(open_nodes(pair.model, pair.tokens, tokens, pair.metric, options)).along_path().heads()
    names = [hook_name(layer, "z") for layer in total.layers]
    return total.heads(run(pair.model, tokens, pair.mask, pair.metric, pair.rows, keep=names))


def open_nodes(
    model: Model,
    base: Int[Tensor, "n pos"],
    other: Int[Tensor, "n pos"],
    metric: Metric,
    options: Options,
    *,
    grads_of: Sequence[str] = (),
    keep: Sequence[str] = (),
) -> Pair:
    """Both runs, with what node scores need and whatever else is asked for."""
    z = [hook_name(layer, "z") for layer in attention_layers(model)]
    mlp: list[str] = []
    ends: list[str] = []
    if isinstance(find(model), Wiring):
        mlp = [hook_name(layer, "m") for layer in range(model.n_layers)]
        ends = [hook_name(layer, "out") for layer in range(model.n_layers)]
    return open_pair(model, base, other, metric, options, grads_of=[*z, *ends, *grads_of], keep=[*z, *mlp, *keep])


class NodeSum:
    """Mean gradients along the path, and the scores that follow from them."""

    def __init__(self, pair: Pair):
        self.pair = pair
        self.model = pair.model
        self.layers = attention_layers(pair.model)
        found = find(pair.model)
        self.wiring = found if isinstance(found, Wiring) else None
        self.grads: dict[str, Tensor] = {}

    def add(self, here: Pass) -> None:
        """Take in one pass of the path."""
        names = [ENTRY, *(hook_name(layer, "z") for layer in self.layers)]
        if self.wiring is not None:
            names += [hook_name(layer, "out") for layer in range(self.model.n_layers)]
        for name in names:
            grad = wide(here.grads[name]) * self.pair.weight
            self.grads[name] = self.grads[name] + grad if name in self.grads else grad

    def along_path(self) -> NodeSum:
        """All of the path."""
        for here in self.pair.passes():
            self.add(here)
        return self

    def scores(self, null: Sequence[Tensor] = ()) -> NodeScores:
        heads, pair = self.heads(), self.pair
        n, undefined = len(heads), pair.undefined()
        mlps = heads.new_full((n, self.model.n_layers), torch.nan)
        for layer, block in enumerate(self.wiring.blocks if self.wiring else ()):
            name = hook_name(layer, "m")
            change = wide(block.write_mlp(pair.other.acts[name])) - wide(block.write_mlp(pair.base.acts[name]))
            mlps[:, layer] = self._dot(hook_name(layer, "out"), change)
        inputs = self._dot(ENTRY, wide(pair.other.acts[ENTRY]) - wide(pair.base.acts[ENTRY])).to(heads.device)
        mlps[undefined], inputs[undefined] = torch.nan, torch.nan
        return NodeScores(
            heads.cpu(),
            mlps.cpu(),
            inputs.cpu(),
            pair.base.values.cpu(),
            pair.other.values.cpu(),
            (torch.stack(list(null)) if null else heads.new_zeros((0, *heads.shape))).cpu(),
        )

    def heads(self, other: Pass | None = None) -> Float[Tensor, "n layer head"]:
        """Scores of the heads, with the activations of the other run, or of the one given."""
        pair = self.pair
        other = pair.other if other is None else other
        first = self.grads[hook_name(self.layers[0], "z")]
        n, home = len(first), pair.base.values.device
        made = first.new_full((n, self.model.n_layers, self.model.n_heads), torch.nan, device=home)
        for layer in self.layers:
            name = hook_name(layer, "z")
            change = pair.exchanged(wide(other.acts[name]) - wide(pair.base.acts[name]))
            made[:, layer] = torch.einsum("bphd,bphd->bh", self.grads[name], change)
        made[~(pair.base.values.isfinite() & other.values.isfinite())] = torch.nan
        return made

    def _dot(self, name: str, change: Float[Tensor, "n pos d_model"]) -> Float[Tensor, " n"]:
        return torch.einsum("bpm,bpm->b", self.grads[name], self.pair.exchanged(change))
