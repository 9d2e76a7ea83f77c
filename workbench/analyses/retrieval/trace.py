"""Decode each needle sample once and keep, per step and head, the little that the scores need.

A hook on each layer's attention pattern sees single rows during decoding and reduces them at once: to the most
attended key, or to the attention mass on a few spans. No T x T pattern exists at any time, and logits are computed for
the last position only. What comes out is numpy; `score` does the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from workbench.analyses.retrieval.score import Span
from workbench.errors import CapabilityError
from workbench.primitives.decode import Prefilled, decode, prefill
from workbench.primitives.forward import forward
from workbench.primitives.hooks import Hook, hooked

if TYPE_CHECKING:
    from workbench.analyses.retrieval.params import RetrievalParams
    from workbench.models import Model
    from workbench.tasks.samples import NeedleSample


@dataclass
class Trace:
    """What one sample's decoding left behind.

    Attributes:
        generated: emitted token ids, the stopping one included.
        top_keys: `[step, layer, head]` most attended key of the row that predicts each emitted token; -1 where a layer
            has no attention pattern. Empty unless the variant needs it.
        mass: `[layer, head, 1 + controls]` mean attention mass on the needle and on each control span (`attention_mass`
            over the decoding rows, `qr` over the question's rows); NaN where a layer has no pattern.
    """

    generated: list[int] = field(default_factory=list)
    top_keys: np.ndarray | None = None
    mass: np.ndarray | None = None


def attention_layers(model: Model) -> list[int]:
    """Layers whose attention pattern can be read.

    Raises:
        CapabilityError: there is none.
    """
    layers = [i for i in range(model.n_layers) if _pattern(i) in model.bridge.hook_dict]
    if not layers:
        raise CapabilityError(
            f"{model.name} exposes no attention pattern to read retrieval scores from; use a decoder with attention."
        )
    return layers


def stop_rule(model: Model, variant: str) -> Callable[[int], bool]:
    """When to stop: at an end-of-sequence token; for `wu_compat` only where the reference code stops.

    That is at the token `<0x0A>` or at id 144 (the newline of one vocabulary), and never at end of sequence.
    """
    if variant == "wu_compat":
        newline = model.tokenizer.convert_tokens_to_ids("<0x0A>") if model.tokenizer is not None else None
        unknown = getattr(model.tokenizer, "unk_token_id", None)
        stops = {144} | ({newline} if newline is not None and newline != unknown else set())
    else:
        stops = set(end_tokens(model))
    return lambda token: token in stops


def end_tokens(model: Model) -> set[int]:
    """End-of-sequence ids that the tokenizer and the generation config name."""
    ends = [getattr(model.tokenizer, "eos_token_id", None)]
    configured = getattr(getattr(model.hf, "generation_config", None), "eos_token_id", None)
    ends += configured if isinstance(configured, (list, tuple)) else [configured]
    return {int(e) for e in ends if e is not None}


def traces(
    model: Model,
    samples: Sequence[NeedleSample],
    params: RetrievalParams,
    controls: Sequence[np.ndarray | None],
) -> Iterator[tuple[int, Trace]]:
    """Yield `(sample index, Trace)` as batches finish; not in order.

    `controls[i]` are sample i's control spans `[draws, 2]`, used by the mass variants.
    """
    layers = attention_layers(model)
    stop = stop_rule(model, params.variant)
    options: dict[str, Any] = {"batch_size": params.batch_size, "new_tokens": params.max_new_tokens}
    for batch in prefill(model, [s.tokens for s in samples], **options):
        spans = [_spans(samples[i].needle, controls[i], params.controls) for i in batch.index]
        columns = [span + n for span, n in zip(spans, batch.padding, strict=True)]
        watch = _Watch(model, layers, columns if params.variant == "attention_mass" else None)
        hooks = watch.hooks() if params.variant != "qr" else []
        on_step = watch.end_step if hooks else None
        texts = decode(model, batch, max_new_tokens=params.max_new_tokens, stop=stop, hooks=hooks, on_step=on_step)
        for row, i in enumerate(batch.index):
            found = Trace(texts[row])
            if params.variant == "qr":
                found.mass = _question_mass(model, layers, batch, row, samples[i].question, spans[row])
            elif params.variant == "attention_mass":
                found.mass = watch.mass(row, len(texts[row]))
            else:
                found.top_keys = watch.top_keys(row, len(texts[row]), batch.padding[row])
            yield i, found


class _Watch:
    """Reduces each decoding row of every head as it passes: argmax over keys, or mass on given spans."""

    def __init__(self, model: Model, layers: list[int], spans: list[np.ndarray] | None) -> None:
        self.shape = (model.n_layers, model.n_heads)
        self.layers, self.home = layers, model.device
        self.spans = None if spans is None else torch.as_tensor(np.stack(spans), device=model.device)
        self.now: dict[int, Tensor] = {}
        self.steps: list[np.ndarray] = []

    def hooks(self) -> list[Hook]:
        return [(_pattern(layer), self._reader(layer)) for layer in self.layers]

    def _reader(self, layer: int) -> Callable[[Tensor, object], None]:
        def read(pattern: Tensor, _: object) -> None:  # pattern [batch, head, 1, key]
            row = pattern[:, :, -1]
            found = row.argmax(-1) if self.spans is None else span_mass(row, self.spans.to(row.device))
            self.now[layer] = found.to(self.home)

        return read

    def end_step(self) -> None:
        step_values = torch.stack([self.now[layer] for layer in self.layers], dim=1)  # [batch, layer, head, ...]
        self.steps.append(step_values.cpu().numpy())

    def top_keys(self, row: int, n_steps: int, padding: int) -> np.ndarray:
        keys = np.full((n_steps, *self.shape), -1, dtype=np.int64)
        keys[:, self.layers] = np.stack([step[row] for step in self.steps[:n_steps]]) - padding
        return keys

    def mass(self, row: int, n_steps: int) -> np.ndarray:
        found = np.stack([step[row] for step in self.steps[:n_steps]]).mean(axis=0)
        return _spread(found, self.layers, self.shape)


def span_mass(rows: Tensor, spans: Tensor) -> Tensor:
    """Attention mass of `rows [batch, head, key]` on `spans [batch, span, 2]` -> `[batch, head, span]`, float64."""
    total = torch.nn.functional.pad(rows.double().cumsum(-1), (1, 0))  # [batch, head, key + 1]
    ends = spans.unsqueeze(1).expand(-1, rows.shape[1], -1, -1)  # [batch, head, span, 2]
    return total.gather(-1, ends[..., 1]) - total.gather(-1, ends[..., 0])


def _question_mass(
    model: Model, layers: list[int], batch: Prefilled, row: int, question: Span, spans: np.ndarray
) -> np.ndarray:
    """QRHead eq. 1: mean over the question's rows of their mass on the spans, from the cache up to the question."""
    shape = (model.n_layers, model.n_heads)
    if question[0] == question[1]:  # nothing follows the needle: no rows to score
        return np.full((*shape, len(spans)), np.nan)
    where = torch.as_tensor(spans[None], device=model.device)
    found: dict[int, Tensor] = {}

    def reader(layer: int) -> Callable[[Tensor, object], None]:
        def read(pattern: Tensor, _: object) -> None:  # [1, head, question, key]
            rows = pattern[0].transpose(0, 1)  # question positions as a batch
            here = where.to(rows.device).expand(rows.shape[0], -1, -1)
            found[layer] = span_mass(rows, here).mean(0).to(where.device)

        return read

    first, stop = (batch.padding[row] + position for position in question)
    cache = batch.row_cache(row, question[0])
    with hooked(model, [(_pattern(layer), reader(layer)) for layer in layers], copy=False):
        tokens = batch.tokens[row : row + 1, first:stop]
        forward(model, tokens, cache=cache, use_cache=True, logits_to_keep=1)
    return _spread(torch.stack([found[layer] for layer in layers]).cpu().numpy(), layers, shape)


def _spread(values: np.ndarray, layers: list[int], shape: tuple[int, int]) -> np.ndarray:
    """`[read layer, head, ...]` to `[layer, head, ...]`, NaN in layers without a pattern."""
    full = np.full((*shape, *values.shape[2:]), np.nan)
    full[layers] = values
    return full


def _spans(needle: Span, controls: np.ndarray | None, draws: int) -> np.ndarray:
    """The needle first, then `draws` control spans; an empty span stands in where no control fits."""
    if controls is None:
        controls = np.zeros((draws, 2), dtype=np.int64)
    return np.concatenate([np.array([needle], dtype=np.int64), controls])


def _pattern(layer: int) -> str:
    return f"blocks.{layer}.attn.hook_pattern"
