"""A LLaVA of zeros that sees colours and knows flags: what the planted vision models are written into.

The vision tower (CLIP, its layer empty) and the projector hand the mean red, green and blue of each patch to the text
model, a Llama. Words carry their features, the unembedding says the colour whose channels are `seen` and `expected`:

    logit(c) = LOUD c . (seen + expected)

After a colour comes a full stop, from a table of successors. Which heads move what is the business of the models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from workbench.organisms.planted.residual import CONSTANT, Residual
from workbench.organisms.planted.writing import ROPE_THETA, decoder_layers, put

D_HEAD, N_CTX = 8, 64
VISION_WIDTH, PATCH = 16, 4
N_CHANNELS = 3
PARTS = {"bos": 1, "image": 1, "text": 1, "country": 1, "is": 1, "colour": 1, "stop": 1}
PARTS |= dict.fromkeys(("pixel", "usual", "seen", "expected"), N_CHANNELS)

EXPECTED = 0.5  # what the prior writes of a channel, where an image head writes 1
STRENGTH = 2.0  # length of what means 1 in the stream, so that noise weighs less
LOUD = 8.0  # logit of one channel that is seen
SUCCESSOR = 30.0  # logit of what follows a colour or a full stop


def build_processor() -> Any:
    """One token per word; an image is scaled to 16 x 16 pixels and 16 tokens."""
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    from workbench.organisms.planted.words import word_tokenizer
    from workbench.tasks import flags

    tokenizer = word_tokenizer(flags.vocabulary(), n_ctx=N_CTX, more_special=["<image>"])
    tokenizer.padding_side = "left"
    side = flags.SIZE
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=[0.5] * N_CHANNELS,
        image_std=[0.5] * N_CHANNELS,
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
    )


def empty(stream: Residual, tokenizer: Any, *, n_layers: int, n_heads: int) -> Any:
    """A LLaVA of zeros whose norms pass their input on."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    from workbench.tasks import flags

    vision = CLIPVisionConfig(
        hidden_size=VISION_WIDTH,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=flags.SIZE,
        patch_size=PATCH,
        projection_dim=VISION_WIDTH,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=stream.width,
        intermediate_size=4,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_heads,
        head_dim=D_HEAD,
        max_position_embeddings=N_CTX,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(flags.SIZE // PATCH) ** 2,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,  # type: ignore[call-arg]
    )
    model: Any = LlavaForConditionalGeneration(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    for block in decoder_layers(model):
        put(block.input_layernorm.weight, stream.norm_weight)
        put(block.post_attention_layernorm.weight, stream.norm_weight)
    put(model.model.language_model.norm.weight, stream.final_norm_weight)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(tokenizer, name))
    return model


def look(
    model: Any,
    stream: Residual,
    rng: np.random.Generator,
    *,
    marked: Sequence[int] = (),
    mark: np.ndarray | None = None,
) -> None:
    """The mean of each channel over a patch (-1 to 1) through tower and projector into `pixel`, marked `image`.

    Args:
        marked: patches to whose tokens `mark` `[width]` is added, by their place alone.
    """
    parts = {"pixel": N_CHANNELS} if mark is None else {"pixel": N_CHANNELS, "mark": 1}
    inner = Residual(VISION_WIDTH, parts, rng)
    tower = model.model.vision_tower
    vision = getattr(tower, "vision_model", tower)
    means = np.einsum("cw,d->wcd", inner["pixel"], np.full(PATCH * PATCH, PATCH**-2.0))
    put(vision.embeddings.patch_embedding.weight, means.reshape(VISION_WIDTH, N_CHANNELS, PATCH, PATCH))
    places = vision.embeddings.position_embedding.weight
    at_places = np.tile(inner.constant * CONSTANT, (places.shape[0], 1))
    read, values = [inner["pixel"]], [stream["pixel"]]
    if mark is not None:
        at_places[[patch + 1 for patch in marked]] += inner["mark"]  # the first is the class token
        read.append(inner["mark"])
        values.append(mark[None])
    put(places, at_places)
    put(vision.pre_layrnorm.weight, inner.norm_weight)
    put(vision.post_layernorm.weight, inner.norm_weight)  # after the features are taken

    # GELU between two linear maps; gelu(x) - gelu(-x) = x
    projector = model.model.multi_modal_projector
    both = np.concatenate([*read, *(-rows for rows in read)])
    put(projector.linear_1.weight[: len(both)], both)
    written = np.concatenate(values).T
    put(projector.linear_2.weight[:, : len(both)], np.concatenate([written, -written], axis=1))
    put(projector.linear_2.bias, CONSTANT * stream.constant + stream["image"][0])


def speak(model: Any, stream: Residual, tokenizer: Any) -> None:
    """Words with their features; what the unembedding says of them."""
    from workbench.tasks.flags import COLOURS, USUAL

    ids = tokenizer.get_vocab()
    n = len(tokenizer)
    embedding = np.tile(CONSTANT * stream.constant + stream["text"][0], (n, 1))
    unembedding = np.zeros((n, stream.width))
    embedding[ids["<s>"]] += stream["bos"][0] - stream["text"][0]
    embedding[ids["is"]] += stream["is"][0]
    embedding[ids["."]] += stream["stop"][0]
    for country, colour in USUAL.items():
        embedding[ids[country]] += stream["country"][0] + EXPECTED * np.array(COLOURS[colour]) @ stream["usual"]
    both = (stream["seen"] + stream["expected"]) / STRENGTH
    for colour, channels in COLOURS.items():
        embedding[ids[colour]] += stream["colour"][0]
        unembedding[ids[colour]] += LOUD * np.array(channels) @ both + SUCCESSOR * (
            stream["is"][0] - stream["colour"][0] - stream["stop"][0]
        )
    unembedding[ids["."]] += 3 * SUCCESSOR * stream["colour"][0]
    unembedding[ids["</s>"]] += 3 * SUCCESSOR * stream["stop"][0]
    put(model.model.language_model.embed_tokens.weight, embedding)
    put(model.lm_head.weight, unembedding)


def named(model: Any, processor: Any, data: Any, *, with_image: bool = True) -> list[str]:
    """The word each prompt is answered with first, with or without its image."""
    import torch

    with torch.no_grad():
        if with_image:
            logits = model(**data.batch(processor).inputs(), logits_to_keep=1).logits[:, -1]
        else:
            rows = torch.tensor([sample.text_tokens for sample in data])  # prompts of one length
            logits = model(input_ids=rows, logits_to_keep=1).logits[:, -1]
    return processor.tokenizer.convert_ids_to_tokens(logits.argmax(-1).tolist())


def share(words: Sequence[str], right: Sequence[str]) -> float:
    """Of the words, how many are right."""
    return round(sum(a == b for a, b in zip(words, right, strict=True)) / len(right), 4)
