"""Captions of drawn scenes and questions about them, for models that hallucinate and for those who measure it.

    data: {task: captions, n: 50}                              scenes to be described, with the objects they show
    data: {task: objects, n: 60, negatives: adversarial}       "Is there a red circle ?", half of them yes

As in POPE the objects that are asked for and absent are random ones, popular ones (the most frequent of the world), or
adversarial ones (companions of what is drawn). `mentioned` reads objects out of a caption, as CHAIR does. The file
draws through `drawings` and knows nothing of what is measured.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from workbench.errors import InputError, did_you_mean
from workbench.tasks import checks, drawings
from workbench.tasks.drawings import COMMONNESS, COMPANIONS, LEADERS, OBJECTS, Scene
from workbench.tasks.images import ImageDataset, images_from_samples

DESCRIBE = "Describe the image ."
ASK = "Is there a {object} ?"
OPENING, CLOSING = "I see :", "nothing more ."
NEGATIVES = ("random", "popular", "adversarial")
COOCCURRENCE = 0.5  # of the scenes that are asked about; the organism was trained with 0.8
N_POPULAR = 6


def vocabulary() -> list[str]:
    """Every word and mark that prompts and captions use: what a word-level tokenizer needs."""
    text = " ".join([DESCRIBE, ASK.format(object=" ".join(OBJECTS)), OPENING, CLOSING, ", yes . no ."])
    return sorted(set(text.split()))


def caption(objects: Iterable[str]) -> str:
    """The sentence that mentions `objects`, in this order."""
    return " ".join([OPENING, *(f"{name} ," for name in objects), CLOSING])


def mentioned(text: str, names: Iterable[str] = OBJECTS) -> tuple[str, ...]:
    """The objects of `names` that `text` mentions, in the order of their first mention, each once.

    Whole words, a plural s allowed, case ignored; a longer name wins over one it contains.
    """
    return tuple(dict.fromkeys(name for name, _, _ in mentions(text, names)))


def mentions(text: str, names: Iterable[str] = OBJECTS) -> list[tuple[str, int, int]]:
    """Every mention in `text` as (name, start, stop) in characters, by the rules of `mentioned`."""
    ordered = sorted(names, key=len, reverse=True)
    pattern = "|".join(re.escape(name.lower()) + "(?:s|es)?" for name in ordered)
    if not pattern:
        return []
    lower = {name.lower(): name for name in ordered}
    found = []
    for match in re.finditer(rf"\b(?:{pattern})\b", text.lower()):
        word = match.group()
        found.append((next(lower[w] for w in (word, word[:-1], word[:-2]) if w in lower), *match.span()))
    return found


def captions(
    model: Any,
    n: int = 50,
    *,
    cooccurrence: float = COOCCURRENCE,
    prompt: str = DESCRIBE,
    size: int = drawings.SIZE,
    template: str | None = None,
    seed: int = 0,
) -> ImageDataset:
    """`n` drawn scenes to be described; `objects` says what each shows, `reference` is a true caption.

    Args:
        model: a `Model` with a processor, or a processor.
        cooccurrence: probability that the companion of a leader is drawn too; the lower, the more there is to
            hallucinate.
        size: side of the canvas in pixels; the processor scales it to what the model takes.
    """
    checks.whole_number(n, what="n")
    drawn = drawings.scenes(n, seed=seed, cooccurrence=cooccurrence)
    rows = [
        {
            "id": f"scene-{i}",
            "image": drawings.draw(scene, size=_size(size)),
            "prompt": prompt,
            "objects": scene.objects,
            "reference": caption(scene.objects),
            "regions": scene.boxes,
        }
        for i, scene in enumerate(drawn)
    ]
    recipe = {"task": "captions", "n": n, "cooccurrence": cooccurrence, "prompt": prompt, "size": size, "seed": seed}
    return _dataset(model, rows, "captions", recipe, template)


def objects(
    model: Any,
    n: int = 60,
    *,
    negatives: str | Sequence[str] = NEGATIVES,
    cooccurrence: float = COOCCURRENCE,
    prompt: str = ASK,
    size: int = drawings.SIZE,
    template: str | None = None,
    seed: int = 0,
) -> ImageDataset:
    """`n` questions about as many drawn scenes, yes and no in turn; `group` is the kind of negatives.

    Args:
        negatives: which absent objects are asked for: one of "random", "popular", "adversarial", or several, which
            then take turns (pairs of a yes and a no).
        prompt: the question, with `{object}` in it once.
    """
    checks.whole_number(n, what="n")
    kinds = _kinds(negatives)
    if not isinstance(prompt, str) or prompt.count("{object}") != 1:
        raise InputError(f"prompt must be a question with {{object}} in it once, not {prompt!r}.")
    rng = np.random.default_rng([21, seed])
    rows = []
    for i in range(n):
        kind, present = kinds[i // 2 % len(kinds)], i % 2 == 0
        while True:  # a scene that has no such negative is drawn again
            scene = drawings.scene(rng, cooccurrence=cooccurrence)
            choices = scene.objects if present else absent(scene, kind)
            if choices:
                break
            if cooccurrence == 1:
                raise InputError("With cooccurrence 1 no companion is ever absent; lower it for adversarial negatives.")
        about = choices[int(rng.integers(len(choices)))]
        rows.append(
            {
                "id": f"question-{i}",
                "image": drawings.draw(scene, size=_size(size)),
                "prompt": prompt.replace("{object}", about),
                "objects": scene.objects,
                "answer": "yes" if present else "no",
                "about": about,
                "group": kind,
                "regions": scene.boxes,
            }
        )
    recipe = {
        "task": "objects",
        "n": n,
        "negatives": list(kinds),
        "cooccurrence": cooccurrence,
        "prompt": prompt,
        "size": size,
        "seed": seed,
    }
    return _dataset(model, rows, "objects", recipe, template)


def absent(scene: Scene, kind: str) -> tuple[str, ...]:
    """Objects that the scene does not show: all of them, the popular ones, or companions of what it shows."""
    pool = {"random": OBJECTS, "popular": popular(), "adversarial": scene.missing()}[kind]
    return tuple(name for name in pool if name not in scene.objects)


def popular() -> tuple[str, ...]:
    """The objects drawn most often: the most common leaders and their companions."""
    order = sorted(range(len(LEADERS)), key=lambda i: -COMMONNESS[i])[: N_POPULAR // 2]
    return tuple(name for i in order for name in (LEADERS[i], COMPANIONS[LEADERS[i]]))


def _kinds(negatives: Any) -> tuple[str, ...]:
    kinds = (negatives,) if isinstance(negatives, str) else tuple(negatives)
    for kind in kinds:
        if kind not in NEGATIVES:
            hint = did_you_mean(str(kind), NEGATIVES)
            raise InputError(f"There are no {kind!r} negatives.{hint} Known: {', '.join(NEGATIVES)}.")
    if not kinds:
        raise InputError(f"negatives must name at least one of {', '.join(NEGATIVES)}.")
    return kinds


def _size(size: Any) -> int:
    return checks.whole_number(size, what="size", least=16)


def _dataset(
    model: Any, rows: list[dict[str, Any]], name: str, recipe: dict[str, Any], template: str | None
) -> ImageDataset:
    recipe = recipe if template is None else {**recipe, "template": template}
    origins = [f"{name.capitalize()} {row['id']}" for row in rows]
    return images_from_samples(
        model, rows, template=template, name=name, vocabulary=OBJECTS, origins=origins, meta=recipe
    )
