"""Explicit needle samples: prompts a user wrote, with the needle named by its text.

A needle is the first occurrence of its text in the prompt, and its span is every token that overlaps those characters.
Prompts are tokenised as everywhere in the package: BOS once at the front, and no template unless one is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from workbench.errors import InputError, did_you_mean
from workbench.tasks import checks
from workbench.tasks.samples import NeedleDataset, NeedleSample
from workbench.tasks.template import Frame, frame

QUESTION_TOKENS = 32  # without an explicit question, at most this many tokens at the end of the prompt count as one
SAMPLE_KEYS = ("prompt", "needle", "question", "id")
NeedleMatch = Literal["first", "unique"]
NEEDLE_MATCHES = ("first", "unique")


def token_span(offsets: Sequence[tuple[int, int]], start: int, stop: int) -> tuple[int, int] | None:
    """Half-open span of the tokens that overlap characters `[start, stop)`; None when there is none."""
    inside = [i for i, (a, b) in enumerate(offsets) if a < stop and b > start]
    return (inside[0], inside[-1] + 1) if inside else None


def check_context(model: Any, n_prompt: int, n_answer: int, *, where: str, remedy: str) -> None:
    """Refuse a prompt that, with its answer, does not fit the model's positions (a bare tokenizer has no limit)."""
    n_ctx = getattr(model, "n_ctx", None)
    if n_ctx is not None and n_prompt + n_answer > n_ctx:
        raise InputError(
            f"{where} needs {n_prompt} tokens and {n_answer} more for the answer, but the model has {n_ctx} positions; "
            f"{remedy}."
        )


def _sample(model: Any, row: Any, index: int, match: NeedleMatch, origin: str, around: Frame) -> NeedleSample:
    from workbench.models import encode, unknown_id

    name = row.get("id") if isinstance(row, Mapping) else None
    where = origin if name is None else f"{origin} ({name!r})"
    prompt = checks.required_text(row, "prompt", where=where)
    checks.known_keys(row, SAMPLE_KEYS, where=where)
    text = checks.required_text(row, "needle", where=where)

    start = prompt.find(text)
    if start < 0:
        raise InputError(
            f"{where}: the needle {text!r} does not occur in the prompt; copy it from the prompt letter by letter."
        )
    stop = start + len(text)
    notes = []
    occurrences = sum(prompt.startswith(text, i) for i in range(len(prompt)))
    if occurrences > 1:
        if match == "unique":
            raise InputError(
                f"{where}: the needle {text!r} occurs {occurrences} times in the prompt; make it unique or set "
                "needle_match: first."
            )
        notes.append(f"the needle text occurs {occurrences} times; the first occurrence counts")

    encoded = encode(model, f"{around.before}{prompt}{around.after}")
    shift = len(around.before)
    span = token_span(encoded.offsets, shift + start, shift + stop)
    if span is None:
        raise InputError(f"{where}: the tokenizer drops every character of the needle {text!r}; choose another needle.")
    if unknown_id(model) in encoded.ids[slice(*span)]:
        raise InputError(f"{where}: the model's vocabulary lacks a word of the needle {text!r}; choose words it knows.")
    n = len(encoded.ids)
    question = (max(span[1], n - QUESTION_TOKENS), n)
    if row.get("question") is not None:
        asked = checks.required_text(row, "question", where=where)
        at = prompt.find(asked, stop)
        if at < 0:
            raise InputError(
                f"{where}: the question {asked!r} does not occur after the needle; copy it from the prompt."
            )
        found = token_span(encoded.offsets, shift + at, shift + at + len(asked))
        question = (n, n) if found is None else (max(found[0], span[1]), max(found[1], span[1]))
    if question[0] == question[1]:
        notes.append("nothing follows the needle, so there is no question")
    check_context(model, n, span[1] - span[0], where=where, remedy="shorten the prompt")
    return NeedleSample(
        id=str(index) if name is None else str(name),
        tokens=tuple(encoded.ids),
        needle=span,
        needle_text=text,
        question=question,
        needle_id=text,
        notes=tuple(notes),
    )


def from_samples(
    model: Any,
    samples: Sequence[Mapping[str, Any]],
    *,
    needle_match: str = "first",
    template: str | None = None,
    name: str = "samples",
    origins: Sequence[str] | None = None,
) -> NeedleDataset:
    """Tokenise explicit samples `{prompt, needle[, question, id]}`.

    Args:
        model: a `Model`, or anything `workbench.models.encode` takes (a tokenizer, say).
        samples: each `needle` is text that occurs in its `prompt`; `question`, if given, occurs after it. Without
            one, the question is what follows the needle, at most the last 32 tokens of the prompt.
        needle_match: what to do when a needle's text occurs more than once: `first` takes the first occurrence and
            leaves a note on the sample, `unique` refuses.
        template: what surrounds each prompt (see `template.frame`); nothing by default.
        origins: what to call each sample in a message (lines of a file, say); default "Sample 0", "Sample 1", ...

    Raises:
        InputError: a sample is unusable; the message names it by index and id.
    """
    if needle_match not in NEEDLE_MATCHES:
        hint = did_you_mean(str(needle_match), NEEDLE_MATCHES)
        raise InputError(f"needle_match must be 'first' or 'unique', not {needle_match!r}.{hint}")
    if isinstance(samples, str | Mapping) or not isinstance(samples, Sequence) or not samples:
        raise InputError("samples must be a list with at least one {prompt, needle}.")
    match = cast(NeedleMatch, needle_match)
    if origins is None:
        origins = [f"Sample {index}" for index in range(len(samples))]
    around = frame(model, template)
    made = tuple(
        _sample(model, row, i, match, origin, around)
        for i, (row, origin) in enumerate(zip(samples, origins, strict=True))
    )
    checks.distinct_ids([sample.id for sample in made], origins)
    recipe: dict[str, Any] = {"samples": [dict(row) for row in samples], "needle_match": needle_match}
    if template is not None:
        recipe["template"] = template
    return NeedleDataset(name=name, samples=made, meta=recipe)
