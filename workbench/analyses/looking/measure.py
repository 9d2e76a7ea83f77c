"""Does a head look where the object is? Its attention inside the object's region, against the same region elsewhere.

A head's attention on the image, at the last prompt position, is taken as a distribution over the image's cells; the
score is the part inside the region. The null is the part that the other examples' attention puts into that same
region: a head that always looks at the middle scores no better than that. Examples without a region are undefined.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import stats
from workbench.analyses import kept_patterns
from workbench.analyses.base import Result
from workbench.analyses.looking import grid
from workbench.analyses.looking.maps import attended_crops, attention_maps, head_rows, image_rows, which_layer
from workbench.analyses.looking.params import ImageAttentionParams
from workbench.analyses.vhd.branches import Views
from workbench.errors import InputError
from workbench.progress import bar
from workbench.tables import HeadTable

if TYPE_CHECKING:
    import pandas as pd

    from workbench.models import Model
    from workbench.tasks.images import ImageDataset


def measure(model: Model, data: ImageDataset, params: ImageAttentionParams, seed: int) -> Result:
    """Measure every head on `data`; see `workbench.analyses.looking` for what the result holds.

    Raises:
        InputError: the dataset is empty or not made of images, no sample has a region, images of several grids.
    """
    if getattr(data, "kind", None) != "images" or not len(data):
        raise InputError("image_attention needs a dataset of at least one image with its prompt.")
    if "gradient" in params.methods:
        model.require("pattern_edit_is_causal")
    layer = which_layer(model, params.layer)
    regions = wanted(model, data, params)
    started = time.perf_counter()
    inside, mass, elsewhere = shares(model, data, regions, params)
    timing = {"attention": time.perf_counter() - started}
    area = np.array([region.mean() if region.any() else np.nan for region in regions])
    heads = head_table(model, inside, mass, elsewhere, area, params, seed)
    maps: dict[str, np.ndarray] = {}
    for method in params.methods:
        options: dict[str, Any] = {"general": params.general, "template": params.template}
        made = attention_maps(model, data, method=method, layer=layer, batch_size=params.batch_size, **options)
        maps[method] = np.stack(made)
    timing["maps"] = time.perf_counter() - started - timing["attention"]
    table = maps_table(data, maps, regions, area)
    attention, pictures = {}, {}
    if params.keep_patterns is not None:
        best, counted = kept_patterns.best(heads, params.keep_patterns), np.flatnonzero(~np.isnan(area)).tolist()
        made = kept_patterns.of_pictures(model, data, best, params.keep_patterns, counted)
        attention["attention"], pictures = made
    return Result(
        analysis="image_attention",
        heads=heads,
        params=params,
        model=model.describe(),
        data=data.describe(),
        tables={
            "maps": table,
            "methods": methods_table(table, params, seed),
            "crops": crops_table(model, data, maps, params),
            **attention,
        },
        arrays={
            "per_example": inside.astype(np.float32),
            "null_per_example": elsewhere.astype(np.float32),
            "image_mass": mass.astype(np.float32),
            "region": regions.astype(np.float32),
            **{f"map_{method}": values.astype(np.float32) for method, values in maps.items()},
            **pictures,
        },
        summary={
            "n_examples": len(data),
            "n_regions": int((~np.isnan(area)).sum()),
            "area": round(float(np.nanmean(area)), 4),
            "layer": layer,
            "top": [list(key) for key in heads.top(5)] if heads.ok.any() else [],
            "n_significant": int((heads["q"] < 0.05).sum()),
        },
        timing=timing,
        seed=seed,
    )


def wanted(model: Model, data: ImageDataset, params: ImageAttentionParams) -> np.ndarray:
    """`[example, rows, columns]` share of each cell in the example's region; all 0 where there is none."""
    shapes = {grid.shape(sample) for sample in data}
    if len(shapes) > 1:
        raise InputError(f"Images of {data.name!r} become grids of {sorted(shapes)}; give images of one.")
    regions = []
    for sample in data:
        boxes = grid.regions_of(sample, params.region)
        view = grid.field_of_view(model.processor, sample.image.size) if boxes else grid.WHOLE
        regions.append(grid.coverage(boxes, next(iter(shapes)), view))
    if not any(region.any() for region in regions):
        remedy = "give samples `about` and `regions`" if params.region == "about" else "give samples `regions`"
        raise InputError(
            f"No sample of {data.name!r} has a region to look at (region: {params.region}); {remedy}, as `task: "
            "objects` does."
        )
    return np.stack(regions)


def shares(
    model: Model, data: ImageDataset, regions: np.ndarray, params: ImageAttentionParams
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share of image attention inside the region, image attention, and the other examples' share in the same region.

    All `[example, layer, head]`; the other examples are those with another picture.
    """
    n, n_cells = len(data), regions[0].size
    flat = regions.reshape(n, n_cells)
    views = Views(model, data, "removed")
    inside = np.full((n, model.n_layers, model.n_heads), np.nan)
    mass = inside.copy()
    total: dict[str, np.ndarray] = {}  # by picture, the sum of its examples' distributions [layer, head, cell]
    count: dict[str, np.ndarray] = {}  # and how many of them define one [layer, head, 1]
    with bar(n, "looking") as shown:
        for start in range(0, n, params.batch_size):
            chosen = list(range(start, min(start + params.batch_size, n)))
            branch = views.image(chosen)
            rows = head_rows(model, branch, list(range(model.n_layers)))
            by_layer = [image_rows(branch, rows[layer]) for layer in range(model.n_layers)]
            for place, index in enumerate(chosen):
                on_image = np.stack([layer[place].double().numpy() for layer in by_layer])  # [layer, head, cell]
                mass[index] = on_image.sum(axis=-1)
                spread = np.divide(
                    on_image,
                    mass[index][..., None],
                    out=np.full(on_image.shape, np.nan),
                    where=mass[index][..., None] > 0,
                )
                if flat[index].any():
                    inside[index] = spread @ flat[index]
                pixels = data[index].pixels
                total[pixels] = total.get(pixels, 0.0) + np.nan_to_num(spread)
                count[pixels] = count.get(pixels, 0.0) + (mass[index] > 0)[..., None]
            shown.update(len(chosen))
    everything = np.sum(list(total.values()), axis=0)
    defined = np.sum(list(count.values()), axis=0)
    elsewhere = np.full(inside.shape, np.nan)
    for index, sample in enumerate(data):
        others = defined - count[sample.pixels]
        if flat[index].any():
            sums = everything - total[sample.pixels]
            mean = np.divide(sums, others, out=np.full(sums.shape, np.nan), where=others > 0)
            elsewhere[index] = mean @ flat[index]
    return inside, mass, elsewhere


def head_table(
    model: Model,
    inside: np.ndarray,
    mass: np.ndarray,
    elsewhere: np.ndarray,
    area: np.ndarray,
    params: ImageAttentionParams,
    seed: int,
) -> HeadTable:
    """One row per head: share of its image attention inside the region, with interval and null."""
    status = np.full(inside.shape[1:], "ok", dtype=object)
    status[np.isnan(inside).all(axis=0)] = "no attention on the image"
    return HeadTable.from_examples(
        inside,
        null=elsewhere,
        n_boot=params.bootstrap,
        seed=seed,
        n_kv_heads=model.n_kv_heads,
        status=status,
        extra={
            "area": np.full(inside.shape[1:], float(np.nanmean(area))),
            "image_mass": stats.mean(mass),
            "excess": stats.mean(inside - elsewhere),
        },
        meta={
            "analysis": "image_attention",
            "metric": "share of image attention inside the region of "
            + ("what is asked for" if params.region == "about" else "the objects"),
            "unit": "share of image attention",
            "model": model.name,
            "fingerprint": model.fingerprint,
            "basis": model.basis,
            "higher_is_more": True,
        },
    ).with_q()


def maps_table(data: ImageDataset, maps: dict[str, np.ndarray], regions: np.ndarray, area: np.ndarray) -> pd.DataFrame:
    """Per example and method: the map's share inside the region, the region's area, whether the peak lies inside."""
    import pandas as pd

    rows = []
    for method, values in maps.items():
        for index, sample in enumerate(data):
            value, region = values[index], regions[index]
            usable = bool(region.any()) and bool(np.isfinite(value).all()) and value.sum() > 0
            rows.append(
                {
                    "example": sample.id,
                    "about": sample.about or "",
                    "method": method,
                    "inside": float((value * region).sum() / value.sum()) if usable else np.nan,
                    "area": area[index],
                    "peak_inside": float(region.flat[int(value.argmax())] > 0) if usable else np.nan,
                }
            )
    return pd.DataFrame(rows, columns=["example", "about", "method", "inside", "area", "peak_inside"])


def crops_table(
    model: Model, data: ImageDataset, maps: dict[str, np.ndarray], params: ImageAttentionParams
) -> pd.DataFrame:
    """Per example and method: the crop, the share of the picture it is, and the share of the region that it holds."""
    import pandas as pd

    rows = []
    for method, values in maps.items():
        for sample, box in zip(data, attended_crops(model, data, list(values), base=params.crop_base), strict=True):
            wanted = grid.regions_of(sample, params.region)
            held = [grid.inside(region, box) for region in wanted]
            row: dict[str, Any] = {"example": sample.id, "about": sample.about or "", "method": method}
            row |= dict(zip(("left", "top", "right", "bottom"), box, strict=True))
            row |= {"area": (box[2] - box[0]) * (box[3] - box[1]), "holds": np.mean(held) if held else np.nan}
            rows.append(row)
    return pd.DataFrame(rows, columns=["example", "about", "method", "left", "top", "right", "bottom", "area", "holds"])


def methods_table(table: pd.DataFrame, params: ImageAttentionParams, seed: int) -> pd.DataFrame:
    """Per method: mean share inside with interval, mean area, how often the peak is inside."""
    import pandas as pd

    rows = []
    for method, part in table.groupby("method", sort=False):
        inside = part["inside"].to_numpy()
        low, high = stats.bootstrap_ci(inside, n_boot=params.bootstrap, seed=seed)
        row = {"method": method, "n": int((~np.isnan(inside)).sum()), "inside": float(stats.mean(inside))}
        row |= {"inside_low": float(low), "inside_high": float(high)}
        row |= {"area": float(stats.mean(part["area"].to_numpy()))}
        row |= {"peak_inside": float(stats.mean(part["peak_inside"].to_numpy()))}
        rows.append(row)
    return pd.DataFrame(rows)
