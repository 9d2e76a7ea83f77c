"""Tokens are shaded by their weight, text stays text, long prompts are cut where nothing happens."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.plots.test_notebook import SURROUNDINGS, contrast
from workbench import plots
from workbench.errors import InputError
from workbench.export import colours
from workbench.plots import theme
from workbench.plots.tokens import COLUMNS, MOST_OPAQUE, SHADE, examples, shaded

EVIL = "</span><script>alert(1)</script><img src=x onerror='alert(1)'>"


def table(weights: Any, words: list[str], *, says: list[str] | None = None, places: Any = None, **facts: Any) -> Any:
    """Of `weights` `[head, step, key]`."""
    rows = []
    for head, step, key in np.ndindex(*np.shape(weights)):
        row, column = (-1, -1) if places is None else places[key]
        line = {"example": 0, "id": "s0", "layer": 1, "head": head, "step": step, "says": (says or [""])[step]}
        line |= {"key": key, "token": words[key], "row": row, "column": column}
        rows.append({**line, "weight": weights[head][step][key], **facts})
    return pd.DataFrame(rows, columns=list(COLUMNS))


class Reader(HTMLParser):
    """Text, tags and attributes as a browser would find them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words, self.tags, self.styles = "", set(), []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.styles += [value for name, value in attrs if name == "style" and value]

    def handle_data(self, data: str) -> None:
        self.words += data


def opacities(html: str) -> list[int]:
    return [int(found, 16) for found in re.findall(f"background:{SHADE}([0-9a-f]{{2}})", html)]


def test_shades_rise_with_the_weight_and_heads_share_their_scale() -> None:
    html = str(plots.tokens(table([[[0.1, 0.0, 0.9]], [[0.45, 0.45, 0.1]]], ["a", " b", " c"])))
    most = round(255 * MOST_OPAQUE)
    assert opacities(html) == [round(most / 9), most, most // 2, most // 2, round(most / 9)]
    found = Reader(html)
    assert "a b c" in found.words and "L1 H0" in found.words and "strongest token 0.9" in found.words
    assert "at the end of the prompt" in found.words
    assert plots.tokens(table([[[1.0]]], ["a"]))._repr_html_() == str(plots.tokens(table([[[1.0]]], ["a"])))


def test_an_answer_shades_by_its_most_and_shows_each_token_by_itself() -> None:
    found = table([[[0.9, 0.1, 0.0], [0.2, 0.7, 0.1]]], ["x", " y", " x"], says=[" x", " y"])
    html = str(plots.tokens(found))
    whole, steps = html.split("<details>")
    assert [round(o / 255 / MOST_OPAQUE * 0.9, 1) for o in opacities(whole)] == [0.9, 0.7, 0.1]
    assert [round(o / 255 / MOST_OPAQUE * 0.9, 1) for o in opacities(steps)] == [0.9, 0.1, 0.2, 0.7, 0.1]
    assert "answers <q>x y</q>" in html and steps.count("&larr;") == 2


def test_a_long_prompt_is_shown_around_its_heavy_tokens_and_the_rest_is_counted() -> None:
    weight = np.full(5000, 1e-5)
    weight[3000] = 0.9
    html = str(plots.tokens(table([[weight]], [f" w{i}" for i in range(5000)])))
    words = Reader(html).words
    assert "w2992 w2993" in words and "w3008" in words and "w2991" not in words and "w3009" not in words
    assert "[2,992 tokens, 0.03 together]" in words and "[1,991 tokens, 0.02 together]" in words
    assert len(html) < 4000


def test_a_picture_lies_under_its_patches() -> None:
    places = [(-1, -1), (0, 0), (0, 1), (1, 0), (1, 1), (-1, -1)]
    found = table([[[0.1, 0.0, 0.6, 0.15, 0.0, 0.15]]], ["<s>", "", "", "", "", " cat"], places=places)
    picture = np.zeros((4, 4, 3), dtype=np.uint8)
    html = str(plots.tokens(found, pictures={"attention_picture_0": picture, "per_example": np.zeros(3)}))
    assert "75.0% on the image" in html and "strongest patch 0.6" in html and "strongest token 0.15" in html
    patches = re.findall(
        r"<i( style=\"background:#[0-9a-f]{8}\")? title=\"row (\d), column (\d): ([\d.e-]+)\"></i>", html
    )
    assert [(int(r), int(c), float(w)) for _, r, c, w in patches] == [(0, 0, 0), (0, 1, 0.6), (1, 0, 0.15), (1, 1, 0)]
    assert [bool(style) for style, *_ in patches] == [False, True, True, False]
    assert html.count("data:image/png;base64,") == 1 and "[image 0.75]" in html
    without = str(plots.tokens(found))
    assert "data:" not in without and "[image 0.75]" in without


def test_text_of_models_stays_text() -> None:
    html = str(plots.tokens(table([[[0.5, 0.5]]], [EVIL, EVIL], says=[EVIL], id=EVIL)))
    found = Reader(html)
    assert found.tags <= {"div", "p", "b", "q", "span", "details", "summary"}
    assert EVIL in found.words and not any("script" in style for style in found.styles)


@given(st.lists(st.tuples(st.text(max_size=8), st.floats(0, 1)), min_size=1, max_size=30))
def test_every_token_of_a_short_prompt_is_there_in_order(drawn: list[tuple[str, float]]) -> None:
    words = [word for word, _ in drawn]
    html = str(plots.tokens(table([[[weight for _, weight in drawn]]], words)))
    assert "\r" in "".join(words) or "".join(words).replace("\n", "⏎").replace("\t", "⇥") in Reader(html).words


@pytest.mark.parametrize("name", ["light", "dark"])
def test_text_on_the_strongest_shade_can_be_read(name: str) -> None:
    ink = theme.DARK[theme.INK] if name == "dark" else theme.INK
    for page in (*SURROUNDINGS[name], theme.DARK[theme.PAPER] if name == "dark" else theme.PAPER):
        top, under = np.array(colours.rgb(SHADE)), np.array(colours.rgb(page))
        mixed = np.round(MOST_OPAQUE * top + (1 - MOST_OPAQUE) * under).astype(int)
        assert contrast(ink, f"rgb({', '.join(map(str, mixed))})") >= 4.5


def test_undefined_weights_have_no_shade_and_every_kind_of_table_is_read() -> None:
    found = table([[[np.nan, 0.5]]], ["a", "b"])
    assert len(opacities(str(plots.tokens(found)))) == 1
    assert str(plots.tokens(pa.Table.from_pandas(found))) == str(plots.tokens(found))
    assert np.isnan(examples(found)[0].weights[0, 0, 0])
    assert shaded(0.0) == "" and shaded(7.0) == shaded(1.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"key": -1}, "count from 0"),
        ({"row": -2}, "count from 0"),
        ({"step": np.nan}, "lacks its example"),
        ({"weight": "much"}, "no number"),
    ],
)
def test_what_is_no_table_of_attention_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        plots.tokens(table([[[0.5]]], ["a"], **change))


def test_what_is_missing_is_named() -> None:
    found = table([[[0.5]]], ["a"])
    with pytest.raises(InputError, match="no column 'weight'"):
        plots.tokens(found.drop(columns="weight"))
    with pytest.raises(InputError, match="no example 3; attention was kept of 0"):
        plots.tokens(found, example=3)
    on_picture = table([[[0.5]]], [""], places=[(0, 0)])
    with pytest.raises(InputError, match="uint8"):
        plots.tokens(on_picture, pictures={"attention_picture_0": np.zeros((2, 2))})
