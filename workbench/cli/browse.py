"""`workbench ls`, `show`, `log` and `diff`: reading the store."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli.options import DebugOption, JsonOption, RefArgument, StoreOption
from workbench.cli.output import emit, emit_facts, emit_json, emit_table, flat, heading

if TYPE_CHECKING:
    from workbench.store import Artifact, Store

_TOP = 10


def register(app: typer.Typer) -> None:
    app.command("ls", short_help="List the artifacts.")(ls)
    app.command("show", short_help="Everything about one artifact.")(show)
    app.command("log", short_help="The versions of one name.")(log)
    app.command("diff", short_help="What differs between two artifacts.")(diff)


def ls(
    prefix: Annotated[str, typer.Argument(metavar="[PREFIX]", help="Only names that start so.")] = "",
    store: StoreOption = None,
    as_json: JsonOption = False,
    _debug: DebugOption = False,
) -> None:
    """List the artifacts, the latest version of each name."""
    from workbench.store import Store

    place = Store(store)
    entries = []
    for artifact in place.ls(prefix):
        tags = [tag for tag, version in place.tags(artifact.name).items() if version == artifact.version]
        entries.append(
            {
                **_entry(artifact),
                "versions": sum(not other.removed for other in place.log(artifact.name)),
                "tags": tags,
                "stale": bool(place.stale(artifact)),
            }
        )
    if as_json:
        emit_json(entries)
        return
    headings = ("name", "latest", "analysis", "model", "created", "versions", "tags", "stale")
    rows = []
    for e in entries:
        facts = (e["name"], f"v{e['version']}", e["analysis"], _short(e["model"]), _when(e["created"]), e["versions"])
        rows.append((*facts, " ".join(e["tags"]), "stale" if e["stale"] else ""))
    emit_table(headings, rows, empty=f"no artifacts in {place.where}; `workbench run SPEC` makes one")


def show(
    ref: RefArgument,
    top: Annotated[int, typer.Option(min=0, help="How many of the best heads to show.")] = _TOP,
    store: StoreOption = None,
    as_json: JsonOption = False,
    _debug: DebugOption = False,
) -> None:
    """Everything about one artifact: what was run, on what, by which code, and what came out."""
    from workbench.store import Store

    place = Store(store)
    artifact = place[ref]
    stale = [entry.reason for entry in place.stale(artifact)]
    heads = _best(artifact, top)
    if as_json:
        entry = {**artifact.manifest, "ref": artifact.ref, "path": artifact.where, "stale": stale}
        emit_json({**entry, "tags": _tags(artifact, place), "top": heads})
        return
    _show_facts(artifact, place, stale)
    if heads:
        heading(f"best {len(heads)} heads")
        emit_table(list(heads[0]), [list(row.values()) for row in heads])
    heading("again")
    emit(f"  workbench rerun {artifact.ref}")
    emit(f"  workbench export {artifact.ref} --format csv -o {artifact.name.rsplit('/', 1)[-1]}.csv")


def _show_facts(artifact: Artifact, place: Store, stale: list[str]) -> None:
    config, producer = artifact.config, artifact.manifest["producer"]
    model = artifact.part("producer", "model")
    emit_facts(
        {
            "artifact": artifact.ref,
            "digest": artifact.digest,
            "folder": artifact.where,
            "created": _when(artifact.created),
            "tags": " ".join(_tags(artifact, place)),
            "analysis": config.get("analysis"),
            "model": _model(artifact),
            "model path": model.get("path"),
            "fingerprint": model.get("fingerprint"),
            "data": _brief(artifact.part("config", "data")),
            "seed": config.get("seed"),
            "pulled from": _origin(artifact),
            "made from": ", ".join(parent["ref"] for parent in artifact.manifest["inputs"]),
            "stale": "; ".join(stale) if stale else "no",
        }
    )
    groups = {
        "parameters": artifact.part("config", "params"),
        "summary": artifact.summary,
        "made by": {key: value for key, value in producer.items() if key not in ("model", "data", "packages")},
        "packages": artifact.part("producer", "packages"),
        "seconds": artifact.manifest.get("timing") or {},
        "files": {name: f"{entry['size']} bytes" for name, entry in artifact.files().items()},
    }
    for title, facts in groups.items():
        if facts:
            heading(title)
            emit_facts(flat(facts), indent="  ")


def log(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An artifact's name.")],
    store: StoreOption = None,
    as_json: JsonOption = False,
    _debug: DebugOption = False,
) -> None:
    """The versions of one name, newest first."""
    from workbench.store import Store

    place = Store(store)
    versions = place.log(name)
    tags = place.tags(name)
    entries = [
        {
            **_entry(artifact),
            "tags": [tag for tag, version in tags.items() if version == artifact.version],
            "removed": artifact.removed,
            "summary": artifact.summary,
        }
        for artifact in versions
    ]
    if as_json:
        emit_json(entries)
        return
    rows = []
    for e in entries:
        outcome = f"removed: {e['removed']['why']}" if e["removed"] else _headline(e["summary"])
        facts = (f"v{e['version']}", _when(e["created"]), e["digest"][:19], _short(e["model"]))
        rows.append((*facts, " ".join(e["tags"]), outcome))
    emit_table(("version", "created", "digest", "model", "tags", "summary"), rows)


def diff(
    a: RefArgument,
    b: RefArgument,
    top: Annotated[int, typer.Option(min=1, help="How many best heads the overlap is of.")] = _TOP,
    store: StoreOption = None,
    as_json: JsonOption = False,
    _debug: DebugOption = False,
) -> None:
    """What differs between two artifacts: what was asked, how it was made, which heads scored what."""
    from workbench.experiments.diff import diff as compare

    found = compare(a, b, store=store, top=top)
    if as_json:
        emit_json(found.to_dict())
        return
    emit(f"{found.a} and {found.b}: {'the same content' if found.same_content else 'different content'}")
    for title, changes in (("spec", found.spec), ("provenance", found.provenance), ("summary", found.summary)):
        if changes:
            heading(title)
            emit_table(("key", found.a, found.b), [(key, *pair) for key, pair in changes.items()])
    if found.files:
        heading("files")
        emit_facts(found.files, indent="  ")
    heading("heads")
    if found.heads is None:
        emit(f"  not compared: {found.note}")
        return
    heads = found.heads
    facts = {"heads": heads.n, "max abs diff": heads.max_abs, "Spearman": heads.spearman}
    emit_facts({**facts, f"top-{heads.top} Jaccard": heads.jaccard, "note": found.note}, indent="  ")
    if heads.changed:
        heading("changed most")
        emit_table(list(heads.changed[0]), [list(row.values()) for row in heads.changed])


def _entry(artifact: Artifact) -> dict[str, Any]:
    return {
        "ref": artifact.ref,
        "name": artifact.name,
        "version": artifact.version,
        "digest": artifact.digest,
        "created": artifact.created,
        "analysis": artifact.config.get("analysis"),
        "model": _model(artifact),
    }


def _origin(artifact: Artifact) -> str | None:
    origin = artifact.origin
    return f"{origin['url']} {origin['ref']}, first made {_when(origin['created'])}" if origin else None


def _model(artifact: Artifact) -> Any:
    model = artifact.config.get("model")
    return model.get("path") if isinstance(model, dict) else model


def _short(model: Any) -> Any:
    """A directory by its last part; organisms and hub names whole."""
    is_directory = isinstance(model, str) and model.startswith((".", "/", "~"))
    return model.rstrip("/").rsplit("/", 1)[-1] if is_directory else model


def _tags(artifact: Artifact, place: Store) -> list[str]:
    return [tag for tag, version in place.tags(artifact.name).items() if version == artifact.version]


def _when(created: str) -> str:
    """`2026-11-21 06:20` of an ISO time in UTC."""
    return created[:16].replace("T", " ")


def _brief(data: dict[str, Any]) -> str:
    """A data block in a line: long lists by their length."""
    parts = {key: f"{len(value)} given" if _long(value) else value for key, value in data.items()}
    return json.dumps(parts, ensure_ascii=False) if parts else ""


def _long(value: Any) -> bool:
    return isinstance(value, list) and (len(value) > 8 or any(isinstance(item, dict) for item in value))


def _headline(summary: dict[str, Any]) -> str:
    figures = {key: value for key, value in summary.items() if isinstance(value, (int, float)) and key != "status"}
    shown = list(figures.items())[:4]
    return " ".join(f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in shown)


def _best(artifact: Artifact, top: int) -> list[dict[str, Any]]:
    """The best heads of the head table, the columns that fit a line."""
    if "heads.parquet" not in artifact.files() or not top:
        return []
    from workbench.tables import HeadTable

    best = HeadTable.from_arrow(artifact.table("heads")).top(top)
    shown = ("layer", "head", "kv_group", "score", "ci_low", "ci_high", "n", "null_p")
    columns = [best.columns[name].tolist() for name in shown]
    return [dict(zip(shown, row, strict=True)) for row in zip(*columns, strict=True)]
