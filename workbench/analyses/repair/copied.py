"""What heads attend to on another task, carried over to this one: rows of attention made of classes of tokens.

    share(h, c)   mean over the other task's prompts of head h's attention, at its position, to class c
    row(h)        share(h, c) on the class of this task that c stands for, evenly over its tokens; what is left of the
                  attention stays with the other tokens, in the proportions it had before

Tasks differ in words and length, so a row cannot be copied key by key: the classes say what corresponds to what.
Reading and arithmetic; nothing is changed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from workbench import stats
from workbench.analyses.head_tools.attention import attention_rows, by_class
from workbench.analyses.head_tools.classes import masks
from workbench.errors import InputError
from workbench.primitives.sweep.units import checked

if TYPE_CHECKING:
    from workbench.analyses.repair.params import LikeParams
    from workbench.models import Model
    from workbench.tasks.pairs import PairDataset

Head = tuple[int, int]
Shares = Mapping[str, float]  # class of this task -> share of the attention


def shares(model: Model, other: PairDataset, heads: Sequence[Head], like: LikeParams) -> dict[Head, dict[str, float]]:
    """By head: class of this task -> the attention that the head gives, on the other one, to what stands for it.

    Raises:
        InputError: a class that no prompt of the other task has, two that have a token in common, or a head that does
            not exist.
    """
    checked(model, heads)
    rows, covered = masks(other, tuple(like.classes), like.position, max(pair.length for pair in other))
    if (covered.sum(axis=1) > 1).any():
        at = int(np.argwhere((covered.sum(axis=1) > 1).any(axis=-1))[0, 0])
        raise InputError(
            f"Two of the classes {', '.join(like.classes)} have a token of prompt {other[at].id!r} in common, so its "
            "attention would count twice; leave one out."
        )
    absent = [name for c, name in enumerate(like.classes) if not covered[:, c].any()]
    if absent:
        raise InputError(f"No prompt of the task {like.task!r} has a token of the class {absent[0]!r} to look at.")
    mean = stats.mean(by_class(attention_rows(model, other, rows), covered))  # [layer, head, class]
    found: dict[Head, dict[str, float]] = {}
    for layer, head in heads:
        here = found.setdefault((layer, head), {})
        for c, name in enumerate(like.classes.values()):
            here[name] = here.get(name, 0.0) + float(mean[layer, head, c])
    return found


def row(wanted: Shares, covered: Mapping[str, np.ndarray], own: np.ndarray) -> np.ndarray:
    """`[n, key]`: `wanted` on its classes, what is left as in `own`.

    Args:
        covered: class -> `[n, key]`, which keys belong to it.
        own: `[n, key]`, rows that sum to 1.
    """
    total = np.zeros(own.shape)
    free = np.ones(own.shape, dtype=bool)
    for name, share in wanted.items():
        total += share * covered[name] / covered[name].sum(axis=1, keepdims=True)
        free &= ~covered[name]
    others = np.where(free, own, 0.0)
    left = others.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = others * (1 - sum(wanted.values())) / left
        alone = total / total.sum(axis=1, keepdims=True)
    return np.where(left > 0, total + scaled, alone).astype(np.float32)
