"""`workbench report`: the file, JSON for programs, and one sentence for what cannot be reported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.report.conftest import place  # noqa: F401 - the store
from workbench.cli import main
from workbench.store import Store


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(["report", *arguments]) == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out


@pytest.fixture
def here(place: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    monkeypatch.setenv("WORKBENCH_STORE", place.where)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_writes_a_file_and_says_where(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "good@v1") == "good-v1-report.html\n"
    page = (here / "good-v1-report.html").read_text(encoding="utf-8")
    assert "workbench rerun good@v1\n" in page  # the store is the usual one, so no --store
    assert 'data-theme="auto"' in page


def test_json_names_the_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(run(capsys, "good", "turned", "-o", "both.html", "--theme", "dark", "--rule", "top 3", "--json"))
    path = here / "both.html"
    assert found == {"path": "both.html", "refs": ["good", "turned"], "bytes": path.stat().st_size}
    page = path.read_text(encoding="utf-8")
    assert "<code>top 3</code>" in page and 'data-theme="dark"' in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["goof"], "Did you mean 'good'?"),
        (["good", "--theme", "blue"], "theme 'blue'"),
        (["good", "-o", "x.pdf"], "in .html"),
        (["good", "turned", "--rule", "best"], "best"),
        ([], "Missing argument"),
    ],
)
def test_what_cannot_be_reported_is_said_in_one_sentence(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    said = run(capsys, *arguments, code=2)
    assert words in said and said.startswith("error: ") and said.count("\n") == 1
    assert not [*here.iterdir()]
