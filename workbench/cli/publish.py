"""`workbench compare`: what several results have in common."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli.options import DebugOption, JsonOption, StoreOption
from workbench.cli.output import emit, emit_facts, emit_json, emit_table, heading
from workbench.errors import InputError
from workbench.report.figures import heads

if TYPE_CHECKING:
    from workbench.store import Store
    from workbench.tables import HeadTable

_PUBLISHED = ("wu", "duo")
_STATISTICS = {"jaccard": 1.0, "weighted_jaccard": 1.0, "rbo": 1.0, "spearman": 1.0, "p_layer_matched": None}


def register(app: typer.Typer) -> None:
    app.command("compare", short_help="Overlap of head sets, with significance.")(compare)


def compare(
    refs: Annotated[
        list[str],
        typer.Argument(metavar="REF REF...", help="References, or published files: wu:FILE.json, duo:FILE.tsv."),
    ],
    rule: Annotated[
        str, typer.Option(help="Which heads count: 'top 10', 'top 5%', 'score >= 0.1', 'q < 0.05'.")
    ] = "top 10",
    any_basis: Annotated[bool, typer.Option("--any-basis", help="Compare across raw and folded weights.")] = False,
    matrix: Annotated[bool, typer.Option("--matrix", help="A results x results table of every statistic.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
    _debug: DebugOption = False,
) -> None:
    """Overlap of the heads that several results select, pair by pair, with its significance."""
    from workbench.store import Store

    if len(refs) < 2:
        raise InputError(f"compare needs two results or more, but got only {refs[0]!r}.")
    place = Store(store)
    tables = {ref: head_table(ref, place) for ref in refs}
    if len(tables) < 2:
        raise InputError(f"compare needs two different results, but got {refs[0]!r} twice.")
    found = [pair(a, b, tables, rule, any_basis) for a, b in combinations(tables, 2)]
    names = list(tables)
    tabled = {name: _matrix(name, names, found) for name in _STATISTICS} if matrix else {}
    if as_json:
        emit_json({"refs": names, "rule": rule, "matrix": tabled, "pairs": found} if matrix else found)
        return
    emit(f"heads selected by {rule!r}; p: chance of at least this overlap between random sets of these sizes,")
    emit("p layer: between random sets with as many heads in every layer")
    heading("overlap")
    headings = ("a", "b", "rows", "in a", "in b", "shared", "jaccard", "p", "p layer", "weighted", "rbo", "spearman")
    rows = []
    for c in found:
        counts = (len(c["heads_a"]), len(c["heads_b"]), len(c["shared"]))
        figures = [c[key] for key in ("jaccard", "p", "p_layer_matched", "weighted_jaccard", "rbo", "spearman")]
        rows.append((c["a"], c["b"], c["n"], *counts, *figures))
    emit_table(headings, rows)
    for name, values in tabled.items():
        heading(name)
        emit_table(("", *names), [(ref, *row) for ref, row in zip(names, values, strict=True)])
    for c in found:
        heading(f"{c['a']} and {c['b']}")
        share = ", ".join(f"{layer}.{head}" for layer, head in c["shared"]) or "none"
        emit_facts({"shared": share, "rows are": c["rows_are"]}, indent="  ")


def head_table(ref: str, store: Store) -> HeadTable:
    """The head table of a reference, or of a published file named `wu:PATH` or `duo:PATH`."""
    kind, colon, path = ref.partition(":")
    if colon and kind in _PUBLISHED:
        from workbench import published

        return published.read_wu_json(path) if kind == "wu" else published.read_duo_tsv(path)
    if colon and kind != "sha256" and "@" not in kind:
        raise InputError(f"{ref!r} is no published file; write wu:FILE.json or duo:FILE.tsv.")
    return heads(store[ref])


def pair(a: str, b: str, tables: dict[str, HeadTable], rule: str, any_basis: bool) -> dict[str, Any]:
    """Agreement of two of the tables, as plain values."""
    left, right = tables[a], tables[b]
    if left.row_kind != right.row_kind:  # gates are per kv group: the best head stands for its group
        n_groups = (left if left.row_kind == "kv_group" else right).n_heads
        left, right = (_by_group(table, n_groups) for table in (left, right))
    found = left.compare(right, rule=rule, allow_basis_mismatch=any_basis)
    return {"a": a, "b": b, "rows_are": f"{left.row_kind}s", **found.to_dict()}


def _matrix(statistic: str, refs: list[str], found: list[dict[str, Any]]) -> list[list[float | None]]:
    """`[ref][ref]`; on the diagonal what a result has with itself, nothing for a p-value."""
    values = {(c["a"], c["b"]): c[statistic] for c in found}
    return [[_STATISTICS[statistic] if a == b else values.get((a, b), values.get((b, a))) for b in refs] for a in refs]


def _by_group(table: HeadTable, n_groups: int) -> HeadTable:
    """Rows per kv group; a published table of heads does not know its groups, so the other table's number is used."""
    from workbench.tables import HeadTable

    if table.row_kind == "kv_group":
        return table
    if (table["kv_group"] < 0).any():
        table = HeadTable.from_scores(table.matrix(), n_kv_heads=n_groups, meta=table.meta)
    return table.by_kv_group("max")
