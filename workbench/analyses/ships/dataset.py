"""The dataset-level score of every candidate, measured: prompts in, scores out, finished bands of layers kept on disk.

`Subspace` is the paper's: how far an ablation turns what the prompts span. `Divergence` is ours: how far it moves the
next-token distributions, which also sees a change that all prompts share and that turns nothing. `angles` holds the
equations and `forks` the forward passes; this joins them for one set of prompts, with an optional group ablated
underneath, and knows how to go on after an interruption. It never ranks anything.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.analyses.ships import angles
from workbench.analyses.ships.ablations import Ablation, Head
from workbench.analyses.ships.forks import Forks, Read
from workbench.primitives import metrics
from workbench.primitives.sweep import Unit
from workbench.primitives.sweep.checkpoint import Checkpoint
from workbench.progress import bar

if TYPE_CHECKING:
    from workbench.models import Model
    from workbench.tasks.prompts import PromptDataset


@dataclass(frozen=True)
class Method:
    """What is measured: `rank` principal angles summed, or with `compat` the reference's float32 one."""

    ablation: Ablation
    rank: int = 1
    compat: bool = False
    seed: int = 0
    budget: int | None = None


@dataclass(frozen=True)
class Turned:
    """What ablating each candidate does to a set of prompts.

    Attributes:
        score: degrees (`Subspace`) or nats (`Divergence`).
        stderr: over prompts, of angles by jackknife; NaN where not asked for.
        by_prompt: the score as a mean over prompts, each with its part in it.
        null: the score of random edits of equal size; no rows when none were asked for.
    """

    score: Float[np.ndarray, " unit"]
    stderr: Float[np.ndarray, " unit"]
    by_prompt: Float[np.ndarray, "unit n"]
    null: Float[np.ndarray, "draw unit"]


class Prompted(ABC):
    """A set of prompts, what the unablated model makes of them, and what any ablation does to that.

    Attributes:
        plain: vectors of the unablated model, which every step is compared with.
        flops: planned for all that was measured so far. notes: what was given up, and why.
    """

    read: ClassVar[Read]

    def __init__(self, model: Model, data: PromptDataset, method: Method, *, root: Path | None = None):
        batch = data.batch()
        self.model, self.method, self.root = model, method, root
        self.tokens, self.mask = batch.tokens, batch.mask if batch.padded else None
        forks = self._forks(())
        self.plain: Float[Tensor, "n k"] = forks.base()
        self.flops, self.how, self.notes = 0.0, forks.method, (forks.note,) if forks.note else ()
        self._parts: list[Checkpoint] = []

    def turned(
        self, units: Sequence[Unit], *, group: Sequence[Head] = (), controls: int = 0, stderr: bool = False
    ) -> Turned:
        """Score every unit, ablated on top of `group`, against the unablated model."""
        forks = self._forks(group)
        self.flops += forks.flops(units, draws=controls)
        parts = Checkpoint(self.root, None if self.root is None else self._key(forks, units, group, controls, stderr))
        self._parts.append(parts)
        bands = list(forks.bands(units))
        found: dict[int, dict[str, Tensor]] = {}
        with bar(len(units), "heads") as shown:
            keys = [(0, number) for number in range(len(bands))]
            for (_, number), part in parts.parts(
                keys, lambda key: self._band(forks, units, bands[key[1]], controls, stderr)
            ):
                found[number] = part
                shown.update(len(bands[number]))
        back = np.argsort([unit for band in bands for unit in band])
        whole = {
            name: torch.cat(
                [found[number][name] for number in range(len(bands))], dim=1 if name == "null" else 0
            ).numpy()
            for name in ("score", "stderr", "by_prompt", "null")
        }
        return Turned(whole["score"][back], whole["stderr"][back], whole["by_prompt"][back], whole["null"][:, back])

    def forget(self) -> None:
        """Remove what was kept for an interruption."""
        for part in self._parts:
            part.remove()

    @abstractmethod
    def _band(
        self, forks: Forks, units: Sequence[Unit], band: list[int], controls: int, stderr: bool
    ) -> dict[str, Tensor]:
        """The fields of `Turned` for the units numbered in `band`; each kind of score has its own."""

    def _forks(self, group: Sequence[Head]) -> Forks:
        method = self.method
        return Forks(
            self.model,
            self.tokens,
            self.mask,
            method.ablation,
            group=group,
            read=self.read,
            seed=method.seed,
            budget=method.budget,
        )

    def _key(self, forks: Forks, units: Sequence[Unit], group: Sequence[Head], *options: Any) -> list[Any]:
        """Everything that decides the numbers, JSON-able."""
        model, method = self.model, self.method
        tensors = (self.tokens, self.mask)
        return [
            _code(),
            self.read,
            model.fingerprint,
            model.config_digest,
            model.basis,
            str(model.dtype),
            model.device.type,
            [None if t is None else hashlib.sha256(t.long().numpy().tobytes()).hexdigest() for t in tensors],
            list(self.tokens.shape),
            [method.ablation.kind, method.ablation.epsilon, method.rank, method.compat, method.seed],
            list(units),
            list(group),
            list(options),
            forks.method,
            forks.chunks,
            forks.rows,
            torch.__version__,
        ]


class Subspace(Prompted):
    """What the prompts span in the final hidden states, and how far an ablation turns it (eq. 11), in degrees.

    Attributes:
        singular_values: of the unablated states, the largest first.
    """

    read = "states"

    def __init__(self, model: Model, data: PromptDataset, method: Method, *, root: Path | None = None):
        super().__init__(model, data, method, root=root)
        angles.check_rank(method.rank, *self.plain.shape, what="prompts")
        self.gram = angles.gram(self.plain)
        self.basis = angles.gram_vectors(self.gram, method.rank)
        self.singular_values = torch.linalg.eigvalsh(self.gram).clamp(min=0).sqrt().flip(-1).numpy()

    def _band(
        self, forks: Forks, units: Sequence[Unit], band: list[int], controls: int, stderr: bool
    ) -> dict[str, Tensor]:
        states = forks.vectors(units, band)
        grams = angles.gram(states)
        turned_to = angles.gram_vectors(grams, self.method.rank)
        degrees = self._score(states, turned_to)
        null = [self._score(forks.vectors(units, band, draw=draw)) for draw in range(controls)]
        nothing = torch.full_like(degrees, torch.nan)
        return {
            "score": degrees,
            "stderr": angles.jackknife_stderr(self.gram, grams, self.method.rank) if stderr else nothing,
            "by_prompt": degrees[:, None] * angles.shares(self.basis, turned_to),
            "null": torch.stack(null) if null else degrees.new_empty(0, len(band)),
        }

    def _score(self, states: Float[Tensor, "unit n d"], vectors: Tensor | None = None) -> Float[Tensor, " unit"]:
        if self.method.compat:
            return angles.reference_angle(self.plain, states)
        vectors = angles.left_vectors(states, self.method.rank) if vectors is None else vectors
        return angles.angle(self.basis, vectors)


class Divergence(Prompted):
    """Mean over prompts of the KL of the next-token distribution from the unablated model's (eq. 9), in nats."""

    read = "logits"

    def _band(
        self, forks: Forks, units: Sequence[Unit], band: list[int], controls: int, stderr: bool
    ) -> dict[str, Tensor]:
        by_prompt = self._kl(forks.vectors(units, band))
        null = [self._kl(forks.vectors(units, band, draw=draw)).mean(dim=1) for draw in range(controls)]
        spread = by_prompt.std(dim=1) / by_prompt.shape[1] ** 0.5  # NaN for a single prompt
        return {
            "score": by_prompt.mean(dim=1),
            "stderr": spread if stderr else torch.full_like(spread, torch.nan),
            "by_prompt": by_prompt,
            "null": torch.stack(null) if null else by_prompt.new_empty(0, len(band)),
        }

    def _kl(self, logits: Float[Tensor, "unit n vocab"]) -> Float[Tensor, "unit n"]:
        return torch.stack([metrics.kl(self.plain, rows).double() for rows in logits])


@cache
def _code() -> str:
    """Of the sources beside this one: other code never resumes what this left."""
    return hashlib.sha256(b"".join(f.read_bytes() for f in sorted(Path(__file__).parent.glob("*.py")))).hexdigest()
