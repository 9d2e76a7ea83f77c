"""`workbench plot`: which figure a result's tables allow, and the figure. It knows columns, not analyses."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli.options import DebugOption, JsonOption, StoreOption
from workbench.cli.output import emit, emit_json
from workbench.cli.publish import head_table, heads, pair
from workbench.errors import InputError, NotFound, did_you_mean

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.store import Artifact, Store

# kind -> tables it is drawn from, with the columns they need
_NEEDS: dict[str, dict[str, tuple[str, ...]]] = {
    "heatmap": {"heads": ()},
    "bars": {"heads": ()},
    "matrix": {"pairs": ("a", "b", "jaccard")},
    "upset": {"heads": ()},
    "graph": {"nodes": ("node", "layer"), "edges": ("sender", "receiver", "effect")},
    "faithfulness": {"curve": ("size", "f")},
    "roc": {"roc": ("fpr", "tpr")},
}
_SEVERAL = ("matrix", "upset", "scatter")  # drawn from the head tables of several results
KINDS = (*_NEEDS, "scatter")
_MEMBER = "in_"  # columns of a head table that say whether a head belongs to something


def register(app: typer.Typer) -> None:
    app.command("plot", short_help="Draw a result, or several beside each other.")(plot)


def plot(
    refs: Annotated[
        list[str],
        typer.Argument(
            metavar="REF", help="One reference; several for matrix, upset and scatter (wu:FILE, duo:FILE too)."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help=".html, .png, .svg or .pdf; default NAME-vN.html here, or one with KIND in its name."
        ),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(
            help="heatmap: column of the head table (default score). matrix: statistic (default jaccard). "
            "scatter: score or rank."
        ),
    ] = None,
    kind: Annotated[
        str,
        typer.Option(
            help="heatmap (layer x head), bars (best heads), matrix (overlap of every pair), upset (heads in exactly "
            "which selections), graph (a circuit), faithfulness (by size), roc, scatter (two results)."
        ),
    ] = "heatmap",
    rule: Annotated[
        str | None,
        typer.Option(
            help="Which heads count, for upset, scatter and matrix of several results: 'top 10', 'q < 0.05', ..."
        ),
    ] = None,
    any_basis: Annotated[bool, typer.Option("--any-basis", help="Compare across raw and folded weights.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
    _debug: DebugOption = False,
) -> None:
    """Draw a result; the HTML file needs no network. Which kinds there are depends on its tables."""
    from workbench.store import Store

    if kind not in KINDS:
        raise InputError(f"There is no plot {kind!r}; choose {', '.join(KINDS)}.{did_you_mean(kind, KINDS)}")
    if column is not None and kind in ("upset", "graph", "faithfulness", "roc"):
        raise InputError(f"--column has no meaning for --kind {kind}; leave it out.")
    names = list(dict.fromkeys(refs))
    if rule is not None and (kind not in _SEVERAL or (kind == "matrix" and len(names) == 1)):
        raise InputError(f"--rule has no meaning for --kind {kind} of one result; leave it out.")
    place = Store(store)
    if kind == "scatter" and len(names) != 2:
        raise InputError(f"scatter draws two different results, but got {len(names)}: {', '.join(names)}.")
    if len(names) > 1:
        if kind not in _SEVERAL:
            raise InputError(f"{kind} draws one result, but got {len(names)}; several are for {', '.join(_SEVERAL)}.")
        figure = _of_several(names, place, kind, column, rule or "top 10", any_basis)
        path, about = Path(f"{kind}.html"), {"refs": names}
    else:
        artifact = place[names[0]]
        figure = _of_one(artifact, kind, column, rule)
        ending = "" if kind in ("heatmap", "bars") else f"-{kind}"
        path = Path(f"{artifact.name.replace('/', '-')}-v{artifact.version}{ending}.html")
        about = {"ref": artifact.ref}
    from workbench import plots

    path = output or path
    plots.write(figure, path)
    if as_json:
        emit_json({"path": str(path), "kind": kind, **about})
    else:
        emit(str(path))


def possible(artifact: Artifact) -> list[str]:
    """The kinds that a result's tables allow, by their columns."""
    return [kind for kind in _NEEDS if _has(artifact, kind)]


def _of_one(artifact: Artifact, kind: str, column: str | None, rule: str | None) -> go.Figure:
    from workbench import plots

    if not artifact.removed and not _has(artifact, kind):
        others = possible(artifact)
        can = f"it can be drawn as {', '.join(others)}" if others else "it has no table that can be drawn"
        raise NotFound(f"{artifact.ref} has no table for --kind {kind} ({_wanted(kind)}); {can}.")
    if kind == "heatmap":
        return plots.heads(heads(artifact), column=column or "score")
    if kind == "bars":
        return plots.bars(heads(artifact))
    if kind == "matrix":
        return plots.matrix(artifact.table("pairs"), statistic=column or "jaccard", title=_title(artifact, column))
    if kind == "upset":
        return plots.upset(_members(artifact, rule), title=artifact.ref if rule is None else f"{artifact.ref} · {rule}")
    if kind == "graph":
        return plots.graph(artifact.table("nodes"), artifact.table("edges"), group=_group(artifact), title=artifact.ref)
    if kind == "faithfulness":
        sets = artifact.table("faithfulness") if "faithfulness.parquet" in artifact.files() else None
        return plots.faithfulness(artifact.table("curve"), sets, title=f"{artifact.ref} · faithfulness by size")
    return plots.roc(artifact.table("roc"), title=f"{artifact.ref} · ROC, area in brackets")


def _of_several(
    names: Sequence[str], store: Store, kind: str, column: str | None, rule: str, any_basis: bool
) -> go.Figure:
    from workbench import plots

    tables = {name: head_table(name, store) for name in names}
    if kind == "upset":
        kinds = {table.row_kind for table in tables.values()}
        if len(kinds) > 1:
            raise InputError("Some of the results have a row per head, others per kv group; upset needs the same rows.")
        return plots.upset(
            {name: table.select(rule) for name, table in tables.items()}, title=f"heads selected by {rule}"
        )
    if kind == "scatter":
        first, second = names
        options: dict[str, Any] = {"by": column or "score", "rule": rule, "allow_basis_mismatch": any_basis}
        return plots.scatter(tables[first], tables[second], names=(first, second), **options)
    pairs = [pair(a, b, tables, rule, any_basis) for a, b in combinations(tables, 2)]
    statistic = column or "jaccard"
    return plots.matrix(pairs, statistic=statistic, title=f"{statistic.replace('_', ' ')} of heads selected by {rule}")


def _members(artifact: Artifact, rule: str | None) -> dict[str, list[tuple[int, int]]]:
    """The heads that one result puts into sets of its own (columns in_NAME), or else what a rule selects."""
    table = heads(artifact)
    if rule is None:
        keys = table.keys()
        made = {}
        for name, values in table.columns.items():
            if name.startswith(_MEMBER) and set(values.tolist()) <= {True, False}:
                made[name.removeprefix(_MEMBER)] = [key for key, inside in zip(keys, values, strict=True) if inside]
        if made:
            return made
    return {artifact.ref: list(table.select(rule or "top 10"))}


def _group(artifact: Artifact) -> int:
    """Query heads per kv group, as the head table says."""
    if "heads.parquet" not in artifact.files():
        return 1
    table = artifact.table("heads", columns=["layer", "kv_group"])
    rows = zip(table.column("layer").to_pylist(), table.column("kv_group").to_pylist(), strict=True)
    return max(1, sum(layer == 0 and group == 0 for layer, group in rows))


def _has(artifact: Artifact, kind: str) -> bool:
    if kind not in _NEEDS:
        return False
    for table, columns in _NEEDS[kind].items():
        if f"{table}.parquet" not in artifact.files():
            return False
        if columns and not set(columns) <= set(artifact.table(table).column_names):
            return False
    return True


def _wanted(kind: str) -> str:
    """The tables a kind needs, in words."""
    needs = (f"{table} with {', '.join(columns)}" if columns else table for table, columns in _NEEDS[kind].items())
    return " and ".join(needs)


def _title(artifact: Artifact, column: str | None) -> str:
    return f"{artifact.ref} · {(column or 'jaccard').replace('_', ' ')}"
