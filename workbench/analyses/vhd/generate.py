"""Greedy captions with heads reinforced while they are written, one cached pass over prompt and tokens (VHR).

`Reinforcement` finds the heads as the paper does: the prompt without its image runs first; then, while the prompt with
its image is read, each layer's heads are compared at the last position, those above the median are multiplied by alpha
at every position, and the next layer sees the result. The heads stay as they are for the rest of the caption, or are
found again at every token (`refresh`), for which the run without image goes along, never scaled. `Factors` multiplies
heads that are known beforehand: random ones, zeros, none. Whatever it is, one set of hooks serves all forward passes.

It never knows what the captions are about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import DynamicCache

from workbench.analyses.vhd.branches import Branch, Padded
from workbench.analyses.vhd.params import Variant
from workbench.analyses.vhd.score import select
from workbench.primitives.capture import names
from workbench.primitives.decode import require_finite
from workbench.primitives.forward import forward, image_token
from workbench.primitives.hooks import Hook, hooked

if TYPE_CHECKING:
    from workbench.models import Model


@dataclass
class Factors:
    """Multiply z of each head by `values` at every position, in the prompt and in what follows.

    Attributes:
        values: `[row, layer, head]`; layers whose factors are all 1 get no hook.
    """

    values: Float[Tensor, "row layer head"]

    def layers(self) -> tuple[int, ...]:
        return tuple(i for i in range(self.values.shape[1]) if bool((self.values[:, i] != 1).any()))

    def __call__(self, layer: int, z: Tensor) -> Tensor:
        return z * self.values[:, None, layer, :, None].to(z)


@dataclass
class Reinforcement:
    """Multiply the heads that see the image by `alpha`, in `at` layers.

    Attributes:
        refresh: find the heads at every step, not at the first alone.
        found: `[row, head]` by layer after the first step: which heads were multiplied.
    """

    alpha: float
    at: tuple[int, ...]
    variant: Variant = "paper"
    rule: bool = True
    refresh: bool = False
    found: dict[int, Bool[Tensor, "row head"]] = field(default_factory=dict)
    _blind: dict[int, Float[Tensor, "row head d_head"]] = field(default_factory=dict)
    _factor: dict[int, Tensor] = field(default_factory=dict)

    def layers(self) -> tuple[int, ...]:
        return self.at

    def remember(self, layer: int, z: Tensor) -> None:
        """Head outputs without the image, at the last position."""
        self._blind[layer] = z[:, -1].clone()
        self._factor.pop(layer, None)

    def __call__(self, layer: int, z: Tensor) -> Tensor:
        factor = self._factor.get(layer)
        if factor is None:
            heads = select(z[:, -1], self._blind[layer], variant=self.variant, rule=self.rule)
            self.found.setdefault(layer, heads)
            factor = torch.where(heads, self.alpha, 1.0).to(z.dtype)[:, None, :, None]
            self._factor[layer] = factor
        return z * factor


@dataclass
class Written:
    """What was generated.

    Attributes:
        tokens: new tokens of each row, without the end-of-sequence token.
        forced: the same with it, where it came: what a teacher-forced pass continues the prompt by.
        logits: `[row, step, vocab]` when asked for; rows that had ended go on undefined.
    """

    tokens: list[list[int]]
    forced: list[list[int]]
    logits: Tensor | None = None


def write(
    model: Model,
    image: Branch,
    *,
    max_new_tokens: int,
    ends: frozenset[int],
    change: Factors | Reinforcement | None = None,
    text: Branch | None = None,
    keep_logits: bool = False,
) -> Written:
    """Continue each prompt greedily until an end token, `max_new_tokens`, or the end of the model's context.

    Args:
        text: the prompts without their images; what `Reinforcement` compares with.
    """
    with torch.no_grad():
        seeing = _Run(model, image.padded())
        blind = None if not isinstance(change, Reinforcement) or text is None else _Run(model, text.padded())
        layers = () if change is None else change.layers()
        phase = _Phase()
        hooks: list[Hook] = [
            (name, phase.hook(layer, change))
            for layer, name in zip(layers, names(model, "z", layers=layers), strict=True)
        ]
        n_rows = len(image.rows)
        forced: list[list[int]] = [[] for _ in range(n_rows)]
        kept: list[Tensor] = []
        # each row has the room that it has alone: a longer neighbour must not end its caption early
        room = [model.n_ctx - len(row) + 1 if model.n_ctx else max_new_tokens for row in image.rows]
        current: Tensor | None = None
        with hooked(model, hooks, copy=False):
            for step in range(min(max_new_tokens, max(room))):
                fits = torch.tensor([step < n for n in room])
                if blind is not None and (step == 0 or (isinstance(change, Reinforcement) and change.refresh)):
                    phase.blind = True
                    blind.step(current, fits)
                    phase.blind = False
                logits = seeing.step(current, fits)
                if keep_logits:
                    kept.append(logits.clone())
                going = [step < n and (not row or row[-1] not in ends) for row, n in zip(forced, room, strict=True)]
                require_finite(model, logits, going)
                current = logits.argmax(dim=-1, keepdim=True)
                for row, token in enumerate(current[:, 0].tolist()):
                    if going[row]:
                        forced[row].append(token)
                # a row that ended at an image mark does not read it, as there is no picture to put there
                current = current.masked_fill(current == image.slot.token_id, image.slot.pad)
                if all(step + 1 >= n or row[-1] in ends for row, n in zip(forced, room, strict=True)):
                    break
    tokens = [row[:-1] if row and row[-1] in ends else row for row in forced]
    return Written(tokens, forced, torch.stack(kept, dim=1) if kept else None)


class _Phase:
    """Tells the hooks which of the two runs is computed."""

    def __init__(self) -> None:
        self.blind = False

    def hook(self, layer: int, change: Any) -> Any:
        def edit(z: Tensor, _: Any) -> Tensor | None:
            if self.blind:
                return change.remember(layer, z)
            return change(layer, z)

        return edit


class _Run:
    """One cached run: the prompt at the first step, a token at each that follows."""

    def __init__(self, model: Model, padded: Padded) -> None:
        self.model, self.prompt = model, padded
        self.cache = DynamicCache()
        self.mask = padded.attention_mask
        self.position = None if padded.position_ids is None else padded.position_ids[:, -1:]

    def step(self, current: Tensor | None, fits: Bool[Tensor, " row"]) -> Float[Tensor, "row vocab"]:
        """Logits of the next token, after the prompt (None) or after one more token `[row, 1]`.

        Rows whose token does not fit the context do not see it; what they say is undefined.
        """
        given: dict[str, Any] = {"cache": self.cache, "use_cache": True, "logits_to_keep": 1}
        if current is None:
            out = forward(self.model, self.prompt.tokens, **self.prompt.options(), **given)
        else:
            if self.mask is not None:
                self.mask = torch.cat([self.mask, fits[:, None].to(self.mask)], dim=1)
            if self.position is not None:
                self.position = self.position + fits[:, None].to(self.position)
            out = forward(self.model, current, attention_mask=self.mask, position_ids=self.position, **given)
        return out.logits[:, -1]


def end_tokens(model: Model) -> frozenset[int]:
    """End-of-sequence ids that the tokenizer and the generation config name, and the mark of an image.

    No text can go on behind the mark of a picture that is not there.
    """
    configured = getattr(getattr(model.hf, "generation_config", None), "eos_token_id", None)
    ends = [getattr(model.tokenizer, "eos_token_id", None), image_token(model)]
    ends += configured if isinstance(configured, list | tuple) else [configured]
    return frozenset(int(end) for end in ends if end is not None)


def as_text(model: Model, tokens: Sequence[int]) -> str:
    """Tokens as text, without special ones."""
    tokenizer: Any = model.tokenizer
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True))
