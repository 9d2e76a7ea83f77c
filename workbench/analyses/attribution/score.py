"""All pairs through the attribution primitives, in batches: raw scores per example, and running sums over edges.

It decides which examples share a batch and where gradients are taken; formulas are in `primitives.attribution`, tables
in `tables`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.analyses import pair_effects as pairs
from workbench.analyses.attribution.params import AttributionParams
from workbench.progress import bar

if TYPE_CHECKING:
    from torch import Tensor

    from workbench.models import Model
    from workbench.primitives.attribution import Graph, NodeScores
    from workbench.tasks.pairs import PairDataset

_TOKENS_AT_ONCE = 4096  # of one forward and backward pass
_EDGE_BYTES = 1 << 28  # working memory of a batch of edge scores


@dataclass
class EdgeSums:
    """Sums over the examples that count, `[sender, receiver]`, so that no example's edges are kept."""

    graph: Graph
    n: int = 0
    raw: Any = 0.0
    share: Any = 0.0
    square: Any = field(default=0.0)

    def add(self, scores: np.ndarray, gap: np.ndarray) -> None:
        """`scores` `[n, sender, receiver]`; an undefined gap leaves its example out."""
        kept = ~np.isnan(gap)
        shares = scores[kept] / gap[kept, None, None]
        self.n += int(kept.sum())
        self.raw = self.raw + scores[kept].sum(axis=0)
        self.share = self.share + shares.sum(axis=0)
        self.square = self.square + (shares**2).sum(axis=0)

    @property
    def score(self) -> np.ndarray:
        """Mean share; NaN where no edge is, or no example counts."""
        return self.share / self.n if self.n else np.full(self.graph.exists().shape, np.nan)

    @property
    def raw_effect(self) -> np.ndarray:
        return self.raw / self.n if self.n else self.score

    @property
    def stderr(self) -> np.ndarray:
        if self.n < 2:
            return np.full(self.graph.exists().shape, np.nan)
        spread = np.maximum(self.square - self.n * self.score**2, 0)
        return np.sqrt(spread / (self.n * (self.n - 1)))


@dataclass
class Found:
    """Raw scores of every example, in the order of the data; `gap` is NaN where the example does not count."""

    heads: np.ndarray
    mlps: np.ndarray
    inputs: np.ndarray
    null: np.ndarray
    base: np.ndarray
    other: np.ndarray
    gap: np.ndarray
    edges: EdgeSums | None = None

    @classmethod
    def empty(cls, n: int, n_layers: int, n_heads: int) -> Found:
        def nan(*shape: int) -> np.ndarray:
            return np.full((n, *shape), np.nan)

        return cls(nan(n_layers, n_heads), nan(n_layers), nan(), nan(n_layers, n_heads), nan(), nan(), nan())

    def share(self, raw: np.ndarray) -> np.ndarray:
        """Of the gap between the two runs, per example."""
        return raw / self.gap.reshape(-1, *[1] * (raw.ndim - 1))


@dataclass
class Work:
    """The two runs of all pairs and how they are scored.

    Attributes:
        donors: per draw of the null, the example whose base run each example gets, and where there is one.
        where: positions at which activations are exchanged; None for all.
        defined: examples that have all of these positions.
        path: where gradients are taken, from the other run (0) to the base run (1).
    """

    model: Model
    params: AttributionParams
    two: pairs.Runs
    donors: list[tuple[np.ndarray, np.ndarray]]
    where: Tensor | None
    defined: np.ndarray
    path: tuple[float, ...]

    @classmethod
    def prepare(cls, model: Model, data: PairDataset, params: AttributionParams, rng: np.random.Generator) -> Work:
        from workbench.primitives.attribution import AT_BASE, integration_path
        from workbench.primitives.two_runs import places

        two = pairs.runs(model, data, params, "attribution")
        donors = [pairs.donors(two.lengths, rng) for _ in range(params.controls)]
        where, defined = None, np.ones(len(data), dtype=bool)
        if params.positions is not None:
            where, has_all = places(len(data), two.base.shape[1], params.positions, two.mask)
            defined = has_all.numpy()
        path = AT_BASE
        if params.method == "eap_ig":  # the rule counts from the corrupted run, as published
            noising = params.direction == "noising"
            path = integration_path(params.steps, rule=params.rule, from_other=noising)
        return cls(model, params, two, donors, where, defined, path)

    def score(self) -> Found:
        """Every score of every example."""
        from workbench.primitives.attribution import edge_scores, node_scores, wiring

        found = Found.empty(len(self.two.lengths), self.model.n_layers, self.model.n_heads)
        if self.params.level == "edge":
            found.edges = EdgeSums(wiring(self.model).graph)
        with bar(len(self.two.lengths), "attribution") as shown:
            for rows, batch in self.batches():
                width = batch["base"].shape[1]
                controls = [self.two.base[take[rows]][:, -width:] for take, _ in self.donors]
                options = {"path": self.path, "controls": controls, **batch}
                if found.edges is None:
                    self._keep(found, rows, node_scores(self.model, **options))
                else:
                    edges = edge_scores(self.model, **options)
                    self._keep(found, rows, edges.nodes)
                    found.edges.add(edges.scores.double().numpy(), found.gap[rows])
                shown.update(len(rows))
        return found

    def batches(self) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        """Example numbers, and the arguments of a primitive for them; alike lengths together, idle columns cut."""
        import torch

        width = self.two.base.shape[1]
        order = np.argsort(self.two.lengths, kind="stable")
        size = self._batch_rows(width)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            cut = slice(width - int(self.two.lengths[rows].max()), None)
            mask = None if self.two.mask is None else self.two.mask[rows][:, cut]
            batch = {
                "base": self.two.base[rows][:, cut],
                "other": self.two.other[rows][:, cut],
                "metric": self.two.readouts[self.params.metric],
                "rows": torch.from_numpy(rows),
                "attention_mask": None if mask is None or bool(mask.all()) else mask,
                "where": None if self.where is None else self.where[rows][:, cut],
            }
            yield rows, batch

    def _batch_rows(self, width: int) -> int:
        from workbench.primitives.attribution import bytes_per_example

        if self.params.batch_rows is not None:
            return self.params.batch_rows
        size = _TOKENS_AT_ONCE // width
        if self.params.level == "edge":
            size = min(size, _EDGE_BYTES // bytes_per_example(self.model, width))
        return max(1, size)

    def _keep(self, found: Found, rows: np.ndarray, scores: NodeScores) -> None:
        from workbench.primitives.two_runs import share_of_gap

        base, other = scores.base.double().numpy(), scores.other.double().numpy()
        found.heads[rows], found.mlps[rows] = scores.heads.double().numpy(), scores.mlps.double().numpy()
        found.inputs[rows], found.base[rows], found.other[rows] = scores.inputs.double().numpy(), base, other
        if self.donors:
            draws = scores.null.double().numpy()
            exists = np.stack([has_one[rows] for _, has_one in self.donors])
            found.null[rows] = np.where(exists[:, :, None, None], draws, np.nan).mean(axis=0)
        counts = ~np.isnan(share_of_gap(other, base, other, least=self.params.least)) & self.defined[rows]
        found.gap[rows] = np.where(counts, other - base, np.nan)
