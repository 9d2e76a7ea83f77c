"""Where the model looks: maps of attention over the picture, and heads that look where the asked object is.

Paper: Zhang et al. 2025, "MLLMs Know Where to Look", arXiv 2502.17422. `attention_maps` makes its relative,
gradient-weighted and pure-gradient maps, as arrays over the image's grid, `attended_crops` the part of the picture in
which they stand out; `plots.overlay` and `plots.image_attention` draw them (with
`view=field_of_view(model.processor, picture.size)` where the processor cuts the picture).
The analysis `image_attention` adds what the paper does not have: per head, the share of its attention on the image that
falls where the object is, against the same head on other images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from workbench.analyses.base import Analysis, Result
from workbench.analyses.looking.grid import field_of_view
from workbench.analyses.looking.params import ImageAttentionParams

if TYPE_CHECKING:
    import numpy as np

    from workbench.models import Model
    from workbench.tasks.images import Box, ImageDataset

__all__ = [
    "ANALYSIS",
    "ImageAttentionParams",
    "attended_crops",
    "attention_maps",
    "field_of_view",
    "image_attention",
    "run",
]


def run(model: Model, data: ImageDataset, params: ImageAttentionParams, seed: int) -> Result:
    """See `measure.measure`; imported here only, so that validating a spec does not load torch."""
    from workbench.analyses.looking.measure import measure

    return measure(model, data, params, seed)


def attention_maps(model: Model, data: ImageDataset, **options: Any) -> list[np.ndarray]:
    """Maps `[rows, columns]` of where the model looks, one per sample; options as in `maps.attention_maps`.

    Options: method ("relative", "gradient", "pure_gradient" or "attention"), layer, general, template, batch_size.
    """
    from workbench.analyses.looking import maps

    return maps.attention_maps(model, data, **options)


def attended_crops(
    model: Model, data: ImageDataset, maps: Sequence[np.ndarray], *, base: int | None = None
) -> list[Box]:
    """The box of each picture to look at again, in fractions of it, from its map; see `maps.attended_crops`."""
    from workbench.analyses.looking import maps as made

    return made.attended_crops(model, data, maps, base=base)


def image_attention(model: Model, data: ImageDataset, *, seed: int = 0, **params: Any) -> Result:
    """How much of each head's attention lies where the object is; the notebook form of `analysis: image_attention`.

    Result: `heads` with the extra columns area, image_mass, excess (over the null) and q; tables `maps` and `crops`
    (per example and method) and `methods`; arrays `per_example`, `null_per_example`, `image_mass` `[n, layer, head]`,
    and `region`, `map_attention`, `map_relative`, `map_gradient`, `map_pure_gradient` `[n, rows, columns]`. With
    `keep_patterns` also the table `attention` and the pictures it is of, for `plots.tokens`.

    Args:
        data: images with `regions`; `task: objects` and `task: captions` have them.
        params: fields of `ImageAttentionParams`.

    Example:
        >>> wb.image_attention(model, data, region="objects").heads.top(5)  # doctest: +SKIP

    Raises:
        InputError: unusable data, or an unknown parameter.
    """
    return ANALYSIS(model, data, ANALYSIS.parse(params), seed=seed)


ANALYSIS = Analysis(
    name="image_attention",
    paper="Zhang et al. 2025, arXiv 2502.17422",
    params_type=ImageAttentionParams,
    data_kind="images",
    requires=("head_axis_ok", "pattern_rows_sum_to_one"),
    run=run,
)
