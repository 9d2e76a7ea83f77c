"""Flags: pictures that contradict what the country suggests, the same for the same seed, refused when unusable."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from workbench.errors import InputError
from workbench.organisms.planted.llava import build_processor
from workbench.tasks import flags, resolve


@pytest.fixture(scope="module")
def processor() -> Any:
    return build_processor()


def test_the_picture_shows_another_colour_than_the_usual_one(processor: Any) -> None:
    data: Any = resolve(processor, {"task": "flags", "n": 40}, seed=3)
    assert len(data) == 40 and data.vocabulary == tuple(flags.COLOURS)
    for sample in data:
        (colour,) = sample.objects
        country = next(name for name in flags.USUAL if name in sample.prompt)
        assert sample.about == flags.USUAL[country] != colour
        mean = np.asarray(sample.image, dtype=float).mean(axis=(0, 1)) / 127.5 - 1
        assert (np.sign(mean) == flags.COLOURS[colour]).all() and (abs(mean) > 0.95).all()
    assert {s.about for s in data} == set(flags.COLOURS)  # all countries take turns
    assert resolve(processor, {"task": "flags", "n": 40}, seed=3).digest() == data.digest()
    assert resolve(processor, {"task": "flags", "n": 40, "seed": 4}).digest() != data.digest()


def test_contrast_and_grey_cloth(processor: Any) -> None:
    pale = flags.flags(processor, 4, contrast=0.3)
    assert abs(np.asarray(pale[0].image, dtype=float) / 127.5 - 1).mean() == pytest.approx(0.3, abs=0.02)
    nothing = flags.flags(processor, 4, shows="nothing")
    assert nothing[0].objects == () and abs(np.asarray(nothing[0].image, dtype=float).mean() - 127.5) < 2
    usual = flags.flags(processor, 4, shows="usual")
    assert all(s.objects == (s.about,) for s in usual)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shows": "flag"}, "must be 'another'"),
        ({"contrast": 2}, "contrast must be"),
        ({"prompt": "The flag is"}, "country"),
        ({"n": 0}, "n must"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_an_unusable_option_is_named(processor: Any, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve(processor, {"task": "flags", **options})
