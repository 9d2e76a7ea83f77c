"""Docstring: the next argument to describe is the one that follows, in the definition, the one described last.

`def load(self, size, path, mode, text): ... :param size: ... :param path: ... :param` -> "mode". Task of Heimersheim
and Janiak 2023; the code is ours. A, B, C, D are the arguments in the definition, A_doc and B_doc their mentions in
the docstring, C is the answer.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from workbench.tasks.circuits.compose import Draw, Task
from workbench.tasks.circuits.pools import Pool
from workbench.tasks.circuits.words import ARGUMENTS, FUNCTIONS, MEANINGS


def _draw(rng: random.Random, pools: Mapping[str, Pool]) -> Draw:
    a, b, c, d, x, y = rng.sample(pools["arguments"].words, 6)
    meanings = rng.sample(pools["meanings"].words, 3)
    fill = {"function": rng.choice(pools["functions"].words), "A": a, "B": b, "C": c, "D": d, "A_doc": a, "B_doc": b}
    fill |= dict(zip(("made", "first", "second"), meanings, strict=True))
    return Draw(
        clean=fill,
        corrupted={
            "definition": {"C": d, "D": c},
            "docstring": {"B_doc": c},
            "redraw": {"A_doc": x, "B_doc": y},
        },
        answer=f" {c}",
        wrong=dict.fromkeys(("definition", "docstring", "redraw"), f" {d}"),
        roles={"answer": "C", "previous": "B", "previous_doc": "B_doc"},
        combinations=((b, c), (a, b), (c, d)),
    )


def _phrasing(verb: str) -> str:
    lines = (
        "def {function}(self, {A}, {B}, {C}, {D}):",
        f'    """{verb} the {{made}}.',
        "",
        "    :param {A_doc}: the {first}",
        "    :param {B_doc}: the {second}",
        "    :param",
    )
    return "\n".join(lines)


TASK = Task(
    name="docstring",
    phrasings=(_phrasing("Return"), _phrasing("Change"), _phrasing("Print")),
    corruptions={
        "definition": "the third and fourth argument of the definition change places, so that the answer is the fourth",
        "docstring": "the docstring describes the third argument last, so that the answer is the fourth",
        "redraw": "the docstring describes two arguments that the definition does not have",
    },
    pools={"arguments": (ARGUMENTS, 6), "functions": (FUNCTIONS, 1), "meanings": (MEANINGS, 3)},
    slots={
        "function": "functions",
        **dict.fromkeys(("A", "B", "C", "D", "A_doc", "B_doc"), "arguments"),
        **dict.fromkeys(("made", "first", "second"), "meanings"),
    },
    draw=_draw,
    held_out="pairs of an argument and the one after it",
)
