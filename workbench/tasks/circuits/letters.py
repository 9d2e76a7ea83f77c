"""Multiple-choice letters: the answer is the letter of the option that the text states.

"Here the cup is blue. What color is the cup? A: red, B: blue, C: green. Answer:" -> "B". After the multiple-choice
questions of Lieberum et al. 2023 (arXiv 2307.09458); the wording is ours.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from workbench.tasks.circuits.compose import Draw, Task
from workbench.tasks.circuits.pools import Pool
from workbench.tasks.circuits.words import COLORS, LETTERS, THINGS


def _draw(rng: random.Random, pools: Mapping[str, Pool]) -> Draw:
    options = rng.sample(pools["colors"].words, 3)
    thing = rng.choice(pools["things"].words)
    letters = pools["letters"].words[:3]
    right = rng.randrange(3)
    other = (right + rng.choice((1, 2))) % 3
    exchanged = {f"C{right + 1}": options[other], f"C{other + 1}": options[right]}
    fill = {"thing": thing, "color": options[right], "query": thing}
    for i in range(3):
        fill |= {f"L{i + 1}": letters[i], f"C{i + 1}": options[i]}
    return Draw(
        clean=fill,
        corrupted={"fact": {"color": options[other]}, "options": exchanged},
        answer=f" {letters[right]}",
        wrong=dict.fromkeys(("fact", "options"), f" {letters[other]}"),
        roles={
            "answer letter": f"L{right + 1}",
            "answer color": f"C{right + 1}",
            "wrong letter": f"L{other + 1}",
            "wrong color": f"C{other + 1}",
        },
        combinations=((thing, options[right]),),
    )


_REST = "What color is the {query}? {L1}: {C1}, {L2}: {C2}, {L3}: {C3}. Answer:"
TASK = Task(
    name="letters",
    phrasings=(f"Here the {{thing}} is {{color}}. {_REST}", f"Today the {{thing}} is {{color}}. {_REST}"),
    corruptions={
        "fact": "the thing is said to have the colour of another option",
        "options": "the right option and another exchange their letters",
    },
    pools={"letters": (LETTERS, 3), "colors": (COLORS, 3), "things": (THINGS, 1)},
    slots={
        "thing": "things",
        "query": "things",
        "color": "colors",
        **{f"L{i}": "letters" for i in (1, 2, 3)},
        **{f"C{i}": "colors" for i in (1, 2, 3)},
    },
    draw=_draw,
    held_out="pairs of a thing and its colour",
)
