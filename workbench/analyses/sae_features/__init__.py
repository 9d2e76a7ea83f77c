"""Heads and features: which heads write and read a sparse autoencoder's features, and circuits made of features.

1. Reconstruction first: explained variance, L0, loss recovered, dead features; a poor autoencoder is refused (`sae`).
2. Writing (`write`): feature f reads the stream along its encoder direction e_f, so head h contributes
   (z_h W_O^h) . e_f to it, at every token. score(h) = mean over tokens of the sum over features |contribution|; the
   null has random directions of equal norm. Exactly: the change of the feature's activation when h is ablated.
3. Reading (`read`): how strongly W_Q, W_K, W_V of later heads read what the feature writes, next to random directions;
   and exactly: the change of q, k, v when the feature is taken out of the stream.
4. Circuits (`circuit`), after Marks et al. 2024 (arXiv 2403.19647): the indirect effect of every feature, and of the
   error that the autoencoder leaves, on the logit difference, by integrated gradients; the strongest are exchanged
   exactly; faithfulness of the k strongest features, next to k random ones.

Without an autoencoder of one's own (`sae`), one is trained on the clean prompts, which serves to try things out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.analyses.base import Analysis, Result
from workbench.analyses.sae_features.params import CircuitParams, SaeFeaturesParams, SaeParams

if TYPE_CHECKING:
    from workbench.models import Model
    from workbench.tasks.pairs import PairDataset

__all__ = ["ANALYSIS", "CircuitParams", "SaeFeaturesParams", "SaeParams", "run", "sae_features"]


def run(model: Model, data: PairDataset, params: SaeFeaturesParams, seed: int) -> Result:
    """See `measure.measure`; imported here only, so that validating a spec does not load torch."""
    from workbench.analyses.sae_features.measure import measure

    return measure(model, data, params, seed)


def sae_features(model: Model, data: PairDataset, *, seed: int = 0, **params: Any) -> Result:
    """Link heads and features of an autoencoder; the notebook form of `analysis: sae_features`.

    Args:
        data: pairs; the clean prompts for the linkage, both for the feature circuit.
        params: fields of `SaeFeaturesParams`.

    Example:
        >>> result = wb.sae_features(model, data, sae="saes/layer-5")  # doctest: +SKIP
        >>> result.tables["features"]  # doctest: +SKIP

    Raises:
        InputError: an autoencoder that does not fit the model or reconstructs badly, unusable data or parameters.
        CapabilityError: the model's head outputs cannot be told apart or edited faithfully.
    """
    return ANALYSIS(model, data, ANALYSIS.parse(params), seed=seed)


ANALYSIS = Analysis(
    name="sae_features",
    paper="Marks et al. 2024, arXiv 2403.19647; linkage by direct attribution and ablation",
    params_type=SaeFeaturesParams,
    data_kind="pairs",
    requires=("head_axis_ok", "head_ablation_ok", "heads_sum_to_attn_out"),
    run=run,
)
