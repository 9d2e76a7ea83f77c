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

from workbench.organisms.planted.llava import (
    D_HEAD,
    PARTS,
    STRENGTH,
    build_processor,
    empty,
    look,
    named,
    share,
    speak,
)
from workbench.organisms.planted.residual import Residual
from workbench.organisms.planted.silence import silenced
from workbench.organisms.planted.writing import Head, Slot, choose_slots, decoder_layers, noise_head, write_head

if TYPE_CHECKING:
    from workbench.organisms.planted import Planted

NAME = "planted-vision"
WIDTH, N_LAYERS = 64, 4
NOISE = 0.02
QUIET = 0.03  # of a noise head's usual reading; its writing is as much louder
LAYER = {"red": 1, "green": 2, "blue": 3, "prior": 2}
IMAGE = ("red", "green", "blue")

SHARP = 60.0  # attention logit of what a head looks for
REST = 0.5  # of SHARP: attention logit of BOS
_FREE = (1, 2)  # rows of q and k in which the rotary positions stand still (of pairs 0-4, 1-5, ...)


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
    stream = Residual(WIDTH if width is None else width, PARTS, rng)
    processor = build_processor()
    n_heads = stream.width // D_HEAD
    model = empty(stream, processor.tokenizer, n_layers=N_LAYERS, n_heads=n_heads)
    slots, noisy = choose_slots(LAYER, N_LAYERS, n_heads, n_noise_heads, rng)

    look(model, stream, rng)
    speak(model, stream, processor.tokenizer)
    for channel, role in enumerate(IMAGE):
        value = stream["pixel"][channel : channel + 1]
        write_head(model, slots[role], _mover(stream, "image", value, STRENGTH * stream["seen"][channel : channel + 1]))
    write_head(model, slots["prior"], _mover(stream, "country", stream["usual"], STRENGTH * stream["expected"]))
    for slot in noisy:
        head = noise_head(stream, D_HEAD, noise, rng)
        write_head(model, slot, Head(q=head.q, k=head.k, v=QUIET * head.v, o=head.o / QUIET))
    options = {"seed": seed, "noise": noise, "n_noise_heads": len(noisy), "width": stream.width}
    return model, processor, slots, options


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
            "names_the_colour_shown": share(seen, shown),
            "names_the_usual_colour": share(seen, usual),
            "names_the_usual_colour_without_image": share(blind, usual),
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
