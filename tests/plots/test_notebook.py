"""The switch for dark notebooks: what is shown changes, figures and what is written do not; text stays readable."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
import pytest

from tests.report.browser import browser
from workbench import plots
from workbench.errors import InputError
from workbench.export import colours
from workbench.plots import files, notebook, theme
from workbench.tables import HeadTable

# Where notebooks draw: JupyterLab's dark theme, VS Code's, and a white page.
SURROUNDINGS = {"dark": ("#111111", "#1f1f1f"), "light": ("#ffffff",)}
READABLE = 4.5  # WCAG 2.2, 1.4.3: text against what is behind it


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Plotly as it is in a notebook's kernel."""
    before = pio.renderers.default
    pio.renderers.default = "plotly_mimetype"
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    yield
    pio.renderers.default = before


def table() -> HeadTable:
    score = np.array([[0.1, -0.9], [0.5, np.nan]])
    return HeadTable.from_scores(score, n_kv_heads=None, analysis="test", metric="m", null_p=0.01, null_mean=0.0)


def shown(fig: go.Figure) -> dict[str, Any]:
    """What a notebook is given to draw."""
    bundle = pio.renderers[pio.renderers.default].to_mimebundle(fig.to_dict())
    return bundle["application/vnd.plotly.v1+json"]


def test_a_dark_notebook_is_shown_dark_figures_and_the_figures_stay_light(kernel, tmp_path: Path) -> None:
    fig = plots.heads(table())
    before = fig.to_json()
    notebook.notebook_theme("dark")
    notebook.notebook_theme("dark")  # twice is once
    page = shown(fig)["layout"]["template"]["layout"]
    assert page["paper_bgcolor"] == theme.DARK[theme.PAPER]
    assert [stop for _, stop in shown(fig)["data"][0]["colorscale"]] == [theme.DARK[s] for s in colours.DIVERGING]
    assert fig.to_json() == before
    plots.write(fig, tmp_path / "a.html")
    assert theme.DARK[theme.PAPER] not in (tmp_path / "a.html").read_text(encoding="utf-8")
    notebook.notebook_theme("light")
    assert pio.renderers.default == "plotly_mimetype" and shown(fig) == json.loads(before or "")


def test_a_figure_offers_no_upload_in_a_notebook_either(tmp_path: Path) -> None:
    """A notebook draws it with plotly's own buttons; written pages have none of them (test_themes_and_rows)."""
    ready = "<script>document.documentElement.dataset.ready = 'yes'</script>"
    theirs, ours = go.Figure(go.Bar(y=[1])), plots.heads(table())
    shown_by = {}
    with browser() as tab:
        for name, fig in (("theirs", theirs), ("ours", ours)):
            page = tmp_path / f"{name}.html"
            page.write_text(fig.to_html(include_plotlyjs=True) + ready, encoding="utf-8")
            tab.open(page)
            tab.until("document.querySelectorAll('.modebar-btn').length > 3")
            shown_by[name] = " ".join(
                tab.js("[...document.querySelectorAll('.modebar-btn')].map(b => b.dataset.title)")
            )
    assert "Share" in shown_by["theirs"], "what it is about"
    assert "Share" not in shown_by["ours"] and "Zoom" in shown_by["ours"]


def test_figures_of_others_are_shown_as_they_are(kernel) -> None:
    theirs = go.Figure(go.Bar(y=[1], marker={"color": theme.PAPER}), layout={"paper_bgcolor": theme.PAPER})
    before = shown(theirs)
    notebook.notebook_theme("dark")
    assert shown(theirs) == before


def test_the_environment_throws_the_switch_in_a_kernel_only(kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(notebook.VARIABLE, "dark")
    notebook.obey_environment()
    assert shown(plots.heads(table()))["layout"]["template"]["layout"]["paper_bgcolor"] == theme.DARK[theme.PAPER]
    monkeypatch.setenv(notebook.VARIABLE, "drak")
    with pytest.raises(InputError, match=r"\$WORKBENCH_THEME: There is no theme 'drak'; use 'light' or 'dark'"):
        notebook.obey_environment()
    monkeypatch.delitem(sys.modules, "ipykernel")
    notebook.obey_environment()


def test_without_a_notebook_there_is_nothing_to_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    before = pio.renderers.default
    pio.renderers.default = "browser"
    try:
        with pytest.raises(InputError, match="no notebook here that shows figures"):
            notebook.notebook_theme("dark")
    finally:
        pio.renderers.default = before


# ---- contrast, as a browser draws it


def every_kind() -> dict[str, go.Figure]:
    heads = table()
    nodes = {"node": ["0.0", "1.1"], "layer": [0, 1], "role": ["mover", "other"]}
    edges = {"sender": ["0.0", "1.1"], "receiver": ["1.1.q", "logits"], "effect": [0.5, -0.2]}
    pairs = [{"a": "x", "b": "y", "jaccard": 0.4, "p": 0.01}]
    curve = {"k": [0, 1, 0, 1], "group": ["a", "a", "b", "b"], "recall": [1.0, 0.2, 1.0, 0.9]}
    points = {"method": ["m"] * 3, "fpr": [0, 0.5, 1], "tpr": [0, 1, 1]}
    return {
        "heads": plots.heads(heads),
        "bars": plots.bars(heads),
        "curves": plots.curves(curve, y="recall"),
        "attention": plots.attention(np.eye(3), ["a", "b", "c"], heads=[(0, 1)]),
        "matrix": plots.matrix(pairs),
        "upset": plots.upset({"x": [(0, 0), (0, 1)], "y": [(0, 0)]}),
        "graph": plots.graph(nodes, edges),
        "roc": plots.roc(points),
        "scatter": plots.scatter(heads, heads, names=("one", "two")),
    }


# Of every text that lies on the page or on a node: its colour and its figure's page, as the browser computed them. What
# stands on a coloured cell or bar is coloured by plotly to suit.
_TEXTS = """[...document.querySelectorAll('.main-svg text')]
  .filter((t) => t.textContent && !t.closest('.heatmap-label, .bars, .hm'))
  .map((t) => [t.textContent, getComputedStyle(t).fill,
    getComputedStyle(t.closest('.svg-container').querySelector('.main-svg')).backgroundColor])"""


def light(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)` or `#rrggbb` (WCAG)."""
    channels = colours.rgb(colour) if colour.startswith("#") else [int(c) for c in colour[4:-1].split(",")]
    linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((light(a), light(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("name", ["light", "dark"])
def test_every_text_of_every_figure_can_be_read(name: str, tmp_path: Path, record_property) -> None:
    figs = [theme.themed(fig, name) for fig in every_kind().values()]
    drawn = [files.html(fig, full_page=False, plotly_js=at == 0) for at, fig in enumerate(figs)]
    page = tmp_path / "figures.html"
    ready = "<script>document.documentElement.dataset.ready = 'yes'</script>"
    body = f'<body style="background:{escape(SURROUNDINGS[name][0])}">{"".join(drawn)}{ready}</body>'
    page.write_text(f'<!DOCTYPE html><meta charset="utf-8">{body}', encoding="utf-8")
    with browser() as tab:
        tab.open(page)
        tab.until("document.querySelectorAll('.main-svg').length >= 9")
        texts = tab.js(_TEXTS)
    assert len(texts) > 60
    least = min(contrast(fill, paper) for _, fill, paper in texts)
    record_property("measured", {"texts": len(texts), "least_contrast": round(least, 2)})
    assert least >= READABLE, [(text, fill) for text, fill, paper in texts if contrast(fill, paper) < READABLE]


@pytest.mark.parametrize("name", ["light", "dark"])
def test_nodes_are_labelled_readably_and_a_figure_s_page_is_not_far_from_the_notebook_s(name: str) -> None:
    def of(colour: str) -> str:
        return theme.DARK[colour] if name == "dark" else colour

    assert contrast(of(theme.INK), of(theme.NODE)) >= READABLE
    for around in SURROUNDINGS[name]:
        assert contrast(of(theme.PAPER), around) < 1.2
