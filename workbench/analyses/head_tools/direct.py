"""Direct logit attribution: what each head writes straight into the logit difference, with every norm's scale frozen.

    u        W_U[answer] - W_U[wrong]
    c        u pulled back through the final norm, its scale s as in this very run
    score(h) z_h W_O^h . c at the last token                                    in logits, per prompt

In a post-norm model (Gemma-2, OLMo-2) c is also pulled back through the norm that follows attention, its scale that of
the whole attention output. Every step is linear once scales are frozen, so heads, MLPs, embedding and biases add up to
the logit difference exactly: table `components`, and `residual` in the summary. Under a soft cap of the logits it is
the difference before the cap. Lieberum et al. 2023 (arXiv 2307.09458) name output heads of Chinchilla 70B this way.

The null reads the same outputs along random directions as long as u. A direct effect says nothing of what a head does
through other heads, and counts what a constant output adds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from workbench import stats
from workbench.analyses.base import Analysis, Finding, PromptParams, Result
from workbench.errors import CapabilityError, InputError
from workbench.tables import HeadTable

if TYPE_CHECKING:
    from torch import Tensor

    from workbench.models import Model
    from workbench.tasks.pairs import PairDataset

_PROMPTS_AT_ONCE = 64
_COLUMNS_AT_ONCE = 4096  # of the vocabulary


class DirectParams(PromptParams):
    """Attributes:
    controls: random directions of the null, averaged; 0 leaves it out.
    bootstrap: resamples for the intervals.
    """

    controls: int = Field(default=8, ge=0)
    bootstrap: int = Field(default=1000, ge=1)


@dataclass(frozen=True)
class Direct:
    """Contributions to the logit difference, float64.

    Attributes:
        heads: `[n, layer, head]`.
        null: the same along random directions.
        others: by name (embedding, bias, final bias, 0.mlp, 0.attn bias, ...) `[n]`.
        total: the logit difference, `[n]`.
        cap: soft cap of the logits, before which all this is; None without.
    """

    heads: np.ndarray
    null: np.ndarray | None
    others: dict[str, np.ndarray]
    total: np.ndarray
    cap: float | None

    @property
    def residual(self) -> np.ndarray:
        """`[n]`: the logit difference minus the sum of all parts; rounding, if all is right."""
        return self.total - np.nansum(self.heads, axis=(1, 2)) - np.sum(list(self.others.values()), axis=0)


def run(model: Model, data: PairDataset, params: DirectParams, seed: int) -> Result:
    """Split the logit difference of the clean prompts.

    Result: `heads` with the extra columns `share` (of the mean logit difference) and `q`; arrays `per_example` and
    `null_per_example`; table `components`, a row per part that is no head.

    Raises:
        InputError: no pairs.
        CapabilityError: the model's blocks, norms or logits are not of a form that can be split.
    """
    import pandas as pd

    started = time.perf_counter()
    if getattr(data, "kind", None) != "pairs" or not len(data):
        raise InputError("direct_logit_attribution needs at least one pair {clean, corrupted, answer, wrong}.")
    found = contributions(model, data, controls=params.controls, seed=seed)
    whole = float(found.total.mean())
    mean = stats.mean(found.heads)
    table = HeadTable.from_examples(
        found.heads,
        n_kv_heads=model.n_kv_heads,
        null=found.null,
        n_boot=params.bootstrap,
        seed=seed,
        extra={"share": mean / whole if whole else np.full(mean.shape, np.nan)},
        analysis="direct_logit_attribution",
        metric="direct contribution to the logit difference" + (" before the soft cap" if found.cap else ""),
        unit="logits",
        model=model.name,
        fingerprint=model.fingerprint,
        basis=model.basis,
        higher_is_more=True,
    ).with_q()
    rows = []
    for name, values in found.others.items():
        rows.append({"component": name, "score": values.mean(), "stderr": float(stats.stderr(values))})
    arrays = {"per_example": found.heads, "total": found.total}
    if found.null is not None:
        arrays["null_per_example"] = found.null
    strongest = sorted(zip(np.abs(mean).ravel(), table.keys(), strict=True), reverse=True)[:5]
    return Result(
        analysis="direct_logit_attribution",
        heads=table,
        params=params,
        model=model.describe(),
        data=data.describe(),
        tables={"components": pd.DataFrame(rows, columns=["component", "score", "stderr"])},
        arrays=arrays,
        summary={
            "logit_diff": whole,
            "heads": float(np.nansum(mean)),
            "others": float(np.sum([values.mean() for values in found.others.values()])),
            "residual": float(np.abs(found.residual).max()),
            "soft_cap": found.cap,
            "strongest": [{"at": list(key), "score": float(table.row(*key)["score"])} for _, key in strongest],
        },
        timing={"total": time.perf_counter() - started},
        seed=seed,
    )


def direct_logit_attribution(model: Model, data: PairDataset, *, seed: int = 0, **params: Any) -> Result:
    """What each head writes into the logit difference; the notebook form of `analysis: direct_logit_attribution`.

    Args:
        data: pairs, of which the clean prompts and both answers are used.
        params: fields of `DirectParams`.

    Example:
        >>> wb.direct_logit_attribution(model, pairs).heads.top(5)  # doctest: +SKIP

    Raises:
        InputError: unusable data or parameters.
        CapabilityError: the model cannot be split.
    """
    return ANALYSIS(model, data, ANALYSIS.parse(params), seed=seed)


def contributions(model: Model, data: PairDataset, *, controls: int = 0, seed: int = 0) -> Direct:
    """The split itself.

    Raises:
        CapabilityError: the model's blocks, norms or logits are not of a form that can be split.
    """
    import torch

    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((controls, len(data), model.d_model))
    parts = []
    for start in range(0, len(data), _PROMPTS_AT_ONCE):
        rows = range(start, min(start + _PROMPTS_AT_ONCE, len(data)))
        with torch.no_grad():
            parts.append(_part(model, data.batch(rows), torch.from_numpy(noise[:, rows.start : rows.stop])))
    null = None if not controls else np.concatenate([part.null for part in parts if part.null is not None])
    return Direct(
        heads=np.concatenate([part.heads for part in parts]),
        null=null,
        others={name: np.concatenate([part.others[name] for part in parts]) for name in parts[0].others},
        total=np.concatenate([part.total for part in parts]),
        cap=parts[0].cap,
    )


def _part(model: Model, batch: Any, noise: Tensor) -> Direct:
    import torch

    from workbench.primitives import linear_norm
    from workbench.primitives.attribution.wiring import find, hook_name, identity, wide
    from workbench.primitives.forward import forward
    from workbench.primitives.hooks import hooked

    wired = find(model)
    if isinstance(wired, str):
        raise CapabilityError(
            f"The logits of {model.name!r} cannot be split into heads, because {wired}; use path_patching with "
            "receivers: [logits]."
        )
    blocks, last = wired.blocks, model.n_layers - 1
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda value, _: seen.__setitem__(name, wide(value[:, -1]).clone())

    names = [hook_name(layer, what) for layer in range(model.n_layers) for what in ("z", "a", "m")]
    names += [hook_name(0, "x"), hook_name(last, "out")]
    mask = batch.mask.long().to(model.device) if batch.padded else None
    with hooked(model, [(name, keep(name)) for name in names], copy=False):
        logits = forward(model, batch.clean.to(model.device), attention_mask=mask, logits_to_keep=1).logits[:, -1]
    weight, bias = _unembedding(model)
    top = weight.device  # of the unembedding; each layer's part is taken on the layer's own
    answer, wrong = batch.answer.to(top), batch.wrong.to(top)

    def normed(norm: Any, a: Tensor) -> Tensor:
        return wide(norm(a.to(model.dtype)[:, None])[:, 0]).to(a.device)

    def split(norm: Any, a: Tensor) -> tuple[Any, Tensor]:
        """The norm in linear form, and its scale at `a`."""
        form = linear_norm.measure(norm, model.d_model, a.new_empty(0, dtype=model.dtype))
        return form, form.scale(a, normed(norm, a))

    stream = seen[hook_name(last, "out")].to(top)
    norm = model.bridge.ln_final
    final, scale = split(norm, stream)
    linear = _linear_logits(normed(norm, stream), weight) + bias
    cap = _check_logits(model, wide(logits).to(top), linear)
    u = wide(weight[:, answer].T) - wide(weight[:, wrong].T)  # [n, d_model]
    directions = torch.cat([u[None], _as_long(noise.to(u), u)])  # [1 + controls, n, d_model]
    total = (linear.gather(1, torch.stack([answer, wrong], 1)) * torch.tensor([1.0, -1.0]).to(u)).sum(1)

    pulled = final.pull(directions, scale)
    own = pulled[0]
    others: dict[str, Tensor] = {
        "embedding": (seen[hook_name(0, "x")].to(top) * own).sum(-1),
        "final norm bias": (final.bias * u).sum(-1),
        "unembedding bias": bias[answer] - bias[wrong],
    }
    heads, null = [], []
    for layer, block in enumerate(blocks):
        a, z = seen[hook_name(layer, "a")], seen[hook_name(layer, "z")]
        through = pulled.to(z.device)
        own = through[0]
        if block.write_attn is not identity:
            form, size = split(block.write_attn, a)
            through = form.pull(through, size)
            others[f"{layer}.attn norm bias"] = (form.bias * own).sum(-1)
        read = torch.einsum("nhk,hkm,dnm->dnh", z, block.w_o, through)
        summed = torch.einsum("nhk,hkm->nm", z, block.w_o)
        others[f"{layer}.attn bias"] = ((a - summed) * through[0]).sum(-1)
        written = seen[hook_name(layer, "m")]
        if block.write_mlp is not identity:
            written = normed(block.write_mlp, written)
        others[f"{layer}.mlp"] = (written * own).sum(-1)
        heads.append(read[0].to(top))
        null.append(read[1:].mean(0).to(top))

    def numbers(values: Tensor) -> np.ndarray:
        return values.double().cpu().numpy()

    return Direct(
        heads=numbers(torch.stack(heads, 1)),
        null=numbers(torch.stack(null, 1)) if len(noise) else None,
        others={name: numbers(values) for name, values in others.items()},
        total=numbers(total),
        cap=cap,
    )


def _unembedding(model: Model) -> tuple[Tensor, Tensor]:
    """W_U `[d_model, vocab]` in the model's dtype, and its bias in float32 or better."""
    import torch

    from workbench.primitives.attribution.wiring import wide

    weight = model.bridge.unembed.W_U.detach()
    bias = getattr(model.bridge.unembed, "b_U", None)
    return weight, torch.zeros(weight.shape[1], device=weight.device) if bias is None else wide(bias.detach())


def _linear_logits(made: Tensor, weight: Tensor) -> Tensor:
    """`made` W_U in float32 or better, some columns at a time: all of W_U widened is 2 GiB at 128k x 4096."""
    import torch

    from workbench.primitives.attribution.wiring import wide

    return torch.cat([made @ wide(part) for part in weight.split(_COLUMNS_AT_ONCE, dim=1)], dim=1)


def _check_logits(model: Model, logits: Tensor, linear: Tensor) -> float | None:
    """The soft cap between `linear` and `logits`, or None when they are the same."""
    import torch

    from workbench.primitives.suffix import agree

    low_precision = None if model.dtype in (torch.float32, torch.float64) else 5e-2
    if agree(linear, logits, tolerance=low_precision):
        return None
    config = getattr(model.hf, "config", None)
    cap = getattr(config, "final_logit_softcapping", None)
    if cap and agree(cap * torch.tanh(linear / cap), logits, tolerance=low_precision):
        return float(cap)
    raise CapabilityError(
        f"The logits of {model.name!r} are not its final norm times the unembedding, so they cannot be split; use "
        "path_patching with receivers: [logits]."
    )


def _as_long(noise: Tensor, u: Tensor) -> Tensor:
    """`noise` scaled to the length of `u`, row by row."""
    return noise * (u.norm(dim=-1) / noise.norm(dim=-1).clamp(min=1e-30))[..., None]


ANALYSIS = Analysis(
    name="direct_logit_attribution",
    paper="Lieberum et al. 2023, arXiv 2307.09458",
    params_type=DirectParams,
    data_kind="pairs",
    requires=("head_ablation_ok",),
    run=run,
    finds=(Finding("direct", magnitude=True),),
)
