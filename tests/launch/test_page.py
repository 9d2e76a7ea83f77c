"""`docs/launching.md`: every command on the page runs, in its order, and prints what the page shows.

The work is done in this process, whatever the launcher (`tests/launch/conftest.py`); the launchers themselves are
tested beside this file, with the same spec.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.launch.conftest import Inline, inline  # noqa: F401 - a fixture
from tests.test_docs import blocks, commands, shown_in_order
from workbench.cli import main
from workbench.launch import LAUNCHERS
from workbench.launch.drive import SHARDED

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "launching.md"


@pytest.mark.slow
def test_the_page_does_what_it_says(
    tmp_path: Path,
    inline: Inline,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WORKBENCH_STORE", str(tmp_path / "store"))
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.chdir(tmp_path)
    ran = []
    for kind, content, line in blocks(PAGE):
        for arguments, shown in commands(content) if kind == "console" else ():
            capfd.readouterr()
            assert main(arguments) == 0, f"line {line}: {arguments}"
            printed = re.sub(r"\s+", " ", capfd.readouterr().out)
            missing = shown_in_order([text for text in shown if text != "..."], printed)
            assert missing is None, f"line {line}: {arguments} does not print {missing!r} but {printed!r}"
            ran.append(" ".join(arguments))
    assert all(any(f"--launcher {launcher}" in command for command in ran) for launcher in LAUNCHERS)


def test_the_page_names_what_may_be_sharded() -> None:
    text = re.sub(r"\s+", " ", PAGE.read_text(encoding="utf-8"))
    *first, last = (f"`{name}`" for name in sorted(SHARDED))
    assert f"For {', '.join(first)} and {last}; others refuse." in text
