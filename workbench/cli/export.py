"""`workbench export`: tables of artifacts as files for papers, mails and other programs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli.options import DebugOption, JsonOption, StoreOption
from workbench.cli.output import emit, emit_json, note
from workbench.cli.publish import head_table
from workbench.errors import InputError, NotFound, did_you_mean
from workbench.report.figures import heads

if TYPE_CHECKING:
    from workbench.store import Artifact, Store

_REFERENCE = ("wu", "duo")  # formats of other groups' code; see `workbench.published`


def register(app: typer.Typer) -> None:
    app.command("export", short_help="Write a table as CSV, Parquet, LaTeX, ...")(export)


def export(
    refs: Annotated[
        list[str],
        typer.Argument(metavar="REF...", help="NAME, NAME@v3, NAME@TAG or a digest prefix; with --join two or more."),
    ],
    format: Annotated[
        str | None,
        typer.Option("--format", "-f", help="csv, parquet, md, latex, html, json, wu or duo; default by -o, else csv."),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="File to write; default stdout.")] = None,
    table: Annotated[str, typer.Option(help="Which table of the artifact.")] = "heads",
    columns: Annotated[str | None, typer.Option(help="Only these columns, such as layer,head,score.")] = None,
    top: Annotated[int | None, typer.Option(help="Only the K best heads (first K rows of other tables).")] = None,
    digits: Annotated[int, typer.Option(help="Digits shown in md, latex and html; 0: all.")] = 4,
    caption: Annotated[str | None, typer.Option(help="Of a LaTeX table, plain text.")] = None,
    label: Annotated[str | None, typer.Option(help="Of a LaTeX table, such as tab:heads.")] = None,
    join: Annotated[bool, typer.Option("--join", help="One wide table: heads down, the REFs across.")] = False,
    ranks: Annotated[bool, typer.Option("--ranks", help="With --join: also each result's ranks.")] = False,
    across_models: Annotated[
        bool, typer.Option("--across-models", help="With --join: also results of different models or bases.")
    ] = False,
    unredacted: Annotated[
        bool, typer.Option("--unredacted", help="With the texts that are withheld otherwise, such as transcripts.")
    ] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
    _debug: DebugOption = False,
) -> None:
    """Write a table of REF as a file people use; files get their provenance beside them.

    wu and duo are the files of Wu et al. (scores of every sample, per head) and of DuoAttention (a gate per kv group).
    """
    from workbench import export as writers
    from workbench.store import Store

    place = Store(store)
    wanted = [name.strip() for name in columns.split(",") if name.strip()] if columns else None
    kind = format or ("json" if as_json else None if output else "csv")
    if as_json and output is None and kind != "json":
        raise InputError(f"--json and --format {kind} are two outputs; with --json, give -o for the {kind} file.")
    options: dict[str, Any] = {"top": top, "digits": digits or None, "caption": caption, "label": label}
    if join:
        rows, said = _joined(refs, place, table, wanted, top=top, ranks=ranks, across_models=across_models)
        options["top"] = None
    elif len(refs) > 1:
        raise InputError(f"export writes one table, but got {len(refs)} references; make one of them with --join.")
    elif ranks or across_models:
        raise InputError("--ranks and --across-models are for --join; a single table has its rank column.")
    else:
        artifact = place[refs[0]]
        said = _provenance(artifact, table)
        if kind in _REFERENCE:
            if top or columns or table != "heads":
                raise InputError(f"A {kind} file holds every head of the head table; leave --top, --columns, --table.")
            _reference(artifact, str(kind), output, said, as_json=as_json)
            return
        rows, options["columns"] = _table(artifact, table, unredacted=unredacted), wanted
    if output is not None:
        writers.write(rows, output, kind, provenance=said, **options)
        _done(output, {"ref": refs[0] if len(refs) == 1 else refs, "table": table}, as_json)
        return
    if kind in ("parquet", "pq") and sys.stdout.isatty():
        raise InputError("Parquet is no text for a terminal; give -o FILE.parquet, or redirect the output.")
    content = writers.write(rows, None, kind, **options)
    if isinstance(content, bytes):
        sys.stdout.buffer.write(content)
    elif content is not None:
        emit(content)


def _joined(
    refs: list[str], place: Store, table: str, columns: list[str] | None, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """The wide table, and where each of its parts came from."""
    from workbench import export as writers

    if table != "heads":
        raise InputError(f"--join joins head tables; {table!r} has no heads to join on.")
    names = _names(refs, place)
    tables = {name: head_table(ref, place) for name, ref in names.items()}
    frame = writers.join(tables, columns=columns or ("score",), **options)
    for name, about in frame.meta["joined"].items():
        if about["missing"] or about["undefined"]:
            note(f"{name}: {about['missing']} heads missing, {about['undefined']} without a score")
    said = [
        {"column": name, **(_provenance(place[ref], "heads") if not _published(ref) else {"file": ref})}
        for name, ref in names.items()
    ]
    return frame, {"joined": said}


def _names(refs: list[str], place: Store) -> Mapping[str, str]:
    """Column prefix -> reference: the artifact's name, with its version where one name comes twice."""
    plain = [ref if _published(ref) else place[ref].name for ref in refs]
    exact = [ref if _published(ref) else place[ref].ref for ref in refs]
    names = {
        short if plain.count(short) == 1 else full: ref for short, full, ref in zip(plain, exact, refs, strict=True)
    }
    if len(names) < len(refs):
        twice = next(full for full in exact if exact.count(full) > 1)
        raise InputError(f"{twice!r} was given twice; a join needs different results.")
    return names


def _published(ref: str) -> bool:
    return ref.startswith(tuple(f"{kind}:" for kind in _REFERENCE))


def _reference(artifact: Artifact, kind: str, output: Path | None, said: dict[str, Any], *, as_json: bool) -> None:
    """Write the head table in a format that another group's code reads."""
    from workbench import published
    from workbench.export import files

    text = published.to_duo_tsv(heads(artifact)) if kind == "duo" else published.to_wu_json(_per_example(artifact))
    if output is None:
        emit(text)
        return
    raw = text.encode()
    files.write(output, raw)
    payload = "heads.parquet" if kind == "duo" else "arrays.safetensors"
    files.write_sidecar(output, raw, {**said, "payload": payload, "format": kind})
    _done(output, {"ref": artifact.ref, "table": "heads"}, as_json)


def _per_example(artifact: Artifact) -> Any:
    """Scores `[n_examples, n_layers, n_heads]` of every example."""
    held = artifact.tensors("arrays") if "arrays.safetensors" in artifact.files() else {}
    if "per_example" not in held or held["per_example"].ndim != 3:
        raise NotFound(
            f"{artifact.ref} holds no scores of single examples, of which a wu file consists; export it as csv or json."
        )
    return held["per_example"]


def _done(output: Path, said: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit_json({"path": str(output), **said})
    else:
        emit(str(output))


def _table(artifact: Artifact, name: str, *, unredacted: bool) -> Any:
    """A table of an artifact: the head table as what it is, others as pyarrow tables, without sensitive texts."""
    from workbench.export.withhold import withhold

    known = [file.removesuffix(".parquet") for file in artifact.files() if file.endswith(".parquet")]
    if name not in known:
        raise NotFound(
            f"{artifact.ref} has no table {name!r}.{did_you_mean(name, known)} "
            f"It has: {', '.join(sorted(known)) or 'none'}."
        )
    if name == "heads":
        return heads(artifact)
    return artifact.table(name) if unredacted else withhold(artifact.table(name))


def _provenance(artifact: Artifact, table: str) -> dict[str, Any]:
    """What an exported file says about where it came from."""
    return {
        "ref": artifact.ref,
        "digest": artifact.digest,
        "payload": f"{table}.parquet",
        "created": artifact.created,
        "config": artifact.config,
        "producer": artifact.manifest["producer"],
    }
