"""The bridge under test, as the probe sees it: run it, keep what it shows, say when two tensors agree.

Plumbing for `probe`, which holds the claims themselves. It never decides what a capability is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from workbench.models.model import Model

Hook = tuple[str, Callable[[Tensor, Any], Tensor | None]]
_POSITIONS = 10
SEED = 20


@dataclass
class Subject:
    """The bridge under test and what its plain forward showed."""

    bridge: TransformerBridge
    tokens: Int[Tensor, "1 pos"]
    n_heads: int
    tested: tuple[int, ...]  # layers
    precise: bool  # float32 or better
    seen: dict[str, Tensor] = field(default_factory=dict)  # hook name -> activation
    raw: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # layer -> input, output of the projection
    logits: Tensor = field(default_factory=lambda: torch.empty(0))

    def name(self, layer: int, hook: str) -> str:
        return f"blocks.{layer}.{hook}"

    def has(self, layer: int, hook: str) -> bool:
        return self.name(layer, hook) in self.bridge.hook_dict

    def projection(self, layer: int) -> torch.nn.Module:
        """The output projection itself, beneath the bridge."""
        return self.bridge.blocks[layer].attn.o.original_component

    def forward(self, hooks: Sequence[Hook] = (), *, rows: int = 1) -> Float[Tensor, "rows pos vocab"]:
        tokens = self.tokens.expand(rows, -1).contiguous()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TransformerLens warns where an edit is discarded; here it is measured
            with self.bridge.hooks(fwd_hooks=list(hooks)):
                return self.bridge(tokens, return_type="logits")

    def agree(self, got: Tensor, want: Tensor, *, without: Tensor | None = None) -> bool:
        """Equal to rounding; and, given the value `without` the edit, far closer than the edit is large.

        Half precision is judged by the trimmed mean: a few residual dimensions of large models are so big that their
        rounding alone exceeds what a head does to all the others.
        """
        size = _largest if self.precise else _trimmed_mean
        scale = max(size(want), 1e-6)
        error = size(got.float() - want.float())
        if without is None:
            return error <= (1e-4 if self.precise else 3e-2) * scale
        effect = size(want.float() - without.float())
        if self.precise:
            return error <= 1e-4 * scale and error <= max(1e-2 * effect, 1e-6 * scale)
        return error <= max(0.1 * effect, 0.5 * torch.finfo(want.dtype).eps * scale)


def _largest(x: Tensor) -> float:
    return x.float().abs().max().item()


def _trimmed_mean(x: Tensor) -> float:
    """Mean magnitude without the largest 1%."""
    magnitude = x.float().abs().flatten().sort().values
    return magnitude[: max(1, int(0.99 * len(magnitude)))].mean().item()


def ordinary_tokens(model: Model) -> Int[Tensor, "1 pos"]:
    """Random ordinary tokens: no special ones, which may stand for an image."""
    n_vocab = int(model.bridge.cfg.d_vocab)
    special = {int(i) for i in getattr(model.tokenizer, "all_special_ids", None) or ()}
    config = getattr(model.bridge.original_model, "config", None)
    for attribute in ("image_token_id", "image_token_index", "video_token_id", "audio_token_id", "pad_token_id"):
        value = getattr(config, attribute, None)
        special |= {int(value)} if isinstance(value, int) else set()
    ordinary = torch.tensor([i for i in range(n_vocab) if i not in special] or list(range(n_vocab)))
    generator = torch.Generator().manual_seed(SEED)
    n = max(2, min(_POSITIONS, model.n_ctx))
    return ordinary[torch.randint(len(ordinary), (1, n), generator=generator)].to(model.device)


def keep(store: dict[str, Tensor], name: str) -> Hook:
    """A hook that copies what it sees into `store`."""

    def copy(value: Tensor, hook: Any) -> None:  # noqa: ARG001
        store[name] = value.detach().clone()

    return name, copy


def plain_forward(subject: Subject, layers: list[int]) -> None:
    """Fill `seen`, `raw` and `logits`."""
    wanted = [subject.name(layer, "attn.hook_pattern") for layer in layers]
    for layer in subject.tested:
        wanted += [subject.name(layer, hook) for hook in ("attn.hook_z", "attn.hook_v", "hook_attn_out")]

    def keep_raw(layer: int) -> Callable[..., None]:
        def hook(_module: Any, args: tuple[Tensor, ...], out: Tensor) -> None:
            subject.raw[layer] = args[0].detach().clone(), out.detach().clone()

        return hook

    handles = [subject.projection(layer).register_forward_hook(keep_raw(layer)) for layer in subject.tested]
    try:
        subject.logits = subject.forward(
            [keep(subject.seen, name) for name in wanted if name in subject.bridge.hook_dict]
        )
    finally:
        for handle in handles:
            handle.remove()


def project(subject: Subject, layer: int, dz: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_model"]:
    """W_O dz, without the bias and for any kind of projection (Linear, Conv1D, quantised)."""
    projection = subject.projection(layer)
    return projection(dz) - projection(torch.zeros_like(dz))
