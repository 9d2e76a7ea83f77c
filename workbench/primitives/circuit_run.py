"""Run only a circuit: the nodes in it compute, every other node is replaced, and the rest of the model follows.

    node        a head (layer, head), or the MLP of a layer (layer, `MLP`)
    kept        the nodes of the circuit: z of a head and the output of an MLP are what they are in this very run
    replaced    every other node: its output at every position is `fill`

`fill` is what the node puts out in another run of the same prompts (resample: the counterfactual of MIB), its mean over
prompts at each column (mean; columns are counted from the end of the prompt, where all prompts meet), or zero. Whether
MLPs are nodes is a choice (`mlps`); when they are not, they always compute. Embeddings, norms and the unembedding are
no nodes. This is the circuit at the level of nodes: an edge between two kept nodes always carries what it carries.

All sets of nodes of one question share forward passes: sets x examples are rows of the batch. It never knows which
circuit is thought to be right, or what a good value of the metric is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from workbench.errors import CapabilityError, InputError
from workbench.primitives.forward import forward
from workbench.primitives.frozen import z_name
from workbench.primitives.hooks import Hook, hooked
from workbench.primitives.senders import MLP
from workbench.primitives.suffix import Run, record
from workbench.primitives.sweep.cost import Shape
from workbench.primitives.sweep.plan import rows_at_once
from workbench.primitives.sweep.readout import Readout
from workbench.primitives.sweep.units import attention_layers
from workbench.primitives.two_runs import check_runs, measure_all

if TYPE_CHECKING:
    from workbench.models import Model

Node = tuple[int, int]  # (layer, head) or (layer, MLP)
Fill = Literal["mean", "zero"]


def all_nodes(model: Model, *, mlps: bool = False) -> list[Node]:
    """Every head and, with `mlps`, every MLP, layer by layer.

    Raises:
        CapabilityError: an MLP whose output cannot be replaced.
    """
    found: list[Node] = []
    with_attention = set(attention_layers(model))
    for layer in range(model.n_layers):
        if layer in with_attention:
            found += [(layer, head) for head in range(model.n_heads)]
        if mlps:
            if mlp_name(layer) not in model.bridge.hook_dict:
                raise CapabilityError(f"Layer {layer} of {model.name!r} has no MLP output to replace; set mlps: false.")
            found.append((layer, MLP))
    return found


def mlp_name(layer: int) -> str:
    return f"blocks.{layer}.mlp.hook_out"


@dataclass(frozen=True)
class CircuitRun:
    """The prompts, and what nodes outside a circuit put out.

    Attributes:
        base: the prompts' own run, with every node's output in `kept`.
        fill: by hook name, `[n or 1, pos, ...]`.
        mlps: whether MLPs are nodes.
        batch_rows: rows of a forward pass.
    """

    model: Model
    base: Run
    fill: Mapping[str, Tensor]
    mlps: bool
    batch_rows: int

    @classmethod
    def of(
        cls,
        model: Model,
        tokens: Int[Tensor, "n pos"],
        fill: Fill | Int[Tensor, "n pos"],
        *,
        attention_mask: Int[Tensor, "n pos"] | None = None,
        mlps: bool = False,
        batch_rows: int | None = None,
    ) -> CircuitRun:
        """Run the prompts and make the fill.

        Args:
            tokens: token rows, padded on the left where they differ in length.
            fill: "mean" (over these prompts), "zero", or token rows to resample from, row by row.

        Raises:
            InputError: shapes that do not fit, or padding on the right.
            CapabilityError: heads (or MLPs) cannot be replaced one by one.
        """
        model.require("head_ablation_ok")
        check_runs(tokens, fill if isinstance(fill, Tensor) else tokens, attention_mask)
        layers = sorted({layer for layer, _ in all_nodes(model, mlps=mlps)})
        names = [z_name(layer) for layer in attention_layers(model)] + [mlp_name(layer) for layer in layers if mlps]
        size = batch_rows or rows_at_once(model, Shape.of(model), tokens.shape[1])
        with torch.no_grad():
            options = {"attention_mask": attention_mask, "names": names, "parts": (), "batch_rows": size}
            base = record(model, tokens, **options)
            if isinstance(fill, Tensor):
                values: Mapping[str, Tensor] = record(model, fill, **options).kept
            else:
                values = {name: _constant(base.kept[name], fill, attention_mask) for name in names}
        return cls(model, base, values, mlps, size)

    @property
    def nodes(self) -> list[Node]:
        """Every node there is."""
        return all_nodes(self.model, mlps=self.mlps)

    def measure(self, circuits: Sequence[Collection[Node]], readouts: Mapping[str, Readout]) -> dict[str, np.ndarray]:
        """`[circuit, example]` by metric: the prompts run with only each circuit's nodes computing.

        Raises:
            InputError: a node that the model does not have.
        """
        kept = self._masks(circuits)
        n = len(self.base.tokens)
        found = {name: np.full((len(circuits), n), np.nan) for name in readouts}
        which, example = np.repeat(np.arange(len(circuits)), n), np.tile(np.arange(n), len(circuits))
        with torch.no_grad():
            for at in range(0, len(which), self.batch_rows):
                rows, sets = torch.from_numpy(example[at : at + self.batch_rows]), which[at : at + self.batch_rows]
                hooks: list[Hook] = [(name, _only(mask[sets], self._filled(name, rows))) for name, mask in kept.items()]
                mask = None if self.base.mask is None else self.base.mask[rows.to(self.base.mask.device)]
                tokens = self.base.tokens[rows.to(self.base.tokens.device)]
                with hooked(self.model, hooks, copy=False):
                    logits = forward(self.model, tokens, attention_mask=mask, logits_to_keep=1).logits[:, -1]
                for name, values in measure_all(readouts, logits, rows, self.base).items():
                    found[name][sets, rows.numpy()] = values
        return found

    def full(self, readouts: Mapping[str, Readout]) -> dict[str, np.ndarray]:
        """`[example]` by metric, of the whole model."""
        return measure_all(readouts, self.base.logits, torch.arange(len(self.base.tokens)), self.base)

    def empty(self, readouts: Mapping[str, Readout]) -> dict[str, np.ndarray]:
        """`[example]` by metric, with every node replaced."""
        return {name: values[0] for name, values in self.measure([()], readouts).items()}

    def _filled(self, name: str, rows: Tensor) -> Tensor:
        values = self.fill[name]
        return values if len(values) == 1 else values[rows.to(values.device)]

    def _masks(self, circuits: Sequence[Collection[Node]]) -> dict[str, Bool[Tensor, "circuit index"]]:
        """By hook name, which heads of a layer (or its MLP) each circuit keeps."""
        known = set(self.nodes)
        masks: dict[str, Tensor] = {}
        for layer, head in known:
            name, width = (mlp_name(layer), 1) if head == MLP else (z_name(layer), self.model.n_heads)
            masks.setdefault(name, torch.zeros(len(circuits), width, dtype=torch.bool))
        for row, circuit in enumerate(circuits):
            for layer, head in circuit:
                if (layer, head) not in known:
                    what = f"MLP {layer}" if head == MLP else f"head ({layer}, {head})"
                    why = "MLPs are no nodes here (mlps is off)" if head == MLP and not self.mlps else "it has no such"
                    raise InputError(f"A circuit of {self.model.name!r} cannot keep {what}: {why}.")
                masks[mlp_name(layer) if head == MLP else z_name(layer)][row, max(head, 0)] = True
        return masks


def complement(nodes: Iterable[Node], circuit: Collection[Node]) -> tuple[Node, ...]:
    """All nodes but those of the circuit."""
    inside = set(circuit)
    return tuple(node for node in nodes if node not in inside)


def mean_over_prompts(values: Tensor, attention_mask: Tensor | None) -> Tensor:
    """`[1, pos, ...]`: mean over the prompts that have a real token in that column."""
    if attention_mask is None:
        return values.mean(dim=0, keepdim=True, dtype=torch.promote_types(values.dtype, torch.float32)).to(values.dtype)
    real = attention_mask.to(values.device).view(*attention_mask.shape, *[1] * (values.ndim - 2)).bool()
    total = torch.where(real, values, 0).sum(0, keepdim=True, dtype=torch.promote_types(values.dtype, torch.float32))
    return (total / real.sum(0, keepdim=True).clamp(min=1)).to(values.dtype)


def _constant(values: Tensor, fill: Fill, attention_mask: Tensor | None) -> Tensor:
    if fill == "mean":
        return mean_over_prompts(values, attention_mask)
    if fill == "zero":
        return torch.zeros_like(values[:1])
    raise InputError(f"fill must be 'mean', 'zero' or token rows, not {fill!r}.")


def _only(keep: Bool[Tensor, "batch index"], values: Tensor) -> Callable[[Tensor, Any], Tensor]:
    def edit(activation: Tensor, _: Any) -> Tensor:
        mask = keep.to(activation.device)[:, None, :]  # [batch, 1, index]
        mask = mask[..., None] if activation.ndim == 4 else mask
        return torch.where(mask, activation, values.to(activation.dtype))

    return edit
