"""From a spec to an artifact: look the run up, and only where it is new load the model, compute and commit.

    spec -> gather its files -> fingerprint the model's files -> run key -> in the store?  yes: that artifact
                                                                                          no: load, analyse, commit

A hit imports neither torch nor TransformerLens. Nothing is written until the result is complete, so that an interrupted
run leaves the store as it was. It knows no formulas.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench import analyses
from workbench.errors import InputError
from workbench.experiments import identity, record
from workbench.experiments.inputs import Inputs, gather
from workbench.experiments.spec import Override, Spec, build, load_spec
from workbench.store import Artifact, Store

if TYPE_CHECKING:
    from workbench.analyses import Result

Say = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """A spec with everything it refers to found and hashed, ready to be looked up or computed."""

    spec: Spec
    inputs: Inputs
    model_path: str
    fingerprint: str
    configuration: str
    device: str
    run_key: str


@dataclass(frozen=True)
class Outcome:
    """An artifact and how it came: `cached` when it was already there."""

    artifact: Artifact
    cached: bool
    seconds: float


def run(
    spec: Spec | str | Path | Mapping[str, Any],
    *,
    store: Store | str | Path | None = None,
    force: bool = False,
    device: str | None = None,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    allow: Iterable[str | Path] = (),
    progress: bool = True,
) -> Artifact:
    """Run an experiment, or find it already done.

    Args:
        spec: a spec file, a `Spec`, or its keys as a dict.
        store: where artifacts live; default `$WORKBENCH_STORE`, else `./artifacts`.
        force: compute again and make a new version even if this very run is stored.
        device: instead of the spec's `model.device`.
        overrides: `["params.max_new_tokens=8"]` or `{"params.max_new_tokens": 8}`.
        allow: folders that a spec file's paths may lead to, beside its own folder and the current directory.
        progress: say what happens on stderr, where somebody is watching.

    Returns:
        The artifact; `artifact.table("heads")`, or `wb.HeadTable.from_parquet(artifact.path("heads.parquet"))`.
    """
    ready = as_spec(spec, overrides=overrides, allow=allow)
    say = record.tell if progress else _silent
    place = store if isinstance(store, Store) else Store(store)
    outcome = execute(ready, store=place, force=force, device=device, say=say)
    if outcome.cached:
        say(f"{outcome.artifact.ref}: cached, nothing computed (force=True computes again)")
    return outcome.artifact


def as_spec(
    spec: Spec | str | Path | Mapping[str, Any],
    *,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    allow: Iterable[str | Path] = (),
) -> Spec:
    """Whatever names an experiment, as a validated `Spec`."""
    changes: list[Override] = list(overrides.items() if isinstance(overrides, Mapping) else overrides)
    if isinstance(spec, (str, Path)):
        return load_spec(spec, overrides=changes, allow=allow)
    if isinstance(spec, Spec):
        return build(spec.config(), overrides=changes, reach=spec.reach.allowing(allow)) if changes or allow else spec
    if isinstance(spec, Mapping):
        return build(spec, overrides=changes)
    raise InputError(f"A spec is a file name, a Spec or a dict of its keys, not {type(spec).__name__}.")


def execute(
    spec: Spec, *, store: Store, force: bool = False, device: str | None = None, say: Say | None = None
) -> Outcome:
    """`run` for callers that want to know whether it was a hit; the command line is one."""
    started = time.perf_counter()
    outcome = fulfil(prepare(spec, device=device), store=store, force=force, say=say)
    return replace(outcome, seconds=time.perf_counter() - started)


def fulfil(ready: Prepared, *, store: Store, force: bool = False, say: Say | None = None) -> Outcome:
    """Find the prepared run in the store, or compute it and commit it there."""
    started = time.perf_counter()
    if not force and (found := stored(ready, store)) is not None:
        return Outcome(found, True, time.perf_counter() - started)
    result = compute(ready, say=say)
    artifact = keep(result, ready, store, force=force)
    return Outcome(artifact, False, time.perf_counter() - started)


def stored(ready: Prepared, store: Store) -> Artifact | None:
    """The artifact of this very run, under the spec's name or any other."""
    return store.find(ready.spec.name, run_key=ready.run_key) or store.find(run_key=ready.run_key)


def prepare(
    spec: Spec,
    *,
    device: str | None = None,
    model_path: str | None = None,
    fingerprints: dict[Path, str] | None = None,
) -> Prepared:
    """Find and hash everything the spec refers to, without loading the model.

    `model_path` is where the model is to be found, if not where the spec says; the spec keeps the name it was given.
    Either may only lead where the spec's paths may.
    `fingerprints` remembers those of model directories between the runs of a sweep.
    """
    from workbench.models import fingerprint_directory
    from workbench.models.source import resolve

    if device is not None:
        instead = {**spec.config()["model"], "device": device, "device_map": None}
        spec = build({**spec.config(), "model": instead}, reach=spec.reach)
    inputs = gather(spec)
    model_path = spec.reach.find_model(model_path or spec.model.path)
    directory = resolve(model_path, revision=spec.model.revision).path
    known = {} if fingerprints is None else fingerprints
    if directory not in known:
        known[directory] = fingerprint_directory(directory)
    fingerprint = known[directory]
    configuration = identity.configuration_digest(directory)
    kind = identity.device_kind("cuda" if spec.model.device_map else spec.model.device)
    key = identity.run_key(
        spec, data=inputs.identity(), fingerprint=fingerprint, configuration=configuration, device=kind
    )
    return Prepared(spec, inputs, model_path, fingerprint, configuration, kind, key)


def compute(ready: Prepared, *, say: Say | None = None) -> Result:
    """Load the model, make the data, run the analysis."""
    from workbench import tasks
    from workbench.models import load_model

    say = say or _silent
    spec = ready.spec
    analysis = analyses.get(spec.analysis)
    started = time.perf_counter()
    say(f"{spec.name}: loading {spec.model.path}")
    model = load_model(
        ready.model_path,
        device=spec.model.device,
        device_map=spec.model.device_map,
        dtype=spec.model.dtype,
        revision=spec.model.revision,
        attn=spec.model.attn,
        quantize=spec.model.quantize,
        name=_display_name(spec.model.path, ready.model_path),
    )
    if model.fingerprint != ready.fingerprint:
        raise InputError(f"The model {ready.model_path!r} changed on disk while it was being loaded; run it again.")
    with ready.inputs.folder() as folder:
        data = tasks.resolve(
            model, ready.inputs.data, base_dir=folder, seed=spec.seed, template=spec.params.get("template")
        )
    loaded = time.perf_counter()
    say(f"{spec.name}: {spec.analysis} on {len(data)} examples, {model.n_layers} x {model.n_heads} heads")
    result = analysis(model, data, analysis.params_type.model_validate(spec.params), seed=spec.seed)
    ended = time.perf_counter()
    result.timing = {**result.timing, "load": loaded - started, "analysis": ended - loaded, "total": ended - started}
    return result


def keep(result: Result, ready: Prepared, store: Store, *, force: bool = False) -> Artifact:
    """Commit a computed result under the spec's name, self-contained."""
    producer = identity.producer(
        device=str(result.model.get("device", ready.device)),
        model={
            **result.model,
            "path": ready.model_path,
            "fingerprint": ready.fingerprint,
            "configuration": ready.configuration,
        },
        data=record.without_recipe(result.data),
        source=ready.spec.source,
    )
    config = {**ready.spec.config(), "data": ready.inputs.data}
    return record.commit(
        result,
        store,
        config=config,
        producer=producer,
        run_key=ready.run_key,
        files=ready.inputs.files,
        force=force,
    )


def _display_name(given: str, resolved: str) -> str:
    """What tables call the model: a directory by its last part, so that the table does not depend on where it lies."""
    return Path(given).name or Path(resolved).name if Path(resolved).is_dir() else given


def _silent(_message: str) -> None:
    """Say nothing."""
