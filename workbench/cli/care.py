"""`workbench tag`, `fsck`, `gc` and `rm`: keeping a store in order."""

from __future__ import annotations

from typing import Annotated

import typer

from workbench.cli.options import DebugOption, JsonOption, RefArgument, StoreOption
from workbench.cli.output import emit, emit_json, emit_table


def register(app: typer.Typer) -> None:
    app.command("tag", short_help="Name a version.")(tag)
    app.command("fsck", short_help="Check every byte of the store.")(fsck)
    app.command("gc", short_help="Remove what nothing refers to.")(gc)
    app.command("rm", short_help="Remove one version.")(remove)


def tag(
    ref: RefArgument,
    name: Annotated[str, typer.Argument(metavar="TAG", help="A word such as `paper`.")],
    force: Annotated[bool, typer.Option("--force", help="Move the tag if it exists.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
    _debug: DebugOption = False,
) -> None:
    """Give the version REF a name that stays with it: NAME@TAG."""
    from workbench.store import Store

    artifact = Store(store).tag(ref, name, force=force)
    if as_json:
        emit_json({"ref": artifact.ref, "tag": name})
    else:
        emit(f"{artifact.name}@{name} is {artifact.ref}")


def fsck(
    fast: Annotated[bool, typer.Option("--fast", help="Sizes only, no hashes.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended, set the rest aside.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
    _debug: DebugOption = False,
) -> int:
    """Check every byte of the store against its manifest; exit 1 when something is wrong."""
    from dataclasses import asdict

    from workbench.store import Store

    problems = Store(store).fsck(fast=fast, repair=repair)
    if as_json:
        emit_json([asdict(problem) for problem in problems])
    elif problems:
        rows = [(problem.ref, problem.path, problem.detail, problem.repaired) for problem in problems]
        emit_table(("artifact", "path", "problem", "repair"), rows)
    else:
        emit("no problem found" + (" (sizes only)" if fast else ""))
    return 1 if problems else 0


def gc(store: StoreOption = None, as_json: JsonOption = False, _debug: DebugOption = False) -> None:
    """Remove what nothing refers to: abandoned writes and unused shared copies, never a version."""
    from workbench.store import Store

    freed = Store(store).gc()
    if as_json:
        emit_json({"staging": freed.staging, "objects": freed.objects, "bytes": freed.bytes})
    else:
        emit(f"removed {freed.staging} abandoned writes and {freed.objects} unused copies, {freed.bytes} bytes")


def remove(
    ref: RefArgument,
    why: Annotated[str, typer.Option(help="Kept in the version's tombstone.")],
    store: StoreOption = None,
    as_json: JsonOption = False,
    _debug: DebugOption = False,
) -> None:
    """Remove the payloads of one version; its number and its record stay."""
    from workbench.store import Store

    removed = Store(store).remove(ref, why)
    if as_json:
        emit_json({"removed": removed.ref, "why": why})
    else:
        emit(f"removed {removed.ref}; its record stays")
