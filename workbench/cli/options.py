"""Options that every command has, declared once."""

from __future__ import annotations

from typing import Annotated

import typer

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="DIR|URL",
        help="Artifact store; default $WORKBENCH_STORE, else ./artifacts. URLs: read only.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout, nothing else.")]
# Read by `main` from the arguments, because it must work wherever the command fails.
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

RefArgument = Annotated[
    str, typer.Argument(metavar="REF", help="NAME, NAME@v3, NAME@TAG, NAME@sha256:PREFIX or a digest prefix.")
]
AllowOption = Annotated[
    list[str] | None,
    typer.Option("--allow", metavar="DIR", help="A folder a spec may read, beside its own and this one; repeatable."),
]
