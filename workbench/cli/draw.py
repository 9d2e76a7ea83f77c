"""`workbench plot`: which figure a result's tables allow, and the figure. It knows columns, not analyses."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli.options import DebugOption, JsonOption, StoreOption
from workbench.cli.output import emit, emit_json
from workbench.cli.publish import head_table, pair
from workbench.errors import InputError, did_you_mean
from workbench.report import figures

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.store import Store

_SEVERAL = ("matrix", "upset", "scatter")  # drawn from the head tables of several results
KINDS = (*figures.KINDS, "scatter")


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
            help="heatmap: column of the head table (default score). positions: column (default score). masking: "
            "column (default recall). matrix: statistic (default jaccard). scatter: score or rank."
        ),
    ] = None,
    kind: Annotated[
        str,
        typer.Option(
            help=", ".join(f"{name} ({kind.said})" for name, kind in figures.KINDS.items())
            + ", scatter (two results). Several results: matrix, upset, scatter."
        ),
    ] = "heatmap",
    rule: Annotated[
        str | None,
        typer.Option(
            help="Which heads count, for upset, scatter and matrix of several results: 'top 10', 'q < 0.05', ..."
        ),
    ] = None,
    theme: Annotated[str, typer.Option(help="light or dark.")] = "light",
    any_basis: Annotated[bool, typer.Option("--any-basis", help="Compare across raw and folded weights.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
    _debug: DebugOption = False,
) -> None:
    """Draw a result; the HTML file needs no network. Which kinds there are depends on its tables."""
    from workbench.store import Store

    if kind not in KINDS:
        raise InputError(f"There is no plot {kind!r}; choose {', '.join(KINDS)}.{did_you_mean(kind, KINDS)}")
    if column is not None and kind != "scatter" and "column" not in figures.KINDS[kind].options:
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
        figure = figures.draw(artifact, kind, column=column, rule=rule)
        ending = "" if kind in ("heatmap", "bars") else f"-{kind}"
        path = Path(f"{artifact.name.replace('/', '-')}-v{artifact.version}{ending}.html")
        about = {"ref": artifact.ref}
    from workbench import plots

    path = output or path
    plots.write(figure, path, theme=theme)
    if as_json:
        emit_json({"path": str(path), "kind": kind, **about})
    else:
        emit(str(path))


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
