"""The algorithm that the organism `siit-ioi` is trained to run, and what an interchange of one of its nodes must do.

A prompt mentions three names; the third mention is the subject's second ("When Ann and Bob went home, Bob gave a book
to" -> Ann). Three nodes, each the function of those before it:

1. `duplicate token`: the name of the third mention if it was mentioned before, else NOBODY.
2. `S-inhibition`: who is not the answer; the name that node 1 found.
3. `name mover`: the answer. Of the first two names, the one that is not inhibited; if neither is, both are equally
   likely.

Interchange semantics: run the base prompt, but give one node the value it has on a source prompt.

- `duplicate token` or `S-inhibition` from a source whose duplicated name is S': S' is ruled out in the base. With
  S' = S the answer stays IO; with S' = IO it is S; with any other S', or NOBODY (the source mentions three different
  names), nobody in the base is ruled out, and IO and S are equally likely.
- `name mover` from a source: the answer of the source, whether or not the base mentions it.

Names are indices into a pool, NOBODY is -1, `mentions` is `[n, 3]` in the order of the text. This file knows neither
models nor tokens. SIIT: Gupta et al. 2024, "InterpBench" (arXiv 2407.14494), after Geiger et al. 2022 (interchange
intervention training, arXiv 2112.00826).
"""

from __future__ import annotations

import torch
from torch import Tensor

NOBODY = -1
NODES = ("duplicate token", "S-inhibition", "name mover")


def duplicate(mentions: Tensor) -> Tensor:
    """The third name where it was mentioned before, else NOBODY: `[n, 3] -> [n]`."""
    third = mentions[:, 2]
    return torch.where((mentions[:, :2] == third[:, None]).any(1), third, NOBODY)


def answer(mentions: Tensor, inhibited: Tensor, n_names: int) -> Tensor:
    """Probability of each name, `[n, n_names]`: equal shares to those of the first two that are not inhibited."""
    left = (mentions[:, :2] != inhibited[:, None]).float()
    share = torch.zeros(len(mentions), n_names, device=mentions.device).scatter_add_(1, mentions[:, :2], left)
    return share / share.sum(1, keepdim=True)


def behaviour(mentions: Tensor, n_names: int) -> Tensor:
    """What the algorithm answers when nothing is interchanged: `[n, n_names]`."""
    return answer(mentions, duplicate(mentions), n_names)


def interchanged(base: Tensor, source: Tensor, node: Tensor, n_names: int) -> Tensor:
    """What it answers on `base` when `node` (index into NODES, per row) has its value on `source`: `[n, n_names]`."""
    with_source_name = answer(base, duplicate(source), n_names)
    return torch.where((node == NODES.index("name mover"))[:, None], behaviour(source, n_names), with_source_name)
