"""Indirect object identification: two people, one of them acts, and the gift goes to the other.

"After Anna and Peter left the station, Peter handed the letter to" -> "Anna". S is the name that occurs twice, IO the
other; either may stand first (ABBA and BABA). Task of Wang et al. 2022 (arXiv 2211.00593); the sentences are ours.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from workbench.tasks.circuits.compose import Draw, Task
from workbench.tasks.circuits.pools import Pool
from workbench.tasks.circuits.words import NAMES, OBJECTS, PLACES


def _draw(rng: random.Random, pools: Mapping[str, Pool]) -> Draw:
    io, s, third, *others = rng.sample(pools["names"].words, 5)
    fill = {"place": rng.choice(pools["places"].words), "object": rng.choice(pools["objects"].words), "S2": s}
    io_first = rng.random() < 0.5
    slot_io, slot_s = ("A", "B") if io_first else ("B", "A")
    return Draw(
        clean={**fill, slot_io: io, slot_s: s},
        corrupted={
            "flip": {"S2": io},
            "third": {"S2": third},
            "redraw": {slot_io: third, slot_s: others[0], "S2": others[1]},
        },
        answer=f" {io}",
        wrong=dict.fromkeys(("flip", "third", "redraw"), f" {s}"),
        roles={"IO": slot_io, "S1": slot_s, "S2": "S2"},
        combinations=(tuple(sorted((io, s))),),
    )


TASK = Task(
    name="ioi",
    phrasings=(
        "After {A} and {B} left the {place}, {S2} handed the {object} to",
        "While {A} and {B} searched the {place}, {S2} offered the {object} to",
        "Once {A} and {B} reached the {place}, {S2} passed the {object} to",
        "Before {A} and {B} closed the {place}, {S2} brought the {object} to",
    ),
    corruptions={
        "flip": "the second mention of S becomes IO, so that the answer is S",
        "third": "the second mention of S becomes a third name, so that no name is repeated",
        "redraw": "all three mentions become three other names, none repeated",
    },
    pools={"names": (NAMES, 5), "places": (PLACES, 1), "objects": (OBJECTS, 1)},
    slots={"A": "names", "B": "names", "S2": "names", "place": "places", "object": "objects"},
    draw=_draw,
    held_out="pairs of names",
)
