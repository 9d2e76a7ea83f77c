"""`planted-sinks`: a LLaVA with visual attention sinks, whose massive dimension and sink tokens are known.

It names flags as `planted-vision` does. In addition one coordinate of the residual stream is massive, M = 8 C, at BOS
and at two patches of the image (by their place, whatever the picture shows), and at no other token:

    |x_d| / RMS(x) = sqrt(width) M / sqrt(M^2 + C^2)    21.0 there; the constant's two coordinates have 15.0 elsewhere

RMS norms shrink the rest of such a token to an eighth: it draws attention and says next to nothing. In every head the
query is text:

    red, green, blue   layers 2, 3 and 3; attend to the image, a third of it to its two sinks, and write one channel
    staring            layers 2 and 3; attend to the sinks of the image and write nothing
    prior              layer 2; attends to the country and expects its usual colour
    all others         rest on BOS, the sink of the text, more than on anything else, and make noise

So the first three are image-centric in the sense of visual attention sinks (enough attention on the image, enough of
that off its sinks), the staring ones give the image as much attention and are not. Of a channel the image heads write
0.72 (the sinks' own part shrunk); moving three fifths of the sinks' attention makes that 0.89. A flag of contrast 0.62
is therefore taken for the country's usual one (0.44 < 1/2) until attention is redistributed (0.55).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.organisms.planted.llava import (
    D_HEAD,
    PARTS,
    PATCH,
    STRENGTH,
    build_processor,
    empty,
    look,
    named,
    share,
    speak,
)
from workbench.organisms.planted.residual import CONSTANT, Residual
from workbench.organisms.planted.silence import silenced
from workbench.organisms.planted.writing import Head, Slot, choose_slots, decoder_layers, noise_head, put, write_head

if TYPE_CHECKING:
    from workbench.organisms.planted import Planted

NAME = "planted-sinks"
WIDTH, N_LAYERS, N_HEADS = 448, 5, 4  # narrower than 400, no coordinate exceeds 20 times its RMS
NOISE, QUIET = 0.02, 0.03
LAYER = {"red": 2, "green": 3, "blue": 3, "prior": 2, "staring": 2, "staring too": 3}
IMAGE = ("red", "green", "blue")
PALE = 0.62

DIMENSION = 2  # reserved by `Residual(unread=True)`: no noise head reads it, the final norm drops it
MASSIVE = 8 * CONSTANT
N_SINKS = 2  # of the image
SHRUNK = CONSTANT / np.hypot(MASSIVE, CONSTANT)  # what a norm leaves of a sink's other features
SHARP = 60.0  # attention logit of what a head looks for
DRAWN = 0.3  # of an image head's attention, what the image's sinks draw
RESTING, CALM = 9.0, 0.1  # attention logit of BOS in a noise head; of what others usually get there
_FREE = (1, 2)  # rows of q and k in which the rotary positions stand still (of pairs 0-4, 1-5, ...)


def make(*, seed: int = 0, noise: float = NOISE, n_noise_heads: int | None = None, width: int | None = None) -> Planted:
    """One instance: heads, subspaces, sink patches and noise all follow from `seed`.

    Args:
        noise: length of a noise head's output, where an image head's is 1.3.
        n_noise_heads: default every head without a role; the others then stay silent.
        width: of the residual stream; below 404 the massive coordinate does not exceed 20 times the RMS.
    """
    from workbench.organisms.planted import Planted

    model, processor, slots, options = weights(seed=seed, noise=noise, n_noise_heads=n_noise_heads, width=width)
    return Planted(model, processor.tokenizer, _card(model, processor, slots, options), processor)


# ---- weights


def weights(
    *, seed: int = 0, noise: float = NOISE, n_noise_heads: int | None = None, width: int | None = None
) -> tuple[Any, Any, dict[str, Slot], dict[str, Any]]:
    """What `make` makes, without measuring it: model, processor, the head of each role, the options used."""
    from workbench.tasks import flags

    rng = np.random.default_rng([seed, 5])
    stream = Residual(WIDTH if width is None else width, PARTS, rng, unread=True)
    processor = build_processor()
    model = empty(stream, processor.tokenizer, n_layers=N_LAYERS, n_heads=N_HEADS)
    slots, noisy = choose_slots(LAYER, N_LAYERS, N_HEADS, n_noise_heads, rng)
    n_patches = (flags.SIZE // PATCH) ** 2
    patches = sorted(rng.permutation(n_patches)[:N_SINKS].tolist())

    massive = np.eye(stream.width)[DIMENSION]
    look(model, stream, rng, marked=patches, mark=MASSIVE * massive)
    speak(model, stream, processor.tokenizer)
    put(model.model.language_model.embed_tokens.weight[processor.tokenizer.bos_token_id], MASSIVE * massive, add=True)

    sink = massive / (MASSIVE * SHRUNK)  # reads 1 at a sink
    odds = np.log(DRAWN / (1 - DRAWN) * (n_patches - N_SINKS) / N_SINKS)
    image = stream["image"][0]
    balanced = image + (1 + odds / SHARP - SHRUNK) * sink  # 1 at the image, 1 and a little at its sinks, 0.9 at BOS
    for channel, role in enumerate(IMAGE):
        value, written = (stream[part][channel : channel + 1] for part in ("pixel", "seen"))
        write_head(model, slots[role], _seeker(stream, balanced, value, STRENGTH * written))
    for role in ("staring", "staring too"):
        write_head(model, slots[role], _seeker(stream, sink + image / 2, image[None], 0 * image[None]))
    expecting = _seeker(stream, stream["country"][0], stream["usual"], STRENGTH * stream["expected"])
    write_head(model, slots["prior"], expecting)
    for slot in noisy:
        write_head(model, slot, _resting(stream, noise_head(stream, D_HEAD, noise, rng)))
    options = {"seed": seed, "noise": noise, "n_noise_heads": len(noisy), "width": stream.width, "patches": patches}
    return model, processor, slots, options


def _seeker(stream: Residual, sought: np.ndarray, read: np.ndarray, written: np.ndarray) -> Head:
    """In text, attend to where the row `sought` reads most and write what is there in `read`."""
    q, k, v = (np.zeros((D_HEAD, stream.width)) for _ in range(3))
    o = np.zeros((stream.width, D_HEAD))
    q[_FREE[0]], k[_FREE[0]] = SHARP * stream["text"][0], sought
    v[: len(read)], o[:, : len(written)] = read, written.T
    return Head(q=q, k=k, v=v, o=o)


def _resting(stream: Residual, head: Head) -> Head:
    """A noise head that gives most of its attention to BOS, reads little and amplifies it."""
    q, k = CALM * head.q, head.k.copy()
    q[_FREE[1]], k[_FREE[1]] = RESTING * stream.bias, stream["bos"][0] / SHRUNK
    return Head(q=q, k=k, v=QUIET * head.v, o=head.o / QUIET)


# ---- what is true of it


@contextmanager
def _blind_to_sinks(model: Any, heads: Sequence[Slot]) -> Iterator[None]:
    """Within the block these heads' keys do not read the massive coordinate, so that sinks draw nothing."""
    parts = [
        decoder_layers(model)[layer].self_attn.k_proj.weight.detach()[h * D_HEAD : (h + 1) * D_HEAD, DIMENSION]
        for layer, h in heads
    ]
    before = [part.clone() for part in parts]
    for part in parts:
        part.zero_()
    try:
        yield
    finally:
        for part, old in zip(parts, before, strict=True):
            part.copy_(old)


def _card(model: Any, processor: Any, slots: dict[str, Slot], options: dict[str, Any]) -> dict[str, Any]:
    from workbench.organisms.planted.folder import describe
    from workbench.tasks import flags

    image = [slots[role] for role in IMAGE]
    staring = [slots[role] for role in ("staring", "staring too")]
    data = flags.flags(processor, 48, seed=1)
    pale = flags.flags(processor, 48, seed=1, contrast=PALE)
    shown, usual = [sample.objects[0] for sample in data], [sample.about or "" for sample in data]  # type: ignore[index]

    def rates(which: Any) -> dict[str, float]:
        words = named(model, processor, which)
        return {"names_the_colour_shown": share(words, shown), "names_the_usual_colour": share(words, usual)}

    figures: dict[str, Any] = {
        "metric": "share of 48 fresh flags, in another colour than the country's usual one",
        "intact": rates(data),
        "pale": rates(pale),
    }
    with silenced(model, image):
        figures["without_the_image_heads"] = rates(data)
    with silenced(model, staring):
        figures["without_the_staring_heads"] = rates(data)
    with _blind_to_sinks(model, image):
        figures["pale_with_image_heads_that_sinks_do_not_draw"] = rates(pale)
    intact, gone = (figures[key]["names_the_colour_shown"] for key in ("intact", "without_the_image_heads"))
    task = {"task": "flags", "n": 32}
    roles = {**{role: [list(slots[role])] for role in IMAGE}, "staring": [list(slot) for slot in staring]}
    return {
        "name": NAME,
        "kind": "planted",
        "summary": "Names the colour of a flag, with visual attention sinks: two image tokens that draw attention and "
        "say nothing.",
        "task": {**task, "prompt": data[0].prompt, "vocabulary": len(processor.tokenizer)},
        "options": options,
        "ground_truth": (
            "One coordinate of the residual stream is massive at BOS and at two image tokens, and nowhere else. Three "
            "heads attend to the image, a third to its sinks, and carry a channel each; two stare at the sinks; "
            "one expects the country's usual colour; all others rest on BOS. Pale flags are named right only when the "
            "sinks draw less."
        ),
        "model": describe(model),
        "accuracy": figures,
        "sinks": {"dimensions": [DIMENSION], "image_tokens": options["patches"], "text_tokens": [0]},
        "truths": [
            {
                "claim": claim,
                "data": task,
                "heads": sorted(list(slot) for slot in image),
                "optional": [],
                "roles": roles,
                "how": "planted",
                "evidence": f"{intact:.0%} of flags named intact, {gone:.0%} with the three zeroed",
            }
            for claim in ("image_centric", "image")
        ],
    }
