"""The synthetic English: deterministic, and answers never occur in its filler."""

from __future__ import annotations

import re
from itertools import islice

from workbench.tasks import prose


def test_text_is_the_same_for_the_same_seed_and_grows_at_its_end() -> None:
    assert prose.text(500, seed=3) == prose.text(500, seed=3) != prose.text(500, seed=4)
    assert prose.text(2000, seed=3).startswith(prose.text(500, seed=3))
    assert len(prose.text(2000)) >= 1999


def test_this_text_is_what_seed_zero_has_always_said() -> None:
    assert prose.text(40, seed=0) == "The polite merchant wandered past the field."


def test_answer_words_never_occur_in_filler_or_question() -> None:
    said = set(re.findall(r"\w+", " ".join(islice(prose.sentences(1), 4000))))
    asked = set(
        re.findall(r"\w+", " ".join(prose.QUESTION.format(attribute=a, owner="", answer="") for a in prose.ATTRIBUTES))
    )
    assert not set(prose.ANSWER_WORDS) & (said | asked | set(prose.OWNERS))
    assert not set(prose.OWNERS) & said
    assert len(set(prose.ANSWER_WORDS)) == len(prose.ANSWER_WORDS)


def test_the_vocabulary_covers_everything_the_world_can_say() -> None:
    spoken = " ".join([*islice(prose.sentences(2), 4000), *(" ".join(n.values()) for n in prose.needles(300))])
    assert set(re.findall(r"\w+|[^\w\s]+", spoken)) <= set(prose.vocabulary())


def test_needles_hold_their_answer_once_and_use_every_owner_before_repeating_one() -> None:
    made = prose.needles(2 * len(prose.OWNERS), seed=5)
    assert made == prose.needles(2 * len(prose.OWNERS), seed=5)
    assert len({n["answer"] for n in made}) == len(made)
    for n in made:
        words = n["answer"].split()
        assert n["needle"].count(n["answer"]) == 1 and n["answer"] not in n["question"]
        assert len(words) in prose.ANSWER_LENGTHS and len(set(words)) == len(words)
    first = [re.search(r"of (\w+) is", n["needle"]).group(1) for n in made[: len(prose.OWNERS)]]  # type: ignore[union-attr]
    assert sorted(first) == sorted(prose.OWNERS)


def test_held_out_pairs_and_training_pairs_are_disjoint() -> None:
    def pairs(held_out: bool) -> set[tuple[str, str]]:
        made = prose.needles(400, seed=1, held_out=held_out)
        return {(re.search(r"of (\w+) is", n["needle"]).group(1), n["answer"].split()[0]) for n in made}  # type: ignore[union-attr]

    held, trained = pairs(True), pairs(False)
    assert not held & trained
    assert all(prose.is_held_out(*pair) for pair in held) and not any(prose.is_held_out(*pair) for pair in trained)
