"""A LaTeX table for a paper: booktabs rules, siunitx columns, everything escaped.

Needs `\\usepackage{booktabs,siunitx}`. Numbers stand in S columns with four significant digits; what is not a number in
such a column is braced, as siunitx wants.
"""

from __future__ import annotations

import math
import re

from workbench.export.frame import FLOAT, INT, Frame
from workbench.export.text import rounded

_SPECIAL = {
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
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "|": r"\textbar{}",
    # At the start of a row these two would be read as arguments of the \\ that ends the row before.
    "[": "{[}",
    "*": "{*}",
}
_PATTERN = re.compile("|".join(map(re.escape, _SPECIAL)))


def escape(text: str) -> str:
    """Text that LaTeX prints as it stands; line breaks become spaces, control characters go."""
    printable = "".join(char if char.isprintable() else " " for char in text)
    return _PATTERN.sub(lambda match: _SPECIAL[match[0]], " ".join(printable.split()))


def table(frame: Frame) -> str:
    """A `tabular` with a comment line saying what it holds."""
    numeric = {name for name, kind in frame.kinds.items() if kind in (INT, FLOAT)}
    spec = "".join(_column_type(frame, name) if name in numeric else "l" for name in frame.columns)
    heads = [f"{{{escape(name)}}}" if name in numeric else escape(name) for name in frame.columns]
    cells = [
        [_cell(value, frame.kinds[name], name in numeric) for value in frame.shown(name)] for name in frame.columns
    ]
    rows = [" & ".join(row) + r" \\" for row in zip(*cells, strict=True)]
    return "\n".join(
        [
            r"% \usepackage{booktabs,siunitx}" + _caption(frame),
            rf"\begin{{tabular}}{{{spec}}}",
            r"\toprule",
            " & ".join(heads) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _column_type(frame: Frame, name: str) -> str:
    """An S column wide enough for its longest number, so that decimal points align."""
    whole, part, exponent = 1, 0, 0
    for value in frame.shown(name):
        if value is None or not math.isfinite(value):
            continue
        mantissa, _, power = rounded(value, frame.kinds[name]).lstrip("-").partition("e")
        left, _, right = mantissa.partition(".")
        whole, part, exponent = max(whole, len(left)), max(part, len(right)), max(exponent, len(power.lstrip("+-0")))
    sign = "-" if any(value is not None and value < 0 for value in frame.shown(name)) else ""
    scientific = f"e-{exponent}" if exponent else ""
    return f"S[table-format={sign}{whole}.{part}{scientific}]"


def _cell(value: object, kind: str, numeric: bool) -> str:
    if value is None:
        return "{--}"
    if numeric and isinstance(value, float) and math.isinf(value):
        return r"{$\infty$}" if value > 0 else r"{$-\infty$}"
    return rounded(value, kind) if numeric else escape(rounded(value, kind))


def _caption(frame: Frame) -> str:
    words = [str(frame.meta[key]) for key in ("analysis", "metric", "unit", "model") if frame.meta.get(key)]
    plain = " ".join("".join(char if char.isprintable() else " " for char in "; ".join(words)).split())
    return f" -- {plain}" if plain else ""
