"""The page: sections of escaped text, blocks of data for the script, and everything it needs inside it.

The file fetches nothing, and its policy forbids it to: scripts run by their hash, images come from the page itself.
Blocks are let in by priority until the file would exceed its limit; one that is left out says how to see it. It must
never know what an artifact is.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from workbench.report import grids

LIMIT = 9_500_000  # bytes of the whole file
THEMES = ("auto", "light", "dark")


@dataclass
class Block:
    """A table or figure: its place in the page, its data, and what stands there if it does not fit.

    Attributes:
        place: HTML of the place.
        data: the element that the script reads.
        priority: the lower, the sooner it is let in.
        instead: HTML when it is left out.
    """

    place: str
    data: str
    priority: int
    instead: str

    def html(self, fits: bool) -> str:
        return self.place + self.data if fits else f'<p class="left-out">{self.instead}</p>'


Part = str | Block


def page(title: str, parts: Iterable[Part], *, theme: str, contents: Sequence[tuple[str, str]]) -> str:
    """The whole file.

    Args:
        parts: HTML, already escaped, and blocks.
        theme: one of `THEMES`, until the reader chooses another.
        contents: (id, name) of each section.
    """
    from plotly.offline import get_plotlyjs

    from workbench.plots import files
    from workbench.plots import theme as colours

    folder = Path(__file__).parent
    plotly, ours = get_plotlyjs().replace("\r", ""), (folder / "page.js").read_text(encoding="utf-8")
    style = (folder / "page.css").read_text(encoding="utf-8")
    shared = {"template": colours.template().to_plotly_json(), "dark": colours.DARK, "config": files.CONFIG}
    policy = (
        f"default-src 'none'; script-src '{_hash(plotly)}' '{_hash(ours)}'; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    links = "".join(f'<li><a href="#{key}">{escape(name)}</a></li>' for key, name in contents)
    options = "".join(f'<option value="{name}">{name}</option>' for name in THEMES)
    head = (
        f'<!DOCTYPE html>\n<html lang="en" data-theme="{theme}"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{style}</style></head>\n<body>\n'
        f'<header><h1>{escape(title)}</h1><label>theme <select id="theme-choice">{options}</select></label></header>\n'
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n<main>\n'
        "<noscript><p>Tables and figures of this page need JavaScript; nothing is fetched.</p></noscript>\n"
    )
    tail = (
        f"\n</main>\n{grids.data_element('shared', shared)}\n"
        f"<script>{plotly}</script>\n<script>{ours}</script>\n</body></html>\n"
    )
    listed = list(parts)
    left = LIMIT - sum(len(text.encode("utf-8", "replace")) for text in (head, tail))
    return head + "\n".join(_fitted(listed, left)) + tail


def _fitted(parts: list[Part], left: int) -> list[str]:
    """The parts as HTML, blocks in the order of their priority as long as they fit."""
    left -= sum(len(part.encode("utf-8", "replace")) if isinstance(part, str) else len(part.instead) for part in parts)
    blocks = [(part.priority, at) for at, part in enumerate(parts) if isinstance(part, Block)]
    fits: set[int] = set()
    for _, at in sorted(blocks):
        block = parts[at]
        assert isinstance(block, Block)
        size = len(block.html(True).encode("utf-8", "replace"))
        if size <= left:
            fits.add(at)
            left -= size
    return [part if isinstance(part, str) else part.html(at in fits) for at, part in enumerate(parts)]


def facts(values: Mapping[str, Any]) -> str:
    """A definition list; nested mappings as dotted keys, empty values left out."""
    rows = [
        f"<dt>{escape(key)}</dt><dd>{escape(said(value))}</dd>"
        for key, value in _flat(values).items()
        if value not in (None, "", {}, [])
    ]
    return f"<dl>{''.join(rows)}</dl>" if rows else ""


def said(value: Any) -> str:
    """A value in words, numbers to six digits."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(f"({said(item)})" if isinstance(item, (list, tuple)) else said(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {said(item)}" for key, item in value.items())
    return str(value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{key} · ")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
