"""The report in a real browser: silent, sealed off, sortable, filterable, reachable by keyboard, dark, and quick."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.report.browser import Tab
from tests.report.conftest import EVIL, heads, keep
from workbench.plots import theme
from workbench.report.make import report
from workbench.store import Store

HEADS = "document.querySelector('[data-table=r0-heads]')"


def column(tab: Tab, table: str, at: int) -> list[str]:
    """The shown cells of a column, counted from 0."""
    return tab.js(f"[...{table}.querySelectorAll('tbody tr')].map(r => r.cells[{at}].textContent)")


def headings(tab: Tab, table: str) -> list[str]:
    return tab.js(f"[...{table}.querySelectorAll('th')].map(th => th.textContent)")


def click(tab: Tab, table: str, name: str) -> None:
    tab.js(f"[...{table}.querySelectorAll('th button')].find(b => b.textContent === {name!r}).click()")


def draw_everything(tab: Tab) -> None:
    tab.js("window.dispatchEvent(new Event('beforeprint'))")
    tab.until("[...document.querySelectorAll('[data-figure]')].every(n => n.querySelector('.main-svg'))", 60)


def test_the_page_is_silent_and_asks_for_nothing(tab: Tab, page: Path) -> None:
    tab.open(page)
    draw_everything(tab)
    tab.js("document.querySelectorAll('details').forEach(d => d.open = true)")
    tab.until("[...document.querySelectorAll('[data-table]')].every(n => n.querySelector('tbody'))")
    assert tab.errors == []
    assert [url for url in tab.requests if not url.startswith("data:")] == [page.resolve().as_uri()]
    assert tab.js("document.querySelectorAll('[data-figure]').length") > 10


def test_text_of_models_and_prompts_stays_text(tab: Tab, page: Path) -> None:
    tab.open(page)
    draw_everything(tab)
    tab.js("document.querySelectorAll('details').forEach(d => d.open = true)")
    tab.until("document.querySelectorAll('td').length > 100")
    assert tab.js("window.evil") is None
    assert tab.js("document.querySelectorAll('main img, main script:not([type])').length") == 0
    cells = tab.js("[...document.querySelectorAll('td')].map(td => td.textContent)")
    assert EVIL in cells and "#ffffff" in cells


def test_attention_lies_on_tokens_and_on_the_picture_in_both_themes(tab: Tab, page: Path) -> None:
    tab.open(page)
    patches = "document.querySelectorAll('main [role=img] > i')"
    assert tab.js(f"{patches}.length") == 8
    under = tab.js(f"getComputedStyle({patches}[0].parentNode).backgroundImage")
    assert under.startswith('url("data:image/png;base64,')
    heavy = tab.js(f"getComputedStyle({patches}[1]).backgroundColor")
    assert heavy.startswith("rgba(213, 94, 0, 0.698") and tab.js(f"{patches}[1].getBoundingClientRect().width") == 100
    ink = "getComputedStyle([...document.querySelectorAll('main span[title]')].at(-1)).color"
    seen = set()
    for name in ("light", "dark"):
        tab.js(f"document.documentElement.dataset.theme = {name!r}")
        seen.add(tab.js(ink))
    assert len(seen) == 2, "the text is the page's"
    assert tab.errors == []


def test_the_policy_forbids_the_network_and_foreign_scripts(tab: Tab, page: Path) -> None:
    tab.open(page)
    assert tab.js("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')") == "refused"
    tab.js("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.evil = 2'}))")
    assert tab.js("window.evil") is None
    assert any("Content Security Policy" in line for line in tab.errors)
    tab.errors.clear()


def test_tables_sort_by_click_undefined_last(tab: Tab, page: Path) -> None:
    tab.open(page)
    at = headings(tab, HEADS).index("score")
    assert column(tab, HEADS, headings(tab, HEADS).index("rank"))[:3] == ["1", "2", "3"]  # as ranked, to begin with
    click(tab, HEADS, "score")
    rising = [float(cell) for cell in column(tab, HEADS, at)]
    assert rising == sorted(rising) and len(rising) == 20
    assert tab.js(f"{HEADS}.querySelector('th[aria-sort=ascending]').textContent") == "score"
    click(tab, HEADS, "score")
    falling = [float(cell) for cell in column(tab, HEADS, at)]
    assert falling[0] == 1.0 and falling == sorted(falling, reverse=True)
    half = "document.querySelector('[data-table=r3-heads]')"
    tab.js(f"const s = {half}.querySelector('select'); s.value = '100'; s.dispatchEvent(new Event('change'))")
    for _ in range(2):
        click(tab, half, "score")
        assert column(tab, half, headings(tab, half).index("score"))[-16:] == ["–"] * 16


def test_tables_sort_and_page_by_keyboard_alone(tab: Tab, page: Path) -> None:
    tab.open(page)
    tab.js(f"{HEADS}.querySelector('input').focus()")
    for _ in range(20):  # filter -> rows per page -> next -> the table -> its headings
        tab.press("Tab", 9)
        if tab.js("document.activeElement.textContent") == "score":
            break
    assert tab.js("document.activeElement.closest('th') !== null")
    tab.press("Enter", 13, "\r")
    assert tab.js("document.activeElement.closest('th').getAttribute('aria-sort')") == "ascending"
    at = headings(tab, HEADS).index("score")
    first = column(tab, HEADS, at)
    tab.press("Enter", 13, "\r")
    assert tab.js("document.activeElement.closest('th').getAttribute('aria-sort')") == "descending"
    assert column(tab, HEADS, at) != first
    tab.js(f"[...{HEADS}.querySelectorAll('button')].find(b => b.textContent.startsWith('next')).focus()")
    tab.press("Enter", 13, "\r")
    assert tab.js(f"{HEADS}.querySelector('[role=status]').textContent") == "21–32 of 32"


@pytest.mark.parametrize(
    ("typed", "rows"),
    [
        ("layer=3", 8),
        ("score>0.5 layer=3", 8),
        ("layer>=2 head<1", 2),
        ("ok", 32),
        ("nothing-such", 0),
        ("head!=0", 28),
    ],
)
def test_the_filter_takes_words_and_conditions(tab: Tab, page: Path, typed: str, rows: int) -> None:
    tab.open(page)
    tab.js(f"const i = {HEADS}.querySelector('input'); i.value = {typed!r}; i.dispatchEvent(new Event('input'))")
    status = tab.js(f"{HEADS}.querySelector('[role=status]').textContent")
    assert status.startswith("no rows" if not rows else f"1–{min(rows, 20)} of {rows}"), status


def test_a_filter_that_means_nothing_says_so(tab: Tab, page: Path) -> None:
    tab.open(page)
    for typed, words in (("scoer>1", "no column “scoer”"), ("score>high", "“high” is no number")):
        tab.js(f"var i = {HEADS}.querySelector('input'); i.value = {typed!r}; i.dispatchEvent(new Event('input'))")
        assert words in tab.js(f"{HEADS}.querySelector('[role=status]').textContent")


def test_the_dark_page_has_dark_figures(tab: Tab, page: Path) -> None:
    tab.open(page)
    tab.until("document.querySelector('[data-figure] .main-svg') !== null")

    def choose(name: str) -> tuple[str, str]:
        tab.js(
            f"var c = document.getElementById('theme-choice'); c.value = '{name}'; c.dispatchEvent(new Event('change'))"
        )
        background = "getComputedStyle(document.body).backgroundColor"
        figure = "document.querySelector('[data-figure] .main-svg').style.background"
        tab.until(f"{figure} === {background}")
        return tab.js(background), tab.js("document.querySelector('[data-figure]')._fullLayout.font.color")

    assert choose("dark") == ("rgb(20, 24, 29)", theme.DARK[theme.INK])
    assert choose("light") == ("rgb(255, 255, 255)", theme.INK)
    tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert choose("auto") == ("rgb(20, 24, 29)", theme.DARK[theme.INK])
    tab.call("Emulation.setEmulatedMedia", features=[])


def test_the_script_darkens_as_python_does(tab: Tab, page: Path) -> None:
    """One rule in two languages: the same figure must come out of both."""
    from workbench import plots

    tab.open(page)
    draw_everything(tab)
    tab.js("var c = document.getElementById('theme-choice'); c.value = 'dark'; c.dispatchEvent(new Event('change'))")
    score = np.linspace(-1, 1, 32).reshape(4, 8)
    ours: Any = theme.themed(plots.heads(heads(score, null_p=0.001)), "dark")
    tab.until("document.querySelector('[data-figure=r0-f0]').data[0].colorscale[0][1] !== '#053061'")
    theirs = tab.js(
        "document.querySelector('[data-figure=r0-f0]').data.map(t => [t.colorscale, t.marker && t.marker.color])"
    )
    assert theirs[0][0] == [list(stop) for stop in ours.data[0].colorscale]
    assert theirs[1][1] == ours.data[1].marker.color == theme.DARK[theme.INK]


@pytest.mark.parametrize(("layers", "width"), [(32, 32), (80, 64)])
def test_large_models_are_drawn_and_reported_without_lag(
    tab: Tab, tmp_path: Path, layers: int, width: int, record_property: Callable[[str, object], None]
) -> None:
    """A table of 7B size (1,024 heads) and one of 70B size (5,120): seconds and bytes, with room for a busy machine."""
    rng = np.random.default_rng(0)
    score = rng.normal(0, 1, (layers, width))
    facts = {"stderr": 0.1, "ci_low": score - 0.2, "ci_high": score + 0.2, "n": 50, "null_mean": 0.0}
    store = Store(tmp_path / "store", durable=False)
    keep(store, "large", heads(score, null_p=rng.uniform(0, 1, score.shape), n_kv_heads=8, **facts))
    started = time.perf_counter()
    path = report("large", path=tmp_path / "large.html", store=store)
    written = time.perf_counter() - started
    tab.open(path)
    took = tab.js("performance.now()") / 1000
    tab.until("document.querySelector('[data-figure=r0-f0] .main-svg') !== null")
    assert tab.js(f"{HEADS}.querySelector('[role=status]').textContent") == f"1–20 of {layers * width}"
    drawing = tab.js(
        "(async () => { const n = document.querySelector('[data-figure=r0-f0]'), t = performance.now(); "
        "await Plotly.newPlot(n, n.data, n.layout); return performance.now() - t; })()"
    )
    sorting = tab.js(
        "(() => { const t = performance.now(); "
        f"{HEADS}.querySelectorAll('th button')[3].click(); return performance.now() - t; }})()"
    )
    typing = tab.js(
        f"(() => {{ const i = {HEADS}.querySelector('input'); i.value = 'score>1'; const t = performance.now(); "
        "i.dispatchEvent(new Event('input')); return performance.now() - t; })()"
    )
    figures = {"written s": written, "open s": took, "draw ms": drawing, "sort ms": sorting, "filter ms": typing}
    record_property("measured", {**figures, "bytes": path.stat().st_size})
    assert tab.errors == []
    assert path.stat().st_size < 10_000_000
    assert written < 20 and took < 20 and drawing < 5000 and sorting < 1000 and typing < 1000
