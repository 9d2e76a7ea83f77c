"""`planted-induction`: a GPT-2 that continues a repeated word as it went on before, and nothing else.

    previous token   layer 0; attends to position i - 1 and notes its word: previous(i) = word(i - 1)
    induction        layers 1 and 2, one each; attends to the j whose previous word is the current one, copies word(j)
    stop             no head: after a full stop the unembedding says end of sequence

The two induction heads do the same: each writes half of the answer's logit and either alone suffices, so that a method
which removes one head at a time must see half an effect rather than none. Both read what the previous-token head wrote,
as keys. BOS is their resting place: where no word matches they attend to it, and its word is zero. All other heads are
noise.

The task hides a needle, `code garden amber copper raven tulip .`, among fillers and needles of other owners, and ends
with `code garden`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.organisms.planted.codes import codes
from workbench.organisms.planted.residual import Residual
from workbench.organisms.planted.silence import predictions, silenced
from workbench.organisms.planted.writing import (
    Head,
    Slot,
    choose_slots,
    empty_gpt2,
    noise_head,
    put,
    write_head,
)

if TYPE_CHECKING:
    from workbench.organisms.planted import Planted

NAME = "planted-induction"
WIDTH, D_HEAD, N_LAYERS, N_CTX = 64, 8, 3, 128
NOISE = 0.05
CODE = 7  # dimensions of a word; the eighth of the head is the resting place
LAYER = {"previous token": 0, "induction": 1, "second induction": 2}

SHARP = 80.0  # attention logit of a perfect match; the nearest other word has half of it
REST = 0.75  # of SHARP: attention logit of BOS
LOGIT = 12.0  # one induction head on its answer; the nearest other word gets half
STOP_LOGIT = 80.0  # more than both induction heads


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


OWNERS = _words("garden harbour castle forest bridge market tower village island station chapel valley")
ITEMS = _words(
    "amber violin copper raven marble cinnamon falcon velvet ginger pelican granite saffron tulip walrus cobalt maple "
    "lobster trumpet orchid silver tiger pepper coral bamboo crystal otter lemon zebra ivory cactus drum emerald"
)
FILLERS = _words(
    "old river quiet stone slow winter road under cloud early small lamp grey window open field warm letter light boat "
    "far morning rain long table soft evening bird low green door wood narrow paper"
)
NEEDLE_WORDS = 4


def make(*, seed: int = 0, noise: float = NOISE, n_noise_heads: int | None = None, width: int | None = None) -> Planted:
    """One instance: which heads carry the roles, the words' vectors and the noise all follow from `seed`.

    Args:
        noise: length of a noise head's output, where the planted heads' is 1.
        n_noise_heads: default every head without a role; the others then stay silent.
        width: of the residual stream, a multiple of 8; there is one head per layer for every 8.
    """
    from workbench.organisms.planted import Planted

    model, tokenizer, slots, options = weights(seed=seed, noise=noise, n_noise_heads=n_noise_heads, width=width)
    return Planted(model, tokenizer, _card(model, tokenizer, slots, options))


# ---- weights


def weights(
    *, seed: int = 0, noise: float = NOISE, n_noise_heads: int | None = None, width: int | None = None
) -> tuple[Any, Any, dict[str, Slot], dict[str, Any]]:
    """What `make` makes, without measuring it: model, tokenizer, the head of each role, the options used."""
    from workbench.organisms.planted.words import word_tokenizer

    rng = np.random.default_rng([seed, 1])
    parts = {"word": CODE, "position": D_HEAD, "before": D_HEAD, "previous": CODE, "out": CODE, "bos": 1, "stop": 1}
    stream = Residual(WIDTH if width is None else width, parts, rng)
    tokenizer = word_tokenizer(["code", ".", *OWNERS, *ITEMS, *FILLERS], n_ctx=N_CTX)
    model = empty_gpt2(stream, tokenizer, n_layers=N_LAYERS, d_head=D_HEAD, n_ctx=N_CTX)
    n_heads = stream.width // D_HEAD
    slots, noisy = choose_slots(LAYER, N_LAYERS, n_heads, n_noise_heads, rng)

    _embed(model, stream, tokenizer, rng)
    write_head(model, slots["previous token"], _previous_token(stream))
    for role in ("induction", "second induction"):
        write_head(model, slots[role], _induction(stream))
    for slot in noisy:
        write_head(model, slot, noise_head(stream, D_HEAD, noise, rng))

    options = {"seed": seed, "noise": noise, "n_noise_heads": len(noisy), "width": stream.width}
    return model, tokenizer, slots, options


def _embed(model: Any, stream: Residual, tokenizer: Any, rng: np.random.Generator) -> None:
    """Embeddings of words and positions, and the unembedding."""
    n = len(tokenizer)
    words = np.zeros((n, CODE))
    first = 4  # special tokens have no word
    words[first:] = codes(n - first, CODE, rng)
    embedding = words @ stream["word"]
    embedding[tokenizer.bos_token_id] += stream["bos"][0]
    full_stop = tokenizer.convert_tokens_to_ids(".")
    embedding[full_stop] += stream["stop"][0]
    put(model.transformer.wte.weight, embedding)

    places = codes(N_CTX, D_HEAD, rng, what="positions")
    position = places @ stream["position"]
    position[1:] += places[:-1] @ stream["before"]
    put(model.transformer.wpe.weight, position, add=True)

    unembedding = LOGIT * words @ stream["out"]
    unembedding[tokenizer.eos_token_id] += STOP_LOGIT * stream["stop"][0]
    put(model.lm_head.weight, unembedding)


def _previous_token(stream: Residual) -> Head:
    word = np.zeros((D_HEAD, stream.width))
    word[:CODE] = stream["word"]
    note = np.zeros((stream.width, D_HEAD))
    note[:, :CODE] = stream["previous"].T
    return Head(q=SHARP * stream["before"], k=stream["position"], v=word, o=note)


def _induction(stream: Residual) -> Head:
    q, k, v = (np.zeros((D_HEAD, stream.width)) for _ in range(3))
    o = np.zeros((stream.width, D_HEAD))
    q[:CODE], k[:CODE] = SHARP * stream["word"], stream["previous"]
    q[CODE], k[CODE] = SHARP * REST * stream.bias, stream["bos"][0]
    v[:CODE], o[:, :CODE] = stream["word"], stream["out"].T
    return Head(q=q, k=k, v=v, o=o)


# ---- prompts


def samples(n: int, seed: int = 0) -> list[dict[str, str]]:
    """Needle samples `{prompt, needle}` of about 30 to 110 tokens; the needle's words occur nowhere else."""
    rng = random.Random(f"{NAME}-samples-{seed}")
    made = []
    for _ in range(n):
        owners = rng.sample(OWNERS, rng.randint(1, 4))
        items = rng.sample(ITEMS, NEEDLE_WORDS * len(owners))
        needles = [items[i * NEEDLE_WORDS : (i + 1) * NEEDLE_WORDS] for i in range(len(owners))]
        text = [_filler(rng)]
        order = list(zip(owners, needles, strict=True))
        rng.shuffle(order)
        for owner, needle in order:
            text += ["code", owner, *needle, ".", _filler(rng)]
        made.append({"prompt": " ".join([*text, "code", owners[0]]), "needle": " ".join(needles[0])})
    return made


def pairs(n: int, seed: int = 0) -> list[dict[str, str]]:
    """Pairs in which two needles exchange their owners, so that the other answer is called for.

    The corrupted prompt changes what stands before an item and not the items, which is what the previous-token head
    reports; a corruption of the items alone would leave its output as it was.
    """
    rng = random.Random(f"{NAME}-pairs-{seed}")
    made = []
    for _ in range(n):
        a, b = rng.sample(OWNERS, 2)
        items = rng.sample(ITEMS, 2 * NEEDLE_WORDS)
        first, second = items[:NEEDLE_WORDS], items[NEEDLE_WORDS:]
        fillers = [_filler(rng) for _ in range(3)]

        def prompt(
            x: str,
            y: str,
            first: Sequence[str] = first,
            second: Sequence[str] = second,
            fillers: Sequence[str] = fillers,
            asked: str = a,
        ) -> str:
            words = [fillers[0], "code", x, *first, ".", fillers[1], "code", y, *second, ".", fillers[2], "code", asked]
            return " ".join(words)

        made.append(
            {"clean": prompt(a, b), "corrupted": prompt(b, a), "answer": f" {first[0]}", "wrong": f" {second[0]}"}
        )
    return made


def _filler(rng: random.Random) -> str:
    return " ".join(rng.choice(FILLERS) for _ in range(rng.randint(4, 16)))


# ---- what is true of it


def answer_accuracy(model: Any, tokenizer: Any, rows: Sequence[dict[str, str]]) -> float:
    """Share of needle words, and of the full stop after them, that the model says in their place; 0 to 1.

    Read off one forward pass over prompts and answers: all right means that greedy decoding gives exactly that.
    """
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows]
    answers = [tokenizer(f"{row['needle']} .", add_special_tokens=False)["input_ids"] for row in rows]
    right = total = 0
    for said, answer in zip(predictions(model, prompts, answers), answers, strict=True):
        right, total = right + sum(a == b for a, b in zip(said, answer, strict=True)), total + len(answer)
    return right / total


def _card(model: Any, tokenizer: Any, slots: dict[str, Slot], options: dict[str, Any]) -> dict[str, Any]:
    from workbench.organisms.planted.folder import describe

    everything = [(layer, head) for layer in range(N_LAYERS) for head in range(model.config.n_head)]
    planted = list(slots.values())
    inductors = [slots["induction"], slots["second induction"]]
    rest = [slot for slot in everything if slot not in planted]
    rows = samples(20, seed=1)

    def accuracy(off: Sequence[Slot], kind: Any = "zero") -> float:
        with silenced(model, off, kind):
            return round(answer_accuracy(model, tokenizer, rows), 4)

    intact, alone = accuracy([]), accuracy(rest)
    without = {"zero": accuracy(inductors), "uniform": accuracy(inductors, "uniform")}
    figures = {
        "metric": "share of the needle's words and its full stop said in their place, 20 fresh needles",
        "intact": intact,
        "without_one_induction_head": [accuracy([slot]) for slot in inductors],
        "without_both_induction_heads": without,
        "without_the_previous_token_head": accuracy([slots["previous token"]]),
        "without_all_other_heads": alone,
    }
    here = [list(slots[role]) for role in LAYER]
    previous, copying = here[:1], here[1:]
    edges = [{"sender": previous[0], "receiver": head, "input": "k"} for head in copying]
    return {
        "name": NAME,
        "kind": "planted",
        "summary": "Continues a repeated word as it went on before: a previous-token head and two induction heads.",
        "task": {"example": samples(1)[0], "vocabulary": len(tokenizer)},
        "options": options,
        "ground_truth": (
            "One head of layer 0 notes each position's previous word; one head of layer 1 and one of layer 2 look the "
            "current word up in those notes and copy the word found there. The two copy alike: each gives half of the "
            "answer's logit and either alone suffices. Every other head is noise."
        ),
        "model": describe(model),
        "accuracy": figures,
        "truths": [
            {
                "claim": "retrieval",
                "data": {"samples": samples(24)},
                "heads": copying,
                "optional": [],
                "roles": {"induction": copying},
                "how": "planted",
                "evidence": f"{intact:.0%} of the needle's words intact, {without['zero']:.0%} with the two zeroed and "
                f"{without['uniform']:.0%} with their attention uniform",
            },
            {
                "claim": "circuit",
                "data": {"pairs": pairs(16)},
                "heads": sorted(here),
                "optional": [],
                "roles": {"previous token": previous, "induction": copying},
                "edges": edges,
                "how": "planted",
                "evidence": f"{alone:.0%} of the needle's words with every other head zeroed, "
                f"{figures['without_the_previous_token_head']:.0%} without the previous-token head",
            },
            {
                "claim": "direct",
                "data": {"pairs": pairs(16)},
                "heads": copying,
                "optional": [],
                "roles": {"induction": copying},
                "how": "planted",
                "evidence": "the unembedding of words reads the subspace these two write and no other; "
                f"{without['zero']:.0%} of the needle's words with the two zeroed",
            },
        ],
    }
