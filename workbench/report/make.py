"""One HTML file of one or several results: what ran on what, how far it holds, figures, tables, agreement, and how to
run it again. Everything is read from the store; nothing is recomputed and no model is loaded.

    at a glance -> agreement of results of one model -> per result: verdicts, facts, figures, tables, provenance, again
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import InputError, WorkbenchError
from workbench.report import comparison, facts, figures, grids
from workbench.report.page import THEMES, Block, Part, page
from workbench.report.page import facts as listed

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.export.frame import Frame
    from workbench.store import Artifact, Store
    from workbench.tables import HeadTable

# What is let in first when a report of many large results would grow beyond its limit.
_HEADS, _PICTURE, _FIGURE, _TABLE = range(4)
_WORDS = {"good": "ok", "bad": "caution", "note": "note"}


def report(
    *refs: str,
    path: str | Path | None = None,
    store: Store | str | Path | None = None,
    theme: str = "auto",
    rule: str | None = None,
) -> Path:
    """Write the report of one or several artifacts; returns where it is.

    Args:
        refs: `name`, `name@v3`, `name@tag` or a digest prefix.
        path: the file, `.html`; default `NAME-vN-report.html` (`report.html` for several) in the current directory.
        store: default `$WORKBENCH_STORE`, else `./artifacts`.
        theme: "auto" follows the reader's system; "light" or "dark". The page has a switch.
        rule: which heads count when results are compared: "top 10", "q < 0.05", ...

    Raises:
        InputError: no reference, another theme or ending, a rule that does not parse, a file that cannot be written.
        NotFound: no such artifact.
    """
    from workbench.export import files
    from workbench.store import Store

    if theme not in THEMES:
        raise InputError(f"There is no theme {theme!r}; use {', '.join(THEMES)}.")
    if not refs:
        raise InputError("A report needs at least one artifact; `workbench ls` lists them.")
    place = store if isinstance(store, Store) else Store(store)
    artifacts = list({artifact.ref: artifact for artifact in (place[ref] for ref in refs)}.values())
    first = artifacts[0]
    default = f"{first.name.replace('/', '-')}-v{first.version}-report.html" if len(artifacts) == 1 else "report.html"
    target = Path(path if path is not None else default)
    if target.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"A report is a web page; end {str(target)!r} in .html.")
    files.write(target, html(artifacts, place, theme=theme, rule=rule).encode("utf-8", "replace"))
    return target


def html(artifacts: Sequence[Artifact], store: Store, *, theme: str = "auto", rule: str | None = None) -> str:
    """The report as text; the same artifacts give the same text."""
    tables = {art.ref: figures.heads(art) for art in artifacts if "heads.parquet" in art.files()}
    verdicts = {
        art.ref: facts.verdicts(art, tables.get(art.ref), [entry.reason for entry in store.stale(art)])
        for art in artifacts
    }
    parts: list[Part] = ['<section id="glance"><h2>At a glance</h2>']
    for at, art in enumerate(artifacts):
        parts.append(_glance(f"r{at}", art, tables.get(art.ref), verdicts[art.ref]))
    parts.append("</section>")
    contents = [("glance", "At a glance")]
    if len(tables) > 1:
        contents.append(("agreement", "Agreement"))
        parts += _agreement(tables, rule)
    for at, art in enumerate(artifacts):
        contents.append((f"r{at}", art.ref))
        parts += _section(f"r{at}", art, tables.get(art.ref), verdicts[art.ref], store)
    command = ["workbench", "report", *(art.ref for art in artifacts), *_where(store)]
    parts.append(f"<footer>This page: <code>{escape(shlex.join(command))}</code>. It fetches nothing.</footer>")
    title = artifacts[0].ref if len(artifacts) == 1 else f"{len(artifacts)} results"
    return page(title, parts, theme=theme, contents=contents)


def _glance(key: str, art: Artifact, heads: HeadTable | None, verdicts: list[facts.Verdict]) -> str:
    said = facts.ran(art, heads)
    line = " · ".join(str(word) for word in (said["analysis"], said["model"]) if word)
    top = f" · best head {escape(facts.best(heads))}" if heads is not None and heads.ok.any() else ""
    return (
        f'<p><a href="#{key}"><b>{escape(art.ref)}</b></a> · {escape(line)}{top}</p>\n'
        f"{_verdicts([line for line in verdicts if line.kind != 'note'] or verdicts[:1])}"
    )


def _verdicts(lines: Sequence[facts.Verdict]) -> str:
    items = "".join(f'<li class="{v.kind}"><b>{_WORDS[v.kind]}</b> {escape(v.text)}</li>' for v in lines)
    return f'<ul class="verdicts">{items}</ul>' if items else ""


def _agreement(tables: dict[str, HeadTable], rule: str | None) -> list[Part]:
    """Results of one model beside each other; a sentence when there are none."""
    from workbench.export.frame import Frame

    found, notes = comparison.groups(tables, rule)
    parts: list[Part] = ['<section id="agreement"><h2>Agreement</h2>']
    if not found and not notes:
        notes = ["these results are of different models, whose heads have nothing in common but a number"]
    parts += [f'<p class="muted">Not compared: {escape(note)}.</p>' for note in notes]
    for at, group in enumerate(found):
        parts.append(
            f"<h3>{len(group.tables)} results on {escape(group.model or 'one model')}</h3>\n"
            f"<p>Selected heads are those of the rule <code>{escape(group.rule)}</code>. p is the chance of at least "
            "this overlap between random sets of these sizes; p_layer_matched between random sets with as many heads "
            "in every layer.</p>"
        )
        parts += [f'<p class="muted">Note: {escape(note)}.</p>' for note in group.notes]
        columns = {name: [row[name] for row in group.pairs] for name in group.pairs[0]}
        command = shlex.join(["workbench", "compare", *group.tables])
        parts.append(_table(f"g{at}-pairs", "pairs", Frame.of(columns), _HEADS, command))
        drawn = group.figures()
        parts.append('<div class="figures">')
        parts += [_figure(f"g{at}-f{n}", fig, _PICTURE, f"{command}") for n, (_, fig) in enumerate(drawn)]
        parts.append("</div><h3>Heads beside each other</h3>")
        parts.append(_table(f"g{at}-heads", "heads x results", group.frame(), _TABLE, command))
    parts.append("</section>")
    return parts


def _section(
    key: str, art: Artifact, heads: HeadTable | None, verdicts: list[facts.Verdict], store: Store
) -> list[Part]:
    """All about one artifact."""
    where = shlex.join(_where(store))
    where = f" {where}" if where else ""
    parts: list[Part] = [f'<section id="{key}"><h2>{escape(art.ref)}</h2>', _verdicts(verdicts)]
    parts += ["<h3>What ran, on what</h3>", listed(facts.ran(art, heads))]
    drawn, failed = _drawn(art)
    if drawn or failed:
        parts.append('<h3>Figures</h3><div class="figures">')
        for n, (kind, fig) in enumerate(drawn):
            command = f"workbench plot {shlex.quote(art.ref)} --kind {kind}{where}"
            parts.append(_figure(f"{key}-f{n}", fig, _PICTURE if n == 0 else _FIGURE, command))
        parts.append("</div>")
        parts += [f'<p class="muted">Not drawn: {escape(line)}</p>' for line in failed]
    parts += _attention(art, where)
    parts.append("<h3>Tables</h3>")
    if heads is not None:
        parts.append("<details open><summary><b>heads</b></summary>")
        parts.append(_table(f"{key}-heads", "heads", _frame(art, "heads", heads), _HEADS, _export(art, "heads", where)))
        parts.append("</details>")
    names = [name.removesuffix(".parquet") for name in art.files() if name.endswith(".parquet")]
    for n, name in enumerate(sorted(set(names) - {"heads"})):
        frame = _frame(art, name, None)
        shown = " open" if heads is None and n == 0 else ""
        parts.append(f"<details{shown}><summary><b>{escape(name)}</b> ({frame.n_rows} rows)</summary>")
        parts.append(_table(f"{key}-t{n}", name, frame, _TABLE, _export(art, name, where)))
        parts.append("</details>")
    groups: dict[str, Any] = {
        "Summary": art.summary,
        "Parameters": art.part("config", "params"),
        "Provenance": facts.provenance(art),
    }
    for title, values in groups.items():
        if values:
            parts.append(f"<details><summary><b>{title}</b></summary>{listed(values)}</details>")
    return [*parts, _again(art, heads, where), "</section>"]


def _again(art: Artifact, heads: HeadTable | None, where: str) -> str:
    """How to run it again: by `rerun`, or by the recorded command where there is no experiment to rerun."""
    if "analysis" in art.config:
        told = "Recomputes the result from the artifact alone and compares every payload."
        lines = [f"workbench rerun {shlex.quote(art.ref)}{where}"]
    else:
        told = (
            "This artifact is not of an experiment, so `workbench rerun` does not apply; it was made by this command."
        )
        lines = [shlex.join(map(str, art.manifest["producer"].get("argv") or ["(not recorded)"]))]
    if heads is not None:
        lines.append(_export(art, "heads", where))
    return f"<h3>Again</h3><p>{escape(told)}</p><pre>{escape(chr(10).join(lines))}</pre>"


def _drawn(art: Artifact) -> tuple[list[tuple[str, go.Figure]], list[str]]:
    """The figures that the result's tables allow, and a line about each that they do not after all."""
    made, failed = [], []
    for kind in figures.possible(art):
        if not figures.KINDS[kind].shown and not (kind == "upset" and len(figures.members(art, None)) > 1):
            continue
        try:
            made.append((kind, figures.draw(art, kind)))
        except WorkbenchError as error:  # an empty curve, a graph without nodes: said, and the rest still shown
            failed.append(f"{kind}: {error}")
    return made, failed


def _attention(art: Artifact, where: str) -> list[Part]:
    """What the best heads look at, where the result kept it."""
    if not figures.has_attention(art):
        return []
    title = "<h3>What the best heads look at</h3>"
    try:
        drawn = figures.attention_tokens(art)
    except WorkbenchError as error:  # no rows, because no example counted
        return [title, f'<p class="muted">Not drawn: {escape(str(error))}</p>']
    said = "The stronger the shade of a token or a patch, the more attention it gets; hover for the weight."
    command = escape(_export(art, "attention", where))
    instead = f"The attention over tokens would make this file too large: <code>{command}</code> has it."
    return [title, Block(f'<p class="muted">{said}</p>{drawn}', "", _FIGURE, instead)]


def _frame(art: Artifact, name: str, heads: HeadTable | None) -> Frame:
    from workbench.export.frame import Frame
    from workbench.export.withhold import withhold

    return Frame.of(heads) if heads is not None else Frame.of(withhold(art.table(name)))


def _table(key: str, name: str, frame: Frame, priority: int, command: str) -> Block:
    data = grids.table(frame, sort="rank" if frame.heads is not None else "")
    note = (
        f'<p class="muted">Columns without any value: {escape(", ".join(data["empty"]))}.</p>' if data["empty"] else ""
    )
    return Block(
        f'<div data-table="{key}" data-name="{escape(name)}"></div>{note}',
        grids.data_element(key, data),
        priority,
        f"The table {escape(name)} ({frame.n_rows} rows) would make this file too large: "
        f"<code>{escape(command)}</code> has it.",
    )


def _figure(key: str, fig: go.Figure, priority: int, command: str) -> Block:
    data = grids.figure(fig)
    layout: Any = data["layout"]
    title = str((layout.get("title") or {}).get("text") or "figure")
    width, height = int(layout.get("width") or 700), int(layout.get("height") or 450)
    return Block(
        f'<figure><div data-figure="{key}" role="img" aria-label="{escape(title)}" '
        f'style="width:{width}px;height:{height}px"></div></figure>',
        grids.data_element(key, data),
        priority,
        f"The figure “{escape(title)}” would make this file too large: <code>{escape(command)}</code> draws it.",
    )


def _export(art: Artifact, name: str, where: str) -> str:
    table = "" if name == "heads" else f" --table {shlex.quote(name)}"
    return f"workbench export {shlex.quote(art.ref)}{table} -o {shlex.quote(art.name.rsplit('/', 1)[-1])}.csv{where}"


def _where(store: Store) -> list[str]:
    """`--store DIR`, unless it is the one that commands use by default."""
    from workbench.store import Store

    return [] if store.where == Store(None).where else ["--store", store.where]
