"""Prompt datasets with token-space spans, and what the `data:` block of a spec file becomes.

    data: {task: needle, n: 20, lengths: [128, 256]}          the needle task, any option of `needle`
    data: {samples: [{prompt: ..., needle: ...}]}             explicit prompts
    data: {file: prompts.jsonl}                               the same, one sample per line

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
from workbench.tasks.samples import NeedleDataset, NeedleSample

__all__ = ["NeedleDataset", "NeedleSample", "from_samples", "names", "needle", "resolve"]

_TASK_KEYS = {"needle": ("n", "lengths", "depths", "needles", "n_needles", "haystack", "seed")}
_EXPLICIT_KEYS = ("needle_match", "name")


def names() -> list[str]:
    """Names that `task:` in a data block may take."""
    return sorted(_TASK_KEYS)


def resolve(model: Any, data: Mapping[str, Any], *, base_dir: str | Path | None = None, seed: int = 0) -> NeedleDataset:
    """The dataset that a `data:` block describes.

    Args:
        model: a `Model` or a tokenizer.
        data: `{task: needle, ...}`, `{samples: [...]}` or `{file: x.jsonl}`; the latter two take `needle_match`.
        base_dir: folder of the spec file; paths in the block are relative to it.
        seed: used where the block names none.

    Raises:
        InputError: the block is unusable; the message names the key, the sample or the line.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"data must be a mapping like {{task: needle, n: 20}}, not {data!r}.")
    forms = [key for key in ("task", "samples", "file") if key in data]
    if len(forms) != 1:
        given = " and ".join(forms) or ", ".join(map(str, data)) or "nothing"
        hint = "" if forms else "".join(did_you_mean(str(key), ("task", "samples", "file")) for key in list(data)[:1])
        raise InputError(f"data must have exactly one of task, samples and file, but has {given}.{hint}")
    options = {key: value for key, value in data.items() if key not in forms}

    if forms == ["task"]:
        task = data["task"]
        if task not in _TASK_KEYS:
            raise InputError(
                f"There is no task {task!r}.{did_you_mean(str(task), names())} Available: {', '.join(names())}."
            )
        checks.known_keys(options, _TASK_KEYS[task], where=f"data (task {task})")
        return needle(model, base_dir=base_dir, **{"seed": seed, **options})

    checks.known_keys(options, _EXPLICIT_KEYS, where="data")
    if forms == ["samples"]:
        return from_samples(model, data["samples"], **options)
    rows = checks.json_lines(data["file"], base_dir=base_dir, what="samples file")
    stem = Path(str(data["file"])).stem
    return from_samples(model, list(rows.values()), origins=list(rows), **{"name": stem, **options})
