"""What an artifact says of itself, as lines for a reader: how far the result holds, what ran on what, and who made it.

The verdicts come first and are taken from the stored numbers alone: heads against their null, whatever the analysis
itself put as a status, p-values in the summary that chance would reach, inputs that have moved on. It must never know
an analysis by name, and never compute a score.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from workbench.store import Artifact
    from workbench.tables import HeadTable

ALPHA = 0.05
_DONE = ("ok", "run")
_FEW = 6  # how many lines of one kind are said; the rest is counted


@dataclass(frozen=True)
class Verdict:
    """One line on how far a result holds: `kind` is "good", "note" or "bad"."""

    kind: str
    text: str


def verdicts(artifact: Artifact, heads: HeadTable | None, stale: Sequence[str]) -> list[Verdict]:
    """What a reader must know before the numbers, the worst first."""
    found = [] if heads is None else _of_heads(heads)
    found += _few(list(_of_summary(artifact.summary)))
    found += _of_p_values(artifact.summary)
    found += [Verdict("bad", f"out of date: {reason}") for reason in stale]
    if artifact.manifest["producer"].get("dirty"):
        found.append(Verdict("note", "made from a working tree with uncommitted changes"))
    order = ("bad", "good", "note")
    return sorted(found, key=lambda line: order.index(line.kind))


def _of_heads(heads: HeadTable) -> list[Verdict]:
    from workbench.plots.heatmap import significance

    ok = int(heads.ok.sum())
    found: list[Verdict] = []
    word = "kv groups" if heads.row_kind == "kv_group" else "heads"
    if not ok:
        found.append(Verdict("bad", f"none of the {len(heads)} {word} has a defined score"))
    q = significance(heads)
    tested = np.zeros(len(heads), dtype=bool) if q is None else heads.ok & ~np.isnan(q)
    if ok and not tested.any():
        found.append(Verdict("note", f"no null was measured, so nothing says which {word} exceed chance"))
    elif ok and q is not None:
        beats = int((q[tested] < ALPHA).sum())
        if beats:
            found.append(Verdict("good", f"{beats} of {int(tested.sum())} {word} beat their null at q < {ALPHA:g}"))
        else:
            least = int(np.flatnonzero(tested)[np.argmin(q[tested])])
            where = head_name(heads, least)
            found.append(
                Verdict(
                    "bad",
                    f"no better than its null: none of {int(tested.sum())} {word} exceeds its null at q < {ALPHA:g} "
                    f"(smallest q {q[least]:.2g}, {where})",
                )
            )
    undefined = Counter(str(word) for word in heads["status"][~heads.ok])
    if ok and undefined:
        why = "; ".join(f"{reason} ({n})" for reason, n in undefined.most_common(_FEW))
        found.append(Verdict("note", f"{sum(undefined.values())} of {len(heads)} {word} have no defined score: {why}"))
    return found


def _of_summary(summary: Mapping[str, Any], path: str = "") -> Iterator[Verdict]:
    """Statuses, notes and misses wherever they stand in a summary."""
    for key, value in summary.items():
        where = f"{path}{key}"
        if isinstance(value, Mapping):
            yield from _of_summary(value, f"{where}.")
        elif key == "status" and isinstance(value, str) and value not in _DONE:
            bad = value.startswith(("no better", "poor"))
            yield Verdict("bad" if bad else "note", f"{path.rstrip('.') + ': ' if path else ''}{value}")
        elif key in ("notes", "problems") and isinstance(value, (list, tuple)):
            yield from (Verdict("note", str(line)) for line in value)
        elif key == "misses" and isinstance(value, (list, tuple)):
            yield from (Verdict("bad", f"missed: {line}") for line in value)


def _of_p_values(summary: Mapping[str, Any]) -> Iterator[Verdict]:
    """p-values that chance would reach, together by their name.

    1 / (n + 1) is the least that n draws can give: such a value shows too few draws, not too small an effect.
    """
    above: dict[tuple[str, int], list[str]] = {}
    for path, value in _numbers(summary):
        name = path.rpartition(".")[2]
        if (name == "p" or name.endswith("_p")) and ALPHA <= value <= 1:
            draws = round(1 / value) - 1
            least = draws if draws > 0 and abs(1 / (draws + 1) - value) < 1e-9 else 0
            above.setdefault((name, least), []).append(f"{path.rpartition('.')[0] or name} {value:.2g}")
    for (name, draws), places in above.items():
        text = f"{name.replace('_', ' ')} is not below {ALPHA:g}: {', '.join(places)}"
        if draws:
            yield Verdict("note", f"{text}; {draws} draws can show no less")
        else:
            yield Verdict("bad", f"no better than its null: {text}")


def _numbers(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{path}{key}.")
        elif _is_number(value):
            yield f"{path}{key}", float(value)


def _few(lines: list[Verdict]) -> list[Verdict]:
    kept = []
    for kind in ("bad", "good", "note"):
        mine = [line for line in lines if line.kind == kind]
        kept += mine[:_FEW]
        if len(mine) > _FEW:
            kept.append(Verdict(kind, f"and {len(mine) - _FEW} more, in the summary below"))
    return kept


def head_name(heads: HeadTable, row: int) -> str:
    group = heads.row_kind == "kv_group"
    return f"L{heads['layer'][row]} {'G' if group else 'H'}{heads['kv_group' if group else 'head'][row]}"


def best(heads: HeadTable | None) -> str:
    """The first head by rank, with its score and interval."""
    if heads is None or not heads.ok.any():
        return "–"
    row = int(np.nanargmin(heads["rank"]))
    low, high = heads["ci_low"][row], heads["ci_high"][row]
    interval = "" if math.isnan(low) else f" [{low:.3g}, {high:.3g}]"
    return f"{head_name(heads, row)}: {heads['score'][row]:.4g}{interval}"


def ran(artifact: Artifact, heads: HeadTable | None) -> dict[str, Any]:
    """What was measured, on which model and which data."""
    config = artifact.config
    model, asked = artifact.part("producer", "model"), config.get("model")
    path = asked.get("path") if isinstance(asked, Mapping) else asked
    meta: Mapping[str, Any] = heads.meta if heads is not None else {}
    shape = [f"{model[key]} {word}" for key, word in _SHAPE.items() if model.get(key)]
    data = {key: _brief(value) for key, value in artifact.part("config", "data").items()}
    measured = {key: value for key, value in artifact.part("producer", "data").items() if key not in data}
    score = meta.get("metric")
    if score and meta.get("unit"):
        score = f"{score} ({meta['unit']})"
    return {
        "analysis": config.get("analysis") or artifact.kind,
        "score": score,
        "order": None if not meta else "higher is more" if meta["higher_is_more"] else "lower is more",
        "model": model.get("name") or path,
        "architecture": ", ".join([*(str(word) for word in [model.get("architecture")] if word), *shape]),
        "basis and precision": ", ".join(str(model[key]) for key in ("basis", "dtype") if model.get(key)),
        "fingerprint": model.get("fingerprint"),
        "data": data,
        "data as measured": {key: _brief(value) for key, value in measured.items()},
        "seed": config.get("seed"),
        "made from": ", ".join(parent["ref"] for parent in artifact.manifest["inputs"]),
    }


_SHAPE = {"n_layers": "layers", "n_heads": "heads", "n_kv_heads": "kv groups", "d_model": "dimensions"}


def provenance(artifact: Artifact) -> dict[str, Any]:
    """Who made it, with what, when and where."""
    made_by, timing = artifact.manifest["producer"], artifact.manifest.get("timing") or {}
    dirty = " (with uncommitted changes)" if made_by.get("dirty") else ""
    return {
        "artifact": artifact.ref,
        "digest": artifact.digest,
        "created": artifact.created[:19].replace("T", " ") + " UTC",
        "command": " ".join(map(str, argv)) if isinstance(argv := made_by.get("argv"), list) else argv,
        "spec file": made_by.get("spec_file"),
        "git": f"{made_by['git']}{dirty}" if made_by.get("git") else None,
        "code": made_by.get("code"),
        "machine": ", ".join(str(made_by[key]) for key in ("platform", "device") if made_by.get(key)),
        "python": made_by.get("python"),
        "packages": artifact.part("producer", "packages"),
        "seconds": {key: f"{value:.3g}" for key, value in timing.items() if _is_number(value)},
        "files": {name: f"{entry['size']:,} bytes" for name, entry in artifact.files().items()},
    }


def _brief(value: Any) -> Any:
    """Long lists by their length: prompts belong to the artifact, not into every report of it."""
    if isinstance(value, Mapping):
        return {key: _brief(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and (len(value) > 8 or any(isinstance(item, Mapping) for item in value)):
        return f"{len(value)} given"
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
