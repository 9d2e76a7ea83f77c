"""What tables, results, artifacts and stores show of themselves in a notebook: plain HTML in the page's own colours."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

import workbench as wb
import workbench.experiments  # what `wb.run` and `wb.store()` import, and what teaches artifacts to show their heads
from workbench.analyses import Params, Result
from workbench.store import Store

EVIL = "<script>alert(1)</script>"
VOID = {"br", "col", "hr", "img", "meta", "input", "link"}


class Balance(HTMLParser):
    """Every tag that opens closes, in order; counts tags."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: dict[str, int] = {}

    def handle_starttag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()


def checked(page: str) -> dict[str, int]:
    """Counts of the tags of a view that is whole, quiet and takes its colours from the page around it."""
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    assert "<script" not in page and "javascript:" not in page and not re.search(r"\son\w+=", page)
    assert not re.search(r"(?<!xmlns=\")https?://|url\(|@import", page), "nothing is fetched"
    outside = re.sub(r"<td title=[^>]*>", "", page)  # the cells have the colours of their values
    assert not re.search(r"(background|color|fill)\s*[:=]\s*\"?(#|rgb|white|black)", outside)
    return balance.count


def table(scores, **options) -> wb.HeadTable:
    facts = {"analysis": "a", "metric": "m", "model": "x", **options}
    return wb.HeadTable.from_scores(np.asarray(scores, dtype=float), n_kv_heads=None, **facts)


def result(heads: wb.HeadTable) -> Result:
    return Result("a", heads, Params(), {"name": "x"}, {})


def rows_of(page: str) -> list[list[str]]:
    body = page[page.index("<tbody>") : page.index("</tbody>")]
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", body)]


def test_a_table_shows_its_best_heads_first_and_a_cell_per_head():
    page = table([[0.1, 0.9], [0.5, -0.2]])._repr_html_()
    count = checked(page)
    assert [row[:3] for row in rows_of(page)] == [
        ["0", "1", "0.9"],
        ["1", "0", "0.5"],
        ["0", "0", "0.1"],
        ["1", "1", "-0.2"],
    ]
    assert "svg" not in count and page.count('<td title="L') == 4
    assert 'title="L1 H1: -0.2" style="padding:0;border:0;outline:1px solid #8883;background-color:#' in page


def test_where_less_is_more_the_lowest_score_is_on_top():
    page = table([[0.1, 0.9], [0.5, -0.2]], higher_is_more=False)._repr_html_()
    assert [row[2] for row in rows_of(page)] == ["-0.2", "0.1", "0.5", "0.9"]


def test_columns_that_say_nothing_are_left_out_of_the_view():
    page = table([[0.1, 0.9]], stderr=[[0.01, np.nan]])._repr_html_()
    assert re.findall(r"<th(?: [^>]*)?>(.*?)</th>", page) == ["layer", "head", "score", "stderr"]


def test_undefined_heads_are_struck_through_and_heads_without_a_row_are_empty():
    whole = table([[0.1, np.nan], [0.5, 0.2]], status=[["ok", "never ran"], ["ok", "ok"]])
    assert whole._repr_html_().count("gradient") == 1 and 'title="L0 H1: never ran"' in whole._repr_html_()
    best = whole.top(1)._repr_html_()
    checked(best)
    assert best.count("gradient") == 0 and best.count('<td title="L') == 1


@pytest.mark.parametrize("shape", [(1, 1), (3, 8), (32, 32), (80, 64)])
def test_every_line_of_the_grid_has_a_cell_per_head_and_numbers_over_all_of_them(shape):
    page = table(np.arange(np.prod(shape)).reshape(shape) - 1.5, unit="nats")._repr_html_()
    checked(page)
    grid = page[page.index("<colgroup>") : page.index("</table>")]
    top, *lines = re.findall(r"<tr[^>]*>(.*?)</tr>", grid)
    assert grid.count("<col ") == 1 + shape[1] and len(lines) == shape[0]
    assert all(line.count("<td") == 1 + shape[1] for line in lines)
    assert sum(int(span) for span in re.findall(r'colspan="(\d+)"', top)) == shape[1]
    width = int(re.search(r"width:(\d+)px;table-layout:fixed", page)[1])
    assert width <= 600, "it stands beside the table"
    assert len(page) < 1_000_000


def test_a_result_shows_its_heads():
    heads = table([[0.1, 0.9]])
    assert result(heads)._repr_html_() == heads._repr_html_()


def test_an_artifact_shows_what_ran_its_summary_and_its_heads(tmp_path):
    store = Store(tmp_path, durable=False)
    config = {"analysis": "ships", "model": {"path": "organism:refusal"}}
    summary = {"n": 3, "causal": {"recall": 0.123456, "ok": True}, "none": None, "heads": [1, 2]}
    heads = table([[0.1, 0.9]])
    with store.stage("ships/mine", config=config, summary=summary) as stage:
        stage.table("heads", heads.to_arrow())
        stage.json("notes", {})
    page = store["ships/mine"]._repr_html_()
    checked(page)
    assert "ships/mine@v1" in page and "ships of organism:refusal" in page
    assert "causal.recall" in page and "0.1235" in page and ">yes<" in page and "undefined" in page and "1, 2" in page
    assert heads._repr_html_() in page
    assert "heads.parquet" in page and "notes.json" in page


def test_a_damaged_table_of_heads_leaves_the_rest_of_the_view(tmp_path):
    store = Store(tmp_path, durable=False)
    with store.stage("mine", config={}) as stage:
        stage.table("heads", {"layer": [0], "head": [0], "score": [1.0]})
    artifact = store["mine"]
    artifact.path("heads.parquet").chmod(0o644)
    artifact.path("heads.parquet").write_bytes(b"no table")
    page = artifact._repr_html_()
    checked(page)
    assert "mine@v1" in page and "is not what was committed" in page


def test_a_table_named_heads_of_another_kind_is_named_and_not_shown(tmp_path):
    store = Store(tmp_path, durable=False)
    with store.stage("mine", config={}) as stage:
        stage.table("heads", {"of": ["state"]})
    page = store["mine"]._repr_html_()
    checked(page)
    assert "mine@v1" in page and "heads.parquet" in page


def test_every_text_is_escaped(tmp_path):
    store = Store(tmp_path, durable=False)
    with store.stage("mine", config={"analysis": EVIL, "model": EVIL}, summary={EVIL: EVIL}) as stage:
        stage.table("heads", table([[0.1]], model=EVIL, metric=EVIL).to_arrow())
    for page in (store["mine"]._repr_html_(), store._repr_html_()):
        checked(page)
        assert "&lt;script&gt;" in page


def test_a_store_lists_its_artifacts_and_an_empty_one_says_how_to_fill_it(tmp_path):
    store = wb.store(tmp_path)
    assert "workbench run" in store._repr_html_()
    store.put(result(table([[0.1, 0.9]])), "b/second")
    store.put(result(table([[0.1, 0.9]])), "a/first")
    page = store._repr_html_()
    checked(page)
    assert [row[:4] for row in rows_of(page)] == [["a/first", "v1", "a", "x"], ["b/second", "v1", "a", "x"]]
    assert "2 artifacts" in page


def test_who_only_runs_an_experiment_has_the_view_too():
    code = "import workbench as wb; wb.run; from workbench.store.views import PAYLOADS; print(*PAYLOADS)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["heads.parquet"]
