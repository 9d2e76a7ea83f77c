"""Themes, significance, attention over tokens, positions, and conditions with their intervals."""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench import plots
from workbench.errors import InputError
from workbench.export import colours
from workbench.plots import files, theme
from workbench.tables import HeadTable

NAN = math.nan
EVIL = "<a href='javascript:alert(1)'>x</a>"


def table(score: Any, **options: Any) -> HeadTable:
    return HeadTable.from_scores(score, **{"n_kv_heads": None, "analysis": "test", "metric": "m", **options})


def light(stop: str) -> float:
    """Relative luminance of `#rrggbb` (WCAG)."""
    linear = [
        (c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4) for c in colours.rgb(stop)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((light(a), light(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


# ---- themes


def test_a_dark_figure_holds_the_same_numbers_in_other_colours() -> None:
    fig = plots.heads(table([[-1.0, 3.0, NAN]], null_p=0.001))
    before = fig.to_json()
    dark: Any = theme.themed(fig, "dark")
    assert fig.to_json() == before
    assert dark.layout.template.layout.paper_bgcolor == theme.DARK[theme.PAPER]
    assert [stop for _, stop in dark.data[0].colorscale] == [theme.DARK[stop] for stop in colours.DIVERGING]
    for one, other in zip(fig.data, dark.data, strict=True):
        assert getattr(one, "z", None) == getattr(other, "z", None) and one.x == other.x
    assert theme.themed(fig, "light") is fig
    with pytest.raises(InputError, match="theme 'auto'"):
        theme.themed(fig, "auto")


def test_only_colours_are_recoloured() -> None:
    """A token, a title or a name that reads like one of our colours stays what it is."""
    word = theme.PAPER
    fig = go.Figure(go.Bar(x=[1, 2], y=[word, "b"], text=[word, word], marker={"color": [word, theme.INK]}))
    fig.update_layout(title=word, paper_bgcolor=word)
    dark: Any = theme.themed(fig, "dark")
    assert (dark.data[0].y[0], dark.data[0].text[0], dark.layout.title.text) == (word, word, word)
    assert list(dark.data[0].marker.color) == [theme.DARK[word], theme.DARK[theme.INK]]
    assert dark.layout.paper_bgcolor == theme.DARK[word]


def test_faded_colours_keep_their_opacity() -> None:
    fig = go.Figure(go.Scatter(x=[1], y=[1], fill="toself", fillcolor=theme.faded(theme.LINES[0], 0.18)))
    dark: Any = theme.themed(fig, "dark")
    assert dark.data[0].fillcolor == theme.faded(theme.DARK[theme.LINES[0]], 0.18)


def test_scales_rise_evenly_and_lines_can_be_told_from_the_page() -> None:
    sequential = [theme.DARK[stop] for stop in colours.SEQUENTIAL]
    assert [light(stop) for stop in sequential] == sorted(light(stop) for stop in sequential)
    diverging = [light(theme.DARK[stop]) for stop in colours.DIVERGING]
    assert diverging.index(min(diverging)) == 4  # zero recedes into the page
    for line in theme.LINES[:6]:
        assert contrast(theme.DARK[line], theme.DARK[theme.PAPER]) > 4.5
    for ink in (theme.INK, theme.MUTED):
        assert contrast(ink, theme.PAPER) > 4.5 and contrast(theme.DARK[ink], theme.DARK[theme.PAPER]) > 4.5


@given(st.text(max_size=200), st.floats(50, 900))
def test_wrapped_text_is_escaped_and_loses_no_word(text: str, room: float) -> None:
    made = theme.wrapped(text, room)
    assert "<" not in made.replace("<br>", "")
    assert sum(map(len, re.sub(r"&\w+;|&#x27;", "x", made.replace("<br>", "")).split())) == len("".join(text.split()))


# ---- significance


def test_a_dot_marks_the_heads_that_beat_their_null() -> None:
    p = [[0.001, 0.9], [0.002, NAN]]
    fig: Any = plots.heads(table([[4.0, 3.0], [2.0, 1.0]], null_p=p))
    dots = next(trace for trace in fig.data if trace.name == "beats its null")
    assert (list(dots.x), list(dots.y)) == ([0, 0], [0, 1])
    assert "2 of 4 beat their null (q < 0.05)" in fig.layout.annotations[0].text
    assert "q 0.003" in fig.data[0].text[0][0]  # Benjamini-Hochberg over the three that were tested
    none: Any = plots.heads(table([[4.0, 3.0]], null_p=0.5))
    assert len(none.data) == 1 and none.layout.annotations[0].text == "none beats its null (q < 0.05)"
    assert not plots.heads(table([[4.0, 3.0]])).layout.annotations  # nothing was tested
    own: Any = plots.heads(table([[4.0, 3.0]], null_p=0.5, extra={"q": [[0.01, 0.5]]}))
    assert list(next(trace for trace in own.data if trace.name == "beats its null").x) == [0]


def test_a_percentage_is_drawn_on_its_whole_range() -> None:
    fig: Any = plots.grid([{"length": 1, "depth": 0, "recall": 100.0}, {"length": 2, "depth": 0, "recall": 100.0}])
    assert (fig.data[0].zmin, fig.data[0].zmax) == (0.0, 100.0)


def test_a_grid_without_any_place_is_refused() -> None:
    with pytest.raises(InputError, match="No row has length, depth and recall"):
        plots.grid([{"length": 1, "depth": None, "recall": 1.0}])


# ---- attention over tokens


def test_attention_shows_each_head_over_the_tokens() -> None:
    pattern = np.tril(np.ones((2, 3, 3))) / np.arange(1, 4)[None, :, None]
    fig: Any = plots.attention(pattern, ["<bos>", " a", "\n"], heads=[(1, 2), (3, 0)])
    assert [list(trace.z[2]) for trace in fig.data] == [[1 / 3] * 3] * 2
    assert list(fig.data[0].x) == ["0 &lt;bos&gt;", "1 ·a", "2 ⏎"]
    assert "L1 H2" in fig.data[0].hovertemplate and "L3 H0" in fig.data[1].hovertemplate
    assert (fig.layout.coloraxis.cmin, fig.layout.coloraxis.cmax) == (0.0, 1.0)
    row: Any = plots.attention(pattern[0], ["a", "b", "c"], queries=[2])
    assert len(row.data) == 1 and list(row.data[0].y) == ["2 c"]


def test_rows_of_the_last_positions_are_those_tokens() -> None:
    fig: Any = plots.attention([[0.5, 0.25, 0.25]], ["a", "b", "c"])
    assert list(fig.data[0].y) == ["2 c"]


@pytest.mark.parametrize("n", [5, 40, 200])
def test_labels_of_tokens_do_not_crowd(n: int) -> None:
    fig: Any = plots.attention(np.eye(n), [f"token{i}" for i in range(n)])
    assert len(fig.layout.xaxis.tickvals) <= 48
    assert (fig.layout.width - 150) / n >= 5


@pytest.mark.parametrize(
    ("pattern", "tokens", "options", "words"),
    [
        ([[1.0]], ["a", "b"], {}, "2 tokens"),
        ([1.0], ["a"], {}, "give [query, key]"),
        ([[1.5]], ["a"], {}, "shares, from 0 to 1"),
        ([[-0.5]], ["a"], {}, "shares, from 0 to 1"),
        ([[1.0]], ["a"], {"heads": [(0, 1), (0, 2)]}, "2 heads are named"),
        (np.ones((13, 1, 1)), ["a"], {}, "at most 12"),
        ([[1.0]], ["a"], {"queries": [1]}, "no query position 1"),
    ],
)
def test_patterns_that_are_none_are_refused(pattern: Any, tokens: list[str], options: Any, words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        plots.attention(pattern, tokens, **options)


# ---- positions, conditions, paths without a circuit

POSITIONS = {
    "component": ["resid_pre"] * 3 + ["z"],
    "layer": [0, 0, 1, 0],
    "index": [-1, -1, -1, 3],
    "position": [2, 5, 2, 0],
    "score": [0.5, -0.25, 1.0, 9.0],
    "stderr": [0.1, 0.1, 0.1, 0.1],
}


def test_positions_hold_every_score_at_its_place() -> None:
    fig: Any = plots.positions(POSITIONS)
    assert [list(row) for row in fig.data[0].z] == [[0.5, -0.25], [1.0, None]]
    assert list(fig.layout.xaxis.ticktext) == ["2", "5"] and list(fig.layout.yaxis.ticktext) == ["layer 0", "layer 1"]
    assert "also there: z" in fig.layout.title.text and "stderr 0.1" in fig.data[0].text[0][0]
    one: Any = plots.positions(POSITIONS, component="z")
    assert list(one.layout.yaxis.ticktext) == ["L0 H3"]
    with pytest.raises(InputError, match="no component 'mlp'"):
        plots.positions(POSITIONS, component="mlp")


def test_conditions_have_their_intervals_and_draws_stand_together() -> None:
    data = {
        "condition": ["found", "random", "random", EVIL],
        "k": [2, 2, 2, 2],
        "rate": [0.9, 0.1, 0.2, NAN],
        "ci_low": [0.8, 0.0, 0.1, NAN],
        "ci_high": [1.0, 0.2, 0.3, NAN],
    }
    fig: Any = plots.intervals(data, labels=("condition", "k"), value="rate")
    draws, single = fig.data
    assert (list(draws.x), list(draws.y)) == ([0.1, 0.2], ["random", "random"])  # k is the same everywhere: not said
    assert single.error_x.array == pytest.approx((0.1,)) and single.error_x.arrayminus == pytest.approx((0.1,))
    assert "interval 0.8 to 1" in single.text[0]
    assert "<a href" not in (fig.to_json() or "").replace("\\u003c", "<")
    with pytest.raises(InputError, match="No row has a rate"):
        plots.intervals({**data, "rate": [None] * 4}, labels="condition", value="rate")


def test_paths_without_a_table_of_nodes_have_their_senders() -> None:
    edges = {"sender": ["0.1", "0.2", "1.mlp"], "receiver": ["logits"] * 3, "effect": [0.5, 0.1, -0.7]}
    fig: Any = plots.graph(None, edges, most=2)
    nodes = next(trace for trace in fig.data if trace.name == "nodes")
    assert set(nodes.customdata) == {"0.1", "1.mlp", "logits"}


# ---- files


@pytest.mark.parametrize(("layers", "width"), [(32, 32), (80, 64)])
def test_heads_of_large_models_are_drawn_at_once(
    tmp_path: Path, layers: int, width: int, record_property: Callable[[str, object], None]
) -> None:
    score = np.random.default_rng(0).normal(size=(layers, width))
    heads = table(score, stderr=0.1, ci_low=score - 0.2, ci_high=score + 0.2, n=50, null_mean=0.0, null_p=0.2)
    started = time.perf_counter()
    plots.write(plots.heads(heads), tmp_path / "large.html")
    seconds, size = time.perf_counter() - started, (tmp_path / "large.html").stat().st_size
    record_property("measured", {"seconds": seconds, "bytes": size})
    assert seconds < 15 and size < 8_000_000


def test_a_written_page_offers_no_upload(tmp_path: Path) -> None:
    plots.write(plots.heads(table([[0.1]])), tmp_path / "a.html", theme="dark")
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert json.dumps(files.CONFIG["modeBarButtons"])[1:-1].replace(" ", "") in page.replace(" ", "")
    assert theme.DARK[theme.PAPER] in page


@pytest.mark.skipif(not shutil.which("chromium"), reason="no Chromium here")
def test_pictures_are_made_offline(tmp_path: Path) -> None:
    pytest.importorskip("kaleido", reason="the extra `images` is not installed")
    fig = plots.heads(table([[0.1, 0.9]]))
    plots.write(fig, tmp_path / "a.png", scale=1)
    plots.write(fig, tmp_path / "a.svg", theme="dark")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert "<svg" in svg and "20, 24, 29" in svg and "test · " not in svg.split("<svg")[0]
