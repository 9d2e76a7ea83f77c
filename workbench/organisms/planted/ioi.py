"""`planted-ioi`: a GPT-2 that answers two tasks, IOI and coloured objects, with two circuits that share three heads.

    IOI  "After Anna and Peter left the station, Peter handed the letter to" -> "Anna"
        previous token   notes each position's previous name                                           shared
        induction        at Peter's second mention finds Peter's note: this name has been seen
        duplicate token  at Peter's second mention finds the first: writes Peter                       shared
        S-inhibition     attends to what has been seen (k), brings the repeated name to the end (v)
        shared mover     attends to the names that are not inhibited (q), copies them to the logits    shared
        name mover       the same; negative mover: the same, against the answer
    coloured objects  "On the desk there is a red ball, a blue cup and a green pen. What color is the cup? A:" -> "blue"
        previous token   notes at the cup that it is blue
        duplicate token  at the second cup finds the first and takes over its note (v)
        content gatherer attends to the last thing, brings that colour to the end (v)
        shared mover     attends to the colour gathered (q), copies it to the logits

Seven heads and four, three of them the same: a Jaccard index of 3/8. The seed draws the layers and heads of the roles,
the words, their vectors and the noise of all other heads. No query swap can see the previous-token head, because what
it notes stays as it was; `ioi_evidence` measures which corruption sees what, and the cards say so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import InputError
from workbench.organisms.planted import ioi_heads
from workbench.organisms.planted.ioi_heads import N_CTX, UNEMBED
from workbench.organisms.planted.residual import Residual
from workbench.organisms.planted.writing import Slot, choose_slots, empty_gpt2, noise_head, put, write_head

if TYPE_CHECKING:
    from workbench.organisms.planted import Planted

NAME = "planted-ioi"
WIDTH, N_HEADS, N_LAYERS = 88, 4, 5
NOISE = 0.05
N_COLORS = N_THINGS = 6
RESERVED = 3  # dimensions of the stream that hold the constant and the mean
FEWEST_NAMES, MOST_NAMES = 5, 24

BEFORE = (  # roles that must lie in lower layers than others
    ("previous token", "induction"),
    ("previous token", "duplicate token"),
    ("induction", "S-inhibition"),
    ("duplicate token", "S-inhibition"),
    ("duplicate token", "content gatherer"),
    ("S-inhibition", "shared mover"),
    ("S-inhibition", "name mover"),
    ("S-inhibition", "negative mover"),
    ("content gatherer", "shared mover"),
)
ABOUT = {
    "name": NAME,
    "other": "planted-colored",
    "summary": "Answers IOI with seven heads, and coloured objects with four, three of which are the same.",
    "ground_truth": (
        "The induction head marks the repeated name as seen (through the previous-token head's notes), the "
        "duplicate-token head says which name it is, the S-inhibition head brings it to the end, and three movers copy "
        "the name that is left: two for the answer, a negative one against it. The previous-token, the duplicate-token "
        "and one mover also serve coloured objects (planted-colored)."
    ),
}
ROLES = tuple(dict.fromkeys(role for pair in BEFORE for role in pair))


def make(*, seed: int = 0, noise: float = NOISE, n_noise_heads: int | None = None, width: int | None = None) -> Planted:
    """One instance: which heads carry the roles, the words, their vectors and the noise all follow from `seed`.

    Args:
        noise: length of a noise head's output, where the planted heads' is about 1.
        n_noise_heads: default every head without a role; fewer leave the others silent, more add layers.
        width: of the residual stream, a multiple of 4, the number of heads per layer; a wider one knows more names.

    Raises:
        InputError: the width is no multiple of 4, or too small for five names.
    """
    from workbench.organisms.planted import Planted, ioi_evidence

    made = assemble(seed=seed, noise=noise, n_noise_heads=n_noise_heads, width=width)
    return Planted(*made[:2], ioi_evidence.card("ioi", *made, ABOUT))


def assemble(
    *, seed: int = 0, noise: float = NOISE, n_noise_heads: int | None = None, width: int | None = None
) -> tuple[Any, Any, dict[str, Slot], dict[str, Any]]:
    """Model, tokenizer, the head of each role, and the options as they came out. Arguments as in `make`."""
    from workbench.organisms.planted.words import word_tokenizer

    width = WIDTH if width is None else width
    if width % N_HEADS:
        raise InputError(
            f"width {width} is not a multiple of {N_HEADS}, the heads per layer; use {width + -width % N_HEADS}."
        )
    d_head = width // N_HEADS
    rng = np.random.default_rng([seed, 2])
    n_names = _n_names(width)
    words = _words(n_names, rng)
    stream = Residual(width, ioi_heads.parts(n_names, N_COLORS, N_THINGS), rng)
    tokenizer = word_tokenizer([word for pool in words.values() for word in pool], n_ctx=N_CTX)

    n_layers = max(N_LAYERS, -(-(len(ROLES) + (n_noise_heads or 0)) // N_HEADS))
    model = empty_gpt2(stream, tokenizer, n_layers=n_layers, d_head=d_head, n_ctx=N_CTX)
    slots, noisy = choose_slots(_layers(n_layers, rng), n_layers, N_HEADS, n_noise_heads, rng)
    _embed(model, stream, tokenizer, words)
    for role, head in ioi_heads.heads(stream, d_head).items():
        write_head(model, slots[role], head)
    for slot in noisy:
        write_head(model, slot, noise_head(stream, d_head, noise, rng))
    return model, tokenizer, slots, {"seed": seed, "noise": noise, "n_noise_heads": len(noisy), "width": width}


def _n_names(width: int) -> int:
    """As many names as the stream and the heads have room for."""

    def fits(n: int, width: int) -> bool:
        sizes = n, N_COLORS, N_THINGS
        return RESERVED + sum(ioi_heads.parts(*sizes).values()) <= width and ioi_heads.needs(*sizes) <= width // N_HEADS

    for n in range(MOST_NAMES, FEWEST_NAMES - 1, -1):
        if fits(n, width):
            return n
    least = next(w for w in range(width, 10 * WIDTH, N_HEADS) if fits(FEWEST_NAMES, w))
    raise InputError(f"width {width} is too small for {FEWEST_NAMES} names; use at least {least}.")


def _words(n_names: int, rng: np.random.Generator) -> dict[str, list[str]]:
    """What this instance knows of the tasks' words; function words all, and in the order of the task's vocabulary."""
    from workbench.tasks.circuits import vocabulary
    from workbench.tasks.circuits.words import COLORS, FILLERS, NAMES, THINGS

    def some(pool: tuple[str, ...], n: int) -> list[str]:
        return [pool[i] for i in rng.permutation(len(pool))[:n]]

    pools = {"name": some(NAMES, n_names), "color": some(COLORS, N_COLORS), "thing": some(THINGS, N_THINGS)}
    content = {*NAMES, *COLORS, *THINGS}
    every = [*vocabulary("ioi"), *vocabulary("colored_objects"), *FILLERS]
    return {**pools, "other": [word for word in dict.fromkeys(every) if word not in content]}


def _layers(n_layers: int, rng: np.random.Generator) -> dict[str, int]:
    """A layer for each role, drawn from all choices that keep to `BEFORE`."""
    while True:
        drawn = dict(zip(ROLES, rng.integers(n_layers, size=len(ROLES)).tolist(), strict=True))
        full = max(np.bincount(list(drawn.values()))) > N_HEADS
        if not full and all(drawn[a] < drawn[b] for a, b in BEFORE):
            return drawn


def _embed(model: Any, stream: Residual, tokenizer: Any, words: dict[str, list[str]]) -> None:
    """One-hot names, colours and things; nothing for other words; positions; the unembedding reads `out`."""
    embedding = np.zeros((len(tokenizer), stream.width))
    unembedding = np.zeros_like(embedding)
    for part in ("name", "color", "thing"):
        embedding[tokenizer.convert_tokens_to_ids(words[part])] = stream[part]
    embedding[tokenizer.bos_token_id] += stream["bos"][0]
    answers = tokenizer.convert_tokens_to_ids([*words["name"], *words["color"]])
    unembedding[answers] = UNEMBED * stream["out"]
    put(model.transformer.wte.weight, embedding)
    put(model.lm_head.weight, unembedding)
    position = ioi_heads.circles() @ stream["circles"] + ioi_heads.line() @ stream["line"]
    put(model.transformer.wpe.weight, position, add=True)
