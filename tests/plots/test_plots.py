"""Figures: they show what the table holds, change no default, and are written whole and without a network."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
import pytest

from workbench import plots
from workbench.errors import InputError
from workbench.export import colours
from workbench.tables import HeadTable

NAN = math.nan
EVIL = "<a href='javascript:alert(1)'>x</a>"


def table(score, **options) -> HeadTable:
    return HeadTable.from_scores(score, **{"n_kv_heads": None, "analysis": "test", "metric": "m", **options})


def cells(trace) -> list[list[float | None]]:
    return [list(row) for row in trace.z]


def test_the_heatmap_holds_every_score_at_its_place():
    heads = table([[0.1, 0.2], [0.3, 0.4], [0.5, NAN]], n_kv_heads=1, ci_low=0.0, ci_high=1.0, n=7, null_p=0.03)
    fig = plots.heads(heads)
    main = fig.data[0]
    assert cells(main) == [[0.1, 0.2], [0.3, 0.4], [0.5, None]]
    hover = main.text[0][1]
    for word in (
        "layer 0, head 1",
        "kv group 0",
        "score 0.2",
        "interval 0 to 1",
        "n 7",
        "p 0.03",
        "rank 4",
        "status: ok",
    ):
        assert word in hover
    assert fig.layout.yaxis.range[0] > fig.layout.yaxis.range[1]  # layer 0 on top


def test_an_undefined_head_is_grey_and_hatched_and_says_why():
    fig = plots.heads(table([[0.1, NAN]], status=[["ok", "no attention <pattern>"]]))
    grey, stroke = fig.data[1], fig.data[2]
    assert cells(grey) == [[None, 0.0]]
    assert grey.colorscale[0][1] == colours.UNDEFINED
    assert "status: no attention &lt;pattern&gt;" in grey.text[0][1]
    assert (stroke.x, stroke.y, stroke.marker.symbol) == ((1,), (0,), "line-ne-open")
    assert len(plots.heads(table([[0.1, 0.2]])).data) == 1


def test_the_scale_is_centred_on_zero_only_for_signed_values():
    signed = plots.heads(table([[-1.0, 3.0]])).data[0]
    assert (signed.zmin, signed.zmax) == (-3.0, 3.0)
    assert signed.colorscale[4][1] == colours.DIVERGING[4]
    unsigned = plots.heads(table([[0.0, 3.0]])).data[0]
    assert (unsigned.zmin, unsigned.zmax) == (0.0, 3.0)
    barely = plots.heads(table([[-1e-5, 1.0]])).data[0]  # learned gates that end a hair under zero
    assert barely.colorscale[0][1] == colours.SEQUENTIAL[0]
    assert plots.heads(table([[0.0, 3.0]]), scale="diverging").data[0].zmin == -3.0


@pytest.mark.parametrize(
    "score", [[[0.0, 0.0]], [[NAN, NAN]], [[math.inf, 1.0]], [[-math.inf, math.inf]], [[5.0, 5.0]]]
)
def test_odd_tables_still_draw(score):
    fig = plots.heads(table(score))
    json.loads(fig.to_json() or "", parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert fig.data[0].zmin < fig.data[0].zmax


@pytest.mark.parametrize("shape", [(2, 2), (32, 32), (80, 64)])
def test_cells_stay_readable_and_labels_do_not_crowd(shape):
    fig = plots.heads(table(np.random.default_rng(0).normal(size=shape)))
    assert (fig.layout.height - 130) / shape[0] >= 9
    assert (fig.layout.width - 190) / shape[1] >= 9
    for axis, count in ((fig.layout.xaxis, shape[1]), (fig.layout.yaxis, shape[0])):
        assert count / axis.dtick <= 20


def test_any_numeric_column_can_be_drawn_and_others_are_refused():
    heads = table([[0.1, 0.2]], extra={"hits": [[3, 4]], "role": [["a", "b"]]})
    assert cells(plots.heads(heads, column="hits").data[0]) == [[3.0, 4.0]]
    assert "hits 4" in plots.heads(heads, column="hits").data[0].text[0][1]
    with pytest.raises(InputError, match="'role' holds text"):
        plots.heads(heads, column="role")
    with pytest.raises(InputError, match="Did you mean 'hits'"):
        plots.heads(heads, column="hit")
    with pytest.raises(InputError, match="'rainbow' is unknown"):
        plots.heads(heads, scale="rainbow")  # type: ignore[arg-type]


def test_kv_groups_are_labelled_as_such():
    groups = table([[0.1, 0.2]], rows="kv_group")
    fig = plots.heads(groups)
    assert fig.layout.xaxis.title.text == "kv group"
    assert "kv group 1</b>" in fig.data[0].text[0][1]
    assert list(plots.bars(groups).data[0].y) == ["L0 G1", "L0 G0"]


def test_text_from_outside_is_escaped_in_titles_and_hovers():
    heads = table([[0.1, NAN]], model=EVIL, unit=EVIL, status=[["ok", EVIL]])
    for fig in (plots.heads(heads), plots.bars(heads)):
        assert "<a href" not in (fig.to_json() or "").replace("\\u003c", "<")


def test_bars_show_the_best_heads_with_interval_and_null():
    heads = table([[0.1, 0.5, 0.3]], ci_low=[[0.0, 0.4, NAN]], ci_high=[[0.2, 0.7, NAN]], stderr=0.05, null_mean=0.08)
    fig = plots.bars(heads, 2)
    assert list(fig.data[0].y) == ["L0 H1", "L0 H2"]
    assert fig.data[0].error_x.array == pytest.approx((0.2, 0.05))  # the interval, else one standard error
    assert fig.data[0].error_x.arrayminus == pytest.approx((0.1, 0.05))
    assert fig.data[1].x == (0.08, 0.08)
    assert len(plots.bars(table([[0.1]])).data) == 1
    assert len(plots.bars(table([[NAN]])).data[0].x) == 0


def test_the_needle_grid_averages_and_hatches_what_was_never_tried():
    rows = [
        {"length": 128, "depth": 0.0, "recall": 1.0},
        {"length": 128, "depth": 0.0, "recall": 0.5},
        {"length": 256, "depth": 0.5, "recall": 0.25},
        {"length": 128, "depth": None, "recall": 0.9},
    ]
    fig = plots.grid(rows)
    assert cells(fig.data[0]) == [[0.75, None], [None, 0.25]]
    assert (fig.data[0].zmin, fig.data[0].zmax) == (0.0, 1.0)
    assert fig.data[0].x == ("128", "256")
    assert "n 2" in fig.data[0].text[0][0]
    assert sum(z is not None for row in fig.data[1].z for z in row) == 2
    with pytest.raises(InputError, match="no column 'recall'"):
        plots.grid([{"length": 1, "depth": 1, "score": 1}])
    plots.grid([{"length": 1, "depth": 1, "score": 1}], value="score")


def test_curves_draw_given_intervals_standard_errors_or_bootstrap():
    points = {"k": [0, 10, 0, 10], "recall": [1.0, 0.2, 1.0, 0.9], "group": ["top", "top", "random", "random"]}
    given = plots.curves({**points, "ci_low": [0.9, 0.1, 0.9, 0.8], "ci_high": [1.0, 0.3, 1.0, 1.0]})
    band, line = given.data[0], given.data[1]
    assert band.y == (1.0, 0.3, 0.1, 0.9)
    assert (line.x, line.y, line.name) == ((0, 10), (1.0, 0.2), "top")
    from_error = plots.curves({**points, "stderr": [0.0, 0.1, 0.0, 0.1]})
    assert from_error.data[0].y == pytest.approx((1.0, 0.396, 0.004, 1.0))
    many = {key: values * 5 for key, values in points.items()}
    many["recall"] = (np.array(many["recall"]) + np.random.default_rng(0).normal(0, 0.1, 20)).tolist()
    averaged = plots.curves(many)
    assert averaged.data[1].y[1] == pytest.approx(np.mean(many["recall"][1::4]))
    assert "n 5" in averaged.data[1].text[0]
    joined = plots.curves({**points, "kind": ["zero"] * 4}, group=("group", "kind"))
    assert [trace.name for trace in joined.data] == ["top zero", "random zero"]
    with pytest.raises(InputError, match="several rows for one point"):
        plots.curves({**many, "stderr": [0.1] * 20})


def test_drawing_changes_no_default_and_shows_nothing(monkeypatch):
    monkeypatch.setattr(go.Figure, "show", lambda *a, **k: pytest.fail("a figure was shown"))
    before = pio.templates.default, list(pio.templates)
    heads = table([[0.1, 0.4]])
    heads.plot()
    plots.bars(heads)
    assert (pio.templates.default, list(pio.templates)) == before


def test_html_is_whole_offline_and_the_same_every_time(tmp_path):
    fig = plots.heads(table([[0.1, 0.4]]))
    for name in ("a.html", "b.html"):
        plots.write(fig, tmp_path / name)
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert page == (tmp_path / "b.html").read_text(encoding="utf-8")
    assert not re.search(r"<(script|link)[^>]*(src|href)=", page)
    assert len(page) > 1_000_000  # plotly.js is inside


def test_a_picture_without_a_browser_names_the_remedy(tmp_path, monkeypatch):
    fig = plots.heads(table([[0.1, 0.4]]))

    def no_browser(*_args, **_kwargs):
        raise RuntimeError("Kaleido requires\nGoogle Chrome.")

    monkeypatch.setattr(type(fig), "to_image", no_browser)
    with pytest.raises(InputError, match=r"pip install 'workbench\[images\]'.*Chromium") as caught:
        plots.write(fig, tmp_path / "x.png")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.png").exists()
    with pytest.raises(InputError, match=r"end the name in .html, .png"):
        plots.write(fig, tmp_path / "x.jpg")
