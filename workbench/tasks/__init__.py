"""Prompt datasets with token-space spans, and what the `data:` block of a spec file becomes.

    data: {task: needle, n: 20, lengths: [128, 256]}          the needle task, any option of `needle`
    data: {samples: [{prompt: ..., needle: ...}]}             explicit prompts
    data: {pairs: [{clean: ..., corrupted: ..., answer: ..., wrong: ...}]}   explicit pairs for circuit methods
    data: {file: prompts.jsonl}                               samples or pairs, one per line

Tasks know tokenizers and how many positions a model has, nothing else about models, and nothing about analyses.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.errors import InputError, did_you_mean
from workbench.tasks import checks
from workbench.tasks.explicit import from_samples
from workbench.tasks.needle import needle
from workbench.tasks.pairs import PairBatch, PairDataset, PairSample, pairs_from_samples
from workbench.tasks.samples import NeedleDataset, NeedleSample

__all__ = [
    "NeedleDataset",
    "NeedleSample",
    "PairBatch",
    "PairDataset",
    "PairSample",
    "from_samples",
    "names",
    "needle",
    "pairs_from_samples",
    "resolve",
]

_TASK_KEYS = {"needle": ("n", "lengths", "depths", "needles", "n_needles", "haystack", "template", "seed")}
_EXPLICIT_KEYS = ("needle_match", "template", "name")
_FORMS = ("task", "samples", "pairs", "file")


def names() -> list[str]:
    """Names that `task:` in a data block may take."""
    return sorted(_TASK_KEYS)


def resolve(
    model: Any,
    data: Mapping[str, Any],
    *,
    base_dir: str | Path | None = None,
    seed: int = 0,
    template: str | None = None,
) -> NeedleDataset | PairDataset:
    """The dataset that a `data:` block describes.

    Args:
        model: a `Model` or a tokenizer.
        data: `{task: needle, ...}`, `{samples: [...]}`, `{pairs: [...]}` or `{file: x.jsonl}`, whose lines are samples
            or, when the first has a `clean`, pairs. Samples take `needle_match`.
        base_dir: folder of the spec file; paths in the block are relative to it.
        seed: used where the block names none.
        template: what surrounds each prompt, where the block names none (see `template.frame`).

    Raises:
        InputError: the block is unusable; the message names the key, the sample or the line.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"data must be a mapping like {{task: needle, n: 20}}, not {data!r}.")
    forms = [key for key in _FORMS if key in data]
    if len(forms) != 1:
        given = " and ".join(forms) or ", ".join(map(str, data)) or "nothing"
        hint = "" if forms else "".join(did_you_mean(str(key), _FORMS) for key in list(data)[:1])
        raise InputError(f"data must have exactly one of task, samples, pairs and file, but has {given}.{hint}")
    options = {"template": template, **{key: value for key, value in data.items() if key not in forms}}

    if forms == ["task"]:
        task = data["task"]
        if task not in _TASK_KEYS:
            raise InputError(
                f"There is no task {task!r}.{did_you_mean(str(task), names())} Available: {', '.join(names())}."
            )
        checks.known_keys(options, _TASK_KEYS[task], where=f"data (task {task})")
        return needle(model, base_dir=base_dir, **{"seed": seed, **options})

    rows: dict[str, dict[str, Any]] = {}
    if forms == ["file"]:
        rows = checks.json_lines(data["file"], base_dir=base_dir, what="samples file")
    are_pairs = forms == ["pairs"] or any("clean" in row for row in list(rows.values())[:1])
    checks.known_keys(options, ("template", "name") if are_pairs else _EXPLICIT_KEYS, where="data")
    if forms == ["samples"]:
        return from_samples(model, data["samples"], **options)
    if forms == ["pairs"]:
        return pairs_from_samples(model, data["pairs"], **options)
    stem = Path(str(data["file"])).stem
    if are_pairs:
        return pairs_from_samples(model, list(rows.values()), origins=list(rows), **{"name": stem, **options})
    return from_samples(model, list(rows.values()), origins=list(rows), **{"name": stem, **options})
