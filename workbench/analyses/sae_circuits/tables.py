"""The tables of a result: heads, edges, methods side by side, their curves, and the verdict. It runs no model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import stats
from workbench.analyses.sae_circuits import codes as c
from workbench.analyses.sae_circuits import evaluate, scores
from workbench.analyses.sae_circuits.references import PAPER_AUC
from workbench.errors import InputError
from workbench.tables import HeadTable

if TYPE_CHECKING:
    import pandas as pd

    from workbench.analyses.sae_circuits.activations import Outputs
    from workbench.analyses.sae_circuits.methods import Ranked
    from workbench.analyses.sae_circuits.params import SaeCircuitsParams
    from workbench.analyses.sae_circuits.references import Reference
    from workbench.analyses.sae_circuits.scores import Labelled, Scored
    from workbench.analyses.sae_circuits.trained import Codes
    from workbench.models import Model
    from workbench.tasks import ContrastDataset

_METRIC = {
    "node": ("codes used on positives and never on negatives", "codes"),
    "edge": ("entries among the head pairs with most unique code pairs", "entries"),
    "divergence": ("Jensen-Shannon divergence of codes, less its mean under shuffled labels", "bits"),
    "paired": ("distance of the output between clean and corrupted prompt", "norm"),
}
_PUBLISHED = ("node", "edge")
_RIVALS = ("mean_difference", "norm", "layer_index")  # what needs no model of anything


@dataclass
class Tables:
    """What every table of one result has in common."""

    model: Model
    data: ContrastDataset
    out: Outputs
    params: SaeCircuitsParams
    seed: int
    reference: Reference | None

    @property
    def shape(self) -> tuple[int, int]:
        return self.model.n_layers, self.model.n_heads

    def heads(self, scored: Scored) -> HeadTable:
        """One row per head."""
        params, model = self.params, self.model
        metric, unit = _METRIC[params.variant]
        if params.normalise and params.variant in _PUBLISHED:
            metric, unit = f"{metric}, normalised", "share" if params.variant == "node" else unit
        grid = {
            name: self.out.grid(np.asarray(values, dtype=np.float64), self.shape)
            for name, values in {
                "score": scored.score,
                "stderr": scored.stderr,
                "null_mean": scored.null_mean,
                "null_p": scored.null_p,
                "seed_sd": scored.by_seed.std(axis=0),
                "n": (~np.isnan(scored.shares)).sum(axis=0),
            }.items()
        }
        soft = c.softmax(np.nan_to_num(grid["score"], nan=-np.inf), by_layer=params.across_layer)
        extra = {"seed_sd": grid["seed_sd"], "q": stats.benjamini_hochberg(grid["null_p"]), "softmax": soft}
        if params.threshold is not None:
            extra["selected"] = soft >= params.threshold
        status = np.where(np.isnan(grid["score"]), "no attention heads", "ok").astype(object)
        return HeadTable.from_scores(
            grid["score"],
            n_kv_heads=model.n_kv_heads,
            stderr=grid["stderr"],
            ci_low=grid["score"] - 1.96 * grid["stderr"],
            ci_high=grid["score"] + 1.96 * grid["stderr"],
            n=np.nan_to_num(grid["n"]).astype(int),
            null_mean=grid["null_mean"],
            null_p=grid["null_p"],
            status=status,
            extra=extra,
            meta={"variant": params.variant, "level": "dataset", "positions": params.positions, "sae": params.sae},
            analysis="sae_circuits",
            metric=metric,
            unit=unit,
            model=model.name,
            fingerprint=model.fingerprint,
            basis=model.basis,
            higher_is_more=True,
        )

    def edges(self, scored: Scored) -> pd.DataFrame:
        """One row per unordered pair of heads."""
        import pandas as pd

        a, b = np.triu_indices(len(self.out.at), k=1)
        at = np.array(self.out.at)
        return pd.DataFrame(
            {
                "layer_a": at[a, 0],
                "head_a": at[a, 1],
                "layer_b": at[b, 0],
                "head_b": at[b, 1],
                "score": scored.extra["pairs"][a, b],
                "seed_sd": scored.extra["pairs_sd"][a, b],
            }
        )

    def methods(
        self, labelled: Labelled, found: dict[str, Scored], beside: list[Ranked]
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """One row per method, and the points of their curves."""
        import pandas as pd

        rows, curves = [], []
        grids = {name: (one.by_seed, one.null) for name, one in found.items()}
        kinds = {name: "published" if name in _PUBLISHED else "ours" for name in found}
        status: dict[str, str] = {}
        try:
            held_out = scores.node(labelled, held_out=True, normalise=False)
            grids["node_held_out"] = (held_out.by_seed, held_out.null)
        except InputError as error:
            status["node_held_out"] = f"not run: {error}"
        kinds["node_held_out"] = "published, examples not trained on"
        less = found["node"].by_seed - found["node"].null.mean(axis=0)
        grids["node_less_null"], kinds["node_less_null"] = (less, np.empty((0, less.shape[1]))), "ours"
        exact = next((r.score for r in beside if r.name == "activation_patching" and r.score is not None), None)
        for name, kind in kinds.items():
            by_seed, null = grids.get(name, (None, None))
            if by_seed is None or null is None:
                rows.append({"method": name, "kind": kind, "status": status[name]})
                continue
            by_seed = self.out.grid(by_seed, self.shape)
            row = self._judged(by_seed.mean(axis=0), exact)
            if self.reference is not None:
                each = [evaluate.auc(*self._counted(one)) for one in by_seed]
                row |= {"auc_seed_mean": float(np.mean(each)), "auc_seed_sd": float(np.std(each))}
                drawn = [evaluate.auc(*self._counted(one)) for one in self.out.grid(null, self.shape)]
                if drawn:
                    row |= {"auc_null_mean": float(np.mean(drawn)), "auc_null_95": float(np.quantile(drawn, 0.95))}
                curves.append(self._curve(name, by_seed.mean(axis=0)))
            rows.append({"method": name, "kind": kind, "status": "ok", **row})
        for ranked in beside:
            row = {"method": ranked.name, "kind": ranked.kind, "status": ranked.status}
            if ranked.score is not None:
                row |= self._judged(ranked.score, exact)
                if self.reference is not None:
                    curves.append(self._curve(ranked.name, ranked.score))
            rows.append(row)
        empty = ["auc", "auc_seed_mean", "auc_seed_sd", "auc_null_mean", "auc_null_95"]
        table = pd.DataFrame(rows)
        for column in empty:
            if column not in table:
                table[column] = np.nan
        return table, pd.concat(curves, ignore_index=True) if curves else pd.DataFrame()

    def summary(
        self, heads: HeadTable, table: pd.DataFrame, codes: Codes, assumption: dict[str, Any]
    ) -> dict[str, Any]:
        """Headline figures and what they are worth."""
        above = int((np.nan_to_num(heads["q"], nan=1.0) < 0.05).sum())
        made: dict[str, Any] = {
            "variant": self.params.variant,
            "n_positive": self.data.n_positive,
            "n_negative": len(self.data) - self.data.n_positive,
            "negatives": str(self.data.meta.get("negatives", ""))[:200] if self.data.pairs is not None else "explicit",
            "assumption": assumption,
            "explained_variance": [float(v) for v in codes.explained],
            "heads_above_null": above,
            "top": [list(key) for key in heads.top(5)],
            "status": self._status(table, above),
        }
        if self.reference is not None:
            made["reference"] = {
                "name": self.reference.name,
                "source": self.reference.source,
                "heads": [list(h) for h in sorted(self.reference.heads)],
            }
            ran = table[table["status"] == "ok"]
            made["auc"] = {m: float(a) for m, a in zip(ran["method"], ran["auc"], strict=True)}
        paper = PAPER_AUC.get(str(self.data.meta.get("task")))
        if paper:
            made["paper_auc"] = {name: {"mean": mean, "sd": sd} for name, (mean, sd) in paper.items()}
        return made

    def _status(self, table: pd.DataFrame, above: int) -> str:
        """One sentence: whether the variant is any better than what it must be better than."""
        variant = self.params.variant
        if self.reference is None:
            if variant == "paired":
                return "no reference to be held to; the null of this variant says nothing of labels"
            if not above:
                return "no better than label permutation: no head exceeds its null at q < .05"
            return f"{above} heads exceed shuffled labels at q < .05; no reference to be held to"
        by = table.set_index("method")
        own = float(by.at[variant, "auc"])
        if np.isnan(own):
            return "the reference holds all heads or none, so there is no AUC"
        rivals = {name: float(by.at[name, "auc"]) for name in _RIVALS if name in by.index}
        words = []
        bar = float(by.at[variant, "auc_null_95"])
        if not np.isnan(bar) and own <= bar:
            words.append(f"label permutation (95% at {bar:.2f})")
        elif np.isnan(bar) and float(by.at[variant, "auc_p"]) > 0.05:
            words.append(f"chance (p = {float(by.at[variant, 'auc_p']):.2f})")
        words += [f"{name.replace('_', ' ')} ({value:.2f})" for name, value in rivals.items() if own <= value]
        if words:
            inverted = ", the reference ranks below the other heads" if own < 0.5 else ""
            return f"no better than {', '.join(words)}: AUC {own:.2f}{inverted}"
        return f"better than its null and the plain baselines: AUC {own:.2f}"

    def _counted(self, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores of the heads that count, and which of them are in the reference."""
        assert self.reference is not None
        true, keep = np.zeros(self.shape, dtype=bool), ~np.isnan(self.out.grid(np.zeros(len(self.out.at)), self.shape))
        for head in self.reference.heads:
            true[head] = True
        for head in self.reference.optional:
            keep[head] = False
        return score[keep], true[keep]

    def _judged(self, score: np.ndarray, exact: np.ndarray | None) -> dict[str, Any]:
        agreement = float("nan") if exact is None else stats.spearman(score, exact)
        ranked = np.argsort(-score.ravel(), kind="stable")[: min(5, int((~np.isnan(score)).sum()))]  # NaN stand last
        top = " ".join(f"{i // self.shape[1]}-{i % self.shape[1]}" for i in ranked)
        row: dict[str, Any] = {"top": top, "spearman_patching": agreement}
        if self.reference is not None:
            row |= evaluate.judged(*self._counted(score), seed=self.seed)
        return row

    def _curve(self, name: str, score: np.ndarray) -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame({"method": name, **evaluate.curve(*self._counted(score))})


def training(codes: Codes) -> pd.DataFrame:
    """One row per epoch: error and L1 before its step, mean and spread over seeds."""
    import pandas as pd

    mean, sd = codes.loss.mean(axis=0), codes.loss.std(axis=0)
    return pd.DataFrame(
        {"epoch": np.arange(len(mean)), "mse": mean[:, 0], "l1": mean[:, 1], "mse_sd": sd[:, 0], "l1_sd": sd[:, 1]}
    )
