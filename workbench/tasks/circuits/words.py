"""The words that the circuit tasks draw from. Common ones, so that most vocabularies hold them as one token each."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    "Anna Peter Mary John Sarah Paul Alice David Emma James Kate Mark Lucy Tom Jane Dan Carol Bob Lily Ben Sue Max "
    "Tim Sam"
)
PLACES = _words("station garden office school market library kitchen museum")
OBJECTS = _words("letter ring book bottle ticket camera flower basket")

COLORS = _words("red blue green yellow black white brown purple pink gray gold silver")  # each takes "a", never "an"
THINGS = _words("ball cup pen hat box key plate lamp spoon brush coin bell")
SURFACES = _words("table desk floor shelf chair bench")

EVENTS = _words("war trial strike voyage debate project famine festival reign siege")
CENTURIES = tuple(str(century) for century in range(11, 20))
YEARS = tuple(f"{year:02d}" for year in range(1, 100))

FUNCTIONS = _words("load save build send open merge")
ARGUMENTS = _words(
    "size path mode text file port user code data rate step host index value label limit count width depth name"
)
MEANINGS = _words("server window record signal folder group point image")

LETTERS = ("A", "B", "C")

FILLERS = _words("so now then well oh yes indeed still")
