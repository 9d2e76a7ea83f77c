"""From a task's patterns and draws to token-aligned pairs with the place of every role.

A task is patterns with slots, pools of words for the slots, and a function that draws the words of one prompt together
with what each corruption makes of them. This file does the rest, for every task alike: it filters the pools and
patterns for the tokenizer, renders and tokenises both prompts, finds each role's tokens, and makes a pair again
(counting how often) when the tokenizer lets its prompts differ in length or outside the words that were changed.
"""

from __future__ import annotations

import random
import string
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.errors import InputError, did_you_mean
from workbench.tasks import checks
from workbench.tasks.circuits.pools import Pool, comparable, require, unknown_id
from workbench.tasks.circuits.words import FILLERS
from workbench.tasks.explicit import token_span
from workbench.tasks.pairs import PairDataset, PairSample
from workbench.tasks.template import Frame, frame

SPLITS = ("all", "train", "held_out")
HELD_OUT_EVERY = 4  # one in this many combinations is kept from training
_TRIES = 2000  # draws for one pair before giving up
Fill = dict[str, str]  # slot -> word


@dataclass(frozen=True)
class Draw:
    """The words of one prompt, and of each of its corruptions.

    Attributes:
        clean: word of every slot.
        corrupted: for each corruption, the words of the slots that it changes.
        answer: text that continues the clean prompt.
        wrong: for each corruption, the text that `answer` is compared with.
        roles: name of a role -> its slot; every slot is a role of its own name too.
        answers, wrongs: tokens of all right and all wrong answers, where there are several.
        combinations: what must be new (in `held_out`: the first of them; in `train`: none may be held out).
    """

    clean: Fill
    corrupted: Mapping[str, Fill]
    answer: str
    wrong: Mapping[str, str]
    roles: Mapping[str, str]
    answers: tuple[int, ...] = ()
    wrongs: tuple[int, ...] = ()
    combinations: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Task:
    """A family of prompts.

    Attributes:
        name: as in `task: ioi`.
        phrasings: patterns with a slot `{slot}` for each word that varies; a space stands before every slot.
        corruptions: name -> what it does, in words; the first is the default.
        pools: slot pool name -> (all words, how many are needed at least).
        slots: slot -> pool.
        draw: draws the words of one prompt from the filtered pools.
        held_out: in words, which combinations the split `held_out` keeps from `train`.
        filtered: filters the pools where `comparable` alone will not do.
    """

    name: str
    phrasings: tuple[str, ...]
    corruptions: Mapping[str, str]
    pools: Mapping[str, tuple[tuple[str, ...], int]]
    slots: Mapping[str, str]
    draw: Callable[[random.Random, Mapping[str, Pool]], Draw]
    held_out: str
    filtered: Callable[[Any], dict[str, Pool]] | None = None

    def comparable_pools(self, model: Any) -> dict[str, Pool]:
        """The pools, filtered for the tokenizer, or a refusal."""
        if self.filtered is not None:
            return self.filtered(model)
        return {
            name: require(comparable(model, words, least=least), least, task=self.name, what=name)
            for name, (words, least) in self.pools.items()
        }


def is_held_out(words: Sequence[str]) -> bool:
    """Whether this combination belongs to the held-out quarter; fixed for ever, whatever the seed."""
    return zlib.crc32(" ".join(words).encode()) % HELD_OUT_EVERY == 0


def _in_split(draw: Draw, split: str) -> bool:
    if split == "train":
        return not any(is_held_out(words) for words in draw.combinations)
    return split == "all" or is_held_out(draw.combinations[0])


@dataclass
class Prompt:
    """A rendered pattern: its text and where each slot's word stands in it, in characters."""

    text: str = ""
    at: dict[str, tuple[int, int]] = field(default_factory=dict)


def render(pattern: str, fill: Mapping[str, str], front: str = "") -> Prompt:
    """`pattern` with its slots filled, after `front`."""
    prompt = Prompt(front)
    for literal, slot, _, _ in string.Formatter().parse(pattern):
        prompt.text += literal
        if slot is not None:
            prompt.at[slot] = (len(prompt.text), len(prompt.text) + len(fill[slot]))
            prompt.text += fill[slot]
    return prompt


def make(
    task: Task,
    model: Any,
    n: int,
    *,
    corruption: str | None,
    phrasing: int | None,
    prefix: int,
    split: str,
    template: str | None,
    seed: int,
) -> PairDataset:
    """`n` pairs of `task`. Equal seeds give equal clean prompts whatever the corruption.

    Args:
        model: a `Model`, or anything `workbench.models.encode` takes.
        corruption: one of `task.corruptions`; the first by default.
        phrasing: use only this pattern (0-based); by default each prompt draws one.
        prefix: filler words in front of each prompt, which shift every position.
        split: `train` and `held_out` share no combination of the words that matter (see `task.held_out`).
        template: what surrounds each prompt (see `template.frame`).

    Raises:
        InputError: an option is unusable, or the tokenizer cannot express the task.
    """
    n = checks.whole_number(n, what="n")
    seed = checks.whole_number(seed, what="seed", least=0)
    prefix = checks.whole_number(prefix, what="prefix", least=0)
    corruption = _one_of(next(iter(task.corruptions)) if corruption is None else corruption, task)
    if split not in SPLITS:
        raise InputError(f"split must be all, train or held_out, not {split!r}.{did_you_mean(str(split), SPLITS)}")

    pools = task.comparable_pools(model)
    around = frame(model, template)
    fillers = comparable(model, FILLERS, before="so ")
    if prefix:
        require(fillers, 1, task=task.name, what="filler words")
    rng = random.Random(f"{task.name}-{seed}")
    patterns = _patterns(task, model, pools, phrasing)

    samples: list[PairSample] = []
    redrawn = 0
    for index in range(n):
        for _ in range(_TRIES):
            drawn = task.draw(rng, pools)
            pattern = rng.choice(patterns)
            front = "".join(f"{rng.choice(fillers.words)} " for _ in range(prefix))
            if not _in_split(drawn, split):
                continue
            sample = _pair(model, str(index), pattern, front, drawn, corruption, around)
            if sample is not None:
                samples.append(sample)
                break
            redrawn += 1
        else:
            raise InputError(
                f"Task {task.name} found no pair of equally long prompts in {_TRIES} draws (split {split}); choose a "
                "model with a larger vocabulary, or split: all."
            )
    _check_context(model, samples)
    recipe: dict[str, Any] = {"task": task.name, "n": n, "corruption": corruption, "split": split, "seed": seed}
    recipe |= {key: value for key, value in (("phrasing", phrasing), ("template", template)) if value is not None}
    if prefix:
        recipe["prefix"] = prefix
    recipe |= {"changes": task.corruptions[corruption], "split_by": task.held_out}
    recipe["pools"] = {name: len(pool) for name, pool in pools.items()}
    recipe["redrawn"] = redrawn
    return PairDataset(name=task.name, samples=tuple(samples), meta=recipe)


def _one_of(corruption: Any, task: Task) -> str:
    if corruption not in task.corruptions:
        hint = did_you_mean(str(corruption), task.corruptions)
        known = ", ".join(task.corruptions)
        raise InputError(f"Task {task.name} has no corruption {corruption!r}.{hint} Available: {known}.")
    return corruption


def _patterns(task: Task, model: Any, pools: Mapping[str, Pool], phrasing: int | None) -> tuple[str, ...]:
    """The phrasings whose every word the tokenizer knows."""
    from workbench.models import encode

    chosen = task.phrasings
    if phrasing is not None:
        phrasing = checks.whole_number(phrasing, what="phrasing", least=0)
        if phrasing >= len(chosen):
            raise InputError(
                f"Task {task.name} has {len(chosen)} phrasings, numbered from 0; there is no phrasing {phrasing}."
            )
        chosen = chosen[phrasing : phrasing + 1]
    usable, missing = [], ""
    for pattern in chosen:
        text = render(pattern, task.draw(random.Random(0), pools).clean).text
        encoded = encode(model, text)
        gaps = [text[a:b] for i, (a, b) in zip(encoded.ids, encoded.offsets, strict=True) if i == unknown_id(model)]
        gaps = [word for word in gaps if word]  # a BOS token may share the id of the unknown word, and covers nothing
        missing = missing or next(iter(gaps), "")
        if not gaps:
            usable.append(pattern)
    if not usable:
        raise InputError(
            f"The tokenizer does not know {missing!r}, a word of the prompts of task {task.name}; choose a model whose "
            "vocabulary has it, or give your own prompts as pairs."
        )
    return tuple(usable)


def _pair(
    model: Any, name: str, pattern: str, front: str, drawn: Draw, corruption: str, around: Frame
) -> PairSample | None:
    """The pair, or None when the tokenizer does not make its two prompts comparable."""
    from workbench.models import encode

    changes = drawn.corrupted[corruption]
    clean = render(pattern, drawn.clean, around.before + front)
    corrupted = render(pattern, {**drawn.clean, **changes}, around.before + front)
    encoded = encode(model, clean.text + around.after)
    ids, others = tuple(encoded.ids), tuple(encode(model, corrupted.text + around.after).ids)
    if len(ids) != len(others):
        return None
    spans = {slot: token_span(encoded.offsets, *at) for slot, at in clean.at.items()}
    found = {slot: span for slot, span in spans.items() if span is not None}
    if len(found) < len(spans):
        return None
    allowed = {position for slot in changes for position in range(*found[slot])}
    if any(a != b and i not in allowed for i, (a, b) in enumerate(zip(ids, others, strict=True))):
        return None

    tokens = []
    for text in (drawn.answer, drawn.wrong[corruption]):
        joint = tuple(encode(model, clean.text + around.after + text).ids)
        if joint[: len(ids)] != ids or len(joint) == len(ids):
            return None
        tokens.append(joint[len(ids)])
    if tokens[0] == tokens[1]:
        return None
    roles = {**found, **{role: found[slot] for role, slot in drawn.roles.items()}, "end": (len(ids) - 1, len(ids))}
    return PairSample(
        id=name,
        clean=ids,
        corrupted=others,
        answer=tokens[0],
        wrong=tokens[1],
        spans=roles,
        answers=drawn.answers,
        wrongs=drawn.wrongs,
    )


def _check_context(model: Any, samples: Sequence[PairSample]) -> None:
    longest = max(sample.length for sample in samples)
    n_ctx = getattr(model, "n_ctx", None)
    if n_ctx is not None and longest > n_ctx:
        raise InputError(f"A prompt has {longest} tokens, but the model has {n_ctx} positions; lower prefix.")
