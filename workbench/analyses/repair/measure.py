"""The prompts under each condition: intact, with the fault, repaired, and with the repair put on random heads.

Everything that is changed is changed in one forward pass: the fault first, then ablations, then attention rows, so that
a head which the fault has scattered can be told where to look. Plumbing and readings; what they mean is `__init__`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import stats
from workbench.analyses.head_tools.classes import classes_of, masks
from workbench.analyses.repair import copied
from workbench.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from workbench.analyses.repair.params import RepairParams
    from workbench.models import Model
    from workbench.tasks.pairs import PairDataset

Head = tuple[int, int]
_PROMPTS_AT_ONCE = 64


@dataclass(frozen=True)
class Change:
    """What a condition does to the model.

    Attributes:
        fault: whether the fault of the parameters is in place.
        heads: whose attention row is set as the parameters say.
        ablate: whose output is zero.
        sources: in the order of `heads`, whose row on another task each gets, where rows are like those.
    """

    fault: bool = False
    heads: tuple[Head, ...] = ()
    ablate: tuple[Head, ...] = ()
    sources: tuple[Head, ...] = ()


@dataclass(frozen=True)
class Reading:
    """What came of it, per prompt.

    Attributes:
        right: the likeliest of all tokens is an answer.
        right_among: an answer is the likeliest of the candidates.
        logit_diff: answer minus wrong answer.
        rows: `[n, layer, head, key]`, attention of the query.
    """

    right: np.ndarray
    right_among: np.ndarray
    logit_diff: np.ndarray
    rows: np.ndarray


class Bench:
    """The prompts of one task, ready to be run under any condition."""

    def __init__(self, model: Model, data: PairDataset, params: RepairParams, other: PairDataset | None = None):
        self.model, self.data, self.params = model, data, params
        self.n_pos = max(pair.length for pair in data)
        self.classes = classes_of(data) if params.watch is None else params.watch
        self.queries, self.covered = masks(data, self.classes, params.position, self.n_pos)
        self.weights = self._weights(params.attend, params.position)
        self.shares: dict[Head, dict[str, float]] = {}
        if params.like is not None and other is not None:
            self.shares = copied.shares(model, other, params.heads, params.like)
            names = tuple(dict.fromkeys(params.like.classes.values()))
            self._weights(dict.fromkeys(names, 1 / len(names)), params.position)  # every prompt has every class
            _, covered = masks(data, names, params.position, self.n_pos)
            if (covered.sum(axis=1) > 1).any():
                raise InputError(f"The classes {', '.join(names)} of `like` have a token in common; leave one out.")
            self.here = {name: covered[:, c] for c, name in enumerate(names)}
        fault = params.fault
        self.fault_weights = None if fault is None else self._weights(fault.attend, fault.position)
        self.candidates = [self._candidates(i) for i in range(len(data))]
        self.answers = [set(pair.answers) or {pair.answer} for pair in data]

    def run(self, change: Change) -> Reading:
        """One condition."""
        parts = [self._part(change, at) for at in range(0, len(self.data), _PROMPTS_AT_ONCE)]
        names = ("right", "right_among", "logit_diff", "rows")
        return Reading(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def random(self, rng: np.random.Generator) -> Change:
        """The repair on as many other heads of the same layers; never the repaired heads nor those with the fault."""
        params, model = self.params, self.model
        spared = {*params.heads, *params.ablate, *(params.fault.heads if params.fault else ())}
        drawn: list[tuple[Head, ...]] = []
        for heads in (params.heads, params.ablate):
            taken = {head for some in drawn for head in some}
            options: dict[str, Any] = {"exclude": spared | taken, "shortage": "nearest", "n_layers": model.n_layers}
            drawn.append(stats.layer_matched_random(heads, model.n_heads, rng, **options) if heads else ())
        return Change(params.fault is not None, *drawn, sources=tuple(sorted(params.heads)))

    @cached_property
    def before(self) -> np.ndarray:
        """`[n, layer, head, key]`: rows at the position, with the fault if there is one."""
        return self.run(Change(fault=self.params.fault is not None)).rows

    def _set(self, change: Change) -> list[tuple[tuple[Head, ...], np.ndarray]]:
        """Heads and the rows `[n, key]` they get."""
        if self.weights is not None:
            return [(change.heads, self.weights[1])]
        return [
            ((head,), copied.row(self.shares[source], self.here, self.before[:, head[0], head[1]]))
            for head, source in zip(change.heads, change.sources, strict=True)
        ]

    def _part(self, change: Change, start: int) -> Reading:
        import torch

        from workbench.primitives.attention_rows import attending, reading
        from workbench.primitives.forward import forward
        from workbench.primitives.interventions import applied, uniform, zero

        here = range(start, min(start + _PROMPTS_AT_ONCE, len(self.data)))
        part, model, fault = slice(here.start, here.stop), self.model, self.params.fault
        batch = self.data.batch(here)
        tokens, mask = self._padded(batch.clean), self._padded(batch.mask.long())
        mask = None if bool(mask.all()) else mask
        edits = []
        if change.fault and fault is not None and fault.kind != "attend":
            edits.append((uniform if fault.kind == "uniform" else zero)(fault.heads))
        if change.ablate:
            edits.append(zero(change.ablate))
        rows_set = self._set(change) if change.heads else []
        with torch.no_grad(), ExitStack() as stack:
            stack.enter_context(applied(model, edits, attention_mask=mask))
            if change.fault and fault is not None and self.fault_weights is not None:
                columns, weights = self.fault_weights
                stack.enter_context(attending(model, fault.heads, _tensor(columns[part]), _tensor(weights[part])))
            for heads, weights in rows_set:
                stack.enter_context(attending(model, heads, _tensor(self.queries[part]), _tensor(weights[part])))
            seen = stack.enter_context(reading(model, _tensor(self.queries[part])))
            logits = forward(model, tokens, attention_mask=mask, logits_to_keep=1).logits[:, -1].float().cpu().numpy()
        rows = np.full((len(here), model.n_layers, model.n_heads, self.n_pos), np.nan, dtype=np.float32)
        for layer, pattern in seen.items():
            rows[:, layer] = pattern.float().cpu().numpy()
        return self._read(here, logits, rows)

    def _read(self, here: Sequence[int], logits: np.ndarray, rows: np.ndarray) -> Reading:
        right, among, difference = [], [], []
        for at, row in zip(here, logits, strict=True):
            pair, answers, candidates = self.data[at], self.answers[at], self.candidates[at]
            right.append(int(row.argmax()) in answers)
            among.append(candidates[int(row[candidates].argmax())] in answers)
            difference.append(float(row[pair.answer]) - float(row[pair.wrong]))
        return Reading(np.array(right), np.array(among), np.array(difference), rows)

    def _padded(self, values: Tensor) -> Tensor:
        """`values` `[n, pos]` padded on the left to the longest prompt of all, on the model's device."""
        from torch.nn.functional import pad

        return pad(values, (self.n_pos - values.shape[1], 0)).to(self.model.device)

    def _weights(self, attend: dict[str, float] | None, position: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Each prompt's query column and the row it gets.

        Raises:
            InputError: a prompt has no token of a class that is to be attended to.
        """
        if attend is None:
            return None
        queries, covered = masks(self.data, tuple(attend), position, self.n_pos)
        share = np.array(list(attend.values()))
        count = covered.sum(-1)  # [n, class]
        missing = (count == 0) & (share > 0)
        if missing.any():
            at, c = np.argwhere(missing)[0]
            raise InputError(
                f"Prompt {self.data[at].id!r} has no token of the class {list(attend)[c]!r} up to {position!r}, so no "
                "head can be made to attend to it; leave the class or the prompt out."
            )
        return queries, np.einsum("nck,nc->nk", covered, share / np.maximum(count, 1)).astype(np.float32)

    def _candidates(self, at: int) -> np.ndarray:
        """Tokens that could be the answer, the right ones among them."""
        pair = self.data[at]
        tokens = [pair.answer, pair.wrong, *pair.answers, *pair.wrongs]
        if self.params.candidates is not None:
            absent = [name for name in self.params.candidates if name not in pair.spans]
            if absent:
                raise InputError(
                    f"Prompt {pair.id!r} has no span {absent[0]!r} for `candidates`; it has {', '.join(pair.spans)}."
                )
            tokens = [pair.answer, *(pair.clean[pair.spans[name][0]] for name in self.params.candidates)]
        return np.array(list(dict.fromkeys(tokens)))


def _tensor(values: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(values)
