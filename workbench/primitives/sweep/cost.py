"""What a sweep costs, before it starts: floating-point operations, forwards, bytes, and from a timed forward seconds.

The FLOP model counts matrix products only (2 per multiply-add): projections, attention scores and mixtures, MLPs and
the unembedding. It is a function of a model's `Shape`, the number of positions and where an edit begins, so the gain of
forking can be read off before anything runs. Norms, activations and softmax are left out; on large models they vanish.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.primitives.forward import forward
from workbench.primitives.sweep.fork import Way

if TYPE_CHECKING:
    from workbench.models import Model


@dataclass(frozen=True)
class Shape:
    """Multiply-adds of one token in each part of a model.

    Attributes:
        q, kv, o: projections of one layer (`kv`: keys and values together).
        mixing: attention scores and mixtures per key, one layer.
        mlp: by layer, of the experts that one token visits.
        unembed: logits.
    """

    q: int
    kv: int
    o: int
    mixing: int
    mlp: tuple[int, ...]
    unembed: int
    d_model: int
    d_head: int
    n_heads: int
    d_mlp: int
    d_vocab: int
    n_parameters: int

    @classmethod
    def of(cls, model: Model) -> Shape:
        config: Any = model.bridge.cfg
        d, wide, narrow = model.d_model, model.n_heads * model.d_head, model.n_kv_heads * model.d_head
        mlp = tuple(_mlp_weights(model, layer) for layer in range(model.n_layers))
        d_vocab = int(config.d_vocab)
        return cls(
            q=d * wide,
            kv=2 * d * narrow,
            o=wide * d,
            mixing=2 * wide,
            mlp=mlp,
            unembed=d * d_vocab,
            d_model=d,
            d_head=model.d_head,
            n_heads=model.n_heads,
            d_mlp=int(getattr(config, "d_mlp", None) or 4 * d),
            d_vocab=d_vocab,
            n_parameters=sum(p.numel() for p in model.bridge.original_model.parameters()),
        )

    def block(self, layer: int, n_pos: int) -> int:
        """FLOPs of a block at every position (attention is computed for the whole square)."""
        return 2 * n_pos * (self.q + self.kv + self.o + self.mlp[layer] + self.mixing * n_pos)

    def last_block(self, n_pos: int) -> int:
        """FLOPs of the last block when one position is read: keys and values everywhere, twice at that position."""
        return 2 * (n_pos * self.kv + self.q + self.kv + self.o + self.mlp[-1] + self.mixing * n_pos)

    def full(self, n_pos: int, *, logits_at: int) -> int:
        """FLOPs of one forward pass of one prompt."""
        return sum(self.block(layer, n_pos) for layer in range(len(self.mlp))) + 2 * logits_at * self.unembed

    def fork(self, layer: int, n_pos: int, n_heads: int, way: Way) -> int:
        """FLOPs of one prompt with an edit of `n_heads` heads in `layer`."""
        last = len(self.mlp) - 1
        here = 1 if layer == last else n_pos
        total = 2 * n_pos * n_heads * self.d_head * self.d_model + 2 * self.unembed
        total += 0 if way.parallel else 2 * here * self.mlp[layer]
        total += sum(self.block(between, n_pos) for between in range(layer + 1, last))
        if layer < last:
            total += self.last_block(n_pos) if way.tail else self.block(last, n_pos)
        return total

    def row_bytes(self, n_pos: int, itemsize: int) -> int:
        """Working memory of one prompt in a forward pass, generously."""
        per_token = 8 * self.d_model + 3 * self.d_mlp + 2 * self.n_heads * self.d_head + 3 * self.n_heads * n_pos
        return n_pos * per_token * itemsize + 3 * self.d_vocab * max(itemsize, 4)

    def base_bytes(self, n_pos: int, n_layers: int, itemsize: int, *, other: bool) -> int:
        """What the base run keeps of one prompt."""
        heads = (3 if other else 2) * self.n_heads * self.d_head
        return n_pos * n_layers * (2 * self.d_model + heads) * itemsize


@dataclass(frozen=True)
class Cost:
    """Cost of a sweep, as planned.

    Attributes:
        method: `fork` or `hooks`.
        units, examples, controls: what is swept; every control is one more edit of every unit and example.
        forwards: calls of the model, of up to `rows` prompts each.
        flops: of all of them.
        reference_flops: of one full forward with all logits per unit, control and example.
        bytes: working memory at most, and what the base run keeps; without the weights.
        seconds: `flops` at the speed of a timed forward; None when not timed.
    """

    method: str
    units: int
    examples: int
    controls: int
    forwards: int
    rows: int
    flops: float
    reference_flops: float
    bytes: int
    seconds: float | None = None

    @property
    def speedup(self) -> float:
        """How many times fewer FLOPs than one full forward per unit and example."""
        return self.reference_flops / self.flops

    def times(self, count: int) -> Cost:
        """Of the same work done `count` times, as for `count - 1` controls."""
        return replace(
            self,
            controls=self.controls + count - 1,
            forwards=self.forwards * count,
            flops=self.flops * count,
            reference_flops=self.reference_flops * count,
        )

    def at_speed(self, flops_per_second: float) -> Cost:
        """With the seconds it takes."""
        return replace(self, seconds=self.flops / flops_per_second)

    @property
    def duration(self) -> str:
        """`about 3 min`, or how many FLOPs while the speed is unknown."""
        return f"{self.flops:.3g} FLOPs" if self.seconds is None else f"about {_duration(self.seconds)}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, without the seconds, which differ from run to run."""
        record = asdict(self)
        del record["seconds"]
        return {**record, "speedup": round(self.speedup, 3)}

    def __str__(self) -> str:
        time_left = "" if self.seconds is None else f", {self.duration}"
        return (
            f"{self.units} units x {self.examples} examples x {1 + self.controls} edits by {self.method}: "
            f"{self.forwards} forwards, {self.flops:.3g} FLOPs ({self.speedup:.1f}x fewer than full forwards), "
            f"{self.bytes / 2**20:.0f} MiB{time_left}"
        )


def flops_per_second(model: Model, shape: Shape, tokens: Tensor, mask: Tensor | None = None) -> float:
    """Speed of a forward pass of these prompts, best of two after nothing else has warmed up."""
    best = float("inf")
    for _ in range(2):
        started = time.perf_counter()
        forward(model, tokens, attention_mask=mask, logits_to_keep=1)
        _wait(model)
        best = min(best, time.perf_counter() - started)
    return len(tokens) * shape.full(tokens.shape[1], logits_at=1) / best


def total(flops: Iterable[int]) -> float:
    return float(sum(flops))


def _mlp_weights(model: Model, layer: int) -> int:
    """Multiply-adds of one token in the MLP, from its weight matrices; of a mixture, the experts it visits."""
    block = model.bridge.blocks[layer]
    mlp = getattr(block, "mlp", None)
    if mlp is None:
        return 0
    config: Any = getattr(model.bridge.original_model, "config", None)
    n_experts = next(
        (int(v) for n in ("num_local_experts", "num_experts", "n_routed_experts") if (v := getattr(config, n, None))), 0
    )
    visited = int(getattr(config, "num_experts_per_tok", None) or 1)
    weights = 0
    for name, parameter in mlp.named_parameters():
        if parameter.ndim == 3 or (n_experts and ".experts." in name and parameter.ndim == 2):
            weights += parameter.numel() * visited // max(n_experts, 1)
        elif parameter.ndim == 2 and not name.endswith("bias"):
            weights += parameter.numel()
    return weights


def _wait(model: Model) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.1f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
