"""`workbench tag`, `fsck`, `gc` and `rm`: keeping a store in order."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from workbench.cli.options import DebugOption, JsonOption, RefArgument, StoreOption
from workbench.cli.output import emit, emit_json, emit_table


def register(app: typer.Typer) -> None:
    app.command("tag")(tag)
    app.command("fsck")(fsck)
    app.command("gc")(gc)
    app.command("rm")(remove)


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

    place = Store(store)
    artifact = place[ref]
    version = artifact.ref
    place.tag(version, name, force=force)
    if as_json:
        emit_json({"ref": version, "tag": name})
    else:
        emit(f"{artifact.name}@{name} is {version}")


def fsck(
    fast: Annotated[bool, typer.Option("--fast", help="Sizes only, no hashes.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended, set the rest aside.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
    _debug: DebugOption = False,
) -> int:
    """Check every byte of the store against its manifest; exit 1 when something is wrong."""
    from workbench.store import Store

    place = Store(store)
    problems = [_fields(problem) for problem in place.fsck(fast=fast, repair=repair)]
    if as_json:
        emit_json(problems)
    elif problems:
        emit_table(list(problems[0]), [list(problem.values()) for problem in problems])
    else:
        emit("no problem found" + (" (sizes only)" if fast else ""))
    return 1 if problems else 0


def gc(store: StoreOption = None, as_json: JsonOption = False, _debug: DebugOption = False) -> None:
    """Remove what nothing refers to: abandoned writes and unused shared copies, never a version."""
    from workbench.store import Store

    freed = _fields(Store(store).gc())
    if as_json:
        emit_json(freed)
    else:
        emit(", ".join(f"{key}: {value}" for key, value in freed.items()) or "nothing to remove")


def remove(
    ref: RefArgument,
    why: Annotated[str, typer.Option(help="Kept in the version's tombstone.")],
    store: StoreOption = None,
    as_json: JsonOption = False,
    _debug: DebugOption = False,
) -> None:
    """Remove the payloads of one version; its number and its record stay."""
    from workbench.store import Store

    place = Store(store)
    artifact = place[ref]
    version = artifact.ref
    place.remove(version, why)
    if as_json:
        emit_json({"removed": version, "why": why})
    else:
        emit(f"removed {version}; its record stays")


def _fields(value: Any) -> dict[str, Any]:
    """A dataclass, mapping, number or text of the store as named fields."""
    from dataclasses import asdict, is_dataclass

    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, dict):
        return dict(value)
    return {"problem" if isinstance(value, str) else "removed": value}
