"""Iterative path patching, backwards from the logits (Merullo et al. 2024, section 3; Wang et al. 2022).

1. Stage 1: the receiver is the logits. Every head sends as in the other run along its direct path (`primitives.paths`).
2. The senders that the rule lets in are the circuit's nodes of this stage, with an edge each.
3. Stage k + 1: q of every new head, and k and v of its kv group, are receivers; q, k and v apart, because which input
   matters is part of the answer. `receivers: together` (the paper): a sender speaks to q of all new heads at once, then
   to k of all, to v of all, and what joins is asked again about each receiver, for the edges. `alone`: about each
   receiver only. Where many heads share the work, no single one of them makes a difference: together finds more. Where
   some work against others, effects cancel: alone finds more.
4. Until a stage finds nothing new. A head found twice keeps its first stage.

Edges of a sender that joined through a question about n receivers: those on which it has, alone, the n-th part of the
threshold at least, or else the strongest.

All views of the task are asked at every step, and a node that one of them shows is a receiver for all; so the effects
of every edge under every view are known, and what one view would have found alone is a part of the same graph.

    effect      (metric with the path patched - metric of the base run) / gap, means over prompts first
    q           Benjamini-Hochberg over the senders of one question, of a two-sided t-test over prompts
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from workbench import stats
from workbench.analyses.circuit.graph import LOGITS, CircuitGraph, Edge, Node

if TYPE_CHECKING:
    from workbench.analyses.circuit.params import CircuitParams
    from workbench.analyses.circuit.views import Views
    from workbench.models import Model

TOTAL = "total"  # "receiver" of a node's effect along all paths


@dataclass
class Measured:
    """Effects of senders on receivers under every view, and which of them belong to the circuit.

    Attributes:
        views, senders: names, in the order of the arrays.
        group: query heads per kv group.
        share: question -> `[view, sender, example]` float32; NaN where no path leads, or it was not asked. A question
            is a receiver, or several of them by a name of its own (`together`).
        passes: question -> `[view, sender]`.
        q: question -> `[view, sender]`; NaN where significance was not asked for.
        stage: question -> the stage that asked it.
        joint: questions about several receivers.
    """

    views: list[str]
    senders: list[str]
    group: int
    share: dict[str, np.ndarray] = field(default_factory=dict)
    passes: dict[str, np.ndarray] = field(default_factory=dict)
    q: dict[str, np.ndarray] = field(default_factory=dict)
    stage: dict[str, int] = field(default_factory=dict)
    joint: set[str] = field(default_factory=set)

    def graph(self, view: str | None = None) -> CircuitGraph:
        """The circuit of all views, or what one of them shows alone."""
        rows = list(range(len(self.views))) if view is None else [self.views.index(view)]
        passed = [edge for question in self.share for edge in self._edges(question, rows)]
        by_sender: dict[str, list[Edge]] = {}
        for edge in passed:
            by_sender.setdefault(edge.sender, []).append(edge)
        nodes = tuple(self._node(name, out) for name, out in by_sender.items())
        if TOTAL in self.share:
            return CircuitGraph(nodes, (), self.group)
        edges = tuple(edge for edge in passed if edge.receiver not in self.joint)
        graph = CircuitGraph(nodes, edges, self.group)
        return graph.only(graph.keys())

    def _edges(self, receiver: str, rows: list[int]) -> list[Edge]:
        mean, error = stats.mean(np.moveaxis(self.share[receiver], 2, 0)), self.stderr(receiver)
        passes = self.passes[receiver]
        found = []
        for s in np.flatnonzero(passes[rows].any(axis=0)):
            best = max(rows, key=lambda v: -1.0 if np.isnan(mean[v, s]) else abs(mean[v, s]))
            seen = tuple(self.views[v] for v in rows if passes[v, s])
            effect, stderr = float(mean[best, s]), float(error[best, s])
            found.append(Edge(self.senders[s], receiver, effect, stderr, self.stage[receiver], self.views[best], seen))
        return found

    def _node(self, name: str, out: list[Edge]) -> Node:
        best = max(out, key=lambda edge: abs(edge.effect))
        seen = tuple(view for view in self.views if any(view in edge.seen_by for edge in out))
        return Node(name, best.effect, best.stderr, min(edge.stage for edge in out), "", seen)

    def mean(self, receiver: str) -> np.ndarray:
        """`[view, sender]`."""
        return stats.mean(np.moveaxis(self.share[receiver], 2, 0))

    def stderr(self, receiver: str) -> np.ndarray:
        """`[view, sender]`."""
        return stats.stderr(np.moveaxis(self.share[receiver].astype(np.float64), 2, 0))

    def add(self, receiver: str, stage: int, share: np.ndarray) -> None:
        self.share[receiver], self.stage[receiver] = share.astype(np.float32), stage


def path_patching(model: Model, views: Views, params: CircuitParams) -> Measured:
    """Walk backwards from the logits."""
    from workbench.primitives.paths import all_senders, sender_name

    units = all_senders(model, mlps=params.mlp_nodes)
    found = Measured(views.names, [sender_name(unit[0]) for unit in units], model.n_heads // model.n_kv_heads)

    def ask(receivers: list[str], who: np.ndarray | None = None) -> np.ndarray:
        """`[view, sender, example]`; NaN for senders not in `who` (default: all)."""
        chosen = np.arange(len(units)) if who is None else who
        senders = [units[s] for s in chosen]
        share = np.full((len(views.all), len(units), len(views.all[0].base)), np.nan)
        for v, view in enumerate(views.all):
            question = {"receivers": receivers, "senders": senders, "mlps": params.mlps}
            share[v, chosen] = view.share(view.runs.patch({"m": view.readout}, **question).effect("m"))  # type: ignore[arg-type]
        return share

    frontier, asked, nodes, stage = [LOGITS], {LOGITS}, set(), 0
    while frontier and stage < params.max_stages:
        stage += 1
        questions = _questions(frontier, stage, together=params.receivers == "together")
        for name, receivers in questions.items():
            found.add(name, stage, ask(receivers))
        judge(found, list(questions), params, n_nodes=len(units))
        for name, receivers in questions.items():
            who = np.flatnonzero(found.passes[name].any(axis=0))
            if len(receivers) > 1:
                found.joint.add(name)
                if len(who):
                    for receiver in receivers:
                        found.add(receiver, stage, ask([receiver], who))
                    _split(found, name, receivers, params)
        new = [
            name
            for s, name in enumerate(found.senders)
            if name not in nodes and any(found.passes[question][:, s].any() for question in questions)
        ]
        nodes |= set(new)
        inputs = dict.fromkeys(receiver for name in new for receiver in receivers_of(name, found.group))
        frontier = [receiver for receiver in inputs if receiver not in asked]
        asked |= set(frontier)
    return found


def _questions(receivers: list[str], stage: int, *, together: bool) -> dict[str, list[str]]:
    """Name of a question -> the receivers it is about."""
    if not together:
        return {receiver: [receiver] for receiver in receivers}
    parts: dict[str, list[str]] = {}
    for receiver in receivers:
        parts.setdefault(receiver.rsplit(".", 1)[-1], []).append(receiver)
    return {some[0] if len(some) == 1 else f"{part} of stage {stage}": some for part, some in parts.items()}


def _split(found: Measured, question: str, receivers: list[str], params: CircuitParams) -> None:
    """Which single receivers get an edge from the senders that passed the question about all of them."""
    passed = found.passes[question]
    means = np.nan_to_num(np.stack([found.mean(receiver) for receiver in receivers]))  # [receiver, view, sender]
    chosen = (np.abs(means) >= params.least / len(receivers)) & (means != 0)
    q = np.full(means.shape, np.nan)
    if params.rule == "significant":
        p = np.stack([t_test(found.mean(r), found.stderr(r), found.share[r]) for r in receivers])
        q = np.stack([stats.benjamini_hochberg(p[:, v]) for v in range(len(found.views))], axis=1)
        chosen &= np.nan_to_num(q, nan=1.0) < params.alpha
    none = ~chosen.any(axis=0)
    strongest = np.abs(means).argmax(axis=0)[None] == np.arange(len(receivers))[:, None, None]
    chosen |= strongest & none
    for r, receiver in enumerate(receivers):
        found.passes[receiver], found.q[receiver] = chosen[r] & passed, q[r]


def receivers_of(name: str, group: int) -> tuple[str, ...]:
    """Inputs of a node: q, and k and v of its kv group; an MLP is its own."""
    if name.endswith(".mlp"):
        return (name,)
    layer, head = name.split(".")
    return f"{layer}.{head}.q", f"{layer}.{int(head) // group}.k", f"{layer}.{int(head) // group}.v"


def judge(found: Measured, receivers: list[str], params: CircuitParams, *, n_nodes: int) -> None:
    """Apply the rule to the effects of one stage."""
    means = {receiver: found.mean(receiver) for receiver in receivers}
    cutoff = np.full(len(found.views), params.least)
    if params.rule == "top":
        best = np.nanmax([np.abs(np.nan_to_num(mean)) for mean in means.values()], axis=0)  # [view, sender]
        rank = max(1, math.ceil(params.top * n_nodes - 1e-9))
        cutoff = np.maximum(cutoff, -np.sort(-best, axis=1)[:, min(rank, best.shape[1]) - 1])
    for receiver, mean in means.items():
        size = np.abs(np.nan_to_num(mean))
        found.passes[receiver] = (size >= cutoff[:, None]) & (size > 0)
        found.q[receiver] = np.full(mean.shape, np.nan)
        if params.rule == "significant":
            p = t_test(mean, found.stderr(receiver), found.share[receiver])
            found.q[receiver] = np.stack([stats.benjamini_hochberg(row) for row in p])
            found.passes[receiver] &= np.nan_to_num(found.q[receiver], nan=1.0) < params.alpha


def t_test(mean: np.ndarray, stderr: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Two-sided p of "the mean over prompts (last axis of `values`) is 0"; NaN with fewer than two prompts."""
    from scipy.stats import t

    n = (~np.isnan(values)).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * t.sf(np.abs(mean / stderr), np.maximum(n - 1, 1))
    p = np.where((stderr == 0) & (mean != 0), 0.0, np.where((stderr == 0) & (mean == 0), 1.0, p))
    return np.where(n < 2, np.nan, p)


def total_effects(model: Model, views: Views, params: CircuitParams) -> dict[str, np.ndarray]:
    """`[view, node, example]` under "share", and node names: every node exchanged alone, along all its paths.

    Corruptions: activation patching (`primitives.patching`). Ablation: the model without the node (`circuit_run`).
    """
    from workbench.primitives.circuit_run import CircuitRun, all_nodes, complement
    from workbench.primitives.patching import patch_cells
    from workbench.primitives.paths import sender_name
    from workbench.primitives.sites import Component, Site

    nodes = all_nodes(model, mlps=params.mlp_nodes)
    shares = []
    for view in views.all:
        here, there, mask = view.runs.base.tokens, view.tokens, view.runs.base.mask
        denoising = params.direction == "denoising" and not view.is_ablation
        readouts: Mapping = {"m": view.readout}
        if view.is_ablation or params.mlp_nodes:
            fill = params.ablation if view.is_ablation else here if denoising else there
            options = {"attention_mask": mask, "mlps": params.mlp_nodes, "batch_rows": params.batch_rows}
            run = CircuitRun.of(model, there if denoising else here, fill, **options)  # type: ignore[arg-type]
            values = run.measure([complement(nodes, [node]) for node in nodes], readouts)["m"]
        else:
            cells = [Site(Component.Z, layer, head) for layer, head in nodes]
            ends = (there, here) if denoising else (here, there)
            values = patch_cells(
                model, *ends, cells, readouts, attention_mask=mask, batch_rows=params.batch_rows
            ).values["m"]
        start = view.other if denoising else view.base
        shares.append(view.share(values - start) * (-1 if denoising else 1))
    return {"share": np.stack(shares), "names": np.array([sender_name(node) for node in nodes])}
