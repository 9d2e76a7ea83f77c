"""The eight heads of `planted-ioi`, as the matrices that attention multiplies with, and the stream they share.

A head is a list of looks (what the query seeks, what a key offers) and a list of moves (what is read where it looks,
what is written). BOS is the resting place: a head that finds nothing attends to it and reads nothing there.

    part of the stream                           written by
    name, color, thing, circles, line, bos       the embedding: the token one-hot, its position twice, the first token
    previous name, previous color                previous token: what stands one position before
    repeated name, asked color                   duplicate token: the name itself, and the colour that was noted there
    seen                                         induction: 1 where a name has been read before
    inhibited                                    S-inhibition: the name that was repeated
    gathered                                     content gatherer: the colour asked for
    out                                          the movers; the unembedding reads nothing else

Every number below is an attention logit in nats, or a logit of the answer. Knows neither tokenizers nor models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from workbench.organisms.planted.residual import Residual
from workbench.organisms.planted.writing import Head

N_CTX = 48
TURNS = (2, 9, 12)  # turns of each circle over N_CTX positions; no other position comes near on all three
MATCH = 16.0  # what is sought; anything else has 0, BOS half
NEAR = 18.0  # circles: how strongly a position is told from all others
SAME = 120.0  # duplicate token: the same word, before its own position is taken out
THING = 30.0  # content gatherer: a thing against any other word
ALONG = 120.0  # content gatherer: the last position against the first
UNEMBED = 10.0  # logit of what is written to `out` with length 1
COLOR_LOGIT = 10.0  # the shared mover on a colour
NAME_LOGITS = {"shared mover": 6.0, "name mover": 7.0, "negative mover": -3.0}  # together 10

Rows = Float[np.ndarray, "dim width"]


def parts(n_names: int, n_colors: int, n_things: int) -> dict[str, int]:
    """Dimensions of each part of the stream."""
    return {
        "name": n_names,
        "color": n_colors,
        "thing": n_things,
        "circles": 2 * len(TURNS),
        "line": 1,
        "bos": 1,
        "previous name": n_names,
        "previous color": n_colors,
        "repeated name": n_names,
        "asked color": n_colors,
        "seen": 1,
        "inhibited": n_names,
        "gathered": n_colors,
        "out": n_names + n_colors,
    }


def needs(n_names: int, n_colors: int, n_things: int) -> int:
    """Head width that these pools need: the duplicate-token head tells all names, things and positions apart."""
    return n_names + max(n_things + 2 * len(TURNS) + 1, n_colors + 1)


def circles() -> Float[np.ndarray, "pos 6"]:
    """Each position as a point on three circles."""
    angle = 2 * np.pi * np.arange(N_CTX)[:, None] * np.array(TURNS) / N_CTX  # (pos, circle)
    return np.stack([np.cos(angle), np.sin(angle)], axis=2).reshape(N_CTX, -1)


def line() -> Float[np.ndarray, "pos 1"]:
    """Each position as a point between -1 and 1."""
    return np.linspace(-1, 1, N_CTX)[:, None]


def heads(stream: Residual, d_head: int) -> dict[str, Head]:
    """Role -> its head."""
    name, color, always = stream["name"], stream["color"], stream.bias[None]
    n_names = len(name)
    out_name, out_color = stream["out"][:n_names], stream["out"][n_names:]

    def rest(level: float) -> tuple[Rows, Rows]:
        return level * always, stream["bos"]

    def mover(role: str, moves: Sequence[tuple[Rows, Rows]] = ()) -> Head:
        """Attends to names except the inhibited one, and to the gathered colour if it moves colours."""
        look_names = (MATCH * (always - 2 * stream["inhibited"]), name)
        look_colors = (MATCH * stream["gathered"], color)
        names = (name, NAME_LOGITS[role] / UNEMBED * out_name)
        looks = [look_names, *([look_colors] if moves else []), rest(MATCH / 2)]
        return _head(d_head, looks, [names, *moves])

    # BOS is at position 0, and as a resting place it must not be near or far
    circles_but_bos = stream["circles"] - circles()[:1].T * stream["bos"]
    return {
        "previous token": _head(
            d_head,
            [(NEAR * _one_back() @ stream["circles"], stream["circles"])],
            [(name, stream["previous name"]), (color, stream["previous color"])],
        ),
        "duplicate token": _head(
            d_head,
            [
                (SAME * name, name),
                (SAME * stream["thing"], stream["thing"]),
                (-NEAR * stream["circles"], circles_but_bos),  # not the position itself
                rest(_between_itself_and_another()),
            ],
            [(name, stream["repeated name"]), (stream["previous color"], stream["asked color"])],
        ),
        "induction": _head(
            d_head,
            [(MATCH * name, stream["previous name"]), rest(MATCH / 2)],
            [(always - stream["bos"], stream["seen"])],
        ),
        "S-inhibition": _head(
            d_head,
            [(MATCH * always, stream["seen"]), rest(MATCH / 2)],
            [(stream["repeated name"], stream["inhibited"])],
        ),
        "content gatherer": _head(
            d_head,
            [  # the last thing; where there is none the last position, at which no colour is asked for
                (THING * always, stream["thing"].sum(0, keepdims=True)),
                (ALONG / 2 * always, stream["line"]),
            ],
            [(stream["asked color"], stream["gathered"])],
        ),
        "shared mover": mover("shared mover", [(color, COLOR_LOGIT / UNEMBED * out_color)]),
        "name mover": mover("name mover"),
        "negative mover": mover("negative mover"),
    }


def _head(d_head: int, looks: Sequence[tuple[Rows, Rows]], moves: Sequence[tuple[Rows, Rows]]) -> Head:
    """Looks side by side in the dimensions of q and k, moves in those of v and o; the rest is zero."""

    def stack(rows: Sequence[Rows]) -> Rows:
        one = np.concatenate(rows)
        return np.concatenate([one, np.zeros((d_head - len(one), one.shape[1]))])

    q, k = (stack([look[i] for look in looks]) for i in (0, 1))
    v, o = (stack([move[i] for move in moves]) for i in (0, 1))
    return Head(q=q, k=k, v=v, o=o.T)


def _one_back() -> Float[np.ndarray, "6 6"]:
    """Turns the circles of position i into those of position i - 1."""
    turn = np.zeros((2 * len(TURNS), 2 * len(TURNS)))
    for i, angle in enumerate(2 * np.pi * np.array(TURNS) / N_CTX):
        c, s = np.cos(angle), np.sin(angle)
        turn[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = [[c, s], [-s, c]]
    return turn


def _between_itself_and_another() -> float:
    """Attention logit of BOS for the duplicate-token head: above the word itself, below the same word elsewhere."""
    itself = len(TURNS)
    nearest = float((circles() @ circles()[0])[1:].max())
    return SAME - NEAR * (itself + nearest) / 2
