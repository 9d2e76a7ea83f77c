"""The three image heads of `planted-vision` carry the picture, its prior head the expectation, no other does either."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoProcessor, LlavaForConditionalGeneration

import workbench as wb
from workbench import organisms
from workbench.organisms import planted
from workbench.organisms.planted import vision
from workbench.tasks import flags

NAME = "planted-vision"
Head = tuple[int, int]


def every_head(model: Any) -> list[Head]:
    text = model.config.text_config
    return [(layer, h) for layer in range(text.num_hidden_layers) for h in range(text.num_attention_heads)]


@contextmanager
def off(model: Any, heads: Sequence[Head]) -> Iterator[None]:
    """The heads' inputs to the output projection are 0; plain hooks on the raw modules."""
    d = model.config.text_config.head_dim
    handles = []

    def zero(which: list[int]) -> Any:
        def hook(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            z = args[0].clone()
            z[..., which] = 0
            return (z, *args[1:])

        return hook

    for index, layer in enumerate(model.model.language_model.layers):
        which = [h * d + i for at, h in heads if at == index for i in range(d)]
        if which:
            handles.append(layer.self_attn.o_proj.register_forward_pre_hook(zero(which)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def said(model: Any, processor: Any, data: Any, *, with_image: bool = True) -> list[str]:
    """First word after each prompt."""
    inputs = data.batch(processor).inputs()
    if not with_image:
        inputs = {"input_ids": torch.tensor([sample.text_tokens for sample in data])}
    with torch.no_grad():
        ids = model(**inputs).logits[:, -1].argmax(-1)
    return processor.tokenizer.convert_ids_to_tokens(ids.tolist())


def share(words: list[str], right: list[str]) -> float:
    return sum(a == b for a, b in zip(words, right, strict=True)) / len(right)


def test_the_shipped_folder_is_what_the_generator_makes() -> None:
    fresh, card = planted.make(NAME), organisms.card(NAME)
    stored = LlavaForConditionalGeneration.from_pretrained(organisms.path(NAME)).state_dict()
    made = fresh.model.state_dict()
    assert set(stored) == set(made)
    for name, values in stored.items():
        torch.testing.assert_close(values, made[name], rtol=1e-5, atol=1e-5)
    assert [{**t, "evidence": ""} for t in card["truths"]] == [{**t, "evidence": ""} for t in fresh.card["truths"]]
    assert card["model"] == fresh.card["model"] and card["options"] == fresh.card["options"]
    assert (organisms.path(NAME) / "model.safetensors").stat().st_size < 600_000


def test_every_capability_holds_and_the_processor_comes_along() -> None:
    model = wb.load_model(f"organism:{NAME}")
    assert not model.capabilities.missing
    assert type(model.processor).__name__ == "LlavaProcessor"


def test_whole_answers_are_a_colour_and_a_full_stop() -> None:
    folder = organisms.path(NAME)
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    processor: Any = AutoProcessor.from_pretrained(folder)
    data = flags.flags(processor, 6)
    batch = data.batch(processor)
    out = model.generate(**batch.inputs(), max_new_tokens=6, do_sample=False)
    texts = processor.tokenizer.batch_decode(out[:, batch.tokens.shape[1] :], skip_special_tokens=True)
    assert texts == [f"{sample.objects[0]}." for sample in data]
    assert (out[:, -1] == processor.tokenizer.eos_token_id).all()


@pytest.mark.parametrize("seed", range(20))
def test_exactly_the_image_heads_show_it(seed: int) -> None:
    model, processor, slots, _ = vision.weights(seed=seed)
    data = flags.flags(processor, 48, seed=1000 + seed)
    shown, usual = [s.objects[0] for s in data], [s.about for s in data]
    image, prior = [slots[role] for role in vision.IMAGE], slots["prior"]
    others = [head for head in every_head(model) if head not in image]
    assert len(others) == 29

    assert share(said(model, processor, data), shown) >= 0.99
    with off(model, image):
        words = said(model, processor, data)
        assert share(words, shown) <= 0.05 and share(words, usual) >= 0.99
    with off(model, others):
        assert share(said(model, processor, data), shown) >= 0.9
    for head in image:  # each carries one channel: without it the expectation decides that one
        with off(model, [head]):
            assert 0.2 <= share(said(model, processor, data), shown) <= 0.7

    assert share(said(model, processor, data, with_image=False), usual) >= 0.99
    blank = flags.flags(processor, 48, shows="nothing", seed=1000 + seed)
    assert share(said(model, processor, blank), [s.about for s in blank]) >= 0.99
    with off(model, [prior]):
        assert share(said(model, processor, data), shown) >= 0.99
        assert share(said(model, processor, blank), [s.about for s in blank]) <= 0.5
    with off(model, [head for head in every_head(model) if head != prior]):
        assert share(said(model, processor, blank), [s.about for s in blank]) >= 0.9


def test_pale_flags_are_taken_for_usual_ones() -> None:
    model, processor, _, _ = vision.weights(seed=3)
    data = flags.flags(processor, 32, contrast=0.35)
    assert share(said(model, processor, data), [s.about for s in data]) >= 0.99
    strong = flags.flags(processor, 32, contrast=0.7)
    assert share(said(model, processor, strong), [s.objects[0] for s in strong]) >= 0.99


def test_instances_differ_and_can_be_chosen() -> None:
    assert len({tuple(vision.weights(seed=seed)[2].values()) for seed in range(6)}) > 3
    model, processor, slots, options = vision.weights(seed=5, n_noise_heads=6, width=80, noise=0.01)
    assert len(every_head(model)) == 40 and options == {"seed": 5, "noise": 0.01, "n_noise_heads": 6, "width": 80}
    data = flags.flags(processor, 24)
    assert share(said(model, processor, data), [s.objects[0] for s in data]) == 1.0
    heads = [model.model.language_model.layers[layer].self_attn.o_proj.weight for layer, _ in every_head(model)]
    silent = sum(not heads[i][:, h * 8 : h * 8 + 8].any() for i, (_, h) in enumerate(every_head(model)))
    assert silent == 40 - 6 - len(slots)
