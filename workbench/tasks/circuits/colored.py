"""Coloured objects: three things of different colours, and the question what colour one of them has.

"On the table there is a red ball, a blue cup and a green pen. What color is the cup? A:" -> "blue". The family of
prompts that Merullo et al. 2024 use; the wording is ours. "query" leaves the description alone, so a head that only
reads the description cannot be found with it; "context" and "redraw" leave the question alone.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from workbench.tasks.circuits.compose import Draw, Task
from workbench.tasks.circuits.pools import Pool
from workbench.tasks.circuits.words import COLORS, SURFACES, THINGS


def _draw(rng: random.Random, pools: Mapping[str, Pool]) -> Draw:
    colors = rng.sample(pools["colors"].words, 6)
    things = rng.sample(pools["things"].words, 3)
    asked = rng.randrange(3)
    step = rng.choice((1, 2))  # how far colours move on; never back to their own thing
    other = (asked + step) % 3
    fill = {"surface": rng.choice(pools["surfaces"].words), "query": things[asked]}
    for i in range(3):
        fill |= {f"C{i + 1}": colors[i], f"O{i + 1}": things[i]}
    return Draw(
        clean=fill,
        corrupted={
            "query": {"query": things[other]},
            "context": {f"C{i + 1}": colors[(i + step) % 3] for i in range(3)},
            "redraw": {f"C{i + 1}": colors[i + 3] for i in range(3)},
        },
        answer=f" {colors[asked]}",
        wrong=dict.fromkeys(("query", "context", "redraw"), f" {colors[other]}"),
        roles={
            "answer color": f"C{asked + 1}",
            "answer object": f"O{asked + 1}",
            "wrong color": f"C{other + 1}",
            "wrong object": f"O{other + 1}",
        },
        combinations=(tuple(sorted(things)),),
    )


_REST = "a {C1} {O1}, a {C2} {O2} and a {C3} {O3}. What color is the {query}? A:"
TASK = Task(
    name="colored_objects",
    phrasings=(
        f"On the {{surface}} there is {_REST}",
        f"On the {{surface}} we found {_REST}",
        f"On the {{surface}} they left {_REST}",
    ),
    corruptions={
        "query": "the question asks for another of the three things",
        "context": "the three colours move to other things, so that the answer is another of them",
        "redraw": "the three colours become three others",
    },
    pools={"colors": (COLORS, 6), "things": (THINGS, 3), "surfaces": (SURFACES, 1)},
    slots={
        "surface": "surfaces",
        "query": "things",
        **{f"C{i}": "colors" for i in (1, 2, 3)},
        **{f"O{i}": "things" for i in (1, 2, 3)},
    },
    draw=_draw,
    held_out="sets of three things",
)
