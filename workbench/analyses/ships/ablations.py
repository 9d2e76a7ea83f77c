"""What Ships and Sahara do to a head (Zhou et al. 2024, section 3.1), as a value that can be swept, held and decoded.

    uniform          A = softmax(eps q k^T / sqrt(d) + mask), z' = A V; eps = 0: the mean of the visible values
    uniform_k        the same for every query head of a kv group: what scaling the group's keys does
    scale            z' = eps z (the paper's scaling contribution)
    mean_over_heads  z' = mean of z over the heads of the layer

Scores are scaled where they are complete, after biases, norms, rotary embedding and soft-capping, so that q/k biases
and QK-norm cannot undo it. `uniform` at eps = 0 and `scale` are edits that the sweep engine knows; the others are
computed here. Nothing here ranks heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.primitives.algebra import visible
from workbench.primitives.hooks import Hook, hooked
from workbench.primitives.interventions import applied, scale, uniform
from workbench.primitives.sweep import Edit, Unit, all_heads, all_kv_groups

if TYPE_CHECKING:
    from workbench.analyses.ships.params import SafetyParams
    from workbench.models import Model

Head = tuple[int, int]


@dataclass(frozen=True)
class Ablation:
    """One way of ablating; `kind` and `epsilon` as in `SafetyParams`."""

    kind: str
    epsilon: float = 0.0

    @classmethod
    def of(cls, params: SafetyParams) -> Ablation:
        return cls(params.ablation, params.epsilon)

    @property
    def rows(self) -> Literal["head", "kv_group"]:
        """What a row of the head table is."""
        return "kv_group" if self.kind == "uniform_k" else "head"

    @property
    def edit(self) -> Edit | None:
        """The sweep engine's name for it; None where it has none."""
        if self.kind == "scale":
            return Edit("scale", alpha=self.epsilon)
        return Edit("uniform") if self.kind in ("uniform", "uniform_k") and not self.epsilon else None

    def units(self, model: Model) -> list[Unit]:
        """Everything that can be ablated alone."""
        return all_kv_groups(model) if self.rows == "kv_group" else all_heads(model)

    def width(self, model: Model) -> int:
        """Rows per layer."""
        return model.n_kv_heads if self.rows == "kv_group" else model.n_heads

    def row(self, model: Model, unit: Unit) -> Head:
        """(layer, head) or (layer, kv group) of a unit."""
        layer, head = unit[0]
        return (layer, model.kv_group(head)) if self.rows == "kv_group" else (layer, head)

    def heads(self, model: Model, rows: Iterable[Head]) -> tuple[Head, ...]:
        """The query heads of some rows, sorted."""
        if self.rows == "head":
            return tuple(sorted(rows))
        width = model.n_heads // model.n_kv_heads
        return tuple(sorted((layer, group * width + i) for layer, group in rows for i in range(width)))

    def require(self, model: Model) -> None:
        """Refuse a model on which the ablation would not mean what it says."""
        if self.kind in ("uniform", "uniform_k") and self.epsilon:
            model.require("pattern_edit_is_causal")

    @contextmanager
    def on(self, model: Model, heads: Sequence[Head]) -> Iterator[None]:
        """Ablate these query heads in every forward pass inside the block: prompts, chunks and decoding alike."""
        if not heads:
            yield
        elif self.kind == "mean_over_heads":
            layers = sorted({layer for layer, _ in heads})
            hooks = [(_name(at, "hook_z"), _mean_z([h for layer, h in heads if layer == at])) for at in layers]
            with hooked(model, hooks, copy=False):
                yield
        elif self.kind == "scale" or not self.epsilon:
            edit = scale(heads, self.epsilon) if self.kind == "scale" else uniform(heads)
            with applied(model, [edit]):
                yield
        else:
            hooks = []
            for at in sorted({layer for layer, _ in heads}):
                flat = _FlatPattern(model, self.epsilon, [h for layer, h in heads if layer == at])
                hooks += [(_name(at, "hook_attn_scores"), flat.see), (_name(at, "hook_pattern"), flat.edit)]
            with hooked(model, hooks, copy=False):
                yield

    @contextmanager
    def watched(self, model: Model, layers: Sequence[int], into: dict[int, Tensor]) -> Iterator[None]:
        """Where the sweep engine does not know the ablation: z' of every head of `layers`, of the last forward pass.

        To be opened outside of `on`, so that it sees what the layer made before the group's edits.
        """
        hooks: list[Hook] = []
        for layer in layers:
            if self.kind == "mean_over_heads":
                hooks.append((_name(layer, "hook_z"), _keep_mean(layer, into)))
            else:
                watch = _FlatValues(model, self.epsilon, layer, into)
                hooks += [(_name(layer, "hook_v"), watch.values), (_name(layer, "hook_attn_scores"), watch.scores)]
        with hooked(model, hooks, copy=False):
            yield


def flat_pattern(
    scores: Float[Tensor, "batch head pos key"], epsilon: float, model_dtype: torch.dtype
) -> Float[Tensor, "batch head pos key"]:
    """softmax(eps scores) over the visible keys, in float32 or better; zero rows where nothing is visible."""
    seen = visible(scores, model_dtype)
    precise = scores.to(torch.promote_types(scores.dtype, torch.float32)) * epsilon
    weights = torch.softmax(torch.where(seen, precise, -torch.inf), dim=-1)
    return torch.where(seen.any(dim=-1, keepdim=True), weights, 0.0)


class _FlatPattern:
    """Scales a layer's complete scores for some heads, by rewriting the pattern that was made of them."""

    def __init__(self, model: Model, epsilon: float, heads: list[int]):
        self.dtype, self.epsilon, self.heads = model.dtype, epsilon, heads
        self.new: Tensor | None = None

    def see(self, scores: Float[Tensor, "batch head pos key"], _: Any) -> None:
        self.new = flat_pattern(scores[:, self.heads], self.epsilon, self.dtype)

    def edit(self, pattern: Float[Tensor, "batch head pos key"], _: Any) -> Tensor:
        new, self.new = self.new, None
        assert new is not None  # scores fire before the pattern wherever an edit of the pattern is causal
        pattern = pattern.clone()
        pattern[:, self.heads] = torch.where(
            new.sum(-1, keepdim=True) > 0, new.to(pattern.dtype), pattern[:, self.heads]
        )
        return pattern


class _FlatValues:
    """z' = softmax(eps scores) V of every head of a layer."""

    def __init__(self, model: Model, epsilon: float, layer: int, into: dict[int, Tensor]):
        self.model, self.epsilon, self.layer, self.into = model, epsilon, layer, into
        self.v: Tensor | None = None

    def values(self, v: Float[Tensor, "batch pos kv_head d_head"], _: Any) -> None:
        self.v = v.detach()

    def scores(self, scores: Float[Tensor, "batch head pos key"], _: Any) -> None:
        v, self.v = self.v, None
        assert v is not None
        pattern = flat_pattern(scores.detach(), self.epsilon, self.model.dtype).to(v.dtype)
        per_head = v.repeat_interleave(pattern.shape[1] // v.shape[2], dim=2)
        self.into[self.layer] = torch.einsum("bhqk,bkhd->bqhd", pattern, per_head)


def _mean_z(heads: list[int]) -> Any:
    def edit(z: Float[Tensor, "batch pos head d_head"], _: Any) -> Tensor:
        new = z.clone()
        new[:, :, heads] = _mean(z)
        return new

    return edit


def _keep_mean(layer: int, into: dict[int, Tensor]) -> Any:
    def keep(z: Float[Tensor, "batch pos head d_head"], _: Any) -> None:
        into[layer] = _mean(z.detach()).expand_as(z)

    return keep


def _mean(z: Tensor) -> Tensor:
    precise = torch.promote_types(z.dtype, torch.float32)
    return z.to(precise).mean(dim=2, keepdim=True).to(z.dtype)


def _name(layer: int, point: str) -> str:
    return f"blocks.{layer}.attn.{point}"
