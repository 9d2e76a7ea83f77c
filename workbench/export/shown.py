"""Reading back the formats made for reading: Markdown, LaTeX and HTML, as cells of text.

Takes apart exactly what `text.markdown`, `latex.table` and `html.rows` put together, nothing else. What these formats
cannot carry: digits beyond those shown, line breaks and runs of spaces in texts (HTML can), characters pdfLaTeX lacks
(LaTeX), and the difference between an undefined text and a dash. Turning cells into numbers is `read`'s business.
"""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

from workbench.export.latex import SPECIAL
from workbench.export.text import UNDEFINED

Cells = tuple[list[str], list[list[str]]]  # names, rows

_PLAIN = {shown: char for char, shown in SPECIAL.items()} | {f"{char}{{}}": char for char in "-',"}
_LATEX = re.compile("|".join(re.escape(shown) for shown in sorted(_PLAIN, key=len, reverse=True)))
_BRACED = {"{--}": UNDEFINED, r"{$\infty$}": "inf", r"{$-\infty$}": "-inf"}
_MARKDOWN_CELL = re.compile(r"(?:\\.|[^\\|])*")


class Unlike(ValueError):
    """The text is not what our writer of that format makes; the message says where."""


def markdown(content: str) -> Cells:
    """The names and cells of a pipe table."""
    lines = content.removesuffix("\n").split("\n")
    if len(lines) < 2 or not lines[0].startswith("| ") or not re.fullmatch(r"[|:\- ]+", lines[1]):
        raise Unlike("it does not start with a heading and a rule")
    names, *rows = (_markdown_row(line) for line in (lines[0], *lines[2:]))
    return names, rows


def _markdown_row(line: str) -> list[str]:
    cells, at = [], 1
    while at < len(line):
        match = _MARKDOWN_CELL.match(line, at)
        cells.append(re.sub(r"\\(.)", r"\1", match[0].strip()) if match else "")
        at = (match.end() if match else at) + 1
    return cells


def latex(content: str) -> Cells:
    """The names (from the comment that lists them) and cells of a table."""
    lines = content.split("\n")
    listed = [line.removeprefix("% columns: ") for line in lines if line.startswith("% columns: ")]
    starts = [at for at, line in enumerate(lines) if line in (r"\midrule", r"\endfoot")]
    if not listed or not starts:
        raise Unlike("it has no comment that lists its columns")
    try:
        names = [str(name) for name in json.loads(listed[0])]
    except ValueError:
        raise Unlike("the comment that lists its columns is no JSON") from None
    rows = []
    for line in lines[starts[-1] + 1 :]:
        if line.startswith((r"\bottomrule", r"\end{")):
            break
        rows.append([_latex_cell(cell) for cell in line.removesuffix(r" \\").split(" & ")])
    return names, rows


def _latex_cell(cell: str) -> str:
    if cell in _BRACED:
        return _BRACED[cell]
    return _LATEX.sub(lambda match: _PLAIN[match[0]], cell)


def html(content: str) -> Cells:
    """The names and cells of the page's table."""
    reader = _Tables()
    reader.feed(content)
    reader.close()
    if not reader.rows:
        raise Unlike("it holds no table")
    return reader.rows[0], reader.rows[1:]


class _Tables(HTMLParser):
    """Collects the text of every `th` and `td`, row by row, of the table with a head: the heatmap has none."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.rows: list[list[str]] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        if tag in ("thead", "tr"):  # whether or not the last cell was closed
            self._inside = False
        if tag == "thead":
            self.rows = []
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
            self._inside = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.rows[-1][-1] += data
