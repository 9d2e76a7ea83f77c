"""A circuit as a typed graph: nodes and the edges between a sender and what a receiver reads, with tables and back.

    node        `2.3` a head, `2.mlp` an MLP, `input` the embeddings
    receiver    `2.3.q` q of a head, `2.1.k` and `2.1.v` k and v of a kv group, `2.mlp`, `logits`
    edge        sender -> receiver, with its effect, standard error, stage and which views of the task see it

k and v belong to a kv group: an edge into `2.1.k` reaches every head of the circuit that reads with that group. Plain
names and numbers; nothing here runs a model or knows how an effect was measured.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

Head = tuple[int, int]
EdgeKey = tuple[str, str]
INPUT, LOGITS = "input", "logits"
_NODE_COLUMNS = ("node", "kind", "layer", "head", "effect", "stderr", "stage", "role", "seen_by")
_EDGE_COLUMNS = ("sender", "receiver", "input", "effect", "stderr", "stage", "view", "seen_by")


@dataclass(frozen=True)
class Node:
    """A member of the circuit.

    Attributes:
        effect, stderr: the strongest of its outgoing edges (or of the node itself, where no edges were measured).
        stage: how many steps from the logits it was found, 1 for the closest; 0 where there are no stages.
        seen_by: names of the views of the task under which it was found.
    """

    name: str
    effect: float = float("nan")
    stderr: float = float("nan")
    stage: int = 0
    role: str = ""
    seen_by: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return INPUT if self.name == INPUT else "mlp" if self.name.endswith(".mlp") else "head"

    @property
    def layer(self) -> int:
        """-1 for the input."""
        return -1 if self.name == INPUT else int(self.name.split(".")[0])

    @property
    def head(self) -> int:
        """-1 for what is no head."""
        return int(self.name.split(".")[1]) if self.kind == "head" else -1


@dataclass(frozen=True)
class Edge:
    """What a sender says to one input of a receiver.

    Attributes:
        effect, stderr: share of the gap between the two runs that goes with the edge, under `view`.
        stage: as of a node.
        view: the view of the task under which the effect is strongest.
        seen_by: all views under which it passes the threshold.
    """

    sender: str
    receiver: str
    effect: float = float("nan")
    stderr: float = float("nan")
    stage: int = 0
    view: str = ""
    seen_by: tuple[str, ...] = ()

    @property
    def key(self) -> EdgeKey:
        return self.sender, self.receiver

    @property
    def input(self) -> str:
        """q, k, v, mlp or logits."""
        return self.receiver.rsplit(".", 1)[-1]


@dataclass(frozen=True)
class CircuitGraph:
    """Nodes and edges of one circuit of one model.

    Attributes:
        group: query heads per kv group.
    """

    nodes: tuple[Node, ...] = ()
    edges: tuple[Edge, ...] = ()
    group: int = 1
    _at: Mapping[str, Node] = field(default_factory=dict, init=False, repr=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", tuple(sorted(self.nodes, key=_order)))
        object.__setattr__(self, "edges", tuple(sorted(self.edges, key=lambda e: (e.stage, *e.key))))
        object.__setattr__(self, "_at", {node.name: node for node in self.nodes})
        keys = [edge.key for edge in self.edges]
        if len(set(keys)) < len(keys) or len(self._at) < len(self.nodes):
            raise InputError("A circuit has every node and every edge once.")
        for edge in self.edges:
            if edge.sender not in self._at:
                raise InputError(f"The edge {edge.sender} -> {edge.receiver} leaves a node that is not in the circuit.")

    def __len__(self) -> int:
        return len(self.nodes)

    def __contains__(self, name: object) -> bool:
        return name in self._at

    def __getitem__(self, name: str) -> Node:
        return self._at[name]

    def heads(self) -> tuple[Head, ...]:
        """Every head of the circuit, sorted."""
        return tuple(sorted((node.layer, node.head) for node in self.nodes if node.kind == "head"))

    def mlps(self) -> tuple[int, ...]:
        """Layers of the MLPs in the circuit."""
        return tuple(sorted(node.layer for node in self.nodes if node.kind == "mlp"))

    def keys(self) -> frozenset[EdgeKey]:
        """(sender, receiver) of every edge."""
        return frozenset(edge.key for edge in self.edges)

    def out_of(self, name: str) -> tuple[Edge, ...]:
        return tuple(edge for edge in self.edges if edge.sender == name)

    def into(self, name: str) -> tuple[Edge, ...]:
        """Edges into any input of a node."""
        return tuple(edge for edge in self.edges if name in self.readers(edge.receiver))

    def readers(self, receiver: str) -> tuple[str, ...]:
        """The nodes of the circuit that read a receiver; for k and v, all heads of the group; (`logits`,) for it."""
        if receiver == LOGITS or receiver.endswith(".mlp"):
            return (receiver,)
        layer, index, part = receiver.split(".")
        if part == "q":
            return (f"{layer}.{index}",)
        heads = range(int(index) * self.group, (int(index) + 1) * self.group)
        return tuple(name for name in (f"{layer}.{head}" for head in heads) if name in self._at)

    def is_subset(self, other: CircuitGraph) -> bool:
        """Whether every node and every edge of this circuit is in the other one."""
        return self._at.keys() <= other._at.keys() and self.keys() <= other.keys()

    def union(self, other: CircuitGraph) -> CircuitGraph:
        """Nodes and edges of both; where both have one, the one with the larger effect."""
        return CircuitGraph(
            tuple(_stronger(self.nodes, other.nodes, lambda node: node.name)),
            tuple(_stronger(self.edges, other.edges, lambda edge: edge.key)),
            self.group,
        )

    def only(self, edges: Collection[EdgeKey]) -> CircuitGraph:
        """The part of these edges from which a path leads to the logits through them."""
        kept = CircuitGraph(self.nodes, tuple(e for e in self.edges if e.key in edges), self.group)
        reached, found, frontier = set(), [], [LOGITS]
        while frontier:
            here = frontier.pop()
            for edge in kept.edges:
                if here in kept.readers(edge.receiver) and edge not in found:
                    found.append(edge)
                    if edge.sender not in reached:
                        reached.add(edge.sender)
                        frontier.append(edge.sender)
        return CircuitGraph(tuple(n for n in self.nodes if n.name in reached), tuple(found), self.group)

    def fed_by(self, source: str = INPUT) -> CircuitGraph:
        """The part to which a path leads from `source`."""
        reached, frontier = {source}, [source]
        while frontier:
            for edge in self.out_of(frontier.pop()):
                for name in self.readers(edge.receiver):
                    if name not in reached:
                        reached.add(name)
                        frontier.append(name)
        edges = tuple(e for e in self.edges if e.sender in reached)
        return CircuitGraph(tuple(n for n in self.nodes if n.name in reached), edges, self.group)

    def with_roles(self, roles: Mapping[str, str]) -> CircuitGraph:
        nodes = tuple(replace(node, role=roles.get(node.name, node.role)) for node in self.nodes)
        return CircuitGraph(nodes, self.edges, self.group)

    def to_frames(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Tables `nodes` and `edges`; `from_frames` makes the same circuit of them."""
        import pandas as pd

        nodes = [[*(getattr(n, c) for c in ("name", *_NODE_COLUMNS[1:-1])), " ".join(n.seen_by)] for n in self.nodes]
        edges = [[*(getattr(e, c) for c in _EDGE_COLUMNS[:-1]), " ".join(e.seen_by)] for e in self.edges]
        return pd.DataFrame(nodes, columns=list(_NODE_COLUMNS)), pd.DataFrame(edges, columns=list(_EDGE_COLUMNS))

    @classmethod
    def from_frames(cls, nodes: pd.DataFrame, edges: pd.DataFrame, *, group: int = 1) -> CircuitGraph:
        """The circuit whose tables these are.

        Raises:
            InputError: a table lacks a column.
        """
        for frame, columns, what in ((nodes, _NODE_COLUMNS, "nodes"), (edges, _EDGE_COLUMNS, "edges")):
            lacking = [column for column in columns if column not in frame]
            if lacking:
                raise InputError(f"The table of {what} lacks the column {lacking[0]!r}.")
        return cls(
            tuple(Node(str(r["node"]), **_values(r), role=str(r["role"])) for r in nodes.to_dict("records")),
            tuple(
                Edge(str(r["sender"]), str(r["receiver"]), **_values(r), view=str(r["view"]))
                for r in edges.to_dict("records")
            ),
            group,
        )


def _values(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        "effect": float(row["effect"]),
        "stderr": float(row["stderr"]),
        "stage": int(row["stage"]),
        "seen_by": tuple(str(row["seen_by"]).split()),
    }


def _order(node: Node) -> tuple[int, int, int]:
    return node.layer, int(node.kind == "mlp"), node.head


def _stronger(first: Iterable[Any], second: Iterable[Any], key: Any) -> Iterable[Any]:
    found: dict[Any, Any] = {}
    for one in (*first, *second):
        known = found.get(key(one))
        if known is None or np.nan_to_num(abs(one.effect)) > np.nan_to_num(abs(known.effect)):
            found[key(one)] = one
    return found.values()
