"""Classes of tokens by their part in the task: which positions of a prompt `S2`, `answer` or `first` mean.

    a span of the task (IO, S1, C2, query, ...)    as the task names it
    answer, wrong                                  where the prompt holds the token of the answer, or of the wrong one
    first, itself, previous                        of the prompt; the query; the token before it

Positions count from the prompt's first token and never lie after the query. Knows pairs, and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from workbench.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from workbench.tasks.pairs import PairDataset, PairSample

END = "end"
ALWAYS = ("first", "itself", "previous", "answer", "wrong")


def query_position(pair: PairSample, position: str) -> int:
    """The last token of a span, or of the prompt for `end`.

    Raises:
        InputError: the pair has no such span.
    """
    if position == END:
        return pair.length - 1
    if position not in pair.spans:
        raise _unknown(pair, position, "position", (END, *pair.spans))
    return pair.spans[position][1] - 1


def positions_of(pair: PairSample, name: str, query: int) -> tuple[int, ...]:
    """Positions of a class that the query can see; none where the prompt has none.

    Raises:
        InputError: there is no such class.
    """
    if name in ("answer", "wrong") and name not in pair.spans:
        token = pair.answer if name == "answer" else pair.wrong
        return tuple(i for i, known in enumerate(pair.clean[: query + 1]) if known == token)
    if name in pair.spans:
        return tuple(range(pair.spans[name][0], min(pair.spans[name][1], query + 1)))
    if name not in ALWAYS:
        raise _unknown(pair, name, "class", (*pair.spans, *ALWAYS))
    at = {"first": 0, "itself": query, "previous": query - 1}[name]
    return (at,) if at >= 0 else ()


def classes_of(data: PairDataset) -> tuple[str, ...]:
    """Every class that some prompt of the data has, spans first."""
    spans = dict.fromkeys(name for pair in data for name in pair.spans if name != END)
    return (*spans, *(name for name in ALWAYS if name not in spans))


def masks(data: PairDataset, names: Sequence[str], position: str, n_pos: int) -> tuple[np.ndarray, np.ndarray]:
    """`[n]` column of each prompt's query, and `[n, class, n_pos]` which columns a class covers; padded on the left."""
    rows = np.zeros(len(data), dtype=np.int64)
    covered = np.zeros((len(data), len(names), n_pos), dtype=bool)
    somewhere = set(classes_of(data)) - set(ALWAYS)  # a span that only other prompts have covers nothing here
    for i, pair in enumerate(data):
        shift, query = n_pos - pair.length, query_position(pair, position)
        rows[i] = query + shift
        for c, name in enumerate(names):
            if name in somewhere and name not in pair.spans:
                continue
            covered[i, c, [at + shift for at in positions_of(pair, name, query)]] = True
    return rows, covered


def _unknown(pair: PairSample, name: str, what: str, known: Sequence[str]) -> InputError:
    return InputError(
        f"Prompt {pair.id!r} has no {what} {name!r}.{did_you_mean(name, known)} It has: {', '.join(known)}."
    )
