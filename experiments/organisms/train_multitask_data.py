"""Training examples of the organism `multitask`: repeated random words, then prompts of four circuit tasks.

An example is tokens and the positions at which the next token is to be predicted. Filler words of random number stand
in front of every one: without them the tasks are solved by absolute position, and no circuit forms. Prompts come from
`workbench.tasks.circuits` with `split="train"`, so that held-out combinations are never seen.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from train_multitask_checks import TASKS

from workbench.tasks import circuits
from workbench.tasks.circuits import words

N_CTX = 48
SHORTEST = 3  # words of a repeated sequence
REVERSE = ("What", "color", "is", "the")  # stands before a sequence that is repeated backwards
FORWARD = (":", "param")  # and before one that is repeated as it was
MORE = {"colored_objects": 5}  # with fewer prompts it is learned by heart, and held-out ones suffer
YEARS = words.YEARS[::3]  # 01, 04, ... 97: fewer years are learned sooner


@dataclass
class Batch:
    """Examples, padded on the right (attention is causal, so padding is never seen).

    Attributes:
        tokens: `[n, pos]`.
        rows, positions: where a token is to be predicted, one entry each.
        targets: for each entry the tokens that are right, all equally.
        kinds: which task each entry belongs to.
    """

    sequences: list[list[int]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    targets: list[tuple[int, ...]] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)

    def add(self, kind: str, tokens: list[int], predict: Sequence[tuple[int, tuple[int, ...]]]) -> None:
        """One example; `predict` holds (position, tokens that may follow)."""
        for position, target in predict:
            self.rows.append(len(self.sequences))
            self.positions.append(position)
            self.targets.append(target)
            self.kinds.append(kind)
        self.sequences.append(tokens)

    @property
    def tokens(self) -> Tensor:
        longest = max(map(len, self.sequences))
        return torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens in self.sequences])

    def distribution(self, n_vocab: int) -> Tensor:
        """What should be predicted, `[entry, vocab]`: less noisy than one right answer drawn at a time."""
        found = torch.zeros(len(self.targets), n_vocab)
        for row, right in zip(found, self.targets, strict=True):
            row[list(right)] = 1 / len(right)
        return found


def build_tokenizer() -> Any:
    """One token per word or mark of the four tasks, with every third year of a century."""
    known = {word for name in TASKS for word in circuits.vocabulary(name, fillers=True)}
    unwanted = set(words.YEARS) - set(YEARS) - set(words.CENTURIES)
    return circuits.word_tokenizer(sorted(known - unwanted), n_ctx=N_CTX)


class Examples:
    """Draws training examples."""

    def __init__(self, tokenizer: Any, *, n: int, seed: int) -> None:
        """`n`: different prompts of each task (times `MORE`)."""
        self.rng = random.Random(f"multitask-{seed}")
        self.bos: int = tokenizer.bos_token_id
        ids = tokenizer.convert_tokens_to_ids
        self.fillers: list[int] = ids(list(words.FILLERS))
        self.forward: list[int] = ids(list(FORWARD))
        self.reverse: list[int] = ids(list(REVERSE))
        self.content: list[int] = ids([*words.NAMES, *words.COLORS, *words.THINGS, *words.ARGUMENTS])  # what is copied
        self.prompts = {name: circuits.task(name, tokenizer, n, split="train", seed=seed).samples for name in TASKS}

    def batch(self, mixture: dict[str, int], *, longest: int, fillers: int) -> Batch:
        """As many examples of each kind as `mixture` says.

        Args:
            longest: words of the longest repeated sequence.
            fillers: most words in front of an example.
        """
        batch = Batch()
        for kind, n in mixture.items():
            for _ in range(n):
                n_front = self.rng.randint(0, fillers)
                if kind in ("induction", "reverse"):
                    self._repeated(batch, kind, longest, n_front)
                else:
                    self._prompt(batch, kind, n_front)
        return batch

    def _prompt(self, batch: Batch, kind: str, n_front: int) -> None:
        """A prompt of a task; its `_direct` form stops right after the thing that is asked for."""
        sample = self.rng.choice(self.prompts[kind.removesuffix("_direct")])
        stop = sample.spans["query"][1] if kind.endswith("_direct") else sample.length
        tokens = [self.bos, *self.rng.choices(self.fillers, k=n_front), *sample.clean[1:stop]]
        batch.add(kind, tokens, [(len(tokens) - 1, sample.answers or (sample.answer,))])

    def _repeated(self, batch: Batch, kind: str, longest: int, n_front: int) -> None:
        """Random words, then the same as they were or backwards, from some word of them on and round again.

        All of the second half is predictable but its first word and the one after the end of the first half.
        """
        drawn = self.rng.sample(self.content, self.rng.randint(SHORTEST, longest))
        again = drawn if kind == "induction" else drawn[::-1]
        start = self.rng.randint(1, len(again) - 1)
        again = again[start:] + again[:start]
        front = [self.bos, *self.rng.choices(self.content + self.fillers, k=n_front)]
        tokens = [*front, *drawn, *(self.forward if kind == "induction" else self.reverse), *again]
        first = len(tokens) - len(again)
        round_again = len(tokens) - start
        predict = [(i, (tokens[i + 1],)) for i in range(first, len(tokens) - 1) if i + 1 != round_again]
        batch.add(kind, tokens, predict)
