"""Training a sparse autoencoder, top-k or standard, so that an interrupted run ends with the same bits.

    scale     activations are divided by c, so that their mean norm is sqrt(d_in); undone in the result
    loss      |x - x^|^2 / d_in   and   standard: + l1 sum f / d_in
                                        aux: + a |e - e^|^2 / d_in, e the error and e^ what dead features make of it
    decoder   rows of norm 1: the gradient along each row is taken out, and after each step the row is rescaled
    dead      features inactive for `dead_after` steps: auxiliary loss (Gao et al. 2024, arXiv 2406.04093), or
              resampling (Bricken et al. 2023): pointed at vectors drawn in proportion to their squared error

Everything a step depends on is in the state: weights, Adam's moments, when each feature was last active. Random draws
come from generators seeded by what they are for, and pages of activations from their number, so the state is small and
a checkpoint is one file, put in place in one step.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.primitives.sweep.checkpoint import seal, unseal
from workbench.progress import bar
from workbench.saes.config import SaeConfig
from workbench.saes.files import write_whole
from workbench.saes.options import TrainOptions
from workbench.saes.pages import Pages, check_page, generator
from workbench.saes.sae import Sae, top_k

_BETAS, _EPS = (0.9, 0.999), 1e-8
_HISTORY = ("step", "loss", "explained_variance", "l0", "n_dead")
_RECORD_EVERY = 50
_FORMAT = 1
Weights = dict[str, Tensor]


@dataclass
class Trained:
    """An autoencoder and how it came about.

    Attributes:
        history: every 50 steps `step`, `loss`, `explained_variance` and `l0` of the batch, and `n_dead`, the features
            inactive for `dead_after` steps.
        resumed_at: step at which a checkpoint was taken up, 0 when from the start.
    """

    sae: Sae
    history: dict[str, list[float]]
    resumed_at: int = 0


@dataclass
class _State:
    """All that the next step depends on. `page`, `row`: where the next batch begins."""

    weights: Weights
    first: Weights
    second: Weights
    last_active: Float[Tensor, " feature"]
    scale: float
    step: int = 0
    page: int = 0
    row: int = 0
    history: list[list[float]] = field(default_factory=list)

    def to(self, device: torch.device) -> None:
        """Move to where the activations are (a checkpoint is read onto the CPU)."""
        for held in (self.weights, self.first, self.second):
            held.update({name: w.to(device) for name, w in held.items()})
        self.last_active = self.last_active.to(device)


def train(
    pages: Pages,
    options: TrainOptions,
    *,
    hook_name: str,
    metadata: dict[str, object] | None = None,
    basis: str | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
) -> Trained:
    """Train an autoencoder on a stream of activations.

    Args:
        pages: where activations come from.
        hook_name, metadata, basis: what the autoencoder is to say about where it belongs.
        checkpoint: a folder in which states are kept while training lasts; a later call with the same stream, options
            and seed goes on from the last one. It is removed at the end.

    Raises:
        InputError: a page does not fill a batch.
    """
    file = None if checkpoint is None else Path(checkpoint) / f"sae-{_key(pages, options, seed)}.safetensors"
    state = _load(file) or _start(pages, options, seed)
    resumed_at = state.step
    vectors: Tensor | None = None
    with bar(options.steps, "training the autoencoder") as shown:
        shown.update(state.step)
        while state.step < options.steps:
            if vectors is None:
                vectors = pages.page(state.page)
                check_page(vectors, options.batch)
                state.to(vectors.device)
            x = vectors[state.row : state.row + options.batch] / state.scale
            _step(state, x, options, seed)
            state.row += options.batch
            if state.row + options.batch > len(vectors):
                state.page, state.row, vectors = state.page + 1, 0, None
            shown.update(1)
            if file is not None and state.step % options.checkpoint_every == 0 and state.step < options.steps:
                write_whole(file, _dump(state, file.name))
    if file is not None:
        file.unlink(missing_ok=True)
    sae = _finished(state, options, hook_name, metadata or {}, basis)
    columns = zip(*state.history, strict=True) if state.history else [[] for _ in _HISTORY]
    return Trained(sae, dict(zip(_HISTORY, map(list, columns), strict=True)), resumed_at)


def _start(pages: Pages, options: TrainOptions, seed: int) -> _State:
    """Random unit decoder rows, their transpose as encoder, the mean of the first page as decoder bias."""
    first = pages.page(0)
    check_page(first, options.batch)
    d_in, d_sae = first.shape[1], options.n_features(first.shape[1])
    norm = float(first.double().norm(dim=-1).mean())
    scale = norm / d_in**0.5 if norm > 0 else 1.0
    w_dec = _unit(torch.randn(d_sae, d_in, generator=generator(seed, 2, 0)).to(first.device))
    weights = {
        "W_enc": w_dec.T.clone().contiguous(),
        "b_enc": torch.zeros(d_sae, device=first.device),
        "W_dec": w_dec,
        "b_dec": (first.double().mean(dim=0) / scale).float(),
    }
    return _State(
        weights=weights,
        first={name: torch.zeros_like(w) for name, w in weights.items()},
        second={name: torch.zeros_like(w) for name, w in weights.items()},
        last_active=torch.zeros(d_sae, dtype=torch.float64, device=first.device),
        scale=scale,
    )


def _step(state: _State, x: Float[Tensor, "batch d_in"], options: TrainOptions, seed: int) -> None:
    """One gradient step; the state changes in place."""
    dead = state.step - state.last_active >= options.dead_after
    leaves = {name: w.detach().requires_grad_(True) for name, w in state.weights.items()}
    with torch.enable_grad():
        loss, features, error = _loss(leaves, x, dead, options)
        grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    with torch.no_grad():
        w_dec = state.weights["W_dec"]
        grads["W_dec"] -= (grads["W_dec"] * w_dec).sum(dim=-1, keepdim=True) * w_dec
        if state.step % _RECORD_EVERY == 0:
            state.history.append(_figures(state.step, loss, x, features, error, dead))
        state.step += 1
        _adam(state, grads, options.lr * _rate(state.step, options))
        state.weights["W_dec"] = _unit(state.weights["W_dec"])
        state.last_active = torch.where((features > 0).any(dim=0), float(state.step), state.last_active)
        learning = state.step < (1 - options.decay) * options.steps  # later there is no time left to learn
        if options.remedy == "resample" and learning and state.step % options.dead_after == 0:
            _resample(state, x, error, options, seed)


def _loss(
    w: Weights, x: Float[Tensor, "batch d_in"], dead: Tensor, options: TrainOptions
) -> tuple[Tensor, Float[Tensor, "batch feature"], Float[Tensor, "batch d_in"]]:
    """The loss, the features and the error of the reconstruction, the last two without a graph."""
    pre = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    features = top_k(pre, options.k) if options.architecture == "topk" else pre.relu()
    error = x - (features @ w["W_dec"] + w["b_dec"])
    loss = error.square().sum(dim=-1).mean() / x.shape[1]
    if options.architecture == "standard":
        loss = loss + options.l1 * features.sum(dim=-1).mean() / x.shape[1]
    if options.remedy == "aux" and bool(dead.any()):
        count = min(int(dead.sum()), max(1, x.shape[1] // 2))
        revived = top_k(pre.masked_fill(~dead, -torch.inf), count) @ w["W_dec"]
        loss = loss + options.aux * (error.detach() - revived).square().sum(dim=-1).mean() / x.shape[1]
    return loss, features.detach(), error.detach()


def _adam(state: _State, grads: Weights, lr: float) -> None:
    """Kingma & Ba 2015, arXiv 1412.6980."""
    for name, grad in grads.items():
        state.first[name] = state.first[name].lerp(grad, 1 - _BETAS[0])
        state.second[name] = state.second[name].lerp(grad.square(), 1 - _BETAS[1])
        mean = state.first[name] / (1 - _BETAS[0] ** state.step)
        spread = state.second[name] / (1 - _BETAS[1] ** state.step)
        state.weights[name] = state.weights[name] - lr * mean / (spread.sqrt() + _EPS)


def _rate(step: int, options: TrainOptions) -> float:
    """Share of the learning rate at a step, counted from 1."""
    rising = min(1.0, step / options.warmup) if options.warmup else 1.0
    left = options.decay * options.steps
    falling = min(1.0, (options.steps - step + 1) / left) if left >= 1 else 1.0
    return rising * falling


def _resample(state: _State, x: Tensor, error: Tensor, options: TrainOptions, seed: int) -> None:
    """Point dead features at vectors that are reconstructed badly, and forget what Adam knows of them."""
    dead = torch.nonzero(state.step - state.last_active >= options.dead_after)[:, 0]
    odds = error.double().square().sum(dim=-1).square().cpu()
    if not len(dead) or not float(odds.sum()) > 0:
        return
    drawn = torch.multinomial(odds, len(dead), replacement=True, generator=generator(seed, 3, state.step))
    alive = torch.ones(len(state.last_active), dtype=torch.bool, device=x.device)
    alive[dead] = False
    toward = _unit(error[drawn.to(x.device)])
    w_enc = state.weights["W_enc"]
    size = float(w_enc[:, alive].norm(dim=0).mean()) if bool(alive.any()) else 1.0
    state.weights["W_dec"][dead] = toward
    w_enc[:, dead] = 0.2 * size * toward.T
    state.weights["b_enc"][dead] = 0
    for moments in (state.first, state.second):
        moments["W_dec"][dead] = 0
        moments["W_enc"][:, dead] = 0
        moments["b_enc"][dead] = 0
    state.last_active[dead] = state.step


def _figures(step: int, loss: Tensor, x: Tensor, features: Tensor, error: Tensor, dead: Tensor) -> list[float]:
    spread = (x - x.mean(dim=0)).square().sum()
    explained = float(1 - error.square().sum() / spread)
    return [
        float(step),
        float(loss.detach()),
        explained,
        float((features > 0).sum(-1).float().mean()),
        float(dead.sum()),
    ]


def _finished(
    state: _State, options: TrainOptions, hook_name: str, metadata: dict[str, object], basis: str | None
) -> Sae:
    """The scale undone: features are in units of the activation, decoder rows still of norm 1."""
    weights = {name: w.detach().clone() for name, w in state.weights.items()}
    for name in ("b_enc", "b_dec"):
        weights[name] = weights[name] * state.scale
    d_in, d_sae = weights["W_enc"].shape
    config = SaeConfig(
        architecture=options.architecture,
        d_in=d_in,
        d_sae=d_sae,
        hook_name=hook_name,
        k=options.k if options.architecture == "topk" else None,
        flatten_heads=hook_name.endswith("hook_z"),
        trained_on=basis,
        metadata=metadata,
    )
    return Sae(config, weights)


def _unit(rows: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
    return rows / rows.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def _key(pages: Pages, options: TrainOptions, seed: int) -> str:
    record = [_FORMAT, pages.key, options.model_dump(mode="json"), seed, torch.__version__]
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:32]


def _dump(state: _State, name: str) -> bytes:
    groups = {"weights": state.weights, "first": state.first, "second": state.second}
    tensors = {f"{group}.{name}": w.cpu().contiguous() for group, held in groups.items() for name, w in held.items()}
    tensors["last_active"] = state.last_active.cpu()
    tensors["history"] = torch.tensor(state.history, dtype=torch.float64).reshape(-1, len(_HISTORY))
    tensors["scale"] = torch.tensor(state.scale, dtype=torch.float64)
    tensors["counters"] = torch.tensor([state.step, state.page, state.row])
    return seal(tensors, name)


def _load(file: Path | None) -> _State | None:
    """A state left behind; None when there is none, or not a whole one."""
    try:
        held = unseal(file.read_bytes(), file.name) if file is not None else None
    except OSError:
        return None
    if held is None:
        return None

    def group(name: str) -> Weights:
        return {key.partition(".")[2]: w for key, w in held.items() if key.startswith(f"{name}.")}

    step, page, row = held["counters"].tolist()
    return _State(
        weights=group("weights"),
        first=group("first"),
        second=group("second"),
        last_active=held["last_active"],
        scale=float(held["scale"]),
        step=step,
        page=page,
        row=row,
        history=held["history"].tolist(),
    )
