"""Vision-aware head divergence (VHD) and reinforcement (VHR): which heads see the image, and making them louder.

Paper: He et al. 2024, "Cracking the Code of Hallucination in LVLMs with Vision-aware Head Divergence",
arXiv 2412.13949. The method:

1. VHD (eq. 4): L2 distance of a head's output z, before the output projection, with and without the image, at the
   position that predicts a token; the score is its mean at the first step. `without` says what "without" means.
2. Outlier rule (eq. 6): a head far above its layer's others in VHD and also in its output without image counts as 0.
3. T-VHD (eq. 5): per token the sum over layers of the largest VHDs; low where the text writes by itself.
4. VHR (eq. 7): multiply the heads above their layer's median by alpha while the caption is written (`generate`), and
   judge the captions by CHAIR, or the answers as POPE does (`evaluate`, `analyses.hallucination`).

Added to the paper: uncertainty; as null the distance that deleting as many text tokens makes; the distance to another
image (`other_image`: a head may notice that there is an image without carrying what it shows); for VHR the same alpha
on random heads and on those not chosen, and what zeroing the top heads does. Variant `released` follows what a port
of the authors' code does (unverified against the code): squared distances, the outlier rule only where VHD spreads by
more than 1, unbiased deviations, the lower median.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.analyses.base import Analysis, Finding, Result
from workbench.analyses.vhd.params import VhdParams, VhrParams

if TYPE_CHECKING:
    from workbench.models import Model
    from workbench.tasks.images import ImageDataset

__all__ = ["ANALYSIS", "VhdParams", "VhrParams", "run", "vhd"]


def run(model: Model, data: ImageDataset, params: VhdParams, seed: int) -> Result:
    """See `measure.measure`; imported here only, so that validating a spec does not load torch."""
    from workbench.analyses.vhd.measure import measure

    return measure(model, data, params, seed)


def vhd(model: Model, data: ImageDataset, *, seed: int = 0, **params: Any) -> Result:
    """Score every head by how much it reacts to the image; the notebook form of `analysis: vhd`.

    Result: `heads` with the extra columns raw (before the outlier rule), outlier_share, chosen_share (of the examples,
    above the layer's median), other_image and q; tables `steps` (VHD by step and head), `tokens` (T-VHD), with `vhr`
    also `captions`, `evaluation` and, for questions, `answers` by kind of negatives; arrays `per_example`,
    `null_per_example`, `other_image_per_example` `[n, layer, head]`, `chosen` and `t_vhd` `[n, step]`.

    Args:
        data: images with prompts; see `wb.tasks.images_from_samples` and `task: captions`.
        params: fields of `VhdParams`; `vhr={"alpha": [1.5, 2]}` reinforces the heads and evaluates what is said.

    Example:
        >>> wb.vhd(model, data, vhr={"alpha": 2}).tables["evaluation"]  # doctest: +SKIP

    Raises:
        InputError: unusable data, a model that reads text only, or an unknown parameter.
        CapabilityError: `vhr` on a model whose head outputs cannot be edited faithfully.
    """
    return ANALYSIS(model, data, ANALYSIS.parse(params), seed=seed)


ANALYSIS = Analysis(
    name="vhd",
    paper="He et al. 2024, arXiv 2412.13949",
    params_type=VhdParams,
    data_kind="images",
    requires=("head_axis_ok",),
    run=run,
    finds=(Finding("image", {"max_new_tokens": 1}, min_auroc=0.99),),
)
