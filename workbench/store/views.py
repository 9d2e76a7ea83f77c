"""What a notebook shows of an artifact and of a store: plain HTML without script, in the colours of the page around it.

Colours are inherited, so that the views are readable on a light and on a dark page. How a payload looks is none of the
store's business: rooms that know put a function into `PAYLOADS`, by the payload's file name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from workbench.errors import InputError, StoreError

if TYPE_CHECKING:
    from workbench.store.artifact import Artifact
    from workbench.store.store import Store

PAYLOADS: dict[str, Callable[[Artifact], str]] = {}

_TABLE = '<table style="border-collapse:collapse;color:inherit;background:transparent">'
_CELL = "text-align:left;vertical-align:top;padding:.1em .8em .1em 0;overflow-wrap:anywhere"
_MOST = 24  # lines of a summary; the rest is a `.summary` away


def artifact(shown: Artifact) -> str:
    """What was run on what, the summary, the payloads that know how to be shown, and the names of all."""
    about = f"{escape(shown.created[:16].replace('T', ' '))}, {escape(shown.digest[:19] or shown.kind)}"
    head = f"<p><b>{escape(shown.ref)}</b>: {escape(_what(shown))}; {about}</p>"
    if shown.removed:
        why = escape(f"{shown.removed['at'][:16]}: {shown.removed['why']}")
        return f'<div style="color:inherit">{head}<p>Removed at {why}</p></div>'
    facts = list(_flat(shown.summary))
    rows = "".join(_row((name, _said(value)), "td") for name, value in facts[:_MOST])
    more = f"<p>... and {len(facts) - _MOST} more in <code>.summary</code></p>" if len(facts) > _MOST else ""
    summary = f"<details{' open' if len(facts) <= _MOST // 2 else ''}><summary>summary</summary>{_TABLE}{rows}</table>"
    parts = [f"{summary}{more}</details>"] if facts else []
    parts += [_payload(shown, name) for name in sorted(shown.files()) if name in PAYLOADS]
    files = ", ".join(f"<code>{escape(name)}</code>" for name in sorted(shown.files()))
    return f'<div style="color:inherit">{head}{"".join(parts)}<p>Files: {files or "none"}</p></div>'


def store(shown: Store) -> str:
    """The latest artifact of every name, a row each."""
    found = shown.ls()
    where = escape(shown.where if "://" in shown.where else os.path.normpath(shown.where))
    if not found:
        return f"<p>No artifacts in {where}; <code>workbench run SPEC</code> makes one.</p>"
    heads = _row(("name", "latest", "analysis", "model", "made"), "th")
    body = "".join(
        _row((a.name, f"v{a.version}", *_analysis_and_model(a), a.created[:16].replace("T", " ")), "td") for a in found
    )
    plural = "artifact" if len(found) == 1 else "artifacts"
    return (
        f'<div style="color:inherit;overflow-x:auto"><p><b>{len(found)} {plural}</b> in {where}</p>'
        f"{_TABLE}<thead>{heads}</thead><tbody>{body}</tbody></table></div>"
    )


def _payload(shown: Artifact, name: str) -> str:
    """Its view; of a payload that is damaged, or is not what its name says, the reason why there is none."""
    try:
        return PAYLOADS[name](shown)
    except (StoreError, InputError) as error:
        return f"<p>{escape(str(error))}</p>"


def _what(shown: Artifact) -> str:
    return " of ".join(word for word in _analysis_and_model(shown) if word) or shown.kind


def _analysis_and_model(shown: Artifact) -> tuple[str, str]:
    config = shown.config if isinstance(shown.config, Mapping) else {}
    model = config.get("model")
    name = model.get("path") if isinstance(model, Mapping) else model
    return str(config.get("analysis") or ""), str(name or "")


def _row(cells: Iterable[Any], tag: str) -> str:
    return "<tr>" + "".join(f'<{tag} style="{_CELL}">{escape(str(cell))}</{tag}>' for cell in cells) + "</tr>"


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested summaries as lines, `causal.recall`: value."""
    for name, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from _flat(item, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", item


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "undefined"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_said, value)) if not any(isinstance(i, (list, tuple)) for i in value) else str(value)
    return str(value)
