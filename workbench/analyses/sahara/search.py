"""Algorithm 1 of Zhou et al. 2024: the greedy search itself, over whatever measures a candidate.

    G = {};  for s = 1..S:  h* = argmax over h outside G of Ships(Q, G + h) against the unablated model;  G += h*

It sees candidates and their scores, and nothing of models or prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from workbench.errors import InputError

Head = tuple[int, int]
Evidence = TypeVar("Evidence")
TIE = 1e-9  # scores this close, relative to the best, are equal to rounding


@dataclass(frozen=True)
class Step(Generic[Evidence]):
    """One step of the search.

    Attributes:
        group: rows chosen before. candidates: rows tried on top, in the order of `score`.
        score: `[candidate]`; NaN where undefined, which is never chosen.
        chosen: the best candidate, the earliest by (layer, head) of several. ties: the others that are as good.
        evidence: what the measurement returned beside the score.
    """

    group: tuple[Head, ...]
    candidates: tuple[Head, ...]
    score: np.ndarray
    chosen: Head
    ties: tuple[Head, ...]
    evidence: Evidence

    @property
    def margin(self) -> float:
        """By how much the best candidate leads the second; NaN when there is none."""
        ordered = np.sort(self.score[~np.isnan(self.score)])
        return float(ordered[-1] - ordered[-2]) if len(ordered) > 1 else float("nan")


def greedy(
    rows: Sequence[Head],
    size: int,
    measure: Callable[[tuple[Head, ...], tuple[Head, ...]], tuple[np.ndarray, Evidence]],
) -> list[Step[Evidence]]:
    """Search a group of `size` rows; `measure(candidates, group)` scores every candidate on top of the group.

    Raises:
        InputError: there are fewer rows, or no candidate has a score.
    """
    if size > len(rows):
        raise InputError(f"size={size} asks for more heads than the model has ({len(rows)}); use at most that number.")
    steps: list[Step[Evidence]] = []
    group: tuple[Head, ...] = ()
    for number in range(1, size + 1):
        candidates = tuple(row for row in rows if row not in group)
        score, evidence = measure(candidates, group)
        if np.isnan(score).all():
            raise InputError(f"No head has a score in step {number}, so none can be chosen: the states are not finite.")
        best = float(np.nanmax(score))
        equal = [row for row, value in zip(candidates, score, strict=True) if value >= best - TIE * abs(best)]
        steps.append(Step(group, candidates, score, equal[0], tuple(equal[1:]), evidence))
        group = (*group, equal[0])
    return steps
