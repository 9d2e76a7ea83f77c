"""From spec files, `--set` and `--sweep` to the runs of a grid: validated specs, each with a name of its own.

A document of a spec file may hold two keys beside those of a spec: `sweep:` (axes, see `grammar`) and `launch:` (where
to run, see `options`). Axes on the command line replace those of the same key in the file. Everything is validated
before anything runs. It never knows how a run is launched.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from workbench.errors import InputError
from workbench.experiments.paths import Reach
from workbench.experiments.spec import Spec, build
from workbench.experiments.yaml_input import read_documents
from workbench.launch import grammar
from workbench.launch.grammar import Axes
from workbench.launch.options import LaunchOptions, merged

BESIDE = ("sweep", "launch")  # keys of a document that are not the spec's
_UNSAFE = re.compile(r"[^A-Za-z0-9_.+-]+")
_LONGEST = 48  # characters of a value in a name


@dataclass(frozen=True)
class Asked:
    """What spec files and command line ask for together.

    Attributes:
        specs: one per run, in the order of the grid.
        values: by run, what its axes are set to.
        launch: where and how to run; None when neither the files nor the command line say.
    """

    specs: list[Spec]
    values: list[dict[str, Any]] = field(default_factory=list)
    launch: LaunchOptions | None = None


def read(
    paths: Iterable[str | Path],
    *,
    overrides: Iterable[str] = (),
    sweeps: Iterable[str] = (),
    launch: Mapping[str, Any] | None = None,
    allow: Iterable[str | Path] = (),
) -> Asked:
    """Every run of the spec files.

    Args:
        overrides: `--set` assignments, for all runs.
        sweeps: `--sweep` texts, for all files.
        allow: folders that paths in the files may lead to.
        launch: options given on the command line; they win over the files'.

    Raises:
        InputError: one sentence naming the source, the key, the value and the remedy.
    """
    overrides, swept = tuple(overrides), grammar.parse(sweeps)
    found: list[tuple[Spec, dict[str, Any]]] = []
    blocks: list[tuple[str, Any]] = []
    for path in map(Path, paths):
        documents = read_documents(path)
        for index, document in enumerate(documents, start=1):
            if not isinstance(document, Mapping):
                kind = type(document).__name__
                raise InputError(f"{path}: a spec is a mapping with keys {', '.join(Spec.model_fields)}, not a {kind}.")
            bare = {key: value for key, value in document.items() if key not in BESIDE}
            axes = {} if document.get("sweep") is None else grammar.read(document["sweep"], str(path))
            reach = replace(Reach.of(path, allow=allow), own=frozenset(axes) - frozenset(swept))
            axes |= swept
            if document.get("launch") is not None:
                blocks.append((str(path), document["launch"]))
            grammar.size(axes)
            number = index if len(documents) > 1 and not bare.get("name") else None
            found += _points(bare, path, axes, overrides, number, reach)
    if len(found) > grammar.MAX_JOBS:
        raise InputError(f"The sweeps have {len(found)} runs, more than {grammar.MAX_JOBS}; launch them in parts.")
    options = merged(blocks, launch or {})
    if options is None and any(values for _, values in found):
        options = LaunchOptions()
    return Asked([spec for spec, _ in found], [values for _, values in found], options)


def _points(
    document: Mapping[str, Any],
    source: Path,
    axes: Axes,
    overrides: tuple[str, ...],
    number: int | None,
    reach: Reach,
) -> list[tuple[Spec, dict[str, Any]]]:
    """One spec per combination of values, the last axis fastest."""
    labels = _labels(axes)
    points = []
    for chosen in itertools.product(*(range(len(values)) for values in axes.values())):
        values = {key: axes[key][at] for key, at in zip(axes, chosen, strict=True)}
        assigned = [*overrides, *(_assignment(key, value) for key, value in values.items())]
        spec = build(document, source=source, overrides=assigned, reach=reach)
        name = spec.name if number is None else f"{spec.name}-{number}"
        name = "/".join([name, *(labels[key][at] for key, at in zip(axes, chosen, strict=True))])
        if name != spec.name:
            spec = build(document, source=source, overrides=[*assigned, ("name", name)], reach=reach)
        points.append((spec, values))
    return points


def _assignment(key: str, value: Any) -> tuple[str, Any]:
    """A model's name replaces its path alone, so that dtype and device of the file stay."""
    return ("model.path" if key == "model" and isinstance(value, str) else key), value


def _labels(axes: Axes) -> dict[str, list[str]]:
    """What a name says of every value: `seed-0`, `model-organism-ioi`. Values that would look alike get a hash."""
    short = [key.rpartition(".")[2] for key in axes]
    labels = {}
    for key, last in zip(axes, short, strict=True):
        head = last if short.count(last) == 1 else key
        texts = [_plain(value) for value in axes[key]]
        cut = [_UNSAFE.sub("-", text).strip("-")[:_LONGEST] for text in texts]
        clear = [
            c if c and cut.count(c) == 1 and len(text) <= _LONGEST else f"{c}-{_hash(text)}".lstrip("-")
            for c, text in zip(cut, texts, strict=True)
        ]
        labels[key] = [f"{head}-{text}" for text in clear]
    return labels


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
