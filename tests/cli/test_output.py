"""What the command line prints of a value."""

from __future__ import annotations

import pytest

from workbench.cli.output import shown


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([[1, 6], (0, 3)], "(1, 6), (0, 3)"),
        ([1, 2.5], "1, 2.5"),
        ([], "-"),
        ({"best": [[1, 2]]}, "best=(1, 2)"),
        (float("nan"), "-"),
        (None, "-"),
        (True, "yes"),
        ("two\nlines", "two lines"),
    ],
)
def test_a_value_is_one_line_and_pairs_stay_pairs(value: object, said: str) -> None:
    assert shown(value) == said
