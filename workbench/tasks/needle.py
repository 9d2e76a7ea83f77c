"""The needle-in-a-haystack task, composed in token space (retrieval_heads.md 1.2, without the pitfalls of 1.9).

    prompt = BOS + haystack[:p] + needle + haystack[p:m] + question,   exactly `length` tokens

1. Haystack, needles and questions are tokenised once each, in the context they will stand in (after a sentence), so
   that no text is decoded and encoded again and no token boundary drifts.
2. The haystack is one token sequence for the whole dataset: two prompts share it up to the first needle, so that a
   KV prefix can be reused exactly. It is cut where the length says, in the middle of a sentence if need be.
3. p is the sentence boundary nearest to depth * m; depth 0 is right after BOS, depth 1 right before the question.
   Boundaries are found in the text and mapped through the tokenizer's offsets, never by the id of a full stop.
4. The tracked span is the answer within the needle.

The built-in needles and haystack are those of `prose`; a user's own come from files. The file knows tokenizers, and of
a model only how many positions it has.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import InputError
from workbench.tasks import checks, prose
from workbench.tasks.explicit import check_context, token_span
from workbench.tasks.samples import NeedleDataset, NeedleSample
from workbench.tasks.template import frame

CARRIER = "The road was long."  # the sentence before and after every piece while it is tokenised
SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]]*(?=\s)|[。！？]|(?=\n\s*\n)")
FAR = 0.1  # a needle this far from the depth asked for gets a note
NEEDLE_KEYS = ("needle", "question", "answer", "real_needle", "id")


@dataclass(frozen=True)
class _Piece:
    """A text tokenised in context: ids, and each token's character span in the text."""

    text: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Needle:
    id: str
    ids: tuple[int, ...]
    answer_span: tuple[int, int]  # within ids
    answer: str
    question_ids: tuple[int, ...]


@dataclass(frozen=True)
class _Haystack:
    """Tokens to hide needles in; `boundaries` are the token indices at which a sentence begins."""

    piece: _Piece
    ids: tuple[int, ...]
    boundaries: tuple[int, ...]

    def text(self, m: int) -> str:
        """What the first `m` tokens say (the whole text when they go round more than once)."""
        once = len(self.piece.ids)
        if m > once:
            return f"{self.piece.text} {self.piece.text}"
        return self.piece.text[: self.piece.offsets[m - 1][1]] if m else ""


def _tokenise(model: Any, text: str, *, followed: bool) -> _Piece:
    """Tokens of `text` as it stands after a sentence (and, if `followed`, before another one)."""
    from workbench.models import encode

    start = len(CARRIER) + 1
    encoded = encode(model, f"{CARRIER} {text}" + (f" {CARRIER}" if followed else ""))
    # The space before the text belongs to it, the space after it does not.
    first, stop = start - 1, start + len(text)
    inside = [i for i, (a, b) in enumerate(encoded.offsets) if a >= first and b > first and b <= stop]
    offsets = [encoded.offsets[i] for i in inside]
    spans = tuple((max(a - start, 0), max(b - start, 0)) for a, b in offsets)
    return _Piece(text, tuple(encoded.ids[i] for i in inside), spans)


def _boundaries(piece: _Piece) -> list[int]:
    starts = [a for a, _ in piece.offsets]
    found = []
    for match in SENTENCE_END.finditer(piece.text):
        i = bisect_left(starts, match.end())
        # The token before may hold the full stop and white space (".\n" in many vocabularies), but nothing else.
        if 0 < i < len(starts) and not piece.text[match.end() : piece.offsets[i - 1][1]].strip():
            found.append(i)
    return found


def _haystack(model: Any, source: Callable[[int], str], size: int) -> _Haystack:
    """At least `size` tokens of a text, repeated if short; `source` gives the text's first so many characters."""
    characters = 8 * size + 200
    while True:
        text = source(characters)
        piece = _tokenise(model, text, followed=False)
        # The last tokens of a text that was cut may be parts of words, so some are left over.
        if len(piece.ids) >= size + 8 or len(text) < characters:
            break
        characters *= 2
    if not piece.ids:
        raise InputError("The haystack has no text; give a file with some sentences.")
    once, rounds = len(piece.ids), math.ceil(size / len(piece.ids))
    first = _boundaries(piece)
    # Every round starts a sentence, provided that the text ends with one.
    start = [0] if piece.text[-1] in ".!?…。！？\"'”’)" else []
    boundaries = [0] + [r * once + i for r in range(rounds) for i in ((start if r else []) + first)]
    return _Haystack(piece, piece.ids * rounds, tuple(boundaries))


def _check_needle(model: Any, row: Any, index: int, unknown: int | None, after: str) -> _Needle:
    """Validate one `{needle, question, answer}` and tokenise it."""
    where = f"Needle {index}"
    if isinstance(row, Mapping):
        checks.known_keys(row, NEEDLE_KEYS, where=where)
    text = checks.required_text(row, "needle", where=where).strip()
    question = checks.required_text(row, "question", where=where).strip()
    answer = checks.required_text(row, "real_needle" if "real_needle" in row else "answer", where=where).strip()
    if answer not in text:
        raise InputError(
            f"{where}: the answer {answer!r} does not occur in its needle {text!r}; copy it letter by letter."
        )
    if text.count(answer) > 1 or answer in question:
        raise InputError(
            f"{where}: the answer {answer!r} occurs elsewhere in the needle or the question; choose a longer answer."
        )
    piece = _tokenise(model, text, followed=True)
    start = text.find(answer)
    span = token_span(piece.offsets, start, start + len(answer))
    if span is None:
        raise InputError(
            f"{where}: the tokenizer drops every character of the answer {answer!r}; choose another answer."
        )
    if unknown is not None and unknown in piece.ids[slice(*span)]:
        raise InputError(
            f"{where}: the model's vocabulary lacks a word of the answer {answer!r}; choose words it knows."
        )
    asked = _tokenise(model, question + after, followed=False)
    return _Needle(str(row.get("id") or f"needle{index}"), piece.ids, span, answer, asked.ids)


def _design(n: int, n_lengths: int, n_depths: int, n_needles: int, rng: random.Random) -> list[tuple[int, int, int]]:
    """`n` triples (length, depth, needle), balanced and seeded.

    The (length, depth) cells are walked along diagonals, so that after any number of samples every length, every depth
    and every cell has been used equally often, give or take one; names are permuted by the seed. Each sample then takes
    the needle used least so far: overall, then at this depth, then at this length; ties go by a seeded order.
    """
    length_names = rng.sample(range(n_lengths), n_lengths)
    depth_names = rng.sample(range(n_depths), n_depths)
    needle_order = rng.sample(range(n_needles), n_needles)
    cycle = math.lcm(n_lengths, n_depths)
    used: Counter[tuple[str, int, int]] = Counter()
    design = []
    for i in range(n):
        r = i % (n_lengths * n_depths)
        length, depth = length_names[r % n_lengths], depth_names[(r + r // cycle) % n_depths]
        uses = {k: (used["all", 0, k], used["depth", depth, k], used["length", length, k]) for k in needle_order}
        needle = min(needle_order, key=uses.__getitem__)
        used.update([("all", 0, needle), ("depth", depth, needle), ("length", length, needle)])
        design.append((length, depth, needle))
    return design


def _insertion(haystack: _Haystack, m: int, depth: float, *, where: str) -> tuple[int, tuple[str, ...]]:
    """Token index in `[0, m]` at which the needle goes in, and a note when that is far from the depth asked for."""
    if depth == 1 or m == 0:
        return m, ()
    inside = [p for p in haystack.boundaries if p <= m]
    if len(inside) == 1 and depth > 0 and m > 64:
        raise InputError(
            f"{where}: the first {m} tokens of the haystack hold no end of a sentence, so depth {depth:g} cannot be "
            "met; use depths 0 and 1 or a haystack with punctuation."
        )
    p = min(inside, key=lambda p: (abs(p - depth * m), p))
    if abs(p / m - depth) > FAR:
        return p, (f"the sentence boundary nearest to depth {depth:g} is at {p / m:.2f}",)
    return p, ()


def _compose(
    bos: tuple[int, ...], haystack: _Haystack, needle: _Needle, length: int, depth: float, index: int
) -> NeedleSample:
    sample_id = f"{index:03d}/len{length}/depth{depth:g}/{needle.id}"
    where = f"Sample {sample_id}"
    least = len(bos) + len(needle.ids) + len(needle.question_ids)
    m = length - least
    if m < 0:
        raise InputError(
            f"{where}: {length} tokens are too few for its needle and question; ask for a length of at least {least}."
        )
    if needle.answer in haystack.text(m):
        raise InputError(
            f"{where}: the answer {needle.answer!r} also occurs in the haystack; choose another needle or haystack."
        )
    p, notes = _insertion(haystack, m, depth, where=where)
    tokens = (*bos, *haystack.ids[:p], *needle.ids, *haystack.ids[p:m], *needle.question_ids)
    start = len(bos) + p
    a, b = start + needle.answer_span[0], start + needle.answer_span[1]
    if len(tokens) != length or tokens[a:b] != needle.ids[slice(*needle.answer_span)]:
        raise RuntimeError(f"{where}: composed {len(tokens)} tokens with the needle at {(a, b)}")  # a defect of ours
    return NeedleSample(
        id=sample_id,
        tokens=tokens,
        needle=(a, b),
        needle_text=needle.answer,
        question=(length - len(needle.question_ids), length),
        needle_id=needle.id,
        depth=depth,
        nominal_length=length,
        notes=notes,
    )


def _sha256(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _needle_rows(needles: Any, base_dir: str | Path | None) -> list[Any]:
    if isinstance(needles, str | Path):
        return list(checks.json_lines(needles, base_dir=base_dir, what="needles file").values())
    if isinstance(needles, Mapping) or not isinstance(needles, Sequence) or not needles:
        raise InputError(
            "needles must be the path of a JSONL file or a list with at least one {needle, question, answer}."
        )
    return list(needles)


def needle(
    model: Any,
    n: int = 20,
    *,
    lengths: Sequence[int] | int = (128, 256),
    depths: Sequence[float] | float = (0.0, 0.25, 0.5, 0.75, 1.0),
    needles: str | Path | Sequence[Mapping[str, Any]] | None = None,
    n_needles: int | None = None,
    haystack: str | Path | None = None,
    template: str | None = None,
    seed: int = 0,
    base_dir: str | Path | None = None,
) -> NeedleDataset:
    """`n` needle prompts, spread evenly over lengths, depths and needles.

    Args:
        model: a `Model`, or anything `workbench.models.encode` takes; a `Model` limits lengths to its positions.
        lengths: tokens of the whole prompt, BOS and question included; met exactly.
        depths: 0 = right after BOS, 1 = right before the question.
        needles: a JSONL file or a list of `{needle, question, answer}`: the answer occurs in the needle, the question
            is put at the end of the prompt as it is. Default: synthetic ones that the organism `retrieval` never saw.
        n_needles: how many needles to use; default: all that are given, or a new synthetic one for every sample.
        haystack: a text file, repeated if too short; default: synthetic prose.
        template: what surrounds the whole prompt (see `template.frame`); it counts towards the length.
        seed: for the synthetic texts and for which sample gets which length, depth and needle.
        base_dir: what relative paths are relative to.

    Raises:
        InputError: a value is unusable, or a sample cannot be made; the message names it and the remedy.

    Example:
        >>> data = needle(model, n=20, lengths=(128, 256))  # doctest: +SKIP
    """
    from workbench.models import bos_id, encode, unknown_id

    n = checks.whole_number(n, what="n")
    lengths = checks.numbers(lengths, what="lengths", low=1, whole=True)
    depths = checks.numbers(depths, what="depths", low=0, high=1)
    seed = checks.whole_number(seed, what="seed", least=0)
    tokenizer = getattr(model, "tokenizer", None) or model
    recipe: dict[str, Any] = {"task": "needle", "n": n, "lengths": list(lengths), "depths": list(depths), "seed": seed}

    if n_needles is not None:
        n_needles = checks.whole_number(n_needles, what="n_needles")
    if needles is None:
        rows: list[Any] = prose.needles(n_needles or n, seed=seed)
    else:
        rows = _needle_rows(needles, base_dir)
        if n_needles is not None and n_needles > len(rows):
            raise InputError(
                f"n_needles is {n_needles}, but only {len(rows)} needles are given; lower it or give more."
            )
        rows = rows[:n_needles]
    around = frame(model, template)
    if template is not None:
        recipe["template"] = template
    unknown = unknown_id(tokenizer)
    made = [_check_needle(model, row, index, unknown, around.after) for index, row in enumerate(rows)]
    if needles is not None:
        recipe["needles"] = str(needles) if isinstance(needles, str | Path) else [dict(row) for row in rows]
    recipe["n_needles"] = len(made)
    recipe["needles_digest"] = _sha256(json.dumps([dict(row) for row in rows], sort_keys=True, ensure_ascii=False))

    longest = max(lengths)
    answer = max(len(k.ids[slice(*k.answer_span)]) for k in made)
    n_ctx = getattr(model, "n_ctx", None) or 0
    check_context(
        model, longest, answer, where="The longest prompt", remedy=f"ask for lengths of at most {n_ctx - answer}"
    )

    if haystack is None:
        source: Callable[[int], str] = lambda characters: prose.text(characters, seed=seed)  # noqa: E731
    else:
        path, content = checks.text_file(haystack, base_dir=base_dir, what="haystack file")
        content = content.strip()
        if not content:
            raise InputError(f"The haystack file {str(path)!r} is empty; give a file with some sentences.")
        source = lambda characters: content[:characters]  # noqa: E731
        recipe |= {"haystack": str(haystack), "haystack_digest": _sha256(content)}
    hay = _haystack(model, source, longest)

    bos = bos_id(tokenizer)
    front = tuple(encode(model, around.before).ids) if around.before else () if bos is None else (bos,)
    rng = random.Random(f"needle-design-{seed}")
    design = _design(n, len(lengths), len(depths), len(made), rng)
    samples = tuple(
        _compose(front, hay, made[k], lengths[i], depths[j], index) for index, (i, j, k) in enumerate(design)
    )
    return NeedleDataset(name="needle", samples=samples, meta=recipe)
