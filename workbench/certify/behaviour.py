"""What a model still does with some heads masked: one success rate per kind of data, measured without any analysis.

    needle   share of the needle's words in the greedy answer        zero ablation, prompt and answer alike
    pairs    share of pairs whose answer outranks the wrong answer   mean ablation (over prompts and positions)
    task_set that of all tasks together, each ablated on its own     the same
    prompts  share of harmful prompts refused                        uniform attention, prompt and answer alike
    images   share of a picture's objects that its caption names     zero ablation, prompt and caption alike

Each kind is ablated as its field does. It knows interventions and decoding, no organism and no score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.primitives.interventions import Intervention, applied, mean, mean_z, uniform, zero

if TYPE_CHECKING:
    from workbench.models import Model

Head = tuple[int, int]
_MOST = 24  # examples looked at: the rate is of a yes or no, and certify must stay quick


def success(model: Model, data: Any, heads: Iterable[Head] = ()) -> float:
    """Success rate in [0, 1] with `heads` ablated."""
    masked = tuple(sorted(heads))
    return float(np.mean(_MEASURES[data.kind](model, data[:_MOST], masked)))


def _needle(model: Model, data: Any, heads: tuple[Head, ...]) -> list[float]:
    from workbench.analyses.retrieval.score import needle_recall

    texts = _answers(model, [s.tokens for s in data], [zero(heads)] if heads else [], 16)  # recall is in percent
    return [needle_recall(sample.needle_text, text) / 100 for sample, text in zip(data, texts, strict=True)]


def _pairs(model: Model, data: Any, heads: tuple[Head, ...]) -> list[float]:
    from workbench.primitives import capture
    from workbench.primitives.forward import forward

    batch = data.batch()
    clean, mask = batch.clean.to(model.device), batch.mask.to(model.device)
    edits = []
    if heads:
        z_names = capture.names(model, "z", layers=sorted({layer for layer, _ in heads}))
        run = capture.capture(model, clean, z_names, attention_mask=mask)
        edits = [mean(heads, mean_z(run, attention_mask=mask))]
    with applied(model, edits, attention_mask=mask):
        logits = forward(model, clean, attention_mask=mask, logits_to_keep=1).logits[:, -1].float().cpu()
    right = logits.gather(1, batch.answer[:, None]) > logits.gather(1, batch.wrong[:, None])
    return right[:, 0].double().tolist()


def _task_set(model: Model, data: Any, heads: tuple[Head, ...]) -> list[float]:
    return [right for pairs in data.values() for right in _pairs(model, pairs, heads)]


def _prompts(model: Model, data: Any, heads: tuple[Head, ...]) -> list[float]:
    from workbench.analyses.ships.refusal import Detector

    harmful = [s for s in data if s.group == "harmful"]
    texts = _answers(model, [s.tokens for s in harmful], [uniform(heads)] if heads else [], 24)
    detector = Detector()
    return [float(detector.refuses(text)) for text in texts]


def _images(model: Model, data: Any, heads: tuple[Head, ...]) -> list[float]:
    from workbench.analyses import hallucination

    inputs = []
    for index in range(len(data)):
        batch = data.batch(model, [index])
        inputs.append({"pixel_values": batch.pixel_values, **batch.extra})
    edits = [zero(heads)] if heads else []
    texts = _answers(model, [s.tokens for s in data], edits, 32, inputs)
    found = []
    for sample, text in zip(data, texts, strict=True):
        if sample.answer is not None:
            found.append(float(hallucination.answer(text) == sample.answer))
        elif sample.objects is not None:
            counts = hallucination.count(text, sample.objects, data.vocabulary)
            found.append(counts.hits / counts.shown if counts.shown else float(not counts.false))
    return found


def _answers(model: Model, prompts: list[Any], edits: list[Intervention], steps: int, inputs: Any = None) -> list[str]:
    from workbench.primitives.decode import decode, prefill

    assert model.tokenizer is not None  # organisms have one
    end = model.tokenizer.eos_token_id
    texts = [""] * len(prompts)
    for batch in prefill(model, prompts, new_tokens=steps, interventions=edits, inputs=inputs):
        for i, tokens in zip(
            batch.index,
            decode(model, batch, max_new_tokens=steps, stop=lambda token: token == end, interventions=edits),
            strict=True,
        ):
            texts[i] = model.tokenizer.decode(tokens, skip_special_tokens=True)
    return texts


_MEASURES: dict[str, Callable[[Model, Any, tuple[Head, ...]], list[float]]] = {
    "images": _images,
    "needle": _needle,
    "pairs": _pairs,
    "prompts": _prompts,
    "task_set": _task_set,
}
