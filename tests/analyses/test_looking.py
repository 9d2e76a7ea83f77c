"""Where the model looks: maps against the raw modules, grids against pixels, heads that look at the object."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.reference import looking as slow_looking
from tests.reference import var as slow
from tests.tiny_vision import ARCHITECTURES, pictures, tiny_vision, tiny_vision_hf
from workbench import tasks
from workbench.analyses.looking import attended_crops, attention_maps, grid, image_attention, pixels
from workbench.analyses.looking.crop import attended_box
from workbench.analyses.looking.maps import which_layer
from workbench.errors import InputError
from workbench.tasks import drawings
from workbench.tasks.images import images_from_samples

PROMPTS = ("the cat is in", "red fish and bird saw")
GENERAL = "the house"


@cache
def model_of(arch: str) -> Any:
    return tiny_vision(arch)


def rows() -> list[dict[str, Any]]:
    boxes = {"cat": (0.0, 0.0, 0.5, 0.5), "fish": (0.25, 0.5, 0.75, 1.0)}
    return [
        {"image": picture, "prompt": prompt, "about": about, "regions": boxes}
        for picture, prompt, about in zip(pictures(2), PROMPTS, ("cat", "fish"), strict=True)
    ]


@cache
def data_of(arch: str) -> Any:
    return images_from_samples(model_of(arch), rows())


def alone(model: Any, data: Any, index: int) -> dict[str, Any]:
    return {key: value for key, value in data.batch(model, [index]).inputs().items() if key != "attention_mask"}


# ---- maps


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_maps_are_those_of_the_raw_modules(arch: str) -> None:
    model, data, raw = model_of(arch), data_of(arch), tiny_vision_hf(arch)
    layer = 1
    plain, relative, gradient = (
        attention_maps(model, data, method=method, layer=layer, general=GENERAL)
        for method in ("attention", "relative", "gradient")
    )
    general = images_from_samples(model, [{**row, "prompt": GENERAL, "about": None} for row in rows()])
    for index, sample in enumerate(data):
        a, b = sample.image_span
        own = slow.last_rows(raw, alone(model, data, index))[0][layer][:, a:b].mean(dim=0)
        start, stop = general[index].image_span
        below = slow.last_rows(raw, alone(model, general, index))[0][layer][:, start:stop].mean(dim=0)
        np.testing.assert_allclose(plain[index].ravel(), own, atol=1e-6)
        np.testing.assert_allclose(relative[index].ravel(), own / below, rtol=1e-4)
        slope = slow.gradient_map(raw, alone(model, data, index), layer)
        np.testing.assert_allclose(gradient[index].ravel(), slope, rtol=1e-4, atol=1e-6)
        assert gradient[index].shape == (2, 2) and gradient[index].max() > 0


def test_the_gradient_is_the_slope_of_the_log_probability() -> None:
    model, data, raw = model_of("llava"), data_of("llava"), tiny_vision_hf("llava")
    inputs, layer = alone(model, data, 0), 1
    a, b = data[0].image_span
    weights = slow.last_rows(raw, inputs)[0][layer]
    step, weighted = 2e-3, np.zeros(b - a)
    for key in range(a, b):
        for head in range(model.n_heads):
            up, down = (slow.log_prob(raw, inputs, layer, head, key, by) for by in (step, -step))
            weighted[key - a] += float(weights[head, key]) * max((up - down) / (2 * step), 0.0) / model.n_heads
    made = attention_maps(model, data[:1], method="gradient", layer=layer)[0].ravel()
    np.testing.assert_allclose(made, weighted, rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_pure_gradient_is_that_of_the_raw_pixels(arch: str) -> None:
    """Ours in a padded batch; theirs alone, pixel by pixel."""
    model, data, raw = model_of(arch), data_of(arch), tiny_vision_hf(arch)
    general = images_from_samples(model, [{**row, "prompt": GENERAL, "about": None} for row in rows()])
    made = attention_maps(model, data, method="pure_gradient", general=GENERAL)
    for index, picture in enumerate(pictures(2)):
        wanted = slow_looking.detail((np.asarray(picture).transpose(2, 0, 1) / 255).tolist())
        own, below = (slow_looking.slope(raw, alone(model, part, index)) for part in (data, general))
        expected = slow_looking.pure_gradient(own, below, wanted, 2)
        np.testing.assert_allclose(made[index], expected, rtol=1e-3)
        assert 0 < np.mean(wanted) <= 0.5 and made[index].min() > 0


def test_cells_without_detail_are_0_and_without_slope_undefined() -> None:
    flat = np.zeros((3, 16, 16))
    assert not pixels.detail(flat).any(), "nothing exceeds the median of a plain picture"
    slope, none = np.ones((4, 4)), np.zeros((4, 4))
    half = np.array([[False, False, True, True]] * 4)
    made = pixels.pooled(slope, np.where(np.arange(4) < 3, 2.0, 0.0)[None].repeat(4, 0), half, (2, 2))
    np.testing.assert_allclose(made, [[0, 0.5], [0, 0.5]])
    made = pixels.pooled(slope, none, half, (1, 2))
    assert made[0, 0] == 0 and np.isnan(made[0, 1])


# ---- crops


def test_the_crop_is_the_window_that_stands_out_most() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = rng.random((6, 8)) ** 4
        box = attended_box(values, (800, 600), base=150)
        expected = np.array(slow_looking.crop(values.tolist(), (800, 600), 150)) / [800, 600, 800, 600]
        np.testing.assert_allclose(box, expected, atol=1e-9)
        assert 0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1
    one = np.zeros((10, 10))
    one[7, 2] = 1.0
    left, top, right, bottom = attended_box(one, (100, 100), base=10)
    assert (left, right) == pytest.approx((0.2, 0.3)) and (top, bottom) == pytest.approx((0.7, 0.8))


def test_a_crop_lies_where_the_model_sees_and_small_pictures_stay_whole() -> None:
    values = np.eye(4)
    assert attended_box(values, (40, 40), base=40) == grid.WHOLE
    assert attended_box(values, (80, 40), base=40, view=(0.25, 0, 0.75, 1)) == (0.25, 0, 0.75, 1)
    lopsided = np.zeros((4, 4))
    lopsided[0, 0] = 1
    assert attended_box(lopsided, (80, 40), base=10, view=(0.25, 0, 0.75, 1)) == pytest.approx((0.25, 0, 0.375, 0.25))
    undefined = np.where(lopsided > 0, 1.0, np.nan)
    assert attended_box(undefined, (80, 40), base=10) == attended_box(lopsided, (80, 40), base=10)
    with pytest.raises(InputError, match="base 0"):
        attended_box(values, (40, 40), base=0)
    with pytest.raises(InputError, match="1 maps for 2 samples"):
        attended_crops(model_of("llava"), data_of("llava"), [values])


def test_crops_hold_what_is_asked_for() -> None:
    """Scenes drawn four times as large as the organism's input, cropped to half that side or more."""
    import workbench as wb

    model = wb.load_model("organism:captions")
    data: Any = tasks.resolve(model, {"task": "objects", "n": 24, "size": 192})
    crops = image_attention(model, data, bootstrap=10, methods=("gradient",)).tables["crops"]
    known = crops.dropna(subset="holds")
    assert len(known) == 12 and known["area"].max() < 0.3
    assert known["holds"].mean() > 2 * known["area"].mean()


def test_maps_leave_no_gradient_behind() -> None:
    model, data = model_of("llava"), data_of("llava")
    attention_maps(model, data, method="gradient")
    attention_maps(model, data, method="pure_gradient")
    assert not any(parameter.requires_grad for parameter in model.bridge.parameters())
    assert all(parameter.grad is None for parameter in model.bridge.parameters())


def test_the_layer_is_the_papers_in_proportion() -> None:
    assert which_layer(SimpleNamespace(n_layers=32), None) == 14  # type: ignore[arg-type]
    assert which_layer(SimpleNamespace(n_layers=1), None) == 0  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no layer 7"):
        attention_maps(model_of("llava"), data_of("llava"), layer=7)
    with pytest.raises(InputError, match=r"'gradiant'.*'gradient'"):
        attention_maps(model_of("llava"), data_of("llava"), method="gradiant")  # type: ignore[arg-type]


# ---- grids


def test_a_cut_out_middle_is_what_the_model_sees() -> None:
    cut = SimpleNamespace(
        do_center_crop=True, do_resize=True, size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    assert grid.field_of_view(cut, (32, 32)) == (0.0, 0.0, 1.0, 1.0)
    assert grid.field_of_view(cut, (64, 32)) == (0.25, 0.0, 0.75, 1.0)
    squeezed = SimpleNamespace(do_center_crop=None, size={"height": 16, "width": 16})
    assert grid.field_of_view(squeezed, (64, 32)) == grid.WHOLE
    assert grid.field_of_view(model_of("llava").processor, (20, 60)) == pytest.approx((0.0, 1 / 3, 1.0, 2 / 3))
    assert grid.field_of_view(model_of("gemma3").processor, (20, 60)) == grid.WHOLE


def test_the_field_of_view_is_what_the_processor_keeps() -> None:
    """A mark is in the pixel values exactly when it lies in the field of view."""
    from PIL import Image

    model = model_of("llava")
    for left, seen in ((0.0, False), (0.75, False), (0.5, True)):
        picture = Image.new("RGB", (64, 32), (0, 0, 0))
        picture.paste((255, 255, 255), (round(left * 64), 0, round((left + 0.2) * 64), 32))
        inside = grid.coverage([(left, 0, left + 0.2, 1)], (2, 2), grid.field_of_view(model.processor, (64, 32))).any()
        data = images_from_samples(model, [{"image": picture, "prompt": "cat"}])
        pixels = data.batch(model).pixel_values
        assert bool(inside) == bool((pixels > pixels.min() + 1).any()) == seen


def test_coverage_is_the_share_of_each_cell() -> None:
    np.testing.assert_allclose(grid.coverage([(0, 0, 0.75, 0.5)], (2, 2)), [[1, 0.5], [0, 0]])
    np.testing.assert_allclose(grid.coverage([(0.5, 0, 1, 1)], (1, 2), (0.25, 0, 0.75, 1)), [[0, 1]])
    assert not grid.coverage([], (2, 2)).any()


def test_boxes_of_drawn_objects_hold_what_is_drawn() -> None:
    size = 120
    for seed, name in enumerate(drawings.OBJECTS):
        thing = drawings.Thing(name, 0.4, 0.55, 0.14)
        paper, picture = (
            np.asarray(drawings.draw(drawings.Scene(things, 220, seed), size=size)).astype(int)
            for things in ((), (thing,))
        )
        y, x = np.nonzero((picture != paper).any(-1))
        left, top, right, bottom = (edge * size for edge in drawings.Scene((thing,), 220, 0).boxes[name])
        assert abs(x.min() - left) <= 1.5 and abs(x.max() + 1 - right) <= 1.5, name
        assert abs(y.min() - top) <= 1.5 and abs(y.max() + 1 - bottom) <= 1.5, name


def test_tiles_are_refused() -> None:
    data = data_of("llava")
    from dataclasses import replace

    sample = replace(data[0], image_span=(data[0].image_span[0], data[0].image_span[1] - 1))
    with pytest.raises(InputError, match="3 tokens, which is no square grid"):
        grid.shape(sample)


# ---- the analysis


@pytest.mark.parametrize("arch", ["llava-gqa", "gemma3"])
def test_a_heads_share_is_its_attention_inside_the_box(arch: str) -> None:
    model, data, raw = model_of(arch), data_of(arch), tiny_vision_hf(arch)
    result = image_attention(model, data, bootstrap=5, general=GENERAL)
    cells = {0: torch.tensor([1, 0, 0, 0.0]), 1: torch.tensor([0, 0, 0.5, 0.5])}
    shares = []
    for index, sample in enumerate(data):
        a, b = sample.image_span
        attention = slow.last_rows(raw, alone(model, data, index))[0][..., a:b]
        shares.append(attention / attention.sum(dim=-1, keepdim=True))
    for index in range(2):
        np.testing.assert_allclose(result.per_example[index], shares[index] @ cells[index], atol=1e-5)
        null = result.arrays["null_per_example"][index]
        np.testing.assert_allclose(null, shares[1 - index] @ cells[index], atol=1e-5)
    assert result.heads["area"][0] == 0.25


def test_the_captions_organism_looks_at_what_it_is_asked_for() -> None:
    import workbench as wb

    model = wb.load_model("organism:captions")
    data: Any = tasks.resolve(model, {"task": "objects", "n": 16})
    result = image_attention(model, data, bootstrap=50, methods=("gradient",))
    asked = [sample.answer == "yes" for sample in data]
    assert (~np.isnan(result.per_example[:, 0, 0])).tolist() == asked, "an absent object is nowhere"
    methods = result.tables["methods"].set_index("method")
    assert methods.loc["gradient", "inside"] > 3 * methods.loc["gradient", "area"]
    assert result.heads.row(*result.heads.top(1).keys()[0])["excess"] > 0.05
    everything = image_attention(model, data, region="objects", bootstrap=20, methods=())
    assert everything.summary["n_regions"] == 16 and not len(everything.tables["maps"])


def test_what_cannot_be_done_is_refused_in_a_sentence() -> None:
    model = model_of("llava")
    bare = images_from_samples(model, [{"image": pictures(1)[0], "prompt": "the cat"}])
    with pytest.raises(InputError, match="has a region to look at"):
        image_attention(model, bare)
    for box in ([0, 0, 1], [0.5, 0, 0.2, 1], [0, 0, 1.2, 1], "all", [0, 0, True, 1]):
        with pytest.raises(InputError, match="the region of 'cat' must be"):
            images_from_samples(model, [{"image": pictures(1)[0], "prompt": "the cat", "regions": {"cat": box}}])
    with pytest.raises(InputError, match="boxes"):
        images_from_samples(model, [{"image": pictures(1)[0], "prompt": "the cat", "regions": [0, 0, 1, 1]}])


def test_regions_are_part_of_the_digest() -> None:
    model = model_of("llava")
    row = {"image": pictures(1)[0], "prompt": "the cat"}
    digests = {
        images_from_samples(model, [{**row, **more}]).digest()
        for more in ({}, {"regions": {"cat": (0, 0, 1, 1)}}, {"regions": {"cat": (0, 0, 1, 0.5)}})
    }
    assert len(digests) == 3
