"""The small language in which heads are selected: `"score >= 0.1"`, `"top 5"`, `"top 2%"`, `"q < 0.05 and n >= 10"`.

Rules come from spec files and command lines, so they are parsed by a fixed grammar and never evaluated:

    rule   := clause ("and" clause)*
    clause := "top" COUNT | "top" PERCENT "%" | COLUMN ("<" | "<=" | ">" | ">=" | "==" | "!=") NUMBER

COLUMN is any numeric column, `p` (short for `null_p`) or `q` (Benjamini-Hochberg adjusted `null_p`, over the rows that
are ok). This module must never look at anything but columns.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping

import numpy as np

from workbench import stats
from workbench.errors import InputError, did_you_mean
from workbench.tables.schema import OK

_OPERATORS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_TOP = re.compile(rf"top\s+({_NUMBER})\s*(%?)", re.IGNORECASE)
_COMPARE = re.compile(rf"([A-Za-z_]\w*)\s*(<=|>=|==|!=|<|>)\s*({_NUMBER})")
_EXAMPLES = "write for instance 'top 5', 'top 2%', 'score >= 0.1' or 'q < 0.05 and score > 0'"


def matches(rule: str, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Boolean mask over the rows. Only rows whose status is ok ever match.

    Raises:
        InputError: the rule does not parse, or names no numeric column.
    """
    keep = columns["status"] == OK
    for clause in re.split(r"\s+and\s+", rule.strip()):
        keep = keep & _clause(clause.strip(), rule, columns)
    return keep


def _clause(clause: str, rule: str, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    top = _TOP.fullmatch(clause)
    if top:
        return columns["rank"] <= _top_count(top[1], bool(top[2]), rule, int((columns["status"] == OK).sum()))
    compare = _COMPARE.fullmatch(clause)
    if not compare:
        raise InputError(f"Selection rule {rule!r} is not understood at {clause!r}; {_EXAMPLES}.")
    name, symbol, number = compare.groups()
    with np.errstate(invalid="ignore"):
        return ~np.isnan(values := _column(name, rule, columns)) & _OPERATORS[symbol](values, float(number))


def _top_count(number: str, percent: bool, rule: str, n_ok: int) -> int:
    """How many rows `top` means. A percentage is of the rows that are ok, rounded to the nearest and at least one."""
    value = float(number)
    if percent:
        if not 0 < value <= 100:
            raise InputError(f"Selection rule {rule!r} asks for {number}%; give more than 0% and at most 100%.")
        return max(1, round(n_ok * value / 100))
    if value < 1 or value != int(value):
        raise InputError(f"Selection rule {rule!r} asks for the top {number}; give a whole number from 1 up.")
    return int(value)


def _column(name: str, rule: str, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    if name == "q" and "q" not in columns:
        return stats.benjamini_hochberg(np.where(columns["status"] == OK, columns["null_p"], np.nan))
    name = "null_p" if name == "p" and "p" not in columns else name
    numeric = [known for known, values in columns.items() if values.dtype.kind in "ifb"]
    if name not in numeric:
        known = (*numeric, "p", "q")
        raise InputError(
            f"Selection rule {rule!r} names {name!r}, which is no numeric column.{did_you_mean(name, known)} "
            f"Columns: {', '.join(known)}."
        )
    return columns[name].astype(np.float64)
