"""How each head divides its attention between image, sinks and text, and how much of it the image changes.

Everything is read at the last prompt position, whose query predicts the first word. The score is the attention on
image tokens that are no sinks; its null is what as many random visible tokens get on average, which is their share of
all visible tokens.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from workbench import stats
from workbench.analyses.base import Result
from workbench.analyses.var import score
from workbench.analyses.var.params import VarParams
from workbench.analyses.var.sinks import Seen, anchors, are_sinks, dimensions, look, nothing_found
from workbench.analyses.vhd.branches import Views
from workbench.errors import InputError
from workbench.progress import bar
from workbench.tables import HeadTable

if TYPE_CHECKING:
    import pandas as pd

    from workbench.models import Model
    from workbench.tasks.images import ImageDataset

Found = dict[str, np.ndarray]


def measure(model: Model, data: ImageDataset, params: VarParams, seed: int) -> Result:
    """Measure every head on `data`; see `workbench.analyses.var` for what the result holds.

    Raises:
        InputError: the dataset is empty or not made of images, the model reads text only, a dimension or anchor that
            does not exist.
    """
    if getattr(data, "kind", None) != "images" or not len(data):
        raise InputError("var needs a dataset of at least one image with its prompt; see workbench.tasks.images.")
    if params.redistribution is not None:
        from workbench.analyses.var.evaluate import check

        check(model, data)
    started = time.perf_counter()
    views = Views(model, data, "removed")
    batches = [list(range(len(data)))[i : i + params.batch_size] for i in range(0, len(data), params.batch_size)]
    anchor = torch.cat([anchors(model, views.image(chosen), params, data) for chosen in batches])
    found_dimensions = dimensions(anchor, params)
    parts = []
    with bar(len(data), "looking for sinks") as shown:
        for chosen in batches:
            parts.append(_batch(model, views, chosen, found_dimensions, params))
            shown.update(len(chosen))
    widest = max(part["phi"].shape[-1] for part in parts)
    found = {key: np.concatenate([_widened(part[key], key, widest) for part in parts]) for key in parts[0]}
    heads = head_table(model, found, params, seed)
    result = Result(
        analysis="var",
        heads=heads,
        params=params,
        model=model.describe(),
        data=data.describe(),
        tables={
            "layers": layers_table(found, anchor, found_dimensions),
            "dimensions": dimensions_table(anchor, found_dimensions, params),
            "sensitivity": sensitivity_table(found),
        },
        arrays={
            "per_example": (found["image"] - found["visual"]).astype(np.float32),
            "null_per_example": found["null"].astype(np.float32),
            "image_mass": found["image"].astype(np.float32),
            "image_centric": found["centric"],
            "phi": found["phi"].astype(np.float32),
            "sinks": found["sinks"],
        },
        summary={
            "n_examples": len(data),
            "top": [list(key) for key in heads.top(5)],
            "n_significant": int((heads["q"] < 0.05).sum()),
            **headline(found, anchor, found_dimensions, params),
        },
        timing={"sinks": time.perf_counter() - started},
        seed=seed,
    )
    if params.redistribution is not None:
        from workbench.analyses.var.evaluate import evaluate

        evaluate(model, views, found_dimensions, params, seed, into=result)
    return result


def _batch(model: Model, views: Views, chosen: list[int], dims: tuple[int, ...], params: VarParams) -> Found:
    seen = look(model, views.image(chosen), dims)
    other_branch = views.other_image(chosen)
    other = None if other_branch is None else look(model, other_branch, dims)
    sinks = are_sinks(seen.phi, seen.real, params)
    n_rows, n_layers = seen.pattern.shape[:2]
    by_layer = [score.masses(seen.pattern[:, layer, :, None], seen.image, sinks[:, layer]) for layer in range(n_layers)]
    image, visual, text = (torch.stack([part[i][..., 0] for part in by_layer], dim=1) for i in range(3))
    centric = score.image_centric(image, visual, min_mass=params.min_mass, rho=params.rho, convention=params.convention)
    free = (seen.image[:, None] & seen.visible & ~sinks).sum(dim=-1)  # visible image tokens that are no sinks
    null = (free / seen.visible.sum(dim=-1))[..., None].expand_as(image)  # a query sees itself at least
    width = int(seen.image.sum(dim=1).max())
    phi = torch.full((n_rows, n_layers, width), torch.nan)
    on = torch.zeros(n_rows, n_layers, width, dtype=torch.bool)
    for row in range(n_rows):
        n = int(seen.image[row].sum())
        phi[row, :, :n] = seen.phi[row][:, seen.image[row]]
        on[row, :, :n] = sinks[row][:, seen.image[row]]
    z_change, attention_change = _changes(seen, other)
    tensors = {
        "image": image,
        "visual": visual,
        "text": text,
        "null": null,
        "z_change": z_change,
        "attention_change": attention_change,
    }
    out = {key: value.double().numpy() for key, value in tensors.items()}
    text_sinks = (sinks & ~seen.image[:, None]).sum(dim=-1)
    return out | {
        "centric": centric.numpy(),
        "phi": phi.double().numpy(),
        "sinks": on.numpy(),
        "n_image": seen.image.sum(dim=1).numpy(),
        "n_text_sinks": text_sinks.numpy(),
    }


def _changes(seen: Seen, other: Seen | None) -> tuple[torch.Tensor, torch.Tensor]:
    """How far another image moves each head `[row, layer, head]`: its output, relative to the lengths; its attention.

    The attention's change is the total variation distance, the share of attention that goes elsewhere.
    """
    if other is None:
        nothing = torch.full(seen.pattern.shape[:3], torch.nan)
        return nothing, nothing
    distance = (seen.z - other.z).norm(dim=-1)
    length = (seen.z.norm(dim=-1) + other.z.norm(dim=-1)) / 2
    z_change = torch.where(length == 0, 0.0, distance / length.clamp(min=1e-30))  # NaN stays NaN
    return z_change, (seen.pattern - other.pattern).abs().sum(dim=-1) / 2


def _widened(values: np.ndarray, key: str, width: int) -> np.ndarray:
    if key not in ("phi", "sinks"):
        return values
    fill = np.nan if key == "phi" else False
    return np.pad(values, [(0, 0), (0, 0), (0, width - values.shape[-1])], constant_values=fill)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def head_table(model: Model, found: Found, params: VarParams, seed: int) -> HeadTable:
    """One row per head: attention on image tokens that are no sinks, with interval and null."""
    values, null = found["image"] - found["visual"], found["null"]
    status = np.full(values.shape[1:], "ok", dtype=object)
    status[np.isnan(values).all(axis=0)] = "attention that is not finite"
    return HeadTable.from_examples(
        values,
        null=null,
        n_boot=params.bootstrap,
        seed=seed,
        n_kv_heads=model.n_kv_heads,
        status=status,
        extra={
            "image_mass": stats.mean(found["image"]),
            "visual_sink_mass": stats.mean(found["visual"]),
            "text_sink_mass": stats.mean(found["text"]),
            "sink_share": stats.mean(_ratio(found["visual"], found["image"])),
            "centric_share": found["centric"].mean(axis=0),
            "sensitivity": stats.mean(found["z_change"]),
        },
        meta={
            "analysis": "var",
            "metric": "attention of the last query on image tokens that are no sinks",
            "unit": "share of attention",
            "model": model.name,
            "fingerprint": model.fingerprint,
            "basis": model.basis,
            "higher_is_more": True,
        },
    ).with_q()


def layers_table(found: Found, anchor: torch.Tensor, dims: tuple[int, ...]) -> pd.DataFrame:
    """Per layer: sinks, how large phi gets at the anchor and in the image, and the attention the sinks draw."""
    import pandas as pd

    n_sinks = found["sinks"].sum(axis=-1)
    at_anchor = score.middle(anchor[..., list(dims)].amax(dim=-1)).numpy() if dims else np.zeros(anchor.shape[1])
    highest = np.nanmax(found["phi"], axis=-1)
    columns: dict[str, Any] = {
        "layer": np.arange(anchor.shape[1]),
        "visual_sinks": n_sinks.mean(axis=0),
        "share_of_image": (n_sinks / found["n_image"][:, None]).mean(axis=0),
        "text_sinks": found["n_text_sinks"].mean(axis=0),
        "phi_anchor": at_anchor,
        "phi_image": highest.mean(axis=0),
        "image_mass": stats.mean(found["image"]).mean(axis=-1),
        "visual_sink_mass": stats.mean(found["visual"]).mean(axis=-1),
        "text_sink_mass": stats.mean(found["text"]).mean(axis=-1),
        "image_centric_heads": found["centric"].sum(axis=-1).mean(axis=0),
    }
    return pd.DataFrame(columns)


def dimensions_table(anchor: torch.Tensor, dims: tuple[int, ...], params: VarParams, *, most: int = 10) -> pd.DataFrame:
    """The sink dimensions and the next largest: where each is largest at the anchor, and in how many layers massive."""
    import pandas as pd

    typical = score.middle(anchor)[params.first_layer :]
    if not typical.shape[0]:
        return pd.DataFrame(columns=["dimension", "magnitude", "layer", "layers_above_tau", "sink"])
    peak, layer = typical.max(dim=0)
    order = sorted(range(len(peak)), key=lambda d: (d not in dims, -float(peak[d]), d))[: max(most, len(dims))]
    return pd.DataFrame(
        {
            "dimension": order,
            "magnitude": [float(peak[d]) for d in order],
            "layer": [int(layer[d]) + params.first_layer for d in order],
            "layers_above_tau": [int((typical[:, d] > params.tau).sum()) for d in order],
            "sink": [d in dims for d in order],
        }
    )


def sensitivity_table(found: Found) -> pd.DataFrame:
    """Per head: attention on the image, and how far another image moves its output and its attention."""
    import pandas as pd

    n_layers, n_heads = found["image"].shape[1:]
    layer, head = (axis.ravel() for axis in np.indices((n_layers, n_heads)))
    columns: dict[str, Any] = {"layer": layer, "head": head}
    for name, key in (("image_mass", "image"), ("z_change", "z_change"), ("attention_change", "attention_change")):
        columns[name] = stats.mean(found[key]).ravel()
        columns[f"{name}_stderr"] = stats.stderr(found[key]).ravel()
    columns["n"] = (~np.isnan(found["z_change"])).sum(axis=0).ravel()
    return pd.DataFrame(columns)


def headline(found: Found, anchor: torch.Tensor, dims: tuple[int, ...], params: VarParams) -> dict[str, Any]:
    """Whether there are sinks, in words and numbers."""
    if not dims:
        return {"sinks": nothing_found(anchor, params), "sink_details": {"dimensions": []}}
    n_visual = found["sinks"].sum(axis=-1)
    facts = {
        "dimensions": list(dims),
        "visual_per_image": round(float(n_visual.max(axis=1).mean()), 3),
        "layers": [int(layer) for layer in np.flatnonzero(n_visual.any(axis=0))],
        "text_per_prompt": round(float(found["n_text_sinks"].max(axis=1).mean()), 3),
    }
    status = "found" if n_visual.any() else f"text only: phi of no image token exceeds {params.tau:g}"
    if not n_visual.any() and not found["n_text_sinks"].any():
        status = f"none: phi of no token exceeds {params.tau:g}"
    return {"sinks": status, "sink_details": facts}
