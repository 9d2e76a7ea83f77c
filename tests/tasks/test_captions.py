"""Drawn scenes are what they say they are; captions and questions about them are true."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.tasks.test_images import llava_processor
from workbench.errors import InputError
from workbench.tasks import captions, drawings
from workbench.tasks.captions import mentioned
from workbench.tasks.drawings import COMPANIONS, LEADERS, OBJECTS, Scene, Thing


@pytest.fixture(scope="module")
def processor() -> Any:
    return llava_processor()


# ---- drawings


def test_every_object_is_a_leader_or_a_companion() -> None:
    colours_and_shapes = {f"{c} {s}" for c in drawings.COLOURS for s in drawings.SHAPES}
    assert set(OBJECTS) == colours_and_shapes and len(OBJECTS) == 16
    assert not set(LEADERS) & set(COMPANIONS.values())


def test_scenes_come_from_their_seed() -> None:
    assert drawings.scenes(5, seed=3) == drawings.scenes(5, seed=3) != drawings.scenes(5, seed=4)
    assert drawings.scenes(5, seed=3) == drawings.scenes(9, seed=3)[:5]
    first, again = (drawings.draw(drawings.scenes(1, seed=3)[0]) for _ in range(2))
    assert first.tobytes() == again.tobytes()


@pytest.mark.parametrize("asked", [0.2, 0.8])
def test_companions_appear_as_often_as_asked(asked: float) -> None:
    scenes = drawings.scenes(800, seed=1, cooccurrence=asked)
    leaders = [(scene, leader) for scene in scenes for leader in LEADERS if leader in scene.objects]
    together = np.mean([COMPANIONS[leader] in scene.objects for scene, leader in leaders])
    assert abs(together - asked) < 0.05
    assert all(len(set(scene.objects)) == len(scene.objects) for scene in scenes)
    assert {len(scene.objects) for scene in scenes} >= {1, 2, 3, 4}
    with pytest.raises(InputError, match="must be probabilities"):
        drawings.scenes(1, cooccurrence=asked + 1)


@pytest.mark.parametrize("size", [48, 96])
def test_every_object_has_its_colour_and_its_own_shape(size: int) -> None:
    masks = {}
    paper = np.asarray(drawings.draw(Scene((), 220, 5), size=size)).astype(int)
    for name in OBJECTS:
        picture = np.asarray(drawings.draw(Scene((Thing(name, 0.5, 0.5, 0.14),), 220, 5), size=size)).astype(int)
        changed = (picture != paper).any(-1)
        strongest = {"red": {0}, "green": {1}, "blue": {2}, "yellow": {0, 1}}[name.split()[0]]
        colour = picture[size // 2, size // 2]
        assert {i for i in range(3) if colour[i] > 150} == strongest
        assert (picture[changed] == colour).all()
        masks[name] = changed
    shapes = {shape: masks[f"red {shape}"] for shape in drawings.SHAPES}
    assert all((masks[name] == shapes[name.split()[1]]).all() for name in OBJECTS)
    area = shapes["circle"].sum()
    for a in shapes:
        assert all(a == b or (shapes[a] ^ shapes[b]).sum() > 0.1 * area for b in shapes)


def test_drawn_objects_do_not_overlap() -> None:
    for scene in drawings.scenes(100, seed=2):
        for i, a in enumerate(scene.things):
            for b in scene.things[i + 1 :]:
                assert max(abs(a.x - b.x), abs(a.y - b.y)) > 0.25


# ---- captions


def test_mentioned_reads_objects_as_chair_does() -> None:
    assert mentioned("I see : red circle , blue square , red circle , nothing more .") == ("red circle", "blue square")
    assert mentioned("Two Blue Squares; a red, circle") == ("blue square",)
    assert mentioned("a hot dog on two buses", ["dog", "hot dog", "bus"]) == ("hot dog", "bus")
    assert mentioned("a hotdog or a category", ["dog", "cat"]) == ()
    assert mentioned("anything", []) == ()


def test_a_true_caption_mentions_what_is_drawn(processor: Any) -> None:
    data = captions.captions(processor, 20, seed=5)
    assert all(set(mentioned(s.reference or "")) == set(s.objects or ()) for s in data)
    assert data.vocabulary == OBJECTS and data.describe()["recipe"]["task"] == "captions"
    assert data.digest() == captions.captions(processor, 20, seed=5).digest()
    assert data.digest() != captions.captions(processor, 20, seed=6).digest()
    assert {word for s in data for word in (s.reference or "").split()} <= set(captions.vocabulary())


def test_a_larger_canvas_shows_the_same_scene(processor: Any) -> None:
    small, large = captions.captions(processor, 2, seed=5), captions.captions(processor, 2, seed=5, size=336)
    assert large[0].image.size == (336, 336) and small[0].objects == large[0].objects


# ---- questions


@pytest.mark.parametrize("kind", captions.NEGATIVES)
def test_questions_are_half_yes_and_their_answers_true(processor: Any, kind: str) -> None:
    data = captions.objects(processor, 40, negatives=kind, seed=6)
    assert [s.answer for s in data] == ["yes", "no"] * 20
    for sample in data:
        drawn = sample.objects or ()
        assert (sample.about in drawn) == (sample.answer == "yes")
        assert sample.group == kind and f"Is there a {sample.about} ?" in sample.prompt
        if sample.answer == "no" and kind == "popular":
            assert sample.about in captions.popular()
        if sample.answer == "no" and kind == "adversarial":
            assert sample.about in {COMPANIONS.get(o) for o in drawn}


def test_kinds_of_negatives_take_turns(processor: Any) -> None:
    data = captions.objects(processor, 12, seed=6)
    assert [s.group for s in data] == [kind for kind in captions.NEGATIVES for _ in range(2)] * 2
    assert len(data.only("popular")) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n must be a whole number"),
        ({"negatives": "adverserial"}, "Did you mean 'adversarial'"),
        ({"negatives": ()}, "at least one of"),
        ({"prompt": "Is it there ?"}, "{object}"),
        ({"negatives": "adversarial", "cooccurrence": 1.0}, "no companion is ever absent"),
        ({"size": 4}, "size must be a whole number of at least 16"),
    ],
)
def test_impossible_options_are_refused(processor: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        captions.objects(processor, **{"n": 4, **options})
