"""`workbench report`: results as one page to read and to send."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.options import DebugOption, JsonOption, StoreOption
from workbench.cli.output import emit, emit_json


def register(app: typer.Typer) -> None:
    app.command("report", short_help="Results as one HTML file.")(report)


def report(
    refs: Annotated[
        list[str], typer.Argument(metavar="REF...", help="One or several references; those of one model are compared.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The .html file; default NAME-vN-report.html, or report.html for several."),
    ] = None,
    theme: Annotated[str, typer.Option(help="auto (as the reader's system), light or dark.")] = "auto",
    rule: Annotated[
        str | None,
        typer.Option(help="Which heads count when results are compared: 'top 10', 'q < 0.05', ...; default by size."),
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    _debug: DebugOption = False,
) -> None:
    """Results as one self-contained HTML file: what ran, how far it holds, figures, tables, agreement, provenance."""
    from workbench.report.make import report as write

    path = write(*refs, path=output, store=store, theme=theme, rule=rule)
    if as_json:
        emit_json({"path": str(path), "refs": refs, "bytes": path.stat().st_size})
    else:
        emit(str(path))
