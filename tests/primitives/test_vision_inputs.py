"""Images through forward, capture, prefill and decode: what the raw Hugging Face model gives, with the cache on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.tiny import tiny
from tests.tiny_vision import ARCHITECTURES, pictures, tiny_vision, tiny_vision_hf
from workbench.errors import InputError
from workbench.primitives.capture import capture, names
from workbench.primitives.decode import decode, prefill
from workbench.primitives.forward import forward, image_token
from workbench.primitives.interventions import zero
from workbench.tasks.images import images_from_samples

PROMPTS = ("the cat is in", "red fish and bird saw", "one two", "the cat is in the house")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def case(request: Any) -> tuple[Any, Any, Any, list[dict[str, Any]]]:
    """Model, raw twin, data, and what goes beside each prompt; prompts 0 and 3 share image and beginning."""
    model, raw = tiny_vision(request.param), tiny_vision_hf(request.param)
    shown = pictures(3)
    rows = [{"image": p, "prompt": q} for p, q in zip([*shown, shown[0]], PROMPTS, strict=True)]
    data = images_from_samples(model, rows)
    return model, raw, data, [beside(data, model, i) for i in range(len(data))]


def beside(data: Any, model: Any, index: int) -> dict[str, Any]:
    batch = data.batch(model, [index])
    return {"pixel_values": batch.pixel_values, **batch.extra}


def test_logits_are_the_raw_models(case: Any) -> None:
    model, raw, data, inputs = case
    for i, sample in enumerate(data):
        ids = torch.tensor([sample.tokens])
        expected = raw(input_ids=ids, **inputs[i]).logits
        torch.testing.assert_close(forward(model, ids, inputs=inputs[i]).logits, expected, rtol=1e-5, atol=1e-5)
    batch = data.batch(model)
    together = forward(
        model,
        batch.tokens,
        attention_mask=batch.mask.long(),
        inputs={"pixel_values": batch.pixel_values, **batch.extra},
        logits_to_keep=1,
    ).logits
    for i, sample in enumerate(data):
        alone = raw(input_ids=torch.tensor([sample.tokens]), **inputs[i]).logits[:, -1]
        torch.testing.assert_close(together[i], alone, rtol=1e-4, atol=1e-5)


def test_decoding_with_the_cache_is_running_everything_again(case: Any) -> None:
    model, raw, data, inputs = case
    shared = [inputs[0], inputs[1], inputs[2], inputs[0]]  # one object: the prefix is computed once
    for given in (inputs, shared):
        for batch in prefill(model, [sample.tokens for sample in data], inputs=given):
            for i, said in zip(batch.index, decode(model, batch, max_new_tokens=5, stop=lambda _: False), strict=True):
                ids = torch.tensor([data[i].tokens])
                for token in said:
                    types = {}
                    if "token_type_ids" in inputs[i]:
                        types["token_type_ids"] = (ids == image_token(model)).long()
                    logits = raw(input_ids=ids, **{**inputs[i], **types}, use_cache=False).logits[0, -1]
                    assert token == int(logits.argmax())
                    ids = torch.cat([ids, torch.tensor([[token]])], dim=1)


def test_capture_sees_what_a_hook_on_the_raw_module_sees(case: Any) -> None:
    model, raw, data, inputs = case
    ids = torch.tensor([data[1].tokens])
    seen: list[torch.Tensor] = []
    handle = raw.model.language_model.layers[1].self_attn.o_proj.register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    raw(input_ids=ids, **inputs[1])
    handle.remove()
    name = names(model, "z", layers=[1])
    z = capture(model, ids, name, inputs=inputs[1])[name[0]]
    torch.testing.assert_close(z.flatten(-2), seen[0], rtol=1e-5, atol=1e-5)


def test_interventions_reach_the_prompt(case: Any) -> None:
    """Gemma 3 repeats itself whatever happens, so the keys of the layer above are compared, not the tokens."""
    model, raw, data, inputs = case
    d = model.d_head

    def zero_head(_: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        z = args[0].clone()
        z[..., d : 2 * d] = 0
        return (z, *args[1:])

    layers = raw.model.language_model.layers
    for batch in prefill(model, [data[1].tokens], inputs=[inputs[1]], interventions=[zero([(0, 1)])]):
        ours = batch.cache.layers[-1].values
        handle = layers[0].self_attn.o_proj.register_forward_pre_hook(zero_head)
        theirs = raw(input_ids=torch.tensor([data[1].tokens]), **inputs[1], use_cache=True).past_key_values
        handle.remove()
        plain = raw(input_ids=torch.tensor([data[1].tokens]), **inputs[1], use_cache=True).past_key_values
        torch.testing.assert_close(ours, theirs.layers[-1].values[:, :, :-1], rtol=1e-4, atol=1e-5)
        assert (plain.layers[-1].values[:, :, :-1] - ours).abs().max() > 1e-3


def test_images_and_tokens_must_belong_together(case: Any) -> None:
    model, _, data, inputs = case
    ids = torch.tensor([data[0].tokens])
    with pytest.raises(InputError, match="no pixel_values were given"):
        forward(model, ids)
    with pytest.raises(InputError, match="hold no image token"):
        forward(model, torch.tensor([data[0].text_tokens]), inputs=inputs[0])
    with pytest.raises(InputError, match="1 inputs were given for 2 prompts"):
        next(prefill(model, [s.tokens for s in data[:2]], inputs=inputs[:1]))
    with pytest.raises(InputError, match="reads text only"):
        forward(tiny("llama", probe=False), torch.tensor([[5, 6]]), inputs=inputs[0])
    assert image_token(model) in data[0].tokens and image_token(tiny("gpt2", probe=False)) is None
