"""The nodes and edges of a transformer, as attribution names them: bookkeeping on integers, no model.

    sender      input (the stream that enters block 0) | head (layer, head) | mlp (layer)
    receiver    q of a head | k, v of a kv group | mlp (layer) | logits

A sender writes the residual stream at a time, a receiver reads it at a time, and the edge exists when the sender has
written by then. With `l` the layer: attention reads at 2l and writes at 2l + 1, the MLP reads at 2l + 1 (where it sees
its own layer's attention; at 2l in a parallel block) and writes at 2l + 2, the logits read at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool

NodeKind = Literal["input", "head", "mlp"]
ReceiverKind = Literal["q", "k", "v", "mlp", "logits"]


class Node(NamedTuple):
    """A sender; `layer` and `head` are -1 where they mean nothing."""

    kind: NodeKind
    layer: int = -1
    head: int = -1


class Receiver(NamedTuple):
    """What reads the stream; `index` is the head of a q, the kv group of a k or v, else -1."""

    kind: ReceiverKind
    layer: int
    index: int = -1


@dataclass(frozen=True)
class Graph:
    """Every sender and receiver of a model, each in the order in which they write and read.

    Attributes:
        mlp_sees_attn: per layer, whether the MLP reads what its own layer's attention wrote.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    mlp_sees_attn: tuple[bool, ...]

    @cached_property
    def senders(self) -> tuple[Node, ...]:
        made = [Node("input")]
        for layer in range(self.n_layers):
            made += [Node("head", layer, head) for head in range(self.n_heads)]
            made.append(Node("mlp", layer))
        return tuple(made)

    @cached_property
    def receivers(self) -> tuple[Receiver, ...]:
        made = [r for layer in range(self.n_layers) for r in self.receivers_of(layer)]
        return (*made, Receiver("logits", self.n_layers))

    def receivers_of(self, layer: int) -> list[Receiver]:
        """q of every head, k and v of every kv group, the MLP."""
        return [
            *(Receiver("q", layer, head) for head in range(self.n_heads)),
            *(Receiver("k", layer, group) for group in range(self.n_kv_heads)),
            *(Receiver("v", layer, group) for group in range(self.n_kv_heads)),
            Receiver("mlp", layer),
        ]

    def read(self, receiver: Receiver) -> int:
        """When the receiver reads the stream."""
        late = receiver.kind == "mlp" and self.mlp_sees_attn[receiver.layer]
        return 2 * receiver.layer + int(late)

    def n_senders(self, receiver: Receiver) -> int:
        """How many senders have written by then; they are the first ones of `senders`."""
        return 1 + receiver.layer * (self.n_heads + 1) + (self.n_heads if self.read(receiver) % 2 else 0)

    def sender_of_head(self, layer: int, head: int) -> int:
        """Place of a head in `senders`."""
        return 1 + layer * (self.n_heads + 1) + head

    def exists(self) -> Bool[np.ndarray, "sender receiver"]:
        """Which pairs are edges."""
        written = np.array([self.n_senders(receiver) for receiver in self.receivers])
        return np.arange(len(self.senders))[:, None] < written[None]
