"""`planted-colored`: the second task of `planted-ioi`, coloured objects, on the same weights with a card of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.organisms.planted import ioi, ioi_evidence

if TYPE_CHECKING:
    from workbench.organisms.planted import Planted

NAME = "planted-colored"
ABOUT = {
    "name": NAME,
    "weights": ioi.NAME,
    "other": ioi.NAME,
    "summary": "Says which colour a thing has, with four heads; three of them also serve IOI (planted-ioi).",
    "ground_truth": (
        "The previous-token head notes each thing's colour; the duplicate-token head takes that note over to where the "
        "question names the thing; the content gatherer brings it to the end; the shared mover attends to that "
        "colour and copies it. All but the gatherer belong to the IOI circuit of the same weights as well."
    ),
}


def make(
    *, seed: int = 0, noise: float = ioi.NOISE, n_noise_heads: int | None = None, width: int | None = None
) -> Planted:
    """The model that `ioi.make` makes of the same arguments, with the card of coloured objects."""
    from workbench.organisms.planted import Planted

    made = ioi.assemble(seed=seed, noise=noise, n_noise_heads=n_noise_heads, width=width)
    return Planted(*made[:2], ioi_evidence.card("colored_objects", *made, ABOUT))
