"""Writing a result as an artifact, and reading what an artifact says about how it was made.

An artifact of a run holds `heads.parquet`, `arrays.safetensors`, one Parquet file per further table, `summary.json` and
whatever text files the data came from; its manifest holds the spec as `config`. This is the one place that knows both
results and the store.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import InputError
from workbench.experiments import identity
from workbench.experiments.inputs import gather
from workbench.experiments.paths import PathRefused, Reach
from workbench.experiments.spec import Spec, build
from workbench.export import withhold
from workbench.store import Artifact, Store, refs

if TYPE_CHECKING:
    from workbench.analyses import Result

KIND = "result/1"


def commit(
    result: Result,
    store: Store,
    *,
    config: Mapping[str, Any],
    producer: Mapping[str, Any],
    run_key: str | None = None,
    files: Mapping[str, str] | None = None,
    force: bool = False,
) -> Artifact:
    """Write `result` as the next version of `config["name"]`; an identical latest version is returned as it is.

    Args:
        config: the spec, as `Spec.config()` gives it.
        producer: who made it (`identity.producer`).
        run_key: under which `run` finds it again.
        files: further text files, by name, stored as they are.
        force: make a new version even if nothing changed.
    """
    with store.stage(
        config["name"],
        config=dict(config),
        inputs=[],
        producer=dict(producer),
        kind=KIND,
        run_key=run_key,
        timing=dict(result.timing),
        summary=dict(result.summary),
        force=force,
    ) as out:
        out.table("heads", result.heads.to_arrow())
        if result.arrays:
            out.tensors("arrays", dict(result.arrays))
        for name, table in result.tables.items():
            out.table(name, table, metadata=withhold.marks(table))
        out.json("summary", dict(result.summary))
        for name, text in (files or {}).items():
            out.text(name, text)
        for name, data in result.files.items():
            out.bytes(name, data)
    return out.artifact


def put(result: Result, name: str, *, store: Store | None = None, force: bool = False) -> Artifact:
    """Keep a result made in a notebook, `wb.store().put(result, name=...)`, with the spec that makes it again.

    The artifact can be rerun where the data's recipe is one that spec files have and the model can be loaded by name.
    """
    recipe = result.data.get("recipe", result.data)
    config: dict[str, Any] = {
        "name": name,
        "analysis": result.analysis,
        "model": {"path": str(result.model.get("name")), "dtype": str(result.model.get("dtype", "auto"))},
        "data": {key: value for key, value in recipe.items() if not key.endswith("_digest")},
        "params": result.params.model_dump(mode="json"),
        "seed": result.seed,
    }
    files: dict[str, str] = {}
    try:
        spec = build(config)
        inputs = gather(spec)
        config, files = {**spec.config(), "data": inputs.data}, inputs.files
    except InputError:  # made by means no spec file has: kept as described, shown, and refused by `rerun`
        refs.check_name(name)
    producer = identity.producer(
        device=str(result.model.get("device", "cpu")),
        model={"path": config["model"]["path"], **result.model},
        data=without_recipe(result.data),
        source=None,
    )
    return commit(result, store or Store(None), config=config, producer=producer, files=files, force=force)


def without_recipe(data: Mapping[str, Any]) -> dict[str, Any]:
    """What the data were, less the recipe, which the spec has."""
    return {key: value for key, value in data.items() if key != "recipe"}


def spec_of(artifact: Artifact, *, allow: Iterable[str | Path] = (), typed: Iterable[str] = ()) -> Spec:
    """The spec that made an artifact, its relative paths looked for among the artifact's own files.

    Args:
        allow: folders that its paths may lead to, beside the artifact's and the current one.
        typed: keys whose values the user gives himself.

    Raises:
        InputError: the artifact is not of an experiment, or its spec is of another version of the workbench.
    """
    config = artifact.manifest.get("config") or {}
    if "analysis" not in config:
        raise InputError(f"{artifact.ref} holds no experiment (its config has no `analysis`), so it has no rerun.")
    try:
        return build(config, reach=Reach.of(artifact.folder / "MANIFEST.json", allow=allow).typing(typed))
    except PathRefused:
        raise
    except InputError as error:
        raise InputError(f"{artifact.ref} was made from a spec that is no longer valid: {error}") from error


def tell(message: str, *, always: bool = False) -> None:
    """A line of progress on stderr, for a person watching: a terminal or a notebook."""
    if always or sys.stderr.isatty() or "ipykernel" in sys.modules:
        print(message, file=sys.stderr, flush=True)  # noqa: T201 - this is the one place that speaks
