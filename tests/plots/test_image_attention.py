"""A map over a picture is where the map says, and leaves the rest of the picture as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from workbench.errors import InputError
from workbench.plots.image_attention import image_attention, overlay

PICTURE = Image.new("RGB", (64, 32), (10, 20, 200))


def test_the_overlay_colours_the_cells_that_are_high() -> None:
    out = np.asarray(overlay(PICTURE, np.array([[0.0, 0.0], [0.0, 5.0]]), least_side=32)).astype(int)
    assert out.shape == (32, 64, 3)
    assert (out[2, 2] == (10, 20, 200)).all()
    assert out[30, 62, 0] > 120 and out[30, 62, 2] < 100
    large = overlay(PICTURE, np.ones((2, 2)), least_side=100)
    assert large.size == (256, 128)


def test_what_the_model_does_not_see_is_grey() -> None:
    out = np.asarray(overlay(PICTURE, np.zeros((2, 2)), view=(0.25, 0.0, 0.75, 1.0), least_side=32)).astype(int)
    assert (out[16, 32] == (10, 20, 200)).all()
    assert out[16, 4, 2] < 180 and (out[16, 4] == out[16, 60]).all()


def test_undefined_cells_stay_clear() -> None:
    out = np.asarray(overlay(PICTURE, np.array([[np.nan, np.inf], [np.nan, np.nan]]), least_side=32))
    assert (out == np.array(PICTURE)).all()


def test_the_figure_holds_every_value_over_the_picture() -> None:
    values = np.array([[0.1, 0.2], [0.3, np.nan]])
    fig: Any = image_attention(PICTURE, values, boxes={"<b>cat</b>": (0.0, 0.5, 0.5, 1.0)}, title="<i>x</i>")
    assert fig.layout.images[0].source.startswith("data:image/png;base64,")
    trace = fig.data[0]
    assert [list(row) for row in trace.customdata] == [[0.1, 0.2], [0.3, None]]
    assert list(trace.x) == [16, 48] and list(trace.y) == [8, 24]
    assert (fig.layout.shapes[0].x1, fig.layout.shapes[0].y0) == (32, 16)
    assert "<b>" not in fig.layout.shapes[0].label.text and "<i>" not in fig.layout.title.text
    assert "http" not in (fig.to_json() or "")


def test_what_is_no_map_is_refused() -> None:
    with pytest.raises(InputError, match="give \\[rows, columns\\]"):
        overlay(PICTURE, np.ones(4))
    with pytest.raises(InputError, match="holds nothing"):
        overlay(PICTURE, np.ones((2, 2)), view=(0.5, 0.0, 0.5, 1.0))
