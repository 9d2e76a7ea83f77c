"""The synthetic English of the needle task: filler sentences, needles about secret codes, and their vocabulary.

Everything is drawn from a seed with the standard library's generator, so a haystack is the same on every machine. The
words that answers are made of never occur in filler sentences, so that an answer can only be copied from its needle;
this is what makes recall a measure of retrieval. The trained organism `retrieval` speaks exactly this language. The
file knows words only: no tokenizer and no model.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ADJECTIVES = _words(
    "old young tall quiet clever happy tired brave gentle busy kind poor rich strong careful hungry lonely proud shy "
    "small great famous polite stubborn"
)
PERSONS = _words(
    "baker farmer teacher doctor sailor painter tailor miller hunter shepherd gardener merchant singer dancer writer "
    "judge nurse soldier captain cook driver guard child woman man boy girl widow neighbour uncle aunt cousin"
)
MOTIONS = _words("walked ran went travelled hurried wandered returned rode climbed drove marched came strolled crept")
PATHS = _words("to from near behind through towards past")
PLACES = _words(
    "market village river forest church school garden bridge station harbour castle mill farm field mountain valley "
    "lake shop library theatre hospital kitchen cellar tower square road beach island barn inn"
)
ACTIONS = _words(
    "bought sold found lost carried cleaned repaired opened closed watched borrowed kept brought took made built "
    "washed wanted needed liked"
)
THINGS = _words(
    "bread table chair letter book coat hat boat horse cart door window box bag cup plate knife rope lamp clock map "
    "picture blanket bottle wheel fence wall apple cake ticket"
)
QUALITIES = _words("warm cold long wet dry heavy light clean dirty empty full broken new")
MANNERS = _words("slowly quickly quietly gladly often never always")
WEATHERS = _words("rain snow wind storm fog sun")
TIMES = _words("morning evening afternoon night spring summer autumn winter")

TEMPLATES = (
    "The {adjective} {person} {motion} {path} the {place}.",
    "The {person} {manner} {action} {a_thing} near the {place}.",
    "In the {time}, the {person} {action} {a_thing} and {motion} {path} the {place}.",
    "The {thing} was {quality} but the {place} was {quality}.",
    "When the {weather} came, the {adjective} {person} {motion} {path} the {place}.",
    "The {person} who {motion} {path} the {place} {action} the {quality} {thing}.",
    "Nobody saw the {person} behind the {quality} {place}.",
    "After the {weather}, the {person} and the {person} {motion} {path} the {place}.",
)
_SLOTS = {
    "adjective": ADJECTIVES,
    "person": PERSONS,
    "motion": MOTIONS,
    "path": PATHS,
    "place": PLACES,
    "action": ACTIONS,
    "thing": THINGS,
    "quality": QUALITIES,
    "manner": MANNERS,
    "weather": WEATHERS,
    "time": TIMES,
}

OWNERS = _words(
    "Mara Tobias Helena Oskar Ingrid Felix Nadia Bruno Clara Hugo Sofia Anton Greta Emil Paula Victor Irene Marcus "
    "Julia Conrad Lydia Stefan Agnes Walter Rosa Pavel Diana Simon Edith Leon Nora Gustav Alma Boris Vera Martin Elsa "
    "Roman Iris Casper"
)
ATTRIBUTES = ("secret code", "hidden message", "private motto")
ANSWER_WORDS = _words(
    "amber violin copper raven marble cinnamon falcon velvet ginger pelican granite saffron tulip walrus cobalt maple "
    "lobster trumpet orchid silver tiger pepper coral bamboo crystal otter lemon zebra ivory cactus drum emerald "
    "peacock walnut scarlet dolphin thunder garlic panther jasmine nickel banjo cherry ostrich indigo lizard almond "
    "comet turtle purple rocket mango sparrow cotton diamond badger clover piano vanilla shark bronze lily hammer "
    "camel olive flute jaguar onion pearl monkey violet anchor beetle papaya topaz whistle eagle carrot lava spider "
    "mint oyster guitar hazel turquoise parrot cedar magnet salmon poppy quartz donkey mustard glacier harp raccoon "
    "plum compass buffalo fern brass gorilla pumpkin rainbow squid daisy helmet leopard nutmeg opal penguin radish "
    "satin tornado unicorn vulture willow yellow acorn bishop candle dragon engine feather goblin honey iguana jelly "
    "kettle ladder mirror needle orbit pirate rabbit saddle temple vessel wizard crimson planet forge biscuit canyon "
    "desert elbow fossil galaxy hornet insect jungle koala lantern"
)

NEEDLE = "The {attribute} of {owner} is {answer}."
QUESTION = "Question: What is the {attribute} of {owner}? Answer: The {attribute} of {owner} is"
ANSWER_LENGTHS = (4, 5, 6)
HELD_OUT_EVERY = 4  # one in four (owner, first answer word) pairs is never trained on


def _article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _fill(template: str, rng: random.Random) -> str:
    def word(match: re.Match[str]) -> str:
        slot = match.group(1)
        if slot == "a_thing":
            return _article(rng.choice(THINGS))
        return rng.choice(_SLOTS[slot])

    return re.sub(r"{(\w+)}", word, template)


def sentences(seed: int = 0) -> Iterator[str]:
    """Filler sentences without end, the same for the same seed."""
    rng = random.Random(f"prose-{seed}")  # seeding by a string is stable across Python versions
    while True:
        yield _fill(rng.choice(TEMPLATES), rng)


def text(n_characters: int, seed: int = 0) -> str:
    """Filler text of at least `n_characters`, whole sentences; a longer text begins with the shorter one."""
    parts: list[str] = []
    size = 0
    for sentence in sentences(seed):
        if size >= n_characters:
            break
        parts.append(sentence)
        size += len(sentence) + 1
    return " ".join(parts)


def is_held_out(owner: str, first_word: str) -> bool:
    """True for the (owner, first answer word) pairs that training never shows."""
    return (OWNERS.index(owner) * 7 + ANSWER_WORDS.index(first_word)) % HELD_OUT_EVERY == 0


def make_needle(rng: random.Random, *, held_out: bool = True, owner: str | None = None) -> dict[str, str]:
    """One needle: its sentence, the question that asks for it, and the answer (4 to 6 different words)."""
    owner = rng.choice(OWNERS) if owner is None else owner
    first = rng.choice([w for w in ANSWER_WORDS if is_held_out(owner, w) == held_out])
    others = rng.sample([w for w in ANSWER_WORDS if w != first], rng.choice(ANSWER_LENGTHS) - 1)
    slots = {"attribute": rng.choice(ATTRIBUTES), "owner": owner, "answer": " ".join([first, *others])}
    return {"needle": NEEDLE.format(**slots), "question": QUESTION.format(**slots), "answer": slots["answer"]}


def needles(n: int, *, seed: int = 0, held_out: bool = True) -> list[dict[str, str]]:
    """`n` needles with different answers; `held_out` ones hold combinations the organism was never trained on."""
    rng = random.Random(f"needles-{seed}")
    owners: list[str] = []
    while len(owners) < n:  # every owner once before any owner twice
        owners += rng.sample(OWNERS, len(OWNERS))
    found: dict[str, dict[str, str]] = {}
    while len(found) < n:
        made = make_needle(rng, held_out=held_out, owner=owners[len(found)])
        found.setdefault(made["answer"], made)
    return list(found.values())


def vocabulary() -> list[str]:
    """Every word and punctuation mark of this language, sorted."""
    frames = " ".join([*TEMPLATES, NEEDLE, QUESTION, *ATTRIBUTES])
    fixed = re.findall(r"\w+|[^\w\s]+", re.sub(r"{\w+}", " ", frames))
    words = {word for slot in _SLOTS.values() for word in slot}
    return sorted({*fixed, "a", "an", *words, *OWNERS, *ANSWER_WORDS} | set(".,:?"))
