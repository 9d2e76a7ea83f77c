r"""A LaTeX table for a paper: booktabs rules, siunitx columns, everything escaped.

Needs `\usepackage{booktabs,siunitx}`, and `longtable` for a table that is longer than a page. Numbers stand in S
columns; what is not a number in such a column is braced, as siunitx wants. A bare `tabular` goes wherever one likes;
with a caption or a label it stands in a `table` of its own. Compiles with pdfLaTeX and its default encodings, so
characters those lack are written as `[U+4E2D]`.
"""

from __future__ import annotations

import json
import math
import re
from itertools import groupby

from workbench.errors import InputError
from workbench.export.frame import FLOAT, INT, Frame
from workbench.export.text import rounded

SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    '"': r"\char34{}",  # \textquotedbl is not in the default encoding
    "`": r"\textasciigrave{}",
    "|": r"\textbar{}",
    # At the start of a row these two would be read as arguments of the \\ that ends the row before.
    "[": "{[}",
    "*": "{*}",
}
_MATH = {
    "α": "alpha",
    "β": "beta",
    "γ": "gamma",
    "δ": "delta",
    "ε": "varepsilon",
    "ζ": "zeta",
    "η": "eta",
    "θ": "theta",
    "κ": "kappa",
    "λ": "lambda",
    "ν": "nu",
    "ξ": "xi",
    "π": "pi",
    "ρ": "rho",
    "σ": "sigma",
    "τ": "tau",
    "υ": "upsilon",
    "φ": "varphi",
    "χ": "chi",
    "ψ": "psi",
    "ω": "omega",
    "Γ": "Gamma",
    "Δ": "Delta",
    "Θ": "Theta",
    "Λ": "Lambda",
    "Ξ": "Xi",
    "Π": "Pi",
    "Σ": "Sigma",
    "Φ": "Phi",
    "Ψ": "Psi",
    "Ω": "Omega",
    "→": "rightarrow",
    "←": "leftarrow",
    "≤": "leq",
    "≥": "geq",
    "≠": "neq",
    "≈": "approx",
    "∞": "infty",
}
SPECIAL |= {char: rf"\ensuremath{{\{name}}}" for char, name in _MATH.items()}
# Latin letters and punctuation of which pdfLaTeX in its default encoding has no drawing (found by compiling each).
_LACKING = set("«»ÐÞðþĄąĐđĘęĦħĮįĸĿŀŉŊŋŦŧŲųſ\N{SOFT HYPHEN}")
_PAIR = re.compile(r"([-',])(?=\1)")  # two of a kind would be drawn as one other character
PAGE_ROWS = 45  # more than these and a table is set over several pages
_LABEL = re.compile(r"[A-Za-z0-9:._/+-]+")


def escape(text: str) -> str:
    """Text that LaTeX prints as it stands; line breaks become spaces, control characters go."""
    printable = "".join(char if char.isprintable() else " " for char in text)
    escaped = "".join(_escape_char(char) for char in " ".join(printable.split()))
    return _PAIR.sub(r"\1{}", escaped)


def _escape_char(char: str) -> str:
    if char in SPECIAL:
        return SPECIAL[char]
    code = ord(char)
    if code < 0x7F or (0xA1 <= code < 0x180 and char not in _LACKING) or char in "–—‘’“”…€†‡•‰™":
        return char
    return f"{{[}}U+{code:04X}]"


def table(frame: Frame, *, caption: str | None = None, label: str | None = None) -> str:
    """A `tabular` (or `longtable`) with comment lines saying what it holds.

    Args:
        caption: plain text, escaped here.
        label: for `\\ref`, such as "tab:heads".

    Raises:
        InputError: a label that LaTeX could not take.
    """
    if label is not None and not _LABEL.fullmatch(label):
        raise InputError(f"The LaTeX label {label!r} may hold only letters, digits and : . _ / + -; try 'tab:heads'.")
    named = ([rf"\caption{{{escape(caption)}}}"] if caption else []) + ([rf"\label{{{label}}}"] if label else [])
    numeric = {name for name, kind in frame.kinds.items() if kind in (INT, FLOAT)}
    cells = [
        [_cell(value, frame.kinds[name], name in numeric, frame.digits) for value in frame.shown(name)]
        for name in frame.columns
    ]
    spec = "".join(
        _column_type(values) if name in numeric else "l" for name, values in zip(frame.columns, cells, strict=True)
    )
    head = [r"\toprule", *_heading(frame, numeric), r"\midrule"]
    body = [" & ".join(row) + r" \\" for row in zip(*cells, strict=True)]
    long = frame.n_rows > PAGE_ROWS
    about = [
        r"% \usepackage{booktabs,siunitx" + (",longtable}" if long else "}") + _about(frame),
        f"% columns: {json.dumps(list(frame.columns))}",
    ]
    if long:
        if named:
            named = ["".join(named if caption else [r"\caption{}", *named]) + r" \\"]
        again = [r"\endfirsthead", *head, r"\endhead", r"\bottomrule", r"\endfoot"]
        lines = [rf"\begin{{longtable}}{{{spec}}}", *named, *head, *again, *body, r"\end{longtable}"]
    else:
        lines = [rf"\begin{{tabular}}{{{spec}}}", *head, *body, r"\bottomrule", r"\end{tabular}"]
        if named:
            lines = [r"\begin{table}[tb]", r"\centering", *named, *lines, r"\end{table}"]
    return "\n".join([*about, *lines, ""])


def _heading(frame: Frame, numeric: set[str]) -> list[str]:
    """The line of column names; of a wide table with the results' names, and rules, above theirs."""

    def name(text: str, column: str) -> str:
        return f"{{{escape(text)}}}" if column in numeric else escape(text)

    if not frame.groups:
        return [" & ".join(name(column, column) for column in frame.columns) + r" \\"]
    above, rules, at = [], [], 1
    for group, members in groupby(frame.columns, lambda column: frame.groups.get(column, ("", ""))[0]):
        width = len(list(members))
        above.append(rf"\multicolumn{{{width}}}{{c}}{{{escape(group)}}}" if group else " & ".join([""] * width))
        rules += [rf"\cmidrule(lr){{{at}-{at + width - 1}}}"] if group else []
        at += width
    below = [name(frame.groups.get(column, ("", column))[1], column) for column in frame.columns]
    return [" & ".join(above) + r" \\", "".join(rules), " & ".join(below) + r" \\"]


def _column_type(cells: list[str]) -> str:
    """An S column wide enough for its longest number, so that decimal points align."""
    whole, part, exponent, sign = 1, 0, 0, ""
    for cell in cells:
        if cell.startswith("{"):  # no number
            continue
        mantissa, _, power = cell.lstrip("-").partition("e")
        left, _, right = mantissa.partition(".")
        whole, part, exponent = max(whole, len(left)), max(part, len(right)), max(exponent, len(power.lstrip("-")))
        sign = "-" if cell.startswith("-") else sign
    scientific = f"e-{'9' * exponent}" if exponent else ""
    return f"S[table-format={sign}{whole}.{part}{scientific}]"


def _cell(value: object, kind: str, numeric: bool, digits: int | None) -> str:
    if value is None:
        return "{--}"
    if numeric and isinstance(value, float) and math.isinf(value):
        return r"{$\infty$}" if value > 0 else r"{$-\infty$}"
    text = rounded(value, kind, digits)
    if not numeric:
        return escape(text)
    mantissa, e, power = text.partition("e")
    return mantissa + (f"e{int(power)}" if e else "")  # 1e-9, not 1e-09


def _about(frame: Frame) -> str:
    words = [str(frame.meta[key]) for key in ("analysis", "metric", "unit", "model") if frame.meta.get(key)]
    plain = " ".join("".join(char if char.isprintable() else " " for char in "; ".join(words)).split())
    return f" -- {plain}" if plain else ""
