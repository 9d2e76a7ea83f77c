"""How few dimensions of a head carry the task: q, k, v or the head's output projected on r of them, the metric kept.

    q, k, v   x' = m + (x - m) V_r V_r^T      x at every token of every prompt; m their mean; V_r the top right singular
                                              vectors of the x - m that were collected (Lieberum et al. 2023)
    ov        W_V W_O = U S V^T;  z' with z' W_O = z W_O V_r V_r^T     the head's output map, cut to rank r

k and v belong to a kv group, so compressing them compresses them for every query head of the group. Biases are part of
q, k, v and hence of m; OV compresses what z holds beside its mean over tokens. Before rotary embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench import stats
from workbench.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from workbench.models import Model
    from workbench.tasks.pairs import PairDataset

What = Literal["q", "k", "v", "ov"]
WHAT: tuple[What, ...] = ("q", "k", "v", "ov")
_COLUMNS = ("layer", "head", "what", "rank", "metric", "stderr", "kept", "accuracy", "variance")


def low_rank(
    model: Model,
    data: PairDataset,
    heads: Sequence[tuple[int, int]],
    *,
    what: Sequence[What] = WHAT,
    ranks: Sequence[int] | None = None,
    metric: str = "logit_diff",
    together: bool = False,
) -> pd.DataFrame:
    """One row per head, matrix and rank: metric, stderr, kept (metric / the whole model's), accuracy, variance.

    Args:
        heads: (layer, head) pairs, compressed one at a time.
        ranks: default 0, 1, 2, 4, ... and d_head; 0 leaves the mean only.
        together: compress all heads at once instead; layer and head are then -1, and variance the least of theirs.

    `variance` is the share of the squared singular values that the rank holds.

    Example:
        >>> wb.low_rank(model, pairs, [(9, 9)], what=["q", "ov"], ranks=[0, 1, 3])  # doctest: +SKIP

    Raises:
        InputError: a head or rank that does not exist.
        CapabilityError: q, k and v of this architecture cannot be told apart.
    """
    import pandas as pd

    from workbench.primitives.attribution.wiring import wiring
    from workbench.primitives.sweep.readout import Readout

    wiring(model)  # says whether q, k, v are what the hooks say
    for layer, head in heads:
        if not (0 <= layer < model.n_layers and 0 <= head < model.n_heads):
            raise InputError(f"There is no head ({layer}, {head}) in {model.name!r}.")
    if not heads:
        raise InputError("low_rank needs at least one head, such as [(9, 9)].")
    chosen = _ranks(model, ranks)
    batch = data.batch()
    readouts = {"metric": Readout(metric, batch.answer, batch.wrong), "rank": Readout("rank", batch.answer)}
    full = _measure(model, batch, readouts, {})["metric"]
    rows: list[dict[str, Any]] = []
    for part in what:
        bases = {head: _basis(model, batch, head, part) for head in heads}
        groups = [tuple(heads)] if together else [(head,) for head in heads]
        for group in groups:
            for r in chosen:
                edits = {head: bases[head].cut(r) for head in group}
                made = _measure(model, batch, readouts, {(part, head): edit for head, edit in edits.items()})
                layer, head = (-1, -1) if together else group[0]
                values = made["metric"]
                facts = {"layer": layer, "head": head, "what": part, "rank": r, "metric": float(values.mean())}
                facts |= {"stderr": float(stats.stderr(values)), "kept": float(values.mean() / full.mean())}
                facts |= {"accuracy": float((made["rank"] == 0).mean())}
                rows.append({**facts, "variance": min(bases[member].variance(r) for member in group)})
    return pd.DataFrame(rows, columns=list(_COLUMNS))


class _Basis:
    """Directions of one head's vectors, the most important first, and their mean."""

    def __init__(self, mean: Tensor, v: Tensor, size: Tensor, back: Tensor | None = None):
        self.mean, self.v, self.size, self.back = mean, v, size, back

    def variance(self, r: int) -> float:
        total = float((self.size**2).sum())
        return float((self.size[:r] ** 2).sum()) / total if total else 1.0

    def cut(self, r: int) -> tuple[Tensor, Tensor]:
        """Mean, and the map x - mean -> its part of rank r, `[d_head, d_head]`."""
        kept = self.v[:, :r]
        if self.back is None:
            return self.mean, kept @ kept.T
        out, inverse = self.back[: self.mean.shape[0]], self.back[self.mean.shape[0] :]
        return self.mean, out @ kept @ kept.T @ inverse.T


def _basis(model: Model, batch: Any, head: tuple[int, int], part: What) -> _Basis:
    from workbench.primitives.attribution.wiring import hook_name, wide, wiring
    from workbench.primitives.capture import capture

    layer, number = head
    name = hook_name(layer, "z" if part == "ov" else part)
    mask = batch.mask.long().to(model.device) if batch.padded else None
    with torch.no_grad():
        seen = capture(model, batch.clean.to(model.device), [name], attention_mask=mask)[name]
    index = number if part in ("q", "ov") else model.kv_group(number)
    rows = wide(seen[:, :, index])[batch.mask.to(seen.device)].double()  # [token, d_head]
    mean = rows.mean(0)
    if part == "ov":
        block = wiring(model).blocks[layer]
        w_o = block.w_o[number].double()  # [d_head, d_model]
        w_v = block.w_in("v")[model.kv_group(number)].double()  # [d_model, d_head]
        _, size, vh = torch.linalg.svd(w_v @ w_o, full_matrices=False)
        d_head = w_o.shape[0]
        inverse = torch.linalg.pinv(w_o)  # [d_model, d_head]
        return _Basis(mean, vh[:d_head].T, size[:d_head], torch.cat([w_o, inverse.T]))
    _, size, vh = torch.linalg.svd(rows - mean, full_matrices=False)
    return _Basis(mean, vh.T, size)


def _measure(
    model: Model, batch: Any, readouts: dict[str, Any], edits: dict[tuple[What, tuple[int, int]], tuple[Tensor, Tensor]]
) -> dict[str, np.ndarray]:
    """Metrics of every prompt with these vectors replaced by their part of some rank."""
    from workbench.primitives.attribution.wiring import hook_name
    from workbench.primitives.forward import forward
    from workbench.primitives.hooks import Hook, hooked

    hooks: list[Hook] = []
    for (part, (layer, number)), (mean, kept) in edits.items():
        index = number if part in ("q", "ov") else model.kv_group(number)
        hooks.append((hook_name(layer, "z" if part == "ov" else part), _cut(index, mean, kept)))
    mask = batch.mask.long().to(model.device) if batch.padded else None
    with torch.no_grad(), hooked(model, hooks):
        logits = forward(model, batch.clean.to(model.device), attention_mask=mask, logits_to_keep=1).logits[:, -1]
    everyone = torch.arange(len(logits))
    return {name: readout(logits, everyone).double().cpu().numpy() for name, readout in readouts.items()}


def _cut(index: int, mean: Float[Tensor, " d"], kept: Float[Tensor, "d d"]) -> Any:
    def edit(values: Float[Tensor, "n pos index d"], _: Any) -> Tensor:
        old = values[:, :, index].to(mean)
        values[:, :, index] = (mean + (old - mean) @ kept).to(values.dtype)
        return values

    return edit


def _ranks(model: Model, ranks: Sequence[int] | None) -> list[int]:
    if ranks is None:
        powers = [2**i for i in range(20) if 2**i < model.d_head]
        return [0, *powers, model.d_head]
    for r in ranks:
        if not 0 <= r <= model.d_head:
            raise InputError(f"Rank {r} is not between 0 and {model.d_head}, the width of a head of {model.name!r}.")
    return list(ranks)
