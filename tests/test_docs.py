"""Every command and every line of Python in the documentation runs, on this code, and prints what it is said to print.

In `docs/**/*.md` a fence says what it is:

    ```python      runs, all blocks of a page in one namespace
    ```console     lines that begin with `$ workbench` run; of the lines below, each must be in what it printed, in
                   that order (`...` stands for anything); none below: only the exit code counts
    any other      is not run
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from workbench.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs" / "how-to").glob("*.md")), ROOT / "docs" / "large-models.md"]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str, int]]:
    """Kind, content and first line of each fenced block."""
    text = page.read_text(encoding="utf-8")
    return [(found[1], found[2], text[: found.start(2)].count("\n") + 1) for found in FENCE.finditer(text)]


def commands(block: str) -> list[tuple[list[str], list[str]]]:
    """Arguments of each command, and the lines shown below it."""
    found: list[tuple[list[str], list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            words = shlex.split(line[2:], comments=True)
            assert words[0] == "workbench", line
            found.append((words[1:], []))
        elif line.strip():
            found[-1][1].append(line.strip())
    return found


def shown_in_order(lines: list[str], printed: str) -> str | None:
    """The first shown line that is not in what was printed after the one before it, or None."""
    rest = printed
    for line in lines:
        pattern = r".*?".join(re.escape(re.sub(r"\s+", " ", part)) for part in line.split("..."))
        found = re.search(pattern, rest)
        if found is None:
            return line
        rest = rest[found.end() :]
    return None


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_does_what_it_says(page: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("WORKBENCH_STORE", str(tmp_path / "store"))
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {"__name__": "page"}
    for kind, content, line in blocks(page):
        where = f"{page.name}, line {line}"
        if kind == "python":
            exec(compile("\n" * (line - 1) + content, str(page), "exec"), space)
        if kind == "console":
            for arguments, shown in commands(content):
                capsys.readouterr()
                code = main(arguments)
                printed = re.sub(r"\s+", " ", capsys.readouterr().out)
                assert code == 0, f"{where}: {arguments} exits with {code}"
                missing = shown_in_order(shown, printed)
                assert missing is None, f"{where}: {arguments} does not print {missing!r} but {printed!r}"


def test_every_analysis_has_a_page():
    from workbench.analyses import base

    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [name for name in base.names() if f"`{name}`" not in text] == []


@pytest.mark.parametrize("page", [*PAGES, *ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "ARCHITECTURE.md"])
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_public_name_says_what_it_is():
    import inspect
    import types

    import workbench as wb

    silent = []
    for name in wb.__all__:
        value = getattr(wb, name)
        if not isinstance(value, str) and not (inspect.getdoc(value) or "").strip():
            silent.append(name)
        if isinstance(value, types.ModuleType):
            for inner in getattr(value, "__all__", ()):
                thing = getattr(value, inner)
                described = callable(thing) or isinstance(thing, types.ModuleType)
                if described and not (inspect.getdoc(thing) or "").strip():
                    silent.append(f"{name}.{inner}")
    assert silent == []
