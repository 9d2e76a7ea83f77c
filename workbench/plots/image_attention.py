"""A map over a picture: as a Pillow image to save, and as a plotly figure to look into.

The map is stretched over the part of the picture that the model sees (`view`, a box in fractions); its strength is
colour and opacity, so that the picture shows through where the map is low. It must never know how a map was made.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from workbench.errors import InputError
from workbench.plots import theme

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from PIL.Image import Image

Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
_HEAT = (213, 94, 0)  # vermilion, seen by all and rare in photographs


def overlay(
    picture: Image, values: np.ndarray, *, view: Box = WHOLE, opacity: float = 0.75, least_side: int = 336
) -> Image:
    """The picture with the map on it, RGB; `overlay(...).save("where.png")` writes it.

    Args:
        values: `[rows, columns]`, scaled from 0 (or its lowest, if lower) to its highest; undefined cells stay clear.
        view: the part of the picture that the map covers; what the model does not see is greyed.
        opacity: of the highest value.
        least_side: smaller pictures are enlarged to this many pixels.
    """
    from PIL import Image

    strength = _strength(values)
    factor = max(1, -(-least_side // min(picture.size)))
    width, height = picture.width * factor, picture.height * factor
    base = picture.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
    left, top, right, bottom = (
        round(edge * side) for edge, side in zip(view, (width, height, width, height), strict=True)
    )
    if right <= left or bottom <= top:
        raise InputError(f"view {view} holds nothing; give (left, top, right, bottom) in fractions.")
    heat = Image.fromarray((strength * 255 * opacity).round().astype(np.uint8))
    heat = heat.resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    mask = Image.new("L", base.size, 0)
    mask.paste(heat, (left, top))
    out = Image.composite(Image.new("RGB", base.size, _HEAT), base, mask)
    unseen = Image.new("L", base.size, 110)
    unseen.paste(0, (max(left, 0), max(top, 0), min(right, width), min(bottom, height)))
    return Image.composite(Image.new("RGB", base.size, (128, 128, 128)), out, unseen)


def image_attention(
    picture: Image,
    values: np.ndarray,
    *,
    view: Box = WHOLE,
    boxes: Mapping[str, Box] | None = None,
    title: str = "",
) -> go.Figure:
    """The picture under its map, with every cell's value in its hover, and boxes by name."""
    import plotly.graph_objects as go

    strength, values = _strength(values), np.asarray(values, dtype=np.float64)
    width, height = picture.size
    rows, columns = values.shape
    fig = go.Figure(layout={"template": theme.template()})
    fig.add_layout_image(
        source=_data_uri(picture),
        xref="x",
        yref="y",
        x=0,
        y=0,
        sizex=width,
        sizey=height,
        sizing="stretch",
        layer="below",
    )
    x, y = (
        start * side + (np.arange(n) + 0.5) * (stop - start) * side / n
        for start, stop, side, n in ((view[0], view[2], width, columns), (view[1], view[3], height, rows))
    )
    fig.add_trace(
        go.Heatmap(
            z=strength.tolist(),
            x=x.tolist(),
            y=y.tolist(),
            customdata=[[None if not np.isfinite(v) else float(v) for v in row] for row in values],
            colorscale=[[0, theme.faded(theme.LINES[1], 0.0)], [1, theme.faded(theme.LINES[1], 0.85)]],
            zmin=0,
            zmax=1,
            showscale=False,
            hovertemplate="%{customdata:.4g}<extra></extra>",
        )
    )
    for name, (left, top, right, bottom) in (boxes or {}).items():
        fig.add_shape(
            type="rect",
            x0=left * width,
            x1=right * width,
            y0=top * height,
            y1=bottom * height,
            line={"color": theme.INK, "width": 2},
            label={"text": escape(name), "textposition": "top left", "font": {"size": 12}},
        )
    fig.update_layout(title=escape(title), width=520, height=max(240, round(460 * height / width)))
    fig.update_xaxes(range=[0, width], visible=False)
    fig.update_yaxes(range=[height, 0], visible=False, scaleanchor="x")
    return fig


def _strength(values: np.ndarray) -> np.ndarray:
    """0 to 1; undefined cells 0."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or not values.size:
        raise InputError(f"A map has shape {values.shape}; give [rows, columns].")
    finite = np.where(np.isfinite(values), values, np.nan)
    if np.isnan(finite).all():
        return np.zeros(values.shape)
    low, high = min(0.0, float(np.nanmin(finite))), float(np.nanmax(finite))
    return np.nan_to_num((finite - low) / (high - low)) if high > low else np.zeros(values.shape)


def _data_uri(picture: Image) -> str:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
