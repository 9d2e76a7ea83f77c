"""Greater-than: something that began in a year can only have ended in a later one.

"The war began in 1732 and ended in 17" -> any year above 32. Task of Hanna et al. 2023 (arXiv 2305.00586); the
sentences are ours. `answer` is one later year and `wrong` one that is not later, both near the year named: of two years
far apart the higher is the better guess without reading the prompt, which would pass for half the effect. All years of
either kind are in `answers` and `wrongs`, for the probability that the model gives to valid years. The vocabulary must
hold years of two digits.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from workbench.errors import InputError
from workbench.tasks.circuits.compose import Draw, Task
from workbench.tasks.circuits.pools import Pool, comparable, require
from workbench.tasks.circuits.words import CENTURIES, EVENTS, YEARS

_FIRST = "01"
_WINDOW = 12  # answer and wrong lie within a twelfth of the century's years around the boundary
_LEAST = 8  # years of a century, so that there is something on either side


def _filtered(model: Any) -> dict[str, Pool]:
    """Events, and for each century whose years are two tokens (17|32) its years; a pool for each century."""
    events = require(comparable(model, EVENTS), 1, task="greater_than", what="events")
    centuries = comparable(model, CENTURIES, before="in ")
    pools = {"events": events}
    for century in centuries.words:
        years = comparable(model, YEARS, before=f"in {century}", n_tokens=1)
        if len(years) >= _LEAST and _FIRST in years.words:
            pools[f"years of {century}"] = years
    if len(pools) == 1:
        raise InputError(
            f"Task greater_than needs a century with {_LEAST} years of one token each ({_FIRST} among them) after it "
            "(17|32), which the tokenizer has not; choose a model that splits years into pairs of digits."
        )
    return pools


def _draw(rng: random.Random, pools: Mapping[str, Pool]) -> Draw:
    century = rng.choice([name for name in pools if name.startswith("years of ")])
    pool = pools[century]
    years = sorted(pool.words)[1:]  # without 01, which only corrupted prompts begin in
    at = rng.randrange(1, len(years) - 1)
    year = years[at]
    near = max(1, len(years) // _WINDOW)
    answer = rng.choice(years[at + 1 : at + 1 + near])
    wrong = rng.choice(years[max(0, at + 1 - near) : at + 1])
    later = rng.choice(years[years.index(answer) :])
    event = rng.choice(pools["events"].words)
    prefix = century.removeprefix("years of ")
    return Draw(
        clean={"event": event, "century": prefix, "year": year, "end_century": prefix},
        corrupted={"01": {"year": _FIRST}, "later": {"year": later}},
        answer=answer,
        wrong={"01": wrong, "later": wrong},
        roles={"YY": "year", "XX": "century"},
        answers=tuple(pool.token(word) for word in years[at + 1 :]),
        wrongs=tuple(pool.token(word) for word in (_FIRST, *years[: at + 1])),
        combinations=((event, year),),
    )


TASK = Task(
    name="greater_than",
    phrasings=(
        "The {event} began in {century}{year} and ended in {end_century}",
        "The {event} opened in {century}{year} and closed in {end_century}",
        "The {event} started in {century}{year} and stopped in {end_century}",
    ),
    corruptions={
        "01": "the year becomes 01, after which every answer is valid",
        "later": "the year becomes a later one, after which neither answer is valid",
    },
    pools={"events": (EVENTS, 1), "centuries": (CENTURIES, 1), "years": (YEARS, _LEAST)},
    slots={"event": "events", "century": "centuries", "year": "years", "end_century": "centuries"},
    draw=_draw,
    held_out="pairs of event and year",
    filtered=_filtered,
)
