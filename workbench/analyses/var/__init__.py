"""Visual attention sinks: image tokens that draw attention and say nothing, and giving that attention to the others.

Paper: Kang et al. 2025, "See What You Are Told: Visual Attention Sink in Large Multimodal Models", arXiv 2503.03321.
The method:

1. A few dimensions of the residual stream are massive at BOS, the known text sink; image tokens in which the same
   dimensions are massive are visual sinks: phi(x) = max_d |x_d / RMS(x)| > tau. Dimensions are found in the model's
   own activations (`sinks`), not listed per model.
2. A head is image-centric, for a query, when enough of its attention is on the image, and enough of that off the sinks.
3. In those heads a share of the sinks' attention is moved to the other image tokens (`redistribution`).

Score of a head: the last query's attention on image tokens that are no sinks. Added to the paper: uncertainty, the
share of visible tokens as null, how far another image moves each head (`sensitivity`), random heads and all heads
beside the chosen ones. Where no coordinate is massive (always so in models narrower than tau ** 2), `summary["sinks"]`
says so, nothing is a sink and nothing is redistributed.

Paper and released code name opposite things rho and p; `convention` says whose are meant (see `params`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.analyses.base import Analysis, Finding, Result
from workbench.analyses.var.params import RedistributionParams, VarParams

if TYPE_CHECKING:
    from workbench.models import Model
    from workbench.tasks.images import ImageDataset

__all__ = ["ANALYSIS", "RedistributionParams", "VarParams", "run", "var"]


def run(model: Model, data: ImageDataset, params: VarParams, seed: int) -> Result:
    """See `measure.measure`; imported here only, so that validating a spec does not load torch."""
    from workbench.analyses.var.measure import measure

    return measure(model, data, params, seed)


def var(model: Model, data: ImageDataset, *, seed: int = 0, **params: Any) -> Result:
    """Sinks, and every head's attention on the rest of the image; the notebook form of `analysis: var`.

    Result: `heads` with the extra columns image_mass, visual_sink_mass, text_sink_mass, sink_share (of the image
    attention), centric_share (of the examples), sensitivity (relative change of z under another image) and q; tables
    `layers`, `dimensions`, `sensitivity`, with `redistribution` also `captions`, `evaluation` and, for questions,
    `answers` by kind of negatives; arrays `per_example`, `null_per_example`, `image_mass`, `image_centric`
    `[n, layer, head]`, `phi` and `sinks` `[n, layer, image token]`.

    Args:
        data: images with prompts; see `wb.tasks.images_from_samples` and `task: captions`.
        params: fields of `VarParams`; `redistribution={}` moves attention with the paper's settings and judges texts.

    Example:
        >>> wb.var(model, data).summary["sinks"]  # doctest: +SKIP

    Raises:
        InputError: unusable data, a model that reads text only, or an unknown parameter.
        CapabilityError: `redistribution` on a model whose attention patterns cannot be edited.
    """
    return ANALYSIS(model, data, ANALYSIS.parse(params), seed=seed)


ANALYSIS = Analysis(
    name="var",
    paper="Kang et al. 2025, arXiv 2503.03321",
    params_type=VarParams,
    data_kind="images",
    requires=("head_axis_ok", "pattern_rows_sum_to_one"),
    run=run,
    finds=(Finding("image_centric", min_auroc=0.99),),
)
