"""`workbench push` and `pull`: artifacts to and from a store at a URL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from workbench.cli.options import DebugOption, JsonOption, StoreOption
from workbench.cli.output import emit, emit_json
from workbench.errors import InputError

if TYPE_CHECKING:
    from workbench.store.remote import Transfer

_What = Annotated[
    list[str],
    typer.Argument(metavar="[REF...] URL", help="Versions (or --all), then s3://bucket/prefix or another address."),
]
_All = Annotated[bool, typer.Option("--all", help="Every version of every name.")]
_MoveTags = Annotated[bool, typer.Option("--move-tags", help="Move tags that point to another version there.")]


def register(app: typer.Typer) -> None:
    app.command("push", short_help="Copy artifacts to a store at a URL.")(push)
    app.command("pull", short_help="Copy artifacts from a store at a URL.")(pull)


def push(
    what: _What,
    everything: _All = False,
    move_tags: _MoveTags = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
    _debug: DebugOption = False,
) -> None:
    """Copy versions to URL, checked there by hash. Nothing there is overwritten, and an interrupted push goes on.

    S3 needs `pip install 'workbench[remote]'` and the usual AWS_* variables.
    """
    from workbench.store import Store
    from workbench.store.remote import push as send

    refs, url = _parts(what, everything)
    _say(send(Store(store), refs, url, move_tags=move_tags), url, as_json)


def pull(
    what: _What,
    everything: _All = False,
    move_tags: _MoveTags = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
    _debug: DebugOption = False,
) -> None:
    """Copy versions from URL, checked here by hash; each gets the next number here and remembers its origin."""
    from workbench.store import Store
    from workbench.store.remote import pull as fetch

    refs, url = _parts(what, everything)
    _say(fetch(Store(store), refs, url, move_tags=move_tags), url, as_json)


def _parts(what: list[str], everything: bool) -> tuple[list[str] | None, str]:
    *refs, url = what
    if "://" not in url:
        raise InputError(f"The last argument is the address, such as s3://bucket/prefix, but it is {url!r}.")
    if everything and refs:
        raise InputError(f"--all takes everything; leave {refs[0]!r} out, or leave --all out.")
    if not everything and not refs:
        raise InputError("Say what to copy: one or more references before the address, or --all.")
    return (None if everything else refs), url


def _say(transfers: Iterator[Transfer], url: str, as_json: bool) -> None:
    """A line for each version as it is done."""
    done = []
    for transfer in transfers:
        done.append(asdict(transfer))
        if as_json:
            continue
        news = f"{transfer.files} files, {transfer.bytes} bytes" if transfer.is_new else "was there"
        if not transfer.is_new and transfer.files:
            news = f"was there, mended: {transfer.files} files, {transfer.bytes} bytes"
        tags = f"; tags {' '.join(transfer.tags)}" if transfer.tags else ""
        kept = f"; tags not moved: {' '.join(transfer.kept)} (--move-tags)" if transfer.kept else ""
        emit(f"{transfer.ref} -> {transfer.became}  {news}{tags}{kept}")
    if as_json:
        emit_json(done)
    elif not done:
        emit(f"nothing to copy ({url})")
