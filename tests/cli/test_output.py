"""What the command line prints of a value."""

from __future__ import annotations

import io
import json
import sys

import pytest

from workbench.cli.output import emit, emit_json, shown


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
        ("\x1b[2Jcleared\x07", r"\x1b[2Jcleared\x07"),
        ({"\x9b": "\ud800"}, r"\x9b=\ud800"),
        ("naïve ĉ 注意", "naïve ĉ 注意"),
    ],
)
def test_a_value_is_one_line_and_pairs_stay_pairs(value: object, said: str) -> None:
    assert shown(value) == said


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_what_stdout_cannot_hold_is_written_as_an_escape(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    emit("é \ud800")
    emit_json({"a": "\ud800"})
    out.flush()
    said = out.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert said.splitlines()[0] == ("é" if encoding == "utf-8" else r"\xe9") + r" \ud800"
    assert json.loads(said.partition("\n")[2]) == {"a": "\ud800"}
