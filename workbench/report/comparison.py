"""Several results that score heads of one model, beside each other: agreement of every pair, and one wide table.

Results are compared within one model (fingerprint), basis and shape; what cannot be compared is said, not dropped in
silence. The statistics are `HeadTable.compare`'s and the wide table is `export.join`'s. It must never know an analysis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.export.frame import Frame
    from workbench.tables import HeadTable

_SCATTERS = 6  # pairs up to which each has its scatter
_LARGEST = 100  # k up to which overlap is drawn
_FIGURES = ("n", "pearson", "spearman", "jaccard", "a_in_b", "b_in_a", "p", "p_layer_matched", "rbo")


@dataclass(frozen=True)
class Group:
    """Results of one model that can be compared.

    Attributes:
        model: what the model is called.
        rule: which heads count as selected.
        tables: reference -> head table; all of heads, or all of kv groups.
        pairs: a row per pair, with every statistic and the shared heads.
        notes: what a reader must know about the comparison.
    """

    model: str
    rule: str
    tables: dict[str, HeadTable]
    pairs: list[dict[str, Any]]
    notes: tuple[str, ...]

    def frame(self) -> Frame:
        """Heads x results: score and rank in each, the best in any of them first."""
        from workbench.export import join

        n_rows = max(len(table) for table in self.tables.values())
        called = _short_names(self.tables)
        tables = {called[ref]: table for ref, table in self.tables.items()}
        return join(tables, ranks=True, across_models=True, top=max(1, n_rows))

    def figures(self) -> list[tuple[str, go.Figure]]:
        """Overlap of every pair, selections in exactly which results, overlap at k, and scatters."""
        from workbench import plots
        from workbench.errors import InputError

        made: list[tuple[str, go.Figure]] = []
        if len(self.tables) > 2:
            made.append(("matrix", plots.matrix(self.pairs, title=f"jaccard of heads selected by {self.rule}")))
            rho = plots.matrix(self.pairs, statistic="spearman", p=None, title="Spearman of the scores")
            made.append(("matrix", rho))
        selected = {ref: table.select(self.rule) for ref, table in self.tables.items()}
        if any(selected.values()):
            made.append(("upset", plots.upset(selected, title=f"heads selected by {self.rule}")))
        made.append(("overlap", _overlap_at_k(self.tables)))
        for a, b in list(combinations(self.tables, 2))[:_SCATTERS]:
            try:
                fig = plots.scatter(self.tables[a], self.tables[b], names=(a, b), rule=self.rule)
                made.append(("scatter", fig.update_layout(width=580, height=520)))  # two beside each other
            except InputError:  # no head is defined in both; the pair's row says n 0
                continue
        return made


def groups(tables: Mapping[str, HeadTable], rule: str | None = None) -> tuple[list[Group], list[str]]:
    """Comparable results together, and a sentence about each result that shares its model with another but cannot be.

    Args:
        rule: which heads count as selected; by default the top 10, or fewer where that is more than a fifth of all.
    """
    by_model: dict[tuple[str, str], dict[str, HeadTable]] = {}
    for ref, table in tables.items():
        by_model.setdefault((table.meta["fingerprint"] or table.meta["model"], table.meta["basis"]), {})[ref] = table
    found, notes = [], []
    for (_, _basis), same in by_model.items():
        made, mixed = _one_kind(same)
        by_shape: dict[tuple[int, int], dict[str, HeadTable]] = {}
        for ref, table in made.items():
            by_shape.setdefault(table.shape, {})[ref] = table
        for alike in by_shape.values():
            if len(alike) > 1:
                found.append(_group(alike, rule, mixed))
            elif len(same) > 1:
                notes.append(f"{next(iter(alike))} covers another number of layers or heads than its neighbours")
    bases = {}
    for model, basis in by_model:
        bases.setdefault(model, []).append(basis)
    for model, several in bases.items():
        if len(several) > 1:
            refs = [ref for basis in several for ref in by_model[model, basis]]
            notes.append(f"{', '.join(refs)} were measured in different bases ({', '.join(several)})")
    return found, notes


def _group(tables: dict[str, HeadTable], rule: str | None, mixed: bool) -> Group:
    total = min(len(table) for table in tables.values())
    chosen = rule or f"top {max(1, min(10, total // 5))}"
    pairs = []
    for a, b in combinations(tables, 2):
        found = tables[a].compare(tables[b], rule=chosen).to_dict()
        shared = ", ".join(f"{layer}.{head}" for layer, head in found["shared"]) or "none"
        pairs.append({"a": a, "b": b, **{name: found[name] for name in _FIGURES}, "shared": shared})
    notes = ["per kv group: the best head stands for its group"] if mixed else []
    turned = [ref for ref, table in tables.items() if not table.meta["higher_is_more"]]
    if turned and len(turned) < len(tables):
        notes.append(f"in {', '.join(turned)} lower is more, so a negative correlation with the others is agreement")
    models = dict.fromkeys(str(table.meta["model"]) for table in tables.values())  # one model may have two names
    return Group(", ".join(filter(None, models)), chosen, tables, pairs, tuple(notes))


def _one_kind(tables: Mapping[str, HeadTable]) -> tuple[dict[str, HeadTable], bool]:
    """All of heads, or all of kv groups where one of them is; tables that do not know their groups stay out."""
    kinds = {table.row_kind for table in tables.values()}
    if len(kinds) < 2:
        return dict(tables), False
    known = {ref: table for ref, table in tables.items() if not (table["kv_group"] < 0).any()}
    return {ref: table.by_kv_group("max") for ref, table in known.items()}, True


def _overlap_at_k(tables: Mapping[str, HeadTable]) -> go.Figure:
    """Share of the k best heads that each pair has in common, for every k, and what chance would give."""
    from workbench import plots

    total = min(int(table.ok.sum()) for table in tables.values())
    ks = range(1, max(1, min(total, _LARGEST)) + 1)
    order = {ref: _ranked(table) for ref, table in tables.items()}
    called = _short_names(tables)
    rows: list[dict[str, Any]] = [{"k": k, "shared": k / max(total, 1), "group": "chance"} for k in ks]
    for a, b in combinations(tables, 2):
        for k in ks:
            shared = len({*order[a][:k]} & {*order[b][:k]})
            rows.append({"k": k, "shared": shared / k, "group": f"{called[a]} and {called[b]}"})
    data = {name: [row[name] for row in rows] for name in ("k", "shared", "group")}
    none = [float("nan")] * len(rows)
    return plots.curves({**data, "ci_low": none, "ci_high": none}, y="shared", title="overlap of the k best")


def _short_names(tables: Mapping[str, HeadTable]) -> dict[str, str]:
    """What tells the results apart at a glance: their analyses, where no two are of the same."""
    said = {ref: str(table.meta["analysis"]) for ref, table in tables.items()}
    return said if len(set(said.values())) == len(said) else {ref: ref for ref in tables}


def _ranked(table: HeadTable) -> list[tuple[int, int]]:
    """The defined heads, best first."""
    keys, ok = table.keys(), table.ok
    rows = np.argsort(np.where(ok, table["rank"], np.inf), kind="stable")[: int(ok.sum())]
    return [keys[row] for row in rows]
