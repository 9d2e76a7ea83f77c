"""Prompt datasets with token-space spans, and what the `data:` block of a spec file becomes.

    data: {task: needle, n: 20, lengths: [128, 256]}          the needle task, any option of `needle`
    data: {samples: [{prompt: ..., needle: ...}]}             explicit prompts
    data: {task: ioi, n: 32, corruption: third}               a circuit task, any option of `circuits.task`
    data: {task: ioi, n: 32, files: mib_ioi}                  ioi in the words of a MIB folder
    data: {file: a.json, corrupted_file: b.json}              pairs, as circuit_reuse publishes them
    data: {task: refusal, n: 32, split: held_out}             harmful and benign requests of an invented world
    data: {pairs: [{clean: ..., corrupted: ..., answer: ..., wrong: ...}]}   explicit pairs for circuit methods
    data: {samples: [{image: ..., prompt: ...}]}              images (see `pope` for files of them)
    data: {task: flags, n: 32}                                images that contradict what the text suggests
    data: {prompts: [...], benign: [...]}                     plain prompts and their control group
    data: {positives: [...], negatives: [...]}                two groups of prompts, for contrast
    data: {file: prompts.jsonl}                               samples, pairs or prompts, one per line
    data: {file: prompts.csv, benign_file: others.csv}        prompts, also as .json
    data: {tasks: {ioi: {task: ioi}, colored: {task: colored_objects}}}   several tasks of pairs, by name

Tasks know tokenizers and how many positions a model has, nothing else about models, and nothing about analyses.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.errors import InputError, did_you_mean
from workbench.tasks import captions, checks, circuits, flags, pope, refusal, task_set
from workbench.tasks.contrast import ContrastDataset, ContrastSample, contrast_from_pairs, contrast_from_texts
from workbench.tasks.explicit import from_samples
from workbench.tasks.images import ImageBatch, ImageDataset, ImageSample, images_from_samples
from workbench.tasks.needle import needle
from workbench.tasks.pairs import PairBatch, PairDataset, PairSample, pairs_from_samples
from workbench.tasks.prompts import PromptDataset, PromptSample, is_prompts, prompts_from_texts, read_prompts
from workbench.tasks.samples import NeedleDataset, NeedleSample
from workbench.tasks.task_set import TaskSet

__all__ = [
    "ContrastDataset",
    "ContrastSample",
    "ImageBatch",
    "ImageDataset",
    "ImageSample",
    "NeedleDataset",
    "NeedleSample",
    "PairBatch",
    "PairDataset",
    "PairSample",
    "PromptDataset",
    "PromptSample",
    "TaskSet",
    "circuits",
    "contrast_from_pairs",
    "contrast_from_texts",
    "from_samples",
    "images_from_samples",
    "names",
    "needle",
    "pairs_from_samples",
    "prompts_from_texts",
    "refusal",
    "resolve",
]

_TASK_KEYS = {
    "needle": ("n", "lengths", "depths", "needles", "n_needles", "haystack", "template", "seed"),
    "refusal": ("n", "split", "template", "seed"),
    **dict.fromkeys(circuits.names(), circuits.OPTIONS),
    "ioi": (*circuits.OPTIONS, "files"),
    "captions": ("n", "cooccurrence", "prompt", "size", "template", "seed"),
    "objects": ("n", "negatives", "cooccurrence", "prompt", "size", "template", "seed"),
    "flags": flags.KEYS,
}
_PAIR_KEYS = ("template", "name", "unusable", "dropped")
_EXPLICIT_KEYS = ("needle_match", "template", "name")
_PROMPT_KEYS = ("benign", "benign_file", "template", "n", "name")
_FORMS = ("task", "tasks", "samples", "pairs", "prompts", "positives", "file")


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
) -> NeedleDataset | PairDataset | PromptDataset | ImageDataset | ContrastDataset | TaskSet:
    """The dataset that a `data:` block describes.

    Args:
        model: a `Model` or a tokenizer.
        data: `{task: needle, ...}`, `{samples: [...]}`, `{pairs: [...]}`, `{prompts: [...]}` or `{file: x.jsonl}`,
            whose lines are samples or, when the first has a `clean`, pairs, or plain prompts. Samples take
            `needle_match`, prompts `benign` or `benign_file` (the control group) and `n`.
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
        hint = "" if forms else "".join(did_you_mean(str(key), (_FORMS[0], *_FORMS[2:])) for key in list(data)[:1])
        all_forms = "task, tasks, samples, pairs, prompts, positives and file"
        raise InputError(f"data must have exactly one of {all_forms}, but has {given}.{hint}")
    options = {"template": template, **{key: value for key, value in data.items() if key not in forms}}

    if forms == ["tasks"]:
        checks.known_keys(options, ("template", "seed", "name"), where="data")
        inner = {"base_dir": base_dir, "seed": options.pop("seed", seed), "template": options.pop("template")}
        return task_set.build(data["tasks"], lambda block: resolve(model, block, **inner), **options)
    if forms == ["task"]:
        task = data["task"]
        if task not in _TASK_KEYS:
            raise InputError(
                f"There is no task {task!r}.{did_you_mean(str(task), names())} Available: {', '.join(names())}."
            )
        if task in circuits.names():  # a recipe is a data block again
            options = {key: value for key, value in options.items() if key not in circuits.REPORTED}
        checks.known_keys(options, _TASK_KEYS[task], where=f"data (task {task})")
        options = {"seed": seed, **options}
        if task in circuits.names():
            if isinstance(options.get("files"), str):
                options["files"] = circuits.mib_words(options["files"], base_dir=base_dir)
            return circuits.task(task, model, **options)
        if task == "refusal":
            return refusal.task(model, **options)
        if task == "flags":
            return flags.flags(model, **options)
        if task in ("captions", "objects"):
            return captions.captions(model, **options) if task == "captions" else captions.objects(model, **options)
        return needle(model, base_dir=base_dir, **options)

    if forms == ["positives"]:
        checks.known_keys(options, ("negatives", "template", "name"), where="data")
        options = {"negatives": None, **options}  # a missing group is named by the one who needs it
        return contrast_from_texts(model, data["positives"], **options)
    if forms in (["samples"], ["file"]) and pope.is_images(data, base_dir=base_dir):
        checks.known_keys(options, pope.ROW_OPTIONS, where="data")
        if forms == ["samples"]:
            return pope.images_from_rows(model, data["samples"], base_dir=base_dir, **options)
        return pope.images_from_file(model, data["file"], base_dir=base_dir, **options)
    if "corrupted_file" in options:
        return _published_pairs(model, data, options, base_dir)
    if forms == ["prompts"] or "benign_file" in options or (forms == ["file"] and _holds_prompts(data, base_dir)):
        return _prompts(model, data, options, base_dir)
    rows: dict[str, dict[str, Any]] = {}
    if forms == ["file"]:
        rows = checks.json_lines(data["file"], base_dir=base_dir, what="samples file")
    are_pairs = forms == ["pairs"] or any("clean" in row for row in list(rows.values())[:1])
    checks.known_keys(options, _PAIR_KEYS if are_pairs else _EXPLICIT_KEYS, where="data")
    if are_pairs:
        options.pop("dropped", None)  # a recipe may say it
    if forms == ["samples"]:
        return from_samples(model, data["samples"], **options)
    if forms == ["pairs"]:
        return pairs_from_samples(model, data["pairs"], **options)
    stem = Path(str(data["file"])).stem
    if are_pairs:
        return pairs_from_samples(model, list(rows.values()), origins=list(rows), **{"name": stem, **options})
    return from_samples(model, list(rows.values()), origins=list(rows), **{"name": stem, **options})


def _holds_prompts(data: Mapping[str, Any], base_dir: str | Path | None) -> bool:
    path = data["file"]
    if is_prompts(path, None):
        return True
    first = next(iter(checks.json_lines(path, base_dir=base_dir, what="samples file").values()))
    return is_prompts(path, first)


def _published_pairs(
    model: Any, data: Mapping[str, Any], options: dict[str, Any], base_dir: str | Path | None
) -> PairDataset:
    checks.known_keys(options, ("corrupted_file", "n", *_PAIR_KEYS), where="data")
    if "file" not in data:
        raise InputError("data names a corrupted_file, so `file` must name the clean prompts; give both files.")
    options.pop("dropped", None)
    files = data["file"], options.pop("corrupted_file")
    rows = circuits.colored_pairs(*files, n=options.pop("n", None), base_dir=base_dir)
    return pairs_from_samples(model, rows, **{"name": Path(str(data["file"])).stem, **options})


def _prompts(
    model: Any, data: Mapping[str, Any], options: dict[str, Any], base_dir: str | Path | None
) -> PromptDataset:
    checks.known_keys(options, _PROMPT_KEYS, where="data")
    prompts = data.get("prompts")
    if "file" in data:
        prompts = read_prompts(data["file"], base_dir=base_dir)
        options = {"name": Path(str(data["file"])).stem, **options}
    if "benign_file" in options:
        if "benign" in options:
            raise InputError("data names both benign and benign_file, but takes only one of them.")
        options["benign"] = read_prompts(options.pop("benign_file"), base_dir=base_dir, what="benign prompts file")
    return prompts_from_texts(model, prompts, **options)  # type: ignore[arg-type]
