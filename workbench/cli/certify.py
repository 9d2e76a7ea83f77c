"""`workbench certify`: hold every analysis to the organisms whose answer is known."""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated

import typer

from workbench.cli.options import DebugOption, JsonOption, StoreOption
from workbench.cli.output import emit, emit_json, emit_table, note

_COLUMNS = ("organism", "instance", "analysis", "claim", "task", "n_true", "auroc", "precision", "recall")
_MASKING = ("success", "success_masked", "success_random")


def register(app: typer.Typer) -> None:
    app.command("certify", short_help="Hold the analyses to models whose answer is known.")(certify)


def certify(
    only: Annotated[
        list[str] | None, typer.Option("--analysis", metavar="NAME", help="Only this analysis (repeatable).")
    ] = None,
    on: Annotated[
        list[str] | None, typer.Option("--organism", metavar="NAME", help="Only this organism (repeatable).")
    ] = None,
    fresh: Annotated[int, typer.Option("--fresh", min=0, help="Newly made instances of every planted organism.")] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of data, analyses and fresh instances.")] = 0,
    save: Annotated[bool, typer.Option("--save/--no-save", help="Keep the certificate in the store.")] = True,
    store: StoreOption = None,
    as_json: JsonOption = False,
    _debug: DebugOption = False,
) -> int:
    """Run every analysis on every organism that has what it finds; exit 1 when one misses."""
    from workbench.certify import certify as examine
    from workbench.certify import keep
    from workbench.store import Store

    with contextlib.redirect_stdout(sys.stderr):  # libraries print while they load
        certificate = examine(only=only or (), on=on or (), fresh=fresh, seed=seed, say=note)
        artifact = keep(certificate, Store(store)) if save else None
    rows = [verdict.row() for verdict in certificate.verdicts]
    where = artifact.ref if artifact is not None else None
    if as_json:
        emit_json({**certificate.summary(), "seconds": certificate.seconds, "ref": where, "verdicts": rows})
        return 0 if certificate.passed else 1
    headings = (*_COLUMNS, ">=", "task done", "masked", "random", "verdict")
    emit_table(headings, [[row[c] for c in (*_COLUMNS, "threshold", *_MASKING, "verdict")] for row in rows])
    for row in rows:
        if row["note"]:
            emit(f"{row['analysis']} on {row['organism']}: {row['note']}")
    emit(
        f"{certificate.count('pass')} passed, {certificate.count('miss')} missed, "
        f"{certificate.count('not applicable')} not applicable, in {certificate.seconds:.0f} s"
        + (f"; kept as {where}" if where else "")
    )
    return 0 if certificate.passed else 1
