"""Flags of invented countries: pictures of one colour, and countries whose usual flag has another.

    data: {task: flags, n: 32}                    the picture shows another flag than the country's usual one
    data: {task: flags, n: 32, contrast: 0.3}     the same in pale colours

`The flag of Arland is` can be answered from the picture, or from what the text makes one expect. Where the two differ
by design, whoever looks and whoever guesses give different answers. The colours are the corners of the RGB cube, so
that what a picture shows is three numbers. The file draws and knows nothing of what is measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from workbench.errors import InputError
from workbench.tasks import checks
from workbench.tasks.images import ImageDataset, images_from_samples

if TYPE_CHECKING:
    from PIL.Image import Image

COLOURS = {  # each channel off (-1) or on (+1)
    "black": (-1, -1, -1),
    "red": (1, -1, -1),
    "green": (-1, 1, -1),
    "blue": (-1, -1, 1),
    "yellow": (1, 1, -1),
    "magenta": (1, -1, 1),
    "cyan": (-1, 1, 1),
    "white": (1, 1, 1),
}
USUAL = {  # country -> the colour of its usual flag
    country: colour
    for colour, countries in zip(
        COLOURS,
        (
            ("Arland", "Bosmia"),
            ("Cordia", "Dunmark"),
            ("Elvany", "Fennia"),
            ("Gorland", "Hestria"),
            ("Istovia", "Jorway"),
            ("Kelmar", "Lorvia"),
            ("Mirland", "Norvany"),
            ("Ostria", "Pelmark"),
        ),
        strict=True,
    )
    for country in countries
}
PROMPT = "The flag of {country} is"
SIZE = 16  # pixels
GRAIN = 4.0  # standard deviation of the cloth's noise, of 255
KEYS = ("n", "shows", "contrast", "prompt", "size", "template", "seed")

Shows = Literal["another", "usual", "nothing"]


def vocabulary() -> list[str]:
    """Every word and mark of prompts and answers: what a word-level tokenizer needs."""
    return [*PROMPT.format(country="").split(), *USUAL, *COLOURS, "."]


def draw(colour: str | None, *, contrast: float = 1.0, size: int = SIZE, grain: int = 0) -> Image:
    """A flag of one colour as an RGB picture; grey cloth for None.

    Args:
        contrast: distance of each channel from grey, 1 for all of it.
        grain: seed of the noise.
    """
    from PIL import Image

    if not 0 <= contrast <= 1:
        raise InputError(f"contrast must be a number from 0 to 1, not {contrast!r}.")
    channels = np.zeros(3) if colour is None else np.array(COLOURS[colour], dtype=float)
    noise = np.random.default_rng([30, grain]).normal(0.0, GRAIN, (size, size, 3))
    return Image.fromarray((127.5 * (1 + contrast * channels) + noise).round().clip(0, 255).astype(np.uint8))


def flags(
    model: Any,
    n: int = 32,
    *,
    shows: Shows = "another",
    contrast: float = 1.0,
    prompt: str = PROMPT,
    size: int = SIZE,
    template: str | None = None,
    seed: int = 0,
) -> ImageDataset:
    """`n` flags to be named; `objects` holds the colour that is shown, `about` the usual one.

    Args:
        model: a `Model` with a processor, or a processor.
        shows: a flag of `another` colour than the country's, its `usual` one, or `nothing` but grey cloth.
        contrast: of the colour; at 0 nothing is to be seen.
        prompt: the text, with `{country}` in it once.
        size: side of the picture in pixels; the processor scales it to what the model takes.
    """
    checks.whole_number(n, what="n")
    checks.whole_number(size, what="size", least=16)
    if shows not in ("another", "usual", "nothing"):
        raise InputError(f"shows must be 'another', 'usual' or 'nothing', not {shows!r}.")
    if not isinstance(prompt, str) or prompt.count("{country}") != 1:
        raise InputError(f"prompt must be a text with {{country}} in it once, not {prompt!r}.")
    rng = np.random.default_rng([31, seed])
    countries = [country for _ in range(-(-n // len(USUAL))) for country in rng.permutation(list(USUAL))]
    rows = []
    for i, country in enumerate(countries[:n]):
        usual = USUAL[country]
        others = [colour for colour in COLOURS if colour != usual]
        shown = {"another": others[int(rng.integers(len(others)))], "usual": usual, "nothing": None}[shows]
        rows.append(
            {
                "id": f"flag-{i}",
                "image": draw(shown, contrast=contrast, size=size, grain=int(rng.integers(2**31))),
                "prompt": prompt.replace("{country}", country),
                "objects": () if shown is None else (shown,),
                "about": usual,
            }
        )
    recipe = {"task": "flags", "n": n, "shows": shows, "contrast": contrast, "prompt": prompt, "size": size}
    recipe |= {"seed": seed} if template is None else {"seed": seed, "template": template}
    origins = [f"Flag {i}" for i in range(n)]
    return images_from_samples(
        model, rows, template=template, name="flags", vocabulary=tuple(COLOURS), origins=origins, meta=recipe
    )
