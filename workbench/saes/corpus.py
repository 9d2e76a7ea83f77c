"""Text for training when there is no corpus at hand: what the model itself writes.

Prompts are continued by sampling from the model's own distribution, which is on the distribution of its activations by
construction. Random numbers are drawn per prompt and sample before anything runs, so that a text does not depend on
what shares its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from workbench.errors import InputError
from workbench.primitives.forward import forward
from workbench.progress import bar

if TYPE_CHECKING:
    from workbench.models import Model

_PAD = 0  # any id will do: the mask takes it out


def continued(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    samples: int,
    length: int,
    temperature: float = 1.0,
    seed: int = 0,
    rows: int = 64,
) -> list[tuple[int, ...]]:
    """Token rows of `length` that begin with the prompts, `samples` of each.

    Raises:
        InputError: a length that a prompt or the model has no room for.
        CapabilityError: a native bridge, which has no cache.
    """
    longest = max(len(prompt) for prompt in prompts)
    if not longest < length or (model.n_ctx and length > model.n_ctx):
        raise InputError(
            f"Texts of {length} tokens do not fit: the longest prompt has {longest} and {model.name!r} takes "
            f"{model.n_ctx}; choose a length between."
        )
    made: list[tuple[int, ...]] = []
    with bar(len(prompts) * samples, "sampling text") as shown, torch.inference_mode():
        for number, prompt in enumerate(prompts):
            draws = [np.random.default_rng([seed, number, sample]) for sample in range(samples)]
            noise = np.stack([rng.random(length - len(prompt)) for rng in draws])
            for start in range(0, samples, rows):
                part = torch.from_numpy(noise[start : start + rows]).to(model.device)
                made += _grown(model, prompt, part, temperature)
                shown.update(len(part))
    return made


def _grown(model: Model, prompt: Sequence[int], noise: Tensor, temperature: float) -> list[tuple[int, ...]]:
    """One batch; `noise` is `[row, new token]`."""
    current = torch.tensor([list(prompt)] * len(noise), device=model.device)
    columns, cache = [current], None
    for step in range(noise.shape[1]):
        run = forward(model, current, cache=cache, use_cache=True, logits_to_keep=1)
        cache = run.cache
        cumulated = torch.softmax(run.logits[:, -1].double() / temperature, dim=-1).cumsum(dim=-1)
        chosen = (cumulated < noise[:, step, None]).sum(dim=-1).clamp(max=cumulated.shape[-1] - 1)
        current = chosen[:, None]
        columns.append(current)
    return [tuple(row) for row in torch.cat(columns, dim=1).tolist()]


def as_rows(texts: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "n pos"], Bool[Tensor, "n pos"] | None]:
    """Token rows padded on the left, and which are real; None when all are."""
    longest = max(len(text) for text in texts)
    tokens = torch.tensor([[_PAD] * (longest - len(text)) + list(text) for text in texts])
    mask = torch.tensor([[i >= longest - len(text) for i in range(longest)] for text in texts])
    return tokens, None if bool(mask.all()) else mask
