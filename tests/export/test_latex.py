"""LaTeX tables: what is in them is escaped, they compile, and a long one runs over pages."""

from __future__ import annotations

import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench import export
from workbench.errors import InputError
from workbench.export import latex
from workbench.export.shown import _latex_cell
from workbench.tables import HeadTable

NAN = math.nan
EVIL = "<img src=x>&\"'|*_${}%#~^\\[`\n--''?`!`,, fi α→∞ Ġ 中 \u200b é ß"
needs_latex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")


def compiled(folder: Path, *tables: str) -> str:
    """The log of a document that holds these tables; fails on any error of LaTeX."""
    body = "\n\n".join(tables)
    packages = r"\usepackage{booktabs,siunitx,longtable}"
    document = rf"\documentclass{{article}}{packages}\begin{{document}}{body}\end{{document}}"
    (folder / "t.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "t.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=100, check=False)
    log = done.stdout.decode(errors="replace")
    assert done.returncode == 0, log[-2000:]
    assert "Missing character" not in log
    return log


def wild() -> HeadTable:
    scores = [[-0.5, NAN, math.inf, 1e-9, 123456.789, -math.inf]]
    texts = [[EVIL, "[x", "*y", "-", "", "\\"]]
    return HeadTable.from_scores(
        scores, n_kv_heads=3, extra={"a_b": texts, "50% & more": [[1, 2, 3, 4, 5, 6]]}, model=EVIL
    )


def test_a_short_table_is_booktabs_with_every_special_character_escaped():
    table = wild()
    text = table.to_latex() or ""
    assert [rule in text for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [True] * 3
    first, second, third, *rest = text.splitlines()
    assert first.startswith("%") and second.startswith("% columns: [") and third.startswith(r"\begin{tabular}")
    assert r"a\_b" in text and r"{$\infty$}" in text and "{--}" in text and "{[}x" in text and "{*}y" in text
    for row in rest[:-1]:
        assert row.count("&") - row.count(r"\&") in (0, len(table.columns) - 1)


@settings(max_examples=300, deadline=None)
@given(st.text(st.one_of(st.characters(), st.sampled_from("\\{}$&#%_^~<>\"`|[]*-',αĠ")), max_size=30))
def test_text_has_no_live_special_character_and_comes_back(text):
    escaped = latex.escape(text)
    bare = escaped
    for safe in sorted({*latex.SPECIAL.values(), "{}"}, key=len, reverse=True):
        bare = bare.replace(safe, "")
    assert not set(bare) & set('\\{}$&#%_^~\n\r\t"`<>|')
    assert not any(pair in escaped for pair in ("--", "''", ",,", "<<", ">>"))
    printable = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    lacking = {char for char in printable if "U+" in latex._escape_char(char)}
    if not lacking and printable not in ("–",):
        assert _latex_cell(escaped) == printable


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(), min_size=1, max_size=8), st.sampled_from([1, 4, 17, None]))
def test_every_number_cell_is_a_number_for_siunitx_or_braced(values, digits):
    text = str(export.write({"x": np.array(values)}, None, "latex", digits=digits))
    cells = [line.removesuffix(r" \\") for line in text.splitlines()[6:-2]]
    assert len(cells) == len(values)
    for cell, value in zip(cells, values, strict=True):
        if math.isfinite(value):
            assert set(cell) <= set("-+.e0123456789") and float(cell) == float(f"{value:.{digits or 17}g}")
        else:
            assert cell.startswith("{") and cell.endswith("}")


def test_caption_and_label_make_a_float_and_a_long_table_runs_over_pages():
    short = str(export.write({"x": [1.0]}, None, "latex", caption="100% of it", label="tab:x"))
    assert short.index(r"\begin{table}") < short.index(r"\caption{100\% of it}") < short.index(r"\label{tab:x}")
    long = str(export.write({"x": list(range(60))}, None, "latex", caption="all"))
    assert r"\begin{longtable}" in long and r"\endhead" in long and "longtable}" in long.splitlines()[0]
    for label in ("tab x", "x}"):
        with pytest.raises(InputError, match=label):
            export.write({"x": [1.0]}, None, "latex", label=label)
    with pytest.raises(InputError, match="csv has no place"):
        export.write({"x": [1.0]}, None, "csv", caption="y")


@needs_latex
def test_what_is_written_compiles(tmp_path):
    table = wild()
    grid = np.random.default_rng(0).normal(size=(32, 32))
    big = HeadTable.from_scores(grid, n_kv_heads=8, fingerprint="sha256:1", model="m")
    small = HeadTable.from_scores(grid[:2, :3], n_kv_heads=1, fingerprint="sha256:1", model="m")
    wide = export.join({"a_b/c": small, "-- & d": small}, ranks=True)
    some = ["layer", "head", "score", "rank", "status"]
    log = compiled(
        tmp_path,
        str(table.to_latex()),
        str(export.write(table, None, "latex", digits=None, caption=EVIL, label="tab:1")),
        str(export.write(wide, None, "latex", caption="joined")),
        str(export.write(big, None, "latex", columns=some, caption="all heads", label="tab:2")),
        str(export.write(big, None, "latex", columns=some[:3], label="tab:3")),
        str(export.write({"x": [None, None], "y": ["", "a"]}, None, "latex")),
    )
    assert "Output written on t.pdf" in log


@needs_latex
def test_every_character_that_is_left_as_it_is_compiles(tmp_path):
    everything = [
        chr(code) for code in [*range(0x20, 0x180), *range(0x370, 0x400), *range(0x2010, 0x2040), 0x20AC, 0x4E2D]
    ]
    everything += list("→←≤≥≠≈∞™‰")
    text = str(export.write({"c": everything}, None, "latex"))
    compiled(tmp_path, text)
