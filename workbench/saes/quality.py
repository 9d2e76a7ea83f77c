"""How well an autoencoder reconstructs: the first thing to know about one, before any of its features is believed.

    explained variance    1 - sum |x - x^|^2 / sum |x - mean x|^2, over all tokens
    L0                    features active per token
    loss recovered        (L_ablated - L_sae) / (L_ablated - L_clean), L the mean next-token loss when the activation is
                          the autoencoder's, and when it is 0 (or its mean); 1 when nothing is lost
    dead                  features that no token of the data activates

Standard errors are over prompts. An autoencoder below the bounds is refused by `require_good`, unless told otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.errors import InputError
from workbench.primitives.forward import forward
from workbench.primitives.hooks import hooked
from workbench.saes.place import Place, activations, batches

if TYPE_CHECKING:
    from workbench.models import Model
    from workbench.saes.sae import Sae

_LEAST_GAP = 0.01  # nats: below, ablating costs nothing and a share of it means nothing


@dataclass(frozen=True)
class Report:
    """Attributes:
    loss_recovered, loss_recovered_mean: against zero and mean ablation; NaN where ablating costs under 0.01 nats.
    stderr: over prompts, of explained_variance (of the mean of the prompts' own), l0 and of the loss added.
    alive: which features any token activates.
    """

    explained_variance: float
    l0: float
    loss_clean: float
    loss_sae: float
    loss_zero: float
    loss_mean: float
    loss_recovered: float
    loss_recovered_mean: float
    n_features: int
    n_dead: int
    n_tokens: int
    n_prompts: int
    stderr: dict[str, float]
    alive: Bool[Tensor, " feature"] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, without `alive`."""
        return {key: value for key, value in asdict(self).items() if key != "alive"}


def report(
    model: Model,
    place: Place,
    sae: Sae,
    tokens: Int[Tensor, "n pos"],
    mask: Int[Tensor, "n pos"] | None = None,
    *,
    rows: int = 16,
) -> Report:
    """Measure the autoencoder on prompts, padded on the left where `mask` says so.

    Cost: five forward passes over the prompts.
    """
    tokens = tokens.to(model.device)
    real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.to(model.device).bool()
    sae = sae.to(model.device)
    x = activations(model, place, tokens, mask, rows=rows)
    mean = x[real].double().mean(dim=0).to(x.dtype)
    residual, spread, active = (torch.zeros(len(x), dtype=torch.float64) for _ in range(3))
    alive = torch.zeros(sae.d_sae, dtype=torch.bool, device=x.device)
    for part in batches(len(x), rows):
        here, keep = x[part], real[part]
        features = sae.encode(here)
        error = (here - sae.decode(features, here)).double().square().sum(-1)
        residual[part] = (error * keep).sum(-1).cpu()
        spread[part] = ((here - mean).double().square().sum(-1) * keep).sum(-1).cpu()
        fired = (features > 0) & keep[..., None]
        active[part] = fired.sum((1, 2)).double().cpu()
        alive |= fired.flatten(0, 1).any(0)
    count = real.sum(-1).double().cpu()

    def losses(change: Callable[[Tensor], Tensor] | None) -> Float[Tensor, " n"]:
        return _losses(model, place, tokens, mask, real, change, rows)

    clean, with_sae = losses(None), losses(sae.reconstruct)
    at_zero, at_mean = losses(torch.zeros_like), losses(lambda value: mean.expand_as(value))
    pairs = (real[:, 1:] & real[:, :-1]).sum(-1).double().cpu()

    def overall(loss: Tensor) -> float:
        return float(loss.sum() / pairs.sum()) if pairs.sum() else math.nan

    def recovered(ablated: Tensor) -> float:
        gap = overall(ablated) - overall(clean)
        return (overall(ablated) - overall(with_sae)) / gap if gap > _LEAST_GAP else math.nan

    return Report(
        explained_variance=float(1 - residual.sum() / spread.sum()),
        l0=float(active.sum() / count.sum()),
        loss_clean=overall(clean),
        loss_sae=overall(with_sae),
        loss_zero=overall(at_zero),
        loss_mean=overall(at_mean),
        loss_recovered=recovered(at_zero),
        loss_recovered_mean=recovered(at_mean),
        n_features=sae.d_sae,
        n_dead=int((~alive).sum()),
        n_tokens=int(count.sum()),
        n_prompts=len(tokens),
        stderr={
            "explained_variance": _stderr(1 - residual / spread),
            "l0": _stderr(active / count),
            "loss_added": _stderr((with_sae - clean) / pairs),
        },
        alive=alive.cpu(),
    )


def require_good(
    found: Report, *, min_explained_variance: float, min_loss_recovered: float, allow_poor: bool
) -> tuple[str, ...]:
    """What is wrong with the reconstruction, in words.

    Raises:
        InputError: something is, and `allow_poor` is False.
    """
    problems = []
    if not found.explained_variance >= min_explained_variance:
        problems.append(f"explains {found.explained_variance:.2f} of the variance (at least {min_explained_variance})")
    if found.loss_recovered < min_loss_recovered:
        problems.append(f"recovers {found.loss_recovered:.2f} of the loss (at least {min_loss_recovered})")
    if problems and not allow_poor:
        raise InputError(
            f"The autoencoder {' and '.join(problems)} on these prompts, so its features say little about this model; "
            "check its hook point and basis, take another, or set allow_poor to go on."
        )
    return tuple(problems)


def _losses(
    model: Model,
    place: Place,
    tokens: Int[Tensor, "n pos"],
    mask: Tensor | None,
    real: Bool[Tensor, "n pos"],
    change: Callable[[Tensor], Tensor] | None,
    rows: int,
) -> Float[Tensor, " n"]:
    """Sum of each prompt's next-token losses, the activation changed."""
    found = []
    for part in batches(len(tokens), rows):
        here = tokens[part]
        hooks = [] if change is None else [place.edit(change)]
        with hooked(model, hooks):
            logits = forward(model, here, attention_mask=None if mask is None else mask[part]).logits
        each = torch.nn.functional.cross_entropy(
            logits[:, :-1].float().flatten(0, 1), here[:, 1:].flatten(), reduction="none"
        ).view(len(here), -1)
        counts = real[part][:, 1:] & real[part][:, :-1]
        found.append(torch.where(counts, each, 0.0).double().sum(-1).cpu())
    return torch.cat(found)


def _stderr(values: Float[Tensor, " n"]) -> float:
    values = values[values.isfinite()]
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else math.nan
