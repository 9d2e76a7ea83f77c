"""Circuits of features at one hook point: which of them, and how much of the error, carry the answer.

With x = sum_f a_f d_f + b + e in the clean run, a the features, e the error that the autoencoder leaves, and a', e' the
same with the answer removed (corrupted run, or means):

    effect(f) = sum over positions of (a_f - a'_f) g . d_f        effect(error) = sum over positions of g . (e - e')

g is dM/dx, M the logit difference, averaged over the straight way from x' to x (integrated gradients, midpoints). All
effects together are M(x) - M(x') for fine enough steps (completeness). It is no approximation of what one feature does
alone at either end of the way: where several do the same, taking one out of the clean run costs less than putting it
into x' gains, and the average over the way lies between. So the spot check measures both ends exactly:

    out(f) = M(x) - M(x - (a_f - a'_f) d_f)        in(f) = M(x' + (a_f - a'_f) d_f) - M(x')

and correlates effect(f) with each and with their mean. Faithfulness of a set C of features:

    F(C) = (M(x' + sum_C (a_f - a'_f) d_f [+ e - e']) - M(x')) / (M(x) - M(x'))

Everything before the hook point is the clean run; only what passes the hook point changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench import stats
from workbench.analyses.sae_features.params import CircuitParams
from workbench.primitives.attribution.passes import integration_path
from workbench.primitives.forward import forward
from workbench.primitives.hooks import hooked
from workbench.primitives.sweep.readout import Readout
from workbench.progress import bar
from workbench.saes.place import Place, activations, batches

if TYPE_CHECKING:
    from workbench.models import Model
    from workbench.saes import Sae
    from workbench.tasks.pairs import PairBatch

ERROR = -1  # the number of the error node


@dataclass
class Ends:
    """The two ends of every pair at the hook point, and how the metric is read."""

    model: Model
    place: Place
    sae: Sae
    tokens: Int[Tensor, "n pos"]
    mask: Tensor | None
    readout: Readout
    x: Float[Tensor, "n pos d_in"]
    change: Float[Tensor, "n pos d_in"]
    features: Float[Tensor, "n pos f"]
    rows: int

    @property
    def error(self) -> Float[Tensor, "n pos d_in"]:
        """e - e'."""
        return self.change - self.features.to(self.change) @ self.sae.decoder

    def part(self, chosen: Sequence[int], *, error: bool) -> Float[Tensor, "n pos d_in"]:
        """What the chosen features, and the error if asked for, make of the change."""
        at = torch.tensor(list(chosen), dtype=torch.long, device=self.x.device)
        made = self.features[..., at].to(self.change) @ self.sae.decoder[at]
        return made + self.error if error else made

    def metric(self, x: Float[Tensor, "n pos d_in"]) -> Float[np.ndarray, " n"]:
        """The metric of the clean run with `x` at the hook point."""
        found = []
        for part in batches(len(x), self.rows):
            with torch.no_grad(), hooked(self.model, [self.place.edit(lambda _, here=x[part]: here)]):
                found.append(self._read(part))
        return torch.cat(found).double().cpu().numpy()

    def gradient(self, x: Float[Tensor, "n pos d_in"], part: slice) -> Float[Tensor, "batch pos d_in"]:
        """dM/dx of one batch."""
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_(True)
            with hooked(self.model, [self.place.edit(lambda _: leaf)], copy=False):
                values = self._read(part, grad=True)
            return torch.autograd.grad(values.sum(), leaf)[0]

    def _read(self, part: slice, *, grad: bool = False) -> Float[Tensor, " batch"]:
        kept = None if self.mask is None else self.mask[part]
        logits = forward(self.model, self.tokens[part], attention_mask=kept, logits_to_keep=1, grad=grad).logits[:, -1]
        return self.readout(logits, torch.arange(len(self.tokens))[part])


def ends(model: Model, place: Place, sae: Sae, batch: PairBatch, params: CircuitParams, *, rows: int) -> Ends:
    """Run both prompts of every pair up to the hook point."""
    clean, corrupted = batch.clean.to(model.device), batch.corrupted.to(model.device)
    mask = batch.mask.long().to(model.device) if batch.padded else None
    x = activations(model, place, clean, mask, rows=rows)
    features = sae.encode(x)
    real = torch.ones_like(clean, dtype=torch.bool) if mask is None else mask.bool()
    if params.removed == "corrupted":
        other = activations(model, place, corrupted, mask, rows=rows)
        gone = sae.encode(other)
    else:
        other = x[real].double().mean(0).to(x).expand_as(x)
        gone = features[real].double().mean(0).to(features).expand_as(features)
    keep = real[..., None]
    readout = Readout("logit_diff", batch.answer, batch.wrong)
    return Ends(model, place, sae, clean, mask, readout, x, (x - other) * keep, (features - gone) * keep, rows)


def effects(found: Ends, steps: int) -> tuple[Float[np.ndarray, "n f"], Float[np.ndarray, " n"]]:
    """Effect of every feature and of the error, per pair."""
    n = len(found.tokens)
    by_feature, by_error = np.zeros((n, found.sae.d_sae)), np.zeros(n)
    with bar(n, "attributing to features") as shown:
        for part in batches(n, found.rows):
            mean = torch.zeros_like(found.x[part])
            for fraction in integration_path(steps):
                at = found.x[part] - (1 - fraction) * found.change[part]
                mean += found.gradient(at, part) / steps
            along = (mean @ found.sae.decoder.T) * found.features[part]
            by_feature[part] = along.double().sum(1).cpu().numpy()
            by_error[part] = (mean * found.error[part]).double().sum((1, 2)).cpu().numpy()
            shown.update(part.stop - part.start)
    return by_feature, by_error


def feature_circuit(
    model: Model,
    place: Place,
    sae: Sae,
    batch: PairBatch,
    params: CircuitParams,
    *,
    rows: int,
    bootstrap: int,
    seed: int,
) -> tuple[dict[str, pd.DataFrame], dict[str, np.ndarray], dict[str, Any]]:
    """Tables `circuit_features`, `circuit_curve`, `circuit_spot_check`; arrays; the summary."""
    found = ends(model, place, sae, batch, params, rows=rows)
    full, empty = found.metric(found.x), found.metric(found.x - found.change)
    gap = float((full - empty).mean())
    summary: dict[str, Any] = {"clean": float(full.mean()), "removed": float(empty.mean()), "gap": gap}
    if not abs(gap) > params.min_gap:
        status = f"not run: removing everything at {place.name} moves the metric by {gap:.3g}, not more than min_gap"
        return {}, {}, {**summary, "status": status}
    by_feature, by_error = effects(found, params.steps)
    differs = np.flatnonzero((found.features != 0).any(0).any(0).cpu().numpy())
    order = [int(f) for f in differs[np.argsort(-np.abs(by_feature[:, differs].mean(0)), kind="stable")]]
    rng = np.random.default_rng(seed)
    spot, correlations = _spot_check(found, (full, empty), by_feature, by_error, order, params.spot_check, rng)
    curve = _curve(found, full, empty, order, params, bootstrap, rng, seed)
    complete = float((by_feature.sum(1) + by_error).mean())
    enough = curve[curve["faithfulness"] >= 0.8].groupby("error")["n_features"].min().to_dict()
    summary |= {
        "status": "ok",
        "n_features_that_differ": len(order),
        "sum_of_effects": complete,
        "share_of_error": float(by_error.mean() / gap),
        "share_of_error_stderr": float(stats.stderr(by_error[:, None])[0] / abs(gap)),
        "features_for_80_percent": int(enough[True]) if True in enough else None,
        "features_for_80_percent_without_error": int(enough[False]) if False in enough else None,
        "spot_check": correlations,
    }
    tables = {"circuit_features": _features_table(by_feature, by_error, order, seed), "circuit_curve": curve}
    if len(spot):
        tables["circuit_spot_check"] = spot
    arrays = {
        "feature_effects": by_feature[:, order].astype(np.float32),
        "feature_numbers": np.array(order, dtype=np.int64),
        "error_effects": by_error.astype(np.float32),
    }
    return tables, arrays, summary


def _features_table(by_feature: np.ndarray, by_error: np.ndarray, order: list[int], seed: int) -> pd.DataFrame:
    """One row per node, the error first, then features by the size of their effect."""
    values = np.concatenate([by_error[:, None], by_feature[:, order]], axis=1)
    p = stats.sign_flip_p(values, alternative="two-sided", seed=seed)
    return pd.DataFrame(
        {
            "feature": [ERROR, *order],
            "node": ["error", *["feature"] * len(order)],
            "effect": values.mean(0),
            "stderr": stats.stderr(values),
            "p": p,
            "q": stats.benjamini_hochberg(p),
        }
    )


def _spot_check(
    found: Ends,
    ends_: tuple[np.ndarray, np.ndarray],
    by_feature: np.ndarray,
    by_error: np.ndarray,
    order: list[int],
    count: int,
    rng: np.random.Generator,
) -> tuple[pd.DataFrame, dict[str, float | None]]:
    """Nodes taken out of the clean run alone and put into the other one alone; the error always among them.

    Correlations of the effects of features with `taken_out`, `put_in` and their mean (`both`), None where undefined.
    """
    full, empty = ends_
    strongest = order[: (count + 1) // 2]
    others = sorted(set(order) - set(strongest))
    drawn = [int(f) for f in rng.permutation(others)[: count // 2]] if others else []
    rows = []
    for feature in [ERROR, *strongest, *drawn] if count else []:
        part = found.error if feature == ERROR else found.part([feature], error=False)
        out = full - found.metric(found.x - part)
        into = found.metric(found.x - found.change + part) - empty
        approximate = by_error if feature == ERROR else by_feature[:, feature]
        rows.append(
            {
                "feature": feature,
                "chosen": "error" if feature == ERROR else "strongest" if feature in strongest else "random",
                "effect": float(approximate.mean()),
                "taken_out": float(out.mean()),
                "put_in": float(into.mean()),
                "both": float((out + into).mean() / 2),
                "both_stderr": float(stats.stderr((out + into)[:, None] / 2)[0]),
            }
        )
    features = pd.DataFrame([row for row in rows if row["chosen"] != "error"])
    correlations: dict[str, float | None] = {}
    for name in ("both", "taken_out", "put_in") if count else ():
        defined = len(features) >= 3 and features["effect"].std() > 0 and features[name].std() > 0
        value = stats.pearson(features["effect"].to_numpy(), features[name].to_numpy()) if defined else None
        correlations[name] = None if value is None else float(value)
    return pd.DataFrame(rows), correlations


def _curve(
    found: Ends,
    full: np.ndarray,
    empty: np.ndarray,
    order: list[int],
    params: CircuitParams,
    bootstrap: int,
    rng: np.random.Generator,
    seed: int,
) -> pd.DataFrame:
    """Faithfulness of the strongest features with and without the error, and of random sets of the same size."""
    sizes = params.sizes if params.sizes is not None else _doubling(len(order))
    resampled = np.random.default_rng(seed).integers(len(full), size=(bootstrap, len(full)))
    rows = []
    for error in (True, False):
        for size in sorted({min(size, len(order)) for size in sizes}):
            value = _share(found, order[:size], empty, error=error)
            ratios = value[resampled].mean(1) / (full - empty)[resampled].mean(1)
            drawn = []
            for _ in range(params.random if 0 < size < len(order) else 0):
                subset = rng.permutation(order)[:size].tolist()
                random = _share(found, subset, empty, error=error)
                drawn.append(random.mean() / (full - empty).mean())
            rows.append(
                {
                    "n_features": size,
                    "error": error,
                    "faithfulness": value.mean() / (full - empty).mean(),
                    "ci_low": float(np.quantile(ratios, 0.025)),
                    "ci_high": float(np.quantile(ratios, 0.975)),
                    "random_mean": float(np.mean(drawn)) if drawn else np.nan,
                    "random_sd": float(np.std(drawn, ddof=1)) if len(drawn) > 1 else np.nan,
                }
            )
    return pd.DataFrame(rows)


def _share(found: Ends, chosen: Sequence[int], empty: np.ndarray, *, error: bool) -> Float[np.ndarray, " n"]:
    """M(C) - M(x'), per pair."""
    return found.metric(found.x - found.change + found.part(chosen, error=error)) - empty


def _doubling(most: int) -> list[int]:
    sizes = [0]
    while sizes[-1] < most:
        sizes.append(min(most, max(1, 2 * sizes[-1])))
    return sizes
