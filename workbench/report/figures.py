"""Which figures a result's tables allow, and the figures: `workbench plot` and the report choose from the same list.

A kind is known by the columns it needs, so an analysis that writes such a table has the figure without a line here. It
must never know an analysis by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.errors import NotFound

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.store import Artifact
    from workbench.tables import HeadTable

Tables = Mapping[str, tuple[str, ...]]  # table -> the columns it must have
_MEMBER = "in_"  # columns of a head table that say whether a head belongs to something
_STRONGEST = 60  # paths up to which a picture of them is readable
_CONDITIONS: tuple[tuple[str, tuple[str, ...], str, str, str], ...] = (  # table, labels, value, low, high
    ("conditions", ("condition",), "accuracy", "accuracy_low", "accuracy_high"),
    ("success", ("condition", "k", "group", "decoding"), "answered", "ci_low", "ci_high"),
    ("evaluation", ("condition", "alpha", "k"), "chair_i", "chair_i_low", "chair_i_high"),
)


@dataclass(frozen=True)
class Kind:
    """One kind of figure of one result.

    Attributes:
        said: what it shows, for help texts and captions.
        needs: alternatives, each tables with their columns; a result with any of them can be drawn.
        draw: (artifact, column, rule) -> figure.
        options: which of "column" and "rule" mean something.
        shown: whether a report has it unasked.
    """

    said: str
    needs: tuple[Tables, ...]
    draw: Callable[[Artifact, str | None, str | None], go.Figure]
    options: tuple[str, ...] = ()
    shown: bool = True

    def fits(self, artifact: Artifact) -> bool:
        return any(_has(artifact, tables) for tables in self.needs)

    @property
    def wanted(self) -> str:
        """The tables it needs, in words."""
        return " or ".join(
            " and ".join(f"{table} with {', '.join(cols)}" if cols else table for table, cols in tables.items())
            for tables in self.needs
        )


def heads(artifact: Artifact) -> HeadTable:
    """The head table of a result."""
    from workbench.tables import HeadTable

    if "heads.parquet" not in artifact.files():
        raise NotFound(f"{artifact.ref} has no head table; `workbench show` lists what it has.")
    return HeadTable.from_arrow(artifact.table("heads"))


def possible(artifact: Artifact) -> list[str]:
    """The kinds that a result's tables allow, by their columns."""
    return [name for name, kind in KINDS.items() if kind.fits(artifact)]


def draw(artifact: Artifact, kind: str, *, column: str | None = None, rule: str | None = None) -> go.Figure:
    """The figure of one result.

    Raises:
        NotFound: the result has not the tables that this kind needs; the message says what can be drawn.
    """
    if not artifact.removed and not KINDS[kind].fits(artifact):
        others = possible(artifact)
        can = f"it can be drawn as {', '.join(others)}" if others else "it has no table that can be drawn"
        raise NotFound(f"{artifact.ref} has no table for --kind {kind} ({KINDS[kind].wanted}); {can}.")
    return KINDS[kind].draw(artifact, column, rule)


def _heatmap(artifact: Artifact, column: str | None, _rule: str | None) -> go.Figure:
    from workbench import plots

    return plots.heads(heads(artifact), column=column or "score")


def _bars(artifact: Artifact, _column: str | None, _rule: str | None) -> go.Figure:
    from workbench import plots

    return plots.bars(heads(artifact))


def _needle(artifact: Artifact, _column: str | None, _rule: str | None) -> go.Figure:
    from workbench import plots

    return plots.grid(artifact.table("recall_grid"), title=f"{artifact.ref} · recall by length and depth")


def _positions(artifact: Artifact, column: str | None, _rule: str | None) -> go.Figure:
    from workbench import plots

    return plots.positions(artifact.table("positions"), value=column or "score", title=f"{artifact.ref} · by position")


def _masking(artifact: Artifact, column: str | None, _rule: str | None) -> go.Figure:
    from workbench import plots

    table = artifact.table("causal_curve")
    by = [name for name in ("group", "kind", "scope") if name in table.column_names]
    return plots.curves(table, y=column or "recall", group=by, title=f"{artifact.ref} · with k heads masked")


def _agreement(artifact: Artifact, column: str | None, _rule: str | None) -> go.Figure:
    from workbench import plots

    value = column or "jaccard"
    table = artifact.table("curve").to_pydict()
    names = [f"{a} and {b}" for a, b in zip(table["a"], table["b"], strict=True)]
    none = [None] * len(names)
    found = {"k": table["k"], value: table[value], "low": none, "high": none, "group": names}
    chance = {"k": table["k"], value: table["expected"], "low": table["low"], "high": table["high"]}
    chance["group"] = [f"chance, {name}" for name in names]
    both = {key: [*found[key], *chance[key]] for key in found}
    title = f"{artifact.ref} · {value.replace('_', ' ')} of the k best"
    return plots.curves(both, y=value, low="low", high="high", title=title)


def _training(artifact: Artifact, column: str | None, _rule: str | None) -> go.Figure:
    from workbench import plots

    value = column or "explained_variance"
    table = artifact.table("training").to_pydict()
    none = [None] * len(table["step"])
    data = {"step": table["step"], value: table[value], "low": none, "high": none, "group": [value] * len(none)}
    return plots.curves(data, x="step", y=value, low="low", high="high", title=f"{artifact.ref} · training")


def _conditions(artifact: Artifact, _column: str | None, _rule: str | None) -> go.Figure:
    from workbench import plots

    for name, labels, value, low, high in _CONDITIONS:
        if _has(artifact, {name: (labels[0], value, low, high)}):
            table = artifact.table(name)
            known = [label for label in labels if label in table.column_names]
            title = f"{artifact.ref} · {value.replace('_', ' ')} by condition"
            return plots.intervals(table, labels=known, value=value, low=low, high=high, title=title)
    raise NotFound(f"{artifact.ref} has no table of conditions.")


def _matrix(artifact: Artifact, column: str | None, _rule: str | None) -> go.Figure:
    from workbench import plots

    title = f"{artifact.ref} · {(column or 'jaccard').replace('_', ' ')}"
    return plots.matrix(artifact.table("pairs"), statistic=column or "jaccard", title=title)


def _upset(artifact: Artifact, _column: str | None, rule: str | None) -> go.Figure:
    from workbench import plots

    title = artifact.ref if rule is None else f"{artifact.ref} · {rule}"
    return plots.upset(members(artifact, rule), title=title)


def _graph(artifact: Artifact, _column: str | None, _rule: str | None) -> go.Figure:
    from workbench import plots

    edges, group = artifact.table("edges").to_pydict(), _group(artifact)
    if _has(artifact, _CIRCUIT):
        return plots.graph(artifact.table("nodes"), edges, group=group, title=f"{artifact.ref} · circuit")
    if "sender" not in edges:
        edges |= _edge_names(edges)
    if "effect" not in edges:
        edges["effect"] = edges["score"]
    n = len(edges["effect"])
    said = f"the {_STRONGEST} strongest of {n} paths" if n > _STRONGEST else f"{n} paths"
    return plots.graph(None, edges, group=group, most=_STRONGEST, title=f"{artifact.ref} · {said}")


def _edge_names(edges: Mapping[str, list[Any]]) -> dict[str, list[str]]:
    """Sender and receiver as one word each, of a table that has their parts in columns."""
    senders, receivers = [], []
    for kind, layer, head in zip(edges["sender_kind"], edges["sender_layer"], edges["sender_head"], strict=True):
        senders.append(f"{layer}.{head}" if kind == "head" else f"{layer}.{kind}" if layer >= 0 else str(kind))
    parts = (edges[f"receiver_{name}"] for name in ("input", "layer", "head", "kv_group"))
    for part, layer, head, kv_group in zip(*parts, strict=True):
        index = {"q": head, "k": kv_group, "v": kv_group}.get(part)
        receivers.append(part if layer < 0 or part == "logits" else f"{layer}.{part}")
        if index is not None:
            receivers[-1] = f"{layer}.{index}.{part}"
    return {"sender": senders, "receiver": receivers}


def _faithfulness(artifact: Artifact, _column: str | None, _rule: str | None) -> go.Figure:
    from workbench import plots

    sets = artifact.table("faithfulness") if "faithfulness.parquet" in artifact.files() else None
    return plots.faithfulness(artifact.table("curve"), sets, title=f"{artifact.ref} · faithfulness by size")


def _roc(artifact: Artifact, _column: str | None, _rule: str | None) -> go.Figure:
    from workbench import plots

    return plots.roc(artifact.table("roc"), title=f"{artifact.ref} · ROC, area in brackets")


def has_attention(artifact: Artifact) -> bool:
    """Whether a result kept attention over tokens."""
    from workbench.plots.tokens import COLUMNS

    return _has(artifact, {"attention": COLUMNS})


def attention_tokens(artifact: Artifact) -> str:
    """HTML of what the best heads look at: tokens and pictures, shaded."""
    from workbench.plots.tokens import PICTURE, tokens

    table = artifact.table("attention")
    seen = table.select(["example", "row"]).to_pydict()
    keys = {f"{PICTURE}{at}" for at, row in zip(seen["example"], seen["row"], strict=True) if row >= 0}
    pictures = artifact.tensors("arrays", keys=sorted(keys)) if keys else {}
    return str(tokens(table, pictures=pictures))


def members(artifact: Artifact, rule: str | None) -> dict[str, list[tuple[int, int]]]:
    """The heads that one result puts into sets of its own (columns in_NAME), or else what a rule selects."""
    table = heads(artifact)
    if rule is None:
        keys = table.keys()
        made = {}
        for name, values in table.columns.items():
            if name.startswith(_MEMBER) and set(values.tolist()) <= {True, False}:
                made[name.removeprefix(_MEMBER)] = [key for key, inside in zip(keys, values, strict=True) if inside]
        if made:
            return made
    return {artifact.ref: list(table.select(rule or "top 10"))}


def _group(artifact: Artifact) -> int:
    """Query heads per kv group, as the head table says."""
    if "heads.parquet" not in artifact.files():
        return 1
    table = artifact.table("heads", columns=["layer", "kv_group"])
    rows = zip(table.column("layer").to_pylist(), table.column("kv_group").to_pylist(), strict=True)
    return max(1, sum(layer == 0 and group == 0 for layer, group in rows))


def _has(artifact: Artifact, tables: Tables) -> bool:
    for table, columns in tables.items():
        if f"{table}.parquet" not in artifact.files():
            return False
        if columns and not set(columns) <= set(artifact.table(table).column_names):
            return False
    return True


_CIRCUIT: Tables = {"nodes": ("node", "layer"), "edges": ("sender", "receiver", "effect")}
KINDS: dict[str, Kind] = {
    "heatmap": Kind("layer x head", ({"heads": ()},), _heatmap, ("column",)),
    "bars": Kind("best heads with their intervals", ({"heads": ()},), _bars),
    "needle": Kind("recall by length and depth", ({"recall_grid": ("length", "depth", "recall")},), _needle),
    "masking": Kind("what masking k heads does", ({"causal_curve": ("k", "group", "recall")},), _masking, ("column",)),
    "agreement": Kind(
        "overlap of the k best, beside chance",
        ({"curve": ("a", "b", "k", "jaccard", "expected", "low", "high")},),
        _agreement,
    ),
    "training": Kind(
        "an autoencoder's training", ({"training": ("step", "explained_variance")},), _training, ("column",)
    ),
    "conditions": Kind(
        "conditions with their intervals",
        tuple({name: (labels[0], value, low, high)} for name, labels, value, low, high in _CONDITIONS),
        _conditions,
    ),
    "positions": Kind(
        "layer x position", ({"positions": ("component", "layer", "position", "score")},), _positions, ("column",)
    ),
    "matrix": Kind("overlap of every pair", ({"pairs": ("a", "b", "jaccard")},), _matrix, ("column",)),
    "upset": Kind("heads in exactly which selections", ({"heads": ()},), _upset, ("rule",), shown=False),
    "graph": Kind(
        "a circuit, or patched paths",
        (
            _CIRCUIT,
            {"edges": ("sender", "receiver", "effect")},
            {"edges": ("sender", "receiver", "score")},
            {"edges": ("sender_kind", "sender_layer", "receiver_input", "receiver_layer", "score")},
        ),
        _graph,
    ),
    "faithfulness": Kind("faithfulness by size", ({"curve": ("size", "f")},), _faithfulness),
    "roc": Kind("true against false positives", ({"roc": ("fpr", "tpr")},), _roc),
}
