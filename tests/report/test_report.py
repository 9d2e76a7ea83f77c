"""What a report says, from the artifacts alone: verdicts, agreement, figures, what is withheld, and what fits."""

from __future__ import annotations

import base64
import json
import math
import re
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import workbench as wb
from tests.report.conftest import EVIL, SECRET, attention, heads, keep
from workbench.errors import InputError, NotFound
from workbench.export.frame import Frame
from workbench.report import comparison, facts, figures, grids
from workbench.report import page as pages
from workbench.report.make import html, report
from workbench.store import Store


def said(store: Store, ref: str) -> list[tuple[str, str]]:
    art = store[ref]
    table = figures.heads(art) if "heads.parquet" in art.files() else None
    return [(line.kind, line.text) for line in facts.verdicts(art, table, [])]


def blocks(page: str) -> dict[str, Any]:
    """The data elements of a page, by id."""
    found = re.findall(r'<script type="application/(\w+)" id="([\w-]+)">(.*?)</script>', page, re.DOTALL)
    unpacked = {"json": str, "deflate": lambda text: zlib.decompress(base64.b64decode(text)).decode()}
    return {key: json.loads(unpacked[kind](text)) for kind, key, text in found}


# ---- what the best heads look at


def test_kept_attention_is_shown_and_a_result_without_it_has_no_such_section(place: Store) -> None:
    page = html([place["seen"]], place)
    section = page[page.index("What the best heads look at") : page.index("<h3>Tables</h3>")]
    assert section.count("</i>") == 8 and section.count("data:image/png;base64,") == 1
    assert "70.0% on the image" in section and "L3 H7" in section and EVIL not in section
    assert "What the best heads look at" not in html([place["good"]], place)


def test_attention_that_was_kept_of_nothing_is_said(tmp_path: Path) -> None:
    store = Store(tmp_path / "s", durable=False)
    keep(store, "none", heads([[1.0]]), {"attention": attention().iloc[:0]})
    assert "Not drawn: The table of attention has no rows" in html([store["none"]], store)


def test_attention_gives_way_where_the_file_would_be_too_large(place: Store, monkeypatch) -> None:
    whole = html([place["seen"]], place)
    monkeypatch.setattr(pages, "LIMIT", len(whole) - 2000)
    page = html([place["seen"]], place)
    assert len(page) < pages.LIMIT and "would make this file too large" in page


# ---- how far a result holds


def test_a_result_that_beats_its_null_says_by_how_many_heads(place: Store) -> None:
    lines = said(place, "good")
    assert ("good", "8 of 32 heads beat their null at q < 0.05") in lines
    assert ("bad", "no better than its null: p is not below 0.05: test 0.3") in lines
    assert ("note", "causal: not run: too short") in lines


def test_a_p_value_that_few_draws_cannot_lower_is_no_finding(place: Store) -> None:
    assert ("note", "random p is not below 0.05: sets 0.091; 10 draws can show no less") in said(place, "good")


def test_a_result_no_better_than_its_null_says_so_at_the_top(place: Store) -> None:
    kind, text = said(place, "noisy")[0]
    assert kind == "bad" and text.startswith("no better than its null: none of 32 heads exceeds its null at q < 0.05")
    page = html([place["good"], place["noisy"]], place)
    glance = page[page.index('id="glance"') : page.index('id="agreement"')]
    assert "no better than its null: none of 32 heads" in glance


def test_statuses_misses_undefined_heads_and_uncommitted_changes_are_said(place: Store) -> None:
    assert ("bad", "missed: x on y") in said(place, "bare")
    lines = said(place, "nasty")
    assert lines[0] == ("bad", f"no better than {EVIL}")
    assert ("note", f"16 of 32 heads have no defined score: {EVIL} (16)") in lines
    assert ("note", "made from a working tree with uncommitted changes") in lines
    assert any("no null was measured" in text for _, text in lines)


def test_inputs_that_moved_on_are_said(tmp_path: Path) -> None:
    store = Store(tmp_path / "s", durable=False)
    keep(store, "base", heads([[1.0, 2.0]]))
    keep(store, "child", heads([[1.0, 2.0]]), inputs=["base"])
    keep(store, "base", heads([[3.0, 4.0]]))
    assert "out of date: base@v2 is newer than base@v1" in html([store["child"]], store)


def test_heads_without_any_score(tmp_path: Path) -> None:
    store = Store(tmp_path / "s", durable=False)
    keep(store, "none", heads([[math.nan, math.nan]]))
    assert ("bad", "none of the 2 heads has a defined score") in said(store, "none")
    assert "best head" not in html([store["none"]], store)


# ---- the page


def test_the_page_says_what_ran_on_what_by_whom_and_how_to_do_it_again(place: Store) -> None:
    page = html([place["good"]], place)
    for words in ("sha256:aa", "toy", "abc123", "Linux x86_64", "4 layers, 8 heads", "workbench rerun good@v1 --store"):
        assert words in page, words
    for term, value in (("seed", "7"), ("score", "effect (logits)"), ("k", "2"), ("packages · numpy", "2.0")):
        assert f"<dt>{term}</dt><dd>{value}</dd>" in page, term


def test_the_same_artifacts_give_the_same_bytes(place: Store) -> None:
    arts = [place["good"], place["turned"]]
    assert html(arts, place) == html(arts, place)


def test_one_plotly_nothing_fetched_and_a_policy_that_forbids_it(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count("plotly.js v") == 1
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)=(?!\"data:,)", text)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)
    assert policy and policy[1].startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy[1] and "http" not in policy[1]
    assert page.stat().st_size < 10_000_000


def test_texts_from_outside_cannot_leave_their_place(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert EVIL not in text and "<img src=x" not in text
    assert len(re.findall(r"<script(?! type=)", text.split("<main>")[1].split("</main>")[0])) == 0
    assert EVIL in blocks(text)["r3-t0"]["columns"][0]["values"]


def test_sensitive_texts_are_withheld(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert SECRET not in text
    response = next(column for column in blocks(text)["r0-t1"]["columns"] if column["name"] == "response")
    assert set(response["values"]) == {"[withheld]"}


def test_a_result_without_heads_has_its_tables(page: Path) -> None:
    assert [column["values"] for column in blocks(page.read_text(encoding="utf-8"))["r4-t0"]["columns"]] == [
        ["pass", "miss"]
    ]


def test_what_is_no_experiment_is_not_said_to_rerun(tmp_path: Path) -> None:
    store = Store(tmp_path / "s", durable=False)
    with store.stage("certificate", config={"x": 1}, producer={"argv": ["workbench", "certify", EVIL]}) as out:
        out.table("verdicts", {"verdict": ["pass"]})
    page = html([store["certificate"]], store)
    assert "workbench rerun certificate" not in page and "workbench certify &#x27;&lt;/script&gt;" in page


def test_figures_are_those_that_plot_makes(place: Store) -> None:
    assert figures.possible(place["good"]) == ["heatmap", "bars", "masking", "upset"]
    assert figures.possible(place["bare"]) == []
    data = blocks(html([place["good"]], place))
    titles = [data[key]["layout"]["title"]["text"] for key in ("r0-f0", "r0-f1", "r0-f2")]
    assert titles == ["test · tiny", "test · tiny · best 20", "good@v1 · with k heads masked"]
    assert "template" not in data["r0-f0"]["layout"]  # once for all, in `shared`
    assert data["shared"]["template"]["layout"]["font"]


def test_what_does_not_fit_says_how_to_see_it(place: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "LIMIT", len(html([place["bare"]], place)) + 12_000)
    page = html([place["good"]], place)
    assert len(page) < pages.LIMIT
    assert {"r0-heads"} <= set(blocks(page))  # the head table is let in first
    assert "would make this file too large" in page
    assert "<code>workbench export good@v1 --table said" in page or "<code>workbench plot good@v1 --kind" in page


def test_several_large_results_fit_one_file(tmp_path: Path) -> None:
    """Three results of 5,120 heads each, compared: everything is in, and the file can still be sent."""
    store, rng = Store(tmp_path / "s", durable=False), np.random.default_rng(0)
    score = rng.normal(0, 1, (80, 64))
    for n in range(3):
        noisy = score + rng.normal(0, 0.5, score.shape)
        facts = {"ci_low": noisy - 0.2, "ci_high": noisy + 0.2, "null_p": rng.uniform(0, 1, score.shape)}
        keep(store, f"large{n}", heads(noisy, n_kv_heads=8, analysis=f"method{n}", **facts))
    started = time.perf_counter()
    path = report(*store.names(), path=tmp_path / "large.html", store=store)
    assert time.perf_counter() - started < 40
    assert path.stat().st_size < 10_000_000
    assert "left-out" not in path.read_text(encoding="utf-8").split("<main>")[1]


def test_a_long_table_is_cut_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grids, "MOST_ROWS", 3)
    made = grids.table(Frame.of({"a": [1, 2, 3, 4], "b": [None] * 4}))
    assert made["rows"] == 4 and made["columns"] == [{"name": "a", "number": True, "values": [1, 2, 3]}]
    assert made["empty"] == ["b"]


@given(st.text(), st.floats())
def test_json_in_a_page_is_the_value_and_never_markup(text: str, number: float) -> None:
    made = grids.script_json(grids.table(Frame.of({text or "c": [text], "n": [number]})))
    assert not set("<>&") & set(made) and made.isascii()
    columns = json.loads(made)["columns"]
    assert columns[0]["values"] == [text]
    if not math.isnan(number):
        back = columns[-1]["values"][0]
        assert back == pytest.approx(number, rel=1e-5) if math.isfinite(number) else back in ("inf", "-inf")


def test_half_a_character_does_not_stop_a_report(tmp_path: Path) -> None:
    store = Store(tmp_path / "s", durable=False)
    keep(store, "odd", heads([[1.0, 2.0]]), summary={"notes": ["caf\u00e9 \U0001f600"]})
    path = report("odd", path=tmp_path / "odd.html", store=store)
    assert "caf\u00e9 \U0001f600" in path.read_text(encoding="utf-8")
    fits = pages.page("a \ud800", ["b \udfff"], theme="auto", contents=[])
    fits.encode("utf-8", "replace")


# ---- agreement


def test_agreement_is_that_of_the_tables(place: Store) -> None:
    tables = {ref: figures.heads(place[ref]) for ref in ("good", "turned", "noisy", "nasty")}
    found, notes = comparison.groups(tables)
    assert [list(group.tables) for group in found] == [["good", "turned", "noisy"]] and notes == []
    group = found[0]
    assert group.rule == "top 6"
    pair = group.pairs[0]
    assert (pair["a"], pair["b"], pair["jaccard"]) == ("good", "turned", 1.0)
    assert pair["spearman"] == pytest.approx(-1.0)
    assert group.notes == ("in turned lower is more, so a negative correlation with the others is agreement",)
    assert [kind for kind, _ in group.figures()] == ["matrix", "matrix", "upset", "overlap", *["scatter"] * 3]
    overlap: Any = next(fig for kind, fig in group.figures() if kind == "overlap")
    lines = {trace.name: trace.y for trace in overlap.data}
    assert set(lines["good and turned"]) == {1.0}
    assert lines["chance"] == pytest.approx(tuple(k / 32 for k in range(1, 33)))
    assert group.frame().n_rows == 32


def test_heads_and_kv_groups_are_compared_as_groups() -> None:
    score = np.arange(8.0).reshape(2, 4)
    tables = {"h": heads(score, n_kv_heads=2), "g": heads(score[:, ::2], n_kv_heads=2, rows="kv_group")}
    (group,), _ = comparison.groups(tables)
    assert {table.row_kind for table in group.tables.values()} == {"kv_group"}
    assert group.pairs[0]["spearman"] == pytest.approx(1.0) and "per kv group" in group.notes[0]


def test_other_models_shapes_and_bases_are_not_compared(place: Store) -> None:
    score = np.arange(8.0).reshape(2, 4)
    found, notes = comparison.groups({"a": heads(score), "b": heads(score, basis="folded"), "c": heads(score[:1])})
    assert found == []
    assert any("different bases (raw, folded)" in note for note in notes)
    assert any("covers another number of layers or heads" in note for note in notes)
    assert "are of different models" in html([place["good"], place["nasty"]], place)


def test_an_unknown_rule_is_one_sentence(place: Store) -> None:
    with pytest.raises(InputError, match="best 3"):
        html([place["good"], place["turned"]], place, rule="best 3")


# ---- the function


def test_wb_report_writes_the_file_and_says_where(
    place: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert wb.report("good", store=place) == Path("good-v1-report.html")
    assert wb.report("good", "turned", store=place.where, theme="dark") == Path("report.html")
    assert 'data-theme="dark"' in Path("report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("refs", "options", "error", "words"),
    [
        ((), {}, InputError, "at least one artifact"),
        (("good",), {"theme": "blue"}, InputError, "theme 'blue'"),
        (("good",), {"path": "x.pdf"}, InputError, "in .html"),
        (("goof",), {}, NotFound, "Did you mean 'good'"),
    ],
)
def test_bad_input_is_one_sentence(
    place: Store, refs: tuple[str, ...], options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=re.escape(words)) as caught:
        report(*refs, store=place, **options)
    assert "\n" not in str(caught.value)


def test_a_report_loads_no_model_library(place: Store, tmp_path: Path) -> None:
    program = (
        "import sys; from workbench.cli import main\n"
        f"out, store = {str(tmp_path / 'r.html')!r}, {place.where!r}\n"
        "assert main(['report', 'good', 'turned', '-o', out, '--store', store]) == 0\n"
        "heavy = [n for n in ('torch', 'transformers', 'transformer_lens', 'sklearn') if n in sys.modules]\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
