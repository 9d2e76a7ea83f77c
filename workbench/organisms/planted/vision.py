"""`planted-vision`: a LLaVA that names the colour of a flag, and expects a country's usual one.

The vision tower (CLIP, its layer empty) and the projector hand the mean red, green and blue of each patch to the text
model, a Llama in which four heads act wherever there is text; all others are noise.

    red, green, blue   layers 1, 2 and 3; attend to the image (to BOS when there is none) and write one channel each,
                       -1 to +1, into the subspace `seen`
    prior              layer 2; attends to the country and writes half its usual colour into the subspace `expected`

The colours are the corners c of the RGB cube, so the word that is said after "is" follows from

    logit(c) = 8 c . (seen + expected)

A channel that is seen at full contrast (1) outweighs what is expected (1/2); where nothing is seen, or too little of
it, the expectation speaks. So without the three heads the model names the usual colour, which is wrong by design of the
task; with pictures of a contrast below 1/2 it hallucinates, and doubling the three heads' outputs helps from 1/4 up.
After the colour comes a full stop, from a table of successors.

Noise heads read little (their outputs z are small) and amplify it on the way out: their z changes with the image as
every head's does, by a few hundredths of what the planted ones' does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.organisms.planted.residual import CONSTANT, Residual
from workbench.organisms.planted.silence import silenced
from workbench.organisms.planted.writing import (
    ROPE_THETA,
    Head,
    Slot,
    choose_slots,
    decoder_layers,
    noise_head,
    put,
    write_head,
)

if TYPE_CHECKING:
    from workbench.organisms.planted import Planted

NAME = "planted-vision"
WIDTH, D_HEAD, N_LAYERS, N_CTX = 64, 8, 4, 64
VISION_WIDTH, PATCH = 16, 4
NOISE = 0.02
QUIET = 0.03  # of a noise head's usual reading; its writing is as much louder
LAYER = {"red": 1, "green": 2, "blue": 3, "prior": 2}
IMAGE = ("red", "green", "blue")

SHARP = 60.0  # attention logit of what a head looks for
REST = 0.5  # of SHARP: attention logit of BOS
EXPECTED = 0.5  # what the prior writes of a channel, where an image head writes 1
STRENGTH = 2.0  # length of what means 1 in the stream, so that noise weighs less
LOUD = 8.0  # logit of one channel that is seen
SUCCESSOR = 30.0  # logit of what follows a colour or a full stop
_FREE = (1, 2)  # rows of q and k in which the rotary positions stand still (of pairs 0-4, 1-5, ...)
_N_CHANNELS = 3


def make(*, seed: int = 0, noise: float = NOISE, n_noise_heads: int | None = None, width: int | None = None) -> Planted:
    """One instance: which heads carry the roles, the subspaces and the noise all follow from `seed`.

    Args:
        noise: length of a noise head's output, where an image head's is 2.
        n_noise_heads: default every head without a role; the others then stay silent.
        width: of the residual stream, a multiple of 8; there is one head per layer for every 8.
    """
    from workbench.organisms.planted import Planted

    model, processor, slots, options = weights(seed=seed, noise=noise, n_noise_heads=n_noise_heads, width=width)
    return Planted(model, processor.tokenizer, _card(model, processor, slots, options), processor)


# ---- weights


def weights(
    *, seed: int = 0, noise: float = NOISE, n_noise_heads: int | None = None, width: int | None = None
) -> tuple[Any, Any, dict[str, Slot], dict[str, Any]]:
    """What `make` makes, without measuring it: model, processor, the head of each role, the options used."""
    rng = np.random.default_rng([seed, 4])
    parts = {"bos": 1, "image": 1, "text": 1, "country": 1, "is": 1, "colour": 1, "stop": 1}
    parts |= {"pixel": _N_CHANNELS, "usual": _N_CHANNELS, "seen": _N_CHANNELS, "expected": _N_CHANNELS}
    stream = Residual(WIDTH if width is None else width, parts, rng)
    processor = build_processor()
    model = _empty(stream, processor.tokenizer)
    n_heads = stream.width // D_HEAD
    slots, noisy = choose_slots(LAYER, N_LAYERS, n_heads, n_noise_heads, rng)

    _look(model, stream, rng)
    _speak(model, stream, processor.tokenizer)
    for channel, role in enumerate(IMAGE):
        value = stream["pixel"][channel : channel + 1]
        write_head(model, slots[role], _mover(stream, "image", value, STRENGTH * stream["seen"][channel : channel + 1]))
    write_head(model, slots["prior"], _mover(stream, "country", stream["usual"], STRENGTH * stream["expected"]))
    for slot in noisy:
        head = noise_head(stream, D_HEAD, noise, rng)
        write_head(model, slot, Head(q=head.q, k=head.k, v=QUIET * head.v, o=head.o / QUIET))
    options = {"seed": seed, "noise": noise, "n_noise_heads": len(noisy), "width": stream.width}
    return model, processor, slots, options


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
        image_mean=[0.5] * _N_CHANNELS,
        image_std=[0.5] * _N_CHANNELS,
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
    )


def _empty(stream: Residual, tokenizer: Any) -> Any:
    """A LLaVA of zeros whose norms pass their input on."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    from workbench.tasks import flags

    n_heads = stream.width // D_HEAD
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
        num_hidden_layers=N_LAYERS,
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


def _look(model: Any, stream: Residual, rng: np.random.Generator) -> None:
    """The mean of each channel over a patch (-1 to 1) through tower and projector into `pixel`, marked `image`."""
    inner = Residual(VISION_WIDTH, {"pixel": _N_CHANNELS}, rng)
    tower = model.model.vision_tower
    vision = getattr(tower, "vision_model", tower)
    means = np.einsum("cw,d->wcd", inner["pixel"], np.full(PATCH * PATCH, PATCH**-2.0))
    put(vision.embeddings.patch_embedding.weight, means.reshape(VISION_WIDTH, _N_CHANNELS, PATCH, PATCH))
    places = vision.embeddings.position_embedding.weight
    put(places, np.tile(inner.constant * CONSTANT, (places.shape[0], 1)))
    put(vision.pre_layrnorm.weight, inner.norm_weight)
    put(vision.post_layernorm.weight, inner.norm_weight)  # after the features are taken

    # GELU between two linear maps; gelu(x) - gelu(-x) = x
    projector = model.model.multi_modal_projector
    both = np.concatenate([inner["pixel"], -inner["pixel"]])
    put(projector.linear_1.weight[: len(both)], both)
    values = stream["pixel"].T
    put(projector.linear_2.weight[:, : len(both)], np.concatenate([values, -values], axis=1))
    put(projector.linear_2.bias, CONSTANT * stream.constant + stream["image"][0])


def _speak(model: Any, stream: Residual, tokenizer: Any) -> None:
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


def _mover(stream: Residual, sought: str, read: np.ndarray, written: np.ndarray) -> Head:
    """In text, attend to the tokens with the feature `sought` (else to BOS) and write what they hold in `read`."""
    q, k, v = (np.zeros((D_HEAD, stream.width)) for _ in range(3))
    o = np.zeros((stream.width, D_HEAD))
    a, b = _FREE
    q[a], k[a] = SHARP * stream["text"][0], stream[sought][0]
    q[b], k[b] = SHARP * REST * stream.bias, stream["bos"][0]
    v[: len(read)], o[:, : len(written)] = read, written.T
    return Head(q=q, k=k, v=v, o=o)


# ---- what is true of it


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


def _share(words: Sequence[str], right: Sequence[str]) -> float:
    return round(sum(a == b for a, b in zip(words, right, strict=True)) / len(right), 4)


@contextmanager
def _louder(model: Any, heads: Sequence[Slot], alpha: float) -> Iterator[None]:
    """Within the block the outputs of `heads` are `alpha` times what they were, in the weights."""
    parts = [
        decoder_layers(model)[layer].self_attn.o_proj.weight.detach()[:, h * D_HEAD : (h + 1) * D_HEAD]
        for layer, h in heads
    ]
    for part in parts:
        part.mul_(alpha)
    try:
        yield
    finally:
        for part in parts:
            part.div_(alpha)


def _card(model: Any, processor: Any, slots: dict[str, Slot], options: dict[str, Any]) -> dict[str, Any]:
    from workbench.organisms.planted.folder import describe
    from workbench.tasks import flags

    n_heads = model.config.text_config.num_attention_heads
    everything = [(layer, head) for layer in range(N_LAYERS) for head in range(n_heads)]
    image, prior = [slots[role] for role in IMAGE], [slots["prior"]]
    data = flags.flags(processor, 48, seed=1)
    pale = flags.flags(processor, 48, seed=1, contrast=0.35)
    shown = [sample.objects[0] for sample in data]  # type: ignore[index]
    usual = [sample.about or "" for sample in data]

    def rates(off: Sequence[Slot] = (), which: Any = data) -> dict[str, float]:
        with silenced(model, off):
            seen, blind = named(model, processor, which), named(model, processor, which, with_image=False)
        return {
            "names_the_colour_shown": _share(seen, shown),
            "names_the_usual_colour": _share(seen, usual),
            "names_the_usual_colour_without_image": _share(blind, usual),
        }

    figures: dict[str, Any] = {
        "metric": "share of 48 fresh flags, in another colour than the country's usual one",
        "intact": rates(),
        "without_the_image_heads": rates(image),
        "without_one_image_head": [rates([slot])["names_the_colour_shown"] for slot in image],
        "without_the_prior_head": rates(prior),
        "without_all_but_the_image_heads": rates([slot for slot in everything if slot not in image]),
        "pale": rates(which=pale),
    }
    with _louder(model, image, 2.0):
        figures["pale_with_the_image_heads_doubled"] = rates(which=pale)
    intact, gone, alone, blind = (
        figures[key]
        for key in (
            "intact",
            "without_the_image_heads",
            "without_all_but_the_image_heads",
            "without_the_prior_head",
        )
    )
    task = {"task": "flags", "n": 32}
    return {
        "name": NAME,
        "kind": "planted",
        "summary": "Names the colour of a flag: three heads carry what the image shows, one what the country suggests.",
        "task": {**task, "prompt": data[0].prompt, "vocabulary": len(processor.tokenizer)},
        "options": options,
        "ground_truth": (
            "Three heads carry the red, green and blue of the image to the text, one channel each. A fourth reads the "
            "country and expects its usual colour, half as strongly: without the three, without the image, or where "
            "the colour is pale, that is what the model says. No other head does anything useful."
        ),
        "model": describe(model),
        "accuracy": figures,
        "truths": [
            {
                "claim": "image",
                "data": task,
                "heads": sorted(list(slot) for slot in image),
                "optional": [],
                "roles": {role: [list(slots[role])] for role in IMAGE},
                "how": "planted",
                "evidence": f"{intact['names_the_colour_shown']:.0%} of flags named intact, "
                f"{gone['names_the_colour_shown']:.0%} with the three zeroed, "
                f"{alone['names_the_colour_shown']:.0%} with every other head zeroed",
            },
            {
                "claim": "prior",
                "data": {**task, "shows": "nothing"},
                "heads": [list(slot) for slot in prior],
                "optional": [],
                "roles": {"prior": [list(slots["prior"])]},
                "how": "planted",
                "evidence": f"without an image the usual colour is named in "
                f"{intact['names_the_usual_colour_without_image']:.0%} of cases, with it zeroed in "
                f"{blind['names_the_usual_colour_without_image']:.0%}",
            },
        ],
    }
